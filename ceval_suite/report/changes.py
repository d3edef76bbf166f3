"""What two runs' answers have in common, as Tables: flips, likeness, subjects, single items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ceval_suite import differences, flips
from ceval_suite.comparison import Versus
from ceval_suite.differences import Difference, Part
from ceval_suite.report import table
from ceval_suite.schema import Cell, Estimate, Table

Labelled = Sequence[tuple[str, Versus]]
"""Comparisons, and the task's name to show for each."""


def names(one: str, two: str) -> tuple[str, str]:
    """Two models' names, told apart by place where they are equal."""
    return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")


def interval(found: Estimate) -> Cell:
    """The ends of a difference's interval, in points."""
    text = f"{table.points(found.low)} … {table.points(found.high)}"
    return Cell(text=text, value=found.high - found.low)


def detectable(found: Difference) -> Cell:
    """The smallest difference that would be found, in points."""
    if found.detectable is None:
        return table.missing()
    return Cell(text=table.percent(found.detectable), value=found.detectable)


def matrix(found: Labelled) -> Table:
    """One row a task: how many labelled items lie in each cell of the flip matrix."""
    columns = ("task", "n", *flips.KINDS)
    rows: list[tuple[Cell, ...]] = []
    for label, versus in found:
        counts = flips.matrix(versus.judged)
        rows.append(
            (table.text(label), table.number(versus.labelled), *map(table.number, counts.values()))
        )
    return Table(
        title="Flips",
        columns=columns,
        rows=tuple(rows),
        notes=("labelled items that both answered; no answer counts as wrong",),
        numeric=frozenset(range(1, len(columns))),
    )


def likeness(found: Labelled) -> Table:
    """One row a task: equal predictions, kappa and the divergence of the distributions."""
    columns = ("task", "n", "same prediction", "kappa", "KL nats", "no distribution")
    rows: list[tuple[Cell, ...]] = []
    for label, versus in found:
        one = flips.likeness(versus.pairs, versus.both)
        kappa, kl = one.kappa, one.divergence
        rows.append(
            (
                table.text(label),
                table.number(versus.n),
                table.estimate(one.same),
                table.missing("(always)") if kappa is None else table.number(round(kappa, 3)),
                table.missing() if kl is None else _measured(kl),
                table.number(one.left_out),
            )
        )
    notes = (
        "same prediction: share of all common items, right or wrong; kappa: Cohen's, over these",
        "KL: mean over items of the second model's distribution over the letters from the first's",
        "no distribution: items left out of KL, where a side has none over the same letters",
    )
    return Table(
        title="Agreement",
        columns=columns,
        rows=tuple(rows),
        notes=notes,
        numeric=frozenset(range(1, len(columns))),
    )


def _measured(found: Estimate) -> Cell:
    half = (found.high - found.low) / 2
    known = half != float("inf")
    text = f"{found.value:.4f}" + (f" ±{half:.4f}" if known else "")
    return Cell(text=text, value=found.value)


def parts(found: Labelled, kind: str) -> Table:
    """One row for each task and subject, or category: values, difference, test and power."""
    one, two = names(found[0][1].first.model, found[0][1].second.model)
    columns = ("task", kind, "n", one, two, "difference", "95 %", "fixed", "broke", "p")
    columns += ("p (Holm)", "detectable")
    rows = [
        _part(label, part)
        for label, versus in found
        if versus.averages
        for part in (versus.subjects() if kind == "subject" else versus.categories())
    ]
    notes = (
        "p (Holm): adjusted for all rows of a task (Holm 1979); detectable: the "
        "smallest difference, in points, that so many items find in four cases of five at the "
        "discordance seen, where any is"
    )
    return Table(
        title="Subjects" if kind == "subject" else "Categories",
        columns=columns,
        rows=tuple(rows),
        notes=(notes,),
        numeric=frozenset(range(2, len(columns))),
    )


def _part(label: str, part: Part) -> tuple[Cell, ...]:
    change = part.found.change
    return (
        table.text(label),
        table.text(part.name),
        table.number(change.n),
        table.estimate(part.found.first),
        table.estimate(part.found.second),
        Cell(text=table.points(change.value), value=change.value),
        interval(change),
        table.number(part.fixed),
        table.number(part.broke),
        table.probability(part.found.p),
        table.probability(part.adjusted),
        detectable(part.found),
    )


def items(found: Labelled, most: int | None) -> Table:
    """One row an item: those fixed or broken first, the largest change of margin first.

    `most` limits the rows of each task; None: all items whose verdict or prediction changed.
    """
    one, two = names(found[0][1].first.model, found[0][1].second.model)
    columns = ("item", "change", "gold", one, two, "margin")
    return Table(
        title="Items",
        columns=columns,
        rows=tuple(row for _, versus in found for row in _items(versus, most)),
        notes=(
            (
                "margin: how much further the gold letter got ahead of the best other one, in "
                f"nats; {table.MISSING} where a side has no distribution over the letters"
            ),
        ),
        numeric=frozenset({5}),
    )


def _items(versus: Versus, most: int | None) -> Iterable[tuple[Cell, ...]]:
    found = flips.changes(versus.judged, versus.both)
    if most is None:
        found = [one for one in found if one.kind in (flips.FIXED, flips.BROKE, flips.OTHER)]
    for one in found[:most]:
        yield (
            table.text(one.id),
            table.text(one.kind),
            _letters(one.gold),
            _letters(one.first),
            _letters(one.second),
            table.missing()
            if one.margin is None
            else Cell(text=f"{one.margin:+.3f}", value=one.margin),
        )


def _letters(found: Sequence[str]) -> Cell:
    return table.text(", ".join(found)) if found else table.missing("(no answer)")


def needed(found: Difference) -> str:
    """How many items it takes to find one point, in words; empty where nothing is known."""
    count = differences.needed(found, 0.01)
    if count is None:
        return ""
    return f"a difference of one point is found in four cases of five with {count:,} such items"
