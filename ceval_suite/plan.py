"""What a run would ask and take, before it does: items, tokens, memory and time.

No weights are loaded; a probe, which loads them, has to be asked for. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Say
from ceval_suite.backends.counting import Counter
from ceval_suite.backends.footprint import Footprint, footprint
from ceval_suite.backends.tally import Tally, tally
from ceval_suite.budget import Cost, Opener, probe
from ceval_suite.errors import ModelError, RunError
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import find_runs, read_json, read_records, safe_name

PROBE = 5.0
"""Seconds that a probe takes, about."""


@dataclass(frozen=True)
class Step:
    """One model on one task: what is asked, and what of it an earlier start has finished.

    `tokens` is None where another program counts them. `writes` is how many prompts the model
    writes on after, of which the time depends on what it writes. `seconds` is for what is left,
    None where nothing tells it.
    """

    about: Mapping[str, Any]
    folder: Path
    items: int
    prompts: int
    finished: int
    tokens: Tally | None
    writes: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """One model: its tasks, its memory, and where the times come from."""

    model: str
    steps: Sequence[Step]
    memory: Footprint | None
    source: Literal["probe", "earlier runs", ""]


@dataclass(frozen=True)
class _Speed:
    """Seconds per computed token, and per item by task, as earlier runs took."""

    per_token: float | None
    per_item: Mapping[str, float]


def plans(
    specs: Mapping[str, ModelSpec],
    tasks: Sequence[str],
    chosen: Sequence[Selection],
    out: Path,
    say: Say,
    *,
    measure: bool = False,
    opener: Opener | None = None,
) -> list[Plan]:
    """The plan of each model; with `measure` it is loaded and some of its prompts are timed.

    Raises:
        UserError: what would stop the run itself.
    """
    prepared = [prepare(task, selection) for task in tasks for selection in chosen]
    return [_plan(name, spec, prepared, out, say, measure, opener) for name, spec in specs.items()]


def _plan(
    name: str,
    spec: ModelSpec,
    tasks: Sequence[Prepared],
    out: Path,
    say: Say,
    measure: bool,
    opener: Opener | None,
) -> Plan:
    costs: list[Cost | None] = [None] * len(tasks)
    speed = _earlier(name, out)
    if measure:
        say(f"loading {name} to see how fast it is here")
        costs = list(probe((opener or open_backend)(spec, say), tasks, PROBE))
    counter = Counter(name, spec) if spec.backend == "hf" else None
    steps = [
        _step(one, out / safe_name(name) / one.folder, counter, cost, speed)
        for one, cost in zip(tasks, costs, strict=True)
    ]
    memory = None
    if counter is not None:
        longest = max((step.tokens.longest for step in steps if step.tokens), default=0)
        try:
            memory = footprint(counter.spec, counter.path, counter.config, longest)
        except ModelError as error:
            say(f"{name}: {error}")
    known = any(step.seconds is not None for step in steps)
    source = "probe" if measure else "earlier runs" if known else ""
    return Plan(name, steps, memory, source)


def _step(
    prepared: Prepared, folder: Path, counter: Counter | None, cost: Cost | None, speed: _Speed
) -> Step:
    items = prepared.scored()
    finished = {record.id for record in read_records(folder / "records.jsonl")}
    done = sum(finished.issuperset(item.record_ids()) for item in items)
    prompts, tokens, writes = len(items), None, 0
    if counter is not None:
        rendered = render(prepared, items, counter)
        requests = [request for prompt in rendered for request in prompt.requests()]
        tokens = tally(counter.encoder, requests)
        prompts, writes = len(requests), sum(bool(r.max_new_tokens) for r in requests)
    seconds = _seconds(prepared, len(items), tokens, writes, cost, speed)
    if seconds is not None and items:
        seconds *= 1 - done / len(items)
    return Step(prepared.about(), folder, len(items), prompts, done, tokens, writes, seconds)


def _seconds(
    prepared: Prepared,
    items: int,
    tokens: Tally | None,
    writes: int,
    cost: Cost | None,
    speed: _Speed,
) -> float | None:
    if cost is not None:
        by_token = cost.per_token * (tokens.distinct if tokens else cost.tokens(items))
        return by_token + cost.per_item * items
    if tokens is None or writes:
        each = speed.per_item.get(prepared.task.name)
        return None if each is None else each * items
    return None if speed.per_token is None else speed.per_token * tokens.distinct


def _earlier(model: str, out: Path) -> _Speed:
    """How fast runs of a model in a folder were, by what run.json says."""
    seconds, tokens = 0.0, 0
    by_task: dict[str, tuple[float, int]] = {}
    for path in find_runs(out / safe_name(model)) if out.is_dir() else ():
        try:
            about = read_json(path / "run.json")
        except RunError:  # told of when it is opened
            continue
        took = float((about.get("seconds") or {}).get("scoring") or 0)
        counted = about.get("tokens") or {}
        if took <= 0 or about.get("identity", {}).get("model") != model:
            continue
        if not counted.get("written"):
            seconds, tokens = seconds + took, tokens + int(counted.get("computed") or 0)
        task = str(about.get("task"))
        spent, items = by_task.get(task, (0.0, 0))
        expected = sum((about.get("expected") or {}).values())
        by_task[task] = (spent + took, items + expected)
    each = {task: spent / items for task, (spent, items) in by_task.items() if items}
    return _Speed(seconds / tokens if tokens else None, each)
