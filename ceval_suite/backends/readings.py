"""ColossalEval's rule for letters (`Request.read_as`): each is read in several ways.

A reading of a continuation is the last token of one of the given texts with the continuation
behind it, tokenised without special tokens and whatever stands in the context; the likeliest of
them counts
(colossal_eval/models/huggingface.py@4f9953be, _get_choices_indices).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.errors import PromptError
from ceval_suite.schema import Reply, Request


@dataclass(frozen=True, slots=True)
class Readings:
    """A request as one whose continuations are the readings, each token once.

    `places` are, for each continuation of the request, those of its readings among them.
    """

    encoded: Encoded
    places: tuple[tuple[int, ...], ...]

    def folded(self, reply: Reply) -> Reply:
        """The reply of the request itself, from one with a value for each reading.

        `choice_mass` stays that of all readings together. A continuation is only bounded where
        none of its readings is known: what was not returned is less likely than what was.
        """
        bounded = [
            number
            for number, places in enumerate(self.places)
            if reply.logprobs and all(k in reply.bounded for k in places)
        ]
        return replace(
            reply,
            logprobs=_best(reply.logprobs, self.places),
            logits=_best(reply.logits, self.places),
            bounded=tuple(bounded),
        )


def _best(values: Sequence[float], places: Sequence[Sequence[int]]) -> tuple[float, ...]:
    return tuple(max(values[k] for k in some) for some in places) if values else ()


def read(encoder: Encoder, requests: Sequence[Request]) -> list[Readings]:
    """Requests by their `read_as`.

    Raises:
        PromptError: two continuations that have a reading in common.
    """
    known: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[int, ...]]] = {}
    out: list[Readings] = []
    for request, head in zip(requests, encoder.heads(requests), strict=True):
        key = (request.continuations, request.read_as)
        if key not in known:
            known[key] = _tokens(encoder, request)
        order = list(dict.fromkeys(token for some in known[key] for token in some))
        places = tuple(tuple(order.index(token) for token in some) for some in known[key])
        out.append(Readings(Encoded(head, tuple((token,) for token in order)), places))
    return out


def _tokens(encoder: Encoder, request: Request) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for continuation in request.continuations:
        ids = encoder.ids([text + continuation for text in request.read_as], special=False)
        found.append(tuple(dict.fromkeys(int(one[-1]) for one in ids)))
    if len({token for some in found for token in some}) < sum(map(len, found)):
        raise PromptError(
            f"{request.id}: two of {list(request.continuations)} end in the same token after "
            f"{list(request.read_as)}, so that they cannot be told apart; use another protocol "
            "for this model."
        )
    return found
