"""Two runs side by side, as Tables: accuracy and its difference, prompts, bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ceval_suite import comparison
from ceval_suite.comparison import Side, Texts, Versus
from ceval_suite.report import table
from ceval_suite.schema import Cell, Table


def compare(first: Path, second: Path) -> list[Table]:
    """All tables of two run folders, or of two folders of one model's runs each.

    Raises:
        RunError: nothing in them can be compared, and why.
    """
    pairs, alone = comparison.pair(first, second)
    found = [comparison.versus(one, two) for one, two in pairs]
    texts = comparison.texts(first, second)
    tables = [accuracy(found, alone), prompts(found)] if found else []
    return [*tables, bits(texts)] if texts else tables


def accuracy(found: Sequence[Versus], alone: Sequence[Side] = ()) -> Table:
    """One row for each task and average: both values, the difference and whether it is one."""
    one, two = _names(found[0].first.model, found[0].second.model)
    columns = ("task", "average", "n", one, two, "difference", "95 %", "fixed", "broke", "p")
    return Table(
        title=f"{two} against {one}",
        columns=columns,
        rows=tuple(row for versus in found for row in _accuracy(versus)),
        notes=tuple(_accuracy_notes(found, alone)),
        numeric=frozenset(range(2, len(columns))),
    )


def _accuracy(found: Versus) -> Iterable[tuple[Cell, ...]]:
    task = table.text(_label(found.first))
    if not found.averages:
        dashes = [table.missing() for _ in range(6)]
        yield (task, table.text(""), table.number(0), table.missing("(no labels)"), *dashes)
    for place, (name, (one, two, change)) in enumerate(found.averages.items()):
        counts = [table.number(found.fixed), table.number(found.broke), table.probability(found.p)]
        if name != "acc/micro":  # they are of items, whatever an average makes of these
            counts = [table.missing() for _ in counts]
        yield (
            task,
            table.text(name + (" (official)" if place == 0 else "")),
            table.number(change.n),
            table.estimate(one),
            table.estimate(two),
            Cell(text=table.points(change.value), value=change.value),
            _interval(change.low, change.high),
            *counts,
        )


def _interval(low: float, high: float) -> Cell:
    return Cell(text=f"{table.points(low)} … {table.points(high)}", value=high - low)


def _names(one: str, two: str) -> tuple[str, str]:
    return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")


def _label(side: Side) -> str:
    about = side.about
    extra = ["same shots"] if about.get("same_shots") else []
    extra += ["chat"] if about.get("chat") else []
    extra += [f"first {about['limit']} per subject"] if about.get("limit") else []
    departs = f" ({', '.join(extra)})" if extra else ""
    asked = f"{about['task']} {about['split']}, {about['protocol']}, {about['shots']}-shot"
    return asked + departs


def _accuracy_notes(found: Sequence[Versus], alone: Sequence[Side]) -> Iterable[str]:
    yield (
        "differences in percentage points, second less first, on the items that both answered; "
        "paired 95 % intervals (Tango's score interval)"
    )
    yield "fixed, broke: items wrong then right, right then wrong; p: exact McNemar test of these"
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
        names = _names(versus.first.model, versus.second.model)
        for name, budget in zip(names, versus.budgets, strict=True):
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
    one, two = _names(*found[0].models)
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
