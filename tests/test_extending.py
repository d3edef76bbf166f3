"""`model extend`: the base and more, on disk, in little memory; and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_growing import SHAPE, means, rewrite

from ceval_suite import cli, prepare, preview
from ceval_suite.backends import (
    checkpoint,
    extending,
    extension_plan,
    extension_proof,
    loading,
    open_backend,
    quantise,
    rewriting,
    row_init,
    tokenizers,
)
from ceval_suite.backends.checkpoint import Stored
from ceval_suite.backends.rewriting import Rows
from ceval_suite.errors import DataError, ModelError
from ceval_suite.model_spec import Adapter, ModelSpec, Quant
from ceval_suite.schema import Request
from tests.checkpoints import NEW

EMBEDDING = "model.embed_tokens.weight"
FULL = os.environ.get("CEVAL_SUITE_FULL") == "1"

pytestmark = pytest.mark.usefixtures("one_thread")


def spec(path: Path, **options: Any) -> ModelSpec:
    return ModelSpec(path=str(path), **options)


def base_tokenizer(path: Path) -> Any:
    return tokenizers.load_tokenizer(spec(path))


def stored(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory, by safetensors' own reader."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def refused(path: Path, tokenizer: Path, out: Path, **options: Any) -> str:
    given = options.pop("given", {})
    with pytest.raises(ModelError) as caught:
        extending.extend(spec(path, **given), tokenizer, out, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert said.count(". ") == 0, "one sentence"
    assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}.")]
    return said


# rows


def test_new_rows_are_means_of_the_pieces_rows_and_all_else_stays_to_the_last_bit(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    about = extending.extend(spec(tiny_model), extended, tmp_path / "out")
    before, after = stored(tiny_model), stored(tmp_path / "out")
    grown = {"model.embed_tokens.weight", "lm_head.weight"}
    assert set(before) == set(after)
    for name in before:
        if name not in grown:
            assert torch.equal(before[name], after[name])
            continue
        assert after[name].shape == (2004, 64)
        assert torch.equal(after[name][:2000], before[name])
        expected = means(base_tokenizer(tiny_model), before[name], NEW)
        assert torch.equal(after[name][2000:], expected)
    assert config(tmp_path / "out") == {**config(tiny_model), "vocab_size": 2004}
    assert (about["rows_before"], about["rows_after"], about["new_tokens"]) == (2000, 2004, 4)
    assert about["dummy_prefix"] == "none"
    assert about["without_pieces"]["count"] == about["unreachable"]["count"] == 0
    assert json.loads((tmp_path / "out" / "extension.json").read_text()) == about


def test_the_result_is_what_growth_at_load_gives(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    extending.extend(spec(tiny_model), extended, tmp_path / "out")
    ours = loading.load(spec(tmp_path / "out", device="cpu"))
    grown = {"tokenizer": str(extended), "grow_embeddings": True, "device": "cpu"}
    theirs = loading.load(spec(tiny_model, **grown))
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # an entry that grows at load is extended from the tokenizer beside its weights
    extending.extend(spec(tiny_model, **grown), extended, tmp_path / "again")
    assert stored(tmp_path / "again").keys() == stored(tmp_path / "out").keys()


def test_a_tied_head_stays_tied(
    tiny_llama: Callable[..., Path], extended: Path, tmp_path: Path
) -> None:
    path = tiny_llama("tied-base", seed=3, tie_word_embeddings=True, **SHAPE)
    about = extending.extend(spec(path), extended, tmp_path / "out")
    assert list(about["tensors"]) == ["model.embed_tokens.weight"]
    model = loading.load(spec(tmp_path / "out", device="cpu")).model
    weight = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.data_ptr() == weight.data_ptr()
    old = stored(path)["model.embed_tokens.weight"]
    assert torch.equal(weight[2000:], means(base_tokenizer(path), old, NEW))


@pytest.mark.parametrize("init", ["mean", "norm-matched"])
def test_the_bias_of_a_head_grows_by_means(
    tiny_model: Path, extended: Path, tmp_path: Path, init: str
) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=2000, num_hidden_layers=1, **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "phi")
    base_tokenizer(tiny_model).save_pretrained(tmp_path / "phi")
    about = extending.extend(spec(tmp_path / "phi"), extended, tmp_path / "out", init=init)
    assert "lm_head.bias" in about["tensors"]
    bias = loading.load(spec(tmp_path / "out", device="cpu")).model.lm_head.bias
    assert torch.equal(bias[:2000], model.lm_head.bias)
    expected = means(base_tokenizer(tiny_model), model.lm_head.bias[:, None], NEW)[:, 0]
    assert torch.equal(bias[2000:], expected)


def test_norm_matched_rows_point_as_the_mean_does_and_are_as_long_as_old_rows(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    about = extending.extend(spec(tiny_model), extended, tmp_path / "out", init="norm-matched")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = stored(tiny_model)[name], stored(tmp_path / "out")[name][2000:]
        length = old.norm(dim=1).mean()
        assert about["tensors"][name]["mean_norm_of_old_rows"] == pytest.approx(float(length))
        mean = means(base_tokenizer(tiny_model), old, NEW)
        assert torch.allclose(new, mean * (length / mean.norm(dim=1))[:, None], rtol=1e-5)


def padded(folder: Path) -> None:
    def pad(content: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            content[name] = torch.cat([content[name], torch.full((48, 64), 7.0)])

    rewrite(folder, pad, vocab_size=2048)


def test_new_tokens_take_over_rows_of_padding_and_the_others_stay(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    padded(copy)
    about = extending.extend(spec(copy), extended, tmp_path / "out")
    before, after = stored(copy), stored(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape == (2048, 64)
        assert torch.equal(after[name][:2000], before[name][:2000])
        expected = means(base_tokenizer(copy), before[name], NEW)
        assert torch.equal(after[name][2000:2004], expected)
        assert torch.equal(after[name][2004:], before[name][2004:])
        # padding says nothing of what rows are like
        length = float(before[name][:2000].norm(dim=1).mean())
        assert about["tensors"][name]["mean_norm_of_old_rows"] == pytest.approx(length)
    assert (about["rows_before"], about["rows_after"]) == (2048, 2048)
    assert (about["padding_rows_filled"], about["padding_rows_after"]) == (4, 44)
    assert about["proof"]["old_rows_unchanged"] == 2044


def test_rows_are_padded_to_a_multiple_by_the_mean_of_all_old_rows(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    about = extending.extend(spec(tiny_model), extended, tmp_path / "out", pad_to_multiple=64)
    assert (about["rows_after"], about["padding_rows_after"]) == (2048, 44)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = stored(tiny_model)[name], stored(tmp_path / "out")[name]
        assert torch.equal(new[2000:2004], means(base_tokenizer(tiny_model), old, NEW))
        assert torch.allclose(new[2004:], old.mean(0).expand(44, -1), atol=1e-7)
    assert config(tmp_path / "out")["vocab_size"] == 2048


def test_each_tensor_keeps_its_dtype_and_means_are_rounded_once(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    def narrow(content: dict[str, Any]) -> None:
        for name in content:
            if "norm" not in name:
                content[name] = content[name].bfloat16()

    rewrite(copy, narrow, dtype="bfloat16")
    about = extending.extend(spec(copy), extended, tmp_path / "out")
    before, after = stored(copy), stored(tmp_path / "out")
    assert {name: t.dtype for name, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert {t.dtype for t in after.values()} == {torch.float32, torch.bfloat16}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        exact = means(base_tokenizer(copy), before[name].float(), NEW)
        assert torch.equal(after[name][2000:], exact.bfloat16())
        assert about["tensors"][name]["dtype"] == "BF16"
    assert about["proof"]["answers"]["dtype"] == "bfloat16"


def test_a_dtype_that_is_asked_for_is_given_to_every_tensor(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    about = extending.extend(spec(tiny_model), extended, tmp_path / "out", dtype="bfloat16")
    before, after = stored(tiny_model), stored(tmp_path / "out")
    for name, tensor in after.items():
        assert torch.equal(tensor[:2000], before[name].bfloat16()[:2000])
    exact = means(base_tokenizer(tiny_model), before["lm_head.weight"], NEW)
    assert torch.equal(after["lm_head.weight"][2000:], exact.bfloat16())
    assert config(tmp_path / "out")["dtype"] == "bfloat16"
    assert about["files_copied"] == 0


def sharded(path: Path, folder: Path) -> Path:
    """The checkpoint in several files."""
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(path).save_pretrained(folder, max_shard_size="200KB")
    base_tokenizer(path).save_pretrained(folder)
    return folder


def test_shards_without_rows_of_tokens_are_copied_byte_by_byte(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    base = sharded(tiny_model, tmp_path / "sharded")
    about = extending.extend(spec(base), extended, tmp_path / "out")
    names = sorted(file.name for file in base.glob("*.safetensors"))
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == names
    alike = [n for n in names if (base / n).read_bytes() == (tmp_path / "out" / n).read_bytes()]
    assert len(alike) == len(names) - 2 >= 1
    assert (about["files_copied"], about["files_rewritten"]) == (len(alike), 2)
    before, after = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (base, tmp_path / "out")
    )
    assert after["weight_map"] == before["weight_map"]
    more = 2 * 4 * 64 * 4  # two matrices, four rows of 64 float32
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"] + more
    extending.extend(spec(tiny_model), extended, tmp_path / "whole")
    whole = stored(tmp_path / "whole")
    assert all(torch.equal(t, whole[name]) for name, t in stored(tmp_path / "out").items())


def metaspace(path: Path, sample_texts: list[str]) -> tuple[Path, Path]:
    """A model whose tokenizer puts a blank before a text, as LLaMA's does, and an extension."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    core.train_from_iterator(["a b c. ▁ " + text[:2000] for text in sample_texts], made)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    torch.manual_seed(2)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape))
    model.save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    content = json.loads((path / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"龘龘": len(tokenizer), "▁龘": len(tokenizer) + 1}
    wider = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), unk_token="<unk>"
    )
    wider.save_pretrained(path / "wider")
    return path / "base", path / "wider"


@pytest.mark.parametrize("kept", [False, True])
def test_the_blank_before_a_text_is_left_out_or_kept_by_choice_and_noted(
    tmp_path: Path, sample_texts: list[str], kept: bool
) -> None:
    base, wider = metaspace(tmp_path, sample_texts)
    about = extending.extend(spec(base), wider, tmp_path / "out", dummy_prefix=kept)
    assert about["dummy_prefix"] == ("kept" if kept else "left out")
    ids: Any = base_tokenizer(base).get_vocab()
    char = [ids[f"<0x{byte:02X}>"] for byte in "龘".encode()]
    blank = [ids["▁"]]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = stored(base)[name], stored(tmp_path / "out")[name]
        expected = old[(blank if kept else []) + char * 2].mean(0)
        assert torch.allclose(new[-2], expected, atol=1e-7)
        # the blank of a piece that has one is no dummy
        assert torch.allclose(new[-1], old[blank + char].mean(0), atol=1e-7)
    assert about["unreachable"]["first"] == ["龘龘", "▁龘"]  # no merges lead to them


def test_a_token_without_pieces_begins_as_the_mean_of_all_old_rows(tiny_model: Path) -> None:
    table = Rows(checkpoint.tensors(tiny_model)[EMBEDDING])
    plan = row_init.Plan([2000, 2001], [[], [5]], [*range(2000)], 2000, 2002)
    grown = row_init.grown(table, plan, row_init.average(table, plan), torch.float32)
    rows = torch.cat(list(grown.blocks()))
    old = stored(tiny_model)[EMBEDDING]
    assert torch.allclose(rows[2000], old.mean(0), atol=1e-7)
    assert torch.equal(rows[2001], old[5])


def test_an_encoder_and_its_decoder_grow_together(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    pair = T5Config(vocab_size=2016, decoder_start_token_id=0, **shape)
    T5ForConditionalGeneration(pair).save_pretrained(tmp_path / "t5")
    tokenizer = base_tokenizer(tiny_model)
    tokenizer.save_pretrained(tmp_path / "t5")
    new = [f"新{i}" for i in range(50)]
    tokenizer.add_tokens(new)
    tokenizer.save_pretrained(tmp_path / "wider")
    about = extending.extend(spec(tmp_path / "t5"), tmp_path / "wider", tmp_path / "out")
    assert (about["rows_after"], about["padding_rows_filled"]) == (2050, 16)
    old, rows = (stored(tmp_path / name)["shared.weight"] for name in ("t5", "out"))
    assert torch.allclose(rows[2000:], means(base_tokenizer(tiny_model), old, new), atol=1e-6)


# the rest of the folder


def test_files_beside_the_weights_come_along_and_code_only_where_it_is_allowed(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    (copy / "generation_config.json").write_text('{"temperature": 0.3}')
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (copy / "LICENSE").write_text("as you like")
    (copy / "extra.py").write_text("raise SystemExit")
    (copy / "merge.json").write_text("{}")
    (copy / "vocab.json").write_text("{}")
    (copy / "tokenizer.model").write_text("another tokenizer's")
    about = extending.extend(spec(copy), extended, tmp_path / "out")
    for name in ("generation_config.json", "chat_template.jinja", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (copy / name).read_bytes()
    assert about["tokenizer"]["chat_template"] == "the base's"
    for file in extended.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    for name in ("extra.py", "merge.json", "vocab.json", "tokenizer.model"):
        assert not (tmp_path / "out" / name).exists()
    extending.extend(spec(copy, trust_remote_code=True), extended, tmp_path / "trusted")
    assert (tmp_path / "trusted" / "extra.py").exists()


def test_the_result_is_shown_and_scored_as_any_checkpoint(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    extending.extend(spec(tiny_model), extended, tmp_path / "out")
    request = Request(id="x", context="Which one?\nAnswer:", continuations=(" A", " B"))
    found = []
    for path in (tiny_model, tmp_path / "out"):
        (reply,) = open_backend(spec(path, device="cpu")).ask([request])
        found.append(reply.logits)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_the_command_prints_the_note(
    tiny_model: Path,
    extended: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Which?"}\n\n{"prompt": "法律"}\n', encoding="utf-8")
    command = ["model", "extend", tiny_model, "--tokenizer", extended, "--out", tmp_path / "out"]
    command += ["--prompts", prompts, "--pad-to-multiple", "16", "--json"]
    monkeypatch.setattr(sys, "argv", ["ceval-suite", *map(str, command)])
    cli.main()
    about = json.loads(capsys.readouterr().out)
    assert about["rows_after"] == 2016
    assert about["proof"]["answers"]["prompts"] == 2
    assert about["proof"]["answers"]["prompts_that_resegment"] == 1
    monkeypatch.setattr(sys, "argv", ["ceval-suite", "show", str(tmp_path / "out")])
    cli.main()
    shown = capsys.readouterr().out
    assert "entries: 2004" in shown
    assert "embedding_rows: 2016" in shown
    assert "grow_embeddings" not in shown


def test_an_interruption_leaves_nothing_behind(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    def stop(line: str) -> None:
        if "reading back" in line:
            raise KeyboardInterrupt

    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        extending.extend(spec(tiny_model), extended, tmp_path / "there" / "out", stop)
    assert list((tmp_path / "there").iterdir()) == []


# the proof


def test_logits_of_old_ids_are_the_base_s_to_the_last_bit_and_the_note_says_so(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    about = extending.extend(spec(tiny_model), extended, tmp_path / "out", prompts=["Is it?", "1"])
    answers = about["proof"]["answers"]
    assert (answers["prompts"], answers["prompts_that_resegment"]) == (2, 0)
    assert answers["hidden_states_identical"] == 2
    assert answers["largest_difference"] <= 1e-5
    ids = base_tokenizer(tiny_model)("Is it?", return_tensors="pt")["input_ids"]
    one, other = (
        loading.load(spec(path, device="cpu")).model(ids).logits
        for path in (tiny_model, tmp_path / "out")
    )
    assert torch.allclose(one, other[..., :2000], atol=1e-5)


def spoilt(name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content[name])
        save_file(content, folder / "model.safetensors", {"format": "pt"})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt(EMBEDDING, lambda t: t[1999, 3:4].add_(1e-3)), f"{EMBEDDING}: does not read back"),
        (spoilt("model.norm.weight", lambda t: t[:1].add_(1e-3)), "model.norm.weight: does not"),
        (spoilt("lm_head.weight", lambda t: t[2001, 0].fill_(torch.nan)), "row 2001 is not finite"),
        (spoilt(EMBEDDING, lambda t: t[2002].mul_(1.001)), f"{EMBEDDING}: row 2002 lies"),
        (spoilt(EMBEDDING, lambda t: t[2000:2002].copy_(t[2000:2002].flip(0))), "row 2000 lies"),
    ],
)
def test_the_proof_finds_a_row_that_moved(
    tiny_model: Path,
    extended: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    said: str,
) -> None:
    extending.extend(spec(tiny_model), extended, tmp_path / "out")
    spoil(tmp_path / "out")
    job = extension_plan.planned(spec(tiny_model), str(extended), "mean", False, 1, None)
    sides = extension_proof.Sides(spec(tiny_model), spec(tmp_path / "out"), None)
    names = {
        n: row_init.average(Rows(checkpoint.tensors(tiny_model)[n]), job.plan)
        for n in (EMBEDDING, "lm_head.weight")
    }

    def prove() -> None:
        extension_proof.weights(sides, list(names), job.plan)
        extension_proof.sample(sides, names, job.plan, job.base, job.tokenizer, dummy_prefix=False)

    with pytest.raises(ModelError, match=re.escape(said)):
        prove()


def test_the_proof_finds_answers_that_moved(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    extending.extend(spec(tiny_model), extended, tmp_path / "out")
    spoilt("model.norm.weight", lambda t: t.mul_(1.01))(tmp_path / "out")
    job = extension_plan.planned(spec(tiny_model), str(extended), "mean", False, 1, None)
    plain = {"dtype": "float32", "device": "cpu"}
    sides = extension_proof.Sides(spec(tiny_model, **plain), spec(tmp_path / "out", **plain), None)
    texts = extension_proof.tokenised(job.base, job.tokenizer, ())
    with pytest.raises(ModelError, match="logits of old ids moved by"):
        extension_proof.answers(sides, job.plan, texts)


def test_a_tokenizer_that_lost_an_id_on_the_way_is_found(tiny_model: Path, extended: Path) -> None:
    meant = {0: "<s>", 2003: "<other>"}
    with pytest.raises(ModelError, match="'<note>' at id 2003 where '<other>' was meant"):
        extension_proof.tokens(spec(tiny_model, tokenizer=str(extended)), meant)


# what is refused


def test_an_old_id_that_means_something_else_is_named(
    tiny_model: Path, extended: Path, tmp_path: Path
) -> None:
    swapped = Path(shutil.copytree(extended, tmp_path / "swapped"))
    content = json.loads((swapped / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    names = {i: piece for piece, i in vocabulary.items()}
    vocabulary[names[700]], vocabulary[names[900]] = 900, 700
    (swapped / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    said = refused(tiny_model, swapped, tmp_path / "out")
    assert f"id 700 is {names[900]!r} where the base's tokenizer has {names[700]!r}" in said


def test_a_tokenizer_without_new_tokens_leaves_nothing_to_do(
    tiny_model: Path, tmp_path: Path
) -> None:
    said = refused(tiny_model, tiny_model, tmp_path / "out")
    assert "nothing to do" in said
    assert "2000 entries" in said


def test_rows_that_do_not_match_are_named_with_both_sizes(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    def shorten(content: dict[str, Any]) -> None:
        content["lm_head.weight"] = content["lm_head.weight"][:1990].clone()

    rewrite(copy, lambda _: None, vocab_size=2048)
    said = refused(copy, extended, tmp_path / "out")
    assert "2000 rows where config.json makes vocab_size 2048" in said
    rewrite(copy, shorten, vocab_size=2000)
    assert "2000 rows and the head 1990" in refused(copy, extended, tmp_path / "out")


def test_a_base_tokenizer_with_more_tokens_than_rows_is_no_base(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    for file in extended.iterdir():
        shutil.copy(file, copy / file.name)
    tokenizer = base_tokenizer(copy)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "wider")
    said = refused(copy, tmp_path / "wider", tmp_path / "out")
    assert "2004 entries" in said
    assert "only 2000 rows" in said


def test_a_tensor_that_may_have_a_place_for_each_token_is_not_passed_over(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    rewrite(copy, lambda content: content.update({"logit_scale": torch.ones(1, 2000)}))
    said = refused(copy, extended, tmp_path / "out")
    assert "logit_scale is (1, 2000)" in said
    assert "grow_embeddings" in said


def test_what_cannot_be_extended_is_refused_with_the_remedy(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = {"adapters": [Adapter(path="some/adapter")]}
    assert "model merge" in refused(copy, extended, out, given=given)
    given = {"quant": Quant(method="torchao")}
    assert "leave `quant` out" in refused(copy, extended, out, given=given)
    given = {"backend": "server", "url": "http://127.0.0.1:1/v1"}
    assert "backend server" in refused(copy, extended, out, given=given)
    assert "did you mean 'mean'" in refused(copy, extended, out, init="means")
    assert "dtype 'bf16'" in refused(copy, extended, out, dtype="bf16")
    rewrite(copy, lambda _: None, quantization_config={"quant_method": "gptq", "bits": 4})
    said = refused(copy, extended, out)
    assert "quantised (gptq)" in said
    assert "model quantize" in said


def test_a_folder_in_use_is_left_alone(tiny_model: Path, extended: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert "not an empty folder" in refused(tiny_model, extended, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_numbers_too_large_for_a_dtype_are_an_error(
    copy: Path, extended: Path, tmp_path: Path
) -> None:
    rewrite(copy, lambda content: content["model.norm.weight"].mul_(1e6))
    said = refused(copy, extended, tmp_path / "out", dtype="float16")
    assert "too large for float16" in said


@pytest.mark.parametrize("text", ["", "no json\n", '{"text": "x"}\n', '["x"]\n'])
def test_a_file_without_prompts_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"p\.jsonl"):
        extending.read_prompts(tmp_path / "p.jsonl")


# memory


def test_writing_takes_the_same_memory_whatever_the_size(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc/self/status here")

    def measured(key: str) -> int:
        found = re.search(rf"{key}:\s*(\d+) kB", status.read_text())
        assert found
        return int(found[1]) * 1024

    rows, width = 60_000, 2048
    size = rows * width * 4  # half a gigabyte of zeros, which take no room on disk
    header = {EMBEDDING: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    plan = row_init.Plan(
        [*range(rows, rows + 5000)],
        [[i, i + 7, i + 9000] for i in range(5000)],
        [*range(rows)],
        rows,
        rows + 5000,
    )
    table = Rows(checkpoint.tensors(tmp_path / "base")[EMBEDDING])
    (tmp_path / "out").mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = measured("VmRSS")
    grown = row_init.grown(table, plan, row_init.average(table, plan), torch.float32)
    rewriting.rewrite(tmp_path / "base", tmp_path / "out", {EMBEDDING: grown})
    assert measured("VmHWM") - before < 64 * 2**20
    written = checkpoint.tensors(tmp_path / "out")[EMBEDDING]
    assert written == Stored(
        tmp_path / "out" / "model.safetensors",
        (rows + 5000, width),
        "F32",
        written.start,
        (rows + 5000) * width * 4,
    )


# the real thing


@pytest.fixture(scope="module")
def chinese_smollm2(
    smollm2: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """SmolLM2's tokenizer with the commonest Chinese pieces of C-Eval, and these."""
    text = "".join(p.read_text("utf-8") for p in sorted((real_data / "ceval").rglob("*.csv"))[:90])
    runs = re.findall("[\u4e00-\u9fa5]+", text)
    counted = Counter(
        run[i : i + n] for run in runs for n in (1, 2, 3) for i in range(len(run) - n + 1)
    )
    found = [piece for piece, _ in counted.most_common(17000 if FULL else 2000)]
    tokenizer: Any = tokenizers.load_tokenizer(spec(smollm2))
    known = tokenizer.get_vocab()
    found = [piece for piece in found if piece not in known]
    tokenizer.add_tokens(found)
    folder = tmp_path_factory.mktemp("chinese")
    tokenizer.save_pretrained(folder)
    return folder, found


def questions(count: int) -> list[str]:
    """Real MMLU test questions, none of them with shots."""
    chosen = prepare.prepare("mmlu", prepare.Selection(shots=0, split="test"))
    every = [json.loads(line)["prompt"] for line in preview.lines(chosen)]
    return every[:: len(every) // count][:count]


@pytest.mark.smollm2
@pytest.mark.real
def test_smollm2_with_chinese_pieces_answers_english_as_before(
    smollm2: Path,
    real_data: Path,
    chinese_smollm2: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CEVAL_SUITE_DATA", str(real_data))
    folder, new = chinese_smollm2
    prompts = questions(1000 if FULL else 8)
    # in a process of its own: memory is counted from its start
    script = """
        import json, sys
        from pathlib import Path
        from ceval_suite.backends import extending
        from ceval_suite.model_spec import ModelSpec
        path, tokenizer, out, prompts = sys.argv[1:]
        texts = extending.read_prompts(Path(prompts))
        extending.extend(ModelSpec(path=path), tokenizer, Path(out), prompts=texts)
    """
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))

    def run(path: Path, out: Path) -> dict[str, Any]:
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(
            [*command, path, folder, out, file], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads((out / "extension.json").read_text(encoding="utf-8"))

    about = run(smollm2, tmp_path / "out")
    answers = about["proof"]["answers"]
    assert (answers["prompts"], answers["prompts_that_resegment"]) == (len(prompts), 0)
    assert answers["logits_identical"] == len(prompts), "to the last bit"
    assert answers["largest_difference"] == 0
    assert about["rows_after"] == 49152 + len(new)
    base = loading.load(spec(smollm2, device="cpu", dtype="float32"))
    old = base.model.get_input_embeddings().weight.detach()
    rows = stored(tmp_path / "out")["model.embed_tokens.weight"]
    assert torch.equal(rows[:49152], old)
    by_hand = means(base.tokenizer, old, new)
    assert torch.allclose(rows[49152:], by_hand, atol=1e-6)
    if not FULL:
        return
    # a GGUF file is dequantised whole; safetensors are streamed
    quantise.dense_config(base.model)
    base.model.save_pretrained(tmp_path / "dense")
    base.tokenizer.save_pretrained(tmp_path / "dense")
    again = run(tmp_path / "dense", tmp_path / "again")
    assert torch.equal(stored(tmp_path / "again")["model.embed_tokens.weight"], rows)
    weights = (tmp_path / "again" / "model.safetensors").stat().st_size
    assert again["peak_memory_bytes"]["writing"] < weights + 500e6
