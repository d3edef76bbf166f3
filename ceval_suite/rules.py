"""Rules about curves: `mmlu < best - 2 with 95% for 2`, read by a small grammar and nothing else.

    RULE  = TASK ["/" AVERAGE] SIGN BOUND ["with" PERCENT "%"] ["for" N]
    SIGN  = "<" | "<=" | ">" | ">="
    BOUND = NUMBER | ("best" | "first" | "previous") [("+" | "-") NUMBER]

Numbers are percent, as on boards. `best`, `first` and `previous` are of the checkpoints before the
one that is judged. Without `with`, bare numbers are compared. With it, the rule holds only where
chance explains the difference less often than in one case of 20 (at 95 %): the end of the
one-sided interval lies beyond the bound, against another checkpoint that of the paired difference,
item by item. The best of k noisy checkpoints lies above what it is worth, so that a fall from it is
tested at a k-th of the level. The level is that of one look: a rule that is asked at twenty
checkpoints has twenty occasions to be wrong. `for N` wants it to hold at N checkpoints in a row.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from ceval_suite import comparison, stats
from ceval_suite.curves import Curve, Point
from ceval_suite.errors import ConfigError, unknown
from ceval_suite.finished import run_in
from ceval_suite.schema import Estimate

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
REFERENCES = ("best", "first", "previous")

_NUMBER = r"\d+(?:\.\d+)?"
_RULE = re.compile(
    rf"(?P<task>[\w.-]+)(?:/(?P<average>[a-z]+(?:/[a-z]+)?))?\s*(?P<sign><=|>=|<|>)\s*"
    rf"(?:(?P<number>-?{_NUMBER})|(?P<reference>{'|'.join(REFERENCES)})"
    rf"(?:\s*(?P<way>[+-])\s*(?P<margin>{_NUMBER}))?)"
    rf"(?:\s+with\s+(?P<confidence>{_NUMBER})\s*%)?(?:\s+for\s+(?P<times>[1-9]\d*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Rule:
    """One rule: `number` is the bound itself, or what is added to a reference's value."""

    text: str
    task: str
    average: str | None
    sign: str
    reference: str | None
    number: float
    confidence: float | None
    times: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Holds:
    """A rule that holds, and why: the last point, the one it is compared with and how they differ.

    `against` and `difference` are None where the bound is a number, or bare numbers are compared.
    """

    rule: Rule
    curve: Curve
    average: str
    point: Point
    against: Point | None
    difference: Estimate | None


def read(text: str) -> Rule:
    """A rule from its text.

    Raises:
        ConfigError: it cannot be read.
    """
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"the rule '{text}' cannot be read; write TASK < NUMBER, or TASK < best - 2, with "
            "'with 95%' and 'for 3' behind it where wanted."
        )
    part = found.groupdict()
    confidence = float(part["confidence"]) if part["confidence"] else None
    if confidence is not None and not 50 < confidence < 100:
        raise ConfigError(f"the rule '{text}': a confidence lies between 50 % and 100 %.")
    number = float(part["number"] or part["margin"] or 0)
    return Rule(
        " ".join(text.split()),
        part["task"],
        part["average"],
        part["sign"],
        part["reference"],
        -number if part["way"] == "-" else number,
        confidence,
        int(part["times"] or 1),
    )


def read_all(texts: str | Sequence[str]) -> list[Rule]:
    """Rules from their texts.

    Raises:
        ConfigError: one cannot be read.
    """
    return [read(text) for text in ([texts] if isinstance(texts, str) else texts)]


def check(rules: Sequence[Rule], tasks: Sequence[str]) -> None:
    """See that rules are about tasks that are scored.

    Raises:
        ConfigError: one is not.
    """
    for rule in rules:
        if rule.task not in tasks:
            raise ConfigError(f"the rule '{rule}': {unknown('task', rule.task, tasks)}")


def holds(rule: Rule, curves: Sequence[Curve]) -> Holds | None:
    """The first curve of the rule's task on which it holds at the last checkpoint, and why.

    Raises:
        ConfigError: an average that the task does not have, or records that were not kept.
        RunError: records that cannot be read.
    """
    for curve in curves:
        if curve.task != rule.task:
            continue
        last = len(curve.points) - 1
        if last + 1 < rule.times:
            continue
        found = [_at(rule, curve, last - back) for back in range(rule.times)]
        if all(found):
            return found[0]
    return None


def _at(rule: Rule, curve: Curve, index: int) -> Holds | None:
    point, before = curve.points[index], curve.points[:index]
    average = rule.average or curve.headline
    now = _average(rule, point, average)
    if rule.reference is None:
        good = _beyond(rule, now, rule.number / 100)
        return Holds(rule, curve, average, point, None, None) if good else None
    if not before:
        return None
    against = {
        "best": max(before, key=lambda p: _average(rule, p, average).value),
        "first": before[0],
        "previous": before[-1],
    }[rule.reference]
    if rule.confidence is None:
        bound = _average(rule, against, average).value + rule.number / 100
        good = SIGNS[rule.sign](now.value, bound)
        return Holds(rule, curve, average, point, against, None) if good else None
    change = _difference(rule, against, point, average)
    # what was chosen for being highest is no fixed reference; each that may have been is one test
    falls = rule.reference == "best" and "<" in rule.sign
    good = _beyond(rule, change, rule.number / 100, len(before) if falls else 1)
    return Holds(rule, curve, average, point, against, change) if good else None


def _average(rule: Rule, point: Point, name: str) -> Estimate:
    if name not in point.averages:
        raise ConfigError(f"the rule '{rule}': " + unknown("average", name, list(point.averages)))
    return point.averages[name]


def _beyond(rule: Rule, found: Estimate, bound: float, tests: int = 1) -> bool:
    """Whether a value, or the whole of its one-sided interval, lies beyond the bound.

    It is one of so many tests that share the level.
    """
    end = found.value
    if rule.confidence is not None:
        # the interval is of 95 % on both sides; its half on one side is scaled to what is wanted
        share = -float(ndtri((1 - rule.confidence / 100) / tests)) / stats.Z
        side = found.high if "<" in rule.sign else found.low
        end += (side - found.value) * share
    return bool(SIGNS[rule.sign](end, bound))


def _difference(rule: Rule, before: Point, now: Point, average: str) -> Estimate:
    if before.folder is None or now.folder is None:
        raise ConfigError(f"the rule '{rule}' compares item by item, and no records were kept.")
    found = comparison.versus(run_in(before.folder), run_in(now.folder), resample=False)
    return found.averages[average][2]
