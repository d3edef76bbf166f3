"""Subjects and groups as rows of lm-evaluation-harness's results: means and their errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ceval_suite import harness_names
from ceval_suite.schema import Record
from ceval_suite.specs import Task


@dataclass
class Part:
    """The labelled records of one subject, in the order of their rows.

    `task` is lm-eval's name for it, `metric` what its mean is called there.
    """

    name: str
    task: str
    metric: str
    records: list[Record] = field(default_factory=list[Record])

    @property
    def values(self) -> list[float]:
        """1 for each right record, else 0."""
        return [float(bool(record.correct)) for record in self.records]

    @property
    def mean(self) -> float:
        """The share of right records."""
        return statistics.fmean(self.values)

    @property
    def stderr(self) -> float | None:
        """The sample standard deviation over √n, as there; of a single item there is none."""
        n = len(self.records)
        return statistics.stdev(self.values) / math.sqrt(n) if n > 1 else None


def row(one: Part) -> dict[str, Any]:
    """The row of a task."""
    stderr = one.stderr
    return {
        "alias": one.name,
        "name": one.task,
        "sample_len": len(one.records),
        f"{one.metric},none": one.mean,
        f"{one.metric}_stderr,none": "N/A" if stderr is None else stderr,
    }


def groups(
    task: Task, group: str, subjects: Sequence[Part]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """The group of all subjects, then of each category: its tasks, and its row.

    lm-eval's own groups are averages over items; ours are the benchmark's official average.
    """
    macro = task.average == "macro" and group.startswith(harness_names.PREFIX)
    found = {group: (task.title, list(subjects))}
    for category, members in task.categories.items():
        some = [one for one in subjects if one.name in members]
        if some and len(task.categories) > 1:
            found[harness_names.category_name(group, category)] = (category, some)
    return {
        name: ([one.task for one in some], _total(name, alias, some, macro=macro))
        for name, (alias, some) in found.items()
    }


def _total(name: str, alias: str, some: Sequence[Part], *, macro: bool) -> dict[str, Any]:
    metric = "acc" if all(one.metric == "acc" for one in some) else "exact_match"
    sizes = [len(one.records) for one in some]
    errors = [one.stderr for one in some]
    n, k = sum(sizes), len(some)
    if macro:
        value = math.fsum(one.mean for one in some) / k
    else:
        value = math.fsum(value for one in some for value in one.values) / n
    stderr: float | str = "N/A"
    known = [error for error in errors if error is not None]
    if len(known) == k and macro:
        stderr = math.sqrt(math.fsum(error**2 for error in known)) / k
    elif len(known) == k and n > k:
        # pooled_sample_stderr of lm_eval.api.metrics
        within = math.fsum((m - 1) * e**2 * m for m, e in zip(sizes, known, strict=True))
        stderr = math.sqrt(within / (n - k)) / math.sqrt(n)
    return {
        "alias": alias,
        "name": name,
        "sample_len": n,
        f"{metric},none": value,
        f"{metric}_stderr,none": stderr,
        "sample_count": {f"{metric},none": n},
    }
