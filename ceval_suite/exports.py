"""Files that others read, written from finished runs: one function a format, by name.

A format refuses what it cannot hold; nothing is filled in and no file is written over.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ceval_suite import finished, frames, harness_folder, harness_results
from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.errors import ConfigError, DataError, RunError, unknown
from ceval_suite.files import Files, find_files
from ceval_suite.prepare import Selection
from ceval_suite.schema import Record
from ceval_suite.specs import Task


@dataclass(frozen=True)
class Wanted:
    """What to export: finished runs, or what is chosen of a task where the format needs no run."""

    runs: tuple[Path, ...] = ()
    task: str | None = None
    data: Path | None = None
    chosen: Selection = field(default_factory=Selection)

    def side(self, format: str) -> Side:
        """The run.

        Raises:
            ConfigError: only a task was given, or several runs.
        """
        if len(self.runs) != 1:
            raise ConfigError(f"--as {format} exports a run; give a run folder.")
        return finished.run_in(self.runs[0])


def export(format: str, wanted: Wanted, out: Path) -> str:
    """Write one file, or what else the format is, and say in a sentence what is in it.

    Raises:
        ConfigError: unknown format, or neither a run nor a task.
        UserError: something that the format cannot hold, or `out` is there already.
    """
    known = [*FORMATS, *TABLES, *FOLDERS]
    if format not in known:
        raise ConfigError(unknown("export format", format, known))
    if (not wanted.runs) == (wanted.task is None):
        raise ConfigError("give a run folder or --task NAME, one of the two.")
    if wanted.task is None and wanted.chosen != Selection(data=wanted.chosen.data):
        raise ConfigError("--protocol, --shots, --split, --subjects and --limit go with --task.")
    if format in FOLDERS:
        return FOLDERS[format](wanted, out)
    if out.exists():
        raise RunError(f"{out} is there already; give another --output, or delete it.")
    partial = out.with_name(f".{out.name}.partial")
    if format in TABLES:
        if wanted.task is not None:
            raise ConfigError(f"--as {format} exports runs; give run folders.")
        out.parent.mkdir(parents=True, exist_ok=True)
        sentence = TABLES[format](wanted.runs, partial)
    else:
        content, sentence = FORMATS[format](wanted)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
    os.replace(partial, out)
    return sentence


# lm-evaluation-harness: results of runs, and tasks


def lm_eval_results(wanted: Wanted, out: Path) -> str:
    """Results and samples of runs, in lm-eval's own schema.

    Raises:
        UserError: no run, or one that is not labelled.
    """
    if not wanted.runs:
        raise ConfigError("--as lm-eval exports runs; give run folders.")
    folders = frames.folders(wanted.runs)
    said = [harness_results.write(run, out, wanted.data) for run in folders]
    return "; ".join(said) if len(said) < 3 else f"{len(said)} runs, the last: {said[-1]}"


def lm_eval_tasks(wanted: Wanted, out: Path) -> str:
    """A folder of lm-eval tasks that ask what a task, or a run, asks.

    Raises:
        UserError: several runs, or nothing that lm-eval can score.
    """
    if wanted.task is not None:
        return harness_folder.of_task(wanted.task, wanted.chosen, out)
    return harness_folder.of_run(wanted.side("lm-eval-tasks").path, out, wanted.data)


# C-Eval's submission: {"<handle>": {"0": "A", …}, …}, every answer of the test split
# (hkust-nlp/ceval, README and submission_example.json)


def ceval_submission(wanted: Wanted) -> tuple[str, str]:
    """The predictions of a whole C-Eval test run, as its site takes them.

    Raises:
        RunError: not such a run, limited, incomplete, or an item without exactly one letter.
    """
    side = wanted.side("ceval-submission")
    about, where = side.about, side.path
    if about.get("task") != "ceval" or about.get("split") != "test":
        raise RunError(
            f"{where} is a run of {about.get('task')} {about.get('split')}; a submission needs "
            "one of ceval with --split test."
        )
    if about.get("limit") is not None:
        raise RunError(
            f"{where} has only the first {about['limit']} items of each subject; a submission "
            "needs all: run again without --limit."
        )
    if about.get("subset"):
        raise RunError(
            f"{where} is of a subset of the items; a submission needs all: run again without "
            "--items and --budget."
        )
    task = load_task("ceval")
    answers = submission(task, side)
    content = json.dumps(answers, ensure_ascii=False, indent=4) + "\n"
    total = sum(map(len, answers.values()))
    return content, f"{total:,} answers to {len(answers)} subjects"


def submission(task: Task, side: Side) -> dict[str, dict[str, str]]:
    """Subject → row → letter, in the order of the task's table; every row of the test split.

    Raises:
        RunError: an unknown or missing subject, row or answer.
    """
    rows = rows_by_subject(side)
    for subject in rows:
        if subject not in task.subjects:
            raise RunError(f"{side.path}: " + unknown("subject", subject, task.subjects))
    silent = [r.id for r in side.records.values() if not r.prediction]
    if silent:
        raise RunError(
            f"{side.path}: {len(silent)} items are unanswered ({_some(silent)}); the site wants a "
            "letter for each, and none is made up."
        )
    return {
        name: _letters(side, name, rows.get(name, {}), subject.counts["test"], subject.labels)
        for name, subject in task.subjects.items()
    }


def rows_by_subject(side: Side) -> dict[str, dict[int, Record]]:
    """Subject → row → record, of a run whose items are `<task>/<split>/<subject>/<row>`.

    Raises:
        RunError: a record whose id is not of this run's task and split.
    """
    out: defaultdict[str, dict[int, Record]] = defaultdict(dict)
    start = [str(side.about.get("task")), str(side.about.get("split"))]
    for record in side.records.values():
        *head, subject, row = record.id.split("/")
        if head != start or subject != record.subject or not row.isdecimal():
            raise RunError(f"{side.path}: item {record.id} does not belong to this run; delete it.")
        out[subject][int(row)] = record
    return dict(out)


def _letters(
    side: Side, subject: str, records: Mapping[int, Record], count: int, labels: str
) -> dict[str, str]:
    lack = [str(row) for row in range(count) if row not in records]
    if lack:
        raise RunError(
            f"{side.path}: subject {subject} lacks {len(lack)} of {count} answers (rows "
            f"{_some(lack)}); finish the run with the command that started it, all subjects."
        )
    if len(records) > count:
        raise RunError(
            f"{side.path}: subject {subject} has {len(records)} answers where the test split has "
            f"{count} items; score the published files again."
        )
    for record in records.values():
        if len(record.prediction) != 1 or record.prediction[0] not in tuple(labels):
            raise RunError(
                f"{side.path}: item {record.id} is answered by '{''.join(record.prediction)}', "
                f"which is not one of {', '.join(labels)}; the site takes single letters."
            )
    return {str(row): records[row].prediction[0] for row in range(count)}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


# open questions: for a human or a judge, never scored here


def open_questions(wanted: Wanted) -> tuple[str, str]:
    """One JSON line for each question that no rule can score, with its reference answer.

    With a run, `text` is what its model wrote to the question, else null.

    Raises:
        UserError: the task has no such questions, or their files are not there or broken.
    """
    side = None if wanted.task is not None else wanted.side("open-questions")
    task = load_task(str(side.about.get("task")) if side else str(wanted.task))
    if not task.open_questions:
        raise ConfigError(f"task '{task.name}' has no open questions; gaokao has.")
    files = find_files(task, wanted.data or (finished.data_of(side) if side else None))
    texts = {record.id: record.text for record in side.records.values()} if side else {}
    lines = [
        line | {"text": texts.get(line["id"])}
        for name in _open_files(task, files)
        for line in _open_file(task, files, name)
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    written = sum(line["text"] is not None for line in lines)
    said = f", {written:,} with the model's text" if side else ""
    return content, f"{len(lines):,} open questions{said}; none of them is scored"


def _open_files(task: Task, files: Files) -> list[str]:
    names = sorted(
        name.removeprefix(files.prefix) for name in files.names if name.startswith(files.prefix)
    )
    for layout in task.open_questions:
        found = [name for name in names if any(_matches(name, pattern) for pattern in layout)]
        if found:
            return found
    patterns = [pattern for layout in task.open_questions for pattern in layout]
    folders = " or ".join(dict.fromkeys(pattern.split("/")[0] for pattern in patterns))
    raise DataError(
        f"{files.where('')} has no open questions (no {folders}); run 'ceval-suite data fetch "
        f"{task.name}' or give --data the whole benchmark."
    )


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _open_file(task: Task, files: Files, name: str) -> Iterator[dict[str, Any]]:
    stem, where = PurePosixPath(name).stem, files.where(name)
    try:
        examples = json.loads(files.read(name).decode("utf-8-sig"))["example"]
        for row, example in enumerate(examples):
            key = "standard_answer" if "standard_answer" in example else "answer"
            yield {
                "id": f"{task.name}/open/{stem}/{row}",
                "file": stem,
                "year": str(example.get("year", "")),
                "category": str(example.get("category", "")),
                "question": str(example["question"]),
                "reference": example[key],
                "analysis": str(example.get("analysis", "")),
                "points": example.get("score"),
            }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: not a file of open questions ({error!r}); fetch the benchmark again."
        ) from error


FORMATS: dict[str, Callable[[Wanted], tuple[str, str]]] = {
    "ceval-submission": ceval_submission,
    "open-questions": open_questions,
}
"""Name → what makes the content of the file, and says in a sentence what is in it."""

TABLES: dict[str, Callable[[Sequence[Path], Path], str]] = {
    "csv": frames.write_csv,
    "parquet": frames.write_parquet,
}
"""Name → what writes the records of runs as one table."""

FOLDERS: dict[str, Callable[[Wanted, Path], str]] = {
    "lm-eval": lm_eval_results,
    "lm-eval-tasks": lm_eval_tasks,
}
"""Name → what writes several files into a folder."""
