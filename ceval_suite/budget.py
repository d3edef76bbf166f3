"""How many items fit into a given time: a short probe of the loaded model, and what tokens cost.

All tasks of a run share the time, and each is asked the same number of items (or all, where it has
no more), so that none is measured better than another. What was chosen stands in run.json: the same
command on the same folder asks the same items again, whatever the machine is doing then.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ceval_suite.answer import Judge
from ceval_suite.asking import Call
from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.tally import encoder_of, tally
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import find_runs, read_json
from ceval_suite.schema import Item
from ceval_suite.subset import draw, shares

Opener: TypeAlias = Callable[[ModelSpec, Say], Backend]

SAMPLE = 3
"""Items of each subject whose tokens are counted."""

ELSEWHERE = 8
"""Subjects that are asked together where another program computes."""

SHARE = 0.02
"""The share of the time that the probe takes, at least so much of it."""

SPARE = 0.9
"""Of the time that is left, this share is planned for: nothing is ever quite as fast as a probe."""

_UNITS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


def seconds_of(text: str) -> float:
    """`10min`, `90s` or `1h30min` as seconds.

    Raises:
        ConfigError: none of these, or no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)|\s", "", text):
        raise ConfigError(f"--budget: '{text}' is no time; give 10min, 90s or 1h30min.")
    found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not found:
        raise ConfigError("--budget: no time is too little.")
    return found


@dataclass(frozen=True)
class Cost:
    """What asking a task costs.

    `sizes` are the items of each subject; `heads` the tokens that a subject takes once, `tails`
    those of each of its items on average. `per_token` is in seconds; for what is written, or
    computed elsewhere, `per_item` counts instead.
    """

    sizes: Mapping[str, int]
    heads: Mapping[str, float]
    tails: Mapping[str, float]
    per_token: float = 0.0
    per_item: float = 0.0

    @property
    def items(self) -> int:
        """The items of the whole."""
        return sum(self.sizes.values())

    @property
    def subjects(self) -> int:
        """The subjects of which anything can be scored."""
        return sum(n > 0 for n in self.sizes.values())

    def tokens(self, items: int) -> float:
        """Distinct tokens of so many items."""
        given = shares(self.sizes, items)
        return sum(self.heads[s] + n * self.tails[s] for s, n in given.items() if n)

    def seconds(self, items: int) -> float:
        """The time that so many items take."""
        return self.per_token * self.tokens(items) + self.per_item * min(items, self.items)


def most(costs: Sequence[Cost], seconds: float) -> int:
    """The largest number of items of each task that fit into the time together; 0: not even one.

    Rounded down to two digits, so that machines that are about as fast ask the same items.
    """
    low, high = 0, max(cost.items for cost in costs)
    if sum(cost.seconds(high) for cost in costs) <= seconds:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if sum(cost.seconds(middle) for cost in costs) <= seconds:
            low = middle
        else:
            high = middle
    step = 10 ** max(0, len(str(low)) - 2)
    return low // step * step


def probe(backend: Backend, tasks: Sequence[Prepared], seconds: float, seed: int = 0) -> list[Cost]:
    """What each task costs on a loaded model: some of its real prompts, timed.

    Takes about `seconds` for all tasks together; each is asked the prompts of one subject at least.
    The first prompts of all warm the model up and count for nothing.
    """
    warm = False
    # who counts tokens elsewhere may answer several at once
    together = 1 if encoder_of(backend) else ELSEWHERE
    out: list[Cost] = []
    for prepared in tasks:
        scorable = _scorable(prepared)
        sizes = {s: len(some) for s, some in scorable.items()}
        some = {s: draw({s: found}, SAMPLE, seed)[s] for s, found in scorable.items() if found}
        heads, tails = _tokens(backend, prepared, some)
        if not some:  # nothing of it can be scored, which takes no time
            out.append(Cost(sizes, heads, tails))
            continue
        longest_first = sorted(some, key=lambda s: sizes[s], reverse=True)
        if not warm:
            _timed(backend, prepared, some[longest_first[0]])
            warm = True
        spent, asked, computed, written = 0.0, 0, 0, 0
        for at in range(0, len(longest_first), together):
            items = [item for s in longest_first[at : at + together] for item in some[s]]
            took, new, wrote = _timed(backend, prepared, items)
            spent, computed, written = spent + took, computed + new, written + wrote
            asked += len(items)
            if spent >= seconds / len(tasks):
                break
        by_item = written or not computed or not any(tails.values())
        out.append(
            Cost(sizes, heads, tails, per_item=spent / asked)
            if by_item
            else Cost(sizes, heads, tails, per_token=spent / computed)
        )
    return out


def _scorable(prepared: Prepared) -> dict[str, list[Item]]:
    method = prepared.template.method
    return {s: [i for i in some if method(i)] for s, some in prepared.items.items()}


def _part(prepared: Prepared, items: Sequence[Item]) -> Prepared:
    held: dict[str, list[Item]] = {}
    for item in items:
        held.setdefault(item.subject, []).append(item)
    return replace(prepared, subjects=list(held), items=held)


def _tokens(
    backend: Backend, prepared: Prepared, some: Mapping[str, Sequence[Item]]
) -> tuple[dict[str, float], dict[str, float]]:
    heads, tails = dict.fromkeys(prepared.subjects, 0.0), dict.fromkeys(prepared.subjects, 0.0)
    encoder = encoder_of(backend)
    if encoder is None:
        return heads, tails
    for subject, items in some.items():
        part = _part(prepared, items)
        requests = [r for p in render(part, part.scored(), backend) for r in p.requests()]
        found = tally(encoder, requests)
        # of one item nothing is known to be shared
        heads[subject] = found.head if len(items) > 1 else 0.0
        tails[subject] = (found.distinct - heads[subject]) / len(items)
    return heads, tails


def _timed(backend: Backend, prepared: Prepared, items: Sequence[Item]) -> tuple[float, int, int]:
    """Seconds, tokens computed and tokens written for some items."""
    part = _part(prepared, items)
    call = Call()
    call.add(Judge(part.task, part.template), render(part, part.scored(), backend), "probe")
    begun = time.perf_counter()
    replies = [answer.reply for answer in call.answers(backend)]
    took = time.perf_counter() - begun
    return took, sum(r.new_tokens for r in replies), sum(r.written for r in replies)


def settle(
    specs: Mapping[str, ModelSpec],
    tasks: Sequence[str],
    chosen: Sequence[Selection],
    out: Path,
    seconds: float,
    say: Say,
) -> tuple[list[Selection], Opener | None]:
    """The selections with the number of items that fit, and what opens the model that was probed.

    The first model is probed, and all others are asked the same items. What an earlier start of the
    same tasks in the same time has chosen in `out` is taken again.

    Raises:
        ConfigError: `--limit` or `--items` beside it, or too little time for one item a subject.
    """
    if any(one.limit is not None or one.items is not None for one in chosen):
        raise ConfigError("--budget chooses the items itself; drop --items and --limit.")
    whole = [prepare(task, selection) for task in tasks for selection in chosen]
    plan = _plan(whole, seconds, chosen[0].seed)
    before = _before(out, plan)
    if before is not None:
        where, items = before
        say(f"budget: {items:,} items a task, as chosen in {where}")
        return _chosen(chosen, items, {"seconds": seconds, "plan": plan}), None
    begun = time.perf_counter()
    name, spec = next(iter(specs.items()))
    say(f"loading {name} to see how fast it is here")
    backend = open_backend(spec, say)
    costs = probe(backend, whole, SHARE * seconds, chosen[0].seed)
    left = seconds - (time.perf_counter() - begun)
    items = most(costs, SPARE * left)
    for prepared, cost in zip(whole, costs, strict=True):
        if items < cost.subjects:
            least = sum(one.seconds(max(c.subjects for c in costs)) for one in costs)
            raise ConfigError(
                f"--budget: the time does not suffice for one item of each of the "
                f"{cost.subjects} subjects of {prepared.task.name}, which would take about "
                f"{_words(least / SPARE + seconds - left)} with loading; give more, or fewer "
                "--subjects."
            )
    for prepared, cost in zip(whole, costs, strict=True):
        asked = min(items, cost.items)
        say(
            f"budget: {asked:,} of {cost.items:,} items of {prepared.task.name}, about "
            f"{_words(cost.seconds(asked))}"
        )
    about = {"seconds": seconds, "plan": plan, "expected": sum(c.seconds(items) for c in costs)}
    return _chosen(chosen, items, about), _Opened(spec, backend)


def _chosen(chosen: Sequence[Selection], items: int, about: Mapping[str, Any]) -> list[Selection]:
    return [replace(one, items=items, budget={"items": items, **about}) for one in chosen]


class _Opened:
    """Opens models; the one that was probed is there already, once."""

    def __init__(self, spec: ModelSpec, backend: Backend) -> None:
        self._held: list[tuple[ModelSpec, Backend]] = [(spec, backend)]

    def __call__(self, spec: ModelSpec, say: Say) -> Backend:
        held, self._held = self._held, []  # another model needs its memory
        for known, backend in held:
            if known == spec:
                return backend
        held.clear()
        return open_backend(spec, say)


def _plan(whole: Sequence[Prepared], seconds: float, seed: int) -> str:
    content = [sorted(one.fingerprint for one in whole), seconds, seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _before(out: Path, plan: str) -> tuple[Path, int] | None:
    """Where the same plan was settled before, and how."""
    for path in find_runs(out) if out.is_dir() else ():
        try:
            about = read_json(path / "run.json").get("budget") or {}
        except RunError:  # a broken one is told of when it is opened
            continue
        if about.get("plan") == plan:
            return path, int(about["items"])
    return None


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
