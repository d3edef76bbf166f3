"""Items → what is looked for: a text long and particular enough to tell, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ceval_suite.contamination.normal import Array, as_text, grams_of, word_starts
from ceval_suite.schema import Item

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x30000))
CHINESE = 0.25
"""A text is searched as Chinese from this share of Chinese characters among its letters on."""

SEED = {"zh": 5, "en": 12}
"""Characters of the short grams that candidates are found by: with one word or character in ten
changed, more than half of them are still there."""

STEP = {5: 1, 12: 2}
"""At which places of a corpus seed grams of each size are looked up: at every one, or every second.
Places in order leave out as much of what is equal as of what is not."""

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
"""Grams that are looked for per item, about; spread evenly over a longer text."""


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
    words: Array = field(repr=False)
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
    parts = [(item.question, "\n".join(item.options)) for _, item in pairs]
    texts: list[_Text] = []
    for start in range(0, len(pairs), _TOGETHER):
        texts += _folded(parts[start : start + _TOGETHER])
    for language in SEED:
        _weigh([text for text in texts if text.language == language], language)
    return [_target(*pair, text) for pair, text in zip(pairs, texts, strict=True)]


_TOGETHER = 4096
"""Items that are folded at once."""


@dataclass
class _Text:
    """Question and options, folded; the question's are the first `question` letters."""

    codes: Array
    text: str
    question: int
    words: Array
    language: str
    weights: Array


def _folded(pairs: Sequence[tuple[str, str]]) -> list[_Text]:
    found, starts, firsts, begins = word_starts(pairs)
    ends = np.append(starts[1:] - 1, len(found) - 1)
    whole, words = as_text(found), np.flatnonzero(begins)
    sums = np.append(0, np.cumsum(han(found)))
    chinese = sums[ends] - sums[starts] >= CHINESE * np.maximum(1, ends - starts)
    lows, highs = np.searchsorted(words, starts), np.searchsorted(words, ends)
    none = np.empty(0, np.float32)
    columns = (starts, ends, firsts, chinese, lows, highs)
    return [
        _Text(
            codes=found[start:end],
            text=whole[start:end],
            question=first,
            words=words[low:high] - start,
            language="zh" if zh else "en",
            weights=none,
        )
        for start, end, first, zh, low, high in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _weigh(texts: Sequence[_Text], language: str) -> None:
    """Set the weight of each seed gram: 1, or `LITTLE` where it is common."""
    size = SEED[language]
    hashes, owners, _ = grams_of([text.codes for text in texts], size)
    # in place of its lowest bits each gram has its owner, so that one sort puts both in order
    width = np.uint64(len(texts).bit_length())
    keys = hashes >> width << width | owners.astype(np.uint64)
    order = np.argsort(keys)
    keys = keys[order]
    other = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    keys >>= width
    group = np.cumsum(np.append(True, keys[1:] != keys[:-1])[: len(keys)]) - 1
    many = np.empty(len(keys), np.float64)
    many[order] = np.bincount(group, weights=other)[group]
    weights = np.where(many < SHARED, 1.0, LITTLE).astype(np.float32)
    ends = np.cumsum(np.bincount(owners, minlength=len(texts))).tolist()
    for start, end, text in zip([0, *ends], ends, texts, strict=False):
        text.weights = weights[start:end]
        for found in STOCK.finditer(text.text) if language == "zh" else ():
            text.weights[found.start() : max(found.start(), found.end() - size + 1)] = LITTLE


def _target(task: str, item: Item, text: _Text) -> Target:
    length = text.question
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
        text=text.text[:length],
        words=text.words[: np.searchsorted(text.words, length)],
        weights=text.weights[: max(0, length - SEED[text.language] + 1)],
        choices=item.choices,
        labels=item.labels,
        answer=item.answer,
        reason=reason,
    )


def han(codes: Array) -> Array:
    """Which code points are Chinese characters."""
    found = np.zeros(len(codes), np.bool_)
    for low, high in _HAN:
        found |= (codes >= low) & (codes < high)
    return found


def _too_little(text: _Text, length: int) -> str:
    least, own = LEAST[text.language], text.weights[: max(0, length - SEED[text.language] + 1)]
    if length < least:
        return f"{length} letters where {least} are needed"
    if own.sum() < PARTICULAR[text.language]:
        return "nearly all of its wording is shared with other items"
    return ""
