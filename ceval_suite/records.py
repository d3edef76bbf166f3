"""A run folder on disk: `run.json`, `records.jsonl`, `summary.json`.

Records are appended one line at a time and flushed; a line torn by a kill is cut off on reopening.
A folder belongs to one model, protocol and data for ever: opening it for another is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from ceval_suite.appending import Lines
from ceval_suite.errors import RunError
from ceval_suite.lock import Lock
from ceval_suite.run_files import BITS, FORMAT, decoded, read_json, write_json
from ceval_suite.schema import Record, TextRecord

__all__ = [
    "BITS",
    "FORMAT",
    "Folder",
    "RunFolder",
    "find_bits",
    "find_runs",
    "folder_name",
    "read_json",
    "read_lines",
    "read_records",
    "safe_name",
    "write_json",
]

BOM = b"\xef\xbb\xbf"

R = TypeVar("R", Record, TextRecord)

_SOMETIMES = tuple(
    f.name for f in fields(Record) if f.default is not MISSING or f.default_factory is not MISSING
)
"""Fields that a line has only where they hold something."""


def safe_name(name: str) -> str:
    """A name as one folder: everything unusual becomes an underscore."""
    cleaned = re.sub(r"[^\w.\-]+", "_", name).strip("._")
    return cleaned or "model"


def folder_name(task: str, split: str, shots: int, fingerprint: str) -> str:
    """`<task>-<split>-<shots>shot-<fingerprint8>`."""
    return f"{task}-{split}-{shots}shot-{fingerprint[:8]}"


def read_records(path: Path) -> Iterator[Record]:
    """All whole lines of a records file; an unfinished last line is passed over.

    Raises:
        RunError: a broken line before the last.
    """
    return read_lines(path, Record)


def read_lines(path: Path, kind: type[R]) -> Iterator[R]:
    """All whole lines of a file of one kind of record; fields that it does not know do no harm.

    Raises:
        RunError: a broken line before the last, or one with a value of another type.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    if content.startswith(BOM):
        raise RunError(
            f"{path}: line 1 starts with a byte order mark, as some editors write it; save the "
            "file as UTF-8 without one."
        )
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(_whole_lines(content), start=1):
        try:
            yield _line(decoder, line, kind)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"{path}: line {number} is broken ({reason}); remove that line to have its item "
                "scored again."
            ) from error


def _line(decoder: msgspec.json.Decoder[R], line: bytes, kind: type[R]) -> R:
    try:
        return decoder.decode(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(decoded(line), kind)


def _whole_lines(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    return lines


class Folder(Generic[R]):
    """One folder of records of one kind, open for appending; use it as a context manager."""

    def __init__(
        self, path: Path, identity: dict[str, Any], about: dict[str, Any], kind: type[R]
    ) -> None:
        """Nothing is touched before the context is entered.

        `identity` must equal that of the records already there; entering raises RunError when
        they are another run's, of no known run or broken, or when another run is writing them.
        """
        self.path = path
        self.identity = identity
        self.about = about
        self._kind: type[R] = kind
        self._lock = Lock(path)
        self._lines: Lines | None = None
        self.done: dict[str, R] = {}

    @property
    def soft_lock(self) -> bool:
        """Whether the folder's file system knows no locks, so that a file stands for one."""
        return self._lock.soft

    def __enter__(self) -> Folder[R]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.path}: this folder cannot be made ({error.strerror}); give an --out that "
                "can be written."
            ) from error
        self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _open(self) -> None:
        run = self.path / "run.json"
        records = self.path / "records.jsonl"
        if records.is_symlink() or (records.exists() and not records.is_file()):
            raise RunError(
                f"{records}: a link or no file, and what is appended would go elsewhere; use "
                "another --out, or delete the folder."
            )
        self._lines = Lines(records)
        if not self._lines.whole():
            self.update({})  # a run that failed before its first record binds nobody
        elif run.is_file():
            self._same(read_json(run))
        else:
            raise RunError(
                f"{records}: there is no run.json beside it to say which model and protocol made "
                "it; use another --out, or delete the folder."
            )
        for record in read_lines(records, self._kind):
            if record.id in self.done:
                raise RunError(f"{records}: item {record.id} stands twice; delete one line.")
            self.done[record.id] = record
        self._lines.open()

    def _same(self, run: dict[str, Any]) -> None:
        stored = run.get("identity", {})
        if run.get("format") != FORMAT:
            raise RunError(
                f"{self.path} has format {run.get('format')}, this is {FORMAT}; use another --out, "
                "or the version of ceval-suite that wrote it."
            )
        # a concern that only one of the two has (an adapter, say) makes them different as well
        for key in dict.fromkeys((*self.identity, *stored)):
            there, now = stored.get(key), self.identity.get(key)
            if there != now:
                raise RunError(
                    f"{self.path} holds records of another {key} ({_short(there)} there, "
                    f"{_short(now)} now); use another --out, or delete the folder."
                )
        self.about = {k: v for k, v in run.items() if k not in ("format", "identity")} | self.about

    def check_numerics(self, now: str | None) -> None:
        """See that records already there were computed in the dtype that is used now.

        Raises:
            RunError: they were computed in another.
        """
        before = self.about.get("engine", {}).get("dtype")
        if self.done and before not in (None, now):
            raise RunError(
                f"{self.path} holds records computed in {before}, this run computes in {now}; "
                f"give --dtype {before} or another --out."
            )

    def append(self, record: R) -> None:
        """Write one record and flush it.

        Raises:
            RunError: a number that is none, no room, or the folder is not there any more.
        """
        content = {k: v for k, v in asdict(record).items() if v or k not in _SOMETIMES}
        try:
            line = json.dumps(
                content, ensure_ascii=False, separators=(",", ":"), allow_nan=False
            ).encode("utf-8", "replace")  # half of a pair of surrogates is no character
        except ValueError as error:
            raise RunError(
                f"{record.id}: a score that is not a finite number is not recorded; see what "
                "answers, and start the same command again: finished records are kept."
            ) from error
        assert self._lines is not None
        self._lines.append(line + b"\n")
        self.done[record.id] = record

    def update(self, about: dict[str, Any]) -> None:
        """Merge `about` into run.json."""
        self.about |= about
        if self._lines is not None:
            self._lines.check()
        write_json(self.path / "run.json", self._about())

    def _about(self) -> dict[str, Any]:
        return {"format": FORMAT, "identity": self.identity, **self.about}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._lines is not None:
                self._lines.close(rescue=self._about(), quiet=error is not None)
        finally:  # a full disk must not leave the folder locked
            self._lock.release()


class RunFolder(Folder[Record]):
    """The folder of one model's answers to one task."""

    def __init__(self, path: Path, identity: dict[str, Any], about: dict[str, Any]) -> None:
        super().__init__(path, identity, about, Record)

    def __enter__(self) -> RunFolder:
        super().__enter__()
        return self


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "…"


def find_runs(folder: Path) -> Iterable[Path]:
    """All folders of answered tasks below `folder`, in name order."""
    return [path for path in _holders(folder) if not BITS.fullmatch(path.name)]


def _holders(folder: Path) -> list[Path]:
    """All folders with a run.json, in name order; links to folders are not followed."""
    found: list[Path] = []
    left = [str(folder)]
    while left:
        here = left.pop()
        # one that is gone or may not be read holds no run of ours
        with suppress(FileNotFoundError, PermissionError), os.scandir(here) as entries:
            for entry in entries:
                if entry.name == "run.json":
                    found.append(Path(here))
                elif entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
    return sorted(found)


def find_bits(folder: Path) -> list[Path]:
    """All folders of measured texts below `folder`, in name order."""
    return [path for path in _holders(folder) if BITS.fullmatch(path.name)]
