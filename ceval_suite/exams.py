"""Exam items that are more than a question with four options: AGIEval's and GAOKAO-Bench's rows.

One row of a published file → one Item; facts: the task files' `source` and `notes`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

from ceval_suite.schema import Item
from ceval_suite.specs import Subject

_PAREN = re.compile(r"^\s*[(（]\s*([A-G])\s*[)）]")
_POINT = re.compile(r"^\s*([A-G])\s*[．.、:：。]")
_SPACE = re.compile(r"^\s*([A-G])\s+")


def _prefix(option: str) -> tuple[str | None, str]:
    """The letter printed before an option, and the text after that one prefix."""
    for pattern in (_PAREN, _POINT, _SPACE):
        found = pattern.match(option)
        if found:
            return found.group(1), option[found.end() :]
    return None, option


def split_options(options: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and bare texts of AGIEval options, in printed order.

    When the printed letters are a permutation of A, B, … (LogiQA prints A, C, B, D in 19 rows of
    each language) the label follows the letter. When letters are missing or repeated (typos such
    as A, B, C, C) the label follows the position, and only a prefix that agrees with it, or is
    plainly a prefix, is taken off. At most one prefix is taken off: `(A)A.` keeps `A.`.
    """
    letters = tuple("ABCDEFG"[: len(options)])
    found = [_prefix(option) for option in options]
    printed = tuple(letter for letter, _ in found)
    if sorted(p or "" for p in printed) == list(letters):
        return tuple(p for p in printed if p), tuple(text for _, text in found)
    texts = [
        text if letter == label or (letter and not _SPACE.match(option)) else option
        for label, option, (letter, text) in zip(letters, options, found, strict=True)
    ]
    return letters, tuple(texts)


def agieval_item(
    id: str, subject: str, table: Subject, row: dict[str, Any], explanation: str = ""
) -> Item:
    """An AGIEval row as an Item; works for test rows and for the shots' csv cells.

    Labels come as `"C"`, `"AD"`, `"A B D"`, `["A", "。"]`, `[]` or null; `answer` keeps only
    letters, sorted. A row whose label has several letters is a `multi` item whatever its file. A
    cloze row is answered by a text: its label if there is one, else its `answer`, as the official
    evaluation takes them (src/dataset_loader.py, load_dataset_as_result_schema).
    """
    published: Any = row.get("options")
    # the geography shots hold all four options in one string, printed as it stands
    options = tuple(str(o) for o in published) if published else ()
    label: Any = row.get("label")
    text: Any = label if label is not None else ""
    free: Any = row.get("answer")
    letters = sorted(set(re.findall(r"[A-G]", "".join(label or ""))))
    if table.kind != "cloze" and re.search(r"[^A-G\s。]", "".join(label or "")):
        raise ValueError(f"the label {label!r} is not made of letters")
    labels, choices = split_options(options) if isinstance(published, list) else ((), ())
    kind = table.kind
    if kind == "single" and len(letters) > 1:
        kind = "multi"
    passage = "" if table.without_passage else str(row.get("passage") or "")
    return Item(
        id=id,
        subject=subject,
        question=str(row["question"]),
        options=options,
        choices=choices,
        labels=labels,
        answer=_free_text(label or free) if kind == "cloze" else tuple(letters),
        answer_text=str(free if free is not None else "") if kind == "cloze" else str(text),
        kind=kind,
        passage=passage,
        explanation=explanation,
        points=table.points,
        cluster=hashlib.sha256(passage.encode()).hexdigest()[:12] if passage else "",
    )


_IMAGE = re.compile(r"!\[|<img|https?://\S+\.(?:png|jpe?g|gif)", re.IGNORECASE)


def _free_text(gold: Any) -> tuple[str, ...]:
    return (str(gold),) if gold is not None and str(gold) else ()


def gaokao_item(id: str, subject: str, table: Subject, example: dict[str, Any]) -> Item:
    """An entry of a GAOKAO-Bench file as an Item.

    An entry with one answer in a file of several blanks is a `single` item. Which parts an entry
    has is known from its answers alone, so that one of several blanks without any is an error.
    """
    key = "answer" if "answer" in example else "standard_answer"
    answer = tuple(str(a) for a in example[key])
    kind = table.kind
    if kind == "blanks" and len(answer) == 1:
        kind = "single"
    if kind == "multi":
        answer = tuple(sorted(set("".join(answer))))
    if (kind == "single" and len(answer) != 1) or (kind == "blanks" and not answer):
        raise ValueError(f"{len(answer)} answers to one question")
    return Item(
        id=id,
        subject=subject,
        question=str(example["question"]),
        labels=tuple(table.labels),
        answer=answer,
        answer_text="".join(answer),
        kind=kind,
        explanation=str(example.get("analysis", "")),
        points=float(example.get("score", table.points)),
        flags=("image",) if _IMAGE.search(str(example["question"])) else (),
        year=str(example.get("year", "")),
    )


def parts(item: Item) -> list[Item]:
    """The sub-questions of an item of kind `blanks`, in order; any other item is its own only part.

    Each is an item of kind `single` under the id of its record. It keeps the whole question, for
    sub-questions are not printed apart, and the labels of the file: where a marker is missing or
    printed twice (English_Fill_in_Blanks 4, Chinese_Lang_and_Usage 50) there are no fewer options.
    """
    if item.kind != "blanks":
        return [item]
    return [
        replace(
            item,
            id=id,
            kind="single",
            answer=(letter,),
            answer_text=letter,
            cluster=item.cluster or item.id,
            part=k + 1,
            parts=len(item.answer),
            before=item.answer[:k],
        )
        for k, (id, letter) in enumerate(zip(item.record_ids(), item.answer, strict=True))
    ]
