"""run.json and summary.json: replaced in one step, and read only in the shape they are written in.

They may come from anybody: nothing in them is relied on that was not looked at.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from ceval_suite.errors import RunError

FORMAT = 1

BITS = re.compile(r"bits-[0-9a-f]{8}")
"""Names of folders that hold measured texts instead of answered items."""


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that readers never see half of it.

    Raises:
        RunError: the disk is full, or the folder gone or not to be written.
    """
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    try:
        # made anew: a link that somebody left under this name is not followed
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(not_written(path, error)) from error


def not_written(path: Path, error: OSError) -> str:
    """Why a file cannot be written, and what to do."""
    return (
        f"{path}: cannot be written ({error.strerror or error}); make room or let it be written, "
        "and start the same command again: finished records are kept."
    )


class _Run(TypedDict, total=False):
    """What is relied on in run.json; everything else may be anything."""

    format: int
    identity: dict[str, Any]
    task: str
    protocol: str
    split: str
    shots: int
    expected: dict[str, int]
    shots_held: dict[str, int]
    engine: dict[str, Any]
    tokens: dict[str, float]
    seconds: dict[str, float]
    model: dict[str, Any]
    data: dict[str, Any]
    date: str


class _Summary(TypedDict):
    """What is relied on in summary.json."""

    task: str
    model: str
    protocol: str
    split: str
    shots: int
    headline: str
    metrics: dict[str, Any]


SHAPES: Mapping[str, Any] = {"run.json": _Run, "summary.json": _Summary}
"""What the files of a run folder must be like, by their names."""

REMEDIES = {"summary.json": "have it made again by 'ceval-suite rescore {folder}'"}
"""What to do about a broken file; there is nothing that the others could be made of."""


def read_json(path: Path, leave: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object from disk; of a run folder's files, one of the shape they are written in.

    The keys named in `leave` are left out, and cost no time.

    Raises:
        RunError: unreadable, not an object, or of another shape.
    """
    try:
        content = _without(path.read_bytes(), leave) if leave else decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: not readable as JSON ({reason}); {_remedy(path)}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a JSON object; {_remedy(path)}.")
    shape = SHAPES.get(path.name)
    # a folder of measured texts has a summary of its own
    if shape is not None and not BITS.fullmatch(path.parent.name):
        try:
            msgspec.convert(content, shape)
        except msgspec.ValidationError as error:
            raise RunError(
                f"{path}: not as it is written here ({error}); {_remedy(path)}."
            ) from error
    return content


def _remedy(path: Path) -> str:
    remedy = REMEDIES.get(path.name, "put a copy of it back, or delete the run folder")
    return remedy.format(folder=shlex.quote(str(path.parent)))


_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


def _without(content: bytes, leave: Collection[str]) -> Any:
    try:
        raw = _RAW.decode(content)
        return {k: _ANY.decode(v) for k, v in raw.items() if k not in leave}
    except (msgspec.DecodeError, RecursionError):
        return decoded(content)


def decoded(content: bytes) -> Any:
    """JSON, by the quicker parser; what that refuses (NaN, say) is left to the usual one.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.json.decode(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except msgspec.DecodeError:
        return json.loads(content)
