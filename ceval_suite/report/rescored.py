"""What scoring runs again from their records changed, as a Table."""

from __future__ import annotations

from collections.abc import Sequence

from ceval_suite.report import table
from ceval_suite.schema import Cell, Table
from ceval_suite.summary import Rescored


def changes(found: Sequence[Rescored], *, written: bool) -> Table:
    """One row a run: how many records, its headline, and what in summary.json was different."""
    return Table(
        title="Scored again from records",
        columns=("run", "records", "average", "value", "different"),
        rows=tuple(map(_row, found)),
        notes=(
            "summary.json holds these numbers" if written else "nothing was written",
            "every number comes from records.jsonl and run.json alone",
        ),
        numeric=frozenset({1, 3}),
    )


def _row(one: Rescored) -> tuple[Cell, ...]:
    headline = str(one.now["headline"])
    value = (one.now["metrics"].get(headline) or {}).get("value")
    different = ", ".join(one.changed) or "nothing"
    if one.before is None:
        different = "there was no summary.json"
    return (
        table.text(f"{one.path.parent.name}/{one.path.name}"),
        table.number(int(one.now["n"])),
        table.text(headline),
        table.missing("(none)") if value is None else Cell(text=table.percent(value), value=value),
        table.text(different),
    )
