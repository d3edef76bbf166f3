"""Who computes what: contiguous pieces, stealing at the end, retries. Pure: no clock, no threads.

A *job* is one model and the units of requests that are put to it. A worker has one job's model
open at a time. Whoever drives this says what happened (`opened`, `finished`, `lost`) and asks each
idle worker's next order; so the same code serves a cluster, a simulation and a test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean

Worker = Hashable

DEATHS = 3
"""Workers in a row that one unit (or one model that is opened) may kill before it is given up."""

OPENING = 4 * 3600.0
"""Seconds that a worker may be silent while it opens a model: a large one is downloaded first."""

LARGE = 2.0
"""Units of more than so many times the mean cost are computed first: begun last, one of them would
keep all other workers waiting."""


@dataclass(frozen=True)
class Order:
    """What a worker is to do for a job: compute a unit, or (None) open the job's model."""

    job: int
    unit: int | None = None


@dataclass
class _Job:
    """Units that wait, in the queues of the workers that they were meant for."""

    queues: dict[Worker, deque[int]] | None = None
    costs: Sequence[float] = ()
    closed: bool = False
    opened: bool = False
    deaths: dict[int | None, int] = field(default_factory=dict[int | None, int])
    took: list[float] = field(default_factory=list[float])
    opening: float = 0.0

    @property
    def waiting(self) -> int:
        """Units that nobody is computing."""
        return sum(map(len, (self.queues or {}).values()))


@dataclass
class _Hand:
    """A worker: whose model it has open, what it does, since when, and when it was last heard."""

    job: int | None = None
    order: Order | None = None
    since: float = 0.0
    heard: float = 0.0


class Schedule:
    """Jobs, workers, and what each of these does now."""

    def __init__(self, patience: float = float("inf"), coming: int = 0) -> None:
        """`patience` is how long a worker may be silent; `coming` jobs are not known yet."""
        self._patience = patience
        self._coming = coming
        self._jobs: list[_Job] = []
        self._hands: dict[Worker, _Hand] = {}

    # what the jobs want

    def add(self) -> int:
        """A job wants workers; what it will ask is not known before its model is open."""
        self._jobs.append(_Job())
        self._coming -= 1
        return len(self._jobs) - 1

    def none(self) -> None:
        """A job that was to come needs no worker."""
        self._coming -= 1

    def give(self, job: int, costs: Sequence[float]) -> None:
        """What each of the job's units costs: a contiguous piece goes to each of its workers.

        Only the largest are dealt out one by one, and come first.
        """
        one = self._jobs[job]
        one.costs = costs
        some = [w for w, hand in self._hands.items() if hand.job == job] or [None]
        mean = fmean(costs) if costs else 0.0
        large = [unit for unit, cost in enumerate(costs) if cost > LARGE * mean]
        large.sort(key=lambda unit: -costs[unit])
        one.queues = {worker: deque(large[k :: len(some)]) for k, worker in enumerate(some)}
        rest = [unit for unit, cost in enumerate(costs) if cost <= LARGE * mean]
        sums = list(accumulate(costs[unit] for unit in rest))
        for unit, end in zip(rest, sums, strict=True):
            share = (end - costs[unit] / 2) / sums[-1] if sums[-1] else 0.0
            one.queues[some[min(int(share * len(some)), len(some) - 1)]].append(unit)

    def close(self, job: int) -> None:
        """Nothing of the job is wanted any more."""
        self._jobs[job].closed = True
        self._jobs[job].queues = {}

    def closed(self, job: int) -> bool:
        """Whether nothing of the job is wanted any more."""
        return self._jobs[job].closed

    def having(self, job: int) -> list[Worker]:
        """Workers that have the job's model open."""
        return [
            worker
            for worker, hand in self._hands.items()
            if hand.job == job and not (hand.order and hand.order.unit is None)
        ]

    # what happens to the workers

    def join(self, worker: Worker) -> None:
        """There is one more worker."""
        self._hands[worker] = _Hand()

    @property
    def workers(self) -> list[Worker]:
        """All that are there."""
        return list(self._hands)

    def next(self, worker: Worker, now: float) -> Order | None:
        """What an idle worker is to do now, if anything."""
        hand = self._hands[worker]
        if hand.order is not None:
            return None
        found = self._unit(worker, hand)
        if found is None and not self._wanted(hand):
            job = self._choice()
            found = None if job is None else Order(job)
        if found is not None:
            hand.job = found.job
            hand.order, hand.since, hand.heard = found, now, now
        return found

    def job_of(self, worker: Worker) -> int:
        """The job that a worker does something for."""
        order = self._hands[worker].order
        assert order is not None
        return order.job

    def heard(self, worker: Worker, now: float) -> None:
        """A worker has shown that it is alive."""
        self._hands[worker].heard = now

    def finished(self, worker: Worker, now: float) -> Order:
        """A worker has done what it was told to do."""
        hand = self._hands[worker]
        order, hand.order = hand.order, None
        assert order is not None
        one = self._jobs[order.job]
        one.deaths.pop(order.unit, None)
        if order.unit is None:
            one.opened = True
            one.opening = now - hand.since
        else:
            one.took.append(now - hand.since)
        return order

    def failed(self, worker: Worker) -> None:
        """What a worker was told cannot be done by any: its job is closed, the worker is free."""
        order, self._hands[worker].order = self._hands[worker].order, None
        if order is not None:
            self.close(order.job)

    def lost(self, worker: Worker) -> tuple[Order | None, bool]:
        """A worker is gone: what it was at, and whether that is hopeless; if not, it is done again.

        The job of what is hopeless is closed.
        """
        order = self._hands.pop(worker).order
        if order is None:
            return None, False
        one = self._jobs[order.job]
        one.deaths[order.unit] = one.deaths.get(order.unit, 0) + 1
        hopeless = one.deaths[order.unit] >= DEATHS
        if hopeless:
            self.close(order.job)  # else it would kill one worker after the other
        elif order.unit is not None and not one.closed and one.queues is not None:
            one.queues.setdefault(worker, deque()).appendleft(order.unit)
        return order, hopeless

    def overdue(self, now: float) -> list[Worker]:
        """Workers that have been silent for too long."""
        opening = max(self._patience, OPENING)
        return [
            worker
            for worker, hand in self._hands.items()
            if (order := hand.order) is not None
            and now - hand.heard > (opening if order.unit is None else self._patience)
        ]

    def _wanted(self, hand: _Hand) -> bool:
        """Whether a worker's job will want it, but has not yet said for what."""
        if hand.job is None:
            return False
        job = self._jobs[hand.job]
        return job.queues is None and not job.closed

    def _unit(self, worker: Worker, hand: _Hand) -> Order | None:
        """The next unit of the worker's own piece, else of the far half of the fullest queue."""
        if hand.job is None:
            return None
        queues, costs = self._jobs[hand.job].queues, self._jobs[hand.job].costs
        if not queues:
            return None
        own = queues.setdefault(worker, deque())
        if not own:
            left = {who: sum(costs[unit] for unit in queue) for who, queue in queues.items()}
            fullest = max(left, key=left.__getitem__)
            half = left[fullest] / 2
            while queues[fullest] and (not own or sum(costs[unit] for unit in own) < half):
                own.appendleft(queues[fullest].pop())
        return Order(hand.job, own.popleft()) if own else None

    def _choice(self) -> int | None:
        """The job whose model an idle worker should open.

        Jobs that nobody works at come first; then, once all jobs are known, those that have most
        left for each of their workers, if that takes longer than opening a model does.
        """
        present = [0] * len(self._jobs)
        for hand in self._hands.values():
            if hand.job is not None:
                present[hand.job] += 1
        best: tuple[float, int] | None = None
        for number, job in enumerate(self._jobs):
            unknown = job.queues is None
            if job.closed or not (unknown or job.waiting):
                continue
            if not present[number]:
                return number
            # how much there is to do is not known before the first worker has opened the model
            need = 1e9 if unknown else self._need(job, present[number])
            if need and (best is None or need / (present[number] + 1) > best[0]):
                best = need / (present[number] + 1), number
        return None if best is None or self._coming > 0 else best[1]

    @staticmethod
    def _need(job: _Job, present: int) -> float:
        if not job.took:
            return job.waiting if job.waiting >= present else 0.0
        seconds = job.waiting * fmean(job.took[-20:]) / present
        return job.waiting if seconds > job.opening else 0.0
