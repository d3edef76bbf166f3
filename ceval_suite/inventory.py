"""The index of run folders: what each is, how far it came, and what of it may be cleared away.

Run folders may come from anybody. No link is followed, and nothing is deleted but the files that a
run writes, in a folder whose run.json is one of ours and that nobody writes now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ceval_suite import lock
from ceval_suite.errors import RunError
from ceval_suite.records import FORMAT, read_json

State = Literal["complete", "partial", "locked", "broken"]

STATES: tuple[State, ...] = ("complete", "partial", "locked", "broken")

OURS = (
    "records.jsonl",
    "summary.json",
    "run.json",
    ".run.json.partial",
    ".summary.json.partial",
    lock.OWNER,
    lock.LOCK,
)
"""What a run writes; run.json, which says that it is ours, goes when all records have gone."""


@dataclass(frozen=True)
class Entry:
    """One run folder. `note` says why it is broken, or who writes it."""

    folder: Path
    state: State
    records: int
    expected: int | None
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    summary: Mapping[str, Any] | None = None
    note: str = ""

    @property
    def model(self) -> str:
        """The model's name, or that of the folder it lies in."""
        who = self.about.get("identity", {})
        return str(who.get("model") or self.folder.parent.name)

    @property
    def task(self) -> str:
        """The task, or the name of the folder."""
        return str(self.about.get("task") or self.folder.name)


def look(places: Sequence[Path]) -> list[Entry]:
    """All run folders in or below some places, each once, in name order.

    Raises:
        RunError: a place is not there.
    """
    found: dict[Path, Entry] = {}
    for place in places:
        if not place.is_dir():
            raise RunError(f"{place} does not exist; give the --out folder of a run.")
        for folder in _folders(place):
            found.setdefault(folder.resolve(), _entry(folder))
    return list(found.values())


def _folders(place: Path) -> list[Path]:
    """Every folder with a file of a run; folders behind links are not entered."""
    found: list[Path] = []
    for folder, below, names in os.walk(place, followlinks=False):
        below.sort()
        if "run.json" in names or "records.jsonl" in names:
            found.append(Path(folder))
    return found


def _entry(folder: Path) -> Entry:
    records = folder / "records.jsonl"
    count = records.read_bytes().count(b"\n") if records.is_file() else 0
    try:
        about = read_json(folder / "run.json")
    except RunError as error:
        return Entry(folder, "broken", count, None, note=str(error))
    expected = sum(about["expected"].values()) if "expected" in about else None
    summary: Mapping[str, Any] | None = None
    note = ""
    if (folder / "summary.json").is_file():
        try:
            summary = read_json(folder / "summary.json")
        except RunError as error:
            note = str(error)
    if lock.is_held(folder):
        owner = lock.holder(folder)
        who = lock.described(owner) if owner else ""
        return Entry(folder, "locked", count, expected, about, summary, who)
    if about.get("format") != FORMAT:
        note = f"format {about.get('format')}, this is {FORMAT}"
        return Entry(folder, "broken", count, expected, about, summary, note)
    whole = bool(summary and summary.get("complete")) and count >= (expected or 0)
    state: State = "broken" if note else "complete" if whole else "partial"
    return Entry(folder, state, count, expected, about, summary, note)


def chosen(
    entries: Iterable[Entry],
    model: str | None = None,
    task: str | None = None,
    state: str | None = None,
) -> list[Entry]:
    """The entries of one model, task or state."""
    return [
        one
        for one in entries
        if model in (None, one.model) and task in (None, one.task) and state in (None, one.state)
    ]


def clearable(entries: Iterable[Entry], named: Sequence[Path]) -> list[Entry]:
    """What may be deleted: unfinished runs of ours, and finished ones that were named."""
    own = {place.resolve() for place in named}
    return [
        one
        for one in entries
        if one.about.get("format") == FORMAT
        and isinstance(one.about.get("identity"), dict)
        and not one.folder.is_symlink()
        and not (one.folder / "run.json").is_symlink()
        and (one.state == "partial" or (one.state == "complete" and one.folder.resolve() in own))
    ]


def clear(entry: Entry) -> list[str]:
    """Delete a run folder's own files, and the folder where nothing else lies in it.

    Returns:
        The names of what was left there.

    Raises:
        RunError: somebody writes there now, or it cannot be deleted.
    """
    right = lock.Lock(entry.folder)
    right.acquire()
    try:
        # by a handle: what is put in the folder's place meanwhile is not touched
        handle = os.open(entry.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in OURS:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=handle)
            left = sorted(os.listdir(handle))
        finally:
            os.close(handle)
    except OSError as error:
        raise RunError(
            f"{entry.folder}: cannot be deleted ({error.strerror}); delete it by hand."
        ) from error
    finally:
        right.release()
    if not left:
        with suppress(OSError):
            (entry.folder / lock.LOCK).unlink(missing_ok=True)
            entry.folder.rmdir()
    return left
