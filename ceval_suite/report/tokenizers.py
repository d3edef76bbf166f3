"""Tokenizers side by side: measured rows, and below them what others reported of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ceval_suite.report import table
from ceval_suite.schema import Cell, Table
from ceval_suite.specs import PublishedTokenizer, PublishedTokenizers
from ceval_suite.tokenizer.compare import Comparison, Contender
from ceval_suite.tokenizer.corpus import Side
from ceval_suite.tokenizer.prompts import Cost

Published = Mapping[str, PublishedTokenizers]

_COMMON = ("tokenizer", "source", "vocabulary")


def _none(_: PublishedTokenizer) -> Cell:
    return table.missing()


@dataclass(frozen=True)
class _Column:
    """One column: the table it belongs to, and its cells for measured and reported tokenizers."""

    group: str
    title: str
    measured: Callable[[Contender], Cell]
    reported: Callable[[PublishedTokenizer], Cell] = _none


def _figure(value: float | None, digits: int) -> Cell:
    if value is None:
        return table.missing()
    return Cell(text=f"{value:,.{digits}f}", value=value)


def _duration(value: float | None) -> Cell:
    if value is None:
        return table.missing()
    text = table.seconds(value) if value >= 1 else f"{1000 * value:.1f} ms"
    return Cell(text=text, value=value)


def _times(value: float) -> Cell:
    return Cell(text=f"{value:.2f}×", value=value)


def _all(contender: Contender) -> int:
    return sum(found.tokens for found in contender.measured.values())


def _columns(found: Comparison) -> Iterator[_Column]:
    for name, side in found.sides.items():
        yield from _length(name, side)
    texts = sum(side.texts for side in found.sides.values())
    characters = sum(side.characters for side in found.sides.values())
    yield _Column(
        "compression",
        "tokens/char",
        lambda s: _figure(_all(s) / characters, 3),
        lambda p: _figure(p.compression, 3),
    )
    yield _Column(
        "compression",
        "tokens/text",
        lambda s: _figure(_all(s) / texts, 1),
        lambda p: _figure(p.length("all"), 1),
    )
    for name, side in found.sides.items():
        yield from _compression(name, side, found.contenders[0], alone=len(found.sides) == 1)
    for name in found.sides:
        yield from _speed(name, found.threads)
    for task in found.tasks:
        yield from _prompts(task, found)


def _length(name: str, side: Side) -> Iterator[_Column]:
    yield _Column(
        "length",
        f"tokens/text {name}",
        lambda s: _figure(s.measured[name].tokens / side.texts, 1),
        lambda p: _figure(p.length(name), 1),
    )
    yield _Column(
        "length",
        f"time {name}",
        lambda s: _duration(s.measured[name].seconds),
        lambda p: _duration(p.seconds(name)),
    )


def _compression(name: str, side: Side, first: Contender, *, alone: bool) -> Iterator[_Column]:
    def per(count: int) -> Callable[[Contender], Cell]:
        return lambda s: _figure(s.measured[name].tokens / count, 3)

    if not alone:
        yield _Column("compression", f"tokens/char {name}", per(side.characters))
    yield _Column("compression", f"tokens/word {name}", per(side.words))
    yield _Column("compression", f"tokens/byte {name}", per(side.bytes))
    whole = first.measured[name].tokens
    yield _Column(
        "compression", f"tokens × first {name}", lambda s: _times(s.measured[name].tokens / whole)
    )


def _speed(name: str, threads: int) -> Iterator[_Column]:
    yield _Column(
        "speed", f"MB/s {name}, 1 thread", lambda s: _figure(s.measured[name].single / 1e6, 2)
    )
    if threads > 1:
        yield _Column(
            "speed",
            f"MB/s {name}, {threads} threads",
            lambda s: _figure(s.measured[name].multi / 1e6, 2),
        )


def _prompts(task: str, found: Comparison) -> Iterator[_Column]:
    def column(title: str, cell: Callable[[Cost], Cell]) -> _Column:
        def measured(contender: Contender) -> Cell:
            cost = contender.costs.get(task)
            return table.missing() if cost is None else cell(cost)

        return _Column(task, f"{task} {title}", measured)

    yield column("mean", lambda c: _figure(c.mean, 1))
    yield column("median", lambda c: _figure(c.median, 1))
    yield column("longest", lambda c: table.number(c.longest))
    for k, length in enumerate(found.contexts):

        def dropped(cost: Cost, k: int = k) -> Cell:
            share = cost.fits[k].dropped / cost.items
            return Cell(text=f"{table.percent(share)} %", value=share)

        def unfit(cost: Cost, k: int = k) -> Cell:
            return table.number(cost.fits[k].unfit)

        yield column(f"shots dropped at {length:,}", dropped)
        yield column(f"too long at {length:,}", unfit)
    yield column("tokens", lambda c: table.number(c.total))
    yield column("distinct tokens", lambda c: table.number(c.distinct))
    first = found.contenders[0].costs.get(task)
    if first is not None:
        total, distinct = first.total, first.distinct
        yield column("tokens × first", lambda c: _times(c.total / total))
        yield column("distinct × first", lambda c: _times(c.distinct / distinct))


def _table(
    found: Comparison, published: Published, columns: Sequence[_Column], title: str
) -> Table:
    """Measured rows, then those of each published table that has something for these columns."""
    rows: list[tuple[Cell, ...]] = [
        (
            table.text(contender.label),
            table.text("measured"),
            table.number(contender.lexicon.size),
            *(column.measured(contender) for column in columns),
        )
        for contender in found.contenders
    ]
    notes: list[str] = []
    for one in published.values():
        shown = False
        for name, row in one.tokenizers.items():
            cells = [column.reported(row) for column in columns]
            if all(cell.value is None for cell in cells):
                continue
            shown = True
            size = table.number(row.vocabulary)
            cells = [table.text(name), table.text(f"reported: {one.source}"), size, *cells]
            rows.append(tuple(replace(cell, reported=True) for cell in cells))
            notes += [f"{name}, reported: {row.note}"] * bool(row.note)
        if shown:
            notes.append(f"{one.source}, in italics: of {one.corpus}; not of these texts.")
    heads = (*_COMMON, *(column.title for column in columns))
    return Table(
        title=title,
        columns=heads,
        rows=tuple(rows),
        notes=tuple(notes),
        numeric=frozenset(range(2, len(heads))),
    )


def wide(found: Comparison, published: Published) -> Table:
    """Everything in one table, for programs."""
    made = _table(found, published, list(_columns(found)), f"Tokenizers on {found.corpus}")
    return replace(made, notes=(*_notes(found), *made.notes))


def views(found: Comparison, published: Published) -> list[Table]:
    """The same as tables that a page holds: lengths, compression, speed, and one a benchmark."""
    groups: dict[str, list[_Column]] = {}
    for column in _columns(found):
        groups.setdefault(column.group, []).append(column)
    titles = {
        "length": f"Lengths: {found.corpus}",
        "compression": f"Compression: {found.corpus}",
        "speed": f"Speed: {found.corpus}",
    }
    out: list[Table] = []
    for group, columns in groups.items():
        title = titles.get(group) or f"Prompts of {found.tasks[group]}"
        columns = [replace(c, title=c.title.removeprefix(f"{group} ")) for c in columns]
        made = _table(found, published, columns, title)
        notes = _GROUP_NOTES[group] if group in titles else _PROMPT_NOTES
        extra = list(_facts(found)) if group == "length" else []
        failed = [f"{s.label}: {s.failed[group]}" for s in found.contenders if group in s.failed]
        out.append(replace(made, notes=(*extra, *notes, *failed, *made.notes)))
    return out


def write(found: Comparison, published: Published, form: str, echo: Callable[[str], None]) -> None:
    """Print in one of the forms table, markdown, csv and json."""
    if form == "csv":
        echo(table.to_csv(wide(found, published)).rstrip("\n"))
    elif form == "json":
        echo(table.to_json(wide(found, published)))
    elif form == "markdown":
        echo("\n".join(table.markdown(view) for view in views(found, published)).rstrip("\n"))
    else:
        for view in views(found, published):
            table.show(view)


_GROUP_NOTES = {
    "length": [
        "tokens/text: mean over the texts, without start and end tokens; time: to encode them all.",
    ],
    "compression": [
        "tokens/char: the compression rate, of all texts or of one language; lower is better.",
        "tokens/word: the fertility; a word is one Chinese character, or a run of others.",
        "tokens/byte: of UTF-8.",
    ],
    "speed": [
        "MB/s: of UTF-8, on the first texts of each language (1 MiB at most).",
        "Median of up to three passes, the library's cache of words emptied before each.",
    ],
}

_PROMPT_NOTES = [
    "Lengths and tokens are those of prompts with all shots, start tokens included.",
    "shots dropped: items that lose whole shots in such a context, by the benchmark's own rule.",
    "too long: items that do not fit even without shots.",
    "distinct tokens: what the engine computes, common beginnings once; tokens: all of every row.",
]


def _facts(found: Comparison) -> Iterator[str]:
    for name, side in found.sides.items():
        yield (
            f"{name}: {side.texts:,} texts, {side.characters:,} characters, {side.words:,} words, "
            f"{side.bytes:,} bytes."
        )
    plural = "s" * (found.threads > 1)
    yield f"Times are of this machine, with {found.threads} thread{plural}."
    slow = [s.label for s in found.contenders if not s.direct]
    if slow:
        yield f"Encoded by a Python tokenizer, in one thread: {', '.join(slow)}."


def _notes(found: Comparison) -> Iterator[str]:
    yield from _facts(found)
    for notes in _GROUP_NOTES.values():
        yield from notes
    if found.tasks:
        yield f"Prompts of {'; '.join(found.tasks.values())}."
        yield from _PROMPT_NOTES
    for contender in found.contenders:
        yield from (f"{contender.label}, {task}: {why}" for task, why in contender.failed.items())
