"""What lm-evaluation-harness calls our tasks: its own names where it asks the same, else ours.

A name of its own stands for its own prompts: only runs under the `lm-eval` wording bear it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ceval_suite import catalog
from ceval_suite.specs import Task

PREFIX = "ceval_suite_"
WORDING = "lm-eval"

THEIRS = {
    ("mmlu", "test"): "mmlu",
    ("cmmlu", "test"): "cmmlu",
    ("ceval", "val"): "ceval-valid",
    ("agieval", "test"): "agieval",
}
"""Task and split → the group that lm-eval has for them (lm_eval/tasks, 0.4.13)."""

VERSIONS = {"mmlu": 1.0, "cmmlu": 1.0, "ceval-valid": 2.0, "agieval": 1.0}
"""Versions of the tasks in these groups."""


@dataclass(frozen=True)
class Meant:
    """What a name of lm-eval stands for; `subject` is None for the group of all subjects."""

    task: str
    protocol: str
    split: str
    subject: str | None = None


def group_name(task: Task, protocol: str, split: str) -> str:
    """The group of all subjects of a task under a wording.

    >>> group_name(catalog.load_task("ceval"), "lm-eval", "val")
    'ceval-valid'
    >>> group_name(catalog.load_task("ceval"), "official", "val")
    'ceval_suite_ceval'
    """
    if protocol == WORDING and (task.name, split) in THEIRS:
        return THEIRS[task.name, split]
    wording = "" if protocol == task.protocol else f"_{protocol}"
    return f"{PREFIX}{task.name}{wording}" + ("" if split == task.split else f"_{split}")


def task_name(group: str, subject: str) -> str:
    """The task of one subject.

    >>> task_name("agieval", "aqua-rat")
    'agieval_aqua_rat'
    """
    return f"{group}_{subject.replace('-', '_') if group == 'agieval' else subject}"


def category_name(group: str, category: str) -> str:
    """The group of one category's subjects.

    >>> category_name("mmlu", "Social Sciences")
    'mmlu_social_sciences'
    """
    return f"{group}_{re.sub(r'[^a-z0-9]+', '_', category.lower()).strip('_')}"


def meant(name: str) -> Meant | None:
    """What a name stands for; None where it is no task of ours.

    >>> meant("cmmlu_agronomy")
    Meant(task='cmmlu', protocol='lm-eval', split='test', subject='agronomy')
    """
    return _known().get(name)


def is_part(name: str) -> bool:
    """Whether a name is that of a group of some subjects, or of another average of all.

    >>> is_part("mmlu_social_sciences"), is_part("ceval_suite_cmmlu_micro"), is_part("hellaswag")
    (True, True, False)
    """
    return name in _parts()


@cache
def _parts() -> frozenset[str]:
    out = {"agieval_cn", "agieval_en", "agieval_nous"}
    for one in map(catalog.load_task, catalog.task_names()):
        for group, _, _ in _groups(one):
            some = (*one.categories, *one.groups, "micro", "macro")
            out |= {category_name(group, name) for name in some}
    return frozenset(out)


@cache
def _known() -> dict[str, Meant]:
    out: dict[str, Meant] = {}
    for one in map(catalog.load_task, catalog.task_names()):
        for group, protocol, split in _groups(one):
            out.setdefault(group, Meant(one.name, protocol, split))
            for subject in one.subjects:
                found = Meant(one.name, protocol, split, subject)
                out.setdefault(task_name(group, subject), found)
    return out


def _groups(task: Task) -> Iterator[tuple[str, str, str]]:
    for protocol in catalog.load_prompts(task.prompt):
        for split in task.source.files:
            yield group_name(task, protocol, split), protocol, split
