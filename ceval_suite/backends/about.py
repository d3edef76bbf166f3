"""What the backends of several workers describe, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def alike(some: Sequence[dict[str, Any]]) -> bool:
    """Whether what decides the last bits of a number is the same in all workers."""
    return all(_numerics(one) == _numerics(some[0]) for one in some)


def merged(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first worker's description, with the sums and the most of all of them."""
    out = {k: v for k, v in some[0].items() if k != "host"}
    for key, merge in _MERGED.items():
        known = [one[key] for one in some if key in one]
        if known:
            out[key] = merge(known)
    return out


def _numerics(about: dict[str, Any]) -> list[Any]:
    return [about.get(key) for key in ("versions", "dtype", "kernels")]


def _most(some: Sequence[dict[str, int] | None]) -> dict[str, int] | None:
    """The largest of each number."""
    known = [one for one in some if one is not None]
    if not known:
        return None
    return {key: max(one.get(key, 0) for one in known) for key in known[0]}


def _sum(some: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(one.get(key, 0) for one in some) for key in some[0]}


_MERGED: dict[str, Callable[[Sequence[Any]], Any]] = {"tokens": _sum, "peak_memory_bytes": _most}
"""Numbers of each worker, and what becomes of them; all else is the first worker's."""
