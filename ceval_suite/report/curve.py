"""Curves of training jobs for people: a table and a small plot of text, and why a rule holds."""

from __future__ import annotations

from collections.abc import Sequence

from ceval_suite.curves import Curve, Point
from ceval_suite.report import board, table
from ceval_suite.rules import Holds
from ceval_suite.schema import Cell, Estimate, Table

HEIGHT, WIDTH = 9, 60
"""Rows and most columns of a plot."""


def curve(found: Curve) -> Table:
    """One row for each checkpoint: its averages with their intervals; the best is marked."""
    names = list(dict.fromkeys(name for point in found.points for name in point.averages))
    best = found.best
    rows = tuple(_row(point, names, mark=point is best) for point in found.points)
    notes = [f"{found.headline}: the official average; percent ± half the 95 % interval"]
    if best is not None and len(found.points) > 1:
        notes.append(f"best so far: step {best.step}, by {found.headline}, chosen without a test")
    return Table(
        title=title(found),
        columns=("step", "model", *names, "n"),
        rows=rows,
        notes=tuple(notes),
        numeric=frozenset({0, *range(2, len(names) + 3)}),
    )


def _row(point: Point, names: Sequence[str], *, mark: bool) -> tuple[Cell, ...]:
    cells = [
        table.estimate(point.averages[name]) if name in point.averages else table.missing()
        for name in names
    ]
    if mark and cells:
        cells[0] = Cell(text=f"{cells[0].text} *", value=cells[0].value)
    first = next(iter(point.averages.values()), None)
    count = table.missing() if first is None else table.number(first.n)
    step = Cell(text=str(point.step), value=point.step)
    return (step, table.text(point.model), *cells, count)


def title(found: Curve) -> str:
    """Which training job, on what."""
    return f"{found.series}: {board.label(found.summary)}"


def plot(found: Curve) -> str:
    """The official average against the step, with its 95 % interval, in plain characters."""
    some = [(p.step, p.averages[found.headline]) for p in found.points if p.averages]
    if len(some) < 2:
        return ""
    low = min(one.low for _, one in some)
    high = max(one.high for _, one in some)
    span = (high - low) or 0.01
    first, last = some[0][0], some[-1][0]
    width = min(WIDTH, max(2 * len(some), 20))
    grid = [[" "] * width for _ in range(HEIGHT)]

    def row(value: float) -> int:
        return round((high - value) / span * (HEIGHT - 1))

    for step, one in some:
        column = round((step - first) / max(last - first, 1) * (width - 1))
        for at in range(row(one.high), row(one.low) + 1):
            if grid[at][column] == " ":
                grid[at][column] = "│"
        grid[row(one.value)][column] = "●"
    lines = []
    for at, cells in enumerate(grid):
        shown = at % 4 == 0
        label = table.percent(high - at * span / (HEIGHT - 1)) if shown else ""
        lines.append(f"{label:>6} {'┤' if shown else '│'}{''.join(cells).rstrip()}")
    left, right = str(first), str(last)
    lines.append(f"{'':>6} └{'─' * width}")
    lines.append(f"{'':>8}{left}{right:>{max(width - len(left), len(right) + 1)}}  step")
    return "\n".join(lines)


def holds(found: Holds) -> str:
    """Why a rule holds, in one sentence."""
    now = found.point.averages[found.average]
    said = f"{found.rule}: {found.average} is {_interval(now)} at step {found.point.step}"
    if found.against is not None:
        then = found.against.averages[found.average]
        which = f"{found.rule.reference} before it"
        said += f", {which} {table.percent(then.value)} at step {found.against.step}"
    if found.difference is not None:
        change = found.difference
        ends = f"{table.points(change.low)} to {table.points(change.high)}"
        said += f"; paired difference {table.points(change.value)} ({ends})"
    return said


def _interval(found: Estimate) -> str:
    return (
        f"{table.percent(found.value)} ({table.percent(found.low)} to {table.percent(found.high)})"
    )
