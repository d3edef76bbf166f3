"""Benchmark files → Items, for every published layout.

Text is taken as it stands: csv with `newline=""` so that carriage returns inside fields
survive, `None` stays text, nothing is stripped. Facts: the task files' `source` and `notes`.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from ceval_suite.errors import DataError
from ceval_suite.exams import agieval_item, gaokao_item
from ceval_suite.files import Files, patterns
from ceval_suite.schema import Item
from ceval_suite.specs import Columns, Subject, Task
from ceval_suite.untrusted import from_json

csv.field_size_limit(2**24)

UNREADABLE = (
    ValueError,
    SyntaxError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,  # brackets in brackets
    MemoryError,
)
"""What reading a literal that somebody wrote may raise."""


@dataclass
class Reader:
    """Reads the splits of one task from one place, and hashes what it has read."""

    task: Task
    files: Files
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """Hash over the names and bytes of all files read so far."""
        return self._hash.hexdigest()

    def path(self, subject: str, split: str) -> str:
        """The file of a subject and split in the layout at hand."""
        name = self.task.source.files[split].format(subject=subject)
        spellings = [name, *(p.format(subject=subject) for p in patterns(self.task)[1:])]
        return next((spelling for spelling in spellings if spelling in self.files), name)

    def _bytes(self, name: str) -> bytes:
        content = self.files.read(name)
        self._hash.update(f"{name}\0{len(content)}\0".encode())
        self._hash.update(content)
        return content

    def _text(self, name: str) -> str:
        try:
            return self._bytes(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _broken(self.files.where(name), f"not UTF-8 ({error})") from error

    def _rows(self, name: str) -> list[list[str]]:
        try:
            return list(csv.reader(io.StringIO(self._text(name), newline="")))
        except csv.Error as error:
            raise _broken(self.files.where(name), f"not a csv file ({error})") from error

    def items(self, subject: str, split: str, *, counted: bool = True) -> list[Item]:
        """All items of one subject and split, in file order.

        Raises:
            DataError: file missing or broken, or (when `counted`) not the published row count.
        """
        if split not in self.task.source.files:
            known = ", ".join(self.task.source.files)
            raise DataError(f"task '{self.task.name}' has no split '{split}'; it has {known}.")
        name = self.path(subject, split)
        if name not in self.files:
            raise DataError(self._missing(subject, split, name))
        layout = {"csv": self._csv, "agieval": self._agieval, "gaokao": self._gaokao}
        items = layout[self.task.source.layout](subject, split, name)
        expected = self.task.subjects[subject].counts.get(split)
        if counted and expected is not None and len(items) != expected:
            raise DataError(
                f"{self.files.where(name)}: {len(items)} items where the published file has "
                f"{expected}; fetch the benchmark again."
            )
        return items

    def _missing(self, subject: str, split: str, name: str) -> str:
        there = [s for s in self.task.source.files if self.path(subject, s) in self.files]
        only = (
            f" (only {', '.join(there)} is there, which is never scored instead)" if there else ""
        )
        return (
            f"{self.files.where(name)} is missing{only}; run 'ceval-suite data fetch "
            f"{self.task.name}' or give --data a folder with the whole benchmark."
        )

    def shots(self, subject: str) -> list[Item]:
        """The solved items the protocol puts before a question, in order; empty if it has none."""
        row = self.task.subjects[subject]
        if self.task.source.shots_file:
            return self._agieval_shots(row.shots_from or subject, row)
        if self.task.shot_split is None:
            return []
        return self.items(subject, self.task.shot_split)

    # csv: MMLU, CMMLU, C-Eval and anything of their shape

    def _csv(self, subject: str, split: str, name: str) -> list[Item]:
        columns = self.task.source.columns
        if columns is None:
            raise DataError(f"task '{self.task.name}': layout csv needs source.columns.")
        where, rows = self.files.where(name), self._rows(name)
        width = len(rows[0]) if rows else 0
        position = _positions(columns, rows, where, split in self.task.unlabelled)
        first = 1 if isinstance(columns.question, str) else 0
        labels = tuple(self.task.subjects[subject].labels)
        if len(labels) != len(columns.choices):
            raise DataError(f"{where}: {len(columns.choices)} choices but labels {labels}.")
        return [
            self._csv_item(subject, split, row, index, position, labels, width, where)
            for index, row in enumerate(rows[first:])
            if row
        ]

    def _csv_item(
        self,
        subject: str,
        split: str,
        row: list[str],
        index: int,
        position: dict[str, int],
        labels: tuple[str, ...],
        width: int,
        where: str,
    ) -> Item:
        if len(row) != width:
            what = f"row {index} has {len(row)} columns where the first line has {width}"
            raise _broken(where, f"{what} (a quote or comma is probably wrong)")
        choices = tuple(row[position[f"choice{i}"]] for i in range(len(labels)))
        answer = row[position["answer"]] if "answer" in position else ""
        if not answer.strip() and split not in self.task.unlabelled:
            raise _broken(where, f"row {index} has no label")
        if answer.strip() and answer.strip() not in labels:
            raise _broken(where, f"row {index}: label '{answer}' is none of {', '.join(labels)}")
        return Item(
            id=f"{self.task.name}/{split}/{subject}/{index}",
            subject=subject,
            question=row[position["question"]],
            options=choices,
            choices=choices,
            labels=labels,
            answer=(answer.strip(),) if answer.strip() else (),
            answer_text=answer,
            explanation=row[position["explanation"]] if "explanation" in position else "",
            points=self.task.subjects[subject].points,
        )

    # AGIEval: jsonl with prefixed options, labels as string or list, shots in one csv

    def _agieval(self, subject: str, split: str, name: str) -> list[Item]:
        where = self.files.where(name)
        items: list[Item] = []
        # not splitlines(): a text may hold U+2028 and other line separators
        for index, line in enumerate(self._text(name).split("\n")):
            if not line.strip():
                continue
            try:
                row = from_json(line)
                id = f"{self.task.name}/{split}/{subject}/{index}"
                items.append(agieval_item(id, subject, self.task.subjects[subject], row))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = f"line {index + 1} is not an AGIEval row ({error!r})"
                raise _broken(where, what) from error
            _check_labels(items[-1], f"{where}: line {index + 1}")
        return items

    def _agieval_shots(self, subject: str, row: Subject) -> list[Item]:
        name = self.task.source.shots_file or ""
        where, rows = self.files.where(name), self._rows(name)
        if not rows or subject not in rows[0]:
            raise _broken(where, f"no column '{subject}'")
        column = rows[0].index(subject)
        # sample rows and explanation rows alternate; a file with fewer shots leaves the rest empty
        cells = [r[column] if len(r) > column else "" for r in rows[1:]]
        pairs = [(s, e) for s, e in zip_longest(cells[::2], cells[1::2], fillvalue="") if s]
        shots: list[Item] = []
        for index, (text, explanation) in enumerate(pairs):
            id = f"{self.task.name}/shots/{subject}/{index}"
            try:
                shot = agieval_item(id, subject, row, ast.literal_eval(text), explanation)
            except UNREADABLE as error:
                what = f"column '{subject}', shot {index + 1} is not a row ({error!r})"
                raise _broken(where, what) from error
            shots.append(shot)
        return shots

    # GAOKAO-Bench: json, several sub-questions an item

    def _gaokao(self, subject: str, split: str, name: str) -> list[Item]:
        where = self.files.where(name)
        items: list[Item] = []
        try:
            for example in from_json(self._text(name))["example"]:
                id = f"{self.task.name}/{split}/{subject}/{len(items)}"
                items.append(gaokao_item(id, subject, self.task.subjects[subject], example))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(where, f"item {len(items)} cannot be read ({error!r})") from error
        for index, item in enumerate(items):
            _check_labels(item, f"{where}: item {index}")
        return items


def _check_labels(item: Item, where: str) -> None:
    bad = [a for a in item.answer if a not in item.labels]
    if bad and item.labels:
        raise _broken(where, f"label '{', '.join(bad)}' is none of {', '.join(item.labels)}")


def _broken(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}; correct the file or fetch the benchmark again.")


def _positions(
    columns: Columns, rows: list[list[str]], where: str, unlabelled: bool
) -> dict[str, int]:
    wanted: dict[str, str | int] = {"question": columns.question, "answer": columns.answer}
    wanted |= {f"choice{i}": c for i, c in enumerate(columns.choices)}
    if columns.explanation is not None:
        wanted["explanation"] = columns.explanation
    if not rows:
        raise _broken(where, "the file is empty")
    optional = {"explanation"} | ({"answer"} if unlabelled else set())
    out: dict[str, int] = {}
    for key, column in wanted.items():
        if isinstance(column, int):
            found = column if column < len(rows[0]) else None
        else:
            found = rows[0].index(column) if column in rows[0] else None
        if found is not None:
            out[key] = found
        elif key not in optional:
            shown = column if isinstance(column, str) else f"number {column + 1}"
            raise _broken(where, f"column {shown} is missing (there is {', '.join(rows[0])[:80]})")
    return out


def duplicates(items: Iterable[Item]) -> dict[str, list[str]]:
    """Ids of items that share question and options word for word, keyed by the first of them."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for item in items:
        groups.setdefault((item.passage, item.question, item.options), []).append(item.id)
    return {ids[0]: ids for ids in groups.values() if len(ids) > 1}
