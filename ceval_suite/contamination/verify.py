"""A candidate → a match with its kind and scores, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import rensa
from rapidfuzz.distance import Indel

from ceval_suite.contamination.normal import Array
from ceval_suite.contamination.numbers import same, same_at_ends
from ceval_suite.contamination.targets import HAN, LITTLE, STOCK, Target

Kind: TypeAlias = Literal["exact", "ngram", "part", "near"]

KINDS: dict[Kind, str] = {
    "exact": "the whole text stands there",
    "ngram": "enough of its n-grams stand there",
    "part": "enough of it stands there in one piece",
    "near": "nearly the same text stands there",
}
"""From the surest to the weakest; a match is called by the first that holds."""

RUN = {"zh": 12.5, "en": 30.0}
"""Weight of letters that the longest piece must have to tell by itself."""

INSIDE = 0.7
"""Share of an item that a piece from elsewhere than its beginning must have: phrases that many
texts end with, or names within it, are no sign of it."""

_LATIN = 0.3
"""What a letter that is no Chinese character weighs in a Chinese text: it says less."""

SIMILAR = 0.82
"""Share of letters that must be equal in order (1 - insertions and deletions / letters)."""

COMMON = 0.7
"""Share of its own wording that a near-duplicate must have in pieces: what differs is not just what
tells the item from others."""

SURE = 0.92
"""Similarity that needs no shingles: letters before short options (A, B …) leave few of them."""

SHINGLE = {"zh": 3, "en": 8}
"""Letters of the shingles that MinHash is taken over."""

JACCARD = 0.3
"""MinHash estimate from which on texts are compared letter by letter: with one word or character in
ten changed, shingles of this length have a Jaccard index of about 0.55."""

PERMUTATIONS, SEED = 128, 42

_SLACK = 24
_START, _PIECE = 2, 2
_HOPELESS = 0.4


@dataclass(frozen=True)
class Scores:
    """What was measured: shares in [0, 1], the longest piece in letters; None where not defined."""

    kind: Kind
    ngrams: float | None
    run: int
    run_share: float
    similarity: float
    jaccard: float
    low: int
    high: int


@dataclass(frozen=True)
class Rules:
    """What counts as a match."""

    ngram: int = 13
    threshold: float = 0.5


@dataclass(frozen=True)
class _Known:
    """What is made of a target once: its n-grams with their worth, letter weights, its sketch."""

    target: Target
    grams: list[tuple[str, float]]
    worth: float
    weights: Array
    total: float
    particular: Array
    sketch: Any


class Verifier:
    """Compares passages with targets."""

    def __init__(self, targets: Sequence[Target], rules: Rules) -> None:
        """Targets are named by their place in the list."""
        self._targets = targets
        self._rules = rules
        self._known = lru_cache(4096)(self._prepared)

    def scores(self, number: int, document: str, low: int, high: int) -> Scores | None:
        """How much of a target stands about `low` to `high` of a folded document."""
        known = self._known(number)
        text, weights = known.target.text, known.weights
        passage, around = document[low:high], max(0, low - _SLACK)
        at = document.find(text, around, high + _SLACK)
        ngrams = _share(known, document[around : high + _SLACK])
        told = at >= 0 or (ngrams or 0) >= self._rules.threshold
        similarity = Indel.normalized_similarity(
            text, passage, score_cutoff=None if told else _HOPELESS
        )
        if not told and similarity < _HOPELESS:
            return None
        begin, end = (0, len(text)) if at >= 0 else longest(text, passage)
        own = float(weights[begin:end].sum())
        kind: Kind | None = None
        if at >= 0:
            kind, low, high = "exact", at, at + len(text)
        elif told:
            kind = "ngram"
        elif own >= RUN[known.target.language] and own / known.total >= (
            self._rules.threshold if begin <= _START else max(INSIDE, self._rules.threshold)
        ):
            numbers = same_at_ends(text, begin, end, passage, passage.index(text[begin:end]))
            kind = "part" if numbers else None
        elif similarity < SIMILAR:
            return None
        elif _common(text, passage, known.particular) and same(text, passage):
            kind = "near"
        if kind is None:
            return None
        jaccard = _sketch(passage, SHINGLE[known.target.language]).jaccard(known.sketch)
        if kind == "near" and jaccard < JACCARD and similarity < SURE:
            return None
        high = min(high, len(document))
        share = own / known.total
        return Scores(kind, ngrams, end - begin, share, similarity, jaccard, low, high)

    def _prepared(self, number: int) -> _Known:
        target = self._targets[number]
        weights = letter_weights(target)
        sums = np.append(0.0, np.cumsum(weights)).tolist()
        grams = [
            (target.text[start:end], (sums[end] - sums[start]) / (end - start))
            for start, end in _spans(target, self._rules.ngram)
        ]
        return _Known(
            target,
            grams,
            sum(worth for _, worth in grams),
            weights,
            float(weights.sum()),
            _particular(target, weights),
            _sketch(target.text, SHINGLE[target.language]),
        )


def _common(text: str, passage: str, weights: Array) -> bool:
    """Whether a passage has enough of a text's own wording, letter for letter and in order."""
    pieces = [o for o in Indel.opcodes(text, passage) if o.tag == "equal"]
    shared = sum(
        float(weights[o.src_start : o.src_end].sum())
        for o in pieces
        if o.src_end - o.src_start >= _PIECE
    )
    return shared >= COMMON * float(weights.sum())


def _particular(target: Target, weights: Array) -> Array:
    """The weights without what a question is put in, even where its own words stand beside it."""
    found = weights.copy()
    for stock in STOCK.finditer(target.text) if target.language == "zh" else ():
        found[stock.start() : stock.end()] = LITTLE
    return found


def letter_weights(target: Target) -> Array:
    """The weight of each letter: that of the most particular seed gram that holds it."""
    padded = np.pad(target.weights, target.size - 1)
    found = np.lib.stride_tricks.sliding_window_view(padded, target.size).max(axis=1)
    if target.language == "zh":
        found = found * [1.0 if HAN.match(char) else _LATIN for char in target.text]
    return found


def longest(text: str, other: str) -> tuple[int, int]:
    """Where in `text` the longest piece lies that `other` has too."""
    low, high, found = 0, min(len(text), len(other)), (0, 0)
    while low < high:  # where a piece of some length is common, shorter ones are
        size = (low + high + 1) // 2
        theirs = {other[i : i + size] for i in range(len(other) - size + 1)}
        at = next((i for i in range(len(text) - size + 1) if text[i : i + size] in theirs), None)
        if at is None:
            high = size - 1
        else:
            low, found = size, (at, at + size)
    return found


def _spans(target: Target, n: int) -> list[tuple[int, int]]:
    """Where the n-grams of a target lie: of words in English, of characters in Chinese."""
    if target.language == "zh":
        return [(start, start + n) for start in range(len(target.text) - n + 1)]
    borders = [*target.words.tolist(), len(target.text)]
    return list(zip(borders[:-n], borders[n:], strict=True)) if len(borders) > n else []


def _share(known: _Known, passage: str) -> float | None:
    """The share of a text's n-grams that stand in a passage, each by the weight of its letters."""
    if not known.grams:
        return None
    return sum(worth for gram, worth in known.grams if gram in passage) / known.worth


def _sketch(text: str, size: int) -> Any:
    library: Any = rensa
    found: Any = library.RMinHash(PERMUTATIONS, SEED)
    found.update(sorted({text[i : i + size] for i in range(max(1, len(text) - size + 1))}))
    return found
