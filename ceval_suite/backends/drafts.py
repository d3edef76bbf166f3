"""What is being written: planning without torch, and where a text comes to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from ceval_suite.backends.batching import Node, Read, Row, Tokens, common, trie
from ceval_suite.backends.writing import cut
from ceval_suite.schema import Request

D = TypeVar("D", bound="Draft")

MARGIN = 8
"""Tokens decoded beside those that may hold a stop text: a letter may take several."""


class Logits(Protocol):
    """What a model says of the next token of one row."""

    @property
    def best(self) -> int:
        """The likeliest token, the first on an exact tie."""
        ...

    def of(self, tokens: Sequence[int]) -> list[tuple[float, float]]:
        """Logit and natural log-probability of each token."""
        ...


class Draft(Protocol):
    """One row that goes on token by token."""

    @property
    def tokens(self) -> Tokens:
        """Its context."""
        ...

    @property
    def most(self) -> int:
        """Tokens that may follow the context, at most."""
        ...

    @property
    def ids(self) -> list[int]:
        """Those that have followed; the last one is not yet seen by the model."""
        ...

    def take(self, logits: Logits) -> bool:
        """What comes next; says whether the row has come to its end."""
        ...

    def restart(self) -> None:
        """Forget what has followed the context."""
        ...


@dataclass(slots=True, eq=False)
class Writing:
    """A row that the model writes on, greedily.

    `wanted` are tokens whose scores as the first one written are asked for. What comes to its end
    by itself or by a `stop` text is `finished`.
    """

    pen: Pen
    tokens: Tokens
    most: int
    stop: tuple[str, ...] = ()
    wanted: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list[int])
    scores: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    text: str = ""
    finished: bool = False

    def take(self, logits: Logits) -> bool:
        """The likeliest token comes next."""
        if self.wanted and not self.ids:
            self.scores = logits.of(self.wanted)
        return self.add(logits.best)

    def add(self, token: int) -> bool:
        """One more token; says whether the text has come to its end."""
        self.ids.append(token)
        if token in self.pen.ends:
            self.text, self.finished = self.pen.text(self.ids[:-1]), True
            return True
        if self.stop:
            # a stop text lies within as many last tokens as it has bytes
            longest = max(len(text.encode()) for text in self.stop)
            near = self.pen.text(self.ids[-longest - MARGIN :])
            if cut(near, self.stop)[1]:
                self.text, self.finished = cut(self.pen.text(self.ids), self.stop)
                if self.finished:
                    return True
        if len(self.ids) >= self.most:
            self.text = self.pen.text(self.ids)
            return True
        return False

    def restart(self) -> None:
        """Nothing is written."""
        self.ids.clear()


class Pen:
    """Turns tokens into text, and knows with which ones a model ends."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        """`ends` are the tokens with which the model says that it has finished."""
        self._tokenizer = tokenizer
        self.ends = frozenset(ends)

    def endless(self) -> Pen:
        """A pen that writes on whatever the model says."""
        return Pen(self._tokenizer, ())

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        # the blanks that a model writes are its own: none may be tidied away
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


LINK = 24
"""Tokens from the letter of one sub-question to that of the next, at most."""


@dataclass(slots=True, eq=False)
class Chain:
    """A row of requests that follow one another: each answer is chosen, then what joins on is fed.

    `encode` gives the tokens of a request's context and of each of its continuations; it may be
    followed only as long as these are one token each and nothing before them changes. `answers`
    are those given: the context's tokens, and the scores of the continuations.
    """

    requests: Sequence[Request]
    encode: Callable[[Request], tuple[Tokens, tuple[int, ...]] | None]
    tokens: Tokens
    wanted: tuple[int, ...]
    context: str
    ids: list[int] = field(default_factory=list[int])
    answers: list[tuple[int, list[tuple[float, float]]]] = field(
        default_factory=list[tuple[int, list[tuple[float, float]]]]
    )
    _coming: list[int] = field(default_factory=list[int])

    @classmethod
    def of(
        cls,
        requests: Sequence[Request],
        encode: Callable[[Request], tuple[Tokens, tuple[int, ...]] | None],
    ) -> Chain | None:
        """The chain that starts with `requests[0]`; None where it cannot be followed."""
        first = encode(requests[0])
        if first is None:
            return None
        return cls(requests, encode, *first, requests[0].context)

    @property
    def most(self) -> int:
        """Tokens that may follow the context, about."""
        return LINK * len(self.requests)

    def take(self, logits: Logits) -> bool:
        """The next token of what joins on, or else the answer to the next request."""
        if self._coming:
            self.ids.append(self._coming.pop(0))
            return False
        scores = logits.of(self.wanted)
        now = self.requests[len(self.answers)]
        self.answers.append((len(self.tokens) + len(self.ids), scores))
        if len(self.answers) == len(self.requests):
            return True
        best = max(range(len(scores)), key=lambda k: scores[k][0])
        follower = self.requests[len(self.answers)]
        self.context += follower.joint + now.continuations[best] + follower.context
        found = self.encode(self.going_on(follower))
        known = [*self.tokens.tolist(), *self.ids]
        if found is None or found[0][: len(known)].tolist() != known:
            return True
        self._coming, self.wanted = found[0][len(known) :].tolist(), found[1]
        if not self._coming or len(self.ids) + len(self._coming) > self.most:
            return True
        self.ids.append(self._coming.pop(0))
        return False

    def going_on(self, follower: Request) -> Request:
        """A request of the chain as one that follows nothing: all before it is in its context."""
        return replace(
            follower,
            context=self.context,
            template_tokens=self.requests[0].template_tokens,
            after="",
            joint="",
        )

    def restart(self) -> None:
        """Nothing is answered."""
        whole = Chain.of(self.requests, self.encode)
        assert whole is not None  # it was possible before
        self.wanted, self.context = whole.wanted, whole.context
        self.ids.clear()
        self.answers.clear()
        self._coming.clear()


def in_order(drafts: Sequence[D]) -> list[D]:
    """Sorted so that those which share a head stand together."""
    return sorted(drafts, key=lambda draft: draft.tokens.astype(">u4").tobytes())


def fresh(drafts: Sequence[Draft]) -> dict[int, int]:
    """For each draft, by its identity: tokens of its context that none before it has."""
    ordered = in_order(drafts)
    first = {id(draft): len(draft.tokens) for draft in ordered[:1]}
    return first | {id(b): len(b.tokens) - common(a.tokens, b.tokens) for a, b in pairwise(ordered)}


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
