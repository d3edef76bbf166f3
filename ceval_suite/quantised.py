"""A model beside quantised ones: scored on the same items, measured layer by layer, tabulated."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ceval_suite import catalog, sweep
from ceval_suite.backends import loading, open_backend, resolve, weights
from ceval_suite.backends.base import Backend, Say
from ceval_suite.errors import ConfigError, ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.progress import Items
from ceval_suite.records import read_records
from ceval_suite.report.quantisation import Side
from ceval_suite.run import Watch, evaluate


def models(base: str, others: Sequence[str], options: Mapping[str, Any]) -> dict[str, ModelSpec]:
    """The base and its quantised siblings, by the name to show.

    Each of `others` is a model of its own, or `method=torchao,bits=4,…`: the keys of `quant:` for
    the base.

    Raises:
        ConfigError: an unknown model, or keys and values that `quant:` does not take.
    """
    out = sweep.models([base, *(name for name in others if "=" not in name)], options)
    name, spec = next(iter(out.items()))
    for text in others:
        if "=" in text:
            quant = _settings(text)
            label = "-".join(str(value) for value in quant.values())
            out[f"{name}-{label}"] = catalog.override(spec, {"quant": quant})
    if len(out) < 2:
        raise ConfigError("give the unquantised model and at least one quantised one.")
    return out


def _settings(text: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in text.split(","):
        key, mark, value = part.partition("=")
        if not mark:
            raise ConfigError(f"'{text}': expected key=value pairs, such as method=torchao,bits=4.")
        out[key.strip()] = yaml.safe_load(value)
    return out


def compare(
    specs: Mapping[str, ModelSpec],
    tasks: Sequence[str],
    chosen: Selection,
    out: Path,
    say: Say,
) -> list[Side]:
    """Score all models, the unquantised one first, and measure their weights.

    Each is loaded once, and no two are in memory together. Records are kept under `out` and
    reused: a model whose runs are finished is loaded to be measured alone.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    for name, spec in specs.items():
        if spec.backend != "hf":
            raise ModelError(
                f"model '{name}' is of backend {spec.backend}, which shows no weights to measure; "
                "compare its records with the board instead."
            )
    prepared = [prepare(task, chosen) for task in tasks]
    out.mkdir(parents=True, exist_ok=True)
    sides: list[Side] = []
    with tempfile.TemporaryDirectory(dir=out, prefix=".weights.") as folder, Items(say) as items:
        scale = _Scale(Path(folder))
        for name, spec in specs.items():
            sides.append(_side(name, spec, prepared, out, scale, items.watch()))
            gc.collect()  # before the next is loaded
    return sides


class _Scale:
    """Measures models as they are loaded, the unquantised one first."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes what is kept of the unquantised weights."""
        self._folder = folder
        self._base: weights.Kept | None = None

    def weigh(self, name: str, spec: ModelSpec, loaded: loading.Loaded) -> Side:
        """The side of a model that has not computed anything yet, records left out."""
        how = loaded.about.get("quantisation")
        layers: list[weights.LayerError] = []
        if self._base is None and how:
            raise ModelError(
                f"model '{name}' is quantised ({_words(how)}); name the unquantised one first."
            )
        if self._base is None:
            self._base = weights.Kept(loaded.model, resolve(spec), self._folder)
        elif how:
            layers = list(weights.errors(self._base, loaded.model))
        words = _words(how) if how else str(loaded.dtype).removeprefix("torch.")
        return Side(name, (), words, int(loaded.about["bytes"]), layers)


def _side(
    name: str,
    spec: ModelSpec,
    prepared: Sequence[Prepared],
    out: Path,
    scale: _Scale,
    watch: Watch,
) -> Side:
    """One model, loaded once: weighed, then scored where its runs are not finished."""
    weighed: list[Side] = []

    def opener(spec: ModelSpec, say: Say) -> Backend:
        backend: Any = open_backend(spec, say)
        say(f"measuring the weights of {name}")
        weighed.append(scale.weigh(name, spec, backend.loaded))
        return backend

    folders = evaluate(name, spec, prepared, out, watch, opener=opener)
    if not weighed:
        watch.say(f"loading {name} to measure its weights")
        weighed.append(scale.weigh(name, spec, loading.load(spec)))
    records = [r for folder in folders for r in read_records(folder / "records.jsonl")]
    return replace(weighed[0], records=records)


def _words(how: Mapping[str, Any]) -> str:
    kind = how.get("type") or f"{how['bits']} bits"
    parts = [str(how["method"]), str(kind)]
    if how.get("group_size"):
        parts.append(f"groups of {how['group_size']}")
    elif "granularity" in how:
        parts.append(f"per {how['granularity']}")
    if how.get("symmetric") is False:
        parts.append("asymmetric")
    return " ".join(parts)
