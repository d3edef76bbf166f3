"""How far a command is, in files for programs: a progress file, and one for Prometheus.

`--progress FILE` is JSON, `--metrics FILE` what node-exporter's textfile collector reads. Both are
replaced in one step, at most once a second by a clock that never jumps; a file that cannot be
written is said once and stops nothing. Models that are scored in several threads take turns.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY = 1.0
"""Seconds between two writes, at least."""


@dataclass
class Part:
    """One task of one model: items in all, finished before, now, and the judged among them."""

    model: str
    task: str
    total: int
    before: int
    done: int = 0
    judged: int = 0
    right: int = 0
    begun: float = 0.0
    last: float = 0.0

    def about(self) -> dict[str, Any]:
        """The numbers of a poller; what is not known yet is null."""
        seconds = self.last - self.begun
        fresh = self.done - self.before
        rate = fresh / seconds if fresh and seconds > 0 else None
        return {
            "model": self.model,
            "task": self.task,
            "total": self.total,
            "done": self.done,
            "items_per_second": rate,
            "seconds_left": (self.total - self.done) / rate if rate else None,
            "accuracy": self.right / self.judged if self.judged else None,
        }


@dataclass
class _State:
    progress: Path | None = None
    metrics: Path | None = None
    state: str = "running"
    parts: dict[tuple[str, str], Part] = field(default_factory=dict[tuple[str, str], Part])
    written: float = float("-inf")
    silent: bool = False
    working: bool = False
    say: Callable[[str], None] = lambda _: None

    def reset(
        self,
        progress: Path | None = None,
        metrics: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.progress, self.metrics, self.say = progress, metrics, say
        self.state, self.written, self.silent = "running", float("-inf"), False
        self.working = False
        self.parts.clear()


_now = _State()
_turn = threading.RLock()


def begin(progress: Path | None, metrics: Path | None, say: Callable[[str], None]) -> None:
    """Write to these files until the end; a command that fails at once leaves its state there."""
    with _turn:
        _now.reset(progress, metrics, say)
        _write(force=True)


@contextmanager
def work() -> Generator[None, None, None]:
    """Items are scored; whatever ends this by an error ends it too soon."""
    _now.working = True
    yield
    _now.working = False


def at_work() -> bool:
    """Whether items were still to be scored when the command ended."""
    return _now.working


def start(model: str, task: str, total: int, done: int) -> None:
    """A task begins, or goes on."""
    now = time.monotonic()
    with _turn:
        _now.parts[(model, task)] = Part(model, task, total, done, done, begun=now, last=now)
        _write()


def step(model: str, task: str, correct: bool | None) -> None:
    """One more record; None where there is nothing to judge it by."""
    with _turn:
        part = _now.parts.get((model, task))
        if part is None:
            return
        part.done += 1
        part.last = time.monotonic()
        if correct is not None:
            part.judged += 1
            part.right += correct
        _write()


def end(state: str) -> None:
    """`finished`, `interrupted` or `failed`; the first one counts."""
    with _turn:
        if _now.progress is None and _now.metrics is None:
            return
        if _now.state == "running":
            _now.state = state
        _write(force=True)
        _now.reset()


def _write(*, force: bool = False) -> None:
    if _now.progress is None and _now.metrics is None:
        return
    if not force and time.monotonic() - _now.written < EVERY:
        return
    _now.written = time.monotonic()
    for path, text in ((_now.progress, as_json), (_now.metrics, as_metrics)):
        if path is not None:
            _replace(path, text())


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if not _now.silent:
            _now.silent = True
            _now.say(f"{path}: cannot be written ({error.strerror}); the run goes on without it")


def as_json() -> str:
    """The progress file."""
    parts = [part.about() for part in _now.parts.values()]
    whole = {
        "state": _now.state,
        "pid": os.getpid(),
        "done": sum(part["done"] for part in parts),
        "total": sum(part["total"] for part in parts),
        "tasks": parts,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


GAUGES = {
    "total": ("ceval_suite_items", "Items of a task."),
    "done": ("ceval_suite_items_done", "Items with a record."),
    "items_per_second": ("ceval_suite_items_per_second", "Items scored a second by this process."),
    "seconds_left": ("ceval_suite_seconds_left", "Expected seconds to the end of the task."),
    "accuracy": ("ceval_suite_accuracy", "Share of right answers among those scored so far."),
}
"""Key of the progress file → name and help of a metric."""

STATES = ("running", "finished", "interrupted", "failed")


def as_metrics() -> str:
    """The same as Prometheus text."""
    lines = [
        "# HELP ceval_suite_state Whether the command is in this state (1) or not (0).",
        "# TYPE ceval_suite_state gauge",
        *(f'ceval_suite_state{{state="{one}"}} {int(one == _now.state)}' for one in STATES),
    ]
    parts = [part.about() for part in _now.parts.values()]
    for key, (name, text) in GAUGES.items():
        values = [(part, part[key]) for part in parts if part[key] is not None]
        if values:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        for part, value in values:
            labels = f'model="{_label(part["model"])}",task="{_label(part["task"])}"'
            lines.append(f"{name}{{{labels}}} {value:.10g}")
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
