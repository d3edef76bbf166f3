"""Where packed tokens stand in a forward pass, what they see, and what is kept between passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ceval_suite.backends.batching import Node, Pack
from ceval_suite.backends.tiles import Tile, tiles

KV = tuple[torch.Tensor, torch.Tensor]
"""Keys [1, kv heads, N, key width] and values [1, kv heads, N, value width]."""


@dataclass
class Store:
    """Keys and values of the path that is still open, per layer, at their positions in it.

    What a pass adds waits in `fresh` until the whole pass has succeeded, so that a pass that ran
    out of memory half-way can be repeated in smaller pieces.
    """

    longest: int
    kept: dict[int, KV] = field(default_factory=dict[int, KV])
    fresh: dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]] = field(
        default_factory=dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]]
    )

    def expect(self, nodes: Sequence[Node], some: Pack) -> None:
        """The next pass is `some` of the trie `nodes`; of use to those that keep more than this."""

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor, pack: Pack) -> None:
        """Note the keys and values [1, Hk, T, D] of a pass that later ones need."""
        self.fresh[layer] = [
            (at, key[:, :, first:last].clone(), value[:, :, first:last].clone())
            for first, last, at in pack.keep
        ]

    def commit(self) -> None:
        """The pass succeeded: put what it added in its place."""
        for layer, parts in self.fresh.items():
            for at, key, value in parts:
                if layer not in self.kept:
                    self.kept[layer] = (self._room(key), self._room(value))
                for room, part in zip(self.kept[layer], (key, value), strict=True):
                    room[:, :, at : at + part.shape[2]] = part
        self.fresh.clear()

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one kept token takes over all layers."""
        return sum(
            room[:, :, 0].numel() * room.element_size() for kv in self.kept.values() for room in kv
        )

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(*like.shape[:2], self.longest, like.shape[3])


class Layout:
    """One forward pass on a device: where each packed token stands, and what it sees."""

    def __init__(self, pack: Pack, store: Store, device: torch.device) -> None:
        self.pack = pack
        self.store = store
        self.device = device
        self.size = len(pack.tokens)
        self.reach = int(pack.positions.max()) + 1
        self.depth = max((depth for *_, depth in pack.stems), default=0)
        self.blocks = [
            (torch.as_tensor(b.index.ravel(), device=device), *b.index.shape) for b in pack.blocks
        ]
        take = np.empty(self.size, np.int64)
        offset = 0
        for block in pack.blocks:
            take[block.token] = offset + block.row * block.index.shape[1] + block.column
            offset += block.index.size
        # one row in its own order needs no gathering
        rows = sum(len(block.index) for block in pack.blocks)
        self.straight = rows == 1 and bool((take == np.arange(self.size)).all())
        self.take = torch.as_tensor(take, device=device)
        self._tiles: dict[int | None, list[tuple[Tile, Any, torch.Tensor]]] = {}

    @cached_property
    def spans(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Per node: from, to, depth, where its `above` begins; and all of `above`, one by one."""
        pack = self.pack
        first, last = (np.array([path[end] for path in pack.paths], np.int64) for end in (0, 1))
        depth = np.zeros(self.size, np.int64)
        for start, end, deep in pack.stems:
            depth[start:end] = deep
        above = [path[2] for path in pack.paths]
        begin = np.cumsum([0, *map(len, above)], dtype=np.int64)
        return first, last, depth[first], begin, np.concatenate(above)

    def tiles(self, window: int | None) -> list[tuple[Tile, Any, torch.Tensor]]:
        """Tiles, where their columns stand, and what is added to the scores of the last ones."""
        if window not in self._tiles:
            self._tiles[window] = [
                (tile, self._where(tile.columns), self._added(tile.seen))
                for tile in tiles(self.pack, window=window)
            ]
        return self._tiles[window]

    def _where(self, columns: npt.NDArray[np.int64]) -> Any:
        first, last = int(columns[0]), int(columns[-1]) + 1
        if last - first == len(columns):
            return slice(first, last)
        return torch.as_tensor(columns, device=self.device)

    def _added(self, seen: npt.NDArray[np.bool_]) -> torch.Tensor:
        added = torch.zeros(seen.shape, device=self.device)
        return added.masked_fill_(torch.as_tensor(~seen, device=self.device), float("-inf"))


@dataclass(frozen=True)
class Asked:
    """One layer's attention: query [1, H, T, D], key and value [1, Hk, T, D] of T tokens."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    kept: KV | None
    scaling: float | None
    window: int | None = None
    cap: float | None = None
    sinks: torch.Tensor | None = None


@dataclass(frozen=True)
class Call(Asked):
    """The attention of packed tokens."""

    layout: Layout = field(kw_only=True)
