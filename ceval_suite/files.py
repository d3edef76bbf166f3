"""Where benchmark files lie: folders and published archives, found and read, never unpacked.

Archives are read in place, member by member, so that nothing in them can write to the disk.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ceval_suite.catalog import task_folder
from ceval_suite.errors import DataError
from ceval_suite.specs import Task

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_MEMBER = 256 * 2**20
"""No benchmark file is this large (the largest has 3 MB): a bigger member is a broken archive."""

MAX_TOTAL = 2**30
"""Bytes read of one benchmark, at most (the largest has 170 MB)."""

MAX_MEMBERS = 200_000
"""Files in one archive, at most (repositories of all benchmarks have a few thousand)."""

RATIO = 200
"""How often smaller than its content a member of an archive may be; text is seldom 20 times."""

SMALL = 2**20
"""Bytes of a member that is never too much, however well it is packed."""

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,  # an encrypted member, an unknown compression
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)


@dataclass(frozen=True)
class Files:
    """The files of one benchmark in a folder or an archive, by their path under `prefix`."""

    place: Path
    prefix: str
    names: frozenset[str]
    _read: Callable[[str], bytes]
    _taken: list[int] = field(default_factory=lambda: [0])

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.names

    def where(self, name: str) -> str:
        """The place of a file for people."""
        return f"{self.place}/{self.prefix}{name}"

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: it is not there, or cannot be read.
        """
        if name not in self:
            raise DataError(f"{self.where(name)} is missing; fetch the benchmark again.")
        try:
            content = self._read(self.prefix + name)
        except _UNREADABLE as error:
            raise DataError(
                f"{self.where(name)} cannot be read ({error}); fetch the benchmark again."
            ) from error
        self._taken[0] += len(content)
        if self._taken[0] > MAX_TOTAL:
            raise _too_much(self.place, f"more than {MAX_TOTAL:,} bytes were read of it")
        return content


def _too_much(place: Path, what: str) -> DataError:
    return DataError(f"{place}: {what}, more than any benchmark has; fetch the benchmark again.")


def _folder(place: Path) -> tuple[frozenset[str], Callable[[str], bytes]]:
    names = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]

    def read(name: str) -> bytes:
        size = (place / name).stat().st_size
        if size > MAX_MEMBER:
            raise _too_much(place / name, f"{size:,} bytes")
        return (place / name).read_bytes()

    return frozenset(names), read


def _zip(place: Path) -> tuple[frozenset[str], Callable[[str], bytes]]:
    archive = zipfile.ZipFile(place)
    if len(archive.namelist()) > MAX_MEMBERS:
        raise _too_much(place, f"{len(archive.namelist()):,} files")

    def read(name: str) -> bytes:
        member = archive.getinfo(name)
        packed = RATIO * max(1, member.compress_size) + SMALL
        if member.file_size > min(MAX_MEMBER, packed):
            raise _too_much(place, f"member {name} unpacks to {member.file_size:,} bytes")
        return archive.read(name)

    return frozenset(n for n in archive.namelist() if not n.endswith("/")), read


def _tar(place: Path) -> tuple[frozenset[str], Callable[[str], bytes]]:
    members: dict[str, tarfile.TarInfo] = {}
    packed = RATIO * place.stat().st_size + SMALL
    with tarfile.open(place) as archive:
        for count, member in enumerate(archive, 1):  # links are no files
            if count > MAX_MEMBERS:
                raise _too_much(place, f"more than {MAX_MEMBERS:,} files")
            if member.offset_data + member.size > packed:
                raise _too_much(place, f"member {member.name} unpacks to {member.size:,} bytes")
            if member.isfile():
                members[member.name.removeprefix("./")] = member

    def read(name: str) -> bytes:
        if members[name].size > MAX_MEMBER:
            raise _too_much(place, f"member {name} has {members[name].size:,} bytes")
        with tarfile.open(place) as archive:
            stream = archive.extractfile(members[name])
            return stream.read() if stream is not None else b""

    return frozenset(members), read


def patterns(task: Task) -> list[str]:
    """Paths of the files of the default split, in all known spellings of the layout."""
    patterns = [task.source.files[task.split]]
    if task.source.layout == "gaokao":
        patterns.append("Multiple-choice_Questions/{subject}.json")
    return patterns


def _open(place: Path, task: Task, least: int = 1) -> Files | None:
    """The benchmark's files in `place`, or None when fewer than `least` of them are there."""
    try:
        if place.is_dir():
            names, read = _folder(place)
        elif place.suffix == ".zip":
            names, read = _zip(place)
        else:
            names, read = _tar(place)
    except _UNREADABLE as error:
        raise DataError(
            f"{place} is not a readable archive ({error}); delete it and fetch it again."
        ) from error
    best: tuple[int, str] = (0, "")
    spellings = [*task.source.files.values(), *patterns(task)]
    wanted = {p.format(subject=s) for p in spellings for s in task.subjects}
    counts: dict[str, int] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        for depth in range(min(4, len(parts))):
            if "/".join(parts[depth:]) in wanted and "__MACOSX" not in parts:
                prefix = "".join(f"{p}/" for p in parts[:depth])
                counts[prefix] = counts.get(prefix, 0) + 1
    for prefix, count in counts.items():
        if (count, -len(prefix)) > (best[0], -len(best[1])):
            best = (count, prefix)
    return Files(place, best[1], names, read) if best[0] >= least else None


def cache_dir() -> Path:
    """Where downloads are kept: `$CEVAL_SUITE_CACHE`, else the user's cache folder."""
    named = os.environ.get("CEVAL_SUITE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).expanduser() if named else base / "ceval_suite"


def data_roots(data: str | Path | None = None) -> list[Path]:
    """Folders searched for benchmarks: the one given alone, else the environment's, then the cache.

    Raises:
        DataError: the folder given does not exist.
    """
    if data is not None:
        root = Path(data).expanduser()
        if not root.exists():
            raise DataError(f"--data {root} does not exist.")
        return [root]
    named = os.environ.get("CEVAL_SUITE_DATA")
    roots = [Path(named).expanduser()] if named else []
    return [*roots, cache_dir() / "data"]


def find_files(task: Task, data: str | Path | None = None) -> Files:
    """The files of a task: `<root>/<folder>`, an archive in or beside it, or the root itself.

    Raises:
        DataError: nowhere found; the message lists the places and the remedy.
    """
    if task.source.bundled:
        found = _open(task_folder(task.name) / task.source.folder, task)
        if found is None:
            raise DataError(f"the bundled data of task '{task.name}' is missing; reinstall.")
        return found
    tried: list[str] = []
    for root in data_roots(data):
        folder = root / task.source.folder
        archives = [
            p
            for where in (folder, root)
            if where.is_dir()
            for p in sorted(where.iterdir())
            if p.name.endswith(ARCHIVES) and (where == folder or _names_task(p, task))
        ]
        for place in (folder, *archives, root):
            # the root itself serves when it is the benchmark's own folder, not a parent of others
            # that share some subjects' names (C-Eval and MMLU do)
            if place == root and folder.is_dir():
                continue
            if place.is_dir() or place.is_file():
                found = _open(place, task, len(task.subjects) // 2 + 1 if place == root else 1)
                if found is not None:
                    return found
        tried.append(str(folder))
    raise DataError(
        f"task '{task.name}': no benchmark files under {' or '.join(tried)}; give --data DIR, set "
        f"CEVAL_SUITE_DATA, or run 'ceval-suite data fetch {task.name}'."
    )


def _names_task(path: Path, task: Task) -> bool:
    """Whether an archive in the root may hold this task, by its name or a known download's."""
    stem = re.sub(r"[^a-z]", "", path.name.lower())
    known = {d.file for d in task.source.download if d.file}
    return path.name in known or re.sub(r"[^a-z]", "", task.name.lower()) in stem
