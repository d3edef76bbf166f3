"""A task read, checked and ready to render: everything about a run that needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ceval_suite.catalog import load_task, load_template
from ceval_suite.circular import can_turn
from ceval_suite.data import Reader
from ceval_suite.errors import ConfigError, DataError, unknown
from ceval_suite.exams import parts
from ceval_suite.files import find_files
from ceval_suite.prompt import Renderer, Wrap
from ceval_suite.protocol import fingerprint, planned
from ceval_suite.records import folder_name
from ceval_suite.request import Prompt
from ceval_suite.schema import Item
from ceval_suite.specs import Task, Template
from ceval_suite.subset import Subset, draw


@dataclass(frozen=True)
class Selection:
    """What of a task is asked for; None means the task's or the template's own.

    `items` are drawn by `seed` from all that can be scored. `budget` is what run.json says of how
    their number was chosen.
    """

    protocol: str | None = None
    shots: int | None = None
    split: str | None = None
    subjects: Sequence[str] | None = None
    limit: int | None = None
    data: str | Path | None = None
    chat: bool = False
    circular: bool = False
    items: int | None = None
    seed: int = 0
    budget: Mapping[str, Any] | None = None


@dataclass
class Prepared:
    """A task read, checked and ready to render.

    `plan` holds the prompts of all items where they were fitted for several models at once, by
    item id; else None, and each model's own context decides.
    """

    task: Task
    protocol: str
    template: Template
    split: str
    shots: int
    limit: int | None
    chat: bool
    subjects: list[str]
    items: dict[str, list[Item]]
    shown: dict[str, list[Item]]
    data_sha256: str
    source: str
    fingerprint: str
    not_scored: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    plan: Mapping[str, Prompt] | None = None
    planned_for: Sequence[str] = ()
    circular: bool = False
    subset: Subset | None = None
    budget: Mapping[str, Any] | None = None

    def renderer(self, subject: str, wrap: Wrap | None = None) -> Renderer:
        """The renderer of one subject."""
        shown = self.shown[subject]
        return Renderer(self.task, self.template, subject, shown, wrap, self.circular)

    def scored(self) -> list[Item]:
        """Items the template's method can answer, in order; sub-questions that are asked apart."""
        apart = self.template.methods.get("blanks") in ("chain", "forced")
        items = [item for s in self.subjects for item in self.items[s]]
        asked = [part for item in items for part in (parts(item) if apart else [item])]
        return [item for item in asked if self.template.method(item)]

    def with_plan(self, prompts: Sequence[Prompt], models: Sequence[str]) -> Prepared:
        """The same task with the prompts of its scored items fixed, under a fingerprint of its own.

        So planned runs are never mixed with others, and those of one plan are equal to the byte.
        """
        return replace(
            self,
            plan={prompt.item.id: prompt for prompt in prompts},
            planned_for=models,
            fingerprint=planned(self.fingerprint, prompts),
        )

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return folder_name(self.task.name, self.split, self.shots, self.fingerprint)

    def about(self) -> dict[str, Any]:
        """What run.json says about the question put to the model."""
        return {
            "task": self.task.name,
            "protocol": self.protocol,
            "split": self.split,
            "shots": self.shots,
            "limit": self.limit,
            "subset": self.subset and self.subset.about(),
            **({"budget": self.budget} if self.budget else {}),
            "chat": self.chat,
            "circular": self.circular,
            "same_shots": list(self.planned_for),
            "shots_held": {
                s: len(shots) for s, shots in self.shown.items() if len(shots) != self.shots
            },
            "subjects": self.subjects if len(self.subjects) < len(self.task.subjects) else None,
            "data": {"sha256": self.data_sha256, "source": self.source},
            "methods": self.template.methods,
            "note": self.template.note,
            "not_scored": self.not_scored,
            "expected": dict(Counter(i.subject for i in self.scored() for _ in i.record_ids())),
        }


def prepare(name: str, chosen: Selection) -> Prepared:
    """Read and check everything about a task that needs no model.

    Raises:
        ConfigError: unknown task, protocol or subject; shots the protocol does not have.
        DataError: files missing, incomplete or broken.
    """
    task = load_task(name)
    protocol, template = load_template(task, chosen.protocol)
    split = chosen.split or task.split
    if split not in task.source.files:
        raise ConfigError(f"task '{name}': " + unknown("split", split, task.source.files))
    shots = _shots(task, protocol, template, chosen.shots)
    if shots and split == task.shot_split:
        raise DataError(
            f"task '{name}': split '{split}' holds the shots themselves and is never scored; "
            f"score {task.split} instead."
        )
    subjects = _subjects(task, template, chosen.subjects)
    reader = Reader(task, find_files(task, chosen.data))
    items = {s: reader.items(s, split)[: chosen.limit] for s in subjects}
    shown = {s: _shown(task, s, reader.shots(s), shots) if shots else [] for s in subjects}
    if chosen.circular:
        _check_turns(name, protocol, template, items)
    scorable = {s: [i for i in items[s] if template.method(i)] for s in subjects}
    subset = _subset(name, scorable, chosen)
    not_scored = {
        s: dict(Counter(i.kind for i in items[s] if not template.method(i))) for s in subjects
    }
    return Prepared(
        task=task,
        protocol=protocol,
        template=template,
        split=split,
        shots=shots,
        limit=chosen.limit,
        chat=chosen.chat,
        subjects=subjects,
        items=draw(scorable, subset.items, subset.seed) if subset else items,
        shown=shown,
        data_sha256=reader.sha256,
        source=str(reader.files.place),
        fingerprint=fingerprint(
            task,
            template,
            data_sha256=reader.sha256,
            split=split,
            subjects=subjects,
            limit=chosen.limit,
            shots=shots,
            chat=chosen.chat,
            circular=chosen.circular,
            subset=(subset.items, subset.seed) if subset else None,
        ),
        subset=subset,
        budget=chosen.budget,
        circular=chosen.circular,
        not_scored={s: kinds for s, kinds in not_scored.items() if kinds},
    )


def _subset(name: str, scorable: Mapping[str, Sequence[Item]], chosen: Selection) -> Subset | None:
    """What is to be drawn; None where that is everything."""
    if chosen.items is None:
        return None
    if chosen.limit is not None:
        raise ConfigError(f"task '{name}': --items and --limit exclude each other; give one.")
    of = sum(map(len, scorable.values()))
    if chosen.items >= of:
        return None
    sizes = {s: sum(len(i.record_ids()) for i in some) for s, some in scorable.items()}
    return Subset(chosen.items, of, chosen.seed, sizes)


def _check_turns(
    name: str, protocol: str, template: Template, items: Mapping[str, list[Item]]
) -> None:
    every = (item for some in items.values() for item in some)
    if not any(template.method(item) == "letters" and can_turn(item) for item in every):
        raise ConfigError(
            f"task '{name}': --circular turns the options of questions that are answered by one "
            f"letter and print their options apart, and '{protocol}' has none; drop it."
        )


def _shots(task: Task, protocol: str, template: Template, asked: int | None) -> int:
    fixed = template.shots
    if fixed is not None:
        if asked not in (None, fixed):
            raise ConfigError(
                f"task '{task.name}': protocol '{protocol}' is {fixed}-shot; drop --shots {asked}."
            )
        return fixed
    shots = task.shots if asked is None else asked
    if shots and task.shot_split is None:
        raise ConfigError(f"task '{task.name}' has no shots to show; drop --shots {asked}.")
    return shots


def _shown(task: Task, subject: str, shots: list[Item], wanted: int) -> list[Item]:
    # AGIEval's csv holds three to five shots by file: as many as there are, up to the wanted number
    if len(shots) < wanted and task.source.shots_file is None:
        raise ConfigError(
            f"task '{task.name}': {subject} has {len(shots)} shots, {wanted} were asked for."
        )
    return shots[:wanted]


def _subjects(task: Task, template: Template, asked: Sequence[str] | None) -> list[str]:
    allowed = [s for s in task.subjects if template.subjects is None or s in template.subjects]
    if not allowed:
        raise ConfigError(f"task '{task.name}': this protocol covers none of its subjects.")
    if asked is None:
        return allowed
    for subject in asked:
        if subject not in task.subjects:
            raise ConfigError(f"task '{task.name}': " + unknown("subject", subject, task.subjects))
        if subject not in allowed:
            raise ConfigError(f"task '{task.name}': this protocol leaves out '{subject}'.")
    return [s for s in allowed if s in asked]
