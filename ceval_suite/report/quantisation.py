"""What quantisation did: to answers (from records alone) and to weights (measured when loaded)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ceval_suite import methods, stats
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.report import table
from ceval_suite.schema import Cell, Estimate, Record, Table


@dataclass(frozen=True)
class Effect:
    """A model's answers beside those of the unquantised one, on the same items.

    `divergence` is the mean of KL(unquantised ‖ quantised) over items, in nats, between the
    distributions over the choices: the softmax of the letters' logits.
    """

    n: int
    accuracy: Estimate | None
    flips: Estimate
    lost: int
    won: int
    divergence: Estimate | None


@dataclass(frozen=True)
class Side:
    """One model of the comparison: its records and what is known of its weights."""

    name: str
    records: Sequence[Record]
    how: str
    size: int
    layers: Sequence[Any] = ()


def kl(base: Mapping[str, float], other: Mapping[str, float]) -> float:
    """KL divergence, in nats, of choice distributions given by their log-probabilities or logits.

    What is common to all letters cancels out, so either serves.
    """
    p, q = _log_softmax(base), _log_softmax(other)
    return max(0.0, sum(math.exp(p[label]) * (p[label] - q[label]) for label in p))


def _log_softmax(values: Mapping[str, float]) -> dict[str, float]:
    top = max(values.values())
    total = top + math.log(sum(math.exp(value - top) for value in values.values()))
    return {label: value - total for label, value in values.items()}


def effect(base: Sequence[Record], other: Sequence[Record]) -> Effect:
    """The effect on answers, joined by item.

    Raises:
        RunError: different items, items whose choices differ, or labels that a server left out.
    """
    by_id = {record.id: record for record in base}
    pairs = [(by_id[record.id], record) for record in other if record.id in by_id]
    if not pairs or not len(pairs) == len(by_id) == len(other):
        raise RunError("the runs hold different items; compare runs of the same tasks and limit.")
    found = [kl(one.logprobs, two.logprobs) for one, two in pairs if _comparable(one, two)]
    labelled = [(one, two) for one, two in pairs if two.correct is not None]
    return Effect(
        n=len(pairs),
        accuracy=(
            methods.share((two for _, two in labelled), lambda r: float(bool(r.correct)))
            if labelled
            else None
        ),
        flips=methods.share(other, lambda r: float(r.prediction != by_id[r.id].prediction)),
        lost=sum(bool(a.correct) and not b.correct for a, b in labelled),
        won=sum(bool(b.correct) and not a.correct for a, b in labelled),
        divergence=_mean(found) if found else None,
    )


def _comparable(one: Record, two: Record) -> bool:
    """Whether both chose among the same letters after the same text.

    Not so where texts were written, where letters follow one another (their strings are no
    alternatives), and where other answers to earlier sub-questions stand before.

    Raises:
        RunError: they were asked in two ways, or a server left labels out.
    """
    follows = "#" in one.id and not one.id.endswith("#0")
    same = one.prompt_sha256 == two.prompt_sha256
    if one.logprobs.keys() != two.logprobs.keys() or not (same or follows):
        raise RunError(f"item {one.id} was put in two ways; compare runs of one protocol.")
    if one.text is not None or any(len(label) > 1 for label in one.logprobs):
        return False
    if one.bounded or two.bounded or not one.logprobs:
        raise RunError(
            f"item {one.id}: a server left labels out, and without their log-probabilities "
            "there is no distribution to compare; allow it more top_logprobs."
        )
    return same


def _mean(values: Sequence[float]) -> Estimate:
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0
    half = stats.Z * spread
    return Estimate(value=mean, n=n, stderr=spread, low=max(0.0, mean - half), high=mean + half)


def summary(base: Side, others: Sequence[Side]) -> Table:
    """One row a model: bytes, weight errors, accuracy, flips and divergence."""
    rows = [_row(base, base), *(_row(base, other) for other in others)]
    columns = ("Model", "Quantisation", "Bytes", "Share", "Layers", "SNR dB", "n", "acc/micro")
    columns += ("Flips", "Flips 95 %", "Lost", "Won", "KL nats")
    notes = (
        "Bytes: all weights, packed; Share: of the unquantised model's bytes.",
        "SNR: power of the weights over that of their errors, mean of the quantised layers.",
        "Flips: items whose prediction differs from the unquantised model's; Wilson interval.",
        "Lost and Won: right there and wrong here, and the other way round.",
        (
            "KL: of the choice distributions, unquantised to quantised; mean over items and "
            "interval; of single letters after the same text only."
        ),
    )
    return Table(
        title=f"Quantisation of {base.name}",
        columns=columns,
        rows=tuple(rows),
        notes=notes,
        numeric=frozenset(range(2, len(columns))),
    )


def _row(base: Side, side: Side) -> tuple[Cell, ...]:
    found = effect(base.records, side.records)
    accuracy = (
        table.missing("no labels") if found.accuracy is None else table.estimate(found.accuracy)
    )
    cells = [
        table.text(side.name),
        table.text(side.how),
        table.number(side.size),
        _percent(side.size / base.size),
    ]
    snr = [layer.snr for layer in side.layers if math.isfinite(layer.snr)]
    cells += [table.number(len(side.layers)) if side.layers else table.missing()]
    cells += [_decibels(sum(snr) / len(snr)) if snr else table.missing()]
    cells += [table.number(found.n), accuracy]
    if side is base:
        return (*cells, *(table.missing() for _ in range(5)))
    flips, divergence = found.flips, found.divergence
    count = round(flips.value * flips.n)
    interval = f"{table.percent(flips.low)}–{table.percent(flips.high)}"
    shown = table.missing("(no letters)")
    if divergence is not None:
        half = (divergence.high - divergence.low) / 2
        shown = Cell(text=f"{divergence.value:.2g} ±{half:.1g}", value=divergence.value)
    return (
        *cells,
        Cell(text=f"{count} ({table.percent(flips.value)} %)", value=flips.value),
        Cell(text=interval, value=flips.high - flips.low),
        table.number(found.lost),
        table.number(found.won),
        shown,
    )


def _percent(share: float) -> Cell:
    return Cell(text=f"{table.percent(share)} %", value=share)


def _decibels(value: float) -> Cell:
    return Cell(text=f"{value:.1f}", value=value)


def layers(sides: Sequence[Side]) -> Table:
    """One row a quantised layer of each model."""
    rows = [
        (
            table.text(side.name),
            table.text(layer.name),
            table.text("×".join(map(str, layer.shape))),
            Cell(text=f"{layer.mse:.3g}", value=layer.mse),
            Cell(text=f"{layer.largest:.3g}", value=layer.largest),
            _decibels(layer.snr),
            table.number(layer.bytes_before),
            table.number(layer.bytes_after),
        )
        for side in sides
        for layer in side.layers
    ]
    columns = ("Model", "Layer", "Shape", "MSE", "Largest error", "SNR dB", "Bytes", "Quantised")
    return Table(
        title="Weight errors by layer",
        columns=columns,
        rows=tuple(rows),
        notes=("Bytes: of the layer's weights before, and packed with scales and zero points.",),
        numeric=frozenset(range(3, len(columns))),
    )


def require_plot() -> None:
    """Find out before anything is computed whether `plot` can draw.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed; run pip install 'ceval-suite[plot]'."
        ) from error


def plot(sides: Sequence[Side], path: Path) -> None:
    """The layers' SNR, one line a model with quantised layers, as an SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_plot()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for side in (side for side in sides if side.layers):
        heights = [layer.snr for layer in side.layers]
        axes.plot(range(len(heights)), heights, marker=".", linewidth=0.8, label=side.name)
    axes.set_xlabel("quantised layer, from the first to the last")
    axes.set_ylabel("SNR of the weights (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
