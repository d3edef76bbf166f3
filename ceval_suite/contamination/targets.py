"""Items → what is looked for: a text long and particular enough to tell, or the reason why not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ceval_suite.contamination.normal import Array, as_text, folded, grams
from ceval_suite.schema import Item

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
CHINESE = 0.25
"""A text is searched as Chinese from this share of Chinese characters among its letters on."""

SEED = {"zh": 5, "en": 12}
"""Characters of the short grams that candidates are found by: with one word or character in ten
changed, more than half of them are still there."""

LEAST = {"zh": 12, "en": 40}
"""Letters that a text must have to be told from chance."""

PARTICULAR = {"zh": 6.0, "en": 20.0}
"""Grams of their own that a text must have: what several items share counts by a fraction."""

SHARED = 3
"""Items from which on a gram is common to them: it then counts 1 / (items that have it)."""

COMMON = 16
"""Items from which on a gram is no longer looked for at all."""

SEEDS = 96
"""Grams that are looked for per item, spread evenly over a longer text."""


@dataclass(frozen=True)
class Target:
    """What is looked for of an item: its question or, where that says too little, with options.

    `text` is folded, `weights` the weight of each of its seed grams. `words` are the places in
    `text` at which a word begins. `reason` says why an item cannot be told, else it is empty.
    """

    id: str
    task: str
    language: str
    basis: str
    shown: str
    text: str
    words: tuple[int, ...]
    weights: Array = field(repr=False)
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    reason: str = ""

    @property
    def size(self) -> int:
        """Characters of a seed gram."""
        return SEED[self.language]


@dataclass(frozen=True)
class _Text:
    """A text of an item, folded."""

    basis: str
    shown: str
    language: str
    codes: Array
    words: tuple[int, ...]
    seeds: Array


def of_items(items: Iterable[tuple[str, Item]]) -> list[Target]:
    """The target of each (task, item), in order; those that share an id are one."""
    texts = {item.id: (task, item, _texts(item)) for task, item in items}
    holders = _holders([found for _, _, found in texts.values()])
    return [_target(task, item, found, holders) for task, item, found in texts.values()]


def _texts(item: Item) -> list[_Text]:
    """The texts an item can be told by, the shortest first."""
    shown = [("question", item.question)]
    if item.options:
        shown.append(("question and options", "\n".join([item.question, *item.options])))
    return [_text(basis, text) for basis, text in shown]


def _text(basis: str, shown: str) -> _Text:
    found = folded(shown)
    text = found.text
    language = "zh" if text and len(HAN.findall(text)) / len(text) >= CHINESE else "en"
    # a word begins where something was left out between two letters that are kept
    gaps = np.flatnonzero(np.diff(found.at) > 1) + 1
    words = (0, *gaps.tolist()) if text else ()
    return _Text(basis, shown, language, found.codes, words, grams(found.codes, SEED[language]))


def _holders(texts: Sequence[Sequence[_Text]]) -> dict[str, tuple[Array, Array]]:
    """How many items have each seed gram, by language: sorted grams and their counts."""
    found: defaultdict[str, list[Array]] = defaultdict(list)
    for item in texts:
        whole = item[-1]  # holds all grams of the shorter ones
        found[whole.language].append(np.unique(whole.seeds))
        found[item[0].language] += [] if item[0].language == whole.language else [item[0].seeds]
    return {
        language: np.unique(np.concatenate(parts), return_counts=True)
        for language, parts in found.items()
    }


def _weights(text: _Text, holders: dict[str, tuple[Array, Array]]) -> Array:
    grams, counts = holders.get(text.language, (np.empty(0), np.empty(0)))
    if not len(text.seeds):
        return np.empty(0, np.float32)
    many = counts[np.searchsorted(grams, text.seeds)]
    return np.where(many < SHARED, 1.0, 1.0 / many).astype(np.float32)


def _target(
    task: str, item: Item, texts: Sequence[_Text], holders: dict[str, tuple[Array, Array]]
) -> Target:
    text, weights, reason = texts[0], np.empty(0, np.float32), ""
    for text in texts:
        weights = _weights(text, holders)
        reason = _too_little(text, weights)
        if not reason:
            break
    return Target(
        id=item.id,
        task=task,
        language=text.language,
        basis=text.basis,
        shown=text.shown,
        text=as_text(text.codes),
        words=text.words,
        weights=weights,
        choices=item.choices,
        labels=item.labels,
        answer=item.answer,
        reason=reason,
    )


def _too_little(text: _Text, weights: Array) -> str:
    if len(text.codes) < LEAST[text.language]:
        return f"{len(text.codes)} letters where {LEAST[text.language]} are needed"
    if weights.sum() < PARTICULAR[text.language]:
        return "nearly all of its wording is shared with other items"
    return ""
