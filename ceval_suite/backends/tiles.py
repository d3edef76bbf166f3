"""Packed tokens in tiles, for attention by matrix products: pure planning, no torch.

A tile is a run of packed tokens below one kept head. Its scores fill a dense matrix: columns for
the kept tokens, which all of them see, and for the few packed ones that some of them see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ceval_suite.backends.batching import Pack

TILE = 192
"""Packed tokens of a tile at most. Longer tiles see more columns that are not theirs, shorter ones
cost more steps."""


@dataclass(slots=True)
class Tile:
    """Packed tokens `first` to `last - 1` and what they look at.

    Columns are the kept tokens `start` to `depth - 1`, then the packed tokens `columns`. `seen`
    [last - first, n] covers the last n of them; all see what stands before.
    """

    first: int
    last: int
    start: int
    depth: int
    columns: npt.NDArray[np.int64]
    seen: npt.NDArray[np.bool_]


def tiles(pack: Pack, size: int = TILE, window: int | None = None) -> list[Tile]:
    """A pack in tiles of at most `size` tokens; with a `window`, only so far back is seen."""
    depth = np.zeros(len(pack.tokens), np.int64)
    for first, last, deep in pack.stems:
        depth[first:last] = deep
    out: list[Tile] = []
    pieces: list[tuple[int, int, int, npt.NDArray[np.int64]]] = []
    begun = 0
    for first, last, above in pack.paths:
        at = first
        while at < last:
            if pieces and (at - begun >= size or depth[at] != depth[begun]):
                out.append(_tile(pack, pieces, int(depth[begun]), window))
                pieces = []
            begun = begun if pieces else at
            end = min(last, begun + size)
            pieces.append((at, end, first, above))
            at = end
    return [*out, _tile(pack, pieces, int(depth[begun]), window)]


def _tile(
    pack: Pack,
    pieces: list[tuple[int, int, int, npt.NDArray[np.int64]]],
    depth: int,
    window: int | None,
) -> Tile:
    """One tile of pieces (from, to, where the path's own node begins, what stands above it)."""
    first, last = pieces[0][0], pieces[-1][1]
    runs = [part for _, end, own, above in pieces for part in (above, np.arange(own, end))]
    columns = np.unique(np.concatenate(runs))
    seen = np.zeros((last - first, len(columns)), bool)
    for at, end, own, above in pieces:
        rows = seen[at - first : end - first]
        rows[:, np.searchsorted(columns, above)] = True
        place = np.searchsorted(columns, own)
        rows[:, place : place + end - own] = np.arange(own, end) <= np.arange(at, end)[:, None]
    if window is None:
        return Tile(first, last, 0, depth, columns, seen)
    mine = pack.positions[first:last]
    start = min(depth, max(0, int(mine.min()) - window + 1))
    there = np.concatenate([np.arange(start, depth), pack.positions[columns]])
    seen = np.concatenate([np.ones((last - first, depth - start), bool), seen], axis=1)
    return Tile(first, last, start, depth, columns, seen & (mine[:, None] - there < window))
