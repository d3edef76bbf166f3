"""Methods on the same items, as Tables: each one's accuracy, and how far every two agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ceval_suite import agreement as verb
from ceval_suite.agreement import Across, Pair
from ceval_suite.report import table
from ceval_suite.schema import Cell, Table


def tables(folders: Sequence[Path]) -> list[Table]:
    """Accuracy of every method, and the matrix of their agreement, two by two.

    Raises:
        RunError: the runs are not of the same items, and why.
    """
    found = verb.across(folders)
    return [accuracy(found), matrix(found)]


def accuracy(found: Across) -> Table:
    """One row a method, on the items that all have."""
    rows = tuple(
        (
            table.text(column.name),
            table.number(found.n),
            table.estimate(column.accuracy),
            table.number(column.unanswered),
        )
        for column in found.columns
    )
    return Table(
        title=f"{found.task} {found.split}, by method",
        columns=("method", "n", "accuracy", "unanswered"),
        rows=rows,
        notes=tuple(_notes(found)),
        numeric=frozenset({1, 2, 3}),
    )


def _notes(found: Across) -> Iterable[str]:
    yield "accuracy in percent ± half the 95 % interval, on the labelled items that all have"
    for column in found.columns:
        if column.left_out:
            yield f"{column.name}: {column.left_out} items that another lacks are left out"


def matrix(found: Across) -> Table:
    """One row for every two methods: who was right, how often they say the same, and kappa."""
    columns = (
        "first",
        "second",
        "both right",
        "only first",
        "only second",
        "both wrong",
        "either right",
        "same answer",
        "neither answers",
        "kappa",
    )
    return Table(
        title="Agreement of methods",
        columns=columns,
        rows=tuple(_row(found, pair) for pair in found.pairs),
        notes=(
            (
                "either right: percent ± half the 95 % interval, two attempts at each item; "
                "same answer: equal predictions, right or wrong, no answer on both sides included; "
                "kappa: Cohen's, over predictions, no answer being one of its own"
            ),
        ),
        numeric=frozenset(range(2, len(columns))),
    )


def _row(found: Across, pair: Pair) -> tuple[Cell, ...]:
    counts = pair.found
    kappa = table.missing("(one answer only)")
    if counts.kappa is not None:
        kappa = Cell(text=f"{counts.kappa:.3f}", value=counts.kappa)
    return (
        table.text(found.columns[pair.first].name),
        table.text(found.columns[pair.second].name),
        table.number(counts.both),
        table.number(counts.first),
        table.number(counts.second),
        table.number(counts.neither),
        table.estimate(pair.either),
        table.number(counts.same),
        table.number(counts.silent),
        kappa,
    )
