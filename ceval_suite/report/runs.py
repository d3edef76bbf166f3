"""The index of runs as a table, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ceval_suite.inventory import STATES, Entry
from ceval_suite.report import board, table
from ceval_suite.schema import Cell, Table

COLUMNS = (
    "model",
    "task",
    "protocol",
    "shots",
    "state",
    "records",
    "expected",
    "date",
    "result",
    "folder",
)


def index(entries: Sequence[Entry]) -> Table:
    """One row a run."""
    counts = Counter(one.state for one in entries)
    notes = [", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]
    notes += [f"{one.folder}: {one.note}" for one in entries if one.note]
    return Table(
        title="Runs",
        columns=COLUMNS,
        rows=tuple(_row(one) for one in entries),
        notes=tuple(note for note in notes if note),
        numeric=frozenset({3, 5, 6, 8}),
    )


def _row(one: Entry) -> tuple[Cell, ...]:
    about = one.about
    return (
        table.text(one.model),
        table.text(one.task),
        table.text(str(about.get("protocol", ""))),
        table.number(about["shots"]) if "shots" in about else table.missing(),
        table.text(one.state),
        table.number(one.records),
        table.missing() if one.expected is None else table.number(one.expected),
        table.text(str(about.get("date", ""))[:10]),
        _result(one),
        table.text(str(one.folder)),
    )


def _result(one: Entry) -> Cell:
    if one.summary is None or one.state != "complete":
        return table.missing()
    try:
        return board.cell(one.summary)
    except (KeyError, TypeError):  # an older version's
        return table.missing("(rescore it)")


def data(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The same for programs."""
    out: list[dict[str, Any]] = []
    for one in entries:
        summary = one.summary or {}
        value = (summary.get("metrics", {}).get(summary.get("headline")) or {}).get("value")
        out.append(
            {
                "folder": str(one.folder),
                "model": one.model,
                "task": one.task,
                **{key: one.about.get(key) for key in ("protocol", "split", "shots", "date")},
                "state": one.state,
                "records": one.records,
                "expected": one.expected,
                "headline": summary.get("headline"),
                "value": value if one.state == "complete" else None,
                "note": one.note,
            }
        )
    return out
