"""Writing token after token for many rows at once: what is kept of each row, and the attention.

Rows that are written together share a stem, whose keys and values are kept once, and have a tail
each. A step adds one token to every row that is still written: it attends to the stem, to its own
tail and to itself. The stem is read once for all rows of the step, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ceval_suite.backends.batching import Node, Pack
from ceval_suite.backends.layout import KV, Asked, Store


@dataclass
class Tails:
    """Keys and values of each row from the stem on, per layer: [rows, kv heads, room, width].

    Rows that are still written stand first; `slots` names who has which place.
    """

    slots: list[int]
    room: int
    kept: dict[int, KV] = field(default_factory=dict[int, KV])

    def put(self, layer: int, slot: int, at: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Note keys and values [kv heads, T, width] of one row from place `at` on."""
        if layer not in self.kept:
            self.kept[layer] = (self._empty(key), self._empty(value))
        for room, part in zip(self.kept[layer], (key, value), strict=True):
            room[slot, :, at : at + part.shape[1]] = part

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # what is not yet written is masked, but no mask hides what is not a number
        return like.new_zeros(len(self.slots), like.shape[0], self.room, like.shape[2])

    def drop(self, slot: int) -> None:
        """A row has come to its end: the last one takes its place."""
        last = len(self.slots) - 1
        if slot != last:
            for kv in self.kept.values():
                for room in kv:
                    room[slot].copy_(room[last])
            self.slots[slot] = self.slots[last]
        self.slots.pop()


@dataclass
class Catching(Store):
    """A store that also catches the tails of rows, and the whole stem, as passes compute them.

    The nodes that hold a read at the last token of row k are found by its slot (k, …).
    """

    stem: int = 0
    tails: Tails = field(default_factory=lambda: Tails([], 0))
    _plan: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])

    def expect(self, nodes: Sequence[Node], some: Pack) -> None:
        """Work out which packed tokens belong to which row; -1 is the stem."""
        owners: dict[int, set[int]] = {}
        for index in range(some.first, len(nodes)):
            rows = {read.slot[0] for read in nodes[index].reads}
            at = index
            while rows and at >= some.first:
                if at < some.last:
                    owners.setdefault(at, set()).update(rows)
                at = nodes[at].parent
        self._plan = []
        offset = 0
        for index in range(some.first, some.last):
            node = nodes[index]
            cut = min(max(self.stem - node.start, 0), len(node.tokens))
            if cut:
                self._plan.append((offset, offset + cut, -1, node.start))
            if cut < len(node.tokens):
                start = node.start + cut - self.stem
                ends = (offset + cut, offset + len(node.tokens))
                self._plan += [(*ends, row, start) for row in sorted(owners.get(index, ()))]
            offset += len(node.tokens)

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor, pack: Pack) -> None:
        """Note what later passes need, the stem, and the tails [1, Hk, T, D]."""
        super().add(layer, key, value, pack)
        slots = {row: slot for slot, row in enumerate(self.tails.slots)}
        for first, last, row, at in self._plan:
            k, v = key[0, :, first:last], value[0, :, first:last]
            if row < 0:
                self.fresh[layer].append((at, k[None].clone(), v[None].clone()))
            else:
                # a pass that is repeated writes the same again
                self.tails.put(layer, slots[row], at, k, v)


class Step:
    """One token for each row that is still written: where it stands, and what it sees.

    `lengths` are the tokens of each row's tail before this step.
    """

    def __init__(self, store: Catching, lengths: Sequence[int], device: torch.device) -> None:
        self.store = store
        self.size = len(lengths)
        self._longest = max(lengths) + 1
        self.reach = store.stem + self._longest
        self._slots = torch.arange(self.size, device=device)
        self._at = torch.tensor(lengths, device=device)
        self.positions = self._at + store.stem
        places = torch.arange(self._longest, device=device)
        self._unseen = places[None] > self._at[:, None]
        self._masks: dict[int | None, torch.Tensor] = {}
        self._equal = bool((np.asarray(lengths) == lengths[0]).all())

    def attend(self, layer: int, call: Asked) -> torch.Tensor:
        """query [1, H, A, D] of one new token a row → [1, A, H, D]."""
        rows, longest, stem = self.size, self._longest, self.store.stem
        keys, values = self.store.tails.kept[layer]
        heads = keys.shape[1]
        keys[self._slots, :, self._at] = call.key[0].transpose(0, 1)
        values[self._slots, :, self._at] = call.value[0].transpose(0, 1)
        query = call.query[0].transpose(0, 1).unflatten(1, (heads, -1))  # [A, Hk, G, D]
        groups, width = query.shape[2:]
        scale = call.scaling if call.scaling is not None else width**-0.5
        # one product reads the stem for all rows: their queries stand one below the other
        flat = query.transpose(0, 1).flatten(1, 2)  # [Hk, A·G, D]
        own = query @ keys[:rows, :, :longest].transpose(2, 3)  # [A, Hk, G, L]
        parts = [own]
        if stem:
            assert call.kept is not None
            shared = flat @ call.kept[0][0, :, :stem].transpose(1, 2)  # [Hk, A·G, S]
            parts.insert(0, shared.unflatten(1, (rows, groups)).transpose(0, 1))
        scores = torch.cat(parts, -1).float() * scale
        if call.cap is not None:
            scores = torch.tanh(scores / call.cap) * call.cap
        mask = self._mask(call.window)
        if mask is not None:
            scores += mask
        if call.sinks is not None:
            sinks = call.sinks.unflatten(0, (heads, groups))[None, :, :, None].float()
            scores = torch.cat([scores, sinks.expand(rows, -1, -1, -1)], -1)
        shares = scores.softmax(-1).to(call.value.dtype)
        out = shares[..., stem : stem + longest] @ values[:rows, :, :longest]
        if stem:
            assert call.kept is not None
            head = shares[..., :stem].transpose(0, 1).flatten(1, 2)
            found = head @ call.kept[1][0, :, :stem]
            out = out + found.unflatten(1, (rows, groups)).transpose(0, 1)
        return out.flatten(1, 2)[None]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        """What is added to scores [A, 1, 1, S + L]; None where every row sees all."""
        if window is None and self._equal:
            return None
        if window not in self._masks:
            unseen = torch.nn.functional.pad(self._unseen, (self.store.stem, 0))
            if window is not None:
                everywhere = torch.arange(unseen.shape[1], device=unseen.device)
                unseen = unseen | (everywhere[None] <= self.positions[:, None] - window)
            added = torch.zeros(unseen.shape, device=unseen.device)
            self._masks[window] = added.masked_fill_(unseen, float("-inf"))[:, None, None]
        return self._masks[window]
