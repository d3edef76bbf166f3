"""Records → values. Every number here is recomputable from `records.jsonl` and the task table."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ceval_suite import stats
from ceval_suite.schema import Estimate, Record, TextRecord
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
    masses = [record.choice_mass for record in records if record.choice_mass is not None]
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


def bits(records: Sequence[TextRecord]) -> dict[str, Any]:
    """Totals, bits per byte and perplexity per character of measured texts, and by language.

    Intervals come from a bootstrap over texts, those that share a passage together; of a single
    text there is none, and `low`, `high` and `stderr` are null.
    """
    languages = sorted({record.language for record in records if record.language})
    return _bits(records) | {
        "languages": {name: _bits([r for r in records if r.language == name]) for name in languages}
    }


def _bits(records: Sequence[TextRecord]) -> dict[str, Any]:
    totals: dict[str, Any] = {
        "n": len(records),
        "logprob": math.fsum(record.logprob for record in records),
        "tokens": sum(record.tokens for record in records),
        "unknown": sum(record.unknown for record in records),
        "bytes": sum(record.size for record in records),
        "characters": sum(record.characters for record in records),
    }
    if not records:
        return totals
    per_byte = rate(records, [-r.logprob / math.log(2) for r in records], "size")
    nats = rate(records, [-r.logprob for r in records], "characters")
    value = math.exp(nats["value"])
    perplexity = {
        "value": value,
        "n": nats["n"],
        "stderr": None if nats["stderr"] is None else value * nats["stderr"],
        "low": None if nats["low"] is None else math.exp(nats["low"]),
        "high": None if nats["high"] is None else math.exp(nats["high"]),
    }
    return totals | {"bits_per_byte": per_byte, "perplexity_per_character": perplexity}


def rate(records: Sequence[TextRecord], amounts: Sequence[float], per: str) -> dict[str, Any]:
    """Σ amounts over Σ bytes (`size`) or characters, with a bootstrap over texts, as a mapping."""
    over: defaultdict[str, float] = defaultdict(float)
    under: defaultdict[str, float] = defaultdict(float)
    for record, amount in zip(records, amounts, strict=True):
        over[record.cluster] += amount
        under[record.cluster] += getattr(record, per)
    if len(over) > 1:
        found = asdict(stats.ratio(list(over.values()), list(under.values())))
        return found | {"n": len(records)}
    value = sum(over.values()) / sum(under.values())
    return {"value": value, "n": len(records), "stderr": None, "low": None, "high": None}
