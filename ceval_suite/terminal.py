"""Everything that is printed passes here: questions, names and errors are other people's text.

A terminal obeys control characters, so none reach it: neither escapes nor what turns the direction
of text. They are shown as `\\x1b` or `\\u202e`. Standard output that is no terminal gets the bytes
as they are, for another program reads them. Messages never have any, nor the values of
environment variables that are secrets, nor credentials of URLs; on request they are JSON, one
object a line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO, cast

from ceval_suite.secrecy import HIDDEN, clean, is_secret, shown

FORMATS = ("text", "json")

# C0 but tab and line feed, DEL, C1, marks of direction, line and paragraph separators
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)

SHORTEST = 8
"""Characters of a value that is hidden where it stands in a text; shorter ones are words."""


def visible(text: str) -> str:
    r"""A text with its control characters as one can read them.

    >>> print(visible("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """

    def named(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _CONTROL.sub(named, text)


class _Guarded:
    """A stream that text passes through on its way to the person."""

    def __init__(self, stream: TextIO, *, data: bool) -> None:
        self.stream = stream
        self.json = False
        self._data = data
        self._line = ""
        # looked up once: what a program may not say is what it was started with
        self._hidden = sorted(
            {v for k, v in os.environ.items() if is_secret(k) and len(v) >= SHORTEST},
            key=len,
            reverse=True,
        )

    def write(self, text: str) -> int:
        if self._data:
            terminal = self.stream.isatty()
            self.stream.write(visible(text) if terminal else text)
            return len(text)
        for one in self._hidden:
            text = text.replace(one, HIDDEN)
        text = clean(text)
        if not self.json:
            self.stream.write(visible(text))
            return len(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.strip():
                level = "error" if line.startswith("error: ") else "info"
                self.event("message", level, message=line.removeprefix("error: ").strip())
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def event(self, name: str, level: str = "info", **fields: Any) -> None:
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        line |= {"level": level, "event": name, **shown(fields)}
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()

    def end(self) -> None:
        if self._line:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Generator[None, None, None]:
    """Within it, what goes to standard output and standard error is fit to be shown."""
    out, err = sys.stdout, sys.stderr
    messages = _Guarded(err, data=False)
    messages.json = os.environ.get("CEVAL_SUITE_LOG_FORMAT") == "json"
    sys.stdout, sys.stderr = cast("TextIO", _Guarded(out, data=True)), cast("TextIO", messages)
    try:
        yield
    finally:
        messages.end()
        sys.stdout, sys.stderr = out, err


def raw(stream: TextIO) -> TextIO:
    """The stream below, for who styles what it prints and keeps it clean itself."""
    return stream.stream if isinstance(stream, _Guarded) else stream


def as_json(on: bool) -> None:
    """Have messages be JSON from now on, or not."""
    if isinstance(sys.stderr, _Guarded):
        sys.stderr.json = on


def is_json() -> bool:
    """Whether messages are JSON."""
    return isinstance(sys.stderr, _Guarded) and sys.stderr.json


def event(name: str, **fields: Any) -> None:
    """Something that happened, for programs; nothing where messages are text."""
    if isinstance(sys.stderr, _Guarded) and sys.stderr.json:
        sys.stderr.event(name, **fields)


def one_line(error: BaseException) -> str:
    """An error of other people's code in one line, without credentials."""
    return " ".join(clean(str(error)).split()) or type(error).__name__
