"""A folder that a training job fills with checkpoints: each is scored once when it is finished.

Run folders are the memory: a watch that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ceval_suite import catalog, rules
from ceval_suite.arrivals import Arrival, Signature, has_tokenizer, look
from ceval_suite.backends.adapter_files import config, expand
from ceval_suite.backends.base import Say
from ceval_suite.curves import Curve, find, of
from ceval_suite.errors import ConfigError, ModelError, NotNow, RunError, UserError, no_memory
from ceval_suite.model_spec import Adapter, ModelSpec
from ceval_suite.prepare import Prepared
from ceval_suite.progress import Items
from ceval_suite.records import read_json, safe_name
from ceval_suite.run import evaluate

SETTLE = 2.0
"""Seconds that a checkpoint must stay as it is, where nothing else says that it is finished."""

LONGEST = 600.0
"""Seconds between two tries of what may be over by itself, at most; they double until then."""

Order = Literal["newest-first", "newest", "all"]


@dataclass(frozen=True)
class Wanted:
    """What to watch, and how long.

    `base` is the model that adapters are put on, and whose tokenizer serves where there is none;
    `options` are keys of a model's entry. `order`: newest-first comes to older ones when nothing
    newer is there, newest leaves them out, all goes by steps. The watch ends when a step of `until`
    or later is scored or cannot be, when nothing has changed for `idle` seconds, or after one round
    (`once`).
    """

    folder: Path
    tasks: Sequence[Prepared]
    out: Path
    name: str
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    order: Order = "newest-first"
    every: float = 30.0
    once: bool = False
    until: int | None = None
    idle: float | None = None


@dataclass(frozen=True)
class Scored:
    """One checkpoint is scored: its run folders, and all curves of the training job so far.

    `new` is False where it was scored before this watch began.
    """

    arrival: Arrival
    new: bool
    folders: Sequence[Path]
    curves: Sequence[Curve]


class Watcher:
    """Looks, waits and scores; iterate over it.

    What cannot be scored is passed over until its files change. What is in the way without being
    wrong with a checkpoint (a full disk, a lock, no memory left) has it tried again at later looks.
    """

    def __init__(self, wanted: Wanted, say: Say) -> None:
        self.wanted = wanted
        self.say = say
        self.waiting: dict[Path, str] = {}  # what is not finished, and why
        self.failed: dict[Path, str] = {}  # what could not be scored so far, and why
        self._again: dict[Path, tuple[float, float]] = {}  # when it is tried again; the pause
        self._looked: dict[Path, tuple[float, Signature]] = {}  # since when it is as it is
        self._closed: dict[Path, Signature] = {}  # scored, or passed over as it was
        self._told: set[str] = set()
        self._changed = time.monotonic()

    def __iter__(self) -> Iterator[Scored]:
        """Each checkpoint when it is scored.

        Raises:
            ConfigError: no such folder, where only one round is wanted.
        """
        wanted = self.wanted
        end = False
        while not end:
            if not wanted.folder.is_dir():
                if wanted.once:
                    raise ConfigError(f"{wanted.folder}: no such folder.")
                self._tell(f"{wanted.folder} is not there yet; waiting for it")
            ready = self._ready()
            if wanted.once:
                time.sleep(min(SETTLE, wanted.every))
                ready = self._ready()
            while (one := self._next(ready)) is not None:
                again = one.folder in self._again
                scored = self._score(one)
                if scored is not None or not again:  # that it fails once more is no change
                    self._changed = time.monotonic()
                if scored is not None:
                    yield scored
                reached = one.step if one.step is not None and self._is_closed(one) else -1
                end = wanted.until is not None and reached >= wanted.until
                if end:
                    break
                if not wanted.once:
                    ready = self._ready()  # something newer may have come meanwhile
            idle = time.monotonic() - self._changed
            end = end or wanted.once or (wanted.idle is not None and idle >= wanted.idle)
            if not end:
                time.sleep(min(wanted.every, SETTLE) if self._settling() else wanted.every)
        for folder, why in self.waiting.items():
            self.say(f"{folder.name}: not finished when the watch ended: {why}")

    def _settling(self) -> bool:
        """Whether something only has to prove that it stays as it is."""
        return any(why == _UNSETTLED for why in self.waiting.values())

    def _ready(self) -> list[Arrival]:
        """Finished checkpoints that were not scored yet, by step."""
        now = time.monotonic()
        out: list[Arrival] = []
        self.waiting = {}
        for one in look(self.wanted.folder):
            since, before = self._looked.get(one.folder, (now, ()))
            if before != one.signature:
                since = self._changed = now
            self._looked[one.folder] = (since, one.signature)
            if self._is_closed(one):
                continue
            settled = one.sealed or now - since >= min(SETTLE, self.wanted.every)
            if one.missing or not settled:
                self.waiting[one.folder] = one.missing or _UNSETTLED
            else:
                out.append(one)
        return out

    def _is_closed(self, one: Arrival) -> bool:
        """Whether a checkpoint is scored, or passed over and still the same."""
        return self._closed.get(one.folder) in (_DONE, one.signature)

    def _next(self, ready: Sequence[Arrival]) -> Arrival | None:
        left = [one for one in ready if not self._is_closed(one)]
        for one in left[:-1] if self.wanted.order == "newest" else ():
            self._close(one, _DONE)
            self._tell(f"{one.folder.name}: passed over: {left[-1].folder.name} is newer")
        if self.wanted.order == "newest":
            left = left[-1:]
        now = time.monotonic()
        left = [one for one in left if self._again.get(one.folder, (now, 0.0))[0] <= now]
        if not left:
            return None
        return left[0] if self.wanted.order == "all" else left[-1]

    def _close(self, one: Arrival, signature: Signature) -> None:
        """Leave a checkpoint alone as long as it is as this signature says."""
        self._closed[one.folder] = signature
        self._again.pop(one.folder, None)
        if signature == _DONE:
            self.failed.pop(one.folder, None)

    def _tell(self, line: str) -> None:
        """Say something once."""
        if line not in self._told:
            self._told.add(line)
            self.say(line)

    def _score(self, one: Arrival) -> Scored | None:
        """Score one checkpoint; None where that could not be done, which is said."""
        wanted, name = self.wanted, name_of(self.wanted.name, one)
        notes: dict[str, Any] = {"series": wanted.name, "checkpoint": one.folder.name}
        if one.step is not None:
            notes["step"] = one.step
        new = not _complete(name, wanted)
        if new:
            self.say(f"{one.folder.name}: {one.kind} checkpoint")
        try:
            spec = spec_of(one, wanted)
            with Items(self.say if new else _silent) as items:
                folders = evaluate(name, spec, wanted.tasks, wanted.out, items.watch(), notes=notes)
        except Exception as error:
            passing = _may_pass(error)
            if not (passing or isinstance(error, UserError)):
                raise
            self._fail(one, error, passing)
            return None
        self._close(one, _DONE)
        return Scored(one, new, folders, of(find([wanted.out], wanted.name)))

    def _fail(self, one: Arrival, error: Exception, passing: bool) -> None:
        """Say why a checkpoint is not scored, and when it is looked at again."""
        name = one.folder.name
        if not _still_there(one):  # there is nothing left to score
            self.say(f"{name}: removed while it was being scored; passed over")
            self.failed.pop(one.folder, None)
            self._close(one, one.signature)
            return
        self.failed[one.folder] = str(error)
        if not passing:
            self.say(f"{name}: passed over: {error}")
            self._close(one, one.signature)
        elif self.wanted.once:
            self.say(f"{name}: not scored: {error}")
            self._again[one.folder] = (float("inf"), 0.0)
        else:
            self._tell(f"{name}: not scored yet, and tried again at later looks: {error}")
            _, pause = self._again.get(one.folder, (0.0, self.wanted.every / 2))
            pause = min(2 * pause, max(LONGEST, self.wanted.every))
            self._again[one.folder] = (time.monotonic() + pause, pause)


_UNSETTLED = "it may still be changing"

_DONE: Signature = ()
"""No checkpoint's: every one has files."""


def _silent(_: str) -> None:
    """Says nothing."""


def name_of(series: str, one: Arrival) -> str:
    """What the model of a checkpoint is called."""
    return f"{series}-step-{one.step}" if one.step is not None else f"{series}-{one.folder.name}"


def _complete(name: str, wanted: Wanted) -> bool:
    """Whether all runs of a model are finished."""
    files = [wanted.out / safe_name(name) / task.folder / "summary.json" for task in wanted.tasks]
    return all(file.is_file() and read_json(file).get("complete") for file in files)


def _may_pass(error: BaseException) -> bool:
    """Whether nothing is wrong with a checkpoint: a disk, a lock, memory or a hub is in the way."""
    some: BaseException | None = error
    while some is not None:
        if isinstance(some, RunError | NotNow | OSError) or no_memory(some):
            return True
        # what a sentence about the checkpoint was made of counts only where it is of this kind
        some = some.__cause__ if isinstance(some.__cause__, NotNow) else None
    return False


def _still_there(one: Arrival) -> bool:
    """Whether all files that the checkpoint had are where they were."""
    return all((one.folder / name).is_file() for name, _, _ in one.signature)


def spec_of(one: Arrival, wanted: Wanted) -> ModelSpec:
    """How a checkpoint is loaded: an adapter on its base, the tokenizer where there is one.

    Raises:
        UserError: a base or a tokenizer that is not to be had.
    """
    options = {key: value for key, value in wanted.options.items() if value is not None}
    if one.kind == "adapter" and wanted.base is not None:
        _, spec = catalog.load_model_spec(wanted.base)
        adapters = [*spec.adapters, Adapter(path=str(one.folder))]
        return catalog.override(spec, options | {"adapters": adapters})
    spec = ModelSpec(path=str(one.folder))
    if one.kind == "adapter":
        _check_base(spec)
    if one.kind == "full" and not one.has_tokenizer:
        options["tokenizer"] = _tokenizer(one, wanted)
    return catalog.override(spec, options)


def _check_base(spec: ModelSpec) -> None:
    try:
        expand(spec)
    except ModelError:
        base = config(Path(spec.path)).get("base_model_name_or_path")
        named = f"its base, {base}, is not here" if base else "it names no base"
        raise ModelError(f"an adapter, and {named}; give --base.") from None


def _tokenizer(one: Arrival, wanted: Wanted) -> str:
    if has_tokenizer(wanted.folder):
        return str(wanted.folder)
    if wanted.base is None:
        raise ModelError(
            "no tokenizer in it or beside it; have the Trainer save one (processing_class=), or "
            "give --base."
        )
    _, base = catalog.load_model_spec(wanted.base)
    return base.tokenizer or base.path


def judged(
    alerts: Sequence[rules.Rule], stops: Sequence[rules.Rule], curves: Sequence[Curve]
) -> list[tuple[rules.Holds, bool]]:
    """The rules that hold at the last checkpoints, and whether each ends the watch."""
    out: list[tuple[rules.Holds, bool]] = []
    for some, ends in ((alerts, False), (stops, True)):
        for rule in some:
            found = rules.holds(rule, curves)
            if found is not None:
                out.append((found, ends))
    return out
