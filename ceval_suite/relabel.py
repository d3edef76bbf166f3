"""A run on items without labels, scored when labels are given: a new run folder beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ceval_suite import finished, summary
from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.data import Reader
from ceval_suite.errors import DataError, RunError, UserError, unknown
from ceval_suite.exports import rows_by_subject
from ceval_suite.files import Files
from ceval_suite.records import RunFolder, folder_name, read_json, write_json
from ceval_suite.schema import Item, Record
from ceval_suite.specs import Task
from ceval_suite.untrusted import from_json


@dataclass(frozen=True)
class Labels:
    """Subject → gold letters in row order, and where they were read."""

    place: Path
    letters: Mapping[str, list[str]]

    @property
    def sha256(self) -> str:
        """A hash of the labels themselves, whatever file they came in."""
        text = json.dumps(self.letters, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def score(folder: Path, labels: Path, out: Path | None = None) -> Path:
    """Score a finished run that had no labels; the run itself stays as it is.

    `labels` is a folder with one csv a subject, as the task's labelled splits have them, or a JSON
    file in the submission's schema (`{subject: {row: letter}}`). The new folder is named by a
    fingerprint that includes the labels, and lies beside the old one or below `out`.

    Returns:
        The new run folder.

    Raises:
        RunError: the run is unfinished or has labels, or the new folder is there already.
        DataError: labels are missing, of unknown subjects, of other counts, or no letters.
    """
    side = finished.run_in(folder)
    _check(side)
    task = load_task(str(side.about["task"]))
    rows = rows_by_subject(side)
    if not labels.exists():
        raise DataError(f"--labels {labels} does not exist.")
    read = _of_json if labels.suffix == ".json" and labels.is_file() else _of_csv
    found = read(task, side, list(rows), labels)
    records = [_scored(record, found.letters) for record in side.records.values()]
    fingerprint = hashlib.sha256(f"{side.protocol}\0{found.sha256}".encode()).hexdigest()
    about = side.about
    name = folder_name(task.name, about["split"], int(about["shots"]), fingerprint)
    target = (folder.parent if out is None else out) / name
    if target.exists():
        raise RunError(f"{target} is there already; delete it, or give another --out.")
    who = {**about["identity"], "protocol_sha256": fingerprint}
    kept = {k: v for k, v in about.items() if k not in ("format", "identity")}
    origin = {"place": str(found.place), "sha256": found.sha256, "run": str(folder)}
    kept |= {"labels_from": origin, "expected": {s: len(some) for s, some in rows.items()}}
    with RunFolder(target, who, kept) as run:
        for record in records:
            run.append(record)
    write_json(target / "summary.json", summary.of_run(kept, who, records))
    return target


def _check(side: Side) -> None:
    path = side.path / "summary.json"
    if not (path.is_file() and read_json(path).get("complete")):
        raise RunError(
            f"{side.path} is unfinished; finish it with the command that started it, then score it."
        )
    if any(record.correct is not None for record in side.records.values()):
        raise RunError(f"{side.path} has gold labels of its own; it is scored already.")


def _scored(record: Record, letters: Mapping[str, list[str]]) -> Record:
    answer = [letters[record.subject][int(record.id.rpartition("/")[2])]]
    correct = record.prediction == answer
    return replace(record, answer=answer, correct=correct, score=float(correct))


def _of_csv(task: Task, side: Side, subjects: list[str], place: Path) -> Labels:
    """Labels of csv files as the benchmark publishes them: its layout, one folder, or one file.

    The reader refuses other row counts, missing columns and labels that are no letters.
    """
    split = str(side.about["split"])
    if not place.is_dir() and place.suffix != ".csv":
        raise DataError(
            f"--labels {place} is neither a folder of csv files, nor a .csv or .json file; give "
            "one of them."
        )
    files, pattern = _csv_files(task, split, subjects, place)
    source = task.source.model_copy(update={"files": {split: pattern}})
    known = task.model_copy(update={"source": source, "unlabelled": [], "split": split})
    reader = Reader(known, files)
    items = {subject: reader.items(subject, split) for subject in subjects}
    _same_questions(side, items)
    return Labels(place, {s: [item.answer[0] for item in some] for s, some in items.items()})


def _csv_files(task: Task, split: str, subjects: list[str], place: Path) -> tuple[Files, str]:
    published = task.source.files[split]
    flat = PurePosixPath(published).name
    root = place if place.is_dir() else place.parent
    paths = root.rglob("*.csv") if place.is_dir() else [place]
    names = frozenset(path.relative_to(root).as_posix() for path in paths)
    places = [(p, q) for p in ("", f"{task.source.folder}/") for q in (published, flat)]
    for prefix, pattern in places:
        if any(prefix + pattern.format(subject=subject) in names for subject in subjects):
            break
    else:
        raise DataError(
            f"--labels {place} holds no {flat.format(subject=subjects[0])}; give the labelled "
            f"{split} files of {task.name}."
        )
    there = re.compile(re.escape(prefix + pattern).replace(re.escape("{subject}"), "([^/]+)"))
    for found in filter(None, map(there.fullmatch, sorted(names))):
        if found[1] not in task.subjects:
            raise DataError(f"{root / found[0]}: " + unknown("subject", found[1], task.subjects))
    return Files(root, prefix, names, lambda name: (root / name).read_bytes()), pattern


def _same_questions(side: Side, items: Mapping[str, list[Item]]) -> None:
    """Rows in another order would be scored wrongly; seen where the run's files still are there."""
    try:
        asked = finished.questions(side).items
    except UserError:
        return
    for subject, some in items.items():
        for one, other in zip(asked[subject], some, strict=False):
            if (one.question, one.choices) != (other.question, other.choices):
                raise DataError(
                    f"the labels for {one.id} stand beside another question; give labels in the "
                    "order of the published files."
                )


def _of_json(task: Task, side: Side, subjects: list[str], place: Path) -> Labels:
    split = str(side.about["split"])
    try:
        content: Any = from_json(place.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: not readable as JSON ({error}); give another file.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DataError(f"{place}: labels are {{subject: {{row: letter}}}}, this is not.")
    for subject in content:
        if subject not in task.subjects:
            raise DataError(f"{place}: " + unknown("subject", subject, task.subjects))
    missing = [subject for subject in subjects if subject not in content]
    if missing:
        raise DataError(f"{place}: no labels for subject {', '.join(missing[:5])}; add them.")
    return Labels(place, {s: _rows(task, split, s, content[s], place) for s in subjects})


def _rows(task: Task, split: str, subject: str, rows: dict[str, Any], place: Path) -> list[str]:
    count = task.subjects[subject].counts.get(split, len(rows))
    wanted = [str(row) for row in range(count)]
    if set(rows) != set(wanted):
        raise DataError(
            f"{place}: subject {subject} has {len(rows)} labels, not one for each of the rows 0 to "
            f"{count - 1}; give the labels of the whole split."
        )
    for row in wanted:
        if rows[row] not in tuple(task.subjects[subject].labels):
            raise DataError(
                f"{place}: subject {subject}, row {row}: label '{rows[row]}' is none of "
                f"{', '.join(task.subjects[subject].labels)}."
            )
    return [rows[row] for row in wanted]
