"""A checkpoint's files written anew without being loaded, a block of rows at a time.

safetensors files cannot be appended to, and the library that writes them wants whole tensors in
memory. Here a header is written by the published format (huggingface/safetensors, README: eight
bytes of length, JSON, the bytes of the tensors without holes) and tensors are streamed behind it;
files in which nothing changes are copied as they are. Nothing is mapped into memory: what is read
is not counted against the process afterwards.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ceval_suite.backends import checkpoint
from ceval_suite.backends.checkpoint import Stored
from ceval_suite.errors import ModelError
from ceval_suite.untrusted import from_json

BLOCK = 2**20
"""Bytes that are read, computed and written at once."""

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Floating types by safetensors' names: those that rows can be computed in."""

NAMES = {dtype: name for name, dtype in FLOATING.items()}

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Rows:
    """The rows of a stored floating tensor, read when asked for; of a vector, one number each."""

    stored: Stored

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stored.shape[0]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.stored.shape[1:])

    @property
    def step(self) -> int:
        """Rows that make up a block."""
        return max(1, BLOCK * self.count // max(1, self.stored.size))

    def between(self, first: int, last: int) -> torch.Tensor:
        """Rows first … last-1, [n, width]."""
        size = self.stored.size // self.count
        with self.stored.file.open("rb") as stream:
            stream.seek(self.stored.start + first * size)
            found = bytearray((last - first) * size)
            stream.readinto(found)
        return self._tensor(found)

    def at(self, indices: Sequence[int]) -> torch.Tensor:
        """Single rows, [n, width]."""
        size = self.stored.size // self.count
        with self.stored.file.open("rb", buffering=0) as stream:
            found = bytearray(len(indices) * size)
            for place, index in enumerate(indices):
                stream.seek(self.stored.start + index * size)
                found[place * size : (place + 1) * size] = stream.read(size)
        return self._tensor(found)

    def blocks(self) -> Iterator[torch.Tensor]:
        """All rows, a block at a time."""
        for first in range(0, self.count, self.step):
            yield self.between(first, min(first + self.step, self.count))

    def _tensor(self, content: bytearray) -> torch.Tensor:
        dtype = FLOATING[self.stored.dtype]
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.reshape(-1, self.width)


@dataclass(frozen=True)
class Grown:
    """What a tensor becomes: its number of rows, and they themselves, a block at a time.

    They come in the dtype that is to be written.
    """

    rows: int
    blocks: Callable[[], Iterator[torch.Tensor]]


def rewrite(
    source: Path, folder: Path, grown: Mapping[str, Grown], dtype: torch.dtype | None = None
) -> dict[str, int]:
    """Write the weights of a checkpoint to `folder`, some tensors grown, the others as they are.

    A `dtype` converts every floating tensor. Files keep their names and what they hold.

    Returns:
        How many files were copied and how many written anew.

    Raises:
        ModelError: a broken file, or a number that the dtype cannot hold.
    """
    done = {"files_copied": 0, "files_rewritten": 0}
    for file in checkpoint.weight_files(source):
        found = checkpoint.safetensors(file)
        if any(name in grown or _changes(tensor, dtype) for name, tensor in found.items()):
            _write(found, folder / file.name, _opening(file), grown, dtype)
            done["files_rewritten"] += 1
        else:
            shutil.copyfile(file, folder / file.name)
            done["files_copied"] += 1
    if (source / INDEX).is_file():
        _index(source, folder)
    return done


def write_whole(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    one: Callable[[str], torch.Tensor],
) -> None:
    """Write a file of tensors of one dtype, each made when its turn comes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        offsets = [offset, offset + size]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            _put(stream, one(name))


def contents(tensor: Stored, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
    """The numbers of a stored tensor as they are to be written, a block at a time.

    What is not floating comes as bytes.

    Raises:
        ModelError: a number that the dtype cannot hold.
    """
    width = tensor.size // max(1, tensor.parameters)
    if dtype is None or not _changes(tensor, dtype):
        # as many numbers as of a converted tensor, so that both can be compared
        step = BLOCK // 4 * max(1, width)
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            for first in range(0, tensor.size, step):
                some = bytearray(min(step, tensor.size - first))
                stream.readinto(some)
                yield torch.frombuffer(some, dtype=torch.uint8)
        return
    count, step = tensor.parameters, BLOCK // 4
    flat = Rows(Stored(tensor.file, (count,), tensor.dtype, tensor.start, tensor.size))
    for first in range(0, count, step):
        block = flat.between(first, min(first + step, count))
        yield narrowed(block, dtype, tensor.file)


def narrowed(block: torch.Tensor, dtype: torch.dtype | None, file: Path) -> torch.Tensor:
    """A block in a dtype, or as it is for none.

    Raises:
        ModelError: a finite number that is not finite in that dtype.
    """
    if dtype is None or block.dtype == dtype:
        return block
    found = block.to(dtype)
    if bool((found.isfinite() != block.isfinite()).any()):
        raise ModelError(
            f"{file}: {float(block.abs().nan_to_num(0).max()):g} is too large for "
            f"{name(dtype)}; use bfloat16, or leave --dtype out."
        )
    return found


def name(dtype: torch.dtype) -> str:
    """What config.json calls a dtype."""
    return str(dtype).removeprefix("torch.")


def _changes(tensor: Stored, dtype: torch.dtype | None) -> bool:
    return dtype is not None and tensor.dtype in FLOATING and FLOATING[tensor.dtype] != dtype


def _write(
    found: Mapping[str, Stored],
    file: Path,
    opening: tuple[int, Mapping[str, str]],
    grown: Mapping[str, Grown],
    dtype: torch.dtype | None,
) -> None:
    start, metadata = opening
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    # the widest numbers first: each tensor then begins at a multiple of its own numbers' width
    names = sorted(found, key=lambda name: -_width(found[name], dtype))
    for name in names:
        tensor = found[name]
        shape = list(tensor.shape)
        if name in grown:
            shape[0] = grown[name].rows
        changed = name in grown or _changes(tensor, dtype)
        size = math.prod(shape) * _width(tensor, dtype) if changed else tensor.size
        kind = NAMES[dtype] if dtype is not None and _changes(tensor, dtype) else tensor.dtype
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, ensure_ascii=False).encode()
    # blanks are allowed behind it: numbers that begin where they did in a line of the processor's
    # cache are multiplied in the same order once they are mapped, and give the same bits
    text += b" " * ((start - 8 - len(text)) % 64)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            blocks = grown[name].blocks() if name in grown else contents(found[name], dtype)
            for block in blocks:
                _put(stream, block)
        if stream.tell() != 8 + len(text) + offset:
            raise ModelError(f"{file}: came out longer or shorter than its header; report this.")
        stream.flush()
        os.fsync(stream.fileno())


def _width(tensor: Stored, dtype: torch.dtype | None) -> int:
    if dtype is not None and _changes(tensor, dtype):
        return dtype.itemsize
    return tensor.size // max(1, tensor.parameters)


def _put(stream: BinaryIO, block: torch.Tensor) -> None:
    stream.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _opening(file: Path) -> tuple[int, dict[str, str]]:
    """Where the numbers of a file begin, and what it says of itself."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        found: Any = from_json(stream.read(length)).get("__metadata__")
    # transformers reads no file that does not say whose tensors it holds
    return 8 + length, {"format": "pt"} | (found or {})


def _index(source: Path, folder: Path) -> None:
    """The index beside shards, with the sizes that they have now."""
    content: dict[str, Any] = from_json((source / INDEX).read_bytes())
    found = checkpoint.tensors(folder)
    metadata = dict(content.get("metadata") or {})
    metadata["total_size"] = sum(tensor.size for tensor in found.values())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(tensor.parameters for tensor in found.values())
    text = json.dumps({**content, "metadata": metadata}, indent=2) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
