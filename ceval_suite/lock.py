"""One writer a folder: a lock that the kernel drops with its process, and who holds it, for people.

The lock is `.lock`; `.owner.json` beside it says who took it and is never believed over the lock.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import sys
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, SoftFileLock, Timeout

from ceval_suite.errors import RunError
from ceval_suite.secrecy import clean

LOCK = ".lock"
OWNER = ".owner.json"


class Lock:
    """The right to write into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)

    @property
    def soft(self) -> bool:
        """Whether the file system knows no locks, so that a file stands for one."""
        # a lock becomes one while it is taken
        return issubclass(cast("type[Any]", type(self._lock)), SoftFileLock)

    def acquire(self) -> None:
        """Take the lock, or say who has it.

        Raises:
            RunError: another process writes there, or nothing can be locked or written there.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the fall-back to a file; `soft` says it
                self._take()
        except Timeout as error:
            raise RunError(self._held()) from error
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"{self.folder}: the file {LOCK} there cannot be locked ({reason}); give an --out "
                "on a disk that can be written and has file locks."
            ) from error
        with suppress(OSError):  # a full disk is told of when the first record is written
            (self.folder / OWNER).unlink(missing_ok=True)
            with open(self.folder / OWNER, "x", encoding="utf-8") as stream:
                json.dump(_me(), stream, ensure_ascii=False)

    def _take(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            # the kernel drops a lock with its process; a file that stands for one stays
            if not (self.soft and _gone(self.folder)):
                raise
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.acquire(timeout=0)

    def _held(self) -> str:
        owner = holder(self.folder)
        who = f" ({described(owner)})" if owner else ""
        remedy = f"; or delete {self.folder / LOCK}, if no such process is left" * self.soft
        return (
            f"{self.folder} is being written by another run{who}; wait for it, end it, or use "
            f"another --out{remedy}."
        )

    def release(self) -> None:
        """Give the lock back."""
        with suppress(OSError):
            (self.folder / OWNER).unlink(missing_ok=True)
        self._lock.release()


def _me() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "?"
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user,
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": clean(shlex.join(["ceval-suite", *sys.argv[1:]])),
    }


def holder(folder: Path) -> dict[str, str]:
    """What the holder of a folder's lock says of itself; nothing where it is not told."""
    try:
        found: Any = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return {key: str(found[key]) for key in ("host", "pid", "user", "since", "command")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _gone(folder: Path) -> bool:
    """Whether the file that stands for a lock is of a process of this machine that has ended."""
    owner = holder(folder)
    if not owner:  # left by a kernel's lock, which is told by no content
        return (folder / LOCK).stat().st_size == 0
    if owner["host"] != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def described(owner: dict[str, str]) -> str:
    """A holder, for people."""
    return (
        f"pid {owner['pid']} of {owner['user']} on {owner['host']}, since {owner['since']}: "
        f"{owner['command']}"
    )


def is_held(folder: Path) -> bool:
    """Whether a process writes there now; looking leaves nothing behind."""
    if not (folder / OWNER).exists():
        return False  # not asked of the lock itself: who comes to take it would find it taken
    lock = FileLock(folder / LOCK)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False  # nothing can write there
    lock.release()
    return False
