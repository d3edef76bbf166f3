"""A file that lines are appended to, one at a time: whole or not at all, and never into the void.

A line torn by a kill or a full disk is cut off. A file that was deleted, moved or replaced while
it was written is noticed before the next line.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ceval_suite.errors import RunError
from ceval_suite.run_files import not_written, write_json


class Lines:
    """One file of lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._size = 0

    def whole(self) -> bool:
        """Whether there is a whole line."""
        return self.path.is_file() and b"\n" in self.path.read_bytes()

    def open(self) -> None:
        """Open it for appending; a last line that a kill left unfinished is cut off.

        Raises:
            RunError: it cannot be written.
        """
        # read as well: what was deleted meanwhile can still be saved from here
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._handle = os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
            content = self.path.read_bytes()
            self._size = content.rfind(b"\n") + 1
            if self._size < len(content):
                os.ftruncate(self._handle, self._size)
        except OSError as error:
            raise RunError(not_written(self.path, error)) from error

    def append(self, line: bytes) -> None:
        """Write one line to the disk's keeping.

        Raises:
            RunError: no room for it, or the file is not there any more.
        """
        self.check()
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError as error:
            with suppress(OSError):  # a part of a line is none
                os.ftruncate(self._handle, self._size)
            raise RunError(not_written(self.path, error)) from error
        except BaseException:  # an interrupt between two parts of a line
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += len(line)

    def check(self) -> None:
        """See that what is open is what lies there.

        Raises:
            RunError: the file or its folder was deleted, moved or replaced.
        """
        if self._handle < 0 or self._lies_there():
            return
        raise RunError(
            f"{self.path}: this file or its folder was deleted, moved or replaced while the run "
            "was writing it; start the same command again."
        )

    def _lies_there(self) -> bool:
        try:
            there, open_ = os.stat(self.path, follow_symlinks=False), os.fstat(self._handle)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (open_.st_dev, open_.st_ino)

    def close(self, *, rescue: dict[str, Any], quiet: bool) -> None:
        """Bring all to the disk; lines of a file that was deleted are saved beside it.

        `rescue` is what is said of the lines that are saved; `quiet` that another error is told.

        Raises:
            RunError: the disk did not take it, or the file is not there any more.
        """
        if self._handle < 0:
            return
        handle, self._handle = self._handle, -1
        try:
            os.fsync(handle)
            if os.fstat(handle).st_nlink == 0 and self._size:
                self._save(handle, rescue)
        except OSError as error:
            if not quiet:
                raise RunError(not_written(self.path, error)) from error
        finally:
            os.close(handle)

    def _save(self, handle: int, rescue: dict[str, Any]) -> None:
        folder = self.path.parent
        number = 1
        while (target := folder.with_name(f"{folder.name}.rescued-{number}")).exists():
            number += 1
        target.mkdir(parents=True)
        (target / self.path.name).write_bytes(os.pread(handle, self._size, 0))
        write_json(target / "run.json", rescue)
        raise RunError(
            f"{self.path}: this file was deleted while the run was writing it; its records are "
            f"saved in {target}: move that folder to {folder} and start the same command again, or "
            "delete it."
        )
