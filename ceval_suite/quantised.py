"""A model beside quantised ones: scored on the same items, measured layer by layer, tabulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ceval_suite import catalog, sweep
from ceval_suite.backends import weights
from ceval_suite.backends.base import Say
from ceval_suite.backends.loading import load
from ceval_suite.errors import ConfigError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection
from ceval_suite.records import read_records
from ceval_suite.report.quantisation import Side
from ceval_suite.schema import Record


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

    Records are kept under `out` and reused. Two models are in memory at once.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    folders = sweep.run(specs, tasks, [chosen], out, say)
    each = len(folders) // len(specs)
    records: list[list[Record]] = [
        [r for folder in folders[at : at + each] for r in read_records(folder / "records.jsonl")]
        for at in range(0, len(folders), each)
    ]
    sides: list[Side] = []
    base: Any = None
    for (name, spec), found in zip(specs.items(), records, strict=True):
        say(f"measuring the weights of {name}")
        loaded = load(spec)
        how = loaded.about.get("quantisation")
        errors = list(weights.errors(base, loaded.model)) if base is not None and how else []
        size = weights.model_size(loaded.model)
        dtype = str(loaded.dtype).removeprefix("torch.")
        sides.append(Side(name, found, _words(how) if how else dtype, size, errors))
        base = base if base is not None else loaded.model
    return sides


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
