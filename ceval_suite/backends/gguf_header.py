"""Walks a GGUF header and says how long the file must be: milliseconds, where a full reader takes
seconds over a tokenizer's hundred thousand strings.

Format: ggml-org/ggml docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from ceval_suite.errors import ModelError

# bytes of the scalar value types; 8 is a string, 9 an array
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_LIMIT = 2**40
"""No count or length in a real header reaches this: larger ones are garbage."""


def check_gguf(path: Path) -> None:
    """A GGUF file that starts right and holds all the tensors its table names.

    Raises:
        ModelError: wrong first bytes, a broken table, or fewer bytes than it promises.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (wrong first bytes); fetch it again.")
        try:
            needed = _needed(stream)
        except (struct.error, KeyError, OverflowError, ValueError) as error:
            raise ModelError(f"{path}: truncated or broken GGUF header; fetch it again.") from error
    size = path.stat().st_size
    if size < needed:
        raise ModelError(
            f"{path}: truncated GGUF file ({size} bytes where its table needs {needed}); fetch it "
            "again."
        )


def _needed(stream: BinaryIO) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version, tensors, pairs = _read(stream, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    alignment = 32
    for _ in range(pairs):
        key = _string(stream)
        (kind,) = _read(stream, "<I")
        if key == b"general.alignment" and kind == 4:
            (alignment,) = _read(stream, "<I")
        else:
            _skip(stream, kind)
    end = 0
    for _ in range(tensors):
        _string(stream)
        (dims,) = _read(stream, "<I")
        shape = _read(stream, f"<{dims}Q")
        kind, offset = _read(stream, "<IQ")
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        end = max(end, offset + math.prod(shape) // block * width)
    start = math.ceil(stream.tell() / alignment) * alignment
    return start + end


def _read(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _string(stream: BinaryIO) -> bytes:
    (length,) = _read(stream, "<Q")
    if length > 2**20:
        raise ValueError("a string longer than any key or name")
    return stream.read(length)


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        (length,) = _read(stream, "<Q")
        stream.seek(min(length, _LIMIT), 1)
    elif kind == _ARRAY:
        inner, count = _read(stream, "<IQ")
        if inner in _SIZES:
            stream.seek(min(count, _LIMIT) * _SIZES[inner], 1)
        else:
            for _ in range(count):
                _skip(stream, inner)
    else:
        stream.seek(_SIZES[kind], 1)
