"""Two models' run folders → may the candidate pass? Every benchmark tested against its margin.

A gate never passes in silence: what cannot be compared in full is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ceval_suite import comparison, exclusions, inferiority, metrics, outcomes, standings
from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.errors import ConfigError, RunError, unknown
from ceval_suite.exclusions import Exclusions
from ceval_suite.inferiority import ALPHA, MODES, Evidence, Finding, Mode
from ceval_suite.outcomes import Outcomes
from ceval_suite.schema import Estimate

MARGIN = 0.0
"""The drop that is allowed where none is given: any drop that is proven fails."""

DROP = 0.02
"""The drop whose chance of failing is announced."""


@dataclass(frozen=True)
class Rules:
    """How to judge: the burden of proof, the level of all tests together, and allowed drops.

    `margin` and those of single tasks in `margins` are shares, not points. `tasks` names those to
    judge, all where it is empty; items that `lists` name are left out.
    """

    mode: Mode = "inferiority"
    alpha: float = ALPHA
    margin: float = MARGIN
    margins: Mapping[str, float] = field(default_factory=dict[str, float])
    tasks: Sequence[str] = ()
    lists: Sequence[Exclusions] = ()


@dataclass(frozen=True)
class Line:
    """One benchmark: what was asked, both averages, and the finding."""

    about: Mapping[str, Any]
    average: str
    baseline: Estimate
    candidate: Estimate
    finding: Finding


@dataclass(frozen=True)
class Verdict:
    """The candidate against the baseline. `caught` is how likely a drop of `DROP` on all fails."""

    candidate: str
    baseline: str
    rules: Rules
    lines: Sequence[Line]
    caught: float
    equal_fails: float

    @property
    def failed(self) -> list[Line]:
        """The benchmarks that fell too far, or were not proven to have held."""
        return [line for line in self.lines if line.finding.failed]


def rules(
    mode: str,
    alpha: float,
    margins: Iterable[str],
    tasks: Sequence[str] = (),
    exclude: Iterable[str] = (),
) -> Rules:
    """Rules as a person writes them: margins are `0.5` or `mmlu=1`, in percentage points.

    Raises:
        ConfigError: a value that none of them takes.
    """
    known: dict[str, Mode] = {name: name for name in MODES}
    if mode not in known:
        raise ConfigError(unknown("mode", mode, MODES))
    if not 0 < alpha < 0.5:
        raise ConfigError(f"--alpha: {alpha} is no level of a test; give one between 0 and 0.5.")
    margin, by_task = MARGIN, dict[str, float]()
    for text in margins:
        task, _, points = text.rpartition("=")
        if task:
            by_task[load_task(task).name] = _points(text, points)
        else:
            margin = _points(text, points)
    strange = [name for name in by_task if tasks and name not in tasks]
    if strange:
        raise ConfigError(f"--margin names '{strange[0]}', which --tasks leaves out.")
    lists = [exclusions.load(name) for name in exclude]
    return Rules(known[mode], alpha, margin, by_task, [load_task(t).name for t in tasks], lists)


def _points(text: str, points: str) -> float:
    try:
        found = float(points)
    except ValueError:
        found = -1.0
    if not 0 <= found < 100:
        raise ConfigError(
            f"--margin: '{text}' is no allowed drop; give percentage points from 0 to 100, as 0.5 "
            "or mmlu=1."
        )
    return found / 100


def judge(candidate: Path, baseline: Path, rules: Rules | None = None) -> Verdict:
    """The verdict on a candidate's runs against a baseline's, from their records alone.

    Raises:
        ConfigError: a margin for a benchmark that is not there, or none to prove a holding by.
        RunError: runs that are not whole, or of one side only, or without gold labels.
    """
    rules = rules or Rules()
    pairs = _paired(candidate, baseline, rules)
    there = {str(one.about["task"]) for one, _ in pairs}
    for name in rules.margins:
        if name not in there:
            raise ConfigError(f"--margin names '{name}', of which there are no runs.")
    sides: list[tuple[Mapping[str, Any], str, Estimate, Estimate]] = []
    cases: list[tuple[Evidence, float]] = []
    for before, after in pairs:
        task = load_task(str(before.about["task"]))
        margin = rules.margins.get(task.name, rules.margin)
        if rules.mode == "non-inferiority" and margin == 0:
            raise ConfigError(
                f"nothing proves that {task.name} fell by nothing at all; --mode non-inferiority "
                f"needs a --margin above 0, as {task.name}=0.5."
            )
        both = _outcomes(before, rules.lists), _outcomes(after, rules.lists)
        if both[0].ids_sha256 != both[1].ids_sha256:
            raise RunError(
                f"{before.path} and {after.path} have gold labels for different items; rescore or "
                "relabel both in the same way."
            )
        sizes = comparison.subset_sizes(before)
        cases.append((inferiority.evidence(task, *both, sizes), margin))
        rule, parts = task.average, [standings.parts_of(one) for one in both]
        one, two = (metrics.average(rule, some, task, sizes) for some in parts)
        sides.append((before.about, metrics.HEADLINES[task.average], one, two))
    found = inferiority.decide(cases, rules.mode, rules.alpha)
    chances = [inferiority.fails_any(cases, d, rules.mode, rules.alpha) for d in (DROP, 0.0)]
    return Verdict(
        pairs[0][1].model,
        pairs[0][0].model,
        rules,
        [Line(*one, finding) for one, finding in zip(sides, found, strict=True)],
        *chances,
    )


def _paired(candidate: Path, baseline: Path, rules: Rules) -> list[tuple[Side, Side]]:
    pairs, alone = comparison.pair(baseline, candidate)
    if rules.tasks:
        pairs = [pair for pair in pairs if pair[0].about.get("task") in rules.tasks]
        alone = [side for side in alone if side.about.get("task") in rules.tasks]
        there = {side.about.get("task") for side in (*alone, *(one for one, _ in pairs))}
        for name in rules.tasks:
            if name not in there:
                raise RunError(f"neither {candidate} nor {baseline} has a run of {name}.")
    for side in alone:
        task = side.about.get("task")
        others = (one for one in alone if one.about.get("task") == task)
        other = next((one for one in others if one.protocol != side.protocol), None)
        why = f" ({comparison.unlike(side, other)})" if other else ""
        raise RunError(
            f"{side.path} has no run of the same protocol to be compared with{why}; run both "
            "models in the same way, or name with --tasks those to judge."
        )
    if not pairs:
        raise RunError(f"{candidate} and {baseline} have no benchmark in common.")
    for one, two in pairs:
        _whole(one)
        _whole(two)
        _same_gold(one, two)
    return pairs


def _whole(side: Side) -> None:
    expected = side.about.get("expected")
    if expected is None:
        raise RunError(
            f"{side.path} does not say how many records it wants; run it again, or gate on others."
        )
    there = Counter(record.subject for record in side.records.values())
    lacking = sum(max(0, n - there[subject]) for subject, n in expected.items())
    if lacking:
        raise RunError(
            f"{side.path} is unfinished ({lacking:,} records are missing); start its run again, "
            "which goes on where it stopped."
        )
    if len(side.records) > sum(expected.values()):
        raise RunError(
            f"{side.path} holds more records than were asked for; run it in a new --out."
        )


def _same_gold(one: Side, two: Side) -> None:
    for id, record in one.records.items():
        other = two.records.get(id)
        if other is None:
            raise RunError(f"{two.path} has no record of {id}, which {one.path} has.")
        if record.answer != other.answer or record.subject != other.subject:
            raise RunError(f"item {id} has two gold labels in {one.path} and {two.path}.")


def _outcomes(side: Side, lists: Sequence[Exclusions]) -> Outcomes:
    task = load_task(str(side.about["task"]))
    kept = comparison.without(side, lists)
    block = outcomes.outcomes(task, kept.records.values())
    if not block:
        why = "all of its items are excluded" if not kept.records else "it has no gold labels"
        raise RunError(f"{side.path} cannot be judged: {why}.")
    return outcomes.read(block, str(side.path))
