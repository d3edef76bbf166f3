"""Summaries of runs → one column of a board: who scored what, and who is better than whom.

Columns never mix protocols. What a column needs beyond the summaries' own averages (a group of
subjects, a list of items left out, paired tests) comes from their block of outcomes, or from the
records beside a summary that has none. Nothing here formats a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ceval_suite import boards, metrics, outcomes, ranking, stats
from ceval_suite.boards import Column
from ceval_suite.catalog import load_task
from ceval_suite.errors import RunError, UserError
from ceval_suite.exclusions import Exclusions
from ceval_suite.outcomes import Outcomes
from ceval_suite.records import read_records
from ceval_suite.schema import Estimate
from ceval_suite.specs import Task

Summary = Mapping[str, Any]

RULES = {headline: rule for rule, headline in metrics.HEADLINES.items()}


@dataclass(frozen=True)
class Entry:
    """One model in one column: its average, or why there is none; what it came to item by item."""

    summary: Summary | None
    value: Estimate | None
    reason: str = ""
    outcomes: Outcomes | None = None


@dataclass(frozen=True)
class Standing:
    """One column: entries by model, ranks of those that were tested, and why others were not.

    `rule` is the average. `tested` gives the place of each tested model in `ranks`; `untested` the
    reason for each of the others that have a number. `left_out` counts items that lists name.
    """

    title: str
    rule: str
    entries: Mapping[str, Entry]
    tested: Mapping[str, int] = field(default_factory=dict[str, int])
    ranks: ranking.Ranks | None = None
    untested: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: int = 0
    pairs: ranking.Pairs | None = None

    def values(self) -> dict[str, float]:
        """The averages of the models that have one."""
        return {m: e.value.value for m, e in self.entries.items() if e.value is not None}

    def summaries(self) -> list[Summary]:
        """The summaries of the column, in the order of their models."""
        return [e.summary for e in self.entries.values() if e.summary is not None]


def by_model(summaries: Iterable[Summary], what: str) -> dict[str, Summary]:
    """The summaries of one column by model.

    Raises:
        RunError: one model has two.
    """
    found: dict[str, Summary] = {}
    for summary in summaries:
        model = str(summary["model"])
        if model in found:
            where = [str(s.get("folder", "")) for s in (found[model], summary)]
            places = f" ({where[0]} and {where[1]})" if all(where) else ""
            raise RunError(f"model '{model}' has two runs of {what}; remove one{places}.")
        found[model] = summary
    return dict(sorted(found.items()))


def standing(
    title: str,
    summaries: Mapping[str, Summary],
    column: Column | None = None,
    lists: Sequence[Exclusions] = (),
) -> Standing:
    """One column over the runs of one protocol.

    `column` may narrow it to some subjects or name another average; items that `lists` name are
    left out of everything.
    """
    some = next((s for s in summaries.values() if s.get("headline")), None)
    rule = column.average if column is not None and column.average else None
    rule = rule or (RULES[str(some["headline"])] if some else "macro")
    task = _task(summaries)
    chosen = boards.members(column, task) if column is not None and task is not None else None
    cut = _Cut(rule, task, chosen, frozenset(i for one in lists for i in one.items))
    entries = {model: cut.entry(summary) for model, summary in summaries.items()}
    tested, untested = _comparable(entries)
    ranks = pairs = None
    if len(tested) > 1:
        points = {s: row.points for s, row in task.subjects.items()} if task else {}
        runs = [found for m in tested if (found := entries[m].outcomes) is not None]
        pairs = ranking.pairs(runs, rule, points)
        ranks = ranking.ranks(pairs)
    return Standing(title, rule, entries, tested, ranks, untested, cut.left_out, pairs)


def _task(summaries: Mapping[str, Summary]) -> Task | None:
    """The task's own table, where it is known here; runs that others made may be of other tasks."""
    for summary in summaries.values():
        try:
            return load_task(str(summary["task"]))
        except UserError:
            return None
    return None


@dataclass
class _Cut:
    """The part of a run that a column is about; runs of the same items share the selection."""

    rule: str
    task: Task | None
    subjects: Sequence[str] | None
    without: frozenset[str]
    left_out: int = 0
    _kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def entry(self, summary: Summary) -> Entry:
        reason = _reason(summary)
        if reason:
            return Entry(summary, None, reason)
        try:
            found, trouble = _outcomes(summary, self.task), "the run has no outcomes to compare"
        except UserError as error:
            found, trouble = None, str(error)
        if self.subjects is None and not self.without:
            headline = summary["metrics"].get(metrics.HEADLINES[self.rule])
            if headline is None:
                return Entry(summary, None, "no average", found)
            value = Estimate(**{k: headline[k] for k in ("value", "n", "stderr", "low", "high")})
            return Entry(summary, value, "" if found else trouble, found)
        if found is None or self.task is None:
            return Entry(summary, None, "no outcomes")
        lacking = [s for s in self.subjects or () if s not in found.subjects]
        if lacking:
            return Entry(summary, None, f"lacks {lacking[0]}")
        found = self._narrowed(found)
        if not found.n:
            return Entry(summary, None, "no items left")
        parts = parts_of(found)
        return Entry(summary, metrics.average(self.rule, parts, self.task), "", found)

    def _narrowed(self, found: Outcomes) -> Outcomes:
        if found.ids_sha256 not in self._kept:
            ids = found.ids()
            names = list(found.subjects)
            within = np.array([self.subjects is None or s in self.subjects for s in names])
            keep = within[found.subject]
            out = np.array([id.partition("#")[0] in self.without for id in ids])
            self.left_out = max(self.left_out, len({ids[k] for k in np.flatnonzero(keep & out)}))
            kept = keep & ~out
            self._kept[found.ids_sha256] = (kept, found.only(kept))
        kept, first = self._kept[found.ids_sha256]
        return found.like(first, kept)


def _reason(summary: Summary) -> str:
    if not summary.get("complete"):
        return "unfinished"
    if not summary.get("n"):
        return "nothing scored"
    if not summary.get("labels"):
        return "no labels"
    return "" if summary["metrics"] else "no average"


def _outcomes(summary: Summary, task: Task | None) -> Outcomes | None:
    """The block of a summary, else the records beside it."""
    folder = str(summary.get("folder", ""))
    block = summary.get("outcomes")
    if block:
        return outcomes.read(block, f"{folder}/summary.json" if folder else "summary.json")
    records = Path(folder) / "records.jsonl"
    if not folder or task is None or not records.is_file():
        return None
    made = outcomes.outcomes(task, read_records(records))
    return outcomes.read(made, str(records)) if made else None


def parts_of(found: Outcomes) -> dict[str, metrics.Part]:
    """Accuracy and score per subject, as `metrics.parts_of` has them from records."""
    out: dict[str, metrics.Part] = {}
    at = 0
    for subject, n in found.subjects.items():
        span = slice(at, at + n)
        at += n
        codes = range(n) if found.cluster is None else found.cluster[span].tolist()
        names = [str(code) for code in codes]
        right, score = (x[span].astype(float).tolist() for x in (found.right, found.score))
        plain = len(set(names)) == n
        out[subject] = metrics.Part(stats.share(right, names), stats.share(score, names), plain)
    return out


def _comparable(entries: Mapping[str, Entry]) -> tuple[dict[str, int], dict[str, str]]:
    """Models of the largest set with the same items, and why the others are not tested."""
    groups: dict[str, list[str]] = {}
    untested: dict[str, str] = {}
    for model, entry in entries.items():
        if entry.value is None:
            continue
        if entry.outcomes is None:
            untested[model] = entry.reason
        else:
            groups.setdefault(entry.outcomes.ids_sha256, []).append(model)
    tested = max(groups.values(), key=len, default=[])
    for models in groups.values():
        if models is not tested:
            untested |= dict.fromkeys(models, "other items than the rest of the column")
    return _places(tested), untested


def _places(models: Iterable[str]) -> dict[str, int]:
    return {model: at for at, model in enumerate(models)}


def mean(title: str, columns: Sequence[Standing]) -> Standing:
    """The mean of columns, for models that have all of them; tested where all of these were."""
    models = sorted({model for column in columns for model in column.entries})
    entries: dict[str, Entry] = {}
    for model in models:
        found = [column.entries.get(model) for column in columns]
        lacking = [c.title for c, e in zip(columns, found, strict=True) if e is None or not e.value]
        values = [e.value for e in found if e is not None and e.value is not None]
        if lacking:
            entries[model] = Entry(None, None, f"lacks {', '.join(lacking)}")
        else:
            entries[model] = Entry(None, stats.weighted(values, [1.0] * len(values)))
    whole = [m for m in models if entries[m].value is not None]
    tested = _places(m for m in whole if all(m in column.tested for column in columns))
    untested = {m: "not tested in every column" for m in whole if m not in tested}
    ranks = pairs = None
    if len(tested) > 1:
        parts = [
            ranking.of(column.pairs, [column.tested[m] for m in tested])
            for column in columns
            if column.pairs is not None
        ]
        pairs = ranking.joined(parts)
        ranks = ranking.ranks(pairs)
    left_out = sum(column.left_out for column in columns)
    return Standing(title, "mean", entries, tested, ranks, untested, left_out, pairs)


def agreements(
    standings: Sequence[Standing],
) -> list[tuple[str, str, ranking.Agreement]]:
    """Every two columns that order at least three common models, and how alike they do."""
    out: list[tuple[str, str, ranking.Agreement]] = []
    for at, one in enumerate(standings):
        for other in standings[at + 1 :]:
            found = ranking.agreement(one.values(), other.values())
            if found is not None:
                out.append((one.title, other.title, found))
    return out
