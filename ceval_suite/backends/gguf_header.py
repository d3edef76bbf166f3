"""Walks a GGUF header and says how long the file must be: milliseconds, where a full reader takes
seconds over a tokenizer's hundred thousand strings.

Format: ggml-org/ggml docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ceval_suite.errors import ModelError

# bytes of the scalar value types; 8 is a string, 9 an array
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LAYOUTS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_LIMIT = 2**40
"""No count or length in a real header reaches this: larger ones are garbage."""


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: rows first in `shape`, quantisation type, first byte and bytes in the file."""

    shape: tuple[int, ...]
    type: str
    start: int
    size: int


@dataclass
class GGUFHeader:
    """What a GGUF file says of itself; of an array in `metadata` only its length is kept."""

    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    tensors: dict[str, GGUFTensor] = field(default_factory=dict[str, GGUFTensor])
    needed: int = 0


def check_gguf(path: Path) -> GGUFHeader:
    """The header of a GGUF file that starts right and holds all the tensors its table names.

    Raises:
        ModelError: wrong first bytes, a broken table, or fewer bytes than it promises.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (wrong first bytes); fetch it again.")
        try:
            header = _header(stream)
        except (struct.error, KeyError, OverflowError, ValueError) as error:
            raise ModelError(f"{path}: truncated or broken GGUF header; fetch it again.") from error
    size = path.stat().st_size
    if size < header.needed:
        raise ModelError(
            f"{path}: truncated GGUF file ({size} bytes where its table needs {header.needed}); "
            "fetch it again."
        )
    return header


def _header(stream: BinaryIO) -> GGUFHeader:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version, tensors, pairs = _read(stream, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    header = GGUFHeader()
    for _ in range(pairs):
        key = _string(stream).decode("utf-8", "replace")
        (kind,) = _read(stream, "<I")
        header.metadata[key] = _value(stream, kind)
    table: list[tuple[str, tuple[int, ...], str, int, int]] = []
    for _ in range(tensors):
        name = _string(stream).decode("utf-8", "replace")
        (dims,) = _read(stream, "<I")
        shape = _read(stream, f"<{dims}Q")
        kind, offset = _read(stream, "<IQ")
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        size = math.prod(shape) // block * width
        # ggml names the fastest dimension first
        table.append((name, shape[::-1], GGMLQuantizationType(kind).name, offset, size))
    alignment = header.metadata.get("general.alignment", 32)
    start = math.ceil(stream.tell() / int(alignment)) * int(alignment)
    for name, shape, kind, offset, size in table:
        header.tensors[name] = GGUFTensor(shape, kind, start + offset, size)
        header.needed = max(header.needed, start + offset + size)
    header.needed = header.needed or start
    return header


def _read(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _string(stream: BinaryIO) -> bytes:
    (length,) = _read(stream, "<Q")
    if length > 2**20:
        raise ValueError("a string longer than any key or name")
    return stream.read(length)


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        (length,) = _read(stream, "<Q")
        if length <= 2**20:
            return stream.read(length).decode("utf-8", "replace")
        stream.seek(min(length, _LIMIT), 1)
        return None
    if kind != _ARRAY:
        return _read(stream, f"<{_LAYOUTS[kind]}")[0]
    inner, count = _read(stream, "<IQ")
    if inner in _SIZES:
        stream.seek(min(count, _LIMIT) * _SIZES[inner], 1)
        return count
    for _ in range(count):
        if inner == _STRING:
            (length,) = _read(stream, "<Q")
            stream.seek(min(length, _LIMIT), 1)
        else:
            _value(stream, inner)
    return count
