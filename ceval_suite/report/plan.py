"""A plan as Tables: what would be asked of each model, and what memory it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ceval_suite.plan import Plan, Step
from ceval_suite.report import board, table
from ceval_suite.schema import Cell, Table

_ESTIMATED = (
    "estimated from the files and the configuration: weights in the dtype of this device, keys and "
    "values of the longest prompt, work on the largest pack (--memory caps it)"
)


def plan(found: Sequence[Plan]) -> list[Table]:
    """One row for each model and task, and one for each model's memory."""
    return [_work(found), _memory(found)]


def _work(found: Sequence[Plan]) -> Table:
    columns = ("model", "task", "items", "finished", "prompts", "tokens", "distinct", "longest")
    columns += ("time",)
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        rows += [_row(one.model, step) for step in one.steps]
        known = [step.seconds for step in one.steps if step.seconds is not None]
        if len(one.steps) > 1:
            blank = (table.text(""),) * 3
            counts = [sum(getattr(s, k) for s in one.steps) for k in ("items", "finished")]
            prompts = sum(step.prompts for step in one.steps)
            whole = _time(sum(known)) if len(known) == len(one.steps) else table.missing()
            rows.append(
                (
                    table.text(one.model),
                    table.text("all"),
                    *map(table.number, (*counts, prompts)),
                    *blank,
                    whole,
                )
            )
    return Table(
        title="Plan",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(_notes(found)),
        numeric=frozenset(range(2, len(columns))),
    )


def _row(model: str, step: Step) -> tuple[Cell, ...]:
    counted = step.tokens
    tokens = (
        (table.missing(),) * 3
        if counted is None
        else tuple(map(table.number, (counted.total, counted.distinct, counted.longest)))
    )
    return (
        table.text(model),
        table.text(board.label(board.asked(step.about))),
        table.number(step.items),
        table.number(step.finished),
        table.number(step.prompts),
        *tokens,
        table.missing() if step.seconds is None else _time(step.seconds),
    )


def _time(seconds: float) -> Cell:
    return Cell(text=table.seconds(seconds), value=seconds)


def _notes(found: Sequence[Plan]) -> Iterable[str]:
    yield (
        "distinct: tokens of the prompts that are computed, each shared one once; tokens: as if "
        "every prompt were computed by itself; time: for what is not finished"
    )
    for one in found:
        if one.source:
            yield f"{one.model}: times by {'a ' * (one.source == 'probe')}{one.source}"
        else:
            yield f"{one.model}: no earlier run tells its speed; --probe loads it and measures"
        writes = sum(step.writes for step in one.steps)
        if writes:
            yield (
                f"{one.model} writes on after {writes:,} prompts; what it writes is not among the "
                "tokens"
            )


def _memory(found: Sequence[Plan]) -> Table:
    columns = ("model", "weights", "keys and values", "work", "all")
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        of = one.memory
        parts = (of.weights, of.kept, of.work, of.total) if of else (None,) * 4
        rows.append((table.text(one.model), *map(_bytes, parts)))
    return Table(
        title="Memory",
        columns=columns,
        rows=tuple(rows),
        notes=(_ESTIMATED,),
        numeric=frozenset(range(1, len(columns))),
    )


def _bytes(value: int | None) -> Cell:
    return table.missing() if value is None else Cell(text=table.gibibytes(value), value=value)
