"""How many tokens requests come to, together and each only once, before any is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ceval_suite.backends.batching import Tokens, common
from ceval_suite.backends.tokens import Encoder
from ceval_suite.schema import Request


@dataclass(frozen=True)
class Tally:
    """Tokens of some requests.

    `distinct` are those of the trie, which the engine computes once each; `total` as if every
    request were computed by itself. `head` of them are in all requests; `longest` is the largest.
    What a model will write is not among them.
    """

    requests: int
    total: int
    distinct: int
    head: int
    longest: int


def tally(encoder: Encoder, requests: Sequence[Request]) -> Tally:
    """Count the tokens of requests as the hf backend will put them to the model.

    What follows an answer of the model (`after`) is counted as a context of its own.
    """
    rows = encoder.heads(requests)
    encoder.forget()
    return of_rows(rows)


def of_rows(rows: Sequence[Tokens]) -> Tally:
    """Count the tokens of rows."""
    if not rows:
        return Tally(0, 0, 0, 0, 0)
    ordered = sorted(rows, key=lambda row: row.astype(">u4").tobytes())
    shared = [common(a, b) for a, b in pairwise(ordered)]
    total = sum(map(len, rows))
    return Tally(
        requests=len(rows),
        total=total,
        distinct=total - sum(shared),
        head=min(shared, default=len(rows[0])),
        longest=max(map(len, rows)),
    )


def encoder_of(model: Any) -> Encoder | None:
    """The encoder of a backend or counter; None where the tokens are another's business."""
    found = getattr(model, "encoder", None)
    return found if isinstance(found, Encoder) else None
