"""Bits per byte of models on texts, as a Table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ceval_suite.report import table
from ceval_suite.schema import Cell, Table

Summary = Mapping[str, Any]


def bits(summaries: Sequence[Summary]) -> Table:
    """One row for each model and group of texts, and for each language of a group of several."""
    rows: list[tuple[Cell, ...]] = []
    for summary in summaries:
        languages = summary["languages"]
        rows.append(_row(summary, ", ".join(languages), summary))
        if len(languages) > 1:
            rows += [_row(summary, name, found) for name, found in languages.items()]
    columns = ("model", "texts", "language", "n", "bytes", "tokens", "bits per byte")
    columns += ("perplexity per character",)
    return Table(
        title="Bits per byte",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(_notes(summaries)),
        numeric=frozenset(range(3, len(columns))),
    )


def _row(summary: Summary, language: str, found: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        table.text(str(summary["model"])),
        table.text(str(summary["group"])),
        table.text(language),
        *(table.number(found[key]) for key in ("n", "bytes", "tokens")),
        table.measured(found["bits_per_byte"]),
        table.measured(found["perplexity_per_character"], 2),
    )


def _notes(summaries: Sequence[Summary]) -> Iterable[str]:
    yield "± half the 95 % interval of a bootstrap over texts; less is better"
    for model in dict.fromkeys(str(s["model"]) for s in summaries):
        mine = [s for s in summaries if s["model"] == model]
        window = mine[0]["windows"]
        start = window["start"]
        which = "start token" if start["role"] == "bos" else "end token, for want of a start token,"
        yield (
            f"{model}: windows of {window['window']} tokens that advance by {window['stride']}; "
            f"the {which} {start['token']} stands before each text and is not scored"
        )
        unknown, tokens = (sum(s[key] for s in mine) for key in ("unknown", "tokens"))
        if unknown:
            yield (
                f"{model}: {unknown} of {tokens} tokens are unknown to its tokenizer; what they "
                "stand for cost it nothing, and its bits per byte are too low"
            )
