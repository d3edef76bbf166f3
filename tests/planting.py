"""Training data with benchmark items planted in it, each changed in a known way."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ceval_suite.schema import Item

HAN = re.compile("[\u4e00-\u9fff]")
_SENTENCE = re.compile(r"[^。！？.!?\n]+[。！？.!?]?")


@dataclass(frozen=True)
class Plant:
    """An item that stands in a line (from 1) of the corpus, changed in one way."""

    id: str
    kind: str
    line: int
    answered: bool
    options: bool


def chinese(text: str) -> bool:
    """Whether a text is mainly Chinese."""
    return len(HAN.findall(text)) > 0.2 * len(text)


def _verbatim(text: str, draw: random.Random) -> str:
    return text


def _spaced(text: str, draw: random.Random) -> str:
    """Blanks put in anywhere, and some of those there taken out."""
    out: list[str] = []
    for char in text:
        if char == " " and draw.random() < 0.15:
            continue
        out.append(char)
        if draw.random() < (0.3 if HAN.match(char) else 0.08):
            out.append(draw.choice(["  ", " ", "\u3000"]))
    return "".join(out)


def _wide(text: str, draw: random.Random) -> str:
    """Letters, digits, punctuation and blanks of ASCII in full width."""
    return "".join(
        "\u3000" if c == " " else chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text
    )


def _truncated(text: str, draw: random.Random) -> str:
    """The first 60 % of it."""
    return text[: round(0.6 * len(text))]


def _changed(text: str, draw: random.Random) -> str:
    """One word (of Chinese: one character) in every ten is another one, at a random place."""
    parts = re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+|\s+", text)
    words = [i for i, part in enumerate(parts) if not part.isspace()]
    for start in range(0, len(words), 10):
        ten = words[start : start + 10]
        if len(ten) < 5 and start:
            continue
        at = draw.choice(ten)
        parts[at] = draw.choice(OTHER_HAN if HAN.match(parts[at]) else OTHER_WORDS)
    return "".join(parts)


OTHER_HAN = "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会"
OTHER_WORDS = (
    "time",
    "person",
    "year",
    "thing",
    "world",
    "place",
    "government",
    "quickly",
    "under",
    "between",
    "green",
)

KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": _verbatim,
    "re-spaced": _spaced,
    "full-width": _wide,
    "truncated": _truncated,
    "one word in ten changed": _changed,
}


def sentences(texts: Iterable[str]) -> list[str]:
    """The sentences of texts, in order."""
    found = (m.group().strip() for text in texts for m in _SENTENCE.finditer(text))
    return [s for s in found if 8 <= len(s) <= 400]


def lines(pools: Sequence[Sequence[str]], draw: random.Random) -> Iterator[str]:
    """Endless lines of 100 to 600 bytes: sentences as they follow each other, or from anywhere."""
    while True:
        pool = draw.choice(pools)
        target, out, size = draw.randint(100, 600), list[str](), 0
        at, together = draw.randrange(len(pool)), draw.random() < 0.5
        while size < target:
            sentence = pool[at % len(pool)] if together else pool[draw.randrange(len(pool))]
            at += 1
            out.append(sentence)
            size += len(sentence.encode())
        yield " ".join(out)


def plant(
    path: Path, items: Sequence[Item], pools: Sequence[Sequence[str]], total: int, seed: int
) -> list[Plant]:
    """Write a JSONL corpus of `total` lines, an item in each of some; every kind as often."""
    draw = random.Random(seed)
    where = sorted(draw.sample(range(total), len(items)))
    planned = dict(zip(where, items, strict=True))
    names, plants, other = list(KINDS), list[Plant](), lines(pools, draw)
    order = [names[i % len(names)] for i in range(len(items))]
    draw.shuffle(order)
    with path.open("w", encoding="utf-8") as out:
        for line in range(total):
            text = next(other)
            if (item := planned.get(line)) is not None:
                kind, answered = order[len(plants)], draw.random() < 0.5 and bool(item.choices)
                options = draw.random() < 0.5 and bool(item.choices)
                asked = item.question
                if options:
                    pairs = zip(item.labels, item.choices, strict=True)
                    asked += "".join(f" {label}. {text}" for label, text in pairs)
                changed = KINDS[kind](asked, draw)
                if answered:
                    right = item.choices[item.labels.index(item.answer[0])]
                    changed += f" 答案：{right}" if chinese(asked) else f" Answer: {right}"
                cut = draw.randint(0, len(text) // 2)
                text = f"{text[:cut]} {changed} {text[cut:]}"
                plants.append(Plant(item.id, kind, line + 1, answered, options))
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return plants
