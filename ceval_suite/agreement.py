"""Several runs on the same items, each by a method of its own: how far their answers agree.

Protocols may differ here, that is the purpose; tasks and splits may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ceval_suite import comparison, methods, stats
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.methods import Agreement, Answer
from ceval_suite.schema import Estimate


@dataclass(frozen=True)
class Column:
    """One method: a name that tells it from the others, and what it answered to the common items.

    `left_out` counts labelled items that it has and another method lacks.
    """

    name: str
    accuracy: Estimate
    unanswered: int
    left_out: int
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Pair:
    """Two methods by their place among the columns, and how often either is right."""

    first: int
    second: int
    found: Agreement
    either: Estimate


@dataclass(frozen=True)
class Across:
    """All methods on the labelled items that every one of them has."""

    task: str
    split: str
    n: int
    columns: Sequence[Column]
    pairs: Sequence[Pair]


def across(folders: Sequence[Path]) -> Across:
    """How the runs in some folders agree; each folder is a run, or holds runs of one model.

    A run whose records carry the predictions of several methods counts once for each of them.

    Raises:
        RunError: fewer than two methods, other tasks or splits, other gold labels, or no item
            that all have.
    """
    sides = [side for folder in folders for side in _runs(folder)]
    _same_questions(sides)
    found = dict(_methods(sides))
    if len(found) < 2:
        raise RunError(f"{folders[0]} has one method only; give two runs of the same items.")
    common = [key for key in next(iter(found.values())) if all(key in of for of in found.values())]
    if not common:
        raise RunError(f"the runs {_names(sides)} have no labelled item in common.")
    columns = [_column(name, answers, common) for name, answers in found.items()]
    return Across(
        task=str(sides[0].about["task"]),
        split=str(sides[0].about["split"]),
        n=len(common),
        columns=columns,
        pairs=[_pair(columns, i, j) for i, j in combinations(range(len(columns)), 2)],
    )


def _pair(columns: Sequence[Column], first: int, second: int) -> Pair:
    one, two = columns[first].answers, columns[second].answers
    right = [float(answer.right or two[key].right) for key, answer in one.items()]
    either = stats.share(right, [answer.cluster for answer in one.values()])
    return Pair(first, second, methods.agreement(one, two), either)


def _runs(folder: Path) -> list[Side]:
    sides = comparison.runs(folder)
    if not sides:
        raise RunError(f"{folder} holds no runs of a task; give a run folder.")
    return sides


def _names(sides: Iterable[Side]) -> str:
    return " and ".join(str(side.path) for side in sides)


def _same_questions(sides: Sequence[Side]) -> None:
    gold: dict[str, tuple[list[str], str]] = {}
    seen: set[Path] = set()
    for side in sides:
        if side.path.resolve() in seen:
            raise RunError(f"{side.path} is given twice; give each run once.")
        seen.add(side.path.resolve())
        for key in ("task", "split"):
            one, other = sides[0].about.get(key), side.about.get(key)
            if one != other:
                raise RunError(
                    f"{sides[0].path} is of {key} {one} and {side.path} of {other}; methods agree "
                    "or differ on the same items only."
                )
        for record in side.records.values():
            answer, place = gold.setdefault(record.id, (record.answer, str(side.path)))
            if answer != record.answer:
                raise RunError(
                    f"item {record.id} has two gold labels in {place} and {side.path}; score one "
                    "of them again on the files of the other."
                )


def _methods(sides: Sequence[Side]) -> Iterable[tuple[str, dict[str, Answer]]]:
    labels = _labels(sides)
    for side, label in zip(sides, labels, strict=True):
        several = methods.of_records(list(side.records.values()))
        for method, answers in several.items():
            yield f"{label}: {method}", answers
        if not several:
            yield (
                label,
                {
                    r.id: Answer(tuple(r.prediction), bool(r.correct), methods.cluster(r))
                    for r in side.records.values()
                    if r.correct is not None
                },
            )


def _labels(sides: Sequence[Side]) -> list[str]:
    """Names by the fewest words that tell the runs apart: protocol, shots, model, fingerprint."""
    words = [
        (
            str(side.about.get("protocol")),
            f"{side.about.get('shots')}-shot",
            side.model,
            f"#{side.protocol[:8]}",
            str(side.path),
        )
        for side in sides
    ]
    differ = [i for i in range(5) if i == 0 or len({word[i] for word in words}) > 1]
    for count in range(1, len(differ) + 1):
        labels = [" ".join(word[i] for i in differ[:count]) for word in words]
        if len(set(labels)) == len(labels):
            return labels
    return [str(side.path) for side in sides]


def _column(name: str, answers: Mapping[str, Answer], common: Sequence[str]) -> Column:
    chosen = {key: answers[key] for key in common}
    return Column(
        name=name,
        accuracy=stats.share(
            [float(answer.right) for answer in chosen.values()],
            [answer.cluster for answer in chosen.values()],
        ),
        unanswered=sum(not answer.prediction for answer in chosen.values()),
        left_out=len(answers) - len(chosen),
        answers=chosen,
    )
