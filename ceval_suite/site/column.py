"""One column's items as data files: an index for lists and filters, texts, results, heads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.comparison import Side
from ceval_suite.schema import Item, Record
from ceval_suite.site import chunks
from ceval_suite.site.collect import Column
from ceval_suite.site.prompts import Shown, Source, asked

EXCERPT = 96
"""Characters of a question that lists show."""

_Records = Sequence[Mapping[str, Record]]


@dataclass(frozen=True)
class Counted:
    """What was written of a column."""

    items: int
    chunks: int
    proved: int
    shown: int


def write(folder: Path, column: Column, sides: Sequence[Side], source: Source) -> Counted:
    """Write all item data of a column; `sides` are its runs in the order of `column.runs`."""
    records = [side.records for side in sides]
    ids = _ordered(column, records)
    subjects = [_any(records, id).subject for id in ids]
    counts = [subjects.count(s) for s in dict.fromkeys(subjects)]
    spans = chunks.spans(counts)
    place = f"c/{column.key}"
    heads = chunks.Numbered()
    proved = shown = 0
    for number, (begin, end) in enumerate(spans):
        some = ids[begin:end]
        if not source.reason:
            chunks.write(folder, f"{place}/t{number}", _texts(some, source))
        results = _results(some, records, source, heads)
        states = [state for states in results["states"] for state in states if state]
        proved += states.count("ok")
        shown += len(states)
        chunks.write(folder, f"{place}/r{number}", results)
    chunks.write(folder, f"{place}/heads", heads.values)
    chunks.write(folder, f"{place}/index", _index(ids, subjects, spans, records, source))
    return Counted(len(ids), len(spans), proved, shown)


def _any(records: _Records, id: str) -> Record:
    return next(side[id] for side in records if id in side)


def _ordered(column: Column, records: _Records) -> list[str]:
    """All ids that any model answered, in the order of the task and its files."""
    order = {subject: place for place, subject in enumerate(column.task.subjects)}
    seen: dict[str, str] = {}
    for side in records:
        seen.update((id, record.subject) for id, record in side.items())

    def key(id: str) -> tuple[int, list[int], str]:
        row = id.rpartition("/")[2]
        return order.get(seen[id], len(order)), [int(n) for n in re.findall(r"\d+", row)], id

    return sorted(seen, key=key)


def _index(
    ids: Sequence[str],
    subjects: Sequence[str],
    spans: Sequence[tuple[int, int]],
    records: _Records,
    source: Source,
) -> dict[str, Any]:
    head = _common(ids)
    return {
        "prefix": head,
        "ids": [id[len(head) :] for id in ids],
        "subjects": [[s, subjects.count(s)] for s in dict.fromkeys(subjects)],
        "chunks": [begin for begin, _ in spans],
        "excerpts": [_excerpt(source.items.get(id)) for id in ids],
        "gold": [joined(_any(records, id).answer) for id in ids],
        "predictions": [
            [joined(s[id].prediction) if id in s else "" for id in ids] for s in records
        ],
        "states": ["".join(_state(side.get(id)) for id in ids) for side in records],
        "margins": [
            [chunks.thousandth(margin(side[id])) if id in side else None for id in ids]
            for side in records
        ],
    }


def _common(ids: Sequence[str]) -> str:
    """`<task>/<split>/`, which all ids of a run begin with."""
    heads = {"/".join(id.split("/")[:2]) + "/" for id in ids}
    return heads.pop() if len(heads) == 1 else ""


def _excerpt(item: Item | None) -> str:
    if item is None:
        return ""
    text = " ".join(item.question[: 4 * EXCERPT].split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def joined(labels: Sequence[str]) -> str:
    """Letters as one string; longer answers apart."""
    return ("" if all(len(label) == 1 for label in labels) else " · ").join(labels)


def _state(record: Record | None) -> str:
    """One letter for how a record ended, as the page filters by it.

    `-` no record, `n` no gold label, `r` right, `u` unanswered, `p` some points, `w` wrong.
    """
    if record is None:
        return "-"
    if record.correct is None:
        return "n"
    if record.correct:
        return "r"
    if not record.prediction:
        return "u"
    return "p" if record.score else "w"


def margin(record: Record) -> float | None:
    """Log-probability of the gold answer less that of the likeliest other one; None without both.

    Positive where the gold answer is the likeliest.
    """
    gold = {label for label in record.answer if label in record.logprobs}
    if len(gold) != 1 or len(record.answer) != 1:
        whole = "".join(record.answer)
        gold = {whole} & record.logprobs.keys()
    others = [value for label, value in record.logprobs.items() if label not in gold]
    if not gold or not others:
        return None
    return max(record.logprobs[label] for label in gold) - max(others)


def _texts(ids: Sequence[str], source: Source) -> dict[str, Any]:
    passages = chunks.Numbered()
    rows: list[Any] = []
    for item in (source.items.get(id) for id in ids):
        if item is None:
            rows.append(None)
            continue
        row: list[Any] = [item.question, list(item.labels), list(item.choices)]
        row += [passages.place(item.passage) if item.passage else None]
        row += [item.kind, item.explanation, list(item.flags), item.year]
        row += [[item.part, item.parts] if item.part else None]
        rows.append(row)
    return {"items": rows, "passages": passages.values}


def _results(
    ids: Sequence[str], records: _Records, source: Source, heads: chunks.Numbered
) -> dict[str, Any]:
    patterns, keys, texts = chunks.Numbered(), chunks.Numbered(), chunks.Numbered()
    prompts: list[Any] = []
    which: list[Any] = []
    states: list[list[str | None]] = []
    labels: list[int] = []
    for id in ids:
        found = asked(source, id, records)
        item = source.items.get(id)
        prompts.append(
            [_prompt(one, item, heads, patterns) for one in found.variants if item] if found else []
        )
        which.append(found.which if found else [])
        states.append(list(found.states) if found else [])
        there = dict.fromkeys(key for side in records if id in side for key in side[id].logprobs)
        labels.append(keys.place(tuple(there)))
    models = [_answers(ids, side, labels, keys.values, texts) for side in records]
    return {
        "prompts": prompts,
        "which": which,
        "states": states,
        "patterns": patterns.values,
        "keys": keys.values,
        "labels": labels,
        "models": models,
        "texts": texts.values,
    }


def _prompt(
    shown: Shown, item: Item, heads: chunks.Numbered, patterns: chunks.Numbered
) -> list[Any]:
    """[head, pattern of the rest, characters of the lead, shots]; a page puts the parts back."""
    found = chunks.pattern(shown.tail, parts(item))
    return [heads.place(shown.head), patterns.place(found), shown.lead, shown.shots]


def parts(item: Item) -> list[str]:
    """What prompts repeat of an item, numbered as the page numbers them."""
    return [item.passage, item.question, *item.choices]


def _answers(
    ids: Sequence[str],
    side: Mapping[str, Record],
    labels: Sequence[int],
    keys: Sequence[Sequence[str]],
    texts: chunks.Numbered,
) -> list[Any]:
    """One model's results as one array per kind of value."""
    rows: list[list[Any]] = [[], [], [], [], []]
    for id, place in zip(ids, labels, strict=True):
        record = side.get(id)
        if record is None:
            for row in rows:
                row.append(None)
            continue
        thousandths = [chunks.thousandth(record.logprobs.get(key)) for key in keys[place]]
        values = (
            thousandths if record.logprobs else None,
            chunks.thousandth(record.choice_mass),
            record.shots,
            None if record.text is None else texts.place(record.text),
            _remarks(record),
        )
        for row, value in zip(rows, values, strict=True):
            row.append(value)
    return rows


def _remarks(record: Record) -> list[Any] | None:
    """What only some records have: ties, cut texts, bounds, other methods' answers, opinions."""
    found = {
        "tie": record.tie,
        "cut": record.cut,
        "bounded": record.bounded,
        "score": None if record.score in (None, 0.0, 1.0) else record.score,
        "methods": {name: joined(given) for name, given in record.predictions.items()},
        "opinions": record.opinions,
    }
    kept = {name: value for name, value in found.items() if value}
    return [kept] if kept else None
