"""What a person sees while work goes on: bars on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from threading import RLock
from types import TracebackType

from rich import filesize
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

from ceval_suite import terminal
from ceval_suite.backends.base import Say
from ceval_suite.run import Watch
from ceval_suite.schema import Record

PLAIN_EVERY = 15.0
"""Seconds between plain lines when stderr is not a terminal."""


class Items:
    """Progress over items: count, items/s, time left and running accuracy."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._console = Console(file=terminal.raw(sys.stderr))
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not terminal.is_json():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[accuracy]}"),
                console=self._console,
            )
        self._tasks: dict[str, _Task] = {}
        self._last: dict[str, float] = {}
        self._shown = time.monotonic()
        self._lock = RLock()

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

    def watch(self, who: str = "") -> Watch:
        """The callbacks a run calls; `who` stands before all that several runs at once say."""
        mark = f"{who}: " if who else ""

        def say(text: str) -> None:
            self._line(mark + text)

        def start(name: str, total: int, done: int) -> None:
            self._start(mark, mark + name, total, done)

        def step(name: str, record: Record) -> None:
            self._step(mark, mark + name, record)

        return Watch(say=say, start=start, step=step, stop=lambda: self._stop(mark))

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(terminal.visible(text), highlight=False, markup=False)
        else:
            self._say(text)

    def _start(self, mark: str, name: str, total: int, done: int) -> None:
        if done:
            self._line(f"{name}: {done} of {total} items were finished before")
        bar = None
        if self._bar is not None:
            bar = self._bar.add_task(
                terminal.visible(name), total=total, completed=done, rate="", accuracy=""
            )
        with self._lock:
            self._tasks[name] = _Task(total, done, bar)
            self._last[mark] = self._shown = time.monotonic()

    def _step(self, mark: str, name: str, record: Record) -> None:
        now = time.monotonic()
        task = self._tasks[name]
        task.step(record, now - self._last[mark])
        self._last[mark] = now
        if self._bar is not None and task.bar is not None:
            self._bar.update(
                task.bar, completed=task.done, rate=task.rate(), accuracy=task.accuracy()
            )
        elif now - self._shown >= PLAIN_EVERY:
            self._shown = now
            left = task.seconds / task.fresh * (task.total - task.done)
            terminal.event("progress", task=name, done=task.done, total=task.total)
            self._line(
                f"{name}: {task.done}/{task.total}, {task.rate()}, {left:.0f} s left, "
                f"{task.accuracy()}"
            )

    def _stop(self, mark: str) -> None:
        with self._lock:
            mine = {name: self._tasks.pop(name) for name in [*self._tasks] if name.startswith(mark)}
        for name, task in mine.items():
            if self._bar is not None and task.bar is not None:
                self._bar.remove_task(task.bar)
            if task.fresh:
                self._line(
                    f"{name}: {task.done}/{task.total} items, {task.rate()}, "
                    f"{task.seconds:.1f} s, {task.accuracy()}"
                )


@dataclass
class _Task:
    """Items of one task, finished before (`done`) and in this call (`fresh`)."""

    total: int
    done: int
    bar: TaskID | None
    fresh: int = 0
    seconds: float = 0.0
    judged: int = 0
    right: int = 0

    def step(self, record: Record, seconds: float) -> None:
        self.done += 1
        self.fresh += 1
        self.seconds += seconds
        if record.correct is not None:
            self.judged += 1
            self.right += record.correct

    def rate(self) -> str:
        return f"{self.fresh / max(self.seconds, 1e-6):.1f} items/s"

    def accuracy(self) -> str:
        return f"{100 * self.right / self.judged:.1f} % right" if self.judged else "no labels"


class Bytes:
    """Progress of downloads."""

    def __init__(self, say: Say = lambda _: None) -> None:
        """Without a terminal, `say` is given a line now and then."""
        drawn = sys.stderr.isatty() and not terminal.is_json()
        self._say = None if drawn else say
        self._shown = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(file=terminal.raw(sys.stderr)),
            disable=not drawn,
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
        now = time.monotonic()
        if self._say is not None and now - self._shown >= PLAIN_EVERY:
            self._shown = now
            of = f" of {filesize.decimal(total)}" if total else ""
            self._say(f"{name}: {filesize.decimal(done)}{of}")
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(terminal.visible(name), total=total)
        self._bar.update(self._tasks[name], completed=done, total=total)
