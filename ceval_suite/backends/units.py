"""Requests that are computed together, and with nothing else: pure planning, no torch.

Sums of floats depend on what else is in a pass. Where results must not depend on how many workers
share the work, on how often a run was resumed or on what else was asked, requests are computed
unit by unit, and what is in a unit follows from the requests of a task alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from ceval_suite.schema import Request

CHUNK = 1024
"""Requests that are tokenised and planned together, at least, where nothing forbids it: while one
chunk is computed, the next is tokenised."""

APART = 64
"""Requests are best parted between contexts that share fewer characters than this."""

WORK = 1 << 16
"""Bytes of text in a unit that no request before has, more or less: some 16,000 tokens."""

STEMS = 16
"""A unit is at least this many times as long as what all of it shares, which the next unit of the
same shots computes once more."""

SCORED = 512
"""Requests in a unit, at most."""

WRITTEN = 128
"""Requests that are written in a unit, at most: they take their steps together."""


@dataclass(frozen=True)
class _Family:
    """A request and all that follow it."""

    requests: tuple[Request, ...]

    @property
    def context(self) -> str:
        return self.requests[0].context

    @property
    def written(self) -> int:
        return any(request.max_new_tokens for request in self.requests)

    def new(self, before: str) -> int:
        """Bytes of the family that a context before it does not have."""
        head = shared(before, self.context)
        rest = (request.context for request in self.requests[1:])
        return len(self.context[head:].encode()) + sum(len(text.encode()) for text in rest) + 1


def shared(a: str, b: str) -> int:
    """Length of the common head of two texts."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def units(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests in units: those that name one by it, or all by their contexts.

    What follows another request stands in its unit. The order of the requests does not matter.
    """
    if all(request.unit for request in requests):
        named: dict[str, list[Request]] = {}
        for request in requests:
            named.setdefault(request.unit, []).append(request)
        return list(named.values())
    families = sorted(_families(requests), key=lambda f: (f.context, f.requests[0].id))
    new = [one.new(before.context) for before, one in pairwise([_NOTHING, *families])]
    out: list[list[_Family]] = []
    room = (0, 0, 0)
    for first, last in _runs(families):
        run, sizes = families[first:last], new[first:last]
        parts = _parts(run, sizes)
        whole = (sum(sizes), len(run), sum(one.written for one in run))
        sums = (room[0] + whole[0], room[1] + whole[1], room[2] + whole[2])
        if out and len(parts) == 1 and _fits(*sums):
            out[-1] += run
            room = sums
        else:
            out += parts
            room = whole if len(parts) == 1 else (WORK, SCORED, WRITTEN)
    return [[request for family in unit for request in family.requests] for unit in out]


def chunks(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests in the order of their contexts, cut where neighbours share little."""
    out: list[list[Request]] = []
    for request in sorted(requests, key=lambda request: request.context):
        apart = not out or (
            len(out[-1]) >= CHUNK and shared(out[-1][-1].context, request.context) < APART
        )
        if apart:
            out.append([])
        out[-1].append(request)
    return out


def named(requests: Sequence[Request], name: str) -> list[Request]:
    """The requests of one task, each with the name of its unit."""
    return [
        replace(request, unit=f"{name}/{number}")
        for number, unit in enumerate(units(requests))
        for request in unit
    ]


TOKEN = 4
"""Bytes of text that cost about what one token costs that is written."""


def cost(unit: Sequence[Request]) -> float:
    """What a unit costs to compute, more or less, in bytes of text that are read once."""
    ordered = sorted(unit, key=lambda request: request.context)
    read = 0
    for before, request in pairwise([_NOTHING.requests[0], *ordered]):
        read += len(request.context[shared(before.context, request.context) :].encode()) + 1
    return read + TOKEN * sum(request.max_new_tokens for request in unit)


_NOTHING = _Family((Request(id="", context=""),))


def _fits(work: int, count: int, written: int) -> bool:
    return work <= WORK and count <= SCORED and written <= WRITTEN


def _families(requests: Sequence[Request]) -> list[_Family]:
    followers: dict[str, list[Request]] = {}
    for request in requests:
        followers.setdefault(request.after, []).append(request)
    out: list[_Family] = []
    for first in followers.get("", ()):
        family = [first]
        for request in family:  # grows as it is walked through
            family += followers.get(request.id, ())
        out.append(_Family(tuple(family)))
    return out


def _runs(families: Sequence[_Family]) -> list[tuple[int, int]]:
    """(from, to) of families whose neighbours share much: the same shots, the same passage."""
    cuts = [
        k
        for k, (a, b) in enumerate(pairwise(families), start=1)
        if shared(a.context, b.context) < APART
    ]
    return list(pairwise([0, *cuts, len(families)])) if families else []


def _parts(run: Sequence[_Family], new: Sequence[int]) -> list[list[_Family]]:
    """A run in parts of about equal work, as few as can be."""
    stem = len(run[0].context[: shared(run[0].context, run[-1].context)].encode())
    work, written = sum(new), sum(one.written for one in run)
    most = max(WORK, STEMS * stem * (len(run) > 1))
    count = max(-(-work // most), -(-len(run) // SCORED), -(-written // WRITTEN))
    if written:  # texts take steps, whatever they are put to
        new = [1] * len(run)
        work = len(run)
    out: list[list[_Family]] = [[] for _ in range(count)]
    for family, size, end in zip(run, new, accumulate(new), strict=True):
        out[min((end - size) * count // work, count - 1)].append(family)
    return [part for part in out if part]
