"""A filled-in board → a Table: measured rows with tests and ranks, then what others printed.

Bold is better than every other model measured in the column, by a test; underlined is what that
test cannot tell from the best. What others printed stands in italics under their own settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ceval_suite import boards
from ceval_suite.arrange import Arranged, Place, own, value
from ceval_suite.boards import Board, PublishedRow, PublishedTable
from ceval_suite.ranking import Ranks
from ceval_suite.report import table
from ceval_suite.report.board import PERCENT, at_chance, label, notes, remarks
from ceval_suite.schema import Cell, Table
from ceval_suite.standings import Entry, Standing, agreements

MEASURED = "measured"

_SHOWN = {"backbone": "(not given)", "tokens": "(not given)", "settings": ""}


def render(
    found: Arranged, title: str, board: Board | None = None, titles: Mapping[str, str] | None = None
) -> Table:
    """The board as a table; `titles` are those of a board made of runs, with n in every cell."""
    tables = _published(board)
    sourced = bool(tables) and (bool(found.models) or len(tables) > 1)
    rows: list[tuple[Cell, ...]] = []
    for model in _sorted(found, board):
        rows.append(_measured(found, model, sourced=sourced, with_n=board is None))
        if found.lists:
            rows.append(_measured(found, model, sourced=sourced, with_n=board is None, less=True))
    reported: list[tuple[PublishedTable, str, PublishedRow]] = []
    for printed, names in tables:
        for name in names:
            row = _reported(found, printed, name, sourced=sourced)
            if row is not None:
                rows.append(row)
                reported.append((printed, name, printed.rows[name]))
    heads = ["model", *["source"] * sourced]
    numeric: set[int] = set()
    for place in found.places:
        if not place.column.show:
            numeric.add(len(heads))
        heads.append(place.title)
        if place.standing is not None and place.standing.ranks is not None:
            numeric.add(len(heads))
            heads.append(f"{place.title} rank")
    return Table(
        title=title,
        columns=tuple(heads),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(_notes(found, board, reported, titles))),
        numeric=frozenset(numeric),
    )


def _published(board: Board | None) -> list[tuple[PublishedTable, Sequence[str]]]:
    out: list[tuple[PublishedTable, Sequence[str]]] = []
    for reference in board.published if board else ():
        printed = boards.load_published(reference.table)
        out.append((printed, reference.rows or list(printed.rows)))
    return out


def _sorted(found: Arranged, board: Board | None) -> list[str]:
    """Models by the sorting column, the highest first; those without a number last, by name."""
    key = board.sort if board else None
    place = next((p for p in found.places if p.title.partition(" #")[0] == key), None)
    names = {model: about.name or model for model, about in found.models.items()}

    def order(model: str) -> tuple[bool, float, str]:
        known = value(place, model) if place else None
        return known is None, -known.value if known else 0.0, names[model]

    return sorted(found.models, key=order)


def _measured(
    found: Arranged, model: str, *, sourced: bool, with_n: bool, less: bool = False
) -> tuple[Cell, ...]:
    about = found.models[model]
    name = about.name or model
    if less:
        name += f" without {', '.join(one.name for one in found.lists)}"
    cells = [table.text(name), *[table.text(MEASURED)] * sourced]
    for place in found.places:
        if place.column.show is not None:
            known = str(getattr(about, place.column.show))
            cells.append(table.text(known) if known else _nothing(place.column.show))
            continue
        if place.standing is None:
            cells.append(table.missing("(not measured)"))
            continue
        one = place.without if less and place.without is not None else place.standing
        mentioned = None if less else own(place, about)
        cells.append(_score(one, model, with_n=with_n, own=mentioned.value if mentioned else None))
        if place.standing.ranks is not None:
            cells.append(_rank(one, model))
    return tuple(cells)


def _nothing(what: str) -> Cell:
    return table.missing(_SHOWN[what]) if _SHOWN[what] else table.text("")


def _score(one: Standing, model: str, *, with_n: bool, own: float | None) -> Cell:
    entry = one.entries.get(model)
    beside = f" ({table.percent(own / 100)})" if own is not None else ""
    if entry is None or entry.value is None:
        reason = entry.reason if entry else "not run"
        return table.missing(f"({reason}){beside}")
    shown = table.estimate(entry.value)
    size = f" n={entry.value.n}" if with_n else ""
    return Cell(
        text=f"{_chance(entry)}{shown.text}{size}{beside}",
        value=shown.value,
        best=_mark(one, model) == "best",
        tied=_mark(one, model) == "tied",
    )


def _chance(entry: Entry) -> str:
    whole = entry.summary is not None and entry.summary.get("chance") is not None
    return "≈" if whole and entry.summary and at_chance(entry.summary) else ""


def _mark(one: Standing, model: str) -> str:
    if one.ranks is None or model not in one.tested:
        return ""
    return one.ranks.mark(one.tested[model])


def _rank(one: Standing, model: str) -> Cell:
    if one.ranks is None or model not in one.tested:
        return table.missing("(not tested)" if model in one.untested else "")
    return rank(one.ranks, one.tested[model])


def rank(ranks: Ranks, at: int) -> Cell:
    """`2` or `1–3`: the ranks that the data allow, and the best of them for machines."""
    low, high = ranks.low[at], ranks.high[at]
    return Cell(text=str(low) if low == high else f"{low}–{high}", value=low)


def _reported(
    found: Arranged, printed: PublishedTable, name: str, *, sourced: bool
) -> tuple[Cell, ...] | None:
    row = printed.rows[name]
    cells = [table.text(name), *[table.text(f"reported: {printed.title}")] * sourced]
    some = False
    for place in found.places:
        if place.column.show is not None:
            known = str(getattr(row, place.column.show))
            cells.append(table.text(known) if known else _nothing(place.column.show))
            continue
        text = row.values.get(_key(place) or "")
        some = some or text is not None
        cells.append(_printed(text) if text is not None else table.missing("(not printed)"))
        if place.standing is not None and place.standing.ranks is not None:
            cells.append(table.missing())
    return tuple(replace(cell, reported=True) for cell in cells) if some else None


def _printed(text: str) -> Cell:
    return Cell(text=text.replace("(-)", f"({table.MISSING})"), value=float(text.split()[0]) / 100)


def _key(place: Place) -> str | None:
    """The column of published tables that stands beside a column; part of a benchmark has none."""
    column = place.column
    if column.reported is not None or column.published is not None:
        return column.published or column.reported
    return column.task if column.group is None and column.subjects is None else None


def _notes(
    found: Arranged,
    board: Board | None,
    reported: Sequence[tuple[PublishedTable, str, PublishedRow]],
    titles: Mapping[str, str] | None,
) -> Iterator[str]:
    summaries = [s for p in found.places if p.standing for s in p.standing.summaries()]
    if titles is not None:
        yield from notes(summaries, titles)
    elif summaries:
        yield PERCENT
        for place in found.places:
            yield from _column(place)
        yield from remarks(summaries)
    standings = [place.standing for place in found.places if place.standing is not None]
    yield from _tests(standings)
    dates = sorted({str(s["date"]) for s in summaries if s.get("date")})
    if titles is not None and dates:
        yield f"run on {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    for one in found.lists:
        left = [
            f"{p.without.left_out:,} of {p.title}"
            for p in found.places
            if p.without and p.column.task
        ]
        yield f"without {one.name}: {one.title} ({', '.join(left)} left out by the lists)"
    if found.unfit:
        kinds = dict.fromkeys(label(s) for s in found.unfit)
        yield f"{len(found.unfit)} runs fit no column ({'; '.join(list(kinds)[:5])})"
    yield from _own(found)
    yield from _reports(found, reported)
    yield from board.notes if board else ()


def _column(place: Place) -> Iterator[str]:
    """What a column of runs holds: protocol, average, n, dates."""
    one = place.standing
    if one is None:
        return
    if place.column.mean is not None:
        parts = ", ".join(place.column.mean)
        yield f"{place.title}: mean of {parts}, where a model has them all"
        return
    some = [s for s in one.summaries() if s.get("complete")]
    if not some:
        yield f"{place.title}: no finished run"
        return
    part = place.column.group or ", ".join(place.column.subjects or ())
    counts = sorted({e.value.n for e in one.entries.values() if e.value is not None})
    size = (
        f"n={' to '.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))}"
        if counts
        else "n=0"
    )
    dates = sorted({str(s["date"]) for s in some if s.get("date")})
    run = f", run on {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    within = f", of {part}" if part else ""
    print8 = str(some[0]["protocol_sha256"])[:8]
    yield f"{place.title}: {label(some[0])} #{print8}, {one.rule} average{within}, {size}{run}"


def _tests(standings: Sequence[Standing]) -> Iterator[str]:
    if any(one.ranks is not None for one in standings):
        yield (
            "bold: better than every other measured model; underlined: not to be told from the "
            "best (paired tests on the same items, 5 % by Holm over the best one's comparisons)"
        )
        yield (
            "rank: the ranks that the data allow a model, each with 95 % (1 + those better than "
            "it, to all less those worse, by Holm within its own comparisons)"
        )
    for one in standings:
        by_reason: dict[str, list[str]] = {}
        for model, reason in one.untested.items():
            by_reason.setdefault(reason, []).append(model)
        for reason, models in by_reason.items() if len(one.values()) > 1 else ():
            more = f" and {len(models) - 5} more" if len(models) > 5 else ""
            yield f"{one.title}: {', '.join(models[:5])}{more} not tested: {reason}"


def _own(found: Arranged) -> Iterator[str]:
    """Where the numbers in parentheses beside measured ones come from."""
    for model, about in found.models.items():
        for column, said in about.reported.items():
            yield f"({about.name or model}, {column}): {said.source}"


def _reports(
    found: Arranged, reported: Sequence[tuple[PublishedTable, str, PublishedRow]]
) -> Iterator[str]:
    for printed in {id(t): t for t, _, _ in reported}.values():
        yield (
            f"in italics: {printed.title}, printed {printed.date} in {printed.source}, under "
            f"protocols of their own and in no test; {printed.settings}"
        )
        for place in found.places:
            column = printed.columns.get(_key(place) or "")
            if column is not None:
                yield f"{place.title} of {printed.title}: {column.settings}"
    for printed, name, row in reported:
        told = "; ".join(filter(None, (row.settings, row.note)))
        if told:
            yield f"{name} of {printed.title}: {told}"


def correlations(found: Arranged) -> Table:
    """How alike every two columns order the models they share."""
    standings = [place.standing for place in found.places if place.standing is not None]
    rows = [
        (
            table.text(one),
            table.text(other),
            table.number(alike.n),
            table.number(round(alike.kendall, 3)),
            table.probability(alike.kendall_p),
            table.number(round(alike.spearman, 3)),
            table.probability(alike.spearman_p),
        )
        for one, other, alike in agreements(standings)
    ]
    return Table(
        title="How alike the columns order the models",
        columns=("column", "other", "models", "Kendall τ-b", "p (τ)", "Spearman ρ", "p (ρ)"),
        rows=tuple(rows),
        notes=("of the models that both have; fewer than three say nothing",),
        numeric=frozenset(range(2, 7)),
    )


def tokenizers(board: Board) -> Table:
    """Tables of tokenizers as others printed them."""
    rows: list[tuple[Cell, ...]] = []
    remarks: list[str] = []
    for printed in boards.load_tokenizers(board).values():
        for name, row in printed.tokenizers.items():
            lengths = [row.length(language) for language in ("zh", "en", "all")]
            times = [row.seconds(language) for language in ("zh", "en")]
            cells = (
                table.text(name),
                table.text(f"reported: {printed.source}"),
                table.number(row.vocabulary),
                *(_known(one) for one in lengths),
                _known(row.compression),
                *(
                    Cell(text=table.seconds(one), value=one)
                    if one is not None
                    else table.missing("(not printed)")
                    for one in times
                ),
            )
            rows.append(tuple(replace(cell, reported=True) for cell in cells))
            remarks += [f"{name}: {row.note}"] * bool(row.note)
        remarks.append(f"{printed.title}: printed in {printed.source}; of {printed.corpus}")
    heads = (
        *("tokenizer", "source", "vocabulary", "tokens zh", "tokens en", "tokens"),
        *("tokens per character", "time zh", "time en"),
    )
    return Table(
        title=board.title,
        columns=heads,
        rows=tuple(rows),
        notes=(*remarks, "tokens: mean per text", *board.notes),
        numeric=frozenset(range(2, len(heads))),
    )


def _known(number: float | None) -> Cell:
    return table.missing("(not printed)") if number is None else table.number(number)
