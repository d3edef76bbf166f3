"""Whole texts to measure: the questions of benchmarks, and a user's own files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.errors import ConfigError, DataError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Item, Text


def of_tasks(names: Sequence[str], chosen: Selection) -> dict[str, list[Text]]:
    """The question texts of each task: passage and question as published, without choices.

    A text that several items share is taken once.

    Raises:
        ConfigError: an unknown task, split or subject.
        DataError: files missing, incomplete or broken.
    """
    out: dict[str, list[Text]] = {}
    for name in names:
        prepared = prepare(name, chosen)
        seen: dict[str, Text] = {}
        for subject in prepared.subjects:
            language = prepared.task.subjects[subject].language or prepared.task.language
            for item in prepared.items[subject]:
                text = _asked(item)
                if text.strip():
                    cluster = item.cluster or item.id
                    one = Text(
                        id=item.id, group=name, language=language, cluster=cluster, text=text
                    )
                    seen.setdefault(text, one)
        out[name] = list(seen.values())
    return out


def _asked(item: Item) -> str:
    return f"{item.passage}\n{item.question}" if item.passage else item.question


def of_files(references: Iterable[str], *, lines: bool = False) -> dict[str, list[Text]]:
    """The texts of files named `FILE` or `LANGUAGE=FILE`, one group a file name.

    `.jsonl` holds one text a line under `text`. Any other file is one text, or with `lines` one a
    line. Empty texts are passed over.

    Raises:
        ConfigError: two files of one name.
        DataError: missing, not UTF-8, a broken line, or no text in it.
    """
    out: dict[str, list[Text]] = {}
    for reference in references:
        language, path = _named(reference)
        if path.name in out:
            raise ConfigError(f"--text: two files are called '{path.name}'; rename one of them.")
        found = [
            Text(id=name, group=path.name, language=language, cluster=name, text=text)
            for row, text in _texts(path, lines)
            for name in [f"{path.name}/{row}"]
            if text.strip()
        ]
        if not found:
            raise DataError(f"{path}: there is no text in it.")
        out[path.name] = found
    return out


def _named(reference: str) -> tuple[str, Path]:
    language, mark, rest = reference.partition("=")
    path = Path(rest if mark else reference).expanduser()
    if mark and Path(reference).expanduser().is_file():  # a file whose name has the mark in it
        return "", Path(reference).expanduser()
    return (language if mark else ""), path


def _texts(path: Path, lines: bool) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; convert the file.") from error
    if path.suffix == ".jsonl":
        yield from ((row, _field(path, row, line)) for row, line in _lines(content))
    elif lines:
        yield from _lines(content)
    else:
        yield 0, content


def _lines(content: str) -> Iterator[tuple[int, str]]:
    # not splitlines(): it breaks texts at characters that end no line of a file
    for row, line in enumerate(content.split("\n")):
        if line.strip():
            yield row, line.removesuffix("\r")


def _field(path: Path, row: int, line: str) -> str:
    try:
        found: Any = json.loads(line)
        text = found["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: line {row + 1} is no JSON object with a "text" ({error!r}); correct it.'
        ) from error
    if not isinstance(text, str):
        raise DataError(f'{path}: line {row + 1}: "text" is not a string; correct it.')
    return text
