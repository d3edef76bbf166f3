"""Table → text, Markdown, CSV, JSON; the only place that formats a number."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ceval_suite.schema import Cell, Estimate, Table

MISSING = "–"


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def estimate(found: Estimate) -> Cell:
    """`68.7 ±1.2`: percent and half the width of the 95 % interval."""
    half = 100 * (found.high - found.low) / 2
    return Cell(text=f"{percent(found.value)} ±{half:.1f}", value=found.value)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def probability(p: float) -> Cell:
    """A p-value with three decimals, or below what they show."""
    return Cell(text=f"{p:.3f}" if p >= 0.001 else "<0.001", value=p)


def measured(found: Mapping[str, Any], digits: int = 3) -> Cell:
    """`1.234 ±0.012`: a value and half its interval; without one, the value alone."""
    value, low, high = found["value"], found["low"], found["high"]
    half = "" if low is None else f" ±{(high - low) / 2:.{digits}f}"
    return Cell(text=f"{value:.{digits}f}{half}", value=value)


def number(value: float | int) -> Cell:
    """A count with thousands separated, or a number with up to three decimals."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")
    return Cell(text=text, value=value)


def seconds(value: float) -> str:
    """A duration as `2 h 05 min`, `3 min 20 s` or `4.2 s`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / 2**30:.2f} GiB"


def text(value: str) -> Cell:
    """Plain text."""
    return Cell(text=value, value=value)


def missing(reason: str = "") -> Cell:
    """Nothing to show; never 0. The reason stands beside the dash."""
    return Cell(text=f"{MISSING} {reason}".strip(), value=None)


def plain(value: str) -> str:
    """Text without terminal escapes or other control characters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", value)


def markdown(table: Table) -> str:
    """A GitHub table with title and notes; cell text is escaped."""

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def escape(value: str) -> str:
        flat = " ".join(plain(value).split())
        return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

    def printed(cell: Cell) -> str:
        found = escape(cell.text)
        return f"*{found.replace('*', chr(92) + '*')}*" if found and cell.reported else found

    rule = ["--:" if i in table.numeric else "---" for i in range(len(table.columns))]
    lines = [f"## {escape(table.title)}", "", row([escape(c) for c in table.columns]), row(rule)]
    lines += [row([printed(cell) for cell in cells]) for cells in table.rows]
    if table.notes:
        lines += ["", *(f"- {escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """CSV; a text that a spreadsheet would run as a formula is quoted with '.

    A numeric column comes twice: its raw values, and as printed elsewhere, with interval and n or
    the reason why there is none.
    """

    def safe(value: Any) -> Any:
        if not isinstance(value, str):
            return "" if value is None else value
        value = plain(value)
        return "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "\n") else value

    def row(cells: Iterable[tuple[Any, str]]) -> list[Any]:
        pairs = [
            (raw, text) if i in table.numeric else (raw,) for i, (raw, text) in enumerate(cells)
        ]
        return [safe(value) for pair in pairs for value in pair]

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(row((column, f"{column} (as printed)") for column in table.columns))
    writer.writerows(row((c.value, c.text) for c in cells) for cells in table.rows)
    return out.getvalue()


def to_json(table: Table) -> str:
    """Title, columns, rows of raw values and notes."""
    content = {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [
            {
                column: {"text": c.text, "value": c.value} if c.text != c.value else c.value
                for column, c in zip(table.columns, cells, strict=True)
            }
            for cells in table.rows
        ],
        "notes": list(table.notes),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def show(table: Table) -> None:
    """Print to the terminal, aligned; plain lines when it is not one."""
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        # a pipe has no width: never fold or cut what another program reads
        console = Console(highlight=False, width=10_000)
    rich = Rich(title=None, show_edge=False, pad_edge=False)
    for i, column in enumerate(table.columns):
        right = i in table.numeric
        rich.add_column(Text(plain(column)), justify="right" if right else "left")
    for cells in table.rows:
        rich.add_row(*(Text(plain(c.text), "italic" if c.reported else "") for c in cells))
    console.print(Text(plain(table.title), style="bold"))
    console.print(rich)
    for note in table.notes:
        console.print(Text(f"  {plain(note)}", style="dim"))
