"""An audit says what a tokenizer holds and does to text; every count has an oracle beside it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import cli
from ceval_suite.backends import reach
from ceval_suite.backends.lexicon import Lexicon, open_tokenizer
from ceval_suite.report import audit as report
from ceval_suite.report import table
from ceval_suite.tokenizer import material, scripts
from ceval_suite.tokenizer.audit import PROBES
from ceval_suite.tokenizer.audit import audit as whole_audit
from tests.vocabularies import INDEX, merged, opened

Audit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def no_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the bundled exams: what is audited must not depend on the machine."""
    return tmp_path_factory.mktemp("no-data")


@pytest.fixture(scope="module")
def audit(no_data: Path) -> Audit:
    return partial(whole_audit, data=no_data)


def made(core: Any, folder: Path, **options: Any) -> Lexicon:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=core, **options).save_pretrained(folder)
    return open_tokenizer(str(folder))


def byte_level(names: list[str], merges: list[tuple[str, str]], normalizer: Any = None) -> Any:
    """A byte-level BPE of all bytes, these merges and these further names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    every = [*alphabet, *("".join(pair) for pair in merges), *names]
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(every)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return core


# what a vocabulary holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the", "ASCII"),
        ("don't", "ASCII"),
        ("中国", "Chinese, several characters"),
        (" 中", "Chinese, one character"),
        ("第1", "mixed with Chinese"),
        ("，中", "mixed with Chinese"),
        ("20", "digits"),
        (" 7", "digits"),
        (" \n\t", "blanks"),
        ("\u3000", "blanks"),
        ("привет", "cyrillic"),
        ("é", "latin"),
        ("ｅ", "fullwidth latin"),
        ("ℝ", "latin"),
        ("한국", "hangul"),
        ("のに", "hiragana"),
        ("aж", "other, mixed"),
        ("——", "symbols and punctuation"),
        ("😀", "symbols and punctuation"),
    ],
)
def test_an_entry_is_counted_by_what_it_is_written_in(text: str, expected: str) -> None:
    assert scripts.writing(text) == expected


def test_the_levels_of_gb2312_are_those_of_the_standard() -> None:
    first, second = scripts.gb2312(1), scripts.gb2312(2)
    assert (len(first), len(second)) == (3755, 3008)
    assert (first[0], first[-1], second[0], second[-1]) == ("啊", "座", "亍", "齄")
    assert not set(first) & set(second)
    assert all(unicodedata.name(c).startswith("CJK UNIFIED") for c in (*first, *second))


@pytest.mark.parametrize("name", ["llama-3", "qwen", "mistral"])
def test_every_entry_of_a_real_vocabulary_is_counted_once(name: str) -> None:
    entries = opened(name).entries
    assert sum(scripts.by_writing(entries).values()) == len(entries)
    # by hand: entries that are one character of the unified block, with a blank or without
    found = scripts.by_writing(entries)["Chinese, one character"]
    plain = [(e.text or "").strip() for e in entries if e.kind == "normal"]
    han = [t for t in plain if len(t) == 1 and "CJK " in unicodedata.name(t, "")]
    symbols = [
        t for t in han if unicodedata.category(t) != "Lo" or "IDEOGRAPH-" not in unicodedata.name(t)
    ]
    assert found == len(han) - len(symbols)


def test_chinese_coverage_counts_characters_that_are_one_token() -> None:
    for name in ("qwen", "mistral"):
        found = opened(name)
        entries = {entry.text for entry in found.entries if entry.kind == "normal"}
        about = scripts.chinese(found.entries, [])
        for level in (1, 2):
            single = [c for c in scripts.gb2312(level) if c in entries]
            assert about["gb2312"][f"level {level}"]["single"] == len(single)
            # and one they are, inside a text
            for ids in found.encode([f"\n{c}" for c in single[:300]]):
                assert len(ids) == len(found.encode(["\n"])[0]) + 1
    words = [t for t in map(str.strip, filter(None, entries)) if re.fullmatch("[一-鿿]{2,}", t)]
    assert scripts.chinese(opened("mistral").entries, [])["words"] == len(words) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "digit by digit"),
        ("qwen", "digit by digit"),
        ("llama-3", "groups of three from the left"),
        ("deepseek", "groups of three from the left"),
    ],
)
def test_the_way_numbers_are_cut_is_named(name: str, expected: str) -> None:
    found = opened(name)
    about = scripts.digits(found.encode, {entry.id: entry for entry in found.entries})
    assert about["split"] == expected
    cut = [found.decode([i]).strip() for i in found.encode(["x1234567"])[0]]
    assert [part for part in cut if part.isdigit()] == about["examples"]["1234567"]


def test_numbers_that_only_some_merges_join_are_cut_as_merged(tmp_path: Path) -> None:
    found = made(byte_level([], [("2", "0"), ("20", "2")]), tmp_path)
    about = scripts.digits(found.encode, {entry.id: entry for entry in found.entries})
    assert (about["split"], about["examples"]["2024"]) == ("as merged", ["202", "4"])
    assert about["below_1000_whole"] == 12  # ten digits, 20 and 202


# what is never produced, and what is there twice


def test_a_piece_without_the_merges_that_make_it_is_unreachable(
    audit: Audit, tmp_path: Path
) -> None:
    found = audit(made(byte_level(["xyz", "ab"], [("x", "y")]), tmp_path))
    assert found["unreachable"]["first"] == ["xyz", "ab"]
    assert found["unreachable"]["count"] == 2


def test_two_ids_for_the_same_text_are_duplicates(audit: Audit, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.BPE({"a": 0, "b": 1, "▁": 2, "▁a": 3, " a": 4, "<0x61>": 5}, []))
    found = audit(made(core, tmp_path))
    assert found["duplicates"] == {"count": 1, "ids": [[3, 4]]}  # a byte for a letter is none
    assert audit(made(byte_level([], []), tmp_path / "plain"))["duplicates"]["count"] == 0


def test_pieces_that_only_stand_behind_others_are_not_called_unreachable(
    audit: Audit, sample_texts: list[str], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]"]
    core.train_from_iterator(
        sample_texts,
        trainers.WordPieceTrainer(vocab_size=2500, special_tokens=special, show_progress=False),
    )
    found = audit(made(core, tmp_path, unk_token="[UNK]"), ["cmmlu/official"])
    inner = [token for token in core.get_vocab() if token.startswith("##")]
    assert (found["kind"], found["unreachable"]["count"]) == ("wordpiece", 0)
    assert (found["untested"], found["duplicates"]["count"]) == (len(inner), 0)
    assert {"upper case", "a line break", "a tab"} <= set(found["read_as"])
    assert found["letters"][0]["tokens"]["A"]["tokens"] == ["a"]


@pytest.mark.parametrize("by_length", [False, True], ids=["Chinese-LLaMA", "Colossal-LLaMA"])
def test_the_345_unreachable_pieces_of_the_chinese_extension_are_found(
    audit: Audit, tmp_path: Path, by_length: bool
) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = merged(tmp_path, by_length=by_length)
    found = audit(open_tokenizer(str(folder)), ["cmmlu/official"])
    assert found["entries"] == 49_953
    lost = [i for i in found["unreachable"]["ids"] if i >= 32_000]
    assert len(lost) == 345
    core = SentencePieceProcessor(str(folder / "tokenizer.model"))
    names = {core.id_to_piece(i) for i in lost}
    assert {"西班牙", "国务院", "维生素"} <= names
    # the same by SentencePiece alone: what a piece's text becomes inside a text
    inside = core.encode(
        ["\n" + core.id_to_piece(i).replace("▁", " ") for i in range(32_000, 49_953)]
    )
    assert lost == [i for i, ids in enumerate(inside, start=32_000) if i not in ids]
    # pieces before every old merge cut up old ones as well, all of which LLaMA itself reaches
    cut = [i for i in found["unreachable"]["ids"] if i < 32_000]
    assert len(cut) == 194
    assert "▁people" in {core.id_to_piece(i) for i in cut}
    assert audit(opened("llama"), ["cmmlu/official"])["unreachable"]["count"] == 0


def test_below_the_old_scores_no_old_piece_is_lost(tmp_path: Path) -> None:
    found = open_tokenizer(str(merged(tmp_path, score=None)))
    texts = {e.id: e.text for e in found.entries if e.kind == "normal" and e.text}
    lost = reach.unreachable(found.encode, texts)
    assert lost
    assert min(lost) >= 32_000


def test_real_vocabularies_have_the_unreachable_tokens_that_their_library_has() -> None:
    import tiktoken

    from ceval_suite.backends import lexicon as lexicons
    from ceval_suite.backends.sources import resolve
    from ceval_suite.model_spec import ModelSpec

    found = opened("qwen")
    ranks = lexicons._ranks(resolve(ModelSpec(path=INDEX["qwen"])))
    assert ranks is not None
    core = tiktoken.Encoding(
        "qwen", pat_str=lexicons.PATTERNS["qwen"], mergeable_ranks=ranks, special_tokens={}
    )
    texts = {e.id: e.text for e in found.entries if e.kind == "normal" and e.text}
    lost = reach.unreachable(found.encode, texts)
    assert len(lost) > 1000  # two-digit tokens and others that its pattern cuts before any merge
    for i in lost:
        assert i not in core.encode_ordinary(texts[i])
        assert i not in core.encode_ordinary("\n" + texts[i])
    assert all(i in core.encode_ordinary(texts[i]) for i in sorted(set(texts) - set(lost))[::97])


# what happens to text


def test_a_byte_level_tokenizer_gives_every_text_back(audit: Audit, tmp_path: Path) -> None:
    found = audit(made(byte_level([], []), tmp_path))
    assert (found["round_trip"]["lost"], found["read_as"]) == ({}, {})
    assert (found["text"]["zh"]["lost"], found["text"]["en"]["lost"]) == (0, 0)
    assert found["text"]["zh"]["unknown"] == 0


def test_what_a_normaliser_changes_is_named(audit: Audit, tmp_path: Path) -> None:
    from tokenizers import normalizers

    changes = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("  ", " ")]
    )
    found = audit(made(byte_level([], [], changes), tmp_path))
    assert found["normalizer"] == ["NFKC", "Lowercase", "Replace"]
    assert set(found["read_as"]) == {
        "full-width letters",
        "full-width marks",
        "compatibility characters (NFKC)",
        "combining marks (NFC)",
        "upper case",
        "two blanks",
        "an ideographic blank",
    }
    lost = found["round_trip"]["lost"]
    assert lost["full-width letters"] == "abcabc123"
    assert lost["letter case"] == "abc abc àé ß"
    assert set(lost) == {
        name
        for name, text in PROBES.items()
        if unicodedata.normalize("NFKC", text).lower().replace("  ", " ") != text
    }


def test_texts_that_are_unknown_are_counted_and_not_taken_for_one_another(
    audit: Audit, no_data: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "。": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lexicon = made(core, tmp_path, unk_token="<unk>")
    found = audit(lexicon)
    assert "accents" not in found["read_as"]
    texts = material.questions(material.sources(no_data))
    for language in ("en", "zh"):
        ids = [i for one in lexicon.encode(texts[language]) for i in one]
        assert found["text"][language]["unknown"] == ids.count(0) / len(ids)
        assert found["text"][language]["tokens"] == len(ids)
        assert found["text"][language]["unknown"] > 0.5
    assert all(one["verdict"] == "refused" for one in found["letters"])


def test_bytes_and_parts_of_characters_are_counted_on_text(audit: Audit, no_data: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    from ceval_suite.backends.sources import resolve
    from ceval_suite.model_spec import ModelSpec

    lexicon = opened("mistral")
    core = SentencePieceProcessor(str(resolve(ModelSpec(path=INDEX["mistral"]))))
    found = audit(lexicon, ["mmlu/official"])["text"]
    texts = material.questions(material.sources(no_data))
    for language in ("en", "zh"):
        ids = [i for one in core.encode(texts[language]) for i in one]
        assert found[language]["tokens"] == len(ids)
        assert found[language]["bytes"] == sum(map(core.is_byte, ids)) / len(ids)
    assert found["zh"]["bytes"] > found["en"]["bytes"]


# start, end and chat


def test_who_adds_the_start_token_is_said_and_a_doubled_one_warned_of(
    audit: Audit, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, processors

    def with_(template: str) -> dict[str, Any]:
        core = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
        core.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        options = {"bos_token": "<s>", "eos_token": "</s>"}
        chat = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return audit(made(core, folder, chat_template=chat, **options), ["mmlu/official"])

    once = with_("<s> $A")
    assert (once["special"]["added_before"], once["special"]["added_behind"]) == (["<s>"], [])
    assert once["chat_template"]["start_token"] == "written by the template"
    assert any("template and tokenizer both write" in line for line in once["warnings"])
    twice = with_("<s> <s> $A </s>")
    assert twice["special"]["added_before"] == ["<s>", "<s>"]
    assert "the tokenizer adds the start token twice" in twice["warnings"]
    assert any("adds the end token" in line for line in twice["warnings"])
    # scoring takes the end token off again, so that the letters are those of the text
    assert twice["letters"][0]["tokens"] == once["letters"][0]["tokens"]
    assert once["special"]["read_in_text"] == once["special"]["special"] == 3


def test_llama_adds_its_start_token_and_has_no_template(audit: Audit) -> None:
    found = audit(opened("llama"), ["mmlu/official"])
    assert (found["special"]["added_before"], found["chat_template"]) == (["<s>"], None)
    assert found["round_trip"]["lost"] == {}
    assert found["warnings"] == []


def test_a_start_token_that_the_model_was_trained_with_and_lacks_is_warned_of(
    audit: Audit, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "bos_token_id": 0}')
    found = audit(
        made(tiny_tokenizer.backend_tokenizer, tmp_path, bos_token="<s>"), ["mmlu/official"]
    )
    assert found["special"]["start_token"] == "not added"
    assert any("adds no start token, though" in line for line in found["warnings"])


# shown


def lines(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ceval-suite", "tokenizer", *args])
        cli.main()
    return capsys.readouterr().out.splitlines()


def test_the_command_prints_three_tables(
    tiny_model: Path, no_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(capsys, "audit", str(tiny_model), "--data", str(no_data))
    text = "\n".join(found)
    assert "what it holds" in text
    assert "What it does to text" in text
    shown = {f"{file}/{name}" for file, name in material.wordings()}
    assert {line.split()[0] for line in found if "-shot" in line} == shown


def test_json_holds_all_that_the_tables_show(
    audit: Audit, tiny_model: Path, no_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("audit", str(tiny_model), "--data", str(no_data), "--json")
    told = json.loads("\n".join(lines(capsys, *args)))
    found = audit(open_tokenizer(str(tiny_model)))
    assert told == json.loads(json.dumps(found))
    printed = [table.markdown(one) for one in report.tables(told)]
    assert printed == [table.markdown(one) for one in report.tables(found)]
    assert told["writing"]["special"] == 3


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--protocols", "offical", "unknown protocol 'offical': did you mean 'official'?"),
        ("--data", "not-there", "not-there: no such folder; give the one with the benchmark"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        lines(capsys, "audit", str(tiny_model), option, value)
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}")
    assert shown.count("\n") == 1
