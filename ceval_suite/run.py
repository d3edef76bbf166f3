"""The conductor: catalog → data → prompt → backend → answer → records → summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ceval_suite import __version__, beacon, stopping, summary
from ceval_suite.answer import Judge
from ceval_suite.asking import Call
from ceval_suite.backends import Unchanged, open_backend
from ceval_suite.backends.base import Backend, Say
from ceval_suite.errors import ModelError, RunError
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared
from ceval_suite.records import RunFolder, read_json, safe_name, write_json
from ceval_suite.request import Prompt
from ceval_suite.schema import Item, Record
from ceval_suite.verify import check_again


@dataclass
class Watch:
    """What a person sees while a run goes on; every field may be replaced."""

    say: Say = lambda _: None
    start: Callable[[str, int, int], None] = lambda _name, _total, _done: None
    step: Callable[[str, Record], None] = lambda _name, _record: None
    stop: Callable[[], None] = lambda: None


class Weights(Protocol):
    """Which weights answer, and that they still do; files for one that is loaded by its spec."""

    identity: dict[str, Any]

    def check(self) -> None:
        """Raises ModelError when they are other ones by now."""
        ...


@dataclass
class _Open:
    """A task whose run folder is open and still lacks records."""

    prepared: Prepared
    run: RunFolder
    left: list[Item]
    name: str
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    missing: int = 0


def evaluate(
    model: str,
    spec: ModelSpec,
    tasks: Sequence[Prepared],
    out: Path,
    watch: Watch | None = None,
    *,
    verify: int = 0,
    opener: Callable[[ModelSpec, Say], Backend] | None = None,
    weights: Weights | None = None,
    notes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Score one model on the prepared tasks; finished records are reused, never repeated.

    All tasks go to the model in one call, which computes once what they share; it is loaded only
    when something is left. `verify` items are scored again by the plain path in float32. `opener`
    is used in place of `open_backend` with the `weights` it has; `notes` are added to run.json.

    Returns:
        The run folders, in the order of `tasks`, each once.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    watch = watch or Watch()
    if verify and spec.backend != "hf":
        raise ModelError(f"--verify needs the weights: model '{model}' is not of backend hf.")
    weights = weights or Unchanged(spec)
    folders = [out / safe_name(model) / prepared.folder for prepared in tasks]
    with ExitStack() as stack:
        runs: list[tuple[Prepared, RunFolder]] = []
        some: list[_Open] = []
        # a task that is asked for twice is one run
        for folder, prepared in dict(zip(folders, tasks, strict=True)).items():
            about = {"model": {"name": model, **spec.model_dump(exclude_defaults=True)}}
            about |= prepared.about() | {"ceval_suite": __version__} | dict(notes or {})
            who = {"protocol_sha256": prepared.fingerprint, "model": model, **weights.identity}
            # another model's folder is refused here, before anything heavy is loaded
            run = stack.enter_context(RunFolder(folder, who, about))
            _say_lock(run, watch)
            left = _left(prepared, run)
            if not left and _summarized(folder):
                watch.say(f"{prepared.task.name}: reused {folder}")
                if not verify:
                    continue
            else:
                _say_not_scored(prepared, watch)
            runs.append((prepared, run))
            if left:
                some.append(_Open(prepared, run, left, _label(prepared, tasks)))
        if some:
            watch.say(f"loading {model}")
            backend = (opener or open_backend)(spec, watch.say)
            _score(some, backend, watch, weights, whole=spec.engine == "reproducible")
        for _, run in runs:
            _summarize(run)
        if verify and runs:
            check_again(runs, verify, spec, watch.say)
    return list(dict.fromkeys(folders))


def _say_lock(run: RunFolder, watch: Watch) -> None:
    if run.soft_lock:
        watch.say(f"{run.path}: no file locks on this disk; the file .lock stands for one")


def _label(prepared: Prepared, tasks: Sequence[Prepared]) -> str:
    """The task's name, with protocol and shots where the call has it more than once."""
    name = prepared.task.name
    if sum(other.task.name == name for other in tasks) == 1:
        return name
    return f"{name} {prepared.protocol} {prepared.shots}-shot"


def _summarized(folder: Path) -> bool:
    try:
        return bool(read_json(folder / "summary.json").get("complete"))
    except RunError:  # none there, or none that can be read: it is made again
        return False


def _left(prepared: Prepared, run: RunFolder) -> list[Item]:
    items = prepared.scored()
    strays = set(run.done) - {id for item in items for id in item.record_ids()}
    if strays:
        raise RunError(f"{run.path}: item {min(strays)} does not belong to this run; delete it.")
    return [item for item in items if not run.done.keys() >= {*item.record_ids()}]


def _score(
    some: Sequence[_Open], backend: Backend, watch: Watch, weights: Weights, *, whole: bool
) -> None:
    call = _asked(some, backend, watch, whole=whole)
    try:
        with stopping.grace():
            _answered(some, call, backend, watch, weights)
    except BaseException:
        with suppress(RunError):  # of a full disk was told already
            _leave(some, backend, watch)
        raise
    _leave(some, backend, watch)


def _asked(some: Sequence[_Open], backend: Backend, watch: Watch, *, whole: bool) -> Call:
    """All prompts that are left of all tasks, as one call; run.json notes what it is asked of.

    `whole` asks by units, made of all that a task asks.
    """
    call = Call()
    for one in some:
        begun = time.perf_counter()
        one.run.check_numerics(backend.describe().get("dtype"))
        items, given = (one.prepared.scored(), {}) if whole else (one.left, _given(one))
        prompts = render(one.prepared, items, backend, given)
        _say_fitting(one.prepared, prompts, watch)
        first = next((p for p in prompts if p.continuations and not p.after), None)
        letters = backend.audit([first.request()] if first else [])
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        one.run.update({"engine": backend.describe(), "letters": letters, "date": date})
        judge = Judge(one.prepared.task, one.prepared.template)
        call.add(judge, prompts, one.prepared.folder, one.run.done if whole else None)
        asked = {id for prompt in prompts for id in prompt.item.record_ids()}
        total, done = len(one.run.done.keys() | asked), len(one.run.done)
        watch.start(one.name, total, done)
        beacon.start(one.run.identity["model"], one.name, total, done)
        one.seconds = {"scoring": 0.0, "rest": time.perf_counter() - begun}
        one.tokens = {"total": 0, "computed": 0, "written": 0}
        one.missing = len(one.left)
    return call


def _answered(
    some: Sequence[_Open], call: Call, backend: Backend, watch: Watch, weights: Weights
) -> None:
    """Ask, and record each answer as it comes."""
    last = time.perf_counter()
    for answer in call.answers(backend):
        one = some[answer.task]
        # whatever comes was computed before this moment, and so from the files as they were
        weights.check()
        fresh = [record for record in answer.records if record.id not in one.run.done]
        for record in fresh:
            one.run.append(record)
            watch.step(one.name, record)
            beacon.step(one.run.identity["model"], one.name, record.correct)
        one.tokens["total"] += answer.reply.num_tokens
        one.tokens["computed"] += answer.reply.new_tokens
        one.tokens["written"] += answer.reply.written
        # what passes between two replies is the second one's
        now = time.perf_counter()
        one.seconds["scoring"] += now - last
        last = now
        one.missing -= bool(fresh)
        if fresh and not one.missing:
            # what stops a later task must not leave this one unfinished
            _close(one, backend)
            _summarize(one.run)


def _leave(some: Sequence[_Open], backend: Backend, watch: Watch) -> None:
    watch.stop()
    for one in some:
        if one.missing:
            _close(one, backend)
        one.run.update({"engine": backend.describe()})  # all tasks of the call included


def _summarize(run: RunFolder) -> None:
    found = summary.of_run(run.about, run.identity, run.done.values())
    write_json(run.path / "summary.json", found)


def _given(one: _Open) -> dict[str, list[str]]:
    """For sub-questions that follow answered ones: what the model answered to these."""
    out: dict[str, list[str]] = {}
    left = {item.id for item in one.left}
    for item in one.left:
        stem = item.id.rpartition("#")[0]
        before = [f"{stem}#{k}" for k in range(item.part - 1)]
        if not before or before[-1] in left:
            continue
        lost = [id for id in before if id not in one.run.done]
        if lost:
            raise RunError(
                f"{one.run.path}: there is no record of {lost[0]}, which was asked before "
                f"{item.id}; remove the lines of all its sub-questions to have them scored again."
            )
        out[item.id] = [*("".join(one.run.done[id].prediction) for id in before)]
    return out


def _close(one: _Open, backend: Backend) -> None:
    """Note what the task took; a resumed run counts over all its starts."""
    before = one.run.about
    one.run.update(
        {
            "engine": backend.describe(),
            "tokens": _sum(before.get("tokens", {}), one.tokens),
            "seconds": _sum(before.get("seconds", {}), one.seconds),
        }
    )


def _sum(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {key: before.get(key, 0) + value for key, value in now.items()}


def _say_fitting(prepared: Prepared, prompts: Sequence[Prompt], watch: Watch) -> None:
    full = {s: len(shots) for s, shots in prepared.shown.items()}
    fewer = sum(p.shots < full[p.item.subject] for p in prompts)
    if fewer:
        watch.say(
            f"{prepared.task.name}: {fewer} of {len(prompts)} prompts show fewer shots to fit the "
            "context (whole shots only; the count of each is in summary.json)"
        )


def _say_not_scored(prepared: Prepared, watch: Watch) -> None:
    if prepared.not_scored:
        total = sum(n for kinds in prepared.not_scored.values() for n in kinds.values())
        watch.say(
            f"{prepared.task.name}: {total} items are not scored by this method "
            f"({describe_not_scored(prepared.not_scored)})"
        )


def describe_not_scored(not_scored: dict[str, dict[str, int]]) -> str:
    """`subject 64 multi, …` for people."""
    return ", ".join(
        f"{subject} {n} {kind}"
        for subject, kinds in not_scored.items()
        for kind, n in kinds.items()
    )
