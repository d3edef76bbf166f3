"""Workers that Ray places: on this machine, on a cluster, on Slurm or Kubernetes through Ray.

One actor a worker, with its share of the GPUs or of the processor's cores. Actors are never
restarted by Ray itself: whoever drives them knows what they had answered.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.hands import Answer, Event, Lost
from ceval_suite.errors import ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request

Opener = Callable[[ModelSpec, Say], Backend]
Identify = Callable[[ModelSpec], dict[str, Any]]

BATCH = 64
"""Replies that travel together, at most."""

OFTEN = 0.2
"""Seconds that a reply waits for others to travel with, at most."""

KNOCK = 10.0
"""Seconds in which a cluster must answer that it is there."""

ROOM = 600.0
"""Seconds without any worker until no node is said to have room for one: clusters may grow."""


class Worker:
    """What runs in an actor: a backend, and what it is told to do with it.

    Errors that a user can put right travel as values; all others end the worker's task, and count
    as its death.
    """

    def __init__(self, opener: Opener, identify: Identify) -> None:
        self._opener = opener
        self._identify = identify
        self._backend: Backend | None = None
        self._lines: list[str] = []

    def ready(self) -> int:
        """That it is there: its process id."""
        return os.getpid()

    def open(self, spec: ModelSpec) -> Iterator[list[tuple[str, Any]]]:
        """Open a model in place of the one before."""
        host = socket.gethostname()
        try:
            self._backend = None  # two models need not fit
            for path in _paths(spec):
                if path.is_absolute() and not path.exists():
                    raise ModelError(
                        f"{path} is not on {host}, where a worker runs; put the model at the same "
                        "path on every node, or name it by its hub id."
                    )
            identity = self._identify(spec)
            self._backend = self._opener(spec, self._lines.append)
            about = self._about(self._backend)
            yield [*self._said(), ("opened", about | {"host": host, "identity": identity})]
        except UserError as error:
            yield [*self._said(), ("error", error)]

    def ask(self, requests: Sequence[Request]) -> Iterator[list[tuple[str, Any]]]:
        """Replies to a unit, some at a time, and then that it is done."""
        assert self._backend is not None
        some: list[Any] = []
        sent = time.monotonic()
        try:
            for reply in self._backend.ask(requests):
                some.append(reply)
                if len(some) >= BATCH or time.monotonic() - sent > OFTEN:
                    yield [*self._said(), ("replies", some)]
                    some, sent = [], time.monotonic()
        except UserError as error:
            yield [("replies", some), *self._said(), ("error", error)]
            return
        about = self._about(self._backend) | {"host": socket.gethostname()}
        yield [("replies", some), *self._said(), ("done", about)]

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """What a method of the backend returns, or the user error that it raises."""
        try:
            return getattr(self._backend, name)(*args, **options)
        except UserError as error:
            return error

    def _said(self) -> list[tuple[str, Any]]:
        lines, self._lines[:] = [*self._lines], []
        return [("says", line) for line in lines]

    @staticmethod
    def _about(backend: Backend) -> dict[str, Any]:
        return {**backend.describe(), "max_length": backend.max_length}


class RayHands:
    """Workers as actors of a Ray cluster."""

    def __init__(
        self,
        opener: Opener,
        identify: Identify,
        workers: int,
        *,
        address: str | None = None,
        gpus: float | None = None,
    ) -> None:
        """Join the cluster at `address`, or make one of this machine.

        `gpus` is each worker's share: by default 1 where the cluster has any, else none.

        Raises:
            ImportError: Ray is not installed.
            ModelError: no cluster answers there.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = __import__("ray")
        self._mine = not self._ray.is_initialized()
        self._local = address is None
        if self._mine:
            self._join(address, workers)
        self._needs = self._share(workers, gpus)
        self._actor: Any = self._ray.remote(Worker)
        self._arguments = (opener, identify)
        self._actors: dict[int, Any] = {}
        self._running: dict[Any, int] = {}
        self._count = 0

    def _join(self, address: str | None, workers: int) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
            quiet |= {"include_dashboard": False}
            quiet |= {"num_cpus": max(workers, cores or os.cpu_count() or 1)}
        # in the main thread Ray has SIGTERM end the process on the spot
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            if address is not None:
                _knock(address)
            self._ray.init(address=address or "local", **quiet)
        except Exception as error:  # a machine too busy to start Ray raises no class of its own
            text = " ".join(str(error).split())[:200]
            raise ModelError(
                f"--ray {address or 'local'}: no Ray cluster answers ({text}); start one with "
                "'ray start --head', or leave --ray out to use this machine alone; set "
                "RAY_AUTH_MODE=token where the cluster asks for one."
            ) from error
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def _share(self, workers: int, gpus: float | None) -> dict[str, float]:
        """What a worker is given: GPUs and a core, or its share of the cores."""
        nodes = [node["Resources"] for node in self._nodes()]
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        if gpus:
            return {"num_gpus": gpus, "num_cpus": 1}
        cores = [int(node.get("CPU", 0)) for node in nodes]
        share = max(cores, default=1)
        while share > 1 and sum(n // share for n in cores) < workers:
            share -= 1
        # Ray sets OMP_NUM_THREADS to it, so that workers of one machine divide its cores
        return {"num_gpus": 0, "num_cpus": max(1, share)}

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def start(self) -> int:
        """A new actor, where there is room for it."""
        self._count += 1
        actor = self._actor.options(max_restarts=0, max_task_retries=0, **self._needs).remote(
            *self._arguments
        )
        self._actors[self._count] = actor
        self._running[actor.ready.remote()] = self._count
        return self._count

    def tell(self, worker: int, spec: ModelSpec, requests: Sequence[Request] | None) -> None:
        """Open a model, or compute a unit."""
        actor = self._actors[worker]
        method, what = (actor.ask, requests)
        if requests is None:
            method, what = (actor.open, placed(spec, self._needs["num_gpus"]))
        self._running[method.options(num_returns="streaming").remote(what)] = worker

    def call(self, worker: int, name: str, *args: Any, **options: Any) -> Answer:
        """Ask the worker's backend something."""
        actor = self._actors.get(worker)
        if actor is None:
            raise Lost("it is gone")
        ref = actor.call.remote(name, *args, **options)

        def answer(seconds: float) -> Any:
            try:
                found = self._ray.get(ref, timeout=seconds)
            except self._ray.exceptions.GetTimeoutError as error:
                raise TimeoutError from error
            except self._ray.exceptions.RayError as error:
                raise Lost(_reason(error)) from error
            if isinstance(found, UserError):
                raise found
            return found

        return answer

    def kill(self, worker: int) -> None:
        """End an actor's process at once."""
        actor = self._actors.pop(worker, None)
        self._running = {ref: who for ref, who in self._running.items() if who != worker}
        if actor is not None:
            self._ray.kill(actor)

    def wait(self, seconds: float) -> list[Event]:
        """What actors have sent."""
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [event for ref in ready for event in self._events(ref)]

    def _events(self, ref: Any) -> list[Event]:
        worker = self._running[ref]
        try:
            if isinstance(ref, self._ray.ObjectRef):
                del self._running[ref]
                self._ray.get(ref)
                return [Event(worker, "ready")]
            return [Event(worker, *each) for each in self._ray.get(next(ref))]
        except StopIteration:
            del self._running[ref]
            return []
        except self._ray.exceptions.RayError as error:
            self.kill(worker)
            return [Event(worker, "lost", _reason(error))]

    def nowhere(self, waited: float) -> str | None:
        """Why no worker comes: there is no node that could hold one."""
        if waited < ROOM and not (self._local and not self._fits()):
            return None
        gpus, cpus = self._needs["num_gpus"], self._needs["num_cpus"]
        wants = f"{gpus:g} GPUs and {cpus:g} core" if gpus else f"{cpus:g} cores"
        return (
            f"no node of the Ray cluster has room for a worker ({wants} each; waited "
            f"{waited:.0f} s); give fewer --gpus-per-worker, or start more nodes."
        )

    def _fits(self) -> bool:
        gpus, cpus = self._needs["num_gpus"], self._needs["num_cpus"]
        nodes = [node["Resources"] for node in self._nodes()]
        return any(n.get("GPU", 0) >= gpus and n.get("CPU", 0) >= cpus for n in nodes)

    def close(self) -> None:
        """End all workers, and the cluster if it was made here."""
        for worker in list(self._actors):
            self.kill(worker)
        if self._mine:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """See that something listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "//" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _paths(spec: ModelSpec) -> list[Path]:
    return [Path(p) for p in (spec.path, spec.tokenizer, *(a.path for a in spec.adapters)) if p]


def placed(spec: ModelSpec, gpus: float = 0) -> ModelSpec:
    """The spec as a process in another folder understands it, that has this share of a GPU."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if Path(path).exists() else path

    adapters = [a.model_copy(update={"path": absolute(a.path)}) for a in spec.adapters]
    update: dict[str, Any] = {"path": absolute(spec.path), "adapters": adapters}
    if spec.tokenizer:
        update["tokenizer"] = absolute(spec.tokenizer)
    if spec.backend == "vllm" and 0 < gpus < 1:  # which else takes most of a GPU for itself
        most = spec.backend_options().gpu_memory_utilization * gpus
        update["options"] = {**spec.options, "gpu_memory_utilization": most}
    return spec.model_copy(update=update)


def _reason(error: BaseException) -> str:
    """The line of Ray's report that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[-1]}"[:200] if lines else name
