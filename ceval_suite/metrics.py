"""Records → values. Every number here is recomputable from `records.jsonl` and the task table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ceval_suite import stats
from ceval_suite.schema import Estimate, Record
from ceval_suite.specs import Task

HEADLINES = {"micro": "acc/micro", "macro": "acc/macro", "points": "points"}


def subject_estimates(records: Iterable[Record]) -> dict[str, Estimate]:
    """Accuracy per subject over the records that have a gold label."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for record in records:
        if record.correct is not None:
            right[record.subject] += record.correct
            count[record.subject] += 1
    return {subject: stats.wilson(right[subject], n) for subject, n in count.items()}


def micro(parts: Sequence[Estimate]) -> Estimate:
    """Accuracy over all items of the given subjects."""
    return stats.wilson(sum(p.value * p.n for p in parts), sum(p.n for p in parts))


def macro(parts: Sequence[Estimate]) -> Estimate:
    """Mean of the subjects' accuracies."""
    return stats.weighted(parts, [1.0] * len(parts))


def points(parts: Mapping[str, Estimate], task: Task) -> Estimate:
    """Points earned over points possible (GAOKAO-Bench's scoring rate)."""
    weights = [task.subjects[s].points * e.n for s, e in parts.items()]
    return stats.weighted(list(parts.values()), weights)


def average(rule: str, parts: Mapping[str, Estimate], task: Task) -> Estimate:
    """One of the named averages over subjects."""
    if rule == "points":
        return points(parts, task)
    return micro(list(parts.values())) if rule == "micro" else macro(list(parts.values()))


def chance(records: Sequence[Record]) -> float:
    """Expected share of right answers of a guesser: mean of gold labels over options."""
    shares = [len(r.answer) / len(r.logprobs) for r in records if r.answer and r.logprobs]
    return sum(shares) / len(shares) if shares else 0.0


def summarize(task: Task, records: Sequence[Record], expected: Mapping[str, int]) -> dict[str, Any]:
    """All metrics of a run, in the shape of `summary.json`.

    `expected` says how many records each subject should have. Averages appear only when all are
    there; a subject that lacks some, or alone lacks every gold label, is named under `missing`.
    Without any gold label there are no metrics at all (`labels` is false), never a zero.
    """
    parts = subject_estimates(records)
    there = Counter(record.subject for record in records)
    labelled = bool(parts)
    missing = [s for s, n in expected.items() if there[s] < n or (labelled and s not in parts)]
    out: dict[str, Any] = {
        "n": len(records),
        "labels": labelled,
        "headline": HEADLINES[task.average],
        "missing": missing,
        "metrics": {},
        "categories": {},
        "groups": {},
        "subjects": {s: asdict(parts[s]) for s in task.subjects if s in parts},
    }
    if labelled and not missing:
        rules = [task.average, *(r for r in ("micro", "macro") if r != task.average)]
        out["metrics"] = {HEADLINES[r]: asdict(average(r, parts, task)) for r in rules}
        guess = chance([r for r in records if r.correct is not None])
        out["chance"] = guess
        value = out["metrics"]["acc/micro"]["value"]
        out["chance_corrected"] = (value - guess) / (1 - guess) if guess < 1 else 0.0
        for kind, sets in (("categories", task.categories), ("groups", task.groups)):
            for name, members in sets.items():
                chosen = {s: parts[s] for s in members if s in parts}
                if chosen:
                    out[kind][name] = {
                        HEADLINES[r]: asdict(average(r, chosen, task)) for r in rules
                    } | {"subjects": len(chosen)}
    return out | _from_logits(records)


def _from_logits(records: Sequence[Record]) -> dict[str, Any]:
    letters = sorted({label for record in records for label in record.logprobs})
    predicted = Counter(p for record in records for p in record.prediction)
    gold = Counter(a for record in records for a in record.answer)
    masses = [record.choice_mass for record in records]
    return {
        "ties": sum(record.tie for record in records),
        "unanswered": sum(not record.prediction for record in records),
        "bounded": sum(bool(record.bounded) for record in records),
        "choice_mass": sum(masses) / len(masses) if masses else None,
        "letters": {
            label: {"predicted": predicted[label], "gold": gold[label]} for label in letters
        },
        "shots_shown": dict(sorted(Counter(str(record.shots) for record in records).items())),
    }
