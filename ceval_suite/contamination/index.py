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

from ceval_suite.contamination.normal import Array, grams_of
from ceval_suite.contamination.targets import PARTICULAR, SEED, SEEDS, Target, han

_SPARSE = 32
"""Bits of the bitmap per gram: some 2 to 3 % of other grams pass by chance."""


_CROWDED = 2
"""Buckets of the sorted grams per gram, at least: most hold none or one."""


@dataclass(frozen=True)
class Index:
    """The seed grams of one language.

    `keys` are sorted, and `buckets` says where those with the same first bits begin; those of
    entry k stand at `starts[k]` to `starts[k + 1]` of `owners` (the target's place in the list),
    `places` (where in its text) and `weights`.
    """

    size: int
    bits: Array
    buckets: Array
    keys: Array
    starts: Array
    owners: Array
    places: Array
    weights: Array

    def hits(self, hashes: Array) -> tuple[Array, Array]:
        """Positions at which a seed gram begins, and which entry it is."""
        slot = hashes >> np.uint64(64 - (len(self.bits) * 8).bit_length() + 1)
        low = slot.astype(np.uint8)
        low &= np.uint8(7)
        slot >>= np.uint64(3)
        byte = self.bits.take(slot.view(np.int64))
        byte >>= low
        byte &= np.uint8(1)
        at = np.flatnonzero(byte)
        wanted = hashes[at]
        bucket = (wanted >> np.uint64(64 - (len(self.buckets) - 1).bit_length() + 1)).view(np.int64)
        entry, end = self.buckets[bucket], self.buckets[bucket + 1]
        found = np.full(len(at), -1, np.int64)
        open_ = np.flatnonzero(entry < end)
        while len(open_):
            one = entry[open_]
            same = self.keys[one] == wanted[open_]
            found[open_[same]] = one[same]
            entry[open_] += 1
            open_ = open_[~same & (one + 1 < end[open_])]
        real = np.flatnonzero(found >= 0)
        return at[real], found[real]


def build(targets: Sequence[Target], language: str) -> Index | None:
    """The index of those targets of a language that can be told; None where there are none."""
    mine = [n for n, t in enumerate(targets) if not t.reason and t.language == language]
    if not mine:
        return None
    codes = [np.frombuffer(targets[n].text.encode("utf-32-le"), "<u4") for n in mine]
    every, owners, places = grams_of(codes, SEED[language])
    weights = np.concatenate([targets[n].weights for n in mine])
    wanted = weights == 1.0
    if language == "zh":
        wanted &= _chinese(codes, owners, places, wanted)
    at = _thinned(np.flatnonzero(wanted), owners)
    every, owners, places = every[at], np.array(mine)[owners[at]], places[at]
    order = np.argsort(every, kind="stable")
    keys, starts = np.unique(every[order], return_index=True)
    width = max(16, math.ceil(math.log2(max(1, len(keys)) * _SPARSE)))
    bits = np.zeros(2**width, np.bool_)
    bits[keys >> np.uint64(64 - width)] = True
    narrow = max(8, math.ceil(math.log2(max(1, len(keys)) * _CROWDED)))
    firsts = np.arange(2**narrow, dtype=np.uint64) << np.uint64(64 - narrow)
    return Index(
        size=SEED[language],
        bits=np.packbits(bits, bitorder="little"),
        buckets=np.append(np.searchsorted(keys, firsts), len(keys)).astype(np.int32),
        keys=keys,
        starts=np.append(starts, len(every)),
        owners=owners[order],
        places=places[order],
        weights=weights[at][order],
    )


def _chinese(codes: Sequence[Array], owners: Array, places: Array, wanted: Array) -> Array:
    """Seeds with a Chinese character; all of a text's where too few have one.

    Five letters of a formula or a foreign word stand in many texts, five with a character do not.
    """
    lengths = np.array([*map(len, codes)])
    sums = np.append(0, np.cumsum(han(np.concatenate(codes))))
    at = (np.cumsum(lengths) - lengths)[owners] + places
    found = sums[at + SEED["zh"]] > sums[at]
    few = np.bincount(owners, found & wanted, len(codes)) < PARTICULAR["zh"]
    return found | few[owners]


def _thinned(at: Array, owners: Array) -> Array:
    """Not all seeds of a long text, but each first, third, fifth …: an odd number goes with any
    `STEP` of the corpus.
    """
    owner = owners[at]
    many = np.bincount(owner)
    rank = np.arange(len(at)) - (np.cumsum(many) - many)[owner]
    return at[rank % (many // SEEDS | 1)[owner] == 0]


_ARRAYS = ("bits", "buckets", "keys", "starts", "owners", "places", "weights")


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
            name: np.load(folder / f"{number}-{name}.npy", mmap_mode="r").view(np.ndarray)
            for name in _ARRAYS
        }
        indexes.append(Index(size=size, **arrays))
    return Stored(packed), lengths, indexes
