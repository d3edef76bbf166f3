"""Requests as they are sent to a server: text or token ids, and what to look up in the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ceval_suite.backends import readings, wire
from ceval_suite.backends.batching import Tokens
from ceval_suite.backends.readings import Readings
from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.errors import PromptError
from ceval_suite.schema import Request


@dataclass(frozen=True, slots=True)
class Query:
    """A request and, where a tokenizer is at hand, its tokens.

    `encoded` are those of its continuations, or of their readings; `ids` those of the context to
    write on after.
    """

    request: Request
    encoded: Encoded | None = None
    wanted: tuple[wire.Wanted, ...] = ()
    readings: Readings | None = None
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
        if self.readings is None:
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
    plain = [k for k, r in enumerate(requests) if r.continuations and not r.read_as]
    for k, one in zip(plain, encoder.encode([requests[k] for k in plain]), strict=True):
        found[k] = replace(found[k], encoded=one, wanted=_wanted(requests[k], one, tokenizer))
    read = [k for k, r in enumerate(requests) if r.continuations and r.read_as]
    for k, several in zip(read, readings.read(encoder, [requests[k] for k in read]), strict=True):
        wanted = _wanted(requests[k], several.encoded, tokenizer)
        found[k] = replace(found[k], encoded=several.encoded, wanted=wanted, readings=several)
    written = [k for k, r in enumerate(requests) if r.max_new_tokens]
    for k, ids in zip(written, encoder.heads([requests[k] for k in written]), strict=True):
        found[k] = replace(found[k], ids=ids)
    encoder.forget()
    return found


def _wanted(request: Request, one: Encoded, tokenizer: Any) -> tuple[wire.Wanted, ...]:
    if not one.single:
        return tuple(wire.Wanted(c) for c in _apart(request))
    tokens = [tail[0] for tail in one.tails]
    texts = _distinct(request, [str(tokenizer.decode([token])) for token in tokens])
    return tuple(wire.Wanted(text, token) for text, token in zip(texts, tokens, strict=True))


def _apart(request: Request) -> Sequence[str]:
    return _distinct(request, request.continuations)


def _distinct(request: Request, texts: Sequence[str]) -> Sequence[str]:
    if len(set(texts)) < len(texts):
        raise PromptError(
            f"{request.id}: two of {list(texts)} read the same, and a server is asked by text; "
            "load the weights with backend hf."
        )
    return texts
