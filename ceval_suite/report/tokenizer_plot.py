"""Tokenizers side by side as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ceval_suite.errors import ConfigError
from ceval_suite.specs import PublishedTokenizers
from ceval_suite.tokenizer.compare import Comparison

Published = Mapping[str, PublishedTokenizers]

PLOTS = (".svg", ".png", ".pdf")

_REPORTED = "reported, other texts"


def check_plot(path: Path) -> None:
    """Whether a plot can be written there, to be asked before the work.

    Raises:
        ConfigError: no such folder, an unknown ending, or matplotlib is not installed.
    """
    if path.suffix not in PLOTS:
        raise ConfigError(f"--plot {path}: the name must end in {', '.join(PLOTS)}.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}; make it first.")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed; run pip install 'ceval-suite[plot]'."
        ) from error
    return Figure


def plot(found: Comparison, published: Published, path: Path) -> None:
    """Tokens per character by language, beside reported ones (hatched); and costs of benchmarks."""
    panels: list[tuple[str, dict[str, dict[str, float]]]] = [
        ("tokens per character", _compressions(found, published))
    ]
    first = found.contenders[0].costs
    costs = {
        s.label: {task: c.distinct / first[task].distinct for task, c in s.costs.items()}
        for s in found.contenders
        if s.costs.keys() <= first.keys()
    }
    if any(costs.values()):
        panels.append(
            (f"distinct prompt tokens, as multiples of {found.contenders[0].label}", costs)
        )
    height = 1.2 + 0.32 * max(len(bars) for _, bars in panels)
    figure = _figure_class()(figsize=(6.5 * len(panels), height), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, bars) in zip(places, panels, strict=True):
        _bars(axes, title, bars)
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, format=path.suffix[1:], metadata=dated.get(path.suffix))


def _compressions(found: Comparison, published: Published) -> dict[str, dict[str, float]]:
    bars = {
        s.label: {
            name: s.measured[name].tokens / side.characters for name, side in found.sides.items()
        }
        for s in found.contenders
    }
    for one in published.values():
        for name, row in one.tokenizers.items():
            if row.compression is not None:
                bars[f"{name} ({one.title})"] = {_REPORTED: row.compression}
    return bars


def _bars(axes: Any, title: str, bars: Mapping[str, Mapping[str, float]]) -> None:
    series = list(dict.fromkeys(key for values in bars.values() for key in values))
    own = [key for key in series if key != _REPORTED]
    width = 0.8 / max(1, len(own))
    for key in series:
        reported = key == _REPORTED
        at = 0.0 if reported else (own.index(key) - (len(own) - 1) / 2) * width
        places = [k + at for k, values in enumerate(bars.values()) if key in values]
        lengths = [values[key] for values in bars.values() if key in values]
        style = {"hatch": "///", "fill": False} if reported else {}
        axes.barh(places, lengths, height=0.5 if reported else width, label=key, **style)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
