"""Seed grams of all targets, to be looked up by the million.

A bitmap says of nearly every position of a text that nothing begins there; what passes is looked
up in a sorted array. Files that workers map into memory hold both once, however many there are.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ceval_suite.contamination.normal import Array, grams
from ceval_suite.contamination.targets import SEED, SEEDS, Target

_SPARSE = 48
"""Bits of the bitmap per gram: some 1 to 2 % of other grams pass by chance."""


@dataclass(frozen=True)
class Index:
    """The seed grams of one language.

    `keys` are sorted; those of entry k stand at `starts[k]` to `starts[k + 1]` of `owners` (the
    target's place in the list), `places` (where in its text) and `weights`.
    """

    size: int
    bits: Array
    keys: Array
    starts: Array
    owners: Array
    places: Array
    weights: Array

    def hits(self, hashes: Array) -> tuple[Array, Array]:
        """Positions at which a seed gram begins, and which entry it is."""
        shift = np.uint64(64 - (len(self.bits) * 8).bit_length() + 1)
        slot = hashes >> shift
        byte = self.bits.take((slot >> np.uint64(3)).view(np.int64))
        byte >>= slot.astype(np.uint8) & np.uint8(7)
        byte &= np.uint8(1)
        at = np.flatnonzero(byte)
        wanted = hashes[at]
        order = np.argsort(wanted)  # in order, one search begins where the last one ended
        entry = np.empty(len(at), np.int64)
        entry[order] = np.searchsorted(self.keys, wanted[order])
        entry[entry == len(self.keys)] = 0
        real = self.keys[entry] == wanted
        return at[real], entry[real]


def build(targets: Sequence[Target], language: str) -> Index | None:
    """The index of those targets of a language that can be told; None where there are none."""
    hashes: list[Array] = []
    owners: list[Array] = []
    places: list[Array] = []
    weights: list[Array] = []
    for number, target in enumerate(targets):
        if target.reason or target.language != language:
            continue
        at = _chosen(target)
        codes = np.frombuffer(target.text.encode("utf-32-le"), "<u4")
        hashes.append(grams(codes, SEED[language])[at])
        owners.append(np.full(len(at), number, np.int64))
        places.append(at)
        weights.append(target.weights[at])
    if not hashes:
        return None
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    keys, starts = np.unique(every[order], return_index=True)
    width = max(16, math.ceil(math.log2(len(keys) * _SPARSE)))
    bits = np.zeros(2 ** (width - 3), np.uint8)
    slots = keys >> np.uint64(64 - width)
    np.bitwise_or.at(
        bits, (slots >> np.uint64(3)).astype(np.int64), np.uint8(1) << (slots & 7).astype(np.uint8)
    )
    return Index(
        size=SEED[language],
        bits=bits,
        keys=keys,
        starts=np.append(starts, len(every)),
        owners=np.concatenate(owners)[order],
        places=np.concatenate(places)[order],
        weights=np.concatenate(weights)[order],
    )


def _chosen(target: Target) -> Array:
    """Places of the seeds that are looked for: not the common ones, and not all of a long text's.

    Any choice is right: a text under search is looked up at every position.
    """
    at = np.flatnonzero(target.weights == 1.0)
    return at[:: max(1, -(-len(at) // SEEDS))]


_ARRAYS = ("bits", "keys", "starts", "owners", "places", "weights")


class Stored(Sequence[Target]):
    """Targets that are unpacked when they are asked for: a worker needs few of them."""

    def __init__(self, packed: Sequence[bytes]) -> None:
        """Each as it was pickled."""
        self._packed = packed

    @overload
    def __getitem__(self, at: int) -> Target: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Target]: ...
    def __getitem__(self, at: int | slice) -> Target | Sequence[Target]:
        """One of them, or a part."""
        if isinstance(at, slice):
            return Stored(self._packed[at])
        found: Target = pickle.loads(self._packed[at])  # noqa: S301  (written by `save`)
        return found

    def __len__(self) -> int:
        """How many there are."""
        return len(self._packed)


def save(folder: Path, targets: Sequence[Target], indexes: Sequence[Index]) -> None:
    """Write all that a worker needs."""
    for number, index in enumerate(indexes):
        for name in _ARRAYS:
            np.save(folder / f"{number}-{name}.npy", getattr(index, name))
    sizes = [index.size for index in indexes]
    lengths = np.array([len(target.text) for target in targets], np.int64)
    content = ([pickle.dumps(target) for target in targets], sizes, lengths)
    (folder / "targets.pickle").write_bytes(pickle.dumps(content))


def load(folder: Path) -> tuple[Stored, Array, list[Index]]:
    """Targets, their lengths, indexes: what `save` of this very program wrote; arrays mapped."""
    content = (folder / "targets.pickle").read_bytes()
    found: tuple[list[bytes], list[int], Array] = pickle.loads(content)  # noqa: S301
    packed, sizes, lengths = found
    indexes: list[Index] = []
    for number, size in enumerate(sizes):
        arrays: dict[str, Any] = {
            name: np.load(folder / f"{number}-{name}.npy", mmap_mode="r") for name in _ARRAYS
        }
        indexes.append(Index(size=size, **arrays))
    return Stored(packed), lengths, indexes
