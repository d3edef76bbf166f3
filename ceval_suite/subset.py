"""A part of a benchmark that stands for the whole: so many items, drawn subject by subject.

Every subject gets its share of the items by the method of Sainte-Laguë, which comes out like
largest remainders but never takes a seat away when the house grows (Balinski and Young 1982, Fair
Representation): a smaller subset is always a part of a larger one of the same seed. The first items
go one to each subject, the largest first. Within a subject the order is that of a hash of seed and
item, so that it depends on nothing else that is drawn, read or asked.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ceval_suite.schema import Item

RULE = 1
"""Part of the fingerprint: another way of drawing would be another number."""


@dataclass(frozen=True)
class Subset:
    """What was drawn: `items` of `of`, with a seed.

    `sizes` are the records that each subject has in the whole, by which averages are weighted.
    """

    items: int
    of: int
    seed: int
    sizes: Mapping[str, int]

    def about(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {"items": self.items, "of": self.of, "seed": self.seed, "sizes": {**self.sizes}}


def shares(sizes: Mapping[str, int], items: int) -> dict[str, int]:
    """How many of `items` each subject gives, of those that it has."""
    out = dict.fromkeys(sizes, 0)
    heap = [
        (-float("inf"), -n, place, s) for place, (s, n) in enumerate(sizes.items()) if n
    ]  # the first seat goes to everyone before anyone has a second
    heapq.heapify(heap)
    for _ in range(min(items, sum(sizes.values()))):
        _, minus, place, subject = heapq.heappop(heap)
        out[subject] += 1
        if out[subject] < -minus:
            heapq.heappush(heap, (minus / (2 * out[subject] + 1), minus, place, subject))
    return out


def draw(items: Mapping[str, Sequence[Item]], count: int, seed: int) -> dict[str, list[Item]]:
    """`count` items by subject, in the order in which they were given."""
    wanted = shares({subject: len(some) for subject, some in items.items()}, count)
    out: dict[str, list[Item]] = {}
    for subject, some in items.items():
        chosen = sorted(range(len(some)), key=lambda k: _place(some[k], seed))[: wanted[subject]]
        out[subject] = [some[k] for k in sorted(chosen)]
    return out


def _place(item: Item, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {item.id}".encode()).digest()
