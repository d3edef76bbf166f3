"""What answers say when the options of a question were turned on, one place at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import exp
from typing import Any

from ceval_suite import methods, stats
from ceval_suite.schema import Record
from ceval_suite.specs import Task


def block(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """What turning the options says of labelled records; {} where none was turned.

    `printed` is accuracy in the published order, `mean` that over all turns, `consistent` the share
    of items answered rightly in every turn, `averaged` the accuracy of the option whose mean
    probability over the turns is highest, and `steady` the share of items whose answer is the same
    option in every turn, right or wrong. Each over records and as the mean of subjects.
    """
    some = [r for r in records if r.turns and r.correct is not None]
    if not some:
        return {}
    values = {
        "printed": [float(bool(r.correct)) for r in some],
        "mean": [sum(a == r.answer for a in _answers(r)) / len(_answers(r)) for r in some],
        "consistent": [float(all(a == r.answer for a in _answers(r))) for r in some],
        "averaged": [float(_averaged(r) == r.answer) for r in some],
        "steady": [float(all(a == r.prediction != [] for a in _answers(r))) for r in some],
    }
    turns = sorted({len(_answers(r)) for r in some})
    guess = [len(_answers(r)) for r in some]
    return {
        "n": len(some),
        "not_turned": sum(not r.turns for r in records),
        "turns": turns,
        "chance": sum(1 / k**k for k in guess) / len(some),
        **{name: _both(task, some, found) for name, found in values.items()},
    }


def _answers(record: Record) -> list[list[str]]:
    return [record.prediction, *(turn["prediction"] for turn in record.turns)]


def _averaged(record: Record) -> list[str]:
    ways: list[Mapping[str, float]] = [record.logprobs, *(t["logprobs"] for t in record.turns)]
    known = [way for way in ways if way]
    if not known:
        return []
    mass = {label: sum(exp(way[label]) for way in known) for label in sorted(known[0])}
    return [max(mass, key=lambda label: mass[label])]


def _both(task: Task, records: Sequence[Record], values: Sequence[float]) -> dict[str, Any]:
    by_subject: dict[str, list[tuple[float, str]]] = {s: [] for s in task.subjects}
    for record, value in zip(records, values, strict=True):
        by_subject[record.subject].append((value, methods.cluster(record)))
    parts = [
        stats.share([v for v, _ in some], [c for _, c in some])
        for some in by_subject.values()
        if some
    ]
    micro = stats.share(values, [methods.cluster(r) for r in records])
    return {
        "acc/micro": asdict(micro),
        "acc/macro": asdict(stats.weighted(parts, [1.0] * len(parts))),
    }
