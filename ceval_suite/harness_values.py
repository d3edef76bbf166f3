"""What results of lm-evaluation-harness say without their samples: shares with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ceval_suite import harness_files, metrics, stats
from ceval_suite.errors import RunError
from ceval_suite.harness_files import Block, number
from ceval_suite.schema import Estimate
from ceval_suite.specs import Task


def values(block: Block, task: Task) -> dict[str, Any]:
    """Averages, categories, groups and subjects, in the shape of `summary.json`.

    Raises:
        RunError: a value that is no share, or of which nothing says how sure it is.
    """
    parts: dict[str, metrics.Part] = {}
    missing: list[str] = []
    for subject in (s for s in task.subjects if s in block.tasks):
        found = _estimate(block, task, subject)
        if found is None:
            missing.append(subject)
        else:
            parts[subject] = metrics.Part(found, found)
    rules = list(dict.fromkeys((task.average, "micro", "macro")))
    if task.average == "points":
        rules.remove("points")
    headline = metrics.HEADLINES[rules[0]]
    averages: dict[str, Any] = {}
    if parts and not missing:
        averages = {metrics.HEADLINES[r]: asdict(metrics.average(r, parts, task)) for r in rules}
    elif not block.tasks:
        headline, averages = "acc/micro", _whole(block, task)
    kinds: dict[str, dict[str, Any]] = {"categories": {}, "groups": {}}
    for kind, sets in (("categories", task.categories), ("groups", task.groups)):
        for name, members in sets.items():
            some = {s: parts[s] for s in members if s in parts}
            if some and not missing:
                found_ = {
                    metrics.HEADLINES[r]: asdict(metrics.average(r, some, task)) for r in rules
                }
                kinds[kind][name] = found_ | {"subjects": len(some)}
    sizes = {s: part.accuracy.n for s, part in parts.items()}
    n = sum(sizes.values()) or max((int(e["n"]) for e in averages.values()), default=0)
    return {
        "n": n,
        "labels": bool(averages or parts),
        "headline": headline,
        "missing": missing,
        "metrics": averages,
        **kinds,
        "subjects": {s: asdict(part.accuracy) for s, part in parts.items()},
        "chance": _chance(task, sizes),
    }


def _chance(task: Task, sizes: Mapping[str, int]) -> float:
    weights = sizes or dict.fromkeys(task.subjects, 1)
    guesses = [n / len(task.subjects[s].labels) for s, n in weights.items()]
    return math.fsum(guesses) / sum(weights.values())


def _estimate(block: Block, task: Task, subject: str) -> Estimate | None:
    value, stderr = harness_files.metric(block.tasks[subject])
    size = block.size(subject)
    if size is None and block.limit is None:
        size = task.subjects[subject].counts.get(block.meant.split)
    return _share(block, block.names[subject], value, stderr, size)


def _share(
    block: Block, name: str, value: float | None, stderr: float | None, size: int | None
) -> Estimate | None:
    """Wilson's interval where the count of right answers is known, else one from the error."""
    if value is None:
        return None
    if not 0 <= value <= 1:
        raise RunError(f"{block.path}: {name} has acc {value}; a share lies between 0 and 1.")
    if size and abs(value * size - round(value * size)) < 1e-3:
        return stats.wilson(round(value * size), size)
    if size and stderr is None:
        return stats.wilson(value * size, size)
    if stderr is None:
        raise RunError(
            f"{block.path}: {name} says neither of how many items its acc is nor how sure it is; "
            "give the results of a newer lm-eval, or its samples."
        )
    half = stats.Z * stderr
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Estimate(value=value, n=size or 0, stderr=stderr, low=low, high=high)


def _whole(block: Block, task: Task) -> dict[str, Any]:
    """The average over items that the group's own row gives, where no subject has a row."""
    for name, row in block.groups.items():
        value, stderr = harness_files.metric(row)
        count: Any = row.get("sample_count")
        size = number(count.get("acc,none") if isinstance(count, dict) else row.get("sample_len"))
        if size is None and block.limit is None:
            size = task.counts.get(block.meant.split)
        found = _share(block, name, value, stderr, int(size) if size else None)
        if found is not None:
            return {"acc/micro": asdict(found)}
    return {}
