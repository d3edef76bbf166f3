"""What a person sees while work goes on: bars on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ceval_suite.backends.base import Say
from ceval_suite.run import Watch
from ceval_suite.schema import Record

PLAIN_EVERY = 15.0
"""Seconds between plain lines when stderr is not a terminal."""


class Items:
    """Progress over items: count, items/s, time left and running accuracy."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[accuracy]}"),
                console=self._console,
            )
        self._task: TaskID | None = None
        self._reset("", 0, 0)

    def _reset(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done, self._fresh = name, total, done, 0
        self._right = self._judged = 0
        self._begun = self._shown = time.monotonic()

    def __enter__(self) -> Items:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def watch(self) -> Watch:
        """The callbacks a run calls."""
        return Watch(say=self._line, start=self._start, step=self._step, stop=self._stop)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._say(text)

    def _start(self, name: str, total: int, done: int) -> None:
        self._reset(name, total, done)
        if done:
            self._line(f"{name}: {done} of {total} items were finished before")
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total, completed=done, rate="", accuracy="")

    def _step(self, record: Record) -> None:
        self._done += 1
        self._fresh += 1
        if record.correct is not None:
            self._judged += 1
            self._right += record.correct
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=self._done, rate=self._rate(now), accuracy=self._accuracy()
            )
        elif now - self._shown >= PLAIN_EVERY:
            self._shown = now
            left = (now - self._begun) / self._fresh * (self._total - self._done)
            self._line(
                f"{self._name}: {self._done}/{self._total}, {self._rate(now)}, "
                f"{left:.0f} s left, {self._accuracy()}"
            )

    def _rate(self, now: float) -> str:
        return f"{self._fresh / max(now - self._begun, 1e-6):.1f} items/s"

    def _accuracy(self) -> str:
        return f"{100 * self._right / self._judged:.1f} % right" if self._judged else "no labels"

    def _stop(self) -> None:
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if self._fresh:
            self._line(
                f"{self._name}: {self._done}/{self._total} items, {self._rate(now)}, "
                f"{now - self._begun:.1f} s, {self._accuracy()}"
            )


class Bytes:
    """Progress of downloads."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bytes:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, name: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` bytes of a file are here."""
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total)
        self._bar.update(self._tasks[name], completed=done, total=total)
