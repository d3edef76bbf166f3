"""How answers were had: by which method, out of what text, and what other judges say of them.

Everything comes from records; nothing here is a benchmark's own number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from ceval_suite import stats
from ceval_suite.schema import Estimate, Record

EITHER = "either"
"""Right when one of a record's methods is; a name for a count, not a prediction of its own."""


@dataclass(frozen=True)
class Answer:
    """What one method answered to one item, letters in order; empty: no answer.

    `cluster` is equal for answers that are not independent.
    """

    prediction: tuple[str, ...]
    right: bool
    cluster: str


@dataclass(frozen=True)
class Agreement:
    """Two methods on the same items.

    `both`, `first`, `second` and `neither` count who was right; `same` counts equal predictions,
    of which `silent` are no answer on both sides. `kappa` is Cohen's (1960) over predictions, no
    answer being one of its own; None where chance alone would always agree.
    """

    n: int
    both: int
    first: int
    second: int
    neither: int
    same: int
    silent: int
    kappa: float | None


def item(record_id: str) -> str:
    """The item that a record belongs to: sub-questions of one are `<item>#<k>`."""
    return record_id.partition("#")[0]


def cluster(record: Record) -> str:
    """A name that is equal for records which are not independent.

    Those are the sub-questions of an item, and items that share a passage.
    """
    return record.cluster or item(record.id)


def score(record: Record) -> float:
    """The share of its points that a labelled record earned."""
    return float(bool(record.correct)) if record.score is None else record.score


def share(records: Iterable[Record], value: Callable[[Record], float]) -> Estimate:
    """The mean of a value in [0, 1] over records, with an interval that knows their clusters."""
    found = list(records)
    return stats.share([value(r) for r in found], [cluster(r) for r in found])


def agreement(first: Mapping[str, Answer], second: Mapping[str, Answer]) -> Agreement:
    """How two methods agree on the items that both have; no items: all counts are 0."""
    pairs = [(first[key], second[key]) for key in first if key in second]
    n = len(pairs)
    right = Counter((a.right, b.right) for a, b in pairs)
    same = sum(a.prediction == b.prediction for a, b in pairs)
    return Agreement(
        n=n,
        both=right[True, True],
        first=right[True, False],
        second=right[False, True],
        neither=right[False, False],
        same=same,
        silent=sum(not a.prediction and not b.prediction for a, b in pairs),
        kappa=_kappa([(a.prediction, b.prediction) for a, b in pairs], same),
    )


def _kappa(pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], same: int) -> float | None:
    n = len(pairs)
    ours, theirs = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(count * theirs[kind] for kind, count in ours.items())  # in n² of pairs
    if chance == n * n:
        return None
    return (n * same - chance) / (n * n - chance)


def of_records(records: Sequence[Record]) -> dict[str, dict[str, Answer]]:
    """Method → record id → its answer, of the labelled records that several methods answered.

    A method is right when its letters are the gold letters, in any order.
    """
    found: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
    for record in records:
        if record.correct is None:
            continue
        for method, prediction in record.predictions.items():
            if method != EITHER:
                right = bool(prediction) and set(prediction) == set(record.answer)
                found[method][record.id] = Answer(tuple(prediction), right, cluster(record))
    return dict(found)


def block(records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy by method with intervals, `either` last, and the agreement of every two methods."""
    found = of_records(records)
    if not found:
        return {}
    rights = {m: {key: float(a.right) for key, a in found[m].items()} for m in found}
    if len(found) > 1:
        every = set[str]().union(*rights.values())
        rights[EITHER] = {
            r.id: max(of.get(r.id, 0.0) for of in rights.values()) for r in records if r.id in every
        }
    by_id = {record.id: record for record in records}
    return {
        "accuracy": {
            method: asdict(share([by_id[key] for key in of], lambda r, of=of: of[r.id]))
            for method, of in rights.items()
        },
        "unanswered": {m: sum(not a.prediction for a in found[m].values()) for m in found},
        "agreement": [
            {"methods": [one, two], **asdict(agreement(found[one], found[two]))}
            for one, two in combinations(found, 2)
        ],
    }


def extraction(records: Sequence[Record]) -> dict[str, Any]:
    """How many answers could be read off what the model wrote; {} where it wrote nothing.

    `texts` are what was written, one for all sub-questions of an item, and `cut` those that ran
    out of tokens; `n` are the answers looked for in them.
    """
    written = {item(r.id) for r in records if r.text is not None}
    if not written:
        return {}
    asked = [r for r in records if item(r.id) in written]
    extracted = sum(bool(r.predictions.get("exact", r.prediction)) for r in asked)
    cut = len({item(r.id) for r in asked if r.cut})
    return {
        "n": len(asked),
        "extracted": extracted,
        "unanswered": len(asked) - extracted,
        "rate": extracted / len(asked),
        "texts": len(written),
        "cut": cut,
        "cut_rate": cut / len(written),
    }


def opinions(records: Sequence[Record]) -> dict[str, Any]:
    """What other judges than the official one think, and where they differ from it; {}: none.

    Over the labelled records of the subjects that a judge spoke on; where it had no opinion (no
    answer, or one that it cannot read: `silent`) the official verdict stands for it as well.
    """
    names = sorted({name for record in records for name in record.opinions})
    found: dict[str, Any] = {}
    for name in names:
        subjects = {r.subject for r in records if name in r.opinions}
        judged = [r for r in records if r.subject in subjects and r.correct is not None]
        if judged:
            other = {r.id: r.opinions.get(name, bool(r.correct)) for r in judged}
            differ = {r.id: bool(r.correct) != other[r.id] for r in judged}
            found[name] = {
                "official": asdict(share(judged, lambda r: float(bool(r.correct)))),
                "opinion": asdict(share(judged, lambda r, of=other: float(of[r.id]))),
                "differ": asdict(share(judged, lambda r, of=differ: float(of[r.id]))),
                "silent": sum(name not in r.opinions for r in judged),
                "items": [key for key, value in differ.items() if value],
            }
    return found
