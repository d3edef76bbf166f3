"""A tokenizer grows: old ids stay, what cannot be reached is named, every form cuts texts alike."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ceval_suite.backends.lexicon import Lexicon, open_tokenizer, same_ids
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, DataError, ModelError
from ceval_suite.tokenizer import ordered, pieces, training
from ceval_suite.tokenizer.extend import PROBES, extend, measure, open_base
from ceval_suite.tokenizer.pieces import Listing
from ceval_suite.tokenizer.written import write

CHINESE = ["的", "下列", "人工", "人工智能", "智能", "▁中国", "正确的是", "鑫", "鑫鑫", "、"]
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def prose(sample_texts: list[str]) -> list[str]:
    """Lines of the bundled exams."""
    return [line for text in sample_texts for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sentencepiece_base(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    """A LLaMA-like tokenizer.model: BPE, bytes for the rest, a blank in front."""
    import sentencepiece

    made = io.BytesIO()
    english = [line for line in prose if line.isascii()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english),
        model_writer=made,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("sp")
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return folder


@pytest.fixture(scope="module")
def byte_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The tiny byte-level tokenizer with tokens added behind its vocabulary and a template."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    tiny_tokenizer.save_pretrained(folder)
    made = PreTrainedTokenizerFast.from_pretrained(folder)
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    made.add_tokens(["<tool>"])
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return folder


def proto_of(raw: bytes) -> Any:
    return pieces.read_proto(raw, Path("test"))


def processor(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file))


def plain(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def listing(*some: str) -> Listing:
    return Listing("test", "0" * 64, tuple(some))


def byte_text(token: str) -> str:
    """The text of a byte-level token, by transformers' own table."""
    from tokenizers import decoders

    return decoders.ByteLevel().decode([token])


# SentencePiece bases


@pytest.mark.parametrize("scores", ["below", "zero"])
def test_old_pieces_keep_id_score_and_type_and_new_ones_follow_in_order(
    sentencepiece_base: Path, scores: Any
) -> None:
    base = open_tokenizer(str(sentencepiece_base))
    made = extend(base, CHINESE, scores=scores)
    old = proto_of((sentencepiece_base / "tokenizer.model").read_bytes()).pieces
    new = proto_of(made.model).pieces
    assert [p.SerializeToString() for p in new[: len(old)]] == [p.SerializeToString() for p in old]
    assert [p.piece for p in new[len(old) :]] == CHINESE
    found = [p.score for p in new[len(old) :]]
    if scores == "zero":
        assert found == [0.0] * len(CHINESE)
    else:
        lowest = min(p.score for p in old if p.type == 1 and p.score > -1e8)
        assert found == [lowest - 1 - k for k in range(len(CHINESE))]


def test_all_readers_of_the_directory_cut_as_sentencepiece_does(
    sentencepiece_base: Path, prose: list[str], tmp_path: Path
) -> None:
    made = extend(open_tokenizer(str(sentencepiece_base)), CHINESE, add_merges=True)
    out = tmp_path / "new"
    write(made, out, listing(*CHINESE))
    texts = [*prose, *PROBES, *CHINESE, "".join(CHINESE), "  的 人工智能\n\n下列"]
    want = processor(out / "tokenizer.model").encode(texts)
    assert open_tokenizer(str(out)).encode(texts) == want
    assert plain(out)(texts, add_special_tokens=False)["input_ids"] == want
    assert made.encode(texts) == want
    (with_start,) = open_tokenizer(str(out)).encode(["x"], special=True)
    assert with_start == plain(out)("x")["input_ids"]
    assert with_start == open_tokenizer(str(sentencepiece_base)).encode(["x"], special=True)[0]


def test_equal_scores_get_no_fast_form_and_this_package_reads_them_right(
    sentencepiece_base: Path, prose: list[str], tmp_path: Path
) -> None:
    made = extend(open_tokenizer(str(sentencepiece_base)), CHINESE, scores="zero")
    out = tmp_path / "new"
    about = write(made, out, listing(*CHINESE))
    assert not (out / "tokenizer.json").exists()
    assert "no tokenizer.json is written" in about["forms"]
    want = processor(out / "tokenizer.model").encode([*prose, *PROBES])
    assert open_tokenizer(str(out)).encode([*prose, *PROBES]) == want


def test_characters_without_a_piece_are_named_where_they_rule_out_the_fast_form(
    sentencepiece_base: Path,
) -> None:
    base = open_tokenizer(str(sentencepiece_base))
    made = extend(base, ["甲乙", "甲"])
    assert not made.lost  # SentencePiece joins them all the same
    assert made.definition is None
    assert made.note.endswith("have no piece (乙): list them too, or give --add-merges")
    assert extend(base, ["甲乙", "甲", "乙"]).definition is not None
    more = extend(base, ["甲乙", "甲"], add_merges=True)
    assert more.added == ("乙",)
    assert more.definition is not None


@pytest.mark.parametrize("scores", ["below", "zero"])
def test_unreachable_pieces_are_named_and_none_is_left_with_intermediate_ones(
    sentencepiece_base: Path, scores: Any
) -> None:
    base = open_tokenizer(str(sentencepiece_base))
    wanted = ["中华人民共和国", "甲乙", "丙丁戊", "甲乙丙"]
    made = extend(base, wanted, scores=scores)
    assert set(made.lost) == {"中华人民共和国", "丙丁戊"}
    assert made.lost["丙丁戊"].endswith(": 丙 丁 戊")
    more = extend(base, wanted, scores=scores, add_merges=True)
    assert not more.lost
    assert more.first == made.first
    for k, piece in enumerate(wanted):
        assert more.first + k in more.encode(["\n" + piece])[0]
    assert "丙丁" in more.added


def test_with_scores_below_no_token_crosses_an_old_border(
    sentencepiece_base: Path, prose: list[str]
) -> None:
    base = open_tokenizer(str(sentencepiece_base))
    wanted = ["ing▁the", "▁of▁the", "人工", "20", "xq", "▁sampl", "eth"]
    made = extend(base, [piece for piece in wanted if piece not in base.tokenizer.get_vocab()])
    old = processor(sentencepiece_base / "tokenizer.model")
    after = made.encode(prose)
    for text, ids in zip(prose, after, strict=True):
        if max(ids) < made.first:
            assert ids == old.encode(text)


def test_tokens_added_to_the_base_keep_their_ids_and_new_pieces_come_after(
    sentencepiece_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(sentencepiece_base, base)
    size = processor(base / "tokenizer.model").get_piece_size()
    added = {"content": "<pad>", "special": True, "normalized": False}
    added |= {"lstrip": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "added_tokens_decoder": {str(size): added},
        "chat_template": TEMPLATE,
        "model_max_length": 2048,
    }
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    made = extend(open_tokenizer(str(base)), CHINESE)
    assert made.first == size + 1
    out = tmp_path / "new"
    write(made, out, listing(*CHINESE))
    for tokenizer in (open_tokenizer(str(out)).tokenizer, plain(out)):
        assert tokenizer.convert_tokens_to_ids("<pad>") == size
        assert tokenizer.pad_token_id == size
        assert tokenizer.convert_tokens_to_ids(CHINESE[0]) == size + 1
        assert tokenizer("的<pad>的", add_special_tokens=False)["input_ids"].count(size) == 1
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.model_max_length == 2048
    config["added_tokens_decoder"] = {str(size + 3): added}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"'<pad>' has id {size + 3} and no token has id {size},"):
        extend(open_tokenizer(str(base)), CHINESE)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_blank_is_put_behind_special_tokens_only_where_the_base_does(
    sentencepiece_base: Path, tmp_path: Path, prose: list[str], legacy: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(sentencepiece_base, base)
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    made = extend(open_tokenizer(str(base)), ["的", "下", "列", "下列"])
    out = tmp_path / "new"
    write(made, out, listing())
    chat = ["<s>[INST] one [/INST] two </s><s>[INST] three", "x</s>y", "<s>x", "a b</s>"]
    texts = [*prose, *PROBES, *chat, " x", "  x", "▁x", "\n x\n y"]
    assert plain(out)(texts, add_special_tokens=False)["input_ids"] == open_tokenizer(
        str(out)
    ).encode(texts)
    old = [text for text in texts if text.isascii()]
    assert open_tokenizer(str(base)).encode(old) == open_tokenizer(str(out)).encode(old)


def test_a_base_with_both_forms_keeps_both(
    sentencepiece_base: Path, prose: list[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    some, others = ["的", "人", "工", "人工"], ["下", "列", "下列", "智", "能", "智能", "人工智能"]
    write(extend(open_tokenizer(str(sentencepiece_base)), some), first, listing())
    base = open_tokenizer(str(first))
    assert base.core is not None
    made = extend(base, others, texts=prose)
    write(made, second, listing())
    assert made.first == base.size
    texts = [*prose, *CHINESE, *PROBES]
    want = processor(second / "tokenizer.model").encode(texts)
    assert plain(second)(texts, add_special_tokens=False)["input_ids"] == want
    whole = extend(open_tokenizer(str(sentencepiece_base)), [*some, *others])
    assert made.model == whole.model


def test_a_unigram_model_is_refused(tmp_path: Path, prose: list[str]) -> None:
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose), model_writer=made, vocab_size=1500, minloglevel=2
    )
    file = tmp_path / "u.model"
    file.write_bytes(made.getvalue())
    with pytest.raises(ModelError, match="no BPE"):
        open_base(open_tokenizer(str(file)))


letters = st.text(alphabet="a e\n▁1中的下列鑫、。t", max_size=30)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=letters)
def test_merges_and_scores_cut_any_text_alike(scored: tuple[Any, Any], text: str) -> None:
    core, sp = scored
    assert core.encode(text, add_special_tokens=False).ids == sp.encode(text)


@pytest.fixture(scope="module")
def scored(sentencepiece_base: Path) -> tuple[Any, Any]:
    """One extension as tokenizer.json and as SentencePiece's model."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    wanted = ["的", "下", "列", "下列", "▁中", "的下", "列的", "▁t▁t", "a中", "中a中", "、。"]
    made = extend(open_tokenizer(str(sentencepiece_base)), wanted, add_merges=True)
    core = Tokenizer.from_str(json.dumps(made.definition))
    return core, SentencePieceProcessor(model_proto=made.model)


# byte-level bases


def expansion(base: Lexicon, made: Any) -> dict[int, list[int]]:
    """For every new id the base's own tokens of its bytes: what its merges join."""
    core = base.core
    names = {made.first + k: token for k, token in enumerate(made.added, len(made.pieces))}
    names |= {made.first + k: made.base.spell(piece) for k, piece in enumerate(made.pieces)}
    merges = [tuple(m) for m in made.definition["model"]["merges"]]
    old = {tuple(m) for m in json.loads(core.to_str())["model"]["merges"]}
    parts = {a + b: (a, b) for a, b in reversed(merges) if (a, b) not in old}
    ids = {token: i for i, token in names.items()}

    def flat(token: str) -> list[int]:
        if token in ids:
            left, right = parts[token]
            return flat(left) + flat(right)
        return [core.token_to_id(token)]

    return {i: flat(token) for i, token in names.items() if token in parts}


hanzi = st.text(alphabet="的一是人工智能下列中国正确鑫、。aé9", min_size=1, max_size=5)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(wanted=st.lists(hanzi, min_size=1, max_size=12, unique=True), add_merges=st.booleans())
def test_whatever_the_pieces_old_ids_stay_and_new_tokens_are_unions_of_old_ones(
    byte_base: Path, wanted: list[str], add_merges: bool
) -> None:
    base = open_base(open_tokenizer(str(byte_base)))
    lexicon = base.lexicon
    new = [piece for piece in wanted if base.spell(piece) not in base.vocabulary]
    made = extend(lexicon, new, add_merges=add_merges)
    vocabulary = made.definition["model"]["vocab"]  # type: ignore[index]
    assert vocabulary.items() >= base.vocabulary.items()
    assert sorted(vocabulary.values()) == list(range(made.size))
    for k, piece in enumerate(new):
        alone, inside = made.encode([piece, "\n" + piece])
        assert (made.first + k in alone or made.first + k in inside) == (piece not in made.lost)
    if add_merges:
        assert all("cut before merging" in why for why in made.lost.values())
    else:
        assert not made.added
    texts = ["".join(wanted), " ".join(wanted), *wanted, *PROBES]
    parts = expansion(lexicon, made)
    for old, ids in zip(lexicon.encode(texts), made.encode(texts), strict=True):
        assert [part for i in ids for part in parts.get(i, [i])] == old


def test_a_text_without_new_tokens_keeps_its_tokens(byte_base: Path, prose: list[str]) -> None:
    base = open_tokenizer(str(byte_base))
    wanted = ["人工智能", "下列各项", "正确的是哪", "哈哈"]
    made = extend(base, wanted, add_merges=True)
    before, after = base.encode(prose), made.encode(prose)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert all(max(new) >= made.first for new in changed)
    (cut,) = measure("prose", prose, [made]).cuts
    assert (cut.changed, cut.untouched) == (len(changed), 0)
    assert cut.tokens == sum(map(len, after))


def test_a_piece_that_two_tokens_make_needs_one_merge_and_others_are_named(
    byte_base: Path,
) -> None:
    base = open_tokenizer(str(byte_base))
    text = "鑫淼"  # six byte tokens each: nothing near them was learnt
    made = extend(base, ["鑫", "鑫淼"])
    assert set(made.lost) == {"鑫", "鑫淼"}
    assert made.merges == 0
    assert "<e9> <91> <ab>" in made.lost["鑫"]
    more = extend(base, ["鑫淼", "鑫"], add_merges=True)
    assert not more.lost
    assert more.encode([text]) == [[more.first]]
    assert more.encode(["鑫"]) == [[more.first + 1]]
    # intermediate tokens complete characters before they join them
    assert "æ·¼" in more.added


def test_a_piece_that_is_cut_before_merging_is_named_with_its_parts(byte_base: Path) -> None:
    made = extend(open_tokenizer(str(byte_base)), ["第1章", "人工智能"], add_merges=True)
    assert made.lost == {"第1章": "cut before merging: 第 | 1 | 章"}


def test_a_piece_that_the_normaliser_changes_is_named(byte_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nfc"
    shutil.copytree(byte_base, folder)
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    definition["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    made = extend(open_tokenizer(str(folder)), ["cafe\u0301", "caf\u00e9"], add_merges=True)
    assert made.lost == {"cafe\u0301": "changed by the normaliser: caf\u00e9"}


def test_a_base_of_vocab_and_merges_becomes_a_tokenizer_json(
    tiny_tokenizer: Any, tmp_path: Path, prose: list[str]
) -> None:
    base = tmp_path / "gpt2"
    base.mkdir()
    tiny_tokenizer.backend_tokenizer.model.save(str(base))
    config = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>", "bos_token": "<s>"}
    config |= {"eos_token": "</s>", "add_prefix_space": False}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    made = extend(open_tokenizer(str(base)), ["人工智能"], add_merges=True)
    out = tmp_path / "new"
    write(made, out, listing())
    assert not (out / "merges.txt").exists()
    assert plain(out)(prose)["input_ids"] == made.encode(prose)
    assert plain(out).encode("人工智能") == [made.first]


def test_added_tokens_special_tokens_and_template_survive(byte_base: Path, tmp_path: Path) -> None:
    base = open_tokenizer(str(byte_base))
    out = tmp_path / "new"
    made = extend(base, ["人工智能", "▁中国"], add_merges=True)
    write(made, out, listing())
    new = plain(out)
    ids = {token: base.tokenizer.convert_tokens_to_ids(token) for token in ("<|turn|>", "<tool>")}
    assert {token: new.convert_tokens_to_ids(token) for token in ids} == ids
    assert made.first == max(ids.values()) + 1
    text = "<|turn|> 中国<tool>人工智能"
    assert new.encode(text) == [ids["<|turn|>"], made.first + 1, ids["<tool>"], made.first]
    assert new.decode(new.encode(text)) == text
    assert new.chat_template == TEMPLATE
    assert (new.bos_token, new.eos_token, new.pad_token) == ("<s>", "</s>", "<pad>")
    assert len(new) == made.size
    assert open_tokenizer(str(out)).encode([text]) == [new.encode(text)]


def test_a_base_that_takes_known_words_whole_still_gets_merges(byte_base: Path) -> None:
    base = open_tokenizer(str(byte_base))
    definition = json.loads(base.core.to_str())
    definition["model"]["ignore_merges"] = True
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)))
    lexicon = Lexicon("whole", byte_base / "absent", whole, base.spec)
    made = extend(lexicon, ["鑫淼"])
    assert list(made.lost) == ["鑫淼"]  # alone it is one token, inside a word it would not be
    more = extend(lexicon, ["鑫淼"], add_merges=True)
    assert more.first in more.encode(["哈鑫淼哈"])[0]


def test_a_list_of_merges_of_characters_grows_too(sentencepiece_base: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    write(extend(open_tokenizer(str(sentencepiece_base)), ["人"]), both, listing())
    (both / "tokenizer.model").unlink()
    base = open_tokenizer(str(both))
    assert base.kind == "bpe-fallback"
    made = extend(base, ["人工", "工", "乙丙"], add_merges=True)
    assert not made.lost
    assert made.encode(["x人工y乙丙"])[0].count(made.first) == 1
    assert set(made.added) == {"乙", "丙"}
    with pytest.raises(ModelError, match="needs a SentencePiece base"):
        extend(base, ["人工"], scores="zero")


def test_a_model_grows_by_what_was_written(tiny_model: Path, tmp_path: Path) -> None:
    from ceval_suite.backends import loading
    from ceval_suite.model_spec import ModelSpec

    base = open_tokenizer(str(tiny_model))
    made = extend(base, ["人工智能", "▁中国"], add_merges=True)
    out = tmp_path / "new"
    write(made, out, listing())
    old = loading.load(ModelSpec(path=str(tiny_model), device="cpu")).model
    spec = ModelSpec(path=str(tiny_model), tokenizer=str(out), grow_embeddings=True, device="cpu")
    new = loading.load(spec).model.get_input_embeddings().weight
    rows = old.get_input_embeddings().weight
    assert len(new) == made.size
    assert (new[: len(rows)] == rows).all()
    for k, text in enumerate(["人工智能", " 中国"]):
        mean = rows[base.encode([text])[0]].mean(0)
        assert (new[made.first + k] - mean).abs().max() < 1e-6


# learning pieces


def test_pieces_learnt_from_a_text_are_the_same_every_time(
    byte_base: Path, sentencepiece_base: Path
) -> None:
    corpus = [ROOT / "tasks" / "sample" / "cmmlu"]
    for folder in (byte_base, sentencepiece_base):
        base = open_base(open_tokenizer(str(folder)))
        core = base.lexicon.core if base.byte_level else None
        one, two = (
            training.train(corpus, 60, base.vocabulary, core=core, only_han=True) for _ in "12"
        )
        assert one == two
        assert len(one.pieces) == 60
        assert all(any("一" <= c <= "鿿" for c in piece) for piece in one.pieces)
        made = extend(base.lexicon, one.pieces, add_merges=True)
        assert not made.lost
        text = list(training.lines(training.files(corpus)))
        before, after = base.encode(text), made.encode(text)
        assert sum(map(len, after)) < sum(map(len, before))


def test_a_text_that_is_too_short_says_how_many_pieces_it_gives(
    byte_base: Path, sentencepiece_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("鑫淼鑫淼鑫淼\n" * 3, encoding="utf-8")
    for folder in (byte_base, sentencepiece_base):
        base = open_base(open_tokenizer(str(folder)))
        core = base.lexicon.core if base.byte_level else None
        with pytest.raises(DataError, match=r"gives \d+ pieces that the base lacks, not 5000"):
            training.train([file], 5000, base.vocabulary, core=core)


# on disk


def test_provenance_says_what_was_added_to_what(byte_base: Path, tmp_path: Path) -> None:
    from ceval_suite.backends.sources import tokenizer_fingerprint

    base = open_tokenizer(str(byte_base))
    made = extend(base, ["人工智能", "第1章"], add_merges=True)
    out = tmp_path / "new"
    about = write(made, out, listing("人工智能", "第1章"))
    assert json.loads((out / "extension.json").read_text(encoding="utf-8")) == about
    assert about["base"]["fingerprint"] == tokenizer_fingerprint(byte_base)
    assert about["first_id"] == about["base"]["size"] == base.size
    assert about["size"] == about["first_id"] + 2 + len(about["intermediate"])
    assert list(about["unreachable"]) == ["第1章"]
    assert about["merges"] == len(about["intermediate"]) + 1


def test_an_existing_directory_is_left_alone(byte_base: Path, tmp_path: Path) -> None:
    made = extend(open_tokenizer(str(byte_base)), ["人工智能"])
    with pytest.raises(ModelError, match="exists; give --out"):
        write(made, tmp_path, listing())
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_read_back_is_not_written(
    byte_base: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    made = extend(open_tokenizer(str(byte_base)), ["人工智能"])
    vocabulary = dict(made.definition["model"]["vocab"])  # type: ignore[index]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    model = {**made.definition["model"], "vocab": vocabulary}  # type: ignore[index]
    broken = replace(made, definition={**made.definition, "model": model})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=r"id 50 is .* must keep every old id"):
        write(broken, tmp_path / "new", listing())
    assert list(tmp_path.iterdir()) == []


def test_ids_that_are_not_those_of_the_base_are_refused_with_the_first(
    byte_base: Path, sentencepiece_base: Path
) -> None:
    one, two = open_tokenizer(str(byte_base)), open_tokenizer(str(sentencepiece_base))
    same_ids(one, one)
    with pytest.raises(ModelError, match="id 0 is '<unk>' where"):
        same_ids(one, two)


# the command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["tokenizer", "extend", *map(str, arguments)])


def test_the_command_names_bad_lines_and_goes_on_without_them_when_told(
    byte_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p.jsonl"
    rows = ["人工智能", "a b", "下列各项", "人工智能"]
    lines = [json.dumps({"piece": piece}) for piece in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "new"
    given = ("--base", byte_base, "--pieces", file, "--out", out, "--tasks", "")
    found = run(*given)
    assert isinstance(found.exception, DataError)
    assert "\n  line 2: 'a b' has a space" in str(found.exception)
    assert "\n  line 4: '人工智能' is on line 1 already" in str(found.exception)
    assert not out.exists()
    found = run(*given, "--skip-bad", "--add-merges", "--json")
    assert found.exit_code == 0, found.output
    about = json.loads(found.stdout)
    assert [one["line"] for one in about["pieces"]["skipped"]] == [2, 4]
    assert about["unreachable"] == {}


def test_the_command_counts_tokens_of_a_text_for_both_score_rules(
    sentencepiece_base: Path, tmp_path: Path, prose: list[str]
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("\n".join(prose), encoding="utf-8")
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"piece": p}) for p in CHINESE), encoding="utf-8")
    out = tmp_path / "new"
    given = ("--base", sentencepiece_base, "--pieces", file, "--out", out)
    found = run(*given, "--measure", text, "--tasks", "")
    assert found.exit_code == 0, found.output
    assert "unreachable pieces" in found.stdout
    about = json.loads((out / "extension.json").read_text(encoding="utf-8"))
    (measured,) = about["measured"]
    assert [cut["scores"] for cut in measured["cuts"]] == ["below", "zero"]
    old = processor(sentencepiece_base / "tokenizer.model").encode(prose)
    new = processor(out / "tokenizer.model").encode(prose)
    cut = measured["cuts"][0]
    assert measured["base_tokens"] == sum(map(len, old))
    assert cut["tokens"] == sum(map(len, new))
    assert cut["changed"] == sum(a != b for a, b in zip(old, new, strict=True))


def test_one_source_of_pieces_is_needed_and_only_one(tmp_path: Path) -> None:
    order = ordered.Order(base="x", out=tmp_path / "new")
    with pytest.raises(ConfigError, match="no source of pieces"):
        ordered.carry_out(order, print)
    order = ordered.Order(base="x", out=tmp_path / "new", pieces=tmp_path, sentencepiece=tmp_path)
    with pytest.raises(ConfigError, match="more than one source"):
        ordered.carry_out(order, print)
    order = ordered.Order(base="x", out=tmp_path / "new", train=[tmp_path])
    with pytest.raises(ConfigError, match="--size belong together"):
        ordered.carry_out(order, print)
    order = ordered.Order(base="x", out=tmp_path / "new", pieces=tmp_path, scores="belw")
    with pytest.raises(ConfigError, match="did you mean 'below'"):
        ordered.carry_out(order, print)
