"""What is being written: planning without torch, and where a text comes to its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ceval_suite.backends.batching import Node, Read, Row, Tokens, common, trie

MARGIN = 8
"""Tokens decoded beside those that may hold a stop text: a letter may take several."""


@dataclass(slots=True)
class Draft:
    """One row that the model writes on: its context, what to score after that, what was written.

    `wanted` are tokens whose logit and log-probability as the first one written are asked for;
    `new` counts the tokens of the context that no draft before it had.
    """

    tokens: Tokens
    most: int
    stop: tuple[str, ...] = ()
    wanted: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list[int])
    scores: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    text: str = ""
    finished: bool = False
    new: int = 0


class Pen:
    """Turns tokens into text, and sees where it ends."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        """`ends` are the tokens with which the model says that it has finished."""
        self._tokenizer = tokenizer
        self.ends = frozenset(ends)

    def add(self, draft: Draft, token: int) -> bool:
        """One more token; says whether the text has come to its end."""
        draft.ids.append(token)
        if token in self.ends:
            draft.text, draft.finished = self._decode(draft.ids[:-1]), True
            return True
        if draft.stop:
            # a stop text lies within as many last tokens as it has bytes
            longest = max(len(text.encode()) for text in draft.stop)
            near = self._decode(draft.ids[-longest - MARGIN :])
            if any(text in near for text in draft.stop):
                whole = self._decode(draft.ids)
                found = [at for at in map(whole.find, draft.stop) if at >= 0]
                if found:
                    draft.text, draft.finished = whole[: min(found)], True
                    return True
        if len(draft.ids) >= draft.most:
            draft.text = self._decode(draft.ids)
            return True
        return False

    def endless(self) -> Pen:
        """A pen that writes on whatever the model says."""
        return Pen(self._tokenizer, ())

    def _decode(self, ids: Sequence[int]) -> str:
        # the blanks that a model writes are its own: none may be tidied away
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def in_order(drafts: Sequence[Draft]) -> list[Draft]:
    """Sorted so that those which share a head stand together."""
    return sorted(drafts, key=lambda draft: draft.tokens.astype(">u4").tobytes())


def groups(drafts: Sequence[Draft], size: int) -> list[tuple[int, int]]:
    """(from, to): runs of sorted drafts, of at most `size` each, that are written together.

    A run ends where its neighbours share least, but not before it is half full.
    """
    shared = [common(a.tokens, b.tokens) for a, b in pairwise(drafts)]
    out: list[tuple[int, int]] = []
    first = 0
    while first < len(drafts):
        last = min(first + size, len(drafts))
        if last < len(drafts):
            earliest = first + (size + 1) // 2
            last = min(range(last, earliest - 1, -1), key=lambda k: shared[k - 1])
        out.append((first, last))
        first = last
    return out


def stem(drafts: Sequence[Draft]) -> int:
    """How many tokens all of these sorted drafts share; every draft has one more at least."""
    head = common(drafts[0].tokens, drafts[-1].tokens)
    return min(head, min(len(draft.tokens) for draft in drafts) - 1)


def planned(drafts: Sequence[Draft], kept: int, longest: int) -> list[Node]:
    """The trie of the drafts' contexts without the first `kept` tokens, which all share.

    Each is read at its end; slots are (draft, 0). No node is longer than `longest`.
    """
    rows = [
        Row(draft.tokens, [Read(len(draft.tokens) - 1, 0, (k, 0))])
        for k, draft in enumerate(drafts)
    ]
    nodes = trie(rows, longest)
    whole = [node.end <= kept for node in nodes]
    gone = sum(whole)  # they come first: all drafts hang below them
    out: list[Node] = []
    for node in nodes[gone:]:
        cut = max(kept - node.start, 0)
        parent = node.parent - gone
        out.append(
            Node(node.start + cut, node.tokens[cut:], max(parent, -1), node.reads, leaf=node.leaf)
        )
    return out
