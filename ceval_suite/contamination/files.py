"""A user's training data, cut into pieces that workers read on their own.

Plain files are cut by bytes and read by the workers; compressed ones are decompressed here, block
by block; Parquet goes by row group. Nothing is ever held whole.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from ceval_suite.errors import DataError

Form: TypeAlias = Literal["jsonl", "json", "parquet", "text"]

BLOCK = 2**22
"""Bytes of a piece."""

OVERLAP = 2**15
"""Bytes of plain text that two neighbouring pieces share: more than any question has."""

LONGEST = 2**26
"""Bytes that a line of JSON may have."""

_FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True)
class Source:
    """A file of the corpus."""

    path: Path
    form: Form
    packed: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes `start` to `stop` of it, or their content where it was packed.

    `data` of a text may go on beyond `stop - start`: the overlap with what follows. `group` is a
    row group of a Parquet file. `advance` is how far in the file this piece ends.
    """

    source: int
    path: str
    form: Form
    start: int
    stop: int
    advance: int
    data: bytes | None = None
    group: int = -1


def sources(references: Sequence[str]) -> list[Source]:
    """Files, the readable files of folders, and globs, each file once.

    Raises:
        DataError: a reference without any file, or a broken or foreign kind of one.
    """
    found: dict[Path, Source] = {}
    for reference in references:
        path = Path(reference).expanduser()
        if path.is_file():
            paths = [path]
        elif path.is_dir():
            paths = [p for p in sorted(path.rglob("*")) if p.is_file() and _ending(p)[0] in _FORMS]
            if not paths:
                raise DataError(
                    f"{path}: none of {', '.join(_FORMS)} (or packed as {', '.join(_PACKED)}) in "
                    "this folder; name the files themselves."
                )
        else:
            paths = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
            paths = [p for p in paths if p.is_file()]
            if not paths:
                raise DataError(f"{reference}: there is no such file or folder; check the path.")
        for one in paths:
            ending, packed = _ending(one)
            found[one.resolve()] = Source(one, _FORMS.get(ending, "text"), packed)
    return list(found.values())


def _ending(path: Path) -> tuple[str, str]:
    packed = path.suffix.lower() if path.suffix.lower() in _PACKED else ""
    inner = Path(path.stem) if packed else path
    return inner.suffix.lower(), packed


def pieces(found: Sequence[Source]) -> Iterator[Piece | DataError]:
    """All pieces in order; in place of what cannot be read, the sentence that says so."""
    for number, source in enumerate(found):
        try:
            if source.form == "parquet":
                yield from _row_groups(number, source)
            elif source.packed or source.form == "json":
                yield from _unpacked(number, source)
            else:
                yield from _by_bytes(number, source)
        except DataError as error:
            yield error
        except _READ_ERRORS as error:
            what = getattr(error, "strerror", None) or str(error) or type(error).__name__
            yield DataError(f"{source.path}: cannot be read to its end ({what}); fetch it again.")


def _by_bytes(number: int, source: Source) -> Iterator[Piece]:
    size = source.size
    with source.path.open("rb") as stream:
        head = stream.read(4)
    _refuse(source, head)
    for start in range(0, size, BLOCK):
        stop = min(size, start + BLOCK)
        yield Piece(number, str(source.path), source.form, start, stop, stop)


def _refuse(source: Source, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{source.path}: is UTF-16; convert the file to UTF-8.")
    if head == b"PAR1" or head[:2] in (b"\x1f\x8b", b"PK"):
        raise DataError(
            f"{source.path}: its content is packed or Parquet, its name says text; rename it "
            "(.gz, .parquet) or unpack it."
        )


def _row_groups(number: int, source: Source) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    if source.packed:
        raise DataError(f"{source.path}: a packed Parquet file; unpack it first.")
    try:
        file: Any = pyarrow.parquet.ParquetFile(source.path)
        with file:
            groups = int(file.metadata.num_row_groups)
            rows = [int(file.metadata.row_group(i).num_rows) for i in range(groups)]
    except (pyarrow.ArrowException, OSError) as error:
        first = " ".join(str(error).split())[:160].rstrip(".")
        raise DataError(
            f"{source.path}: is no readable Parquet file ({first}); fetch it again."
        ) from error
    done, size = 0, source.size
    for group, count in enumerate(rows):
        end = size * (group + 1) // groups
        path = str(source.path)
        yield Piece(number, path, "parquet", done, done + count, end, group=group)
        done += count


@contextmanager
def _stream(source: Source) -> Generator[tuple[BinaryIO, BinaryIO]]:
    """The unpacked bytes of a file, and the file itself, whose place tells the progress."""
    with source.path.open("rb") as raw:
        if source.packed == ".gz":
            with gzip.open(raw) as stream:
                yield cast(BinaryIO, stream), raw
        elif source.packed == ".bz2":
            with bz2.open(raw) as stream:
                yield cast(BinaryIO, stream), raw
        elif source.packed == ".xz":
            with lzma.open(raw) as stream:
                yield cast(BinaryIO, stream), raw
        elif source.packed == ".zst":
            with _zstandard(source, raw) as stream:
                yield stream, raw
        else:
            yield raw, raw


@contextmanager
def _zstandard(source: Source, raw: BinaryIO) -> Generator[BinaryIO]:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            f"{source.path}: .zst needs a package that is not there; pip install zstandard."
        ) from error
    library: Any = zstandard
    try:
        yield library.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
    except library.ZstdError as error:
        raise OSError(str(error)) from error


def _unpacked(number: int, source: Source) -> Iterator[Piece]:
    with _stream(source) as (stream, raw):
        head = stream.read(BLOCK)
        _refuse(source, head[:4])
        if source.form == "json" and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from _array(number, source, stream, raw, head)
            return
        text = source.form == "text"
        blocks = _overlapping(stream, head) if text else _whole_lines(stream, head)
        start = 0
        for data, owned in blocks:
            form = "text" if text else "jsonl"
            yield Piece(number, str(source.path), form, start, start + owned, raw.tell(), data)
            start += owned


def _whole_lines(stream: BinaryIO, block: bytes) -> Iterator[tuple[bytes, int]]:
    """Blocks that end with a line; a line of more than `LONGEST` comes in parts."""
    rest = b""
    while block:
        rest += block
        cut = rest.rfind(b"\n") + 1
        if not cut and len(rest) > LONGEST:
            cut = len(rest)
        if cut:
            yield rest[:cut], cut
            rest = rest[cut:]
        block = stream.read(BLOCK)
    if rest:
        yield rest, len(rest)


def _overlapping(stream: BinaryIO, block: bytes) -> Iterator[tuple[bytes, int]]:
    """Blocks with the beginning of what follows, and how much of each is its own."""
    while block:
        following = stream.read(BLOCK)
        yield block + following[:OVERLAP], len(block)
        block = following


def _array(
    number: int, source: Source, stream: BinaryIO, raw: BinaryIO, begun: bytes
) -> Iterator[Piece]:
    """The elements of one long JSON array, each as a line."""
    decoder, text = codecs.getincrementaldecoder("utf-8-sig")(), ""
    scanner, lines, done, data = json.JSONDecoder(), list[str](), 0, begun
    path, opened = str(source.path), False
    while True:
        text += decoder.decode(data, not data)
        at = 0
        while True:
            if not opened:
                at, opened = text.find("[") + 1, True
            while at < len(text) and text[at] in _GAP:
                at += 1
            if at == len(text) or text[at] == "]":
                break
            try:
                _, end = scanner.raw_decode(text, at)
            except ValueError:
                break
            if end == len(text) and data:  # a number may go on
                break
            # blanks between the parts may be line ends; in its strings there are none
            lines.append(text[at:end].replace("\n", " ").replace("\r", " "))
            at = end
        text = text[at:]
        if lines:
            block = "\n".join(lines).encode("utf-8", "surrogatepass")
            yield Piece(number, path, "jsonl", done, done + len(block), raw.tell(), block)
            done, lines = done + len(block), []
        if text.startswith("]"):
            return
        if not data or len(text) > LONGEST:
            raise DataError(
                f"{source.path}: the JSON array breaks off or is broken after what was read; "
                "check the file."
            )
        data = stream.read(BLOCK)


_GAP = " \t\r\n,"
