"""Answers that break the form they were asked for, and what the official rules make of each.

Every case says its scores outright, one for each answer of the question; nothing is read off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from papers import Question, sentence

THOUGHT = "先看题目，再想一想"


@dataclass(frozen=True)
class Way:
    """How answers are read: `exactly` as the official script does, or with its slips put right."""

    protocol: str
    shots: int

    @property
    def exactly(self) -> bool:
        """Full-width letters are none, and the order and number of letters matter."""
        return self.protocol != "official-generate"

    @property
    def stages(self) -> bool:
        """The answer is asked for by a second question."""
        return self.shots == 0

    @property
    def last_line(self) -> bool:
        """Only the last line is read."""
        return self.protocol == "official-cot"


@dataclass(frozen=True)
class Case:
    """What is written, and the score of each answer."""

    written: tuple[str, ...]
    scores: list[float]
    finished: bool = True


def cases(question: Question, way: Way) -> list[tuple[str, Case]]:
    """All cases for a question, in an order that is the same for all questions of its form."""
    if question.form == "single_choice":
        return [*_one_letter(question, way)]
    if question.form == "multi_choice":
        return [*_letters_in_any_order(question, way)]
    if question.form == "five_out_of_seven":
        return [*_five_letters(question, way)]
    if question.form == "multi_question_choice":
        return [*_numbered(question, way)]
    if question.kind == "cloze":
        return [*_free(question, way)]
    return [*_exam(question, way)]


def wide(text: str) -> str:
    """With full-width letters."""
    return re.sub("[A-Z]", lambda found: chr(ord(found.group()) + 0xFEE0), text)


def other(question: Question, gold: str) -> str:
    """A label that is not in the answer; there is one in all sets but the fullest."""
    return next((label for label in question.labels if label not in gold), "")


def tag(answer: str, thought: str = THOUGHT) -> str:
    return f"【解析】{thought}<eoe>\n【答案】 {answer} <eoa>"


def _one_letter(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    (gold,) = question.gold
    wrong = other(question, gold)
    yield "reasoning right, answer wrong", Case((tag(wrong, f"似乎是{gold}"),), [0])
    yield "two tags, the last one right", Case((tag(wrong) + tag(gold),), [1])
    yield "no answer before the end", Case((f"【解析】{THOUGHT}",), [0], finished=False)
    yield "a letter outside the options", Case((tag("H"),), [0])
    yield "a full-width letter", Case((tag(wide(gold)),), [0 if way.exactly else 1])
    yield "no closing mark", Case((tag(gold).removesuffix(" <eoa>"),), [1])
    yield "more text after the answer", Case((f"{tag(gold)}\n{wrong}项不对。",), [0])
    yield "a small letter", Case((tag(gold.lower()),), [0])
    yield "the letter alone", Case((gold,), [1])


def _letters_in_any_order(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    (gold,) = question.gold
    wrong = other(question, gold)
    whole_or_half = 1 if len(gold) == 1 else 0.5
    turned = whole_or_half if way.exactly else 1
    yield "the letters in reverse", Case((tag(gold[::-1]),), [turned])
    yield "one letter too many", Case((tag("".join(sorted(gold + wrong))),), [0])
    yield "only one of the letters", Case((tag(gold[0]),), [whole_or_half])
    # 6 points for the very letters; 3 for right ones that are repeated
    repeated = Case((tag(gold[0]) + tag(gold),), [0.5 if way.exactly else 1])
    yield "two tags, all letters after the first one count", repeated
    first = Case((f"【答案】{gold}<eoa>题目做完了，谢谢大家。",), [0 if way.exactly else 1])
    yield "the tag at the very beginning", first
    yield "reasoning right, answer wrong", Case((tag(wrong, f"似乎是{gold}"),), [0])
    yield "no tag, the letters at the end", Case((f"{THOUGHT}，所以选{gold}",), [1])
    yield "full-width letters", Case((tag(wide(gold)),), [0 if way.exactly else 1])
    yield "no answer before the end", Case((f"【解析】{THOUGHT}",), [0], finished=False)
    yield "letters with commas", Case((tag("，".join(gold)),), [1])
    yield "a letter outside the options", Case((tag("E"),), [0])


def _numbered(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    gold = question.gold
    n = len(gold)
    wrong = [other(question, one) for one in gold]
    parts = [f"（{k}）{tag(one)}" for k, one in enumerate(gold, start=1)]
    too_few = [0.0] * n

    def but(place: int) -> list[float]:
        return [float(k != place) for k in range(n)]

    yield "in the form", Case(("\n".join(parts),), [1] * n)
    last = Case(("\n".join(parts[:-1]),), too_few if way.exactly else but(n - 1))
    yield "the last one missing", last
    if n > 1:
        middle = Case(("\n".join(parts[:1] + parts[2:]),), too_few if way.exactly else but(1))
        yield "the second one missing", middle
        swapped = ["\n".join(parts[::-1])]
        yield (
            "written in reverse",
            Case((*swapped,), [float(a == b) for a, b in zip(gold, gold[::-1], strict=True)]),
        )
    yield "one more than asked", Case(("\n".join([*parts, f"（{n + 1}）{tag('A')}"]),), [1] * n)
    yield "tags without numbers", Case(("\n".join(map(tag, gold)),), [1] * n)
    yield "letters alone", Case((" ".join(gold),), [1] * n)
    outside = "\n".join([f"（1）{tag('H')}", *parts[1:]])
    yield "a letter outside the options", Case((outside,), but(0))
    yield "full-width letters", Case((wide("\n".join(parts)),), [0 if way.exactly else 1] * n)
    started = [float(n == 1 or not way.exactly), *[0.0] * (n - 1)]
    ended = f"{parts[0]}\n（2）【解析】{THOUGHT}"
    yield "no second answer before the end", Case((ended,), started, finished=False)
    misled = [tag(b, f"似乎是{a}") for a, b in zip(gold, wrong, strict=True)]
    yield "reasoning right, answers wrong", Case(("\n".join(misled),), [0] * n)


def _five_letters(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    gold = "".join(question.gold)
    n = len(gold)
    turned = [float(a == b) for a, b in zip(gold, gold[::-1], strict=True)]
    four = [0.0] * n if way.exactly else [*[1.0] * (n - 1), 0.0]
    shifted = [*(float(a == b) for a, b in pairwise(gold)), 0.0]
    yield "in the form", Case((f"【答案】 {' '.join(gold)} <eoa>",), [1] * n)
    yield "letters run together", Case((f"【答案】{gold}",), [1] * n)
    yield "written in reverse", Case((f"【答案】{gold[::-1]}<eoa>",), turned)
    yield "one letter missing", Case((f"【答案】{gold[:-1]}<eoa>",), four)
    yield "one letter more", Case((f"【答案】{gold}{other(question, gold)}<eoa>",), [1] * n)
    yield "full-width letters", Case((f"【答案】{wide(gold)}",), [0 if way.exactly else 1] * n)
    first = Case((f"【答案】H{gold[1:]}<eoa>",), [0.0] * n if way.exactly else shifted)
    yield "a letter outside the options is passed over", first


def _exam(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    """AGIEval's letters: one, or a set of which the order does not matter."""
    gold = question.gold[0] if question.gold else "A"
    wrong = other(question, gold)
    several = question.kind == "multi"

    def say(answer: str, thought: str = THOUGHT, more: str = "") -> tuple[str, ...]:
        if way.stages:
            return thought, f"({answer}){more}"
        before = f"{thought}\n" if way.last_line else ""
        return (f"{before}{sentence(question, answer)}{more}",)

    yield "in the form", Case(say(gold), [1])
    yield "reasoning right, answer wrong", Case(say(wrong or "F", f"似乎是{gold}"), [0])
    yield "a full-width letter", Case(say(wide(gold)), [0 if way.exactly else 1])
    yield "a small letter", Case(say(gold.lower()), [0])
    yield "a letter outside the options", Case(say("F"), [0])
    silent = (THOUGHT, "") if way.stages else (THOUGHT,)
    yield "no answer before the end", Case(silent, [0], finished=False)
    yield "the next problem begun", Case(say(gold, more="\n<END>\n问题 7. B"), [1])
    if several:
        yield "the letters in reverse", Case(say(gold[::-1]), [1])
        yield "one letter too many", Case(say(gold + (wrong or "E")), [0])
        yield "only one of the letters", Case(say(gold[0]), [float(len(gold) == 1)])
        yield "a letter repeated", Case(say(gold + gold[0]), [1])
    else:
        yield "two letters, the first one right", Case(say(f"{gold} {wrong}"), [1])
        # without shots the first letter counts, after shots the sentence, of thoughts the last line
        twice = (say(gold)[0], f"({gold})\n({wrong})")
        if not way.stages:
            twice = (f"{sentence(question, gold)}\n{sentence(question, wrong)}",)
        yield "two answers", Case(twice, [float(not way.last_line)])
        alone = (THOUGHT, gold) if way.stages else (f"({gold})",)
        yield "the letter alone", Case(alone, [1])


def _free(question: Question, way: Way) -> Iterator[tuple[str, Case]]:
    (gold,) = question.gold

    def say(answer: str, thought: str = THOUGHT, more: str = "") -> tuple[str, ...]:
        if way.stages:
            return thought, f"$\\boxed{{{answer}}}$"
        before = f"{thought}\n" if way.last_line else ""
        return (f"{before}{sentence(question, answer)}{more}",)

    yield "in the form", Case(say(gold), [1])
    yield "reasoning right, answer wrong", Case(say("987654", f"似乎是{gold}"), [0])
    yield "another way of printing it", Case(say(re.sub("(?<![dt])frac", "dfrac", gold)), [1])
    yield "with blanks", Case(say(f" {gold} "), [1])
    silent = (THOUGHT, "") if way.stages else (f"{THOUGHT}987654",)
    yield "no answer before the end", Case(silent, [0], finished=False)
    yield "the next problem begun", Case(say(gold, more="\n<END>\n问题 7. 3"), [1])
