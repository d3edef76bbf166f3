"""What a crew needs to know of its workers: how they are started and told, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ceval_suite.backends.scheduling import Worker
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request


@dataclass(frozen=True)
class Event:
    """What a worker did: `ready`, `opened`, `replies`, `says`, `done`, `error` or `lost`.

    The value is what its backend describes (opened, done; with `host`, `max_length` and the
    `identity` of the model), the replies, a line for the person, the error that the user can put
    right, or why it is gone.
    """

    worker: Worker
    kind: str
    value: Any = None


class Lost(Exception):
    """A worker that was asked something is gone."""


Answer = Callable[[float], Any]
"""What a worker's backend returns, when it comes within so many seconds.

Raises `TimeoutError`, `Lost`, or the user error of the backend.
"""


class Hands(Protocol):
    """Starts workers, and tells them what to do; only `wait` waits, and answers to `call`."""

    def start(self) -> Worker:
        """A new worker; `ready` comes when it is there."""
        ...

    def tell(self, worker: Worker, spec: ModelSpec, requests: Sequence[Request] | None) -> None:
        """Open a model, or (with requests) compute a unit with the one that is open."""
        ...

    def call(self, worker: Worker, name: str, *args: Any, **options: Any) -> Answer:
        """Have a method of the worker's backend called; raises `Lost` if the worker is gone."""
        ...

    def kill(self, worker: Worker) -> None:
        """End a worker, whatever it does; nothing more is heard of it."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, waiting so long for something to happen."""
        ...

    def nowhere(self, waited: float) -> str | None:
        """Why no worker comes, when waiting `waited` seconds for one was enough."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
