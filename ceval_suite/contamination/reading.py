"""A piece of a corpus → its documents, and the lines or rows that hold none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ceval_suite.contamination.files import LONGEST, OVERLAP, Piece

WHOLE = ("text", "content", "document", "raw_content", "body")
"""Fields that hold a document by themselves; the first that is there is taken."""

TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Fields that hold the turns of a conversation."""

FIELDS_RULE = (
    f"the first of {', '.join(WHOLE)} that is a text; else every text of the row (all fields, "
    f"in order; of {', '.join(TALKS)} every turn)"
)
"""As recorded in a report, where no field is named."""

LONG = 2**18
"""Characters from which on a document is looked through in parts."""

SHARED = 2**14
"""Characters that two parts of a long document share."""

_CONTINUED = 0x80, 0xC0


class Document(NamedTuple):
    """A text under search. `row` counts lines or rows from 1 within the piece.

    Where a longer text is cut, `owned` are the characters from which on the next part takes over;
    `cut` says that the text began before. `lines` is true where a row is a line of the text.
    """

    row: int
    text: str
    owned: int
    cut: bool = False
    lines: bool = False


@dataclass
class Read:
    """What a piece holds: documents, how many lines or rows, and why some could not be read."""

    documents: list[Document] = field(default_factory=list[Document])
    rows: int = 0
    count: int = 0
    broken: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def add(self, row: int, text: str) -> None:
        """Take a whole text, in parts where it is long."""
        self.count += 1
        if len(text) <= LONG + SHARED:
            self.documents.append(Document(row, text, len(text)))
            return
        for start in range(0, max(1, len(text) - SHARED), LONG):
            last = start + LONG + SHARED >= len(text)
            part = text[start : start + LONG + SHARED]
            self.documents.append(Document(row, part, len(part) if last else LONG, start > 0))


def read(piece: Piece, fields: Sequence[str] = ()) -> Read:
    """All documents of a piece."""
    if piece.form == "parquet":
        return _parquet(piece, fields)
    if piece.form == "text":
        return _text(piece)
    return _lines(piece, fields)


def _lines(piece: Piece, fields: Sequence[str]) -> Read:
    found = Read()
    data = piece.data if piece.data is not None else _owned_lines(piece)
    if piece.start == 0:
        data = data.removeprefix(b"\xef\xbb\xbf")
    if _at_once(found, data, fields):
        return found
    try:
        lines: list[str | bytes] = [*data.decode().split("\n")]
    except UnicodeDecodeError:
        lines = [*data.split(b"\n")]
    if lines and not lines[-1]:
        lines.pop()
    found.rows = len(lines)
    for row, line in enumerate(lines, start=1):
        if line and not line.isspace():
            _line(found, row, line, fields)
    return found


class _Row(msgspec.Struct, gc=False):
    text: str


_TEXTS = msgspec.json.Decoder(_Row)
_ANY = msgspec.json.Decoder()


def _at_once(found: Read, data: bytes, fields: Sequence[str]) -> bool:
    """Take all lines in one go; False, and nothing is taken, where one is empty or broken."""
    size = data.count(b"\n") + (not data.endswith(b"\n"))
    if data.count(b"\n{") + data.startswith(b"{") != size:
        return False
    try:
        rows = [] if fields else _TEXTS.decode_lines(data)
    except (ValueError, RecursionError):  # other fields, or a broken line
        rows = []
    if len(rows) == size:
        texts = [row.text for row in rows]
        lengths = [*map(len, texts)]
        found.rows = size
        if max(lengths) > LONG:
            for row, text in enumerate(texts, start=1):
                found.add(row, text)
        else:
            found.count = size
            whole = zip(count(1), texts, lengths, repeat(False), repeat(False), strict=False)
            found.documents = [*map(Document._make, whole)]
        return True
    try:
        values = _ANY.decode_lines(data)
    except (ValueError, RecursionError):
        return False
    if len(values) != size:
        return False
    found.rows = size
    for row, value in enumerate(values, start=1):
        _take(found, row, value, fields)
    return True


def _line(found: Read, row: int, line: str | bytes, fields: Sequence[str]) -> None:
    try:
        value = json.loads(line if isinstance(line, str) else line.decode())
    except UnicodeDecodeError:
        found.broken.append((row, "is not UTF-8"))
    except (ValueError, RecursionError):
        found.broken.append((row, "is no JSON"))
    else:
        _take(found, row, value, fields)


def _owned_lines(piece: Piece) -> bytes:
    """The lines that begin within a piece, the last one whole."""
    with Path(piece.path).open("rb") as stream:
        start = piece.start
        if start:
            stream.seek(start - 1)
            start += len(stream.readline(piece.stop - start + 1)) - 1
        if start >= piece.stop:
            return b""
        data = stream.read(piece.stop - start)
        return data if data.endswith(b"\n") else data + stream.readline(LONGEST)


def _take(found: Read, row: int, value: Any, fields: Sequence[str]) -> None:
    text = _of_row(value, fields)
    if text is None:
        named = " or ".join(repr(name) for name in fields)
        found.broken.append((row, f"has no text under {named}" if fields else "holds no text"))
    else:
        found.add(row, text)


def _of_row(value: Any, fields: Sequence[str]) -> str | None:
    """The text of a row; None where there is none."""
    if fields:
        parts = [p for name in fields for p in _texts(_under(value, name))]
        return "\n".join(parts) if parts else None
    if isinstance(value, dict):
        for name in WHOLE:
            text: Any = value.get(name)
            if isinstance(text, str):
                return text
        for name in TALKS:
            if isinstance(value.get(name), list) and (turns := list(_texts(value[name]))):
                return "\n".join(turns)
    parts = list(_texts(value))
    return "\n".join(parts) if parts else None


def _under(value: Any, name: str) -> Any:
    """The value of a field; a dot leads into what is nested."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        outer, dot, inner = name.partition(".")
        return _under(value.get(outer), inner) if dot else None
    if isinstance(value, list):
        return [_under(one, name) for one in value]
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, in order."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            if one:
                yield one
        elif isinstance(one, dict):
            stack.extend(reversed(list(one.values())))
        elif isinstance(one, list | tuple):
            stack.extend(reversed(one))


def _text(piece: Piece) -> Read:
    """Plain text: the piece is one document, and a row is a line."""
    size = piece.stop - piece.start
    if piece.data is not None:
        data = piece.data
    else:
        with Path(piece.path).open("rb") as stream:
            stream.seek(piece.start)
            data = stream.read(size + OVERLAP)
    found = Read(rows=data[:size].count(b"\n"))
    # a character that the cut runs through belongs to the piece it begins in
    skipped = 0
    while piece.start and skipped < min(3, size) and _continues(data[skipped]):
        skipped += 1
    while size < len(data) and _continues(data[size]):
        size += 1
    own, behind = data[skipped:size], data[size:]
    try:
        text = own.decode("utf-8-sig" if piece.start == 0 else "utf-8")
    except UnicodeDecodeError:
        text = own.decode("utf-8", "replace")
        for row, line in enumerate(own.split(b"\n"), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                found.broken.append((row, "is not UTF-8"))
    more = behind.decode("utf-8", "replace")
    _cut(found, text, more, piece.start > 0)
    return found


def _continues(byte: int) -> bool:
    return _CONTINUED[0] <= byte < _CONTINUED[1]


def _cut(found: Read, text: str, more: str, begun: bool) -> None:
    """The parts of a block of plain text, each with some of what follows; rows are lines."""
    found.count += text.count("\n") + (not text.endswith("\n"))
    whole = text + more
    row = 1
    for start in range(0, len(text), LONG):
        own = min(LONG, len(text) - start)
        part = whole[start : start + own + SHARED]
        found.documents.append(Document(row, part, own, begun or start > 0, True))
        row += whole.count("\n", start, start + own)


def _parquet(piece: Piece, fields: Sequence[str]) -> Read:
    import pyarrow
    import pyarrow.parquet

    found = Read(rows=piece.stop - piece.start)
    try:
        file: Any = pyarrow.parquet.ParquetFile(piece.path)
        with file:
            names = list(file.schema_arrow.names)
            columns = _columns(names, fields)
            row = 0
            for batch in file.iter_batches(1000, row_groups=[piece.group], columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    _take(found, row, value, fields)
    except (pyarrow.ArrowException, OSError) as error:
        first = " ".join(str(error).split())[:160].rstrip(".")
        found.broken.append((0, f"and what follows cannot be read ({first})"))
    return found


def _columns(names: Sequence[str], fields: Sequence[str]) -> list[str] | None:
    """The columns to read: those asked for, or one that holds the document, or all."""
    if fields:
        return [n for n in names if n in fields or any(f.startswith(f"{n}.") for f in fields)]
    return next(([name] for name in WHOLE if name in names), None)
