"""Requests as they are sent to a server: text or token ids, and what to look up in the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ceval_suite.backends import wire
from ceval_suite.backends.batching import Tokens
from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.errors import PromptError
from ceval_suite.schema import Request


@dataclass(frozen=True, slots=True)
class Query:
    """A request and, where a tokenizer is at hand, its tokens.

    `encoded` are those of its continuations, or of all readings of these (`Request.read_as`);
    `ids` those of the context to write on after.
    """

    request: Request
    encoded: Encoded | None = None
    wanted: tuple[wire.Wanted, ...] = ()
    ids: Tokens | None = None

    @property
    def single(self) -> bool:
        """Whether every continuation is one token; without a tokenizer, one character."""
        if self.encoded is not None:
            return self.encoded.single
        return all(len(c.strip()) == 1 for c in self.request.continuations)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is scored, as text: the continuations, or their readings."""
        if not self.request.read_as:
            return self.request.continuations
        return tuple(wanted.text for wanted in self.wanted)


def plan(
    requests: Sequence[Request], encoder: Encoder | None, tokenizer: Any, *, chat: bool
) -> list[Query]:
    """Requests as they are sent; `encoder` and `tokenizer` are None where nothing is tokenised.

    Raises:
        PromptError: a request that cannot be tokenised, or whose continuations look alike.
    """
    if encoder is None:
        return [
            Query(request, wanted=tuple(wire.Wanted(c, loose=chat) for c in _apart(request)))
            for request in requests
        ]
    found = [Query(request) for request in requests]
    scored = [k for k, r in enumerate(requests) if r.continuations]
    for k, one in zip(scored, encoder.encode([requests[k] for k in scored]), strict=True):
        found[k] = replace(found[k], encoded=one, wanted=_wanted(requests[k], one, tokenizer))
    written = [k for k, r in enumerate(requests) if r.max_new_tokens]
    for k, ids in zip(written, encoder.heads([requests[k] for k in written]), strict=True):
        found[k] = replace(found[k], ids=ids)
    encoder.forget()
    return found


def _wanted(request: Request, one: Encoded, tokenizer: Any) -> tuple[wire.Wanted, ...]:
    if not one.single:
        return tuple(wire.Wanted(c) for c in _apart(request))
    # a token may be several readings of one label
    texts = {tail[0]: str(tokenizer.decode([tail[0]])) for tail in one.tails}
    _distinct(request, list(texts.values()))
    return tuple(wire.Wanted(texts[tail[0]], tail[0]) for tail in one.tails)


def _apart(request: Request) -> Sequence[str]:
    return _distinct(request, request.continuations)


def _distinct(request: Request, texts: Sequence[str]) -> Sequence[str]:
    if len(set(texts)) < len(texts):
        raise PromptError(
            f"{request.id}: two of {list(texts)} read the same, and a server is asked by text; "
            "load the weights with backend hf."
        )
    return texts
