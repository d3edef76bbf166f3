"""Who computes what: every unit once, whatever dies; workers busy to the end; models shared."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite.backends import scheduling
from ceval_suite.backends.scheduling import DEATHS, Order, Schedule

OPENING = 2.0


@dataclass
class Cluster:
    """Workers of a simulation in which units take known times: the scheduler's own code.

    Nothing that is ordered kills so many workers in a row that it is given up.
    """

    schedule: Schedule
    workers: int
    jobs: dict[int, list[float]]
    mortality: float = 0.0
    seed: int = 0
    opening: float = OPENING
    busy: float = 0.0
    done: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    deaths: Counter[Order] = field(default_factory=Counter[Order])
    opened: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    log: list[tuple[int, Order]] = field(default_factory=list[tuple[int, Order]])

    def expected(self, job: int) -> list[float]:
        """What units are thought to cost: right but for a factor of up to 1.5 either way."""
        rng = random.Random(self.seed)
        return [cost * rng.uniform(1 / 1.5, 1.5) for cost in self.jobs[job]]

    def run(self) -> float:
        """Work until nothing is left; the time that took."""
        rng = random.Random(self.seed)
        for worker in range(self.workers):
            self.schedule.join(worker)
        alive, now, born = set(range(self.workers)), 0.0, self.workers
        at: dict[int, Order] = {}
        events: list[tuple[float, int, bool]] = []
        while True:
            for worker in sorted(alive - at.keys()):
                order = self.schedule.next(worker, now)
                if order is None:
                    continue
                assert order not in at.values() or order.unit is None, "handed out twice at once"
                at[worker] = order
                self.log.append((worker, order))
                cost = self.opening if order.unit is None else self.jobs[order.job][order.unit]
                dies = rng.random() < self.mortality
                heapq.heappush(events, (now + cost * (rng.random() if dies else 1), worker, dies))
            if not events:
                return now
            before, (now, worker, dies) = now, heapq.heappop(events)
            self.busy += (now - before) * len(at)
            order = at.pop(worker)
            if dies and self.deaths[order] < DEATHS - 1:
                self.deaths[order] += 1
                alive.discard(worker)
                assert self.schedule.lost(worker) == (order, False)
                alive.add(born)
                self.schedule.join(born)
                born += 1
                continue
            assert self.schedule.finished(worker, now) == order
            del self.deaths[order]
            if order.unit is not None:
                self.done[order.job, order.unit] += 1
            else:
                self.opened.append((worker, order.job))
                if len([job for _, job in self.opened if job == order.job]) == 1:
                    self.schedule.give(order.job, self.expected(order.job))


def cluster(workers: int, *jobs: list[float], mortality: float = 0.0, seed: int = 0) -> Cluster:
    schedule = Schedule(coming=len(jobs))
    return Cluster(schedule, workers, {schedule.add(): some for some in jobs}, mortality, seed)


works = st.lists(st.floats(0.01, 5), max_size=40)


@given(st.integers(1, 9), st.lists(works, min_size=1, max_size=5), st.integers(0, 1 << 30))
@settings(max_examples=200, deadline=None)
def test_every_unit_is_computed_once_whatever_dies(
    workers: int, jobs: list[list[float]], seed: int
) -> None:
    found = cluster(workers, *jobs, mortality=0.25, seed=seed)
    found.run()
    expected = {(job, unit): 1 for job, some in found.jobs.items() for unit in range(len(some))}
    assert found.done == expected


def test_64_workers_are_busy_95_percent_of_the_time_on_uneven_work() -> None:
    rng = random.Random(8)
    # ten minutes; some subjects have long passages, or are written
    work = [rng.lognormvariate(2.5, 0.7) * (4 if k % 97 < 12 else 1) for k in range(64 * 20)]
    found = cluster(64, work)
    took = found.run()
    share = sum(work) / (64 * took)
    sizes = f"{len(work)} units of {min(work):.1f} to {max(work):.0f} s"
    print(f"64 workers, {sizes}: {share:.1%} busy over {took:.0f} s")
    assert share >= 0.95


def test_units_go_out_in_contiguous_pieces_and_are_stolen_from_the_far_end() -> None:
    schedule = Schedule()
    job = schedule.add()
    for worker in ("quick", "slow"):
        schedule.join(worker)
        assert schedule.next(worker, 0) == Order(job)
    for worker in ("quick", "slow"):
        schedule.finished(worker, 1)
    schedule.give(job, [1.0] * 20)
    assert schedule.next("slow", 1) == Order(job, 10)
    quick: list[int | None] = []
    for _ in range(19):
        order = schedule.next("quick", 1)
        assert order is not None
        quick.append(order.unit)
        schedule.finished("quick", 1)
    # of the nine that are left it takes the far half, of the four then the far half, and so on
    assert quick == [*range(10), 15, 16, 17, 18, 19, 13, 14, 12, 11]
    assert schedule.next("quick", 1) is None


def test_the_costliest_units_are_begun_first() -> None:
    schedule = Schedule()
    job = schedule.add()
    for worker in ("a", "b"):
        schedule.join(worker)
        schedule.next(worker, 0)
        schedule.finished(worker, 0)
    schedule.give(job, [1.0] * 7 + [30.0, 20.0] + [1.0])
    assert schedule.next("a", 1) == Order(job, 7)
    assert schedule.next("b", 1) == Order(job, 8)


def test_a_unit_or_a_model_that_kills_three_workers_in_a_row_is_hopeless() -> None:
    schedule = Schedule()
    job = schedule.add()
    found: list[tuple[Order | None, bool]] = []
    for death in range(DEATHS):
        schedule.join(death)
        schedule.next(death, 0)
        found.append(schedule.lost(death))
    assert found == [(Order(job), death == DEATHS - 1) for death in range(DEATHS)]
    schedule.join("next")
    assert schedule.next("next", 0) is None
    found.clear()
    schedule, job = Schedule(), 0
    schedule.add()
    for death in range(DEATHS):
        schedule.join(death)
        schedule.next(death, 0)
        schedule.finished(death, 0)
        if not death:
            schedule.give(job, [1.0])
        assert schedule.next(death, 0) == Order(job, 0)
        found.append(schedule.lost(death))
    assert found == [(Order(job, 0), death == DEATHS - 1) for death in range(DEATHS)]
    schedule.join("next")
    assert schedule.next("next", 0) is None


def test_who_is_silent_for_too_long_is_overdue_and_who_replies_is_not() -> None:
    schedule = Schedule(patience=10)
    job = schedule.add()
    for worker in ("a", "b", "idle"):
        schedule.join(worker)
    for worker in ("a", "b"):
        schedule.next(worker, 0)
        schedule.finished(worker, 0)
    schedule.give(job, [1.0, 1.0])
    schedule.next("a", 0)
    schedule.next("b", 0)
    schedule.heard("b", 9)
    assert schedule.overdue(9) == []
    assert schedule.overdue(11) == ["a"]
    assert schedule.overdue(20) == ["a", "b"]


def test_a_model_may_take_longer_to_open_than_a_reply_but_not_for_ever() -> None:
    schedule = Schedule(patience=10)
    schedule.add()
    schedule.join("a")
    schedule.next("a", 0)
    assert schedule.overdue(60) == []
    assert schedule.overdue(scheduling.OPENING + 1) == ["a"]


def test_with_as_many_models_as_workers_each_opens_one_and_helps_at_the_end() -> None:
    found = cluster(3, [1.0] * 4, [1.0] * 4, [1.0] * 60)
    took = found.run()
    assert found.opened[:3] == [(0, 0), (1, 1), (2, 2)]
    assert sorted(found.opened[3:]) == [(0, 2), (1, 2)]
    alone = OPENING + 60
    assert took < alone / 2 + 3 * OPENING


def test_with_more_models_than_workers_none_is_opened_twice_while_others_wait() -> None:
    found = cluster(2, *([1.0] * 5 for _ in range(7)))
    found.run()
    assert [job for _, job in found.opened[:7]] == list(range(7))
    assert found.done.total() == 35


def test_a_model_is_not_opened_for_less_work_than_opening_takes() -> None:
    found = cluster(2, [0.1] * 5, [0.1] * 10)
    found.run()
    assert len(found.opened) == 2


def test_while_models_are_still_to_come_idle_workers_wait_for_them() -> None:
    schedule = Schedule(coming=2)
    first = schedule.add()
    for worker in ("a", "b"):
        schedule.join(worker)
    assert schedule.next("a", 0) == Order(first)
    assert schedule.next("b", 0) is None
    second = schedule.add()
    assert schedule.next("b", 0) == Order(second)


@pytest.mark.parametrize("closed", [False, True])
def test_a_model_whose_last_worker_dies_finds_another_unless_nobody_wants_it(closed: bool) -> None:
    schedule = Schedule(coming=1)
    job = schedule.add()
    schedule.join("a")
    schedule.next("a", 0)
    schedule.finished("a", 1)
    schedule.give(job, [1, 1])
    assert schedule.next("a", 1) == Order(job, 0)
    if closed:
        schedule.close(job)
    schedule.lost("a")
    schedule.join("b")
    assert schedule.next("b", 2) == (None if closed else Order(job))
