"""One model that is put to the workers of a crew, and what came of it for the thread that asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ceval_suite.backends.base import Say
from ceval_suite.backends.hands import Event
from ceval_suite.backends.scheduling import DEATHS, Order, Worker
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request


@dataclass
class Job:
    """A model, the units of requests put to it, and what its workers said of it."""

    number: int
    spec: ModelSpec
    say: Say
    identity: dict[str, Any]
    inbox: SimpleQueue[Event] = field(default_factory=SimpleQueue[Event])
    units: list[list[Request]] = field(default_factory=list[list[Request]])
    about: dict[Worker, dict[str, Any]] = field(default_factory=dict[Worker, dict[str, Any]])
    opened: dict[str, Any] = field(default_factory=dict[str, Any])
    lost: int = 0

    def next(self) -> Event:
        """What happens next, waiting for it; raises what ended the job."""
        event = self.inbox.get()
        if event.kind == "error":
            raise event.value
        return event

    def lose(self, why: str) -> None:
        """One of its workers is gone."""
        self.lost += 1
        self.say(f"a worker was lost ({why}); another does its work")

    def give_up(self, worker: Worker, order: Order, why: str) -> None:
        """One of its workers is gone, and whoever did the same after it would be."""
        self.lost += 1
        died = f"{DEATHS} workers in a row died"
        text = f"{self.spec.path}: {died} opening it ({why})."
        if order.unit is not None:
            unit = self.units[order.unit]
            text = (
                f"{unit[0].id}: {died} on the {len(unit)} items from this one on ({why}); "
                "finished records are kept."
            )
        self.inbox.put(Event(worker, "error", ModelError(text)))
