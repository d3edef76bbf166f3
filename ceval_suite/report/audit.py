"""A tokenizer's audit as tables: what it holds, what it does to text, and the letter table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ceval_suite.report.table import missing, number, percent, text
from ceval_suite.schema import Cell, Table

WRITINGS = 14
"""Writings that are shown by name."""


def tables(about: Mapping[str, Any]) -> list[Table]:
    """The three tables of an audit."""
    return [_holds(about), _does(about), letters(about)]


def _holds(about: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, Cell, Cell]] = []
    total, untested = about["entries"], about["untested"]

    def row(name: str, count: int, share: float | None = None, note: str = "") -> None:
        shown = missing() if share is None else Cell(text=f"{percent(share)} %", value=share)
        rows.append((text(name + (f" ({note})" if note else "")), number(count), shown))

    row("entries", total, 1.0)
    writing = list(about["writing"].items())
    for name, count in writing[:WRITINGS]:
        row(f"  {name}", count, count / total)
    if rest := writing[WRITINGS:]:
        count = sum(n for _, n in rest)
        row(f"  {len(rest)} more", count, count / total)
    for level, found in about["chinese"]["gb2312"].items():
        share = found["single"] / found["characters"]
        note = f"of {found['characters']:,}"
        row(f"GB 2312 {level} in single tokens", found["single"], share, note)
    by_length = about["chinese"]["words_by_length"]
    lengths = ", ".join(f"{n} of {length}" for length, n in by_length.items())
    row("tokens of several Chinese characters", about["chinese"]["words"], None, lengths)
    twice, lost = about["duplicates"], about["unreachable"]
    row("texts with more than one id", twice["count"])
    row("tokens that no text becomes", lost["count"], lost["count"] / total, _some(lost["first"]))
    return Table(
        title=f"{about['tokenizer']}: {about['kind']}, {about['class']}",
        columns=("what it holds", "n", "share"),
        rows=tuple(rows),
        numeric=frozenset({1, 2}),
        notes=(f"{untested:,} parts of characters or words, which no text asks for alone",)
        if untested
        else (),
    )


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:6]) + (", …" if len(names) > 6 else "")


def _does(about: Mapping[str, Any]) -> Table:
    special, template = about["special"], about["chat_template"]
    digits = about["digits"]
    example = next(iter(digits["examples"].items()))
    start = "none" if special["start"] is None else f"{special['start']!r}"
    end = "none" if special["end"] is None else f"{special['end']!r}"
    rows = [
        ("numbers", f"{digits['split']} ({example[0]} → {' '.join(example[1])})"),
        ("normaliser", ", ".join(about["normalizer"]) or "none named"),
        ("reads", _read(about["read_as"])),
        ("comes back changed", _lost(about["round_trip"])),
        ("start token", f"{start}, {special['start_token']}"),
        ("end token", f"{end}, {_added(special['added_behind'])}"),
        (
            "special tokens",
            f"{special['special']}, of which text is read as {special['read_in_text']}",
        ),
        ("added tokens", _some(special["added"]) or "none"),
        ("chat template", _template(template)),
    ]
    for language, found in about["text"].items():
        if found["texts"]:
            rows.append((f"questions, {language}", _on_text(found)))
    return Table(
        title="What it does to text",
        columns=("what", "how"),
        rows=tuple((text(name), text(value)) for name, value in rows),
        notes=tuple(about["warnings"]),
    )


def _read(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} as {into!r}" for name, into in found.items()) or "text as it stands"


def _lost(found: Mapping[str, Any]) -> str:
    lost = found["lost"]
    if not lost:
        return f"nothing ({found['probes']} probes)"
    return f"{len(lost)} of {found['probes']} probes: {', '.join(lost)}"


def _added(tokens: list[str]) -> str:
    return "not added" if not tokens else f"added: {' '.join(tokens)}"


def _template(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none"
    start = found.get("start_token")
    return f"{found['sha256'][:8]}" + (f", start token {start}" if start else "")


def _on_text(found: Mapping[str, Any]) -> str:
    rate = found["tokens"] / max(found["characters"], 1)
    parts = [
        f"{found['texts']:,} texts",
        f"{rate:.3f} tokens a character",
        f"{percent(found['bytes'])} % byte tokens",
        f"{percent(found['parts'])} % parts of characters",
        f"{percent(found['unknown'])} % unknown",
        f"{found['lost']} come back changed",
    ]
    return ", ".join(parts)


def letters(about: Mapping[str, Any]) -> Table:
    """The letter table: a row for each template, language and number of shots."""
    rows: list[tuple[Cell, ...]] = []
    shown_by = ", ".join(dict.fromkeys(one["task"] for one in about["letters"] if one["task"]))
    notes = {f"prompts: {shown_by}": None}
    for one in about["letters"]:
        verdict = one["verdict"]
        if one["of"] < one["prompts"]:
            verdict += f" ({one['of']} of {one['prompts']} prompts)"
        if one["reason"]:
            notes.setdefault(f"{one['template']}: {one['reason']}")
        shown = {None: missing(), True: text("same"), False: text(_others(one["shot_tokens"]))}
        rows.append(
            (
                text(f"{one['template']} {one['language']} {one['shots']}-shot"),
                text(f"…{one['cue'][-12:]!r}"),
                text(_tokens(one["tokens"])),
                text(repr(one["form"])) if one["form"] else missing(),
                text(" ".join(one["other"])[:24]) if one["other"] else missing(),
                shown[one["in_shots"]],
                text(verdict),
            )
        )
    return Table(
        title="Letters, as they are scored",
        columns=("template", "cue", "tokens", "read as", "blank changed", "in shots", "verdict"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _tokens(found: Mapping[str, Mapping[str, Any]]) -> str:
    if not found:
        return "–"
    shown = [" ".join(map(str, one["tokens"])) for one in found.values()]
    if any(len(one) > 24 for one in shown):
        return f"{shown[0][:24]}… ({len(shown)} texts)"
    return " | ".join(shown)


def _others(found: Mapping[str, list[str]]) -> str:
    return "other: " + " | ".join(" ".join(map(str, names)) for names in found.values())
