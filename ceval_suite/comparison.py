"""Two models on the same items and texts, from their records alone: differences, tests, budgets.

Nothing here loads a model or formats a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ceval_suite import differences, exclusions, flips, metrics, stats
from ceval_suite.catalog import load_task
from ceval_suite.differences import Difference, Part
from ceval_suite.errors import RunError
from ceval_suite.exclusions import Exclusions
from ceval_suite.records import BITS, find_bits, find_runs, read_json, read_lines, read_records
from ceval_suite.schema import Estimate, Record, TextRecord

ASKED = (
    *("task", "protocol", "split", "shots", "limit", "subset", "chat", "subjects", "same_shots"),
    "data",
)
"""Keys of run.json that say what was asked, in the order in which a difference is told."""


@dataclass(frozen=True)
class Side:
    """One run folder: what run.json says and its records by id."""

    path: Path
    about: Mapping[str, Any]
    records: Mapping[str, Record]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.about["identity"].get("model", self.path.parent.name))

    @property
    def protocol(self) -> str:
        """The fingerprint of all that was asked."""
        return str(self.about["identity"].get("protocol_sha256", ""))


@dataclass(frozen=True)
class Budget:
    """What the prompts of one side took and showed, over the common items.

    `fewer` counts the items that show fewer shots than asked for, to fit the context.
    """

    prompt_tokens: int
    longest: int
    shots: int
    fewer: int


@dataclass(frozen=True)
class Versus:
    """Two runs of one protocol, item by item.

    `averages` maps the name of an average, the official one first, to both sides' values and
    their difference (second less first). Items that only one side has count in `alone`;
    `shots_differ` counts items that show different numbers of shots. `same_tokenizer` is None
    where a run does not say which it used. Where items have several sub-questions or share
    passages (`clustered`), `p` and the intervals are of clusters, not McNemar's and Tango's.
    `p` decides about acc/micro, by the test that belongs to its interval; `exact` is the exact
    McNemar test's, None where clustered. `differences` say more of each average, `resampled` is
    the paired bootstrap of each with its p, and `pairs` are the common records.
    """

    first: Side
    second: Side
    n: int
    labelled: int
    alone: tuple[int, int]
    averages: Mapping[str, tuple[Estimate, Estimate, Estimate]]
    fixed: int
    broke: int
    p: float
    clustered: bool
    budgets: tuple[Budget, Budget]
    shots_differ: int
    same_tokenizer: bool | None
    exact: float | None
    differences: Mapping[str, Difference]
    resampled: Mapping[str, tuple[Estimate, float]]
    pairs: Sequence[tuple[Record, Record]]

    @cached_property
    def judged(self) -> list[tuple[Record, Record]]:
        """The common items that both sides have a verdict on."""
        return [(a, b) for a, b in self.pairs if a.correct is not None and b.correct is not None]

    @cached_property
    def both(self) -> flips.Both:
        """Both sides' distributions over the letters, where they are over the same ones."""
        return flips.both(self.pairs)

    def subjects(self) -> list[Part]:
        """The difference in every subject, with Holm's p over all subjects."""
        return differences.by_subject(load_task(str(self.first.about["task"])), self.judged)

    def categories(self) -> list[Part]:
        """The difference in every category, with Holm's p over all categories."""
        return differences.by_category(load_task(str(self.first.about["task"])), self.judged)


@dataclass(frozen=True)
class Texts:
    """Two measurements of the same texts: both sides' bits per byte and their difference.

    Each is a mapping as in summary.json; `windows` are those of the two sides, in tokens, and
    `rolled` counts the texts that are longer than the smaller one.
    """

    group: str
    language: str
    models: tuple[str, str]
    n: int
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    difference: Mapping[str, Any]
    windows: tuple[int, ...]
    rolled: int


def runs(folder: Path) -> list[Side]:
    """The run in a folder, or all runs below it.

    Raises:
        RunError: not there, no runs in it, or a broken one.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist; give a run folder or a folder of run folders.")
    single = (folder / "run.json").is_file()
    if single and BITS.fullmatch(folder.name):
        return []
    found: list[Side] = []
    for path in [folder] if single else find_runs(folder):
        records = read_records(path / "records.jsonl")
        found.append(Side(path, read_json(path / "run.json"), {r.id: r for r in records}))
    models = {side.model for side in found}
    if len(models) > 1:
        raise RunError(
            f"{folder} holds runs of {len(models)} models ({', '.join(sorted(models))}); give the "
            "folder of one of them."
        )
    return found


def pair(first: Path, second: Path) -> tuple[list[tuple[Side, Side]], list[Side]]:
    """Runs of equal protocol below two folders, and those that the other folder lacks.

    Raises:
        RunError: neither a pair of runs nor a pair of measured texts, and why.
    """
    ours, theirs = runs(first), runs(second)
    for found in (ours, theirs):
        _once(found)
    by_protocol = {side.protocol: side for side in theirs}
    pairs = [(one, by_protocol[one.protocol]) for one in ours if one.protocol in by_protocol]
    common = {one.protocol for one, _ in pairs}
    alone = [side for side in (*ours, *theirs) if side.protocol not in common]
    if pairs or _measured(first).keys() & _measured(second).keys():
        return pairs, alone
    for folder, found in ((first, ours), (second, theirs)):
        if not found:
            raise RunError(f"{folder} holds no runs that could be compared; give a run folder.")
    tasks = {side.about.get("task"): side for side in theirs}
    for one in ours:
        other = tasks.get(one.about.get("task"))
        if other is not None:
            raise RunError(
                f"{one.path} and {other.path} are of different protocols ({unlike(one, other)}); "
                "only answers to the same questions can be compared: run one of them again."
            )
    raise RunError(f"{first} and {second} have no task in common; run both on the same tasks.")


def _once(found: Sequence[Side]) -> None:
    seen: dict[str, Path] = {}
    for side in found:
        other = seen.setdefault(side.protocol, side.path)
        if other != side.path:
            raise RunError(
                f"{other} and {side.path} are two runs of one protocol by one model; name one of "
                "them, or remove the other."
            )


def unlike(one: Side, other: Side) -> str:
    """The first thing in which two runs were asked differently, in words."""
    for key in ASKED:
        a, b = one.about.get(key), other.about.get(key)
        if key == "data":
            a, b = ((of or {}).get("sha256", "")[:8] for of in (a, b))
        if key == "subset":
            a, b = (of and f"of {of['items']} items, seed {of['seed']}," for of in (a, b))
        if a != b:
            return f"{key} {_words(a)} and {_words(b)}"
    return "the wording or version of the task"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def versus(first: Side, second: Side, *, resample: bool = True) -> Versus:
    """Everything that two runs of one protocol say about each other; a bootstrap if wanted.

    Raises:
        RunError: no item in common, or one whose gold labels differ.
    """
    common = [item for item in first.records if item in second.records]
    if not common:
        raise RunError(f"{first.path} and {second.path} have no finished item in common.")
    pairs = [(first.records[item], second.records[item]) for item in common]
    for a, b in pairs:
        if a.answer != b.answer or a.subject != b.subject:
            raise RunError(f"item {a.id} has two gold labels in {first.path} and {second.path}.")
    judged = [(a, b) for a, b in pairs if a.correct is not None and b.correct is not None]
    task = load_task(str(first.about["task"]))
    fixed, broke = differences.counts(judged)
    clustered = not differences.alone(judged)
    sizes = subset_sizes(first)
    found = differences.averages(task, judged, sizes) if judged else {}
    return Versus(
        first=first,
        second=second,
        n=len(common),
        labelled=len(judged),
        alone=(len(first.records) - len(common), len(second.records) - len(common)),
        averages={name: (one.first, one.second, one.change) for name, one in found.items()},
        fixed=fixed,
        broke=broke,
        p=found["acc/micro"].p if found else 1.0,
        clustered=clustered,
        budgets=(_budget(first, common), _budget(second, common)),
        shots_differ=sum(a.shots != b.shots for a, b in pairs),
        same_tokenizer=_same_tokenizer(first, second),
        exact=None if clustered else stats.mcnemar(fixed, broke),
        differences=found,
        resampled=differences.resampled(task, judged, sizes) if judged and resample else {},
        pairs=pairs,
    )


def subset_sizes(side: Side) -> Mapping[str, int] | None:
    """The records that subjects have in the whole, where a run is of a subset."""
    subset = side.about.get("subset")
    return subset["sizes"] if subset else None


def without(side: Side, lists: Sequence[Exclusions]) -> Side:
    """A run without the items that some lists name."""
    kept = exclusions.without(side.records.values(), lists)
    return replace(side, records={record.id: record for record in kept})


def _budget(side: Side, items: Sequence[str]) -> Budget:
    records = [side.records[item] for item in items]
    asked = int(side.about.get("shots") or 0)
    held: Mapping[str, int] = side.about.get("shots_held") or {}
    return Budget(
        prompt_tokens=sum(record.prompt_tokens for record in records),
        longest=max(record.prompt_tokens for record in records),
        shots=sum(record.shots for record in records),
        fewer=sum(record.shots < held.get(record.subject, asked) for record in records),
    )


def _same_tokenizer(first: Side, second: Side) -> bool | None:
    prints = [side.about["identity"].get("tokenizer_sha256") for side in (first, second)]
    return None if None in prints else prints[0] == prints[1]


def _measured(folder: Path) -> dict[str, Path]:
    """Folders of measured texts at or below a folder, or beside it if it is a single run."""
    single = (folder / "run.json").is_file()
    return {
        str(read_json(path / "run.json")["identity"]["protocol_sha256"]): path
        for path in find_bits(folder.parent if single else folder)
    }


def texts(first: Path, second: Path) -> list[Texts]:
    """Bits per byte of all texts that both sides have measured in the same way.

    One entry a group, and one a language where more than one group has it.
    """
    ours, theirs = _measured(first), _measured(second)
    found: list[Texts] = []
    by_language: dict[str, list[tuple[TextRecord, TextRecord]]] = {}
    for key in [key for key in ours if key in theirs]:
        abouts = [read_json(side[key] / "run.json") for side in (ours, theirs)]
        a, b = ({r.id: r for r in _read(side[key])} for side in (ours, theirs))
        pairs = [(a[item], b[item]) for item in a if item in b]
        if not pairs:
            continue
        names = (str(abouts[0]["identity"]["model"]), str(abouts[1]["identity"]["model"]))
        windows = tuple(int(about["windows"]["window"]) for about in abouts)
        group = str(abouts[0]["group"])
        languages = sorted({one.language for one, _ in pairs})
        found.append(_texts(group, ", ".join(filter(None, languages)), names, pairs, windows))
        for one in pairs:
            by_language.setdefault(one[0].language, []).append(one)
    found.sort(key=lambda one: one.group)
    if len(found) > 1:
        for language in sorted(filter(None, by_language)):
            found.append(_texts("", language, found[0].models, by_language[language], ()))
    return found


def _read(folder: Path) -> Sequence[TextRecord]:
    return list(read_lines(folder / "records.jsonl", TextRecord))


def _texts(
    group: str,
    language: str,
    models: tuple[str, str],
    pairs: Sequence[tuple[TextRecord, TextRecord]],
    windows: tuple[int, ...],
) -> Texts:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    change = [(a.logprob - b.logprob) / math.log(2) for a, b in pairs]
    return Texts(
        group=group,
        language=language,
        models=models,
        n=len(pairs),
        first=metrics.bits(ours),
        second=metrics.bits(theirs),
        difference=metrics.rate(ours, change, "size"),
        windows=windows,
        rolled=sum(max(a.tokens, b.tokens) > min(windows, default=math.inf) for a, b in pairs),
    )
