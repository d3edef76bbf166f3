"""The same question with its options turned on: what a model knows whatever letter it stands at.

In turn r the option printed at place i is the one published at place i + r, so that in as many
turns as there are options each of them stands at every letter once (CircularEval: Liu et al. 2023,
MMBench, arXiv:2307.06281). The first turn is the published order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ceval_suite.schema import Item


def can_turn(item: Item) -> bool:
    """Whether the options of an item are printed apart from its question, and one letter counts."""
    single = item.kind == "single" and not item.part and len(item.answer) < 2
    return single and len(item.labels) == len(item.choices) > 1


def turned(item: Item, turn: int) -> Item:
    """The item with its options turned on by so many places; letters stay where they are."""
    count = len(item.labels)
    places = [(i + turn) % count for i in range(count)]
    choices = tuple(item.choices[i] for i in places)
    return replace(
        item,
        choices=choices,
        options=_options(item, choices),
        answer=tuple(back(item.labels, letter, -turn) for letter in item.answer),
    )


def back(labels: Sequence[str], letter: str, turn: int) -> str:
    """The published letter of the option that stands at `letter` in a turn."""
    return labels[(labels.index(letter) + turn) % len(labels)]


def _options(item: Item, choices: Sequence[str]) -> tuple[str, ...]:
    """The options as printed: what stands before each text (AGIEval's `(A)`) stays in its place."""
    pairs = list(zip(item.options, item.choices, strict=False))
    if not all(option.endswith(text) for option, text in pairs):
        # published with other prefixes than the rest: all get the plain one
        return tuple(f"({label}){text}" for label, text in zip(item.labels, choices, strict=True))
    before = [option.removesuffix(text) if text else option for option, text in pairs]
    return tuple(a + b for a, b in zip(before, choices, strict=False))
