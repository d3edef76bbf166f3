"""Results of lm-evaluation-harness as run folders of ours.

With samples there are records, and the protocol's fingerprint is that of our own `lm-eval` wording
exactly where every prompt and option is proved equal to what we would ask; else a fingerprint of
what was asked there, so that two imports of the same stand in one column, and never in another's.
Without samples there is a summary and nothing to pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ceval_suite import __version__, harness_asked, harness_files, harness_values, metrics, secrecy
from ceval_suite.catalog import load_task
from ceval_suite.errors import RunError
from ceval_suite.harness_asked import Asked
from ceval_suite.harness_files import Block, Row, number
from ceval_suite.records import RunFolder, folder_name, safe_name, write_json
from ceval_suite.schema import Record
from ceval_suite.specs import Task

CLOSE = 1e-6
"""How far a mean of samples may lie from the one in the results."""


@dataclass(frozen=True)
class Imported:
    """Run folders, and what has to be said of them."""

    folders: list[Path] = field(default_factory=list[Path])
    notes: list[str] = field(default_factory=list[str])


def imported(
    paths: Sequence[Path], out: Path, data: Path | None = None, model: str | None = None
) -> Imported:
    """Every task of ours in lm-eval's results files, as run folders below `out`.

    `model` names the model, in place of what the files say. What is there already is kept.

    Raises:
        RunError: nothing to import, a broken file, or samples that contradict their results.
    """
    found = Imported()
    strange: list[str] = []
    for path in harness_files.find(paths):
        blocks, names = harness_files.read(path)
        strange += names
        for block in blocks:
            _block(block, out, data, model or _name(block.model), found)
    if not found.folders:
        raise RunError(
            f"{', '.join(map(str, paths))}: no task that is known here ({_some(strange)}); mmlu, "
            "cmmlu, ceval-valid and agieval are, and the folders that 'export --as lm-eval-tasks' "
            "writes."
        )
    if strange:
        found.notes.append(f"not imported, no task of ours: {_some(strange)}")
    return found


def _some(names: Sequence[str]) -> str:
    some = list(dict.fromkeys(names))
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")


def _name(model: str) -> str:
    """A path's last part; a hub id as it is."""
    here = model.startswith(("/", ".", "~")) or "\\" in model
    return PurePath(model.replace("\\", "/")).name or model if here else model


def _block(block: Block, out: Path, data: Path | None, model: str, found: Imported) -> None:
    task = load_task(block.meant.task)
    told = f"{block.path.name}, {task.name}"
    written = [s for s in block.samples if not _scored(block.samples[s])]
    for subject in written:
        # what was written there is not judged again here
        del block.samples[subject], block.tasks[subject], block.names[subject]
    if written:
        found.notes.append(f"{told}: written answers are not imported ({', '.join(written)})")
    if not block.tasks and not block.groups:
        return
    shots = block.shots()
    if block.tasks and set(block.samples) == set(block.tasks):
        asked = harness_asked.asked_of(block, task, shots, data)
        records = [
            _record(block, task, subject, row, asked, shots)
            for subject in (s for s in task.subjects if s in block.samples)
            for row in block.samples[subject]
        ]
        _agree(block, records)
        expected = {s: len(rows) for s, rows in block.samples.items()}
        content = metrics.summarize(task, records, expected)
    else:
        asked, records = harness_asked.unseen(block, shots), []
        content = harness_values.values(block, task)
    about = _about(block, task, asked, shots)
    name = folder_name(task.name, block.meant.split, shots, asked.fingerprint)
    folder = out / safe_name(model) / name
    digest = hashlib.sha256(block.path.read_bytes()).hexdigest()
    who = {"protocol_sha256": asked.fingerprint, "model": model, "imported_sha256": digest}
    with RunFolder(folder, who, {"model": {"name": model}, **about}) as run:
        for record in records:
            if record.id not in run.done:
                run.append(record)
        if not records:
            run.update({})
    summary = _summary(block, task, model, asked, shots) | content
    write_json(folder / "summary.json", summary)
    found.folders.append(folder)
    found.notes.append(f"{told}: {asked.note}")


def _scored(rows: Sequence[Row]) -> bool:
    first = rows[0].get("filtered_resps")
    return (
        isinstance(first, list)
        and len(first) > 1
        and all(isinstance(r, list) and number(r[0] if r else None) is not None for r in first)
    )


# what was answered


def _record(block: Block, task: Task, subject: str, row: Row, asked: Asked, shots: int) -> Record:
    values = [number(one[0]) for one in row["filtered_resps"]]
    known = [value for value in values if value is not None]
    item = asked.items.get((subject, row["doc_id"]))
    labels = item.labels if item else tuple(task.subjects[subject].labels)
    if len(known) != len(values) or len(values) > len(labels):
        raise harness_asked.broken(block, subject, row, "filtered_resps")
    gold = [labels[g] for g in harness_asked.gold(block, subject, row) if g < len(labels)]
    best = max(known)
    prediction = labels[known.index(best)]
    correct = prediction in gold
    told = number(row.get("acc"))
    if told is not None and told != float(correct):
        raise harness_asked.broken(
            block, subject, row, f"acc is {told:g}, its log-probabilities say otherwise"
        )
    mass = math.fsum(map(math.exp, known))
    return Record(
        id=item.id if item else f"{task.name}/{block.meant.split}/{subject}/{row['doc_id']}",
        subject=subject,
        answer=gold,
        prediction=[prediction],
        correct=correct,
        score=float(correct),
        logits={},
        logprobs=dict(zip(labels, known, strict=False)),
        choice_mass=mass,
        tie=known.count(best) > 1,
        text=None,
        shots=shots,
        prompt_tokens=0,  # not said there
        prompt_sha256=harness_asked.texts(block, subject, row)[0],
        cluster=item.cluster if item else "",
    )


def _agree(block: Block, records: Sequence[Record]) -> None:
    """Samples must be those that the results are of."""
    for subject, row in block.tasks.items():
        told, _ = harness_files.metric(row)
        mine = [record for record in records if record.subject == subject]
        value = sum(bool(record.correct) for record in mine) / len(mine)
        size = block.size(subject)
        if size not in (None, len(mine)) or (told is not None and abs(told - value) > CLOSE):
            raise RunError(
                f"{block.path}: {block.names[subject]} has acc {told} of {size} items, its samples "
                f"{value:.6f} of {len(mine)}; give files of one run."
            )


# run.json and summary.json


def _about(block: Block, task: Task, asked: Asked, shots: int) -> dict[str, Any]:
    subjects = [s for s in task.subjects if s in block.tasks]
    base: dict[str, Any] = {
        "task": task.name,
        "protocol": asked.protocol,
        "split": block.meant.split,
        "shots": shots,
        "limit": block.limit,
        "chat": bool(block.content.get("chat_template")),
        "same_shots": [],
        "shots_held": {},
        "subjects": subjects if 0 < len(subjects) < len(task.subjects) else None,
        "data": {"sha256": "", "source": "lm-eval"},
        "methods": {},
        "note": "",
        "not_scored": {},
    }
    if asked.prepared is not None:
        base |= asked.prepared.about()
    config = block.content.get("config") or {}
    kept = ("model", "model_args", "model_dtype", "model_sha", "limit", "gen_kwargs")
    origin = {
        "from": "lm_eval",
        "version": block.content.get("lm_eval_version"),
        "file": block.path.name,
        "date": block.content.get("date"),
        "config": secrecy.shown({k: config.get(k) for k in kept}) if config else {},
        "groups": {name: dict(row) for name, row in block.groups.items()},
        "note": asked.note,
    }
    return {**base, "imported": origin, "ceval_suite": __version__}


def _summary(block: Block, task: Task, model: str, asked: Asked, shots: int) -> dict[str, Any]:
    about = _about(block, task, asked, shots)
    asked_keys = ("split", "shots", "limit", "chat", "same_shots", "not_scored", "imported")
    return {
        "task": task.name,
        "model": model,
        "protocol": asked.protocol,
        "protocol_sha256": asked.fingerprint,
        "complete": True,
        **{key: about[key] for key in asked_keys},
        "subjects_chosen": about["subjects"],
        "subjects_scored": len(block.tasks) or len(task.subjects),
        "subjects_total": len(task.subjects),
        "fewer_shots": 0,
        "tokens": {},
        "seconds": {},
        "engine": {"attention": "lm_eval"},
    }
