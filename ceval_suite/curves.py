"""Checkpoints of one training job on one protocol, in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.errors import RunError
from ceval_suite.records import find_runs, read_json
from ceval_suite.schema import Estimate

Run = tuple[Mapping[str, Any], Path | None]
"""What summary.json says, and the run folder if it was kept."""


@dataclass(frozen=True)
class Point:
    """One checkpoint: its averages, the official one first."""

    step: int
    model: str
    averages: Mapping[str, Estimate]
    folder: Path | None = None


@dataclass(frozen=True)
class Curve:
    """A training job's checkpoints on one protocol; `headline` is the official average."""

    series: str
    summary: Mapping[str, Any]
    headline: str
    points: tuple[Point, ...]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.summary["task"])

    @property
    def best(self) -> Point | None:
        """The checkpoint with the highest official average, the earliest of several."""
        able = [point for point in self.points if self.headline in point.averages]
        return max(able, key=lambda p: p.averages[self.headline].value, default=None)


def find(places: Iterable[Path], series: str | None = None) -> list[Run]:
    """The finished runs in and below folders that say their step; of one training job if named."""
    out: list[Run] = []
    for place in places:
        for folder in find_runs(place) if place.is_dir() else ():
            try:
                found = read_json(folder / "summary.json")
            except RunError:  # not finished
                continue
            if "step" in found and found.get("complete") and series in (None, found.get("series")):
                out.append((found, folder))
    return out


def of(runs: Iterable[Run]) -> list[Curve]:
    """Runs as curves, one for each training job and protocol; of two at one step the later counts.

    What says no step, or has no labels to be right about, is left out.
    """
    found: dict[tuple[str, str], dict[int, tuple[float, Run]]] = {}
    for summary, folder in runs:
        if not isinstance(summary.get("step"), int) or not summary.get("labels"):
            continue
        key = (str(summary.get("series", "")), str(summary["protocol_sha256"]))
        when = (folder / "summary.json").stat().st_mtime if folder else float("inf")
        steps = found.setdefault(key, {})
        if summary["step"] not in steps or steps[summary["step"]][0] <= when:
            steps[summary["step"]] = (when, (summary, folder))
    out: list[Curve] = []
    for (series, _), steps in found.items():
        ordered = [steps[step][1] for step in sorted(steps)]
        last = ordered[-1][0]
        points = tuple(
            Point(summary["step"], str(summary["model"]), averages(summary), folder)
            for summary, folder in ordered
        )
        out.append(Curve(series, last, str(last["headline"]), points))
    return sorted(out, key=lambda c: (c.series, c.task, str(c.summary.get("protocol"))))


def averages(summary: Mapping[str, Any]) -> dict[str, Estimate]:
    """A run's averages, the official one first; those without a value are left out."""
    metrics: Mapping[str, Any] = summary["metrics"]
    order: Sequence[str] = sorted(metrics, key=lambda key: key != summary["headline"])
    return {key: Estimate(**metrics[key]) for key in order if metrics[key]}
