"""Records → values. Every number here is recomputable from `records.jsonl` and the task table."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ceval_suite import (
    bias,
    bootstrap,
    calibration,
    consistency,
    distributions,
    methods,
    stats,
    stratified,
)
from ceval_suite.outcomes import outcomes
from ceval_suite.schema import Estimate, Record, TextRecord
from ceval_suite.specs import Subject, Task

HEADLINES = {"micro": "acc/micro", "macro": "acc/macro", "points": "points"}


@dataclass(frozen=True)
class Part:
    """One subject: its accuracy over records, and the share of its points that were earned.

    They are equal where nothing but the exact answer earns points. `plain` says that every record
    is independent of the others: an item of its own, with no passage that others share.
    """

    accuracy: Estimate
    score: Estimate
    plain: bool = True


def parts_of(records: Iterable[Record]) -> dict[str, Part]:
    """Accuracy and score per subject over the records that have a gold label."""
    by_subject: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.correct is not None:
            by_subject[record.subject].append(record)
    return {subject: _part(some) for subject, some in by_subject.items()}


def _part(records: Sequence[Record]) -> Part:
    return Part(
        methods.share(records, lambda r: float(bool(r.correct))),
        methods.share(records, methods.score),
        len({methods.cluster(r) for r in records}) == len(records),
    )


def micro(parts: Sequence[Part]) -> Estimate:
    """Accuracy over all records of the given subjects."""
    found = [part.accuracy for part in parts]
    if len(found) > 1 and not all(part.plain for part in parts):
        return stats.weighted(found, [float(e.n) for e in found])
    if not all(part.plain for part in parts):
        return found[0]
    return stats.wilson(sum(e.value * e.n for e in found), sum(e.n for e in found))


def macro(parts: Sequence[Part]) -> Estimate:
    """Mean of the subjects' accuracies."""
    return stats.weighted([part.accuracy for part in parts], [1.0] * len(parts))


def points(parts: Mapping[str, Part], task: Task) -> Estimate:
    """Points earned over points possible (GAOKAO-Bench's scoring rate)."""
    weights = [task.subjects[s].points * part.score.n for s, part in parts.items()]
    return stats.weighted([part.score for part in parts.values()], weights)


def average(
    rule: str,
    parts: Mapping[str, Part],
    task: Task,
    sizes: Mapping[str, int] | None = None,
    *,
    whole: bool = False,
) -> Estimate:
    """One of the named averages over subjects.

    Of a subset, `sizes` are the records that subjects have in the whole: the average is that of the
    whole, estimated by subject, and with `whole` so is the interval (see `stratified`).
    """
    if sizes:
        each = [part.score if rule == "points" else part.accuracy for part in parts.values()]
        counts = [sizes[s] for s in parts]
        worth = weights(rule, task, {s: sizes[s] for s in parts})
        return stratified.average(each, worth, counts if whole else None)
    if rule == "points":
        return points(parts, task)
    return micro(list(parts.values())) if rule == "micro" else macro(list(parts.values()))


def weights(rule: str, task: Task, counts: Mapping[str, int]) -> list[float]:
    """What each subject weighs in an average, having so many records."""
    if rule == "macro":
        return [1.0] * len(counts)
    return [n * (task.subjects[s].points if rule == "points" else 1.0) for s, n in counts.items()]


def chance(records: Sequence[Record], task: Task) -> float:
    """Expected share of right answers of a guesser, over the records with a gold label.

    A letter is guessed among those that were scored, or, where none was, among those of the
    subject; a set of letters among all sets that are not empty; free text is never guessed.
    """
    shares = [_guess(r, task.subjects.get(r.subject)) for r in records if r.answer]
    return sum(shares) / len(shares) if shares else 0.0


def _guess(record: Record, subject: Subject | None) -> float:
    scored = [label for label in record.logprobs if len(label) == 1]
    options = len(_labels(record, subject))
    if not options:
        return 0.0
    several = (subject is not None and subject.kind == "multi") or len(record.answer) > 1
    if len(scored) < len(record.logprobs) or (not scored and several):
        return 1 / (2**options - 1)
    return len(record.answer) / options


def _labels(record: Record, subject: Subject | None) -> list[str]:
    """The letters that a record's answer was looked for among."""
    scored = [label for label in record.logprobs if len(label) == 1]
    if scored or subject is None or subject.kind == "cloze":
        return scored
    return list(subject.labels)


def summarize(
    task: Task,
    records: Sequence[Record],
    expected: Mapping[str, int],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """All metrics of a run, in the shape of `summary.json`.

    `expected` says how many records each subject should have. Averages appear only when all are
    there; a subject that lacks some, or alone lacks every gold label, is named under `missing`.
    Of a subset, `sizes` are the records that subjects have in the whole; averages are estimates of
    the whole's, and `whole` has them with the interval of what a run of the whole would come to.
    Without any gold label there are no metrics at all (`labels` is false), never a zero; else the
    records that lack one stand under `unlabelled`, by id. `points`, `extraction`, `methods`,
    `opinions`, `circular`, `calibration`, `bias`, `margins` and `low_mass_rate` are there where
    records have what they tell about.
    """
    parts = parts_of(records)
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
        "subjects": {s: asdict(parts[s].accuracy) for s in task.subjects if s in parts},
    }
    if labelled and not missing:
        rules = [task.average, *(r for r in ("micro", "macro") if r != task.average)]
        out["metrics"] = {HEADLINES[r]: asdict(average(r, parts, task, sizes)) for r in rules}
        if sizes and all(there[subject] for subject, n in sizes.items() if n):
            whole = {r: average(r, parts, task, sizes, whole=True) for r in rules}
            out["whole"] = {HEADLINES[r]: asdict(found) for r, found in whole.items()}
        guess = chance([r for r in records if r.correct is not None], task)
        out["chance"] = guess
        value = out["metrics"]["acc/micro"]["value"]
        out["chance_corrected"] = (value - guess) / (1 - guess) if guess < 1 else 0.0
        for kind, sets in (("categories", task.categories), ("groups", task.groups)):
            for name, members in sets.items():
                chosen = {s: parts[s] for s in members if s in parts}
                if chosen:
                    out[kind][name] = {
                        HEADLINES[r]: asdict(average(r, chosen, task, sizes)) for r in rules
                    } | {"subjects": len(chosen)}
    return out | _from_logits(task, records) | _where_they_apply(task, records, parts)


def _where_they_apply(
    task: Task, records: Sequence[Record], parts: Mapping[str, Part]
) -> dict[str, Any]:
    earned = _points(task, records, parts) if task.average == "points" else {}
    unlabelled = [r.id for r in records if r.correct is None] if parts else []
    letters = distributions.of(records)
    blocks: dict[str, Any] = {
        "points": earned,
        "unlabelled": dict.fromkeys(unlabelled, "no gold label in the published file"),
        "extraction": methods.extraction(records),
        "methods": methods.block(records),
        "opinions": methods.opinions(records),
        "circular": consistency.block(task, records),
        "calibration": calibration.block(letters),
        "bias": bias.block(letters),
        "margins": bias.margins(letters),
        "outcomes": outcomes(task, records),
    }
    rate = bias.low_mass_rate(records)
    if rate is not None:
        blocks["low_mass_rate"] = rate
    return {name: found for name, found in blocks.items() if found != {}}


def _points(task: Task, records: Sequence[Record], parts: Mapping[str, Part]) -> dict[str, Any]:
    """Points earned and possible by subject, over the labelled records that are there."""
    earned: defaultdict[str, float] = defaultdict(float)
    for record in records:
        if record.correct is not None:
            earned[record.subject] += methods.score(record) * task.subjects[record.subject].points
    return {
        s: {"earned": earned[s], "possible": task.subjects[s].points * parts[s].score.n}
        | {"rate": asdict(parts[s].score)}
        for s in task.subjects
        if s in parts
    }


def _from_logits(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    found = {x for r in records for x in _labels(r, task.subjects.get(r.subject))}
    predicted = Counter(p for record in records for p in record.prediction)
    gold = Counter(a for record in records for a in record.answer)
    masses = [record.choice_mass for record in records if record.choice_mass is not None]
    return {
        "ties": sum(record.tie for record in records),
        "unanswered": sum(not record.prediction for record in records),
        "bounded": sum(bool(record.bounded) for record in records),
        "choice_mass": sum(masses) / len(masses) if masses else None,
        "letters": {
            label: {"predicted": predicted[label], "gold": gold[label]} for label in sorted(found)
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
        found = asdict(bootstrap.ratio(list(over.values()), list(under.values())))
        return found | {"n": len(records)}
    value = sum(over.values()) / sum(under.values())
    return {"value": value, "n": len(records), "stderr": None, "low": None, "high": None}
