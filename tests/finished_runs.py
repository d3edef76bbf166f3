"""Run folders made by hand: the items of a task, answered as a test wants, without a model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ceval_suite.prepare import Prepared
from ceval_suite.records import RunFolder, write_json
from ceval_suite.schema import Item, Record

Answers = Callable[[Item], Sequence[str]]
"""What is answered to an item: one string for each of its records."""


def gold(item: Item) -> list[str]:
    """Everything right."""
    return [*item.answer] if item.kind == "blanks" else ["".join(item.answer)]


def nothing(item: Item) -> list[str]:
    """No answer at all."""
    return [""] * len(gold(item))


def guessing(seed: int) -> Answers:
    """Answers that are drawn from the labels; every third question is answered right."""
    rng = random.Random(seed)

    def answers(item: Item) -> list[str]:
        def one(right: str) -> str:
            if rng.random() < 1 / 3:
                return right
            count = rng.choice([1, 2, 3]) if item.kind == "multi" else 1
            return "".join(sorted(rng.sample(item.labels, count)))

        return [one(right) for right in gold(item)]

    return answers


def record(id: str, subject: str, answer: Sequence[str], prediction: str, **more: Any) -> Record:
    """A record whose prediction is a string of letters, all of which must be right."""
    given, labelled = [*prediction], bool(answer)
    right = given == [*answer]
    share = 1.0 if right else 0.0
    fields: dict[str, Any] = {
        "correct": right if labelled else None,
        "score": share if labelled else None,
        "logits": {},
        "logprobs": {},
        "choice_mass": None,
        "tie": False,
        "text": None,
        "shots": 0,
        "prompt_tokens": 10,
        "prompt_sha256": "",
    }
    return Record(id=id, subject=subject, answer=[*answer], prediction=given, **{**fields, **more})


def records_of(item: Item, given: Sequence[str], partial: float = 0.0) -> list[Record]:
    """The records of one item; some of several right letters and no wrong one earn `partial`."""
    if item.kind == "blanks":
        return [
            record(id, item.subject, [right], one)
            for id, right, one in zip(item.record_ids(), item.answer, given, strict=True)
        ]
    (one,) = given
    found = record(item.id, item.subject, item.answer, one)
    if item.kind == "multi" and not found.correct and one and set(one) <= set(item.answer):
        found = record(item.id, item.subject, item.answer, one, score=partial)
    return [found]


def write(
    folder: Path, about: dict[str, Any], records: Sequence[Record], model: str = "scripted"
) -> Path:
    """A run folder with these records, as `run` would leave it, but for summary.json."""
    who = {"protocol_sha256": about.pop("protocol_sha256", "0" * 64), "model": model}
    with RunFolder(folder, who, about) as run:
        run.update({})
    names = [f.name for f in fields(Record)]
    rows = ({name: getattr(one, name) for name in names} for one in records)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def answered(
    prepared: Prepared, out: Path, answers: Answers, *, keep: Callable[[Record], bool] | None = None
) -> Path:
    """A run folder in which all items of a prepared task are answered."""
    table = prepared.task.subjects
    records = [
        one
        for subject in prepared.subjects
        for item in prepared.items[subject]
        for one in records_of(item, answers(item), table[subject].partial)
        if keep is None or keep(one)
    ]
    about = prepared.about() | {"protocol_sha256": prepared.fingerprint}
    folder = write(out / "scripted" / prepared.folder, about, records)
    write_json(folder / "summary.json", {"complete": True, "labels": True})
    return folder
