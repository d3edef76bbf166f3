"""Items and a template → prompts: render, wrap for chat, drop whole shots until it fits.

A prompt is header, then question + cue + lead + answer + join for every shot, then question + cue.
Text before the first difference between items (header and shots) is rendered once per subject and
number of shots. Nothing is ever cut inside a question or a shot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2

from ceval_suite.catalog import environment
from ceval_suite.errors import PromptError
from ceval_suite.schema import Item, Request
from ceval_suite.specs import Subject, Task, Template

Wrap = Callable[[str], str]
"""A user's turn → the text up to the start of the assistant's turn, special tokens included."""


@cache
def _compiled(text: str) -> jinja2.Template:
    return environment().from_string(text)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: `text` is the protocol's own; `lead` is scored after it, before a letter.

    `continuations` are what is scored after `text + lead`, one for each of `labels`; both are
    empty when the template's method cannot answer the item's kind.
    """

    item: Item
    text: str
    lead: str
    continuations: tuple[str, ...]
    shots: int
    chat: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the text put before the continuations."""
        return hashlib.sha256((self.text + self.lead).encode()).hexdigest()

    def request(self) -> Request:
        """The prompt as a backend takes it."""
        return Request(
            id=self.item.id,
            context=self.text + self.lead,
            continuations=self.continuations,
            template_tokens=self.chat,
        )


@dataclass
class Renderer:
    """Renders the prompts of one subject under one template."""

    task: Task
    template: Template
    subject: str
    shots: Sequence[Item]
    wrap: Wrap | None = None
    _heads: dict[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str])
    _row: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self._row = {**_table_row(self.task.subjects[self.subject]), "name": self.subject}

    def render(self, item: Item, shots: Sequence[Item] | None = None) -> Prompt:
        """The prompt of an item with the given shots (by default all of them).

        Raises:
            PromptError: a template names something an item does not have.
        """
        shown = self.shots if shots is None else shots
        parts = self.template.parts(len(shown))
        key = tuple(shot.id for shot in shown)
        if key not in self._heads:
            self._heads[key] = self._head(parts, shown)
        values = self._values(item, number=len(shown) + 1, is_shot=False)
        body = self._heads[key] + self._part(parts, "question", values)
        cue = self._part(parts, "cue", values)
        text = body + cue if self.wrap is None else self.wrap(body) + cue.lstrip()
        return Prompt(
            item=item,
            text=text,
            lead=self._part(parts, "lead", values),
            continuations=self._continuations(item, parts, values),
            shots=len(shown),
            chat=self.wrap is not None,
        )

    def _head(self, parts: dict[str, str], shown: Sequence[Item]) -> str:
        return "".join(text for _, text in self._pieces(parts, shown))

    def _pieces(self, parts: dict[str, str], shown: Sequence[Item]) -> Iterator[tuple[str, str]]:
        yield "header", self._part(parts, "header", self._values(None, number=0, is_shot=False))
        for number, shot in enumerate(shown, start=1):
            values = self._values(shot, number=number, is_shot=True)
            values |= {"label": shot.answer_text, "option": _gold_option(shot)}
            for part in ("question", "cue", "lead", "answer"):
                yield part, self._part(parts, part, values)
            yield "join", self._part(parts, "join", values)

    def shown_answers(self) -> list[tuple[int, int]]:
        """From and to which character of a prompt each shot's answer stands (no chat template)."""
        spans: list[tuple[int, int]] = []
        at = 0
        for part, text in self._pieces(self.template.parts(len(self.shots)), self.shots):
            spans += [(at, at + len(text))] if part == "answer" else []
            at += len(text)
        return spans

    def _values(self, item: Item | None, **extra: Any) -> dict[str, Any]:
        pairs = zip(item.labels, item.choices, strict=True) if item and item.choices else ()
        return {
            "subject": self._row,
            "task": self.task.name,
            "item": item,
            "choices": list(pairs),
            **extra,
        }

    def _part(self, parts: dict[str, str], part: str, values: dict[str, Any]) -> str:
        try:
            return _compiled(parts[part]).render(values)
        except (jinja2.TemplateError, TypeError, LookupError, ValueError, ArithmeticError) as error:
            item = values.get("item")
            at = item.id if isinstance(item, Item) else f"{self.task.name}/{self.subject}"
            raise PromptError(
                f"prompts/{self.task.prompt}.yaml: {part}: cannot be rendered for {at} ({error})."
            ) from error

    def _continuations(
        self, item: Item, parts: dict[str, str], values: dict[str, Any]
    ) -> tuple[str, ...]:
        method = self.template.methods.get(item.kind)
        if method not in ("letters", "continuation", "either") or not item.labels:
            return ()
        options = item.options if len(item.options) == len(item.labels) else item.labels
        return tuple(
            self._part(parts, "answer", values | {"label": label, "option": option})
            for label, option in zip(item.labels, options, strict=True)
        )

    def fit(self, item: Item, count: Callable[[str], int], limit: int) -> Prompt:
        """The prompt with as many whole shots as fit into `limit` tokens.

        `count` gives the tokens of a text. One token is kept free for the letter. The benchmark's
        own rule decides which shots go: the last ones, or (CMMLU, mp_utils.py) all of the longest
        length at once and at last the header.

        Raises:
            PromptError: the question alone does not fit.
        """
        room = limit - 1

        def fits(prompt: Prompt) -> bool:
            return count(prompt.text + prompt.lead) <= room

        prompt = self.render(item)
        if fits(prompt):
            return prompt
        shown = list(self.shots)
        lengths = {id(shot): count(self._shot_text(shot)) for shot in shown}
        while shown:
            if self.template.fit == "drop_longest":
                longest = max(lengths[id(shot)] for shot in shown)
                shown = [shot for shot in shown if lengths[id(shot)] != longest]
            else:
                shown.pop()
            prompt = self.render(item, shown)
            if fits(prompt):
                return prompt
        if self.template.fit == "drop_longest":
            bare = self._without_header(item)
            if fits(bare):
                return bare
        raise PromptError(
            f"{item.id}: {count(prompt.text + prompt.lead)} tokens even without shots, where the "
            f"model reads {limit}; leave the subject out or use a model with a longer context."
        )

    def _shot_text(self, shot: Item) -> str:
        parts = {**self.template.parts(1), "header": ""}
        return self._head(parts, [shot])

    def _without_header(self, item: Item) -> Prompt:
        template = self.template.model_copy(update={"header": "", "zero_shot": None})
        return Renderer(self.task, template, self.subject, (), self.wrap).render(item)


def _gold_option(shot: Item) -> str:
    gold = [o for o, label in zip(shot.options, shot.labels, strict=False) if label in shot.answer]
    return gold[0] if gold else ""


_NOT_ASKED = {"subcategory", "points", "sub_questions", "counts"}
"""Keys of the subject table that say nothing about the question put to the model."""


def _table_row(row: Subject) -> dict[str, Any]:
    return row.model_dump(include={"title", "category", "language", "exam", "type"})


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
) -> str:
    """SHA-256 of all that changes the question put to a model, and nothing about the model.

    Equal fingerprints mean that two numbers may stand in one column. Wording notes, titles of
    sources and other prose do not count.
    """
    wording = template.model_dump(exclude={"source", "note"})
    content = {
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
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def planned(fingerprint: str, prompts: Sequence[Prompt]) -> str:
    """The fingerprint of a protocol whose prompts were fitted for several models at once."""
    content = [fingerprint, sorted([prompt.item.id, prompt.sha256] for prompt in prompts)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
