"""A run beside others, as Tables: accuracy and its difference, flips, prompts, bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite import comparison, stats
from ceval_suite.comparison import Side, Texts, Versus
from ceval_suite.exclusions import Exclusions
from ceval_suite.report import board, changes, table
from ceval_suite.report.changes import names
from ceval_suite.schema import Cell, Table


@dataclass(frozen=True)
class Wanted:
    """What to show beside the averages.

    `items` is how many items to list of each task, 0 for none and None for all that changed;
    averages are shown with and without the items of `lists`.
    """

    subjects: bool = False
    items: int | None = 0
    lists: Sequence[Exclusions] = ()


def compare(first: Path, *others: Path, wanted: Wanted | None = None) -> list[Table]:
    """All tables of run folders, or folders of one model's runs each, against the first of them.

    Raises:
        RunError: nothing in them can be compared, and why.
    """
    wanted = wanted or Wanted()
    every = [_compared(first, other, wanted) for other in others]
    adjusted = _adjusted([rows for _, rows, _ in every]) if len(others) > 1 else {}
    tables: list[Table] = []
    for other, (found, rows, alone) in zip(others, every, strict=True):
        if found:
            tables.append(accuracy(found, alone, rows=rows, adjusted=adjusted))
            tables += _details([(_label(one.first), one) for one in found], wanted)
            tables.append(prompts(found))
        texts = comparison.texts(first, other)
        tables += [bits(texts)] if texts else []
    return tables


Rows = Sequence[tuple[str, Versus]]
"""Comparisons and what to call each: the task, with what was left out."""


def _compared(
    first: Path, other: Path, wanted: Wanted
) -> tuple[list[Versus], list[tuple[str, Versus]], list[Side]]:
    pairs, alone = comparison.pair(first, other)
    found: list[Versus] = []
    rows: list[tuple[str, Versus]] = []
    for one, two in pairs:
        found.append(comparison.versus(one, two))
        rows.append((_label(one), found[-1]))
        for chosen in wanted.lists:
            sides = [comparison.without(side, [chosen]) for side in (one, two)]
            if len(sides[0].records) + len(sides[1].records) < len(one.records) + len(two.records):
                less = comparison.versus(*sides)
                rows.append((f"{_label(one)}, without {chosen.name}", less))
    return found, rows, alone


def _adjusted(every: Sequence[Rows]) -> dict[int, dict[str, float]]:
    """Holm's p of each average over the runs compared with the first, by the comparison."""
    families: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for label, one in (row for rows in every for row in rows):
        for name, found in one.differences.items():
            families.setdefault((label, name), []).append((id(one), found.p))
    out: dict[int, dict[str, float]] = {}
    for (_, name), members in families.items():
        for (key, _), p in zip(members, stats.holm([p for _, p in members]), strict=True):
            out.setdefault(key, {})[name] = p
    return out


def _details(found: Rows, wanted: Wanted) -> Iterable[Table]:
    if any(one.labelled for _, one in found):
        yield changes.matrix(found)
    yield changes.likeness(found)
    if wanted.subjects:
        yield changes.parts(found, "category")
        yield changes.parts(found, "subject")
    if wanted.items != 0:
        yield changes.items(found, wanted.items)


def accuracy(
    found: Sequence[Versus],
    alone: Sequence[Side] = (),
    *,
    rows: Rows = (),
    adjusted: dict[int, dict[str, float]] | None = None,
) -> Table:
    """One row for each task and average: both values, the difference and whether it is one.

    `rows` are the comparisons to show, named; the found ones where there are none. `adjusted` are
    p-values for being several, where there are.
    """
    rows = rows or [(_label(one.first), one) for one in found]
    one, two = names(found[0].first.model, found[0].second.model)
    columns = ("task", "average", "n", one, two, "difference", "95 %", "fixed", "broke", "p")
    columns += ("p (Holm)",) if adjusted else ()
    columns += ("exact p", "bootstrap 95 %", "detectable")
    return Table(
        title=f"{two} against {one}",
        columns=columns,
        rows=tuple(row for label, one in rows for row in _accuracy(label, one, adjusted)),
        notes=tuple(_accuracy_notes(found, alone, bool(adjusted))),
        numeric=frozenset(range(2, len(columns))),
    )


def _accuracy(
    label: str, found: Versus, adjusted: dict[int, dict[str, float]] | None
) -> Iterable[tuple[Cell, ...]]:
    task = table.text(label)
    if not found.averages:
        dashes = [table.missing() for _ in range(10 if adjusted else 9)]
        yield (task, table.text(""), table.number(0), table.missing("(no labels)"), *dashes)
    for place, (name, (one, two, change)) in enumerate(found.averages.items()):
        of_items = name == "acc/micro"  # what is fixed are items, whatever an average makes of it
        exact = found.exact if of_items else None
        yield (
            task,
            table.text(name + (" (official)" if place == 0 else "")),
            table.number(change.n),
            table.estimate(one),
            table.estimate(two),
            Cell(text=table.points(change.value), value=change.value),
            changes.interval(change),
            table.number(found.fixed) if of_items else table.missing(),
            table.number(found.broke) if of_items else table.missing(),
            table.probability(found.differences[name].p),
            *([table.probability(adjusted[id(found)][name])] if adjusted else []),
            table.missing() if exact is None else table.probability(exact),
            changes.interval(found.resampled[name][0]),
            changes.detectable(found.differences[name]),
        )


def _label(side: Side) -> str:
    return board.label(board.asked(side.about))


def _accuracy_notes(found: Sequence[Versus], alone: Sequence[Side], several: bool) -> Iterable[str]:
    yield (
        "differences in percentage points, second less first, on the items that both answered; "
        "paired 95 % intervals (Tango's score interval) and the p of the same score test, which "
        "decides: for items it is McNemar's, without a correction"
    )
    yield (
        "fixed, broke: items wrong then right, right then wrong; exact p: McNemar's exact test of "
        "these; bootstrap: paired, by subject and passage"
    )
    if several:
        yield "p (Holm): adjusted for the runs that are compared with the first (Holm 1979)"
    yield (
        "detectable: the smallest difference, in points, that so many items find in four cases of "
        "five, where any is"
    )
    for versus in found:
        for name, one in list(versus.differences.items())[:1]:
            if words := changes.needed(one):
                yield f"{_label(versus.first)}, {name}: {words}"
    for versus in found:
        if versus.clustered:
            yield (
                f"{_label(versus.first)}: several answers an item or passage, so intervals and p "
                "are cluster-robust (Student's and normal, over clusters)"
            )
        sides = zip((versus.first, versus.second), versus.alone, strict=True)
        for side, count in sides:
            if count:
                yield (
                    f"{_label(side)}: {count} items that only {side.model} has finished are left "
                    "out; the other run is incomplete"
                )
    for side in alone:
        yield f"{_label(side)}: only {side.model} has this protocol; not compared"


def prompts(found: Sequence[Versus]) -> Table:
    """One row for each task and side: what its prompts took and how many shots they showed."""
    rows: list[tuple[Cell, ...]] = []
    for versus in found:
        both = names(versus.first.model, versus.second.model)
        for name, budget in zip(both, versus.budgets, strict=True):
            rows.append(
                (
                    table.text(_label(versus.first)),
                    table.text(name),
                    table.number(versus.n),
                    table.number(budget.prompt_tokens),
                    Cell(
                        text=f"{budget.prompt_tokens / versus.n:.1f}",
                        value=budget.prompt_tokens / versus.n,
                    ),
                    table.number(budget.longest),
                    table.number(budget.shots / versus.n),
                    table.number(budget.fewer),
                )
            )
    columns = ("task", "model", "n", "prompt tokens", "mean", "longest", "shots", "fewer shots")
    return Table(
        title="Prompts",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(_prompt_notes(found)),
        numeric=frozenset(range(2, len(columns))),
    )


def _prompt_notes(found: Sequence[Versus]) -> Iterable[str]:
    yield (
        "shots: mean per prompt; fewer shots: items that show fewer than asked for, to fit the "
        "context; no question is ever cut"
    )
    said = {
        True: "the tokenizers are equal",
        False: "the tokenizers differ",
        None: "a run does not say which tokenizer it used",
    }
    for same in dict.fromkeys(versus.same_tokenizer for versus in found):
        yield said[same]
    for versus in found:
        if versus.shots_differ:
            yield (
                f"{_label(versus.first)}: {versus.shots_differ} of {versus.n} items show different "
                "numbers of shots to the two models; 'run --same-shots' gives both the same"
            )


def bits(found: Sequence[Texts]) -> Table:
    """One row for each group of texts, then for each language: both sides and their difference."""
    one, two = names(*found[0].models)
    columns = ("texts", "language", "n", "bytes", one, two, "difference", "95 %")
    columns += (f"{one}: per character", f"{two}: per character")
    columns += (f"{one}: tokens", f"{two}: tokens")
    return Table(
        title="Bits per byte",
        columns=columns,
        rows=tuple(map(_bits, found)),
        notes=tuple(_bits_notes(found)),
        numeric=frozenset(range(2, len(columns))),
    )


def _bits(found: Texts) -> tuple[Cell, ...]:
    change: Any = found.difference
    interval = table.missing("(one text)")
    if change["low"] is not None:
        text = f"{change['low']:+.3f} … {change['high']:+.3f}"
        interval = Cell(text=text, value=change["high"] - change["low"])
    sides = (found.first, found.second)
    return (
        table.text(found.group or "all texts"),
        table.text(found.language),
        table.number(found.n),
        table.number(found.first["bytes"]),
        *(table.measured(side["bits_per_byte"]) for side in sides),
        Cell(text=f"{change['value']:+.3f}", value=change["value"]),
        interval,
        *(table.measured(side["perplexity_per_character"], 2) for side in sides),
        *(table.number(side["tokens"]) for side in sides),
    )


def _bits_notes(found: Sequence[Texts]) -> Iterable[str]:
    yield (
        "bits per byte, then perplexity per character and tokens; less is better; paired bootstrap "
        "over texts"
    )
    for one in found:
        if one.rolled and len(set(one.windows)) > 1:
            yield (
                f"{one.group}: windows of {' and '.join(map(str, one.windows))} tokens, and "
                f"{one.rolled} texts are longer than the smaller; '--window' makes them equal"
            )
