"""`model quantize`: what it keeps, what it refuses, and that nothing half is ever left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite import cli
from ceval_suite.backends import loading, requantise
from ceval_suite.backends.quantise import quantised
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter, ModelSpec, Quant
from tests.quantising import by_hand, furthest, have, quiet, read, scores

pytestmark = pytest.mark.usefixtures("one_thread")

BITS = pytest.mark.parametrize("bits", [8, 4])


@pytest.fixture(autouse=True)
def _packages() -> None:
    have("torchao", "compressed_tensors")


def quantize(folder: Path, out: Path, bits: int = 8, **options: Any) -> dict[str, Any]:
    keys = {key: options.pop(key) for key in ("skip", "granularity") if key in options}
    quant = Quant(method="torchao", bits=bits, **keys)  # type: ignore[arg-type]
    spec = ModelSpec(path=str(folder), device="cpu", **options)
    return requantise.quantize("tiny", spec, quant, out, quiet)


def refused(folder: Path, out: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        quantize(folder, out, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ceval-suite", "model", "quantize", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# what is kept


@BITS
def test_tokenizer_templates_and_generation_settings_are_the_sources_own(
    copy: Path, tmp_path: Path, bits: int
) -> None:
    (copy / "chat_template.jinja").write_text("U: {{ messages[0].content }}\nA: ")
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tools.jinja").write_text("T: ")
    # contradicts itself: transformers refuses to save it
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": 1}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    quantize(copy, out, bits)
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    kept += ["chat_template.jinja", "additional_chat_templates/tools.jinja"]
    for name in kept:
        assert (out / name).read_bytes() == (copy / name).read_bytes(), name


@BITS
def test_the_provenance_file_says_what_was_made_of_what(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    out = tmp_path / "out"
    about = quantize(tiny_model, out, bits)
    assert json.loads((out / "provenance.json").read_text()) == about
    source = loading.load(ModelSpec(path=str(tiny_model), device="cpu")).about
    assert about["made_from"]["path"] == str(tiny_model)
    assert about["identity"]["weights_sha256"] == source["weights_sha256"]
    assert about["quantisation"]["bits"] == bits
    assert about["bytes"]["before"] == source["bytes"]
    assert about["bytes"]["after"] == loading.load(ModelSpec(path=str(out))).about["bytes"]


@BITS
def test_the_head_and_the_embedding_keep_every_number(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    quantize(tiny_model, tmp_path / "out", bits)
    dense, _ = read(tiny_model)
    model = loading.load(ModelSpec(path=str(tmp_path / "out"), device="cpu")).model
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, dense.model.embed_tokens.weight)


@BITS
def test_a_head_that_is_not_skipped_is_quantised_too(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    about = quantize(tiny_model, tmp_path / "out", bits, skip=[])
    model = loading.load(ModelSpec(path=str(tmp_path / "out"), device="cpu")).model
    assert about["modules"] == 15
    assert quantised(model.lm_head)


@BITS
def test_shards_are_read_and_the_same_is_written(
    tiny_model: Path, tmp_path: Path, bits: int
) -> None:
    model, tokenizer = read(tiny_model)
    model.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    quantize(tmp_path / "shards", tmp_path / "one", bits)
    quantize(tiny_model, tmp_path / "two", bits)
    one, two = (ModelSpec(path=str(tmp_path / name), device="cpu") for name in ("one", "two"))
    assert furthest(scores(one)[0], scores(two)[0]) == 0


@BITS
def test_large_results_are_written_in_shards(
    tiny_model: Path, tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requantise, "SHARD", "300KB")
    quantize(tiny_model, tmp_path / "out", bits)
    quantize_whole, _ = scores(
        ModelSpec(path=str(tiny_model), device="cpu", quant=Quant(method="torchao", bits=bits))  # type: ignore[arg-type]
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    found, _ = scores(ModelSpec(path=str(tmp_path / "out"), device="cpu"))
    assert furthest(found, quantize_whole) <= 1e-4


@BITS
def test_tied_embeddings_stay_tied_and_whole(
    tiny_llama: Callable[..., Path], tmp_path: Path, bits: int
) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    tied = tiny_llama("tied", seed=3, tie_word_embeddings=True, initializer_range=0.1, **shape)
    about = quantize(tied, tmp_path / "out", bits)
    found, told = scores(ModelSpec(path=str(tmp_path / "out"), device="cpu"))
    assert about["modules"] == told["quantisation"]["modules"] == 14
    dense, tokenizer = read(tied)
    made = loading.load(ModelSpec(path=str(tmp_path / "out"), device="cpu")).model
    assert made.lm_head.weight is made.model.embed_tokens.weight
    for name, module in made.named_modules():
        if quantised(module):
            weight: Any = module.weight
            weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
            dense.get_submodule(name).weight.data = weight.detach().float()
    assert furthest(found, by_hand(dense, tokenizer)) <= 1e-4
    said = refused(tied, tmp_path / "other", bits=bits, skip=[])
    assert "tied to the input embedding" in said
    quant = Quant(method="torchao", bits=bits, skip=[])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="leave lm_head among skip"):
        loading.load(ModelSpec(path=str(tied), device="cpu", quant=quant))


def test_the_checkpoints_own_dtype_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = read(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    for bits in (8, 4):
        about = quantize(tmp_path / "half", tmp_path / f"out{bits}", bits)
        assert about["bytes"]["before"] < 0.51 * (tiny_model / "model.safetensors").stat().st_size
        config = json.loads((tmp_path / f"out{bits}" / "config.json").read_text())
        assert config["dtype"] == "bfloat16"


# what is refused


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "bitsandbytes"])
def test_a_source_that_is_quantised_already_is_refused(
    copy: Path, tmp_path: Path, method: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    said = refused(copy, tmp_path / "out")
    assert f"quantised already ({method}); give the unquantised checkpoint" in said
    assert not (tmp_path / "out").exists()


def test_its_own_result_is_refused_as_a_source(tiny_model: Path, tmp_path: Path) -> None:
    for bits, method in {8: "torchao", 4: "compressed-tensors"}.items():
        quantize(tiny_model, tmp_path / f"{bits}", bits)
        said = refused(tmp_path / f"{bits}", tmp_path / "out")
        assert f"quantised already ({method})" in said


def test_a_file_or_a_full_folder_in_the_way_is_left_as_it_is(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name in ("file", "full"):
        assert "not an empty directory" in refused(tiny_model, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    quantize(tiny_model, tmp_path / "out")
    assert loading.load(ModelSpec(path=str(tmp_path / "out"), device="cpu")).model


def test_adapters_that_stay_attached_are_refused_and_merged_ones_are_in_the_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    have("peft")
    from peft import LoraConfig, get_peft_model

    model, tokenizer = read(tiny_model)
    how = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    tuned: Any = get_peft_model(model, how)
    tuned.save_pretrained(tmp_path / "lora")
    one = Adapter(path=str(tmp_path / "lora"), merge=False)
    said = refused(tiny_model, tmp_path / "out", adapters=[one])
    assert "'ceval-suite model merge'" in said
    both = Adapter(path=str(tmp_path / "lora"), merge=True)
    quantize(tiny_model, tmp_path / "out", adapters=[both])
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    quantize(tmp_path / "merged", tmp_path / "other")
    found, other = (
        scores(ModelSpec(path=str(tmp_path / name), device="cpu"))[0] for name in ("out", "other")
    )
    assert furthest(found, other) <= 1e-3


@pytest.mark.parametrize("when", ["_write_packed", "_copy", "_same", "write_json"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing_half(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    error: type[BaseException],
) -> None:
    def stop(*_: Any) -> None:
        raise error

    out = tmp_path / "made" / "out"
    monkeypatch.setattr(requantise, when, stop)
    with pytest.raises(error):
        quantize(tiny_model, out, 4)
    assert list((tmp_path / "made").iterdir()) == []
    monkeypatch.undo()
    quantize(tiny_model, out, 4)
    assert loading.load(ModelSpec(path=str(out), device="cpu")).model
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["out"]


# the command


def test_the_command_takes_the_models_own_line_and_what_is_given_over_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaderboards").mkdir()
    line = f"own: {{path: {tiny_model}, quant: {{method: torchao, bits: 4, symmetric: false}}}}\n"
    (tmp_path / "leaderboards" / "models.yaml").write_text(line)
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "own", "--out", "out", "--group-size", "32") == 0
    made = json.loads((tmp_path / "out" / "provenance.json").read_text())["quantisation"]
    assert (made["bits"], made["symmetric"], made["group_size"]) == (4, False, 32)
    assert made["skip"] == ["lm_head"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bits", "3"), "method torchao has no 3 bits"),
        (("--bits", "5"), "quant.bits"),
        (("--granularity", "row"), "quant.granularity"),
        (("--granularity", "group"), "group_size go together"),
        (("--group-size", "48"), "group_size 48 does not divide the 64 inputs"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_are_one_sentence(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    said: str,
) -> None:
    assert command(monkeypatch, str(tiny_model), "--out", str(tmp_path / "out"), *words) == 1
    printed = capsys.readouterr().err.strip()
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_config_that_cannot_be_read_is_one_sentence(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").write_text("{")
    assert "not a JSON object" in refused(copy, tmp_path / "out")
    (copy / "config.json").unlink()
    assert "no config.json" in refused(copy, tmp_path / "out")
