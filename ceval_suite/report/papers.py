"""Exam papers of a run, as Tables: points by file and subject, marks of the exam, years."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ceval_suite import papers as verb
from ceval_suite.papers import Marks, Papers, Report, Sheet
from ceval_suite.report import table
from ceval_suite.schema import Cell, Table


def tables(folder: Path, year: str | None = None, data: Path | None = None) -> list[Table]:
    """Points, marks and years of a run of exam papers.

    Raises:
        UserError: not such a run, no such year, or other benchmark files.
    """
    found = verb.papers(folder, year, data)
    return [points(found), marks(found), years(found)]


def _title(found: Papers) -> str:
    about = found.side.about
    year = f" {found.report.year}" if found.report.year else ""
    return f"{found.side.model} on {about['task']}{year}, {about['protocol']}"


def points(found: Papers) -> Table:
    """One row a file, a subject, and all: points earned and possible, and the scoring rate."""
    report = found.report
    sheets = [
        *(("file", sheet) for sheet in report.files),
        *(("subject", sheet) for sheet in report.subjects),
        ("all", report.whole),
    ]
    columns = ("", "name", "questions", "points", "of", "rate", "rounded")
    notes = ["rate: percent ± half the 95 % interval; rounded: three digits, as officially"]
    if found.side.about.get("limit") is not None:
        notes.append(f"only the first {found.side.about['limit']} items of each file were asked")
    if found.side.about.get("subset"):
        notes.append("only a subset of the items was asked")
    return Table(
        title=f"{_title(found)}: points",
        columns=columns,
        rows=tuple((table.text(kind), *_sheet(sheet)) for kind, sheet in sheets),
        notes=tuple(notes),
        numeric=frozenset(range(2, len(columns))),
    )


def _sheet(sheet: Sheet) -> tuple[Cell, ...]:
    lack = table.missing(f"({sheet.reason})")
    known = sheet.rate is not None
    return (
        table.text(sheet.name),
        table.number(sheet.questions),
        table.number(sheet.earned) if known else table.missing(),
        table.number(sheet.possible),
        table.estimate(sheet.rate) if sheet.rate is not None else lack,
        Cell(text=f"{sheet.rounded:.3f}", value=sheet.rounded) if known else table.missing(),
    )


def marks(found: Papers) -> Table:
    """One row a paper and a total: the objective part in marks, exact and as officially rounded."""
    report = found.report
    columns = ("paper", "objective part", "as rounded officially", "of", "open part", "whole exam")
    rows = [
        (
            table.text(one.name),
            _exact(one),
            _official(one),
            table.number(one.most),
            table.missing("(not scored)"),
            table.missing(f"(of {table.number(one.total).text})"),
        )
        for one in (*report.marks, *report.totals)
    ]
    return Table(
        title=f"{_title(found)}: marks of the exam",
        columns=columns,
        rows=tuple(rows),
        notes=(
            "marks ± half the 95 % interval; officially rates and papers have 3 digits, totals 1",
            f"no total of a whole exam: {verb.OPEN}",
        ),
        numeric=frozenset(range(1, len(columns))),
    )


def _exact(one: Marks) -> Cell:
    if one.exact is None:
        return table.missing(f"({one.reason})")
    half = (one.exact.high - one.exact.low) / 2
    return Cell(text=f"{one.exact.value:.1f} ±{half:.1f}", value=one.exact.value)


def _official(one: Marks) -> Cell:
    return table.missing() if one.official is None else table.number(one.official)


def years(found: Papers) -> Table:
    """One row a year: points, scoring rate, and the objective part of each total."""
    totals = [f"{one.name} of {table.number(one.most).text}" for one in found.report.totals]
    columns = ("year", "questions", "points", "of", "rate", "rounded", *totals)
    return Table(
        title=f"{_title(found)}: by year",
        columns=columns,
        rows=tuple(tuple(_year(report)) for report in found.years),
        notes=("objective parts in marks ± half the 95 % interval, not rounded on the way",),
        numeric=frozenset(range(1, len(columns))),
    )


def _year(report: Report) -> Iterable[Cell]:
    _, *cells = _sheet(report.whole)
    yield table.text(report.year)
    yield from cells
    yield from (_exact(total) for total in report.totals)
