"""Items and a template → prompts: render, wrap for chat, drop whole shots until it fits.

A prompt is header, then question + cue + lead + answer + join for every shot, then question + cue.
Text before the first difference between items (header and shots) is rendered once per subject and
number of shots. Nothing is ever cut inside a question or a shot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jinja2

from ceval_suite.catalog import environment
from ceval_suite.circular import can_turn, turned
from ceval_suite.errors import PromptError
from ceval_suite.request import LEAST, LETTERS, Prompt, strings
from ceval_suite.schema import Item
from ceval_suite.specs import Method, Subject, Task, Template

Wrap = Callable[[str], str]
"""A user's turn → the text up to the start of the assistant's turn, special tokens included."""


@cache
def _compiled(text: str) -> jinja2.Template:
    return environment().from_string(text)


@dataclass
class Renderer:
    """Renders the prompts of one subject under one template."""

    task: Task
    template: Template
    subject: str
    shots: Sequence[Item]
    wrap: Wrap | None = None
    circular: bool = False
    _heads: dict[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str])
    _row: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self._row = {**_table_row(self.task.subjects[self.subject]), "name": self.subject}

    def render(
        self,
        item: Item,
        shots: Sequence[Item] | None = None,
        before: Sequence[str] | None = None,
        *,
        answers: bool = True,
    ) -> Prompt:
        """The prompt of an item with the given shots (by default all of them).

        `before` are the answers to the sub-questions before this one, where the model has given
        them already; else they are what it answers in the same call, or the gold ones. Without
        `answers` there are no continuations, for those who only want the text.

        Raises:
            PromptError: a template names something an item does not have.
        """
        shown = self.shots if shots is None else shots
        parts = self.template.parts(len(shown))
        values = self._values(item, number=len(shown) + 1, is_shot=False)
        body = self.head(shown) + self._part(parts, "question", values)
        cue = self._part(parts, "cue", values)
        text = body + cue if self.wrap is None else self.wrap(body) + cue.lstrip()
        method = self.template.method(item)
        follows = method == "chain" and item.part > 1 and before is None
        if item.part:
            given = () if method == "chain" and before is None else before or item.before
            text = self._steps(item, parts, values, text, given, follows=follows)
        writes = method in ("generate", "either")
        turns = self._turns(item, parts, shown, values) if method == "letters" and answers else ()
        return Prompt(
            item=item,
            text=text,
            lead="" if item.part or method == "generate" else self._part(parts, "lead", values),
            continuations=self._continuations(item, parts, values, method) if answers else (),
            shots=len(shown),
            chat=self.wrap is not None,
            method=method,
            max_new_tokens=self.template.max_new_tokens if writes else 0,
            stop=tuple(self.template.stop) if writes else (),
            read_as=tuple(self.template.read_as) if method in ("letters", "either") else (),
            after=f"{item.id.rpartition('#')[0]}#{item.part - 2}" if follows else "",
            bare=self._bare(item, values) if method == "continuation" else "",
            second=self._part(parts, "second", values) if method == "generate" else "",
            turns=turns,
        )

    def _turns(
        self, item: Item, parts: dict[str, str], shown: Sequence[Item], values: dict[str, Any]
    ) -> tuple[str, ...]:
        """The same prompt with the options in every other order of a circle."""
        if not (self.circular and can_turn(item)):
            return ()
        texts: list[str] = []
        for turn in range(1, len(item.labels)):
            other = turned(item, turn)
            pairs = list(zip(other.labels, other.choices, strict=True))
            values = values | {"item": other, "choices": pairs}
            body = self.head(shown) + self._part(parts, "question", values)
            cue = self._part(parts, "cue", values)
            text = body + cue if self.wrap is None else self.wrap(body) + cue.lstrip()
            texts.append(text + self._part(parts, "lead", values))
        return tuple(texts)

    def head(self, shots: Sequence[Item]) -> str:
        """The text that all items with these shots begin with, made once."""
        key = tuple(shot.id for shot in shots)
        if key not in self._heads:
            self._heads[key] = self._head(self.template.parts(len(shots)), shots)
        return self._heads[key]

    def _steps(
        self,
        item: Item,
        parts: dict[str, str],
        values: dict[str, Any],
        text: str,
        given: Sequence[str],
        *,
        follows: bool,
    ) -> str:
        """The text before the letter of a sub-question: those before it, or only what joins on."""

        def part(name: str, number: int, label: str = "") -> str:
            more = {"part": number, "parts": item.parts, "label": label, "option": label}
            return self._part(parts, name, values | more)

        if follows:
            return part("between", item.part - 1) + part("step", item.part)
        for number, label in enumerate(given[: item.part - 1], start=1):
            text += part("step", number)
            # an earlier sub-question that was not answered leaves its place empty
            text += (part("answer", number, label) if label else "") + part("between", number)
        return text + part("step", item.part)

    def _bare(self, item: Item, values: dict[str, Any]) -> str:
        if self.template.normalise != "pmi" or not item.choices:
            return ""
        return self._part({"bare": self.template.bare}, "bare", values)

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
        self, item: Item, parts: dict[str, str], values: dict[str, Any], method: Method | None
    ) -> tuple[str, ...]:
        if method is None or method == "generate":
            return ()
        if method == "sequence":
            found = strings(item.labels)
            values = values | {"option": ""}
            texts = [self._part(parts, "answer", values | {"label": label}) for label in found]
            end = self._part(parts, "end", values)
            return (*texts, *(text + end for text in texts))
        options = item.options if len(item.options) == len(item.labels) else item.labels
        return tuple(
            self._part(parts, "answer", values | {"label": label, "option": option})
            for label, option in zip(item.labels, options, strict=True)
        )

    def fit(
        self,
        item: Item,
        count: Callable[[str], int],
        limit: int,
        before: Sequence[str] | None = None,
    ) -> Prompt:
        """The prompt with as many whole shots as fit into `limit` tokens.

        `count` gives the tokens of a text, `before` is what `render` takes. Room is kept for the
        letter, or for what the model is to write; where the question alone leaves less than that,
        it may write less. The benchmark's own rule decides which shots go: the last ones, or
        (CMMLU, mp_utils.py) all of the longest length at once and at last the header.

        Raises:
            PromptError: the question alone does not fit.
        """

        def fits(prompt: Prompt) -> bool:
            return all(count(text) <= limit - prompt.room for text in prompt.contexts())

        prompt = self.render(item, before=before)
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
            prompt = self.render(item, shown, before)
            if fits(prompt):
                return prompt
        if self.template.fit == "drop_longest":
            bare = self._without_header(item)
            if fits(bare):
                return bare
        left = limit - count(prompt.text + prompt.lead)
        if prompt.second:
            left = (left - LETTERS) // 2
        if prompt.max_new_tokens and left >= LEAST:
            return replace(prompt, max_new_tokens=left)
        raise PromptError(
            f"{item.id}: {count(prompt.text + prompt.lead)} tokens even without shots, where the "
            f"model reads {limit}; leave the subject out or use a model with a longer context."
        )

    def _shot_text(self, shot: Item) -> str:
        parts = {**self.template.parts(1), "header": ""}
        return self._head(parts, [shot])

    def _without_header(self, item: Item) -> Prompt:
        template = self.template.model_copy(update={"header": "", "zero_shot": None})
        circular = self.circular
        return Renderer(self.task, template, self.subject, (), self.wrap, circular).render(item)


def _gold_option(shot: Item) -> str:
    gold = [o for o, label in zip(shot.options, shot.labels, strict=False) if label in shot.answer]
    return gold[0] if gold else ""


def _table_row(row: Subject) -> dict[str, Any]:
    return row.model_dump(include={"title", "category", "language", "exam", "type"})
