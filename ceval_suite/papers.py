"""Points of exam papers, and marks of a whole exam, as GAOKAO-Bench's scripts compute them.

Bench/OBJ_score_evaluation.py and Bench/merge_OBJ_SUB_score.py @c214b47c: points earned over points
possible, rounded to three digits, times the marks of the objective part. Both the rounded and the
exact values are kept. Ratios and totals are the task's `paper` table. A total that lacks a file has
no value and a reason; open questions are never counted as 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ceval_suite import finished, methods, stats
from ceval_suite.comparison import Side
from ceval_suite.errors import ConfigError, RunError, unknown
from ceval_suite.prepare import Prepared
from ceval_suite.schema import Estimate, Item, Record
from ceval_suite.specs import Paper

OPEN = "open questions are not scored; 'ceval-suite export --as open-questions' writes them"
"""Why a whole exam has no total."""


@dataclass(frozen=True)
class Sheet:
    """What was earned of what could be, in points; `reason` says why there is no value.

    `rate` is earned over possible with its interval, `rounded` the official script's.
    """

    name: str
    questions: int
    possible: float
    earned: float = 0.0
    rate: Estimate | None = None
    reason: str = ""

    @property
    def rounded(self) -> float | None:
        """The scoring rate with three digits, as the official script prints it."""
        return None if self.rate is None else round(self.earned / self.possible, 3)


@dataclass(frozen=True)
class Marks:
    """The objective part of a paper, or of several, in marks of the exam.

    `exact` carries the interval; `official` is what the official script computes from its rounded
    rates. `most` are the marks of the objective part, `total` those of the whole paper.
    """

    name: str
    most: float
    total: float
    exact: Estimate | None = None
    official: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """One set of papers: all years together, or one year."""

    year: str
    files: Sequence[Sheet]
    subjects: Sequence[Sheet]
    whole: Sheet
    marks: Sequence[Marks]
    totals: Sequence[Marks]


@dataclass(frozen=True)
class Papers:
    """A run's papers: what was asked for, and every year by itself."""

    side: Side
    report: Report
    years: Sequence[Report]


def papers(folder: Path, year: str | None = None, data: Path | None = None) -> Papers:
    """Points and marks of a run, of one year or of all.

    Raises:
        RunError: not a run of a task that has papers.
        ConfigError: no such year.
        UserError: the benchmark files are not those of the run.
    """
    side = finished.run_in(folder)
    prepared = finished.questions(side, data)
    if prepared.task.paper is None:
        raise RunError(
            f"{folder} is a run of task '{prepared.task.name}', which has no exam papers; give a "
            "run of gaokao."
        )
    items = finished.by_record(prepared)
    known = sorted({item.year for item in items.values() if item.year})
    if year is not None and year not in known:
        raise ConfigError(unknown("year", year, known))
    years = [_report(prepared, side, items, one) for one in known if year in (None, one)]
    found = years[0] if year is not None else _report(prepared, side, items, None)
    return Papers(side, found, years)


def _report(prepared: Prepared, side: Side, items: Mapping[str, Item], year: str | None) -> Report:
    task = prepared.task
    asked: defaultdict[str, dict[str, Item]] = defaultdict(dict)
    for id, item in items.items():
        if year in (None, item.year):
            asked[item.subject][id] = item
    files = {
        name: _file(name, asked[name], side.records)
        if name in prepared.subjects
        else Sheet(name, 0, 0.0, reason="not in this run")
        for name in task.subjects
    }
    subjects = [
        _together(name, [files[f] for f in members]) for name, members in task.categories.items()
    ]
    marks, totals = converted(task.paper or Paper(source="", subjects={}), files, _part(prepared))
    return Report(
        year=year or "",
        files=list(files.values()),
        subjects=subjects,
        whole=_together("all", list(files.values())),
        marks=marks,
        totals=totals,
    )


def _part(prepared: Prepared) -> str:
    """What of each file was asked, where that is not all."""
    if prepared.limit is not None:
        return f"only the first {prepared.limit} items of each file"
    return "only a subset of the items" if prepared.subset else ""


def converted(
    paper: Paper, files: Mapping[str, Sheet], part: str = ""
) -> tuple[list[Marks], list[Marks]]:
    """The objective part of every paper and of every total, in marks.

    Where only a `part` of the files was asked there are none, and this is the reason.
    """
    marks = {
        name: _marks(_together(name, [files[f] for f in of.files]), paper, part)
        for name, of in paper.subjects.items()
    }
    totals = [_total(name, [marks[m] for m in some]) for name, some in paper.totals.items()]
    return list(marks.values()), totals


def _file(name: str, items: Mapping[str, Item], records: Mapping[str, Record]) -> Sheet:
    possible = math.fsum(item.points for item in items.values())
    sheet = Sheet(name, len(items), possible)
    judged = {id: records[id] for id in items if id in records}
    scores = {id: methods.score(r) for id, r in judged.items() if r.correct is not None}
    if not items:
        return replace(sheet, reason="no questions")
    if len(scores) < len(items):
        lack = len(items) - len(scores)
        return replace(sheet, reason=f"{lack} of {len(items)} questions not scored")
    earned = math.fsum(scores[id] * items[id].points for id in items)
    rate = methods.share((judged[id] for id in items), methods.score)
    return replace(sheet, earned=earned, rate=replace(rate, value=earned / possible))


def _together(name: str, sheets: Sequence[Sheet]) -> Sheet:
    """Several files as one; those without a question (in a year) add nothing, as officially."""
    lacking = [s for s in sheets if s.rate is None and s.reason != "no questions"]
    some = [sheet for sheet in sheets if sheet.rate is not None]
    possible = math.fsum(sheet.possible for sheet in sheets)
    found = Sheet(name, sum(sheet.questions for sheet in sheets), possible)
    if lacking:
        first = f"{lacking[0].name}: {lacking[0].reason}"
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return replace(found, reason=first + more)
    if not some:
        return replace(found, reason="no questions")
    earned = math.fsum(sheet.earned for sheet in some)
    rates = _rates(some)
    rate = stats.weighted(rates, [sheet.possible for sheet in some])
    if len(rates) == 1:
        rate = rates[0]
    return replace(found, earned=earned, rate=replace(rate, value=earned / possible))


def _rates(sheets: Iterable[Sheet]) -> list[Estimate]:
    return [sheet.rate for sheet in sheets if sheet.rate is not None]


def _marks(sheet: Sheet, paper: Paper, part: str) -> Marks:
    of = paper.subjects[sheet.name]
    most = of.total * of.objective
    found = Marks(sheet.name, most, of.total)
    if sheet.rate is None or sheet.rounded is None:
        return replace(found, reason=sheet.reason)
    if part:
        return replace(found, reason=part)
    return replace(found, exact=_scaled(sheet.rate, most), official=round(most * sheet.rounded, 3))


def _scaled(rate: Estimate, most: float) -> Estimate:
    return Estimate(
        value=most * rate.value,
        n=rate.n,
        stderr=most * rate.stderr,
        low=most * rate.low,
        high=most * rate.high,
    )


def _total(name: str, marks: Sequence[Marks]) -> Marks:
    """The sum of independent papers; officially of the rounded ones, rounded to one digit."""
    found = Marks(name, sum(m.most for m in marks), sum(m.total for m in marks))
    lacking = [m for m in marks if m.exact is None]
    if lacking:
        return replace(found, reason=f"{lacking[0].name}: {lacking[0].reason}")
    rates = [m.exact for m in marks if m.exact is not None]
    value = math.fsum(rate.value for rate in rates)
    stderr = math.sqrt(math.fsum(_error(rate) ** 2 for rate in rates))
    exact = Estimate(
        value=value,
        n=sum(rate.n for rate in rates),
        stderr=stderr,
        low=max(0.0, value - stats.Z * stderr),
        high=min(found.most, value + stats.Z * stderr),
    )
    official = 0.0
    for one in marks:
        official += one.official or 0.0
    return replace(found, exact=exact, official=round(official, 1))


def _error(rate: Estimate) -> float:
    return rate.stderr or (rate.high - rate.low) / (2 * stats.Z)
