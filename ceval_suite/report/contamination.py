"""What a search in training data found: tables, passages side by side, and an exclusion list."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ceval_suite import stats
from ceval_suite.contamination import normal, reading, targets, verify
from ceval_suite.contamination.marks import Spans, marked
from ceval_suite.contamination.search import Found, Outcome, Place
from ceval_suite.contamination.verify import KINDS
from ceval_suite.report import table
from ceval_suite.schema import Cell, Table

SHOWN = 500
"""Items whose passages stand in the Markdown and HTML reports; `matches.jsonl` has them all."""

COLUMNS = ("benchmark", "items", "too little text", "found", "share", "with answer", *KINDS)


def overview(outcome: Outcome) -> Table:
    """One row a benchmark: how many of its items are in the corpus, and how surely."""
    tasks = dict.fromkeys(target.task for target in outcome.targets)
    rows = tuple(_row(outcome, task) for task in tasks)
    unread = f"; {outcome.broken} broken lines or files passed over" if outcome.broken else ""
    notes = [
        f"{outcome.documents:,} documents, {len(outcome.files)} files{unread}",
        "share: of the items that have enough text to be told, with its 95 % Wilson interval",
        "with answer: the right option's text, or its letter marked, stands behind the question",
        *(f"{kind}: {meaning}" for kind, meaning in KINDS.items()),
    ]
    return Table(
        title="Benchmark items in the corpus",
        columns=COLUMNS,
        rows=rows,
        notes=tuple(notes),
        numeric=frozenset(range(1, len(COLUMNS))),
    )


def _row(outcome: Outcome, task: str) -> tuple[Cell, ...]:
    mine = [target for target in outcome.targets if target.task == task]
    found = [one for one in outcome.found.values() if one.target.task == task]
    short = sum(1 for target in mine if target.reason)
    kinds = Counter(one.places[0].scores.kind for one in found)
    told = len(mine) - short
    share = table.estimate(stats.wilson(len(found), told)) if told else table.missing("no text")
    counts = [sum(one.answered for one in found), *(kinds[kind] for kind in KINDS)]
    cells = [table.number(len(mine)), table.number(short), table.number(len(found)), share]
    return (table.text(task), *cells, *map(table.number, counts))


def settings(outcome: Outcome) -> dict[str, Any]:
    """All that decides what is found, as recorded."""
    return {
        "ngram": outcome.rules.ngram,
        "threshold": outcome.rules.threshold,
        "fields": list(outcome.fields) or reading.FIELDS_RULE,
        "normalisation": normal.RULE,
        "seeds": targets.SEED,
        "least_letters": targets.LEAST,
        "least_own_seeds": targets.PARTICULAR,
        "least_piece": verify.RUN,
        "near": {
            "similarity": verify.SIMILAR,
            "minhash_jaccard": verify.JACCARD,
            "shingle": verify.SHINGLE,
            "permutations": verify.PERMUTATIONS,
        },
        "files": outcome.files,
    }


def summary(outcome: Outcome) -> dict[str, Any]:
    """The table, the settings, broken lines and too short items, for machines."""
    return {
        "table": json.loads(table.to_json(overview(outcome))),
        "settings": settings(outcome),
        "documents": outcome.documents,
        "bytes": outcome.bytes,
        "broken": {"count": outcome.broken, "first": outcome.named},
        "too_little_text": {t.id: t.reason for t in outcome.targets if t.reason},
        "items": [_item(one) for one in _ordered(outcome)],
    }


def _ordered(outcome: Outcome) -> list[Found]:
    """What was found, in the order of the benchmarks."""
    return [outcome.found[number] for number in sorted(outcome.found)]


def _item(found: Found) -> dict[str, Any]:
    best = found.places[0]
    return {
        "id": found.target.id,
        "kind": best.scores.kind,
        "with_answer": found.answered,
        "places": sum(found.kinds.values()),
        "file": best.file,
        "row": best.row,
    }


def matches(outcome: Outcome) -> Iterator[str]:
    """One JSON line a place."""
    for found in _ordered(outcome):
        for place in found.places:
            line = {
                "id": found.target.id,
                "basis": found.target.basis,
                "file": place.file,
                "row": place.row,
                **{k: v for k, v in asdict(place.scores).items() if k not in ("low", "high")},
                "with_answer": place.answer.found,
                "answer": asdict(place.answer),
                "passage": place.passage,
                "start": place.start,
                "end": place.end,
            }
            yield json.dumps(line, ensure_ascii=False)


def exclusions(outcome: Outcome, name: str) -> str:
    """The items as an exclusion list, in YAML."""
    items = {found.target.id: _reason(found) for found in _ordered(outcome)}
    content = {
        "name": name,
        "title": "Items found in training data",
        "source": f"ceval-suite contamination {' '.join(outcome.files[:3])}"
        + (f" and {len(outcome.files) - 3} more files" if len(outcome.files) > 3 else ""),
        "items": items,
    }
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)


def _reason(found: Found) -> str:
    best = found.places[0]
    answer = " with answer" if found.answered else ""
    return f"in training data ({best.scores.kind}{answer}): {best.file}, row {best.row}"


def write(outcome: Outcome, folder: Path) -> list[Path]:
    """Write every form of the report; all of them are there before the first gets its name."""
    name = re.sub(r"[^\w-]+", "-", folder.resolve().name).strip("-") or "contamination"
    contents = {
        "matches.jsonl": "".join(f"{line}\n" for line in matches(outcome)),
        "exclusions.yaml": exclusions(outcome, name),
        "report.md": markdown(outcome),
        "report.html": page(outcome),
        "summary.json": json.dumps(summary(outcome), ensure_ascii=False, indent=1) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as half:
        for file, content in contents.items():
            # a text may hold half of a surrogate pair, which no UTF-8 can
            clean = content.encode("utf-8", "backslashreplace")
            (Path(half) / file).write_bytes(clean)
        for file in contents:
            (Path(half) / file).replace(folder / file)
    return [folder / file for file in contents]


def _measured(found: Found, place: Place) -> str:
    scores = place.scores
    ngrams = table.MISSING if scores.ngrams is None else f"{table.percent(scores.ngrams)} %"
    more = sum(found.kinds.values()) - 1
    parts = [
        f"{scores.kind} ({found.target.basis})",
        f"n-grams {ngrams}",
        f"longest piece {scores.run} letters ({table.percent(scores.run_share)} %)",
        f"similarity {table.percent(scores.similarity)} %",
        f"MinHash Jaccard {table.percent(scores.jaccard)} %",
        "with answer" if found.answered else "without answer",
        f"{more} more places" if more else "",
    ]
    return ", ".join(part for part in parts if part)


def _spliced(text: str, spans: Spans, escape: Callable[[str], str], mark: tuple[str, str]) -> str:
    out: list[str] = []
    at = 0
    for start, end in spans:
        out += [escape(text[at:start]), mark[0], escape(text[start:end]), mark[1]]
        at = end
    return "".join([*out, escape(text[at:])])


_PUNCTUATION = re.compile(r"([\\`*_\[\]<>&|#~])")


def _escaped(text: str) -> str:
    """Markdown that shows a text as it is, on one line."""
    flat = re.sub(r"\s+", " ", table.plain(text))
    return _PUNCTUATION.sub(r"\\\1", flat).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _bold(text: str, spans: Spans) -> str:
    joined: Spans = []
    for start, end in spans:  # bold parts that touch would cancel each other
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return _spliced(text, joined, _escaped, ("<b>", "</b>"))


def markdown(outcome: Outcome) -> str:
    """The table and the passages beside their items, in Markdown."""
    out = [table.markdown(overview(outcome)), "## Passages", "", _more(outcome), ""]
    for found in _ordered(outcome)[:SHOWN]:
        place = found.places[0]
        left, right = marked(found.target.shown, place.passage, place.start, place.end)
        ours, theirs = _bold(found.target.shown, left), _bold(place.passage, right)
        where = _escaped(f"{place.file}, row {place.row}")
        out += [
            f"### {_escaped(found.target.id)}",
            "",
            _escaped(_measured(found, place)),
            "",
            f"| item | {where} |",
            "|---|---|",
            f"| {ours} | {theirs} |",
            "",
        ]
    return "\n".join(out)


def _more(outcome: Outcome) -> str:
    left = len(outcome.found) - SHOWN
    if left <= 0:
        return f"{len(outcome.found)} items; what is equal is marked."
    return f"The first {SHOWN} of {len(outcome.found)} items; matches.jsonl has all of them."


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { border: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.pair { table-layout: fixed; } .pair td { white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: #fd06; color: inherit; } h3 { margin: 1.5rem 0 0; font-size: 1rem; }
"""


_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)


def page(outcome: Outcome) -> str:
    """The same as one HTML page that loads and runs nothing."""
    found = overview(outcome)
    out = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        _POLICY,
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(found.title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{html.escape(found.title)}</h1>{_table(found)}<ul>",
        *(f"<li>{html.escape(note)}</li>" for note in found.notes),
        f"</ul><h2>Passages</h2><p>{html.escape(_more(outcome))}</p>",
        *(_pair(one) for one in _ordered(outcome)[:SHOWN]),
        "</main></body></html>\n",
    ]
    return "\n".join(out)


def _table(found: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        kinds = [' class="n"' if i in found.numeric else "" for i in range(len(cells))]
        inner = [f"<{tag}{k}>{html.escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)]
        return f"<tr>{''.join(inner)}</tr>"

    rows = [line([cell.text for cell in row], "td") for row in found.rows]
    return f"<table>{line(list(found.columns), 'th')}{''.join(rows)}</table>"


def _pair(found: Found) -> str:
    place = found.places[0]
    left, right = marked(found.target.shown, place.passage, place.start, place.end)
    where = html.escape(f"{place.file}, row {place.row}")
    ours = _spliced(found.target.shown, left, _html, ("<mark>", "</mark>"))
    theirs = _spliced(place.passage, right, _html, ("<mark>", "</mark>"))
    return (
        f"<h3>{html.escape(found.target.id)}</h3><p>{html.escape(_measured(found, place))}</p>"
        f'<table class="pair"><tr><th>item</th><th>{where}</th></tr>'
        f"<tr><td>{ours}</td><td>{theirs}</td></tr></table>"
    )


def _html(text: str) -> str:
    return html.escape(table.plain(text))
