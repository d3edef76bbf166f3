"""run.json and records.jsonl → summary.json: every number again, bit for bit, without a model.

Neither the model nor the benchmark files are read: the records are the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite import metrics
from ceval_suite.catalog import load_task
from ceval_suite.errors import RunError
from ceval_suite.outcomes import in_order
from ceval_suite.records import find_runs, read_json, read_records, write_json
from ceval_suite.schema import Record


@dataclass(frozen=True)
class Rescored:
    """One run scored again: what summary.json held, None where there was none, and what it is."""

    path: Path
    before: Mapping[str, Any] | None
    now: Mapping[str, Any]

    @property
    def changed(self) -> list[str]:
        """The keys of summary.json that were different."""
        before = self.before or {}
        keys = dict.fromkeys((*before, *self.now))
        return [key for key in keys if before.get(key) != self.now.get(key)]


def of_run(
    about: Mapping[str, Any], identity: Mapping[str, Any], records: Iterable[Record]
) -> dict[str, Any]:
    """The content of summary.json, from what run.json says and the records, in any order.

    Raises:
        ConfigError: the task is not there any more.
    """
    task = load_task(str(about["task"]))
    expected: Mapping[str, int] = about["expected"]
    ordered = in_order(task, records)
    labels_from = about.get("labels_from")
    subset: Mapping[str, Any] = about.get("subset") or {}
    return {
        "task": task.name,
        "model": identity["model"],
        **{key: about[key] for key in ("protocol", "split", "shots")},
        "limit": about.get("limit"),
        "chat": about.get("chat", False),
        "same_shots": about.get("same_shots", []),
        "protocol_sha256": identity["protocol_sha256"],
        "date": str(about.get("date", ""))[:10],
        "complete": len(ordered) == sum(expected.values()),
        **metrics.summarize(task, ordered, expected, subset.get("sizes")),
        "subjects_chosen": about.get("subjects"),
        "subjects_scored": len(expected),
        "subjects_total": len(task.subjects),
        "fewer_shots": sum(r.shots < _held(about, r.subject) for r in ordered),
        "not_scored": about.get("not_scored", {}),
        "tokens": about.get("tokens", {}),
        "seconds": about.get("seconds", {}),
        "engine": about.get("engine", {}).get("path", {}),
        **({"subset": {k: v for k, v in subset.items() if k != "sizes"}} if subset else {}),
        **({"labels_from": Path(labels_from["place"]).name} if labels_from else {}),
    }


def _held(about: Mapping[str, Any], subject: str) -> int:
    """How many shots a subject has, of those that were asked for."""
    return int(about.get("shots_held", {}).get(subject, about["shots"]))


def again(folders: Sequence[Path], *, write: bool) -> list[Rescored]:
    """Score the runs in or below folders again from their records; `write` their summaries.

    Raises:
        RunError: no runs there, or one that does not say what was expected.
    """
    found: list[Rescored] = []
    for folder in folders:
        runs = [folder] if (folder / "run.json").is_file() else [*find_runs(folder)]
        if not runs:
            raise RunError(f"{folder} holds no runs; give a run folder or the --out of a run.")
        found += [_again(run, write=write) for run in runs]
    return found


def _again(folder: Path, *, write: bool) -> Rescored:
    about = read_json(folder / "run.json")
    path = folder / "summary.json"
    before: Mapping[str, Any] | None = None
    if path.is_file():
        with suppress(RunError):  # it is made again
            before = read_json(path)
    records = list(read_records(folder / "records.jsonl"))
    if "imported" in about and before:
        return Rescored(folder, before, _imported(before, records, path if write else None))
    if "expected" not in about:  # runs before it was noted: what is finished is all there
        if not (before and before.get("complete")):
            raise RunError(
                f"{folder} is unfinished and does not say how many records it wants; run the "
                "command that wrote it again, which reuses its records."
            )
        about |= {"expected": Counter(record.subject for record in records)}
    now = of_run(about, about["identity"], records)
    if write and now != before:
        write_json(path, now)
    return Rescored(folder, before, now)


def _imported(
    before: Mapping[str, Any], records: Sequence[Record], path: Path | None
) -> Mapping[str, Any]:
    """A run from elsewhere: its numbers anew where it brought records, else what it said."""
    if not records:
        return before
    task = load_task(str(before["task"]))
    expected = Counter(record.subject for record in records)
    now = {**before, **metrics.summarize(task, in_order(task, records), expected)}
    if path is not None and now != before:
        write_json(path, now)
    return now
