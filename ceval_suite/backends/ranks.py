"""Several processes that torchrun started together, for a model that no single GPU holds.

The first process alone reads tasks, opens run folders, writes and speaks. The others follow: they
load what it loads, compute the requests that it computes, and write nothing. What could differ
between them (a verdict, a choice by time) is the first one's to decide: a process that goes
another way would leave the rest waiting for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ceval_suite.backends.base import Say
from ceval_suite.errors import ModelError

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be fetching a large checkpoint meanwhile."""

GRACE = 2.0
"""Seconds in which the first process may stumble over the same trouble, and say so itself."""

LOOK = 0.2
"""Seconds between two looks for another process's trouble."""

_TROUBLE = "ceval_suite/trouble"


def count() -> int:
    """Processes that torchrun started together; 1 without it."""
    # torchrun's own mark: clusters set RANK for jobs that have nothing to do with each other
    started = "TORCHELASTIC_RUN_ID" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if started else 1


def first() -> bool:
    """Whether this is the process that leads."""
    return count() == 1 or os.environ["RANK"] == "0"


def join() -> None:
    """Meet the other processes; objects travel by gloo, a GPU's tensors by NCCL."""
    import torch
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)


def leave(*, tell_others: bool = False) -> None:
    """Part from the other processes; with `tell_others` they end as well."""
    import torch.distributed as dist

    if tell_others:
        tell(None)
    dist.destroy_process_group()


def tell(order: Any) -> None:
    """Have the other processes do what this one, the first, is about to do."""
    if first():
        agreed(order)


def agreed(value: Any = None) -> Any:
    """The first process's value, in all processes."""
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def check_alike(what: str, value: Any) -> None:
    """All processes must have one value.

    Raises:
        ModelError: they differ; raised in all of them.
    """
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    if any(other != found[0] for other in found):
        raise ModelError(f"the processes differ in {what} ({found}); start them on like machines.")


def report(trouble: str) -> None:
    """Have the first process say what ended this one, and give it the time to."""
    # the first may be waiting for this process in the midst of a pass, where nothing else reaches
    # it; ending at once would only tell it that a connection broke
    try:
        _store().set(_TROUBLE, f"process {os.environ['RANK']}: {trouble}")
        time.sleep(20 * GRACE)  # cut short by torchrun as soon as the first has spoken and ended
    except RuntimeError:
        return  # the first has ended, and with it whom to tell


@contextmanager
def heeding(say: Say) -> Generator[None, None, None]:
    """Within it, trouble of another process ends this one, the first, with its one sentence."""
    done = threading.Event()
    store = _store()

    def look() -> None:
        while not done.wait(LOOK):
            try:
                if not store.check([_TROUBLE]):
                    continue
                trouble = store.get(_TROUBLE).decode()
            except RuntimeError:
                return  # torchrun has ended and ends all processes
            if not done.wait(GRACE):
                say(f"error: {trouble}")
                sys.stderr.flush()
                # the pass may wait for the other process for ever; records are on disk already
                os._exit(1)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def lost(error: BaseException) -> bool:
    """Whether an error says that another process has gone."""
    import torch.distributed as dist

    text = str(error).lower()
    named = any(word in text for word in ("gloo", "nccl", "connection closed", "connection reset"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)


def _store() -> Any:
    import torch.distributed as dist

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    library: Any = dist  # whose stubs lack the store
    return library.TCPStore(*place, is_master=False, timeout=timedelta(seconds=60))
