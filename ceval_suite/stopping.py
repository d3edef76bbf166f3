"""Asked to end: at once, or, while records are made, as soon as what is under way is done.

A cluster that takes a machine back sends SIGTERM and waits before it kills. A pass of the model
that is half done would be lost, so within `grace` its records are written first; who asks twice,
or whose grace runs out, is obeyed at once. No wall clock is looked at.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

GRACE = 10.0
"""Seconds in which what is under way may come to its end; Slurm and Kubernetes wait 30."""


@dataclass
class _State:
    within: int = 0
    asked: bool = False


_state = _State()
_counting = threading.Lock()
"""Several threads make records at once; the signal's handler only reads, and needs no lock."""


def listen() -> None:
    """Heed SIGTERM from now on."""
    signal.signal(signal.SIGTERM, _asked)


def _asked(_signal: int, _frame: Any) -> None:
    if _state.within and not _state.asked and hasattr(signal, "setitimer"):
        _state.asked = True
        signal.signal(signal.SIGALRM, _over)
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        return
    raise KeyboardInterrupt


def _over(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def asked() -> bool:
    """Whether somebody asked for the end, and what is under way may still be finished."""
    return _state.asked


def point() -> None:
    """A place where nothing is under way.

    Raises:
        KeyboardInterrupt: somebody asked for the end.
    """
    if _state.asked:
        raise KeyboardInterrupt


@contextmanager
def grace() -> Generator[None, None, None]:
    """Within it, what is under way is finished before an end that is asked for.

    Raises:
        KeyboardInterrupt: on leaving, where somebody asked for the end.
    """
    _count(1)
    try:
        yield
        point()
    finally:
        _count(-1)
        main = threading.current_thread() is threading.main_thread()
        if not _state.within and _state.asked and main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _state.asked = False


def _count(by: int) -> None:
    with _counting:
        _state.within += by
