"""Texts to encode: plain files, pairs of sentences, hub datasets and the questions of benchmarks.

A corpus is read line by line, as often as asked, and never held in memory. It is read through once
before anything is encoded, so that a broken line stops the work at its start.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from ceval_suite.errors import DataError
from ceval_suite.prepare import Prepared
from ceval_suite.schema import Item

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
"""A word: one Chinese character, or a run of other characters between blanks."""

_HAN = re.compile(rf"[{HAN}]")
_ASCII = re.compile("[A-Za-z]")

CHINESE, ENGLISH = 0.25, 0.9
"""A text is zh from this share of Chinese characters among its letters on; else en from this share
of letters A to Z on; else other."""

FOREIGN = 0.05
"""A subject of a Chinese benchmark is in English below this share of Chinese characters: GAOKAO's
English papers have 0.03 at most, C-Eval's advanced mathematics has 0.09."""

FIRST = 1000
"""Lines that the language is told from."""

SAMPLE_BYTES = 2**20
"""Text of each language that speed is measured on, at most."""

TOLD_EVERY = 5000
"""Texts between two reports of progress in reading."""

HUB = "hub:"
_PAIR = ("zh", "en")

Texts = Iterator[tuple[str, str]]
"""Language and text, one by one."""


@dataclass(frozen=True)
class Corpus:
    """Where texts come from; `read` starts over at each call."""

    name: str
    read: Callable[[], Texts]


@dataclass
class Side:
    """What one language's texts amount to; `sample` are the first of them."""

    language: str
    texts: int = 0
    characters: int = 0
    words: int = 0
    bytes: int = 0
    sample: list[str] = field(default_factory=list[str], repr=False)

    def add(self, text: str) -> None:
        """Count one text."""
        size = len(text.encode())
        if self.bytes < SAMPLE_BYTES:
            self.sample.append(text)
        self.texts += 1
        self.characters += len(text)
        self.words += len(WORD.findall(text))
        self.bytes += size


def survey(corpus: Corpus, step: Callable[[int], None] = lambda _: None) -> dict[str, Side]:
    """Count everything once, by language; `step` is told the bytes now and then.

    Raises:
        DataError: a file that cannot be read, with the line; or nothing in it.
    """
    sides: dict[str, Side] = {}
    for count, (language, text) in enumerate(corpus.read(), start=1):
        sides.setdefault(language, Side(language)).add(text)
        if count % TOLD_EVERY == 0:
            step(sum(side.bytes for side in sides.values()))
    if not sides:
        raise DataError(f"{corpus.name}: there is no text in it; give a file with one text a line.")
    order = [*_PAIR, "other"]
    return {language: sides[language] for language in order if language in sides}


def batches(texts: Texts, size: int) -> Iterator[tuple[str, list[str]]]:
    """Texts of one language together, `size` at a time."""
    waiting: dict[str, list[str]] = {}
    for language, text in texts:
        batch = waiting.setdefault(language, [])
        batch.append(text)
        if len(batch) == size:
            yield language, batch
            waiting[language] = []
    yield from ((language, batch) for language, batch in waiting.items() if batch)


def language_of(texts: Iterable[str]) -> str:
    """zh, en or other, by the letters of some texts."""
    text = " ".join(texts)
    if _share(_HAN, text) >= CHINESE:
        return "zh"
    return "en" if _share(_ASCII, text) >= ENGLISH else "other"


def _share(kind: re.Pattern[str], text: str) -> float:
    return len(kind.findall(text)) / (sum(map(str.isalpha, text)) or 1)


def questions(tasks: Sequence[Prepared]) -> Corpus:
    """The questions of whole splits: passage, question and options, one text an item."""

    def read() -> Texts:
        for prepared in tasks:
            for subject in prepared.subjects:
                texts = [text for i in prepared.items[subject] if (text := _question(i))]
                language = _language(prepared, subject, texts)
                yield from ((language, text) for text in texts)

    names = ", ".join(f"{prepared.task.name} {prepared.split}" for prepared in tasks)
    return Corpus(f"questions of {names}", read)


def _language(prepared: Prepared, subject: str, texts: Sequence[str]) -> str:
    named = prepared.task.subjects[subject].language or prepared.task.language
    # a Chinese exam may have English papers, but formulas make no paper English
    if named == "zh" and _share(_HAN, " ".join(texts)) < FOREIGN:
        return "en"
    return named if named in _PAIR else language_of(texts)


def _question(item: Item) -> str:
    parts = (item.passage, item.question, *item.options)
    return "\n".join(part for part in parts if part.strip())


def open_corpus(references: Sequence[str]) -> Corpus:
    """Files, Moses prefixes (`news` for news.zh and news.en) and `hub:NAME[:CONFIG]`, as one.

    Files ending in .tsv hold pairs, others one text a line; .gz may stand behind either.

    Raises:
        DataError: nothing there, or a hub dataset that cannot be loaded.
    """
    parts = [_open(reference) for reference in references]

    def read() -> Texts:
        for part in parts:
            yield from part.read()

    return parts[0] if len(parts) == 1 else Corpus(", ".join(p.name for p in parts), read)


def _open(reference: str) -> Corpus:
    if reference.startswith(HUB):
        return _hub(reference)
    path = Path(reference).expanduser()
    if not path.is_file():
        return _moses(path)
    if ".tsv" in path.suffixes[-2:]:
        return _pairs(path.name, str(path), lambda: _tsv(path))

    def read() -> Texts:
        language = language_of(text for _, text in islice(_lines(path), FIRST))
        return ((language, text) for _, text in _lines(path) if text.strip())

    return Corpus(path.name, read)


def _moses(prefix: Path) -> Corpus:
    found: list[Path] = []
    for language in _PAIR:
        names = [prefix.parent / f"{prefix.name}.{language}{end}" for end in ("", ".gz")]
        found += [path for path in names if path.is_file()][:1]
    if len(found) != len(_PAIR):
        raise DataError(
            f"{prefix}: there is no such file, nor the pair {prefix.name}.zh and {prefix.name}.en "
            "(or .gz); check the path."
        )
    return parallel(found[0], found[1])


def parallel(first: Path, second: Path) -> Corpus:
    """Two files whose lines correspond.

    Raises:
        DataError: a file that is not there; on reading, files of different lengths.
    """
    for path in (first, second):
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; check the path.")

    def read() -> Iterator[Sequence[str]]:
        for one, two in zip_longest(_lines(first), _lines(second)):
            if one is not None and two is not None:
                yield one[1], two[1]
                continue
            longer, shorter = (first, second) if two is None else (second, first)
            line = max(one or (0, ""), two or (0, ""))[0]
            raise DataError(
                f"{longer}, line {line}: {shorter} ends before it; the lines of both files must "
                "correspond."
            )

    return _pairs(f"{first.name} and {second.name}", f"{first} and {second}", read)


def _pairs(name: str, where: str, rows: Callable[[], Iterator[Sequence[str]]]) -> Corpus:
    """Pairs with their languages, told from the first rows; a pair with an empty side is left out.

    Raises (on reading):
        DataError: not exactly one side is Chinese.
    """

    def read() -> Texts:
        first = list(islice(rows(), FIRST))
        languages = tuple(language_of(side) for side in zip(*first, strict=True)) or _PAIR
        if languages.count("zh") != 1:
            which = "both sides are" if "zh" in languages else "neither side is"
            raise DataError(
                f"{where}: {which} Chinese in the first {len(first)} lines; give Chinese and "
                "English texts, side by side."
            )
        for row in rows():
            if all(text.strip() for text in row):
                yield from zip(languages, row, strict=True)

    return Corpus(name, read)


def _tsv(path: Path) -> Iterator[Sequence[str]]:
    for line, text in _lines(path):
        cells = text.split("\t")
        if len(cells) == len(_PAIR):
            yield cells
        elif text.strip():
            raise DataError(
                f"{path}, line {line}: {len(cells)} column{'s' * (len(cells) > 1)} where a pair "
                "has two, separated by one tab; correct the line."
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, decompressed if need be.

    Raises:
        DataError: not readable, not gzip, or not UTF-8, with the line.
    """
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            # not text mode: its universal newlines would cut at a lone \r inside a line
            for line, raw in enumerate(stream, start=1):
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                yield line, text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start}); convert the "
            "file to UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}, after line {line}: cannot be read ({what}); check or fetch the file again."
        ) from error


def _hub(reference: str) -> Corpus:
    """A dataset of the hub, or of a local folder: columns zh and en, or text, or translations."""
    name, _, config = reference.removeprefix(HUB).partition(":")
    import datasets

    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:  # whatever its readers and HTTP clients raise
        first = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"{reference}: the dataset cannot be loaded ({first}); check its name, configuration "
            "and the network, or give files."
        ) from error
    columns: list[str] = list(found.column_names)
    if "translation" in columns:
        columns = list(found.features["translation"].languages)

    def rows(names: Sequence[str]) -> Iterator[Sequence[str]]:
        for row in found:
            values = row.get("translation", row)
            yield [str(values[key] or "") for key in names]

    if set(_PAIR) <= set(columns):
        return _pairs(reference, reference, lambda: rows(_PAIR))
    if "text" not in columns:
        raise DataError(
            f"{reference}: there are neither columns zh and en, nor text, nor translation (there "
            f"is {', '.join(columns)[:80]}); give another dataset or files."
        )

    def read() -> Texts:
        language = language_of(text for (text,) in islice(rows(["text"]), FIRST))
        return ((language, text) for (text,) in rows(["text"]) if text.strip())

    return Corpus(reference, read)
