"""A run folder on disk: `run.json`, `records.jsonl`, `summary.json`.

Records are appended one line at a time and flushed; a line torn by a kill is cut off on reopening.
A folder belongs to one model, protocol and data for ever: opening it for another is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
from filelock import FileLock, Timeout

from ceval_suite.errors import RunError
from ceval_suite.schema import Record, TextRecord

FORMAT = 1

R = TypeVar("R", Record, TextRecord)

BITS = re.compile(r"bits-[0-9a-f]{8}")
"""Names of folders that hold measured texts instead of answered items."""

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


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that readers never see half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path, leave: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object from disk, without the keys named in `leave`, which cost no time then.

    Raises:
        RunError: unreadable or not an object.
    """
    try:
        content = _without(path.read_bytes(), leave) if leave else _decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON ({error}); delete the run folder.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a JSON object; delete the run folder.")
    return content


def _without(content: bytes, leave: Collection[str]) -> Any:
    try:
        raw = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        return {k: msgspec.json.decode(v) for k, v in raw.items() if k not in leave}
    except msgspec.DecodeError:
        return _decoded(content)


def _decoded(content: bytes) -> Any:
    """JSON, by the quicker parser; what that refuses (NaN, say) is left to the usual one."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return json.loads(content)


def read_records(path: Path) -> Iterator[Record]:
    """All whole lines of a records file; an unfinished last line is passed over.

    Raises:
        RunError: a broken line before the last.
    """
    return read_lines(path, Record)


def read_lines(path: Path, kind: type[R]) -> Iterator[R]:
    """All whole lines of a file of one kind of record.

    Raises:
        RunError: a broken line before the last.
    """
    if not path.is_file():
        return
    names = [f.name for f in fields(kind)]
    for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
        try:
            row = _decoded(line)
            yield kind(
                **{name: row[name] for name in names if name in row or name not in _SOMETIMES}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path}: line {number} is broken ({error!r}); remove that line to have its item "
                "scored again."
            ) from error


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
        self._lock = FileLock(path / ".lock")
        self._stream: Any = None
        self.done: dict[str, R] = {}

    def __enter__(self) -> Folder[R]:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{self.path} is being written by another run; wait for it or use another --out."
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _open(self) -> None:
        run = self.path / "run.json"
        records = self.path / "records.jsonl"
        if not (records.is_file() and _whole_lines(records.read_bytes())):
            self.update({})  # a run that failed before its first record binds nobody
        elif run.is_file():
            self._same(read_json(run))
        else:
            raise RunError(
                f"{records}: there is no run.json beside it to say which model and protocol made "
                "it; use another --out, or delete the folder."
            )
        self._repair(records)
        for record in read_lines(records, self._kind):
            if record.id in self.done:
                raise RunError(f"{records}: item {record.id} stands twice; delete one line.")
            self.done[record.id] = record
        self._stream = records.open("ab")

    def _same(self, run: dict[str, Any]) -> None:
        stored = run.get("identity", {})
        if run.get("format") != FORMAT:
            raise RunError(f"{self.path} has format {run.get('format')}, this is {FORMAT}.")
        # a concern that only one of the two has (an adapter, say) makes them different as well
        for key in dict.fromkeys((*self.identity, *stored)):
            there, now = stored.get(key), self.identity.get(key)
            if there != now:
                raise RunError(
                    f"{self.path} holds records of another {key} ({_short(there)} there, "
                    f"{_short(now)} now); use another --out, or delete the folder."
                )
        self.about = {k: v for k, v in run.items() if k not in ("format", "identity")} | self.about

    @staticmethod
    def _repair(path: Path) -> None:
        """Cut off a last line that a kill left unfinished."""
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as stream:
                stream.truncate(whole)

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
        """Write one record and flush it."""
        content = {k: v for k, v in asdict(record).items() if v or k not in _SOMETIMES}
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()
        self.done[record.id] = record

    def update(self, about: dict[str, Any]) -> None:
        """Merge `about` into run.json."""
        self.about |= about
        content = {"format": FORMAT, "identity": self.identity, **self.about}
        write_json(self.path / "run.json", content)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
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
        # one that may not be read holds no run of ours
        with suppress(PermissionError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.name == "run.json":
                    found.append(Path(entry.path).parent)
                elif entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
    return sorted(found)


def find_bits(folder: Path) -> list[Path]:
    """All folders of measured texts below `folder`, in name order."""
    return [path for path in _holders(folder) if BITS.fullmatch(path.name)]
