"""Items → what is looked for: a text long and particular enough to tell, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ceval_suite.contamination.normal import Array, as_text, codes, grams, word_starts
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
"""Grams of its own that a text must have: what several items share counts next to nothing."""

SHARED = 3
"""Items from which on a gram is common to them: a passage with several questions, stock wording."""

LITTLE = 0.02
"""What a common gram counts, where one of the item's own counts 1."""

STOCK = re.compile(
    "(?:(?:下列|以下|下面)?(?:关于|有关|对于|根据|对)?)?(?:下列|以下|下面)(?:各|几|哪)*"
    "|(?:的)?(?:说法|叙述|表述|选项|判断|分析|推断|描述|理解|认识|解释|结论|做法|观点|评价|一项|一句|一组)"
    "(?:中|不|都|完全|最|可能|正确|错误|恰当|准确|合理|符合|属于|有误|成立|的|是|有|为|一项|哪一|哪些|哪个|哪|项|个)+"
)
"""How questions of Chinese exams are put whatever they are about, without punctuation."""

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


def of_items(items: Iterable[tuple[str, Item]]) -> list[Target]:
    """The target of each (task, item), in order; those that share an id are one."""
    pairs = list({item.id: (task, item) for task, item in items}.values())
    wholes = ["\n".join([item.question, *item.options]) for _, item in pairs]
    texts: list[_Text] = []
    for start in range(0, len(pairs), _TOGETHER):
        texts += _folded(wholes[start : start + _TOGETHER])
    for language in SEED:
        _weigh([text for text in texts if text.language == language], SEED[language])
    return [_target(*pair, text) for pair, text in zip(pairs, texts, strict=True)]


_TOGETHER = 4096
"""Items that are folded at once."""


@dataclass
class _Text:
    """Question and options, folded; a question is the beginning of it, letter by letter."""

    codes: Array
    words: Array
    language: str
    weights: Array


def _folded(texts: Sequence[str]) -> list[_Text]:
    codes, starts, begins = word_starts(texts)
    out: list[_Text] = []
    for start, end in zip(starts, [*(starts[1:] - 1), len(codes) - 1], strict=True):
        own = codes[start:end]
        text = as_text(own)
        chinese = len(HAN.findall(text)) >= CHINESE * max(1, len(text))
        words = np.flatnonzero(begins[start:end])
        out.append(_Text(own, words, "zh" if chinese else "en", np.empty(0, np.float32)))
    return out


def _weigh(texts: Sequence[_Text], size: int) -> None:
    """Set the weight of each seed gram: 1, or `LITTLE` where it is common."""
    hashes = [grams(text.codes, size) for text in texts]
    if not hashes:
        return
    every = np.concatenate(hashes)
    owners = np.repeat(np.arange(len(hashes)), [len(one) for one in hashes])
    order = np.argsort(every, kind="stable")  # so the owners of one gram stay in order
    sorted_, owner = every[order], owners[order]
    new = np.append(True, sorted_[1:] != sorted_[:-1])
    other = new | np.append(True, owner[1:] != owner[:-1])
    group = np.cumsum(new) - 1
    many = np.empty(len(every), np.int64)
    many[order] = np.bincount(group, weights=other).astype(np.int64)[group]
    weights = np.where(many < SHARED, 1.0, LITTLE).astype(np.float32)
    at = 0
    for text, one in zip(texts, hashes, strict=True):
        text.weights = weights[at : at + len(one)]
        at += len(one)
        for found in STOCK.finditer(as_text(text.codes)):
            text.weights[found.start() : max(found.start(), found.end() - size + 1)] = LITTLE


def _target(task: str, item: Item, text: _Text) -> Target:
    length = len(codes(item.question))
    reason = _too_little(text, length)
    whole = bool(reason and item.options)
    if whole:
        length = len(text.codes)
        reason = _too_little(text, length)
    return Target(
        id=item.id,
        task=task,
        language=text.language,
        basis="question and options" if whole else "question",
        shown="\n".join([item.question, *item.options]) if whole else item.question,
        text=as_text(text.codes[:length]),
        words=tuple(text.words[text.words < length].tolist()),
        weights=text.weights[: max(0, length - SEED[text.language] + 1)].copy(),
        choices=item.choices,
        labels=item.labels,
        answer=item.answer,
        reason=reason,
    )


def _too_little(text: _Text, length: int) -> str:
    least, own = LEAST[text.language], text.weights[: max(0, length - SEED[text.language] + 1)]
    if length < least:
        return f"{length} letters where {least} are needed"
    if own.sum() < PARTICULAR[text.language]:
        return "nearly all of its wording is shared with other items"
    return ""
