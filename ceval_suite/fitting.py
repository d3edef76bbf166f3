"""Items → prompts that fit into a model's context, by the benchmark's own rule."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ceval_suite.backends.base import Backend
from ceval_suite.errors import PromptError
from ceval_suite.prepare import Prepared
from ceval_suite.request import Prompt
from ceval_suite.schema import Item

COUNT_CHUNK = 2048
SPECIAL = 8
"""Special tokens that a tokenizer may add to a text, at most."""


class Context(Protocol):
    """How much a model reads, and how its tokenizer counts; a part of every backend."""

    @property
    def max_length(self) -> int:
        """Tokens the model reads at most, the letter included."""
        ...

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text as it would be put to the model."""
        ...


@dataclass(frozen=True)
class Joint:
    """The contexts of several models as one: what fits into it fits into each of them."""

    contexts: Mapping[str, Context]

    @property
    def max_length(self) -> int:
        """That of the model that reads least."""
        return min(context.max_length for context in self.contexts.values())

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """For each text the count of the model that has least room left with it.

        Counts of longer contexts are shifted, so that each reaches `max_length` with its own.
        """
        shortest = self.max_length
        counts = [
            [n - context.max_length + shortest for n in counted]
            for context in self.contexts.values()
            for counted in [context.count_tokens(texts, template_tokens=template_tokens)]
        ]
        return [max(column) for column in zip(*counts, strict=True)]


def same_shots(prepared: Prepared, contexts: Mapping[str, Context]) -> Prepared:
    """The task with as many shots for each item as fit the contexts of all these models.

    Raises:
        PromptError: an item does not fit one of them even without shots.
    """
    items = prepared.scored()
    try:
        prompts = render(prepared, items, Joint(contexts))
    except PromptError:
        for name, context in contexts.items():
            try:
                render(prepared, items, context)
            except PromptError as error:
                raise PromptError(f"model '{name}': {error}") from error
        raise
    return prepared.with_plan(prompts, sorted(contexts))


def render(
    prepared: Prepared,
    items: Sequence[Item],
    backend: Backend | Context,
    given: Mapping[str, Sequence[str]] | None = None,
) -> list[Prompt]:
    """Prompts of the items, fitted into the backend's context by the benchmark's own rule.

    Where the task comes with a plan, they are those of the plan. `given` has the answers to the
    sub-questions before an item, by its id, where the model has given them in an earlier call.

    Raises:
        PromptError: one does not fit even without shots.
    """
    given = given or {}
    if prepared.plan is not None and not given:
        return [prepared.plan[item.id] for item in items]
    wrap = getattr(backend, "wrap", None) if prepared.chat else None
    renderers = {s: prepared.renderer(s, wrap) for s in prepared.subjects}
    prompts = [renderers[item.subject].render(item, before=given.get(item.id)) for item in items]
    out: list[Prompt] = []

    def count(text: str) -> int:
        return backend.count_tokens([text], template_tokens=prepared.chat)[0]

    for start in range(0, len(prompts), COUNT_CHUNK):
        chunk = prompts[start : start + COUNT_CHUNK]
        # no tokenizer makes more tokens than bytes, so that short prompts need not be counted here;
        # a row that is too long all the same is refused by the engine, never cut
        long = [
            p
            for p in chunk
            if max(map(most_tokens, p.contexts())) > backend.max_length - p.room and not p.after
        ]
        texts = [(id(p), text) for p in long for text in p.contexts()]
        lengths = backend.count_tokens([text for _, text in texts], template_tokens=prepared.chat)
        counted: dict[int, int] = {}
        for (key, _), length in zip(texts, lengths, strict=True):
            counted[key] = max(length, counted.get(key, 0))
        for prompt in chunk:
            if counted.get(id(prompt), 0) > backend.max_length - prompt.room:
                fitted = renderers[prompt.item.subject]
                before = given.get(prompt.item.id)
                prompt = fitted.fit(prompt.item, count, backend.max_length, before)
            out.append(prompt)
    return out


def most_tokens(text: str) -> int:
    """The most tokens that any tokenizer makes of a text, whatever normal form it takes."""
    if text.isascii():
        return len(text) + SPECIAL
    longest = unicodedata.normalize("NFKD", text)  # decomposed is the longest of the normal forms
    return max(len(text.encode()), len(longest.encode())) + SPECIAL
