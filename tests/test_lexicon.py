"""Any tokenizer file opens as one kind of object that encodes as its own library does."""

from __future__ import annotations

import base64
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import lexicon as lexicons
from ceval_suite.backends.lexicon import (
    BYTE,
    CONTROL,
    NORMAL,
    PATTERNS,
    UNKNOWN,
    Lexicon,
    open_tokenizer,
)
from ceval_suite.backends.sources import resolve
from ceval_suite.errors import ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.tokenizer import material
from tests.vocabularies import INDEX, llama, opened

ODD = [
    "",
    " ",
    "a",
    "  two  blanks ",
    "\n\n\n",
    "\tif x:\r\n\t\treturn\n",
    "中文，ＡＢＣ１２３。",
    "😀👍🏽👨‍👩‍👧",
    "e\u0301 ½ ﬁ",
    "don't DON'T l'été",
    "a\u0000b\u200bc",
    "1234567890 3.14",
    "=" * 70,
]


def odd_texts() -> list[str]:
    """Texts that no corpus has: long repeats and mixtures that hit ties between merges."""
    rng = random.Random(7)
    alphabets = [
        "ab",
        "a",
        "aA ",
        "0123456789",
        "\n \t",
        "中国人民的",
        "ａＡ１",
        "='\"-_/",
        "xyzé\u0301",
    ]
    made = [
        "".join(rng.choice(letters) for _ in range(rng.randint(1, 60)))
        for letters in alphabets
        for _ in range(150)
    ]
    return [*ODD, *made, *("ab" * n for n in range(1, 50))]


# small files of every kind, trained on the bundled exams


@pytest.fixture(scope="module")
def pieces(sample_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model with bytes for what it has no piece for."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    lines = [line for text in sample_texts for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=3000,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def ranks(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer's entries as tiktoken writes them: token and rank, a line each."""
    table = lexicons.bytes_of_characters()
    made = {
        bytes(table[c] for c in token): i
        for token, i in tiny_tokenizer.get_vocab().items()
        if i > 2  # below are the special tokens
    }
    lines = [
        f"{base64.b64encode(token).decode()} {rank}"
        for rank, token in enumerate(sorted(made, key=made.__getitem__))
    ]
    path = tmp_path_factory.mktemp("ranks") / "tiny.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer_json(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tiny_tokenizer.backend_tokenizer.save(str(path))
    return path


def test_a_directory_and_its_tokenizer_json_are_the_same_tokenizer(
    tiny_model: Path, tokenizer_json: Path, sample_texts: list[str]
) -> None:
    from tokenizers import Tokenizer

    folder, file = open_tokenizer(str(tiny_model)), open_tokenizer(str(tokenizer_json))
    core = Tokenizer.from_file(str(tokenizer_json))
    expected = [e.ids for e in core.encode_batch([*sample_texts, *ODD], add_special_tokens=False)]
    assert folder.encode([*sample_texts, *ODD]) == expected
    assert file.encode([*sample_texts, *ODD]) == expected
    assert folder.kind == file.kind == "bpe"
    assert folder.entries == file.entries
    assert folder.size == len(folder.entries) == core.get_vocab_size()


def test_a_sentencepiece_file_encodes_as_sentencepiece(
    pieces: Path, sample_texts: list[str]
) -> None:
    from sentencepiece import SentencePieceProcessor

    core = SentencePieceProcessor(str(pieces))
    found = open_tokenizer(str(pieces))
    texts = [*sample_texts, *odd_texts()]
    assert found.encode(texts) == [core.encode(text) for text in texts]
    assert (found.kind, found.size) == ("sentencepiece", 3000)
    assert [e.kind for e in found.entries[:4]] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert sum(e.kind == BYTE for e in found.entries) == 256


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_rank_file_encodes_as_tiktoken_with_the_pattern_that_is_named(
    ranks: Path, pattern: str, sample_texts: list[str]
) -> None:
    import tiktoken

    table = lexicons._ranks(ranks)
    assert table is not None
    core = tiktoken.Encoding(
        "tiny", pat_str=PATTERNS[pattern], mergeable_ranks=table, special_tokens={}
    )
    found = open_tokenizer(f"{ranks}@{pattern}")
    texts = [*sample_texts, *odd_texts()]
    assert found.encode(texts) == [core.encode_ordinary(text) for text in texts]
    assert {entry.data: entry.id for entry in found.entries} == table


def test_a_known_file_name_says_its_pattern(ranks: Path, tmp_path: Path) -> None:
    named = tmp_path / "qwen.tiktoken"
    named.write_bytes(ranks.read_bytes())
    found = open_tokenizer(str(named))
    assert found.encode(["2024 年"]) == open_tokenizer(f"{ranks}@qwen").encode(["2024 年"])
    other = tmp_path / "tokenizer.model"  # Llama 3 ships its ranks under this name
    other.write_bytes(ranks.read_bytes())
    assert open_tokenizer(str(other)).encode(["x1234"]) == open_tokenizer(f"{ranks}@cl100k").encode(
        ["x1234"]
    )


def test_an_encoding_of_tiktoken_opens_by_name_with_its_special_tokens(
    ranks: Path, monkeypatch: pytest.MonkeyPatch, sample_texts: list[str]
) -> None:
    import tiktoken
    from tiktoken import registry

    table = lexicons._ranks(ranks)
    assert table is not None
    made = {
        "name": "tiny_base",
        "pat_str": PATTERNS["cl100k"],
        "mergeable_ranks": table,
        "special_tokens": {"<|end|>": len(table), "<|far|>": len(table) + 9},
    }
    registry.list_encoding_names()  # so that the table of constructors is there
    monkeypatch.setitem(registry.ENCODING_CONSTRUCTORS, "tiny_base", lambda: made)
    core = tiktoken.get_encoding("tiny_base")
    found = open_tokenizer("tiktoken:tiny_base")
    assert found.encode(sample_texts) == [core.encode_ordinary(text) for text in sample_texts]
    (last,) = [e for e in found.entries if e.kind == CONTROL]
    assert (last.id, last.token) == (len(table), "<|end|>")


def every(pieces: Path, ranks: Path, tokenizer_json: Path) -> list[Lexicon]:
    return [open_tokenizer(str(p)) for p in (pieces, tokenizer_json)] + [
        open_tokenizer(f"{ranks}@cl100k")
    ]


def test_the_bytes_of_the_tokens_give_the_text(
    pieces: Path, ranks: Path, tokenizer_json: Path, sample_texts: list[str]
) -> None:
    for found in every(pieces, ranks, tokenizer_json):
        data = {entry.id: entry.data for entry in found.entries}
        blank = b" " if found.kind == "sentencepiece" else b""  # SentencePiece puts one in front
        texts = [*sample_texts, *(text for text in ODD if text)]
        for text, ids in zip(texts, found.encode(texts), strict=True):
            assert b"".join(data[i] for i in ids) == blank + text.encode(), found.name
            assert found.decode(ids) == text


def test_no_texts_are_no_tokens_and_special_tokens_come_when_asked(pieces: Path) -> None:
    found = open_tokenizer(str(pieces))
    assert found.encode([]) == []
    (bare,), (dressed,) = found.encode(["A"]), found.encode(["A"], special=True)
    assert dressed == [1, *bare]


# what cannot be opened


def refused(reference: str) -> str:
    with pytest.raises(UserError) as caught:
        open_tokenizer(reference)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_what_cannot_be_opened_is_said_in_one_sentence(
    ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing-here" in refused(str(tmp_path / "nothing-here.json"))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    assert "not a tokenizer.json" in refused(str(tmp_path / "tokenizer.json"))
    (tmp_path / "notes.model").write_bytes(b"\x00\x01 no tokenizer")
    assert "neither SentencePiece's nor tiktoken's" in refused(str(tmp_path / "notes.model"))
    (tmp_path / "bare").mkdir()
    assert "no tokenizer files" in refused(str(tmp_path / "bare"))
    said = refused(str(ranks))
    assert "tiny.tiktoken@PATTERN" in said
    assert all(name in said for name in PATTERNS)
    assert "did you mean 'cl100k'" in refused(f"{ranks}@cl100")
    assert "unknown tiktoken encoding 'cl10k_base'" in refused("tiktoken:cl10k_base")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert "pip install 'ceval-suite[tiktoken]'" in refused("tiktoken:cl100k_base")


def test_a_broken_rank_file_is_no_rank_file(ranks: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.tiktoken"
    path.write_bytes(ranks.read_bytes()[:1001])
    with pytest.raises(ModelError, match=r"cut\.tiktoken"):
        open_tokenizer(f"{path}@cl100k")


# the real ones


def benchmark_texts(real_data: Path) -> list[str]:
    source = material.sources(real_data)["cmmlu"]
    items = [
        item
        for subject in source.task.subjects
        for item in (*source.items(subject), *source.shots(subject))
    ]
    return ["\n".join([item.question, *item.choices]) for item in items]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "pattern"), [("qwen", "qwen"), ("llama-3", "cl100k"), ("llama-4", "o200k")]
)
def test_real_rank_files_encode_as_tiktoken_on_all_of_cmmlu(
    real_data: Path, name: str, pattern: str
) -> None:
    import tiktoken

    found = opened(name)
    path = resolve(ModelSpec(path=INDEX[name].split("@")[0]))
    table = lexicons._ranks(path)
    assert table is not None
    core = tiktoken.Encoding(
        name, pat_str=PATTERNS[pattern], mergeable_ranks=table, special_tokens={}
    )
    texts = [*benchmark_texts(real_data), *odd_texts()]
    assert len(texts) > 11_000
    assert found.encode(texts) == core.encode_ordinary_batch(texts)


@pytest.mark.real
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_real_sentencepiece_files_encode_as_sentencepiece(real_data: Path, name: str) -> None:
    from sentencepiece import SentencePieceProcessor

    path = llama() if name == "llama" else resolve(ModelSpec(path=INDEX[name]))
    core = SentencePieceProcessor(str(path))
    texts = [*benchmark_texts(real_data)[::5], *odd_texts()]
    assert opened(name).encode(texts) == core.encode(texts)


@pytest.mark.parametrize("name", ["deepseek", "llama-3", "mistral", "qwen", "smollm2"])
def test_the_bytes_of_real_tokens_give_the_text(name: str, sample_texts: list[str]) -> None:
    found = opened(name)
    data = {entry.id: entry.data for entry in found.entries}
    blank = b" " if found.kind == "sentencepiece" else b""
    for text, ids in zip(sample_texts, found.encode(sample_texts), strict=True):
        assert b"".join(data[i] for i in ids) == blank + text.encode()


def test_real_definitions_say_the_kind_and_the_bytes() -> None:
    found = opened("llama-3")
    assert (found.kind, found.size) == ("bpe", 128_000)
    assert [e.kind for e in found.entries].count(BYTE) == 128  # ASCII ones are characters
    assert [e.kind for e in found.entries].count(NORMAL) == 128_000 - 128
