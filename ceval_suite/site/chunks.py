"""Data as scripts: what a page may load from disk, where nothing can be fetched."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST = 500
"""Items of one chunk at most."""

_HARMFUL = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)
"""In JSON these stand in strings alone, so that escapes mean the same."""


def script(name: str, content: Any) -> bytes:
    """A script that hands JSON to the page under a name, whatever the JSON's strings hold.

    `</script>`, `<!--` and line separators are escaped; so are halves of surrogate pairs, which no
    file in UTF-8 can hold. Numbers that JSON does not know (NaN, infinity) are refused.
    """
    both = (
        json.dumps(part, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(
            _HARMFUL
        )
        for part in (name, content)
    )
    return f"CS.data({','.join(both)});\n".encode("utf-8", "backslashreplace")


def write(folder: Path, name: str, content: Any) -> int:
    """Write `data/<name>.js` below the site; returns its size."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(script(name, content))


def spans(counts: Sequence[int], longest: int = LONGEST) -> list[tuple[int, int]]:
    """Chunks as half-open ranges over all items: whole subjects together, long ones cut.

    >>> spans([3, 4, 12, 1], longest=5)
    [(0, 3), (3, 7), (7, 12), (12, 17), (17, 20)]
    """
    out: list[tuple[int, int]] = []
    begun = at = 0
    for count in counts:
        if at > begun and at + count - begun > longest:
            out.append((begun, at))
            begun = at
        at += count
        while at - begun > longest:
            out.append((begun, begun + longest))
            begun += longest
    return [*out, (begun, at)] if at > begun else out


def thousandth(value: float | None) -> int | None:
    """A log-probability or margin as an integer of thousandths; None where there is none."""
    return None if value is None or not math.isfinite(value) else round(value * 1000)


def finite(value: Any) -> Any:
    """The same JSON with null in the place of numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return value


class Numbered:
    """Values stored once, by number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        """The number of a hashable value."""
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
        return self._places[value]


def pattern(text: str, parts: Sequence[str]) -> tuple[str | int, ...]:
    """A text as literal strings and numbers of the parts that stand in it, in the parts' order.

    Putting the parts back gives the text to the letter, so that a page stores them only once.
    """
    out: list[str | int] = []
    at = 0
    for number, part in enumerate(parts):
        found = text.find(part, at) if len(part) > 1 else -1
        if found >= 0:
            out += [text[at:found], number]
            at = found + len(part)
    return (*out, text[at:])


def filled(found: Sequence[str | int], parts: Sequence[str]) -> str:
    """The text of a pattern."""
    return "".join(part if isinstance(part, str) else parts[part] for part in found)


def estimate(found: Mapping[str, Any]) -> list[Any]:
    """[value, low, high, n] of an estimate as it stands in summary.json."""
    return [found["value"], found["low"], found["high"], found["n"]]
