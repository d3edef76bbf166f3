"""Workers that answer for several models at once, and a backend for each model that is asked.

One thread drives a schedule: it tells idle workers what to do, replaces those that die or fall
silent, and hands replies to whoever asked. How workers are started and told (`Hands`) is not known
here. Nothing but replies leaves the workers: the caller alone writes records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from ceval_suite.backends.about import alike, merged
from ceval_suite.backends.base import Say
from ceval_suite.backends.hands import Answer, Event, Hands, Lost
from ceval_suite.backends.jobs import Job
from ceval_suite.backends.scheduling import DEATHS, Schedule, Worker
from ceval_suite.backends.units import cost, units
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

LOOK = 0.05
"""Seconds between two looks at what callers want, while workers say nothing."""

CALLS = 3
"""Workers that are asked one small question, and lost over it, before it is given up."""

PAUSE = 5.0
"""Seconds until another worker is started, when one died before it could be told anything."""


class Crew:
    """So many workers, shared by the models that are asked; use it as a context manager."""

    def __init__(
        self,
        hands: Hands,
        workers: int,
        identify: Callable[[ModelSpec], dict[str, Any]],
        *,
        patience: float,
        coming: int = 1,
    ) -> None:
        """`patience` is how long a worker may be silent; so many models are `coming`.

        `identify` says which model a spec means here; workers must find the same.
        """
        self.size = workers
        self._hands = hands
        self._identify = identify
        self._schedule = Schedule(patience, coming)
        self._patience = patience
        self._silent = f"it said nothing for {patience:g} s"
        self._jobs: list[Job] = []
        self._starting: set[Worker] = set()
        self._useless: dict[Worker, tuple[Job, str]] = {}
        self._stillborn = 0
        self._again = self._alone = time.monotonic()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._why: BaseException = KeyboardInterrupt()
        self._thread = threading.Thread(target=self._drive, daemon=True)

    def __enter__(self) -> Crew:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(KeyboardInterrupt())
        self._thread.join()
        self._hands.close()

    def stop(self, why: BaseException) -> None:
        """Whoever waits for a reply is given `why` instead."""
        with self._lock:
            if not self._stop.is_set():
                self._why = why
            self._stop.set()
            for job in self._jobs:
                job.inbox.put(Event(None, "error", self._why))

    def none(self) -> None:
        """A model that was to come needs no worker: all its records are there."""
        with self._lock:
            self._schedule.none()

    def open(self, spec: ModelSpec, say: Say) -> CrewBackend:
        """A backend that asks this model, as soon as one worker has opened it.

        Raises:
            UserError: what opening it raised in the worker, or no worker comes.
        """
        identity = self._identify(spec)
        with self._lock:
            self._go_on()
            job = Job(self._schedule.add(), spec, say, identity)
            self._jobs.append(job)
        job.next()
        return CrewBackend(self, job)

    def give(self, job: Job, some: list[list[Request]]) -> None:
        """Have the units of a job computed."""
        with self._lock:
            job.units = some
            self._schedule.give(job.number, [cost(unit) for unit in some])

    def close(self, job: Job) -> None:
        """Nothing more will be asked of a job's model; its workers are free for others."""
        with self._lock:
            self._schedule.close(job.number)

    def call(self, job: Job, name: str, *args: Any, **options: Any) -> Any:
        """What any worker's backend answers to a small question."""
        for _ in range(CALLS):
            worker = self._holder(job)
            try:
                return self._answer(self._hands.call(worker, name, *args, **options))
            except Lost as error:
                with self._lock:
                    self._useless[worker] = job, str(error)
        raise ModelError(f"{job.spec.path}: workers that are asked about it die; see their logs.")

    def _holder(self, job: Job) -> Worker:
        """A worker that has the job's model open, as soon as there is one."""
        while True:
            self._go_on()
            with self._lock:
                closed = self._schedule.closed(job.number)
                for worker in self._schedule.having(job.number):
                    if worker not in self._useless:
                        return worker
            # it died just now; another is opening the model
            if not job.inbox.empty():
                job.next()
            elif closed:
                raise ModelError(f"{job.spec.path}: no worker has it open any more.")
            time.sleep(LOOK)

    def _answer(self, answer: Answer) -> Any:
        begun = time.monotonic()
        while True:
            try:
                return answer(LOOK)
            except TimeoutError:
                self._go_on()
                if time.monotonic() - begun > self._patience:
                    raise Lost(self._silent) from None

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise self._why

    # the thread

    def _drive(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    self._fill()
                    self._order()
                for event in self._hands.wait(LOOK):
                    with self._lock:
                        self._note(event)
                with self._lock:
                    self._end()
        except BaseException as error:
            self.stop(error)

    def _fill(self) -> None:
        now, there = time.monotonic(), len(self._schedule.workers)
        if now >= self._again or not (there or self._starting):
            while there + len(self._starting) < self.size:
                self._starting.add(self._hands.start())
        if there:
            self._alone = now
            return
        why = self._hands.nowhere(now - self._alone)
        if why is not None:
            raise ModelError(why)

    def _order(self) -> None:
        now = time.monotonic()
        for worker in self._schedule.workers:
            order = self._schedule.next(worker, now)
            if order is not None:
                job = self._jobs[order.job]
                some = None if order.unit is None else job.units[order.unit]
                self._hands.tell(worker, job.spec, some)

    def _end(self) -> None:
        """Workers that hang are killed, and those that are gone without a word given up."""
        useless = {worker: why for worker, (_, why) in self._useless.items()}
        useless |= dict.fromkeys(self._schedule.overdue(time.monotonic()), self._silent)
        for worker, why in useless.items():
            if worker in self._schedule.workers:
                self._hands.kill(worker)
                self._gone(worker, why)
        self._useless = {}

    def _note(self, event: Event) -> None:
        worker, now = event.worker, time.monotonic()
        if event.kind == "ready":
            self._starting.discard(worker)
            self._stillborn = 0
            self._schedule.join(worker)
            return
        if event.kind == "lost":
            self._gone(worker, str(event.value))
            return
        if worker not in self._schedule.workers:
            return  # ended in the meantime
        self._schedule.heard(worker, now)
        job = self._jobs[self._schedule.job_of(worker)]
        if event.kind == "says":
            job.say(event.value)
        elif event.kind == "error":
            self._schedule.failed(worker)
            job.inbox.put(event)
        elif event.kind == "replies":
            job.inbox.put(event)
        else:
            self._done(job, event, now)

    def _done(self, job: Job, event: Event, now: float) -> None:
        about = dict(event.value)
        identity = about.pop("identity", job.identity)
        if identity != job.identity:
            self._schedule.failed(event.worker)
            other = ModelError(
                f"{job.spec.path}: {about.get('host')} has another model of this name than this "
                "machine; put the same files on every node."
            )
            job.inbox.put(Event(event.worker, "error", other))
            return
        order = self._schedule.finished(event.worker, now)
        job.about[event.worker] = about
        # only the first that opens the model is waited for; the others just help
        if event.kind == "done" or not job.opened:
            job.opened = job.opened or about
            job.inbox.put(Event(event.worker, event.kind, order.unit))

    def _gone(self, worker: Worker, why: str) -> None:
        if worker in self._starting:
            self._starting.discard(worker)
            self._never_ready(why)
            return
        order, hopeless = self._schedule.lost(worker)
        if order is None:
            if worker in self._useless:  # it had no unit, only a small question
                self._useless[worker][0].lose(why)
            return
        job = self._jobs[order.job]
        if hopeless:
            job.give_up(worker, order, why)
        else:
            job.lose(why)

    def _never_ready(self, why: str) -> None:
        self._stillborn += 1
        self._again = time.monotonic() + PAUSE
        trouble = f"workers die before they can be told anything ({why})"
        if self._stillborn >= DEATHS and not (self._starting or self._schedule.workers):
            raise ModelError(f"{trouble}.")
        if self._stillborn == DEATHS and self._jobs:
            self._jobs[0].say(f"{trouble}; others do the work meanwhile")


class CrewBackend:
    """One model, asked through the workers of a crew."""

    def __init__(self, crew: Crew, job: Job) -> None:
        self._crew = crew
        self._job = job
        self.max_length = int(job.opened["max_length"])

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, as a worker's backend counts them."""
        if not texts:
            return []
        some = list(texts)
        found: list[int] = self._crew.call(
            self._job, "count_tokens", some, template_tokens=template_tokens
        )
        return found

    def wrap(self, user: str) -> str:
        """A user's turn in the model's chat template."""
        return str(self._crew.call(self._job, "wrap", user))

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """How each request's continuations are tokenised in context."""
        found: list[dict[str, Any]] = self._crew.call(self._job, "audit", list(requests))
        return found

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Answer all requests, unit by unit, in whatever order workers answer them."""
        missing = {request.id for request in requests}
        some = units(requests)
        self._crew.give(self._job, some)
        while missing:
            event = self._job.next()
            if event.kind == "replies":
                # a unit that killed a worker is computed whole once more
                for reply in event.value:
                    if reply.id in missing:
                        missing.discard(reply.id)
                        yield reply
            elif event.kind == "done":
                lacking = [r.id for r in some[event.value] if r.id in missing]
                if lacking:
                    raise ModelError(f"{lacking[0]}: a worker left this unanswered.")
        self._crew.close(self._job)

    def close(self) -> None:
        """Nothing more will be asked."""
        self._crew.close(self._job)

    def describe(self) -> dict[str, Any]:
        """What the first worker describes, with the sums and the most of all of them."""
        about = list(self._job.about.values())
        workers = {
            "size": self._crew.size,
            "asked": len(about),
            "hosts": sorted({str(one.get("host", "")) for one in about}),
            "lost": self._job.lost,
            "alike": alike(about),
        }
        return merged(about) | {"workers": workers}
