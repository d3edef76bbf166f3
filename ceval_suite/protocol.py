"""Protocol fingerprints: when two numbers may stand in one column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ceval_suite.request import Prompt
from ceval_suite.specs import Task, Template
from ceval_suite.subset import RULE

_NOT_ASKED = {"subcategory", "points", "sub_questions", "counts"}
"""Keys of the subject table that say nothing about the question put to the model."""


def fingerprint(
    task: Task,
    template: Template,
    *,
    data_sha256: str,
    split: str,
    subjects: Sequence[str],
    limit: int | None,
    shots: int,
    chat: bool,
    circular: bool = False,
    subset: tuple[int, int] | None = None,
) -> str:
    """SHA-256 of all that changes the question put to a model, and nothing about the model.

    `subset` is the number of items and the seed, where not all are asked.
    Equal fingerprints mean that two numbers may stand in one column. Wording notes, titles of
    sources and other prose do not count.
    """
    wording = template.model_dump(exclude={"source", "note"})
    content: dict[str, Any] = {
        "task": task.name,
        "version": task.version,
        "data": data_sha256,
        "split": split,
        "columns": task.source.columns.model_dump() if task.source.columns else None,
        "subjects": {s: task.subjects[s].model_dump(exclude=_NOT_ASKED) for s in subjects},
        "limit": limit,
        "shots": shots,
        "chat": chat,
        "template": wording,
    }
    if circular:  # not a key where it is not asked for, so that fingerprints stay what they were
        content["circular"] = True
    if subset is not None:
        content["subset"] = [*subset, RULE]
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def planned(fingerprint: str, prompts: Sequence[Prompt]) -> str:
    """The fingerprint of a protocol whose prompts were fitted for several models at once."""
    content = [fingerprint, sorted([prompt.item.id, prompt.sha256] for prompt in prompts)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
