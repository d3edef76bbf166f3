"""Run folders → what a site is made of: models, columns of one protocol each, tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ceval_suite import exclusions, metrics
from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.exclusions import Exclusions
from ceval_suite.records import find_bits, find_runs, read_json, read_records
from ceval_suite.report import board
from ceval_suite.specs import Task


@dataclass(frozen=True)
class Run:
    """One run folder without its records."""

    path: Path
    about: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.summary["model"])

    def side(self, lists: Sequence[Exclusions]) -> Side:
        """The run with its records, but for excluded items."""
        records = read_records(self.path / "records.jsonl")
        kept = exclusions.without(records, lists) if lists else records
        return Side(self.path, self.about, {record.id: record for record in kept})


@dataclass(frozen=True)
class Column:
    """All runs of one protocol, by model."""

    key: str
    title: str
    task: Task
    runs: Mapping[str, Run]

    @property
    def about(self) -> Mapping[str, Any]:
        """What was asked, the same in every run."""
        return next(iter(self.runs.values())).about


@dataclass(frozen=True)
class Collected:
    """Everything found below the folders that were given."""

    models: Sequence[str]
    columns: Sequence[Column]
    bits: Sequence[Mapping[str, Any]]
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


def collect(folders: Sequence[Path]) -> Collected:
    """Find all runs and sort them into columns.

    Raises:
        RunError: a folder is not there or holds no run, or one model has two runs of one protocol.
    """
    runs: dict[Path, Run] = {}
    bits: dict[Path, Mapping[str, Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} does not exist; give the --out folder of a run.")
        for path in find_runs(folder):
            (summary,) = board.read_summaries(path)
            runs.setdefault(path.resolve(), Run(path, read_json(path / "run.json"), summary))
        for path in find_bits(folder):
            if (path / "summary.json").is_file():
                bits.setdefault(path.resolve(), read_json(path / "summary.json"))
    if not runs:
        raise RunError(
            f"{', '.join(map(str, folders))}: no runs there; give the --out folder of a run."
        )
    models = sorted({run.model for run in runs.values()})
    about = {run.model: run.about for run in runs.values()}
    return Collected(models, _columns(list(runs.values())), list(bits.values()), about)


def _columns(runs: Sequence[Run]) -> list[Column]:
    titles = board.columns(run.summary for run in runs)
    by_protocol: dict[str, dict[str, Run]] = {key: {} for key in titles}
    for run in runs:
        there = by_protocol[str(run.summary["protocol_sha256"])]
        if run.model in there:
            raise RunError(
                f"model '{run.model}' has two runs of one protocol, {there[run.model].path} and "
                f"{run.path}; leave one out."
            )
        there[run.model] = run
    out: list[Column] = []
    for sha, some in by_protocol.items():
        summary = next(iter(some.values())).summary
        name = f"{summary['task']}-{summary['split']}-{summary['shots']}shot-{sha[:8]}"
        key = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        task = load_task(str(summary["task"]))
        out.append(Column(key, titles[sha], task, dict(sorted(some.items()))))
    return out


def summarised(run: Run, side: Side, task: Task) -> Mapping[str, Any]:
    """The summary of the records that are left, where items were excluded."""
    records = list(side.records.values())
    found = metrics.summarize(task, records, Counter(record.subject for record in records))
    return {**run.summary, **found, "subjects_scored": len(found["subjects"])}


def family(name: str, about: Mapping[str, Any]) -> str:
    """What a model belongs to, by the letters that its name begins with: `qwen`, `smollm`.

    >>> family("smollm2-135m-zh", {})
    'smollm'
    """
    known = about.get("model")
    path = str(known.get("path", "")) if isinstance(known, Mapping) else ""
    for text in (name, path.rstrip("/").rpartition("/")[2]):
        found = re.match(r"[A-Za-z]{3,}", text)
        if found:
            return found.group().lower()
    return name


def bare(value: str) -> str:
    """A path's last part, so that a page never tells where files lay on a machine."""
    return value.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
