"""The questions of the five benchmarks as the published files have them, and answers to write down.

Nothing of the suite is used: files are read by the oracle's readers, kinds follow from the names of
the files and the numbers of their answers, and answers are worded as the official prompts ask.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import oracles
from scripted import Said

SETS = ("jec-qa-kd", "jec-qa-ca", "gaokao-physics")
FREE = ("math", "gaokao-mathcloze")
ENGLISH = (
    *("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "math"),
    *("sat-en", "sat-en-without-passage", "sat-math"),
)
THOUGHT = "先看题目。"


@dataclass(frozen=True)
class Question:
    """One row of a published file.

    `gold` has one string for each thing that is asked: a letter, all letters of a set, or a text;
    it is empty where the file has no label. `form` is the official type of question, or how AGIEval
    evaluates it; `options` are as printed; `points` is what one of the answers is worth.
    """

    id: str
    subject: str
    kind: str
    gold: tuple[str, ...]
    labels: str = "ABCD"
    options: tuple[str, ...] = ()
    form: str = ""
    points: float = 1.0
    language: str = "zh"

    @property
    def ids(self) -> list[str]:
        """One for each answer; they are numbered where there are several."""
        several = self.kind == "blanks"
        return [f"{self.id}#{k}" for k in range(len(self.gold))] if several else [self.id]

    def sets(self) -> list[str]:
        """All that can be answered where letters are wanted, each equally likely for a guesser."""
        if self.kind != "multi":
            return list(self.labels)
        sizes = range(1, len(self.labels) + 1)
        return ["".join(s) for s in chain(*(combinations(self.labels, n) for n in sizes))]

    def score(self, given: str, gold: str) -> float:
        """The share of the points for letters in any order: exact, or half of Physics."""
        if set(given) == set(gold):
            return 1.0
        return 0.5 if self.form == "multi_choice" and given and set(given) < set(gold) else 0.0


def questions(root: Path, task: str, split: str) -> Iterator[Question]:
    """All questions of a split, subjects in sorted order."""
    if task == "agieval":
        for subject, records in oracles._agieval(root).items():
            for row, record in enumerate(records):
                yield _exam_question(f"agieval/test/{subject}/{row}", subject, record)
    elif task == "gaokao":
        for subject, records in oracles._gaokao(root).items():
            for row, record in enumerate(records):
                yield _paper_question(f"gaokao/test/{subject}/{row}", subject, record)
    else:
        for id, gold in oracles.answers(root, task, split):
            language = "en" if task == "mmlu" else "zh"
            yield Question(id, id.split("/")[2], "single", tuple(gold or ()), language=language)


def _exam_question(id: str, subject: str, record: dict[str, Any]) -> Question:
    language = "en" if subject in ENGLISH else "zh"
    if subject in FREE:
        return Question(id, subject, "cloze", (record["answer"],), "", language=language)
    letters = "".join(sorted(set(re.findall("[A-G]", "".join(record["label"] or "")))))
    options = tuple(record["options"])
    kind = "multi" if subject in SETS or len(letters) > 1 else "single"
    form = "set" if subject in SETS else "letter"
    labels = "ABCDEFG"[: len(options)]
    gold = (letters,) if letters else ()
    return Question(id, subject, kind, gold, labels, options, form, language=language)


def _paper_question(id: str, subject: str, record: dict[str, Any]) -> Question:
    gold, form, labels = tuple(record["answer"]), "single_choice", "ABCD"
    if "Physics" in subject:
        gold, form = ("".join(sorted("".join(gold))),), "multi_choice"
    elif "Cloze_Test" in subject:
        form, labels = "five_out_of_seven", "ABCDEFG"
    elif re.search("Chinese|Fill_in|Reading|Geography", subject):
        form = "multi_question_choice"
    kind = "multi" if form == "multi_choice" else "blanks" if len(gold) > 1 else "single"
    points = record["score"]
    return Question(id, subject, kind, gold, labels, form=form, points=points)


# ----------------------------------------------------------------------------- what can be answered


def right(question: Question) -> tuple[str, ...]:
    """The right answers, or any where none is published."""
    return question.gold or ("A",)


def constant(question: Question) -> tuple[str, ...]:
    """A, whatever is asked."""
    return ("A" * _tried(question),) * len(right(question))


def _tried(question: Question) -> bool:
    """Free answers that are wrong are looked at long: three of a file are enough."""
    return question.kind != "cloze" or int(question.id.rpartition("/")[2]) < 3


def guesser(seed: int) -> Any:
    """Who picks any of the answers that there could be, each as often as any other."""
    dice = random.Random(seed)

    def guess(question: Question) -> tuple[str, ...]:
        if question.kind == "cloze":
            return (str(dice.randrange(10**8, 10**9)) * _tried(question),)  # nobody's answer
        return tuple(dice.choice(question.sets()) for _ in right(question))

    return guess


def option_of(question: Question, letters: str) -> str:
    """The printed option of the first of some letters: by its printed letter, else by its place."""
    printed = [re.match(r"\s*[(（]?\s*([A-G])", option) for option in question.options]
    names = [found.group(1) if found else "" for found in printed]
    if sorted(names) != list(question.labels):
        names = list(question.labels)
    return question.options[names.index(letters[0])] if question.options else ""


def said(
    question: Question, answers: Sequence[str], protocol: str, shots: int, thought: str = THOUGHT
) -> Said:
    """What a model says that gives these answers in the official format of a protocol."""
    option = option_of(question, answers[0]) if protocol == "lm-eval" else ""
    task = question.id.split("/")[0]
    if task == "gaokao":
        return Said(tuple(answers), option, (tagged(question, answers, thought),))
    if task == "agieval":
        return Said(tuple(answers), option, _exam(question, answers[0], protocol, shots, thought))
    return Said(tuple(answers), option, (f"{thought}所以答案是{answers[0]}。",))


def tagged(question: Question, answers: Sequence[str], thought: str = THOUGHT) -> str:
    """Answers in GAOKAO-Bench's format."""
    if question.form == "five_out_of_seven":
        return f"【答案】 {' '.join(answers)} <eoa>"
    parts = [f"【解析】{thought}<eoe>\n【答案】 {answer} <eoa>" for answer in answers]
    if question.kind != "blanks":
        return parts[0]
    return "\n".join(f"（{number}）{part}" for number, part in enumerate(parts, start=1))


def _exam(
    question: Question, answer: str, protocol: str, shots: int, thought: str
) -> tuple[str, ...]:
    """AGIEval's: the sentence of the shots, or what the second question without shots asks for."""
    if protocol == "colossal":
        return (answer,)
    if shots == 0 or protocol == "official-zero-shot-cot":
        short = f"$\\boxed{{{answer}}}$" if question.kind == "cloze" else f"({answer})"
        return (short,) if protocol == "official" else (thought, short)
    return (f"{thought}\n" * (protocol == "official-cot") + sentence(question, answer),)


def sentence(question: Question, answer: str) -> str:
    """The sentence that AGIEval's shots end in."""
    shown = f"{[*answer]}" if question.form == "set" else answer
    return f"{'The answer is therefore' if question.language == 'en' else '答案是'} {shown}"
