"""What an extension added, what of it is never reached, and what it does to texts, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from ceval_suite.report import table
from ceval_suite.schema import Table
from ceval_suite.tokenizer.extend import Extension, Measured
from ceval_suite.tokenizer.pieces import Listing

SHOWN = 20
"""Unreachable pieces that are named in a note; `extension.json` has all."""

RULES = {
    "below": "below the base's",
    "zero": "zero",
    "after": "merges after the base's",
}


def summary(extension: Extension, listing: Listing) -> Table:
    """Counts of one extension, and the unreachable pieces."""
    base = extension.base.lexicon
    rows = [
        ("entries of the base", extension.first),
        ("new pieces", len(extension.pieces)),
        ("intermediate tokens", len(extension.added)),
        ("new merges", extension.merges),
        ("entries now", extension.size),
        ("listed pieces that the base has", listing.present),
        ("listed lines that are no pieces", len(listing.bad)),
        ("unreachable pieces", len(extension.lost)),
    ]
    notes = [f"New pieces: {RULES[extension.scores or 'after']}, from {listing.source}."]
    if extension.note:
        notes.append(f"Forms: {extension.note}.")
    if extension.lost:
        some = list(extension.lost)[:SHOWN]
        more = len(extension.lost) - len(some)
        named = ", ".join(some) + (f" and {more} more in extension.json" if more else "")
        notes.append(f"Unreachable, merging never makes them of their own text: {named}.")
    return Table(
        title=f"{base.name}, extended",
        columns=("What", "Number"),
        rows=tuple((table.text(name), table.number(value)) for name, value in rows),
        notes=tuple(notes),
        numeric=frozenset({1}),
    )


def segmentation(measured: Sequence[Measured]) -> Table:
    """One row a collection of texts and rule: tokens, and texts whose tokens change."""
    columns = ("Texts", "Number", "New pieces", "Base tokens", "Tokens", "Base tokens / tokens")
    columns += ("Tokens / character", "Changed", "Without new pieces")
    rows = [
        (
            table.text(one.name),
            table.number(one.texts),
            table.text(RULES[cut.scores]),
            table.number(one.base_tokens),
            table.number(cut.tokens),
            table.number(one.base_tokens / cut.tokens) if cut.tokens else table.missing("no text"),
            table.number(cut.tokens / one.characters) if one.characters else table.missing(),
            table.number(cut.changed),
            table.number(cut.untouched),
        )
        for one in measured
        for cut in one.cuts
    ]
    return Table(
        title="Texts before and after",
        columns=columns,
        rows=tuple(rows),
        notes=(
            "Changed: texts that are cut into other tokens than by the base.",
            "Without new pieces: those of them that hold no new piece all the same.",
        ),
        numeric=frozenset({1, *range(3, len(columns))}),
    )
