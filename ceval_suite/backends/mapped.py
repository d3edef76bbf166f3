"""Weights that lie in mapped files: given back to the system as soon as a layer has used them.

A file's pages count as memory of the process from when they are read until they are let go, which
costs nothing but a look into the system's cache the next time. A forward pass then needs as much
memory for a large model as for its largest layer.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MAPS = Path("/proc/self/maps")


def let_go_after_use(model: Any) -> int:
    """Have each module of a model in mapped files let its pages go; the bytes this concerns.

    Zero where nothing is mapped, or where the system does not say what is.
    """
    files = list(_files())
    total = 0
    for module in model.modules():
        ranges: list[tuple[int, int]] = []
        for weight in module.parameters(recurse=False):
            found = _range(weight, files)
            if found is not None:
                ranges.append(found)
        if ranges:
            total += sum(length for _, length in ranges)
            module.register_forward_hook(_drop(ranges))
    return total


def _files() -> Iterator[tuple[int, int]]:
    """Where unwritten safetensors files lie in memory, as first address and the one behind."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        place, _, _, _, inode, *name = line.split(maxsplit=5)
        # what is not of a file would be lost
        if inode != "0" and name and name[0].endswith(".safetensors"):
            first, last = place.split("-")
            yield int(first, 16), int(last, 16)


def _range(weight: torch.Tensor, files: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The whole pages of a weight that lies in one file, as address and length."""
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    start = weight.data_ptr()
    end = start + weight.numel() * weight.element_size()
    if not any(first <= start and end <= last for first, last in files):
        return None
    page = mmap.PAGESIZE
    first = -(-start // page) * page
    length = end // page * page - first
    return (first, length) if length > 0 else None


def _drop(ranges: list[tuple[int, int]]) -> Any:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def hook(*_: Any) -> None:
        for first, length in ranges:
            advise(first, length, mmap.MADV_DONTNEED)

    return hook
