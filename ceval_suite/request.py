"""A rendered prompt, and the requests that are made for its sake."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ceval_suite.schema import Item, Request
from ceval_suite.specs import Method

LETTERS = 16
"""Tokens kept free after a prompt for letters that follow one another."""

LEAST = 16
"""Tokens that must be left for what the model writes."""

BARE, FIRST, TEXT, TURN = "?bare", "?first", "?text", "?turn"
"""Ends of the ids of requests that an item needs beside its own."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: `text` is the protocol's own; `lead` is scored after it, before a letter.

    `continuations` are what is scored after `text + lead`, in the order of the item's labels (for a
    sequence: of `strings`). All of what is asked is empty when the template's method cannot answer
    the item's kind. `after` is the item whose answer comes before this text. `turns` are the texts
    in which the options stand in other orders, each with its lead.
    """

    item: Item
    text: str
    lead: str
    continuations: tuple[str, ...]
    shots: int
    chat: bool = False
    method: Method | None = "letters"
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    read_as: tuple[str, ...] = ()
    after: str = ""
    bare: str = ""
    second: str = ""
    turns: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the text put before the continuations."""
        return hashlib.sha256((self.text + self.lead).encode()).hexdigest()

    @property
    def room(self) -> int:
        """Tokens that must stay free after the text."""
        if self.max_new_tokens:
            # a second request reads what the first one wrote, and writes as much again
            return self.max_new_tokens * (2 if self.second else 1) + LETTERS * bool(self.second)
        if self.method == "continuation":
            return max(map(len, self.continuations), default=1)
        return LETTERS if self.method == "sequence" else 1

    def contexts(self) -> tuple[str, ...]:
        """All texts that must fit into the model's context."""
        return (self.text + self.lead, *self.turns)

    def distinct(self) -> tuple[str, ...]:
        """What is scored, each text once: some items print two options of the same text."""
        if self.method != "continuation":
            return self.continuations
        return tuple(dict.fromkeys(self.continuations))

    def request(self) -> Request:
        """The request that the item itself is answered by."""
        return self.requests()[-1]

    def requests(self) -> tuple[Request, ...]:
        """All that a backend is asked for the item's sake; the last one bears its id."""
        id, template_tokens = self.item.id, self.chat
        scored = Request(
            id=id,
            context=self.text + self.lead,
            continuations=self.distinct(),
            template_tokens=template_tokens,
            after=self.after,
            read_as=self.read_as,
        )
        written = Request(
            id=id,
            context=self.text,
            template_tokens=template_tokens,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
        )
        if self.method == "either":
            if not self.lead:
                return (replace(written, continuations=self.continuations, read_as=self.read_as),)
            return replace(written, id=id + TEXT), scored
        if self.method == "generate":
            if not self.second:
                return (written,)
            first = replace(written, id=id + FIRST)
            last = replace(written, context=self.second, after=first.id, joint="\n")
            return first, last
        if self.bare:
            bare = Request(id=id + BARE, context=self.bare, continuations=self.distinct())
            return bare, scored
        turns = (
            replace(scored, id=f"{id}{TURN}{turn}", context=text)
            for turn, text in enumerate(self.turns, start=1)
        )
        return (*turns, scored)


def strings(labels: Sequence[str]) -> list[str]:
    """Every ascending string of labels: A, AB, ABC, AC, B, …"""
    ordered = sorted(labels)
    some = (c for n in range(1, len(ordered) + 1) for c in combinations(ordered, n))
    return sorted("".join(chosen) for chosen in some)
