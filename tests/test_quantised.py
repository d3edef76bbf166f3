"""`model compare-quantised`: each model is loaded once, weighed, scored and let go."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite import cli, fetch, quantised
from ceval_suite.backends import loading, weights
from ceval_suite.errors import ConfigError, DataError, ModelError
from ceval_suite.model_spec import Adapter, ModelSpec, Quant
from ceval_suite.prepare import Selection
from ceval_suite.report.quantisation import Side
from tests.quantising import as_gguf, have, quiet, read

pytestmark = pytest.mark.usefixtures("one_thread")

TORCHAO = ["method=torchao,bits=4", "method=torchao"]


@pytest.fixture(autouse=True)
def _packages() -> None:
    have("torchao")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelSpec, int]]:
    """What is loaded from here on, and how many models loaded before are still in memory."""
    seen: list[tuple[ModelSpec, int]] = []
    alive: list[weakref.ref[Any]] = []
    real = loading.load

    def load(spec: ModelSpec) -> loading.Loaded:
        gc.collect()
        seen.append((spec, sum(one() is not None for one in alive)))
        loaded = real(spec)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(loading, "load", load)
    return seen


def compare(base: Path, others: list[str], out: Path) -> list[Side]:
    specs = quantised.models(str(base), others, {"device": "cpu"})
    return quantised.compare(specs, ["sample-mmlu"], Selection(shots=0, limit=2), out, quiet)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ceval-suite", "model", "compare-quantised", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_every_model_is_loaded_once_and_no_two_are_in_memory_together(
    tiny_model: Path, tmp_path: Path, loads: list[tuple[ModelSpec, int]]
) -> None:
    sides = compare(tiny_model, TORCHAO, tmp_path)
    quants = [spec.quant and (spec.quant.method, spec.quant.bits) for spec, _ in loads]
    assert quants == [None, ("torchao", 4), ("torchao", 8)]
    assert [others for _, others in loads] == [0, 0, 0]
    assert [len(side.layers) for side in sides] == [0, 14, 14]
    assert len({len(side.records) for side in sides}) == 1
    # what was kept of the unquantised weights is gone
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(side.name for side in sides)


def test_finished_runs_are_reused_and_only_measured(
    tiny_model: Path, tmp_path: Path, loads: list[tuple[ModelSpec, int]]
) -> None:
    first = compare(tiny_model, TORCHAO, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("records.jsonl")}
    assert len(stamps) == 3
    loads.clear()
    assert compare(tiny_model, TORCHAO, tmp_path) == first
    assert [others for _, others in loads] == [0, 0, 0]
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("records.jsonl")}


def lora(folder: Path, out: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = read(folder)
    how = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    get_peft_model(model, how).save_pretrained(out)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "gguf", "merged adapter"])
def test_errors_against_what_was_kept_equal_those_against_the_model_itself(
    tiny_model: Path, tmp_path: Path, kind: str, dtype: str
) -> None:
    options: dict[str, Any] = {"path": str(tiny_model), "device": "cpu", "dtype": dtype}
    if kind == "gguf":
        import gguf

        as_gguf(tiny_model, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
        options |= {"path": str(tmp_path / "tiny.gguf"), "tokenizer": str(tiny_model)}
    elif kind == "merged adapter":
        have("peft")
        lora(tiny_model, tmp_path / "lora")
        options["adapters"] = [Adapter(path=str(tmp_path / "lora"), merge=True)]
    base = loading.load(ModelSpec(**options)).model
    quant = Quant(method="torchao", bits=4)
    other = loading.load(ModelSpec(path=str(tiny_model), device="cpu", dtype=dtype, quant=quant))
    (tmp_path / "kept").mkdir()
    kept = weights.Kept(base, Path(options["path"]), tmp_path / "kept")
    dense = weights.dense(base)
    assert kept.keys() == dense.keys()
    assert all(torch.equal(kept[name], dense[name]) for name in dense)
    assert all(kept[name].dtype == dense[name].dtype for name in dense)
    found = list(weights.errors(kept, other.model))
    assert found == list(weights.errors(dense, other.model))
    assert len(found) == 14
    # only what the checkpoint does not hold is written again
    copies = len(list((tmp_path / "kept").iterdir()))
    exact = {"safetensors": 0, "gguf": len(dense), "merged adapter": 2}
    assert copies == exact[kind]


def test_models_of_other_layers_are_not_measured_against_each_other(
    tiny_model: Path, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    deep = tiny_llama("deep", seed=2, hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    quant = Quant(method="torchao")
    other = loading.load(ModelSpec(path=str(deep), device="cpu", quant=quant)).model
    base = loading.load(ModelSpec(path=str(tiny_model), device="cpu")).model
    with pytest.raises(ModelError, match=r"no unquantised layer model\.layers\.2"):
        list(weights.errors(weights.dense(base), other))


# what is refused before anything is scored


def test_a_first_model_that_is_quantised_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    plain = ModelSpec(path=str(tiny_model), device="cpu")
    eight = plain.model_copy(update={"quant": Quant(method="torchao")})
    specs = {"eight": eight, "plain": plain}
    with pytest.raises(ModelError, match="name the unquantised one first"):
        quantised.compare(specs, ["sample-mmlu"], Selection(shots=0), tmp_path, quiet)
    assert not [p for p in tmp_path.rglob("records.jsonl") if p.stat().st_size]


def test_models_behind_a_server_show_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    served = ModelSpec(backend="server", path="m", url="http://127.0.0.1:9/v1")
    specs = {"plain": ModelSpec(path=str(tiny_model)), "served": served}
    with pytest.raises(ModelError, match="'served' is of backend server"):
        quantised.compare(specs, ["sample-mmlu"], Selection(shots=0), tmp_path, quiet)


def test_one_model_alone_is_nothing_to_compare(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="at least one quantised one"):
        quantised.models(str(tiny_model), [], {})


def test_a_plot_without_matplotlib_is_refused_before_anything_is_loaded(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loads: list[tuple[ModelSpec, int]],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = (str(tiny_model), "method=torchao", "--tasks", "sample-mmlu", "--plot")
    assert command(monkeypatch, *words, "--out", str(tmp_path / "out")) == 1
    assert "pip install 'ceval-suite[plot]'" in capsys.readouterr().err
    assert loads == []


def test_no_task_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, str(tiny_model), "method=torchao", "--tasks", ",") == 1
    assert "names no task" in capsys.readouterr().err


def test_missing_data_is_fetched_as_run_does(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(task: Any, _progress: Any) -> Path:
        raise DataError(f"{task.name} cannot be reached.")

    monkeypatch.delenv("CEVAL_SUITE_DATA", raising=False)
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "fetch", unreachable)
    words = (str(tiny_model), "method=torchao", "--tasks", "cmmlu")
    assert command(monkeypatch, *words, "--out", str(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "cmmlu: not on this machine, fetching it" in said
    assert "cmmlu cannot be reached." in said


# the command


def test_the_command_writes_tables_and_plot_and_prints_json(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    have("matplotlib")
    words = (str(tiny_model), *TORCHAO, "--tasks", "sample-mmlu", "--shots", "0", "--limit", "2")
    more = ("--device", "cpu", "--plot", "--json", "--out", str(tmp_path))
    assert command(monkeypatch, *words, *more) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["rows"]) == 3
    layers = (tmp_path / "quantisation-layers.csv").read_text().strip().splitlines()
    assert len(layers) == 1 + 2 * 14
    name = tiny_model.name
    drawn = (tmp_path / "quantisation.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    for label in (f"{name}-torchao-4", f"{name}-torchao"):
        assert f"<!-- {label} -->" in drawn
        assert label in (tmp_path / "quantisation.md").read_text()
