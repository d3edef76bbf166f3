"""Table → text, Markdown, CSV, LaTeX, HTML, JSON; the only place that formats a number."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ceval_suite.schema import Cell, Estimate, Table
from ceval_suite.terminal import raw as unguarded
from ceval_suite.untrusted import FORMULA

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


def allowed(value: float) -> str:
    """A drop in percentage points, with as many decimals as it has, up to three."""
    return f"{100 * value:.3f}".rstrip("0").rstrip(".")


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
    """Text without terminal escapes or other control characters, and all in one direction."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", "�", value
    )


def markdown(table: Table) -> str:
    """A GitHub table with title and notes; cell text is escaped."""

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def escape(value: str) -> str:
        flat = " ".join(plain(value).split())
        # no markup of the text's own: neither tags and tables nor links, pictures and code
        return re.sub(r"([\\|\[\]`])", r"\\\1", flat).replace("<", "&lt;")

    def printed(cell: Cell) -> str:
        found = escape(cell.text)
        if not found or not (cell.reported or cell.best or cell.tied):
            return found
        found = found.replace("*", "\\*")
        if cell.tied:
            return f"<u>{found}</u>"
        return f"**{found}**" if cell.best else f"*{found}*"

    rule = ["--:" if i in table.numeric else "---" for i in range(len(table.columns))]
    lines = [f"## {escape(table.title)}", "", row([escape(c) for c in table.columns]), row(rule)]
    lines += [row([printed(cell) for cell in cells]) for cells in table.rows]
    if table.notes:
        lines += ["", *(f"- {escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """CSV; a text that a spreadsheet would run as a formula is quoted with '.

    A numeric column comes twice: its raw values, and as printed elsewhere, with interval and n or
    the reason why there is none; a third time, where it has any, with the marks `best` and `tied`.
    """
    marked = {i for i in table.numeric for cells in table.rows if i < len(cells) and mark(cells[i])}

    def safe(value: Any) -> Any:
        if not isinstance(value, str):
            return "" if value is None else value
        value = plain(value)
        return "'" + value if value.startswith(FORMULA) else value

    def row(cells: Iterable[tuple[Any, str, str]]) -> list[Any]:
        out: list[Any] = []
        for i, (raw, text, marks) in enumerate(cells):
            out.append(raw)
            out += [text] * (i in table.numeric) + [marks] * (i in marked)
        return [safe(value) for value in out]

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(row((c, f"{c} (as printed)", f"{c} (mark)") for c in table.columns))
    writer.writerows(row((c.value, c.text, mark(c)) for c in cells) for cells in table.rows)
    return out.getvalue()


def mark(cell: Cell) -> str:
    """How a cell stands among those that were measured beside it: best, tied or nothing."""
    return "best" if cell.best else "tied" if cell.tied else ""


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "τ": r"$\tau$",
    "ρ": r"$\rho$",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(table: Table) -> str:
    """A `table` with booktabs rules, title as caption, notes below; all text is escaped."""

    def escape(value: str) -> str:
        return "".join(_TEX.get(sign, sign) for sign in " ".join(plain(value).split()))

    def printed(cell: Cell) -> str:
        found = escape(cell.text)
        if not found:
            return found
        for how, on in (("textit", cell.reported), ("textbf", cell.best), ("underline", cell.tied)):
            found = f"\\{how}{{{found}}}" if on else found
        # at the start of a row a bracket would be read as an option of the line break before it
        return f"{{{found}}}" if found.startswith("[") else found

    kinds = "".join("r" if i in table.numeric else "l" for i in range(len(table.columns)))
    lines = [
        r"% needs \usepackage{booktabs}; Chinese text needs XeLaTeX or LuaLaTeX with ctex",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(escape(column) for column in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(printed(cell) for cell in cells) + r" \\" for cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem}"
    "table{border-collapse:collapse}caption{font-weight:bold;text-align:left;padding:.5rem 0}"
    "th,td{padding:.25rem .75rem;text-align:left;border-bottom:1px solid #8884;font-weight:normal}"
    "thead th{font-weight:bold;border-bottom:2px solid}"
    ".n{text-align:right;font-variant-numeric:tabular-nums}li{opacity:.8}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}}"
)


def to_html(table: Table) -> str:
    """A page of its own with one table: nothing is loaded from elsewhere, all text is escaped."""

    def escape(value: str) -> str:
        return html.escape(" ".join(plain(value).split()))

    def printed(i: int, cell: Cell) -> str:
        found = escape(cell.text)
        for how, on in (("em", cell.reported), ("strong", cell.best), ("u", cell.tied)):
            found = f"<{how}>{found}</{how}>" if on and found else found
        kind = ' class="n"' if i in table.numeric else ""
        return f'<th scope="row">{found}</th>' if i == 0 else f"<td{kind}>{found}</td>"

    heads = "".join(
        f'<th scope="col"{" class=" + chr(34) + "n" + chr(34) if i in table.numeric else ""}>'
        f"{escape(column)}</th>"
        for i, column in enumerate(table.columns)
    )
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{escape(table.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<table>\n<caption>{escape(table.title)}</caption>",
        f"<thead><tr>{heads}</tr></thead>\n<tbody>",
        *(
            "<tr>" + "".join(printed(i, cell) for i, cell in enumerate(cells)) + "</tr>"
            for cells in table.rows
        ),
        "</tbody>\n</table>",
        *(
            ["<ul>", *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>"]
            * bool(table.notes)
        ),
        "</body>\n</html>",
    ]
    return "\n".join(lines) + "\n"


def to_json(table: Table) -> str:
    """Title, columns, rows of raw values and notes; a cell says if it is reported, best or tied."""

    def content(cell: Cell) -> Any:
        if cell.text == cell.value:
            return cell.value
        flags = {k: True for k in ("reported", "best", "tied") if getattr(cell, k)}
        return {"text": cell.text, "value": cell.value, **flags}

    whole = {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [
            {column: content(c) for column, c in zip(table.columns, cells, strict=True)}
            for cells in table.rows
        ],
        "notes": list(table.notes),
    }
    return json.dumps(whole, ensure_ascii=False, indent=1)


FORMS = {"md": markdown, "csv": to_csv, "tex": latex, "html": to_html, "json": to_json}
"""How a table is written, by the ending of its file."""


def _style(cell: Cell) -> str:
    styles = {"italic": cell.reported, "bold": cell.best, "underline": cell.tied}
    return " ".join(name for name, on in styles.items() if on)


def show(table: Table) -> None:
    """Print to the terminal, aligned; plain lines when it is not one."""
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # a reader who has seen enough is no failure: see the command line

    stream = unguarded(sys.stdout)  # styles are ours, the text is cleaned
    console = Output(file=stream, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        # a pipe has no width: never fold or cut what another program reads
        console = Output(file=stream, highlight=False, width=10_000)
    rich = Rich(title=None, show_edge=False, pad_edge=False)
    for i, column in enumerate(table.columns):
        right = i in table.numeric
        rich.add_column(Text(plain(column)), justify="right" if right else "left")
    for cells in table.rows:
        rich.add_row(*(Text(plain(c.text), _style(c)) for c in cells))
    console.print(Text(plain(table.title), style="bold"))
    console.print(rich)
    for note in table.notes:
        console.print(Text(f"  {plain(note)}", style="dim"))
