"""Workers that are threads of this process, and backends that answer as they are told to."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ceval_suite.backends import open_backend, rounds
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.hands import Answer, Event, Lost
from ceval_suite.backends.ray import OFTEN, Worker
from ceval_suite.backends.units import units
from ceval_suite.errors import UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request


class Death(Exception):
    """What a worker dies of."""


@dataclass
class Told:
    """A backend that answers each request by its length, after what `before` does."""

    before: Callable[[Request], None] = lambda _: None
    max_length: int = 1000
    asked: list[list[str]] = field(default_factory=list[list[str]])

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [len(text) for text in texts]

    def wrap(self, user: str) -> str:
        return f"<{user}>"

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return [{"id": request.id} for request in requests]

    def describe(self) -> dict[str, Any]:
        computed = sum(map(len, self.asked))
        return {"dtype": "none", "tokens": {"total": computed, "computed": computed}, "path": {}}

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        self.asked.append([request.id for request in requests])
        for request in requests:
            self.before(request)
            yield Reply(id=request.id, num_tokens=len(request.context))


class ThreadHands:
    """Hands of a crew: the same code that runs in Ray's actors, in threads."""

    def __init__(
        self,
        opener: Callable[[ModelSpec, Say], Backend],
        identify: Callable[[ModelSpec], dict[str, Any]] = lambda _: {},
        room: int | None = None,
        stillborn: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.workers: dict[int, tuple[Worker, SimpleQueue[Any]]] = {}
        self.started = 0
        self.killed: list[int] = []
        self.looked = 0
        self._opener, self._identify, self._room = opener, identify, room
        self._stillborn = stillborn

    def start(self) -> int:
        self.started += 1
        number = self.started
        if self._stillborn(number):
            self.events.put(Event(number, "lost", "no such library"))
            return number
        worker = Worker(self._opener, self._identify)
        if self._room is None or len(self.workers) < self._room:
            self.workers[number] = (worker, SimpleQueue())
            threading.Thread(target=self._live, args=(number,), daemon=True).start()
        return number

    def _live(self, number: int) -> None:
        worker, inbox = self.workers[number]
        self.events.put(Event(number, "ready"))
        while (told := inbox.get()) is not None:
            spec, requests = told
            try:
                found = worker.open(spec) if requests is None else worker.ask(requests)
                for batch in found:
                    for kind, value in batch:
                        if number in self.workers:
                            self.events.put(Event(number, kind, value))
            except Exception as error:
                if self.workers.pop(number, None):
                    self.events.put(Event(number, "lost", f"{error}"))
                return

    def tell(self, worker: int, spec: ModelSpec, requests: Sequence[Request] | None) -> None:
        if worker in self.workers:
            self.workers[worker][1].put((spec, requests))

    def call(self, worker: int, name: str, *args: Any, **options: Any) -> Answer:
        if worker not in self.workers:
            raise Lost("it is gone")
        found: SimpleQueue[Any] = SimpleQueue()

        def ask() -> None:
            try:
                found.put(self.workers[worker][0].call(name, *args, **options))
            except Death as error:
                self.workers.pop(worker)  # it is idle: nobody hears of it
                found.put(Lost(str(error)))

        threading.Thread(target=ask, daemon=True).start()

        def answer(seconds: float) -> Any:
            try:
                value = found.get(timeout=seconds)
            except Empty:
                raise TimeoutError from None
            if isinstance(value, UserError | Lost):
                raise value
            return value

        return answer

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        self.workers.pop(worker, None)

    def wait(self, seconds: float) -> list[Event]:
        try:
            return [self.events.get(timeout=seconds)]
        except Empty:
            return []

    def nowhere(self, waited: float) -> str | None:
        self.looked += 1
        return "there is no room." if waited > 0.2 else None

    def close(self) -> None:
        for _, inbox in self.workers.values():
            inbox.put(None)


class ByUnit(Told):
    """Answers that depend on all of the unit that a request stands in, as float sums do."""

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for unit in units(requests):
            yield from self._unit(unit)

    def _unit(self, requests: Sequence[Request]) -> Iterator[Reply]:
        everything = sorted(map(repr, requests))
        seed = hashlib.sha256("".join(everything).encode()).hexdigest()

        def answer(some: Sequence[Request]) -> Iterator[Reply]:
            for request in some:
                time.sleep(0.004)
                draw = random.Random(f"{seed} {request.id} {request.context}")
                logprobs = tuple(-10 * draw.random() for _ in request.continuations)
                text = f"答案：{draw.choice('ABCD')} {draw.random()}"
                yield Reply(
                    id=request.id,
                    logprobs=logprobs,
                    logits=logprobs,
                    choice_mass=0.5 if logprobs else 0.0,
                    num_tokens=len(request.context),
                    text=text if request.max_new_tokens else None,
                )

        return rounds.asked(answer, requests)


def by_unit(spec: ModelSpec, say: Say) -> Backend:
    """Opens a model that looks at nothing but its unit."""
    return ByUnit(max_length=1 << 20)


def held(folder: Path, spec: ModelSpec, say: Say) -> Backend:
    """Opens such a model, which stops in its first unit until `go` is in the folder.

    Two replies of the unit are sent before; that it stopped is told by a file of the process.
    """

    class Held(ByUnit):
        def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
            for number, reply in enumerate(super().ask(requests)):
                yield reply
                if number == 0:
                    time.sleep(2 * OFTEN)
                elif number == 1:
                    (folder / str(os.getpid())).touch()
                    while not (folder / "go").exists():
                        time.sleep(0.01)

    return Held(max_length=1 << 20)


def together(folder: Path, spec: ModelSpec, say: Say) -> Backend:
    """Opens a model itself, and waits until two processes have."""
    found = open_backend(spec, say)
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 300
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return found


class Stuck:
    """A worker in which a small question is never answered."""

    def ready(self) -> int:
        return 0

    def call(self, name: str) -> None:
        while name == "hang":
            time.sleep(0.1)


def cluster() -> Any:
    """A Ray cluster of two nodes of one core on this machine.

    Ray gives a node half a minute to start, which a busy machine may exceed.
    """
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    for attempt in range(3):
        found: Any = Cluster()
        try:
            found.add_node(**node, include_dashboard=False)
            found.second = found.add_node(**node)
            found.wait_for_nodes()
        except Exception:
            found.shutdown()
            if attempt == 2:
                raise
            continue
        return found
    return None
