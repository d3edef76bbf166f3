"""Extended tokenizers: rows from the base's pieces, old ids verified, nothing ever shrunk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, _missing

from ceval_suite.backends import checkpoint, growing, loading, open_backend, tokenizers
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request
from tests.checkpoints import NEW

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
}


def grown(path: Path, tokenizer: Path, **options: Any) -> loading.Loaded:
    spec = ModelSpec(
        path=str(path), tokenizer=str(tokenizer), grow_embeddings=True, device="cpu", **options
    )
    return loading.load(spec)


def plain(path: Path) -> loading.Loaded:
    return loading.load(ModelSpec(path=str(path), device="cpu"))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        loading.load(ModelSpec(path=str(path), device="cpu", **options))
    said = str(caught.value)
    assert "\n" not in said
    assert said.count(". ") == 0, "one sentence"
    return said


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], **config: Any) -> None:
    from safetensors.torch import load_file, save_file

    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))


def means(base: Any, weight: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """By hand: the mean of the rows of each text's tokens."""
    ids = [base.encode(text, add_special_tokens=False) for text in texts]
    return torch.stack([weight[i].mean(0) for i in ids])


# growth


def test_more_tokens_than_rows_is_an_error_with_both_sizes(copy: Path, extended: Path) -> None:
    said = refused(copy, tokenizer=str(extended))
    assert "2004 entries" in said
    assert "2000 rows" in said
    assert "grow_embeddings: true" in said


def test_new_rows_are_means_of_the_pieces_rows_in_embedding_and_head(
    tiny_model: Path, extended: Path
) -> None:
    before, after = plain(tiny_model), grown(tiny_model, extended)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old = getattr(before.model, part)().weight
        new = getattr(after.model, part)().weight
        assert new.shape == (2004, 64)
        assert torch.equal(new[:2000], old)
        assert torch.allclose(new[2000:], means(before.tokenizer, old, NEW), atol=1e-7)
    about = after.about["grown"]
    assert (about["rows_before"], about["rows_after"], about["new_tokens"]) == (2000, 2004, 4)
    assert (about["dummy_prefix"], about["without_pieces"], about["unreachable"]) == ("none", 0, 0)
    assert after.about["embedding_rows"] == 2004
    assert after.model.config.vocab_size == 2004


def test_a_tied_head_stays_tied_and_grows_with_the_embedding(
    tiny_llama: Callable[..., Path], extended: Path
) -> None:
    path = tiny_llama("tied", seed=3, tie_word_embeddings=True, **SHAPE)
    before, after = plain(path), grown(path, extended)
    weight = after.model.get_input_embeddings().weight
    assert after.model.get_output_embeddings().weight.data_ptr() == weight.data_ptr()
    old = before.model.get_input_embeddings().weight
    assert torch.allclose(weight[2000:], means(before.tokenizer, old, NEW), atol=1e-7)


def test_the_bias_of_a_head_grows_too(tmp_path: Path, tiny_model: Path, extended: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(1)
    config = PhiConfig(
        vocab_size=2000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = PhiForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "phi")
    base = tokenizers.load_tokenizer(ModelSpec(path=str(tiny_model)))
    base.save_pretrained(tmp_path / "phi")
    bias = grown(tmp_path / "phi", extended).model.lm_head.bias
    assert torch.equal(bias[:2000], model.lm_head.bias)
    expected = means(base, model.lm_head.bias[:, None], NEW)[:, 0]
    assert torch.allclose(bias[2000:], expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_means_are_taken_in_float32_and_rounded_once(
    tiny_model: Path, extended: Path, dtype: str
) -> None:
    after = grown(tiny_model, extended, dtype=dtype)
    weight = after.model.get_input_embeddings().weight
    base = plain(tiny_model).tokenizer
    expected = means(base, weight[:2000].float(), NEW).to(weight.dtype)
    assert torch.equal(weight[2000:], expected)


def test_a_padded_embedding_takes_new_tokens_into_its_padding_and_keeps_its_size(
    copy: Path, extended: Path
) -> None:
    def pad(content: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            content[name] = torch.cat([content[name], torch.zeros(48, 64)])

    before = plain(copy).model.get_input_embeddings().weight
    rewrite(copy, pad, vocab_size=2048)
    after = grown(copy, extended)
    weight = after.model.get_input_embeddings().weight
    assert weight.shape == (2048, 64)
    assert torch.equal(weight[:2000], before)
    assert torch.allclose(weight[2000:2004], means(plain(copy).tokenizer, before, NEW), atol=1e-7)
    assert not weight[2004:].any()
    about = after.about
    assert (about["grown"]["rows_before"], about["grown"]["rows_after"]) == (2048, 2048)
    assert about["never_trained"]["beyond_tokenizer"] == 44
    assert about["never_trained"]["zero"] == 44
    assert about["never_trained"]["tokens"] == 0


def test_a_base_that_needs_no_growth_is_left_alone(tiny_model: Path) -> None:
    after = grown(tiny_model, tiny_model)
    assert after.about["grown"]["new_tokens"] == 0
    for ours, theirs in zip(
        after.model.parameters(), plain(tiny_model).model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_grown_model_scores_old_texts_as_the_base_does(tiny_model: Path, extended: Path) -> None:
    request = Request(id="x", context="Which one?\nAnswer:", continuations=(" A", " B"))
    found = []
    for options in ({}, {"tokenizer": str(extended), "grow_embeddings": True}):
        backend = open_backend(ModelSpec(path=str(tiny_model), device="cpu", **options))
        (reply,) = backend.ask([request])
        found.append(reply.logits)
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_growth_is_part_of_the_identity(tiny_model: Path, extended: Path) -> None:
    about = grown(tiny_model, extended).about
    assert about["grown_from_sha256"] == plain(tiny_model).about["tokenizer_sha256"]
    assert about["tokenizer_sha256"] != about["grown_from_sha256"]
    assert "grown_from_sha256" not in plain(tiny_model).about


# the order of ids


def test_an_old_id_that_means_something_else_is_named_with_both_pieces(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    swapped = Path(shutil.copytree(extended, tmp_path / "swapped"))
    content = json.loads((swapped / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    names = {i: piece for piece, i in vocabulary.items()}
    vocabulary[names[700]], vocabulary[names[900]] = 900, 700
    (swapped / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    said = refused(tiny_model, tokenizer=str(swapped), grow_embeddings=True)
    assert said.startswith(f"{swapped}: id 700 is {names[900]!r} where the tokenizer beside the")
    assert repr(names[700]) in said


def test_the_extended_tokenizer_beside_the_weights_is_no_base(copy: Path, extended: Path) -> None:
    for file in extended.iterdir():
        shutil.copy(file, copy / file.name)
    said = refused(copy, grow_embeddings=True)
    assert "name the extended one with `tokenizer:`" in said


def test_weights_without_a_tokenizer_have_no_base(copy: Path, extended: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    said = refused(copy, tokenizer=str(extended), grow_embeddings=True)
    assert "the base's own tokenizer" in said


# rows that were never trained


def test_rows_of_zeros_and_equal_rows_are_counted_and_their_tokens_named(copy: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        weight = content["model.embed_tokens.weight"]
        weight[5] = 0
        weight[70] = weight[60]
        weight[80, :32] = weight[90, :32]  # alike at the start only

    rewrite(copy, spoil)
    found = plain(copy)
    names = found.tokenizer.convert_ids_to_tokens([5, 60, 70])
    assert found.about["never_trained"] == {
        "beyond_tokenizer": 0,
        "zero": 1,
        "equal": 2,
        "tokens": 3,
        "first_tokens": names,
    }
    stored = checkpoint.embedding(checkpoint.tensors(copy))
    assert stored is not None
    assert checkpoint.never_trained(checkpoint.stored_rows(stored)) == ([5], [60, 70])


def test_all_rows_of_a_trained_embedding_count_as_trained(tiny_model: Path) -> None:
    found = plain(tiny_model).about["never_trained"]
    assert (found["zero"], found["equal"], found["tokens"]) == (0, 0, 0)


# the real LLaMA tokenizer and its Chinese extension


@pytest.fixture(scope="module")
def pieces() -> tuple[Path, Path]:
    """The 32,000 pieces of LLaMA and the 20,000 of the Chinese extension."""
    named = os.environ.get("CEVAL_SUITE_DATA")
    for data in (Path(named) if named else None, ROOT.parent / "shared" / "data"):
        if data is not None and (data.parent / "tokenizers" / "llama").is_dir():
            folder = data.parent / "tokenizers"
            return folder / "llama/tokenizer.model", folder / "chinese-llama/chinese_sp.model"
    return _missing("real tokenizers not found (../tokenizers beside CEVAL_SUITE_DATA)")


@pytest.fixture(scope="module")
def llama(pieces: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights with LLaMA's own tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(pieces[0], folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def chinese(pieces: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA's pieces and, behind them, those of the extension that it lacks."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    base, more = protocol.ModelProto(), protocol.ModelProto()
    base.ParseFromString(pieces[0].read_bytes())
    more.ParseFromString(pieces[1].read_bytes())
    known = {piece.piece for piece in base.pieces}
    for piece in more.pieces:
        if piece.piece not in known:
            new = base.pieces.add()
            new.piece, new.score = piece.piece, 0
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "tokenizer.model").write_bytes(base.SerializeToString())
    return folder


@pytest.mark.real
def test_llama_grows_by_the_chinese_extension(llama: Path, chinese: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    before, after = plain(llama), grown(llama, chinese)
    about = after.about["grown"]
    assert (about["rows_before"], about["rows_after"]) == (32000, 49953)
    assert about["dummy_prefix"] == "left out"
    assert about["without_pieces"] == 0
    # BPE reaches a long piece through shorter ones only, and these lack them
    assert about["unreachable"] == 345
    old = before.model.get_input_embeddings().weight
    new = after.model.get_input_embeddings().weight
    assert torch.equal(new[:32000], old)
    # by hand: SentencePiece's own pieces without the blank that it puts before a text
    core = SentencePieceProcessor(str(llama / "tokenizer.model"))
    words = SentencePieceProcessor(str(chinese / "tokenizer.model"))
    for i in range(32000, 49953, 37):
        piece = words.id_to_piece(i)
        ids = core.encode(piece.removeprefix("▁").replace("▁", " "))
        # the blank is the piece's own, or a piece for itself that nothing asked for
        own = piece.startswith("▁")
        if not own and core.id_to_piece(ids[0]) != "▁":
            assert core.id_to_piece(ids[0])[0] == "▁"  # grown together with a mark
            continue
        expected = old[ids if own else ids[1:]].mean(0)
        assert torch.allclose(new[i], expected, atol=1e-6), piece


@pytest.mark.real
def test_the_blank_before_a_text_is_left_out_or_kept_by_choice(llama: Path, chinese: Path) -> None:
    base = plain(llama).tokenizer
    new = tokenizers.load_tokenizer(ModelSpec(path=str(llama), tokenizer=str(chinese)))
    tokens = growing.vocabulary(new)
    ids = [i for i in range(32000, 33000) if "一" <= str(tokens[i])[0] <= "龥"]
    assert len(ids) > 500
    bare = growing.pieces(base, new, ids)
    kept = growing.pieces(base, new, ids, dummy_prefix=True)
    assert list(kept) == [[29871, *some] for some in bare]
    assert base.convert_ids_to_tokens([29871]) == ["▁"]


@pytest.mark.real
def test_characters_that_the_base_lacks_come_from_their_bytes(llama: Path, chinese: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    base = plain(llama).tokenizer
    new = tokenizers.load_tokenizer(ModelSpec(path=str(llama), tokenizer=str(chinese)))
    tokens = growing.vocabulary(new)
    ids = list(range(32000, 49953))
    found = growing.pieces(base, new, ids)
    assert all(found)
    by_bytes = [
        i
        for i, some in zip(ids, found, strict=True)
        if all(p.startswith("<0x") for p in base.convert_ids_to_tokens(list(some)))
    ]
    # by hand: the pieces that SentencePiece spells in bytes alone, behind the blank it begins with
    core = SentencePieceProcessor(str(llama / "tokenizer.model"))
    spelled_so = [
        i
        for i in ids
        if all(p.startswith("<0x") for p in core.encode(str(tokens[i]), out_type=str)[1:])
        and core.encode(str(tokens[i]), out_type=str)[0] == "▁"
    ]
    assert by_bytes == spelled_so
    assert len(by_bytes) == 7810
    at = by_bytes[0]
    spelled = [f"<0x{byte:02X}>" for byte in str(tokens[at]).encode()]
    assert base.convert_ids_to_tokens(list(found[at - 32000])) == spelled
