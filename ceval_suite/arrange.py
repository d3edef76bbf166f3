"""Which runs stand in which column of a board: by its definition, or by what was run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any

from ceval_suite import boards, catalog
from ceval_suite.boards import Board, Column, Model
from ceval_suite.errors import ConfigError, UserError, unknown
from ceval_suite.exclusions import Exclusions
from ceval_suite.schema import Estimate
from ceval_suite.specs import Task
from ceval_suite.standings import Standing, Summary, by_model, mean, standing

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Place:
    """One column of a board with the runs in it; `standing` is None where it shows no scores.

    `without` is the same column without the items that lists of exclusions name.
    """

    title: str
    column: Column
    standing: Standing | None = None
    without: Standing | None = None


@dataclass(frozen=True)
class Arranged:
    """A board filled in: its columns, its models by name, and the runs that fit no column."""

    places: Sequence[Place]
    models: Mapping[str, Model]
    unfit: Sequence[Summary] = ()
    lists: Sequence[Exclusions] = field(default_factory=tuple[Exclusions, ...])


def named(
    board: Board,
    summaries: Sequence[Summary],
    lists: Sequence[Exclusions] = (),
    language: str | None = None,
) -> Arranged:
    """A defined board over runs. A column whose runs are of two protocols becomes two columns.

    Raises:
        ConfigError: the language leaves nothing.
        RunError: a model has two runs in one column.
    """
    models = _models(board, summaries)
    left = {id(s): s for s in summaries if str(s["model"]) in models}
    jobs: list[_Job] = []
    for title, column in board.columns.items():
        if column.published is not None and not _spoken(column.published, language):
            continue
        if column.task is None:
            jobs.append(_Job(title, column))
            continue
        spoken = narrowed(title, column, language)
        if spoken is None:
            continue
        fitting = [s for s in left.values() if fits(column, s)]
        for summary in fitting:
            left.pop(id(summary))
        jobs += _split(*spoken, fitting)
    places: list[Place] = []
    for place in _places(jobs, lists):
        mean = place.column.mean
        places.append(place if mean is None else _mean(place.title, place.column, places))
    places = [p for p in places if p.column.mean is None or p.standing is not None]
    if not any(p.standing or p.column.published for p in places):
        raise ConfigError(f"the board has no column in language '{language}'.")
    return Arranged(places, models, list(left.values()), lists)


def of_runs(
    summaries: Sequence[Summary],
    titles: Mapping[str, str],
    lists: Sequence[Exclusions] = (),
    language: str | None = None,
) -> Arranged:
    """A column for every protocol that was run; `titles` names each by its fingerprint.

    Raises:
        ConfigError: the language leaves nothing.
        RunError: a model has two runs in one column.
    """
    jobs: list[_Job] = []
    for key, title in titles.items():
        some = [s for s in summaries if s["protocol_sha256"] == key]
        column = Column(task=str(some[0]["task"]))
        spoken = narrowed(title, column, language)
        if spoken is not None:
            jobs.append(_Job(*spoken, some, what=title))
    if not jobs:
        raise ConfigError(f"no run is of a benchmark in language '{language}'.")
    names = sorted({str(s["model"]) for s in summaries})
    return Arranged(_places(jobs, lists), {name: Model() for name in names}, (), lists)


def fits(column: Column, summary: Summary) -> bool:
    """Whether a run is of a column's protocol, in words; fingerprints are told apart later."""
    task, protocol, template = boards.settle(column)
    shots = task.shots if column.shots is None else column.shots
    if template.shots is not None:
        shots = template.shots
    asked = (task.name, protocol, column.split or task.split, shots, column.limit, column.chat)
    told = tuple(summary.get(k) for k in ("task", "protocol", "split", "shots", "limit", "chat"))
    if asked != told or any(summary.get(k) for k in ("same_shots", "labels_from", "subset")):
        return False
    chosen = summary.get("subjects_chosen")
    within = boards.members(column, task)
    return not chosen or (within is not None and set(within) <= set(chosen))


def narrowed(title: str, column: Column, language: str | None) -> tuple[str, Column] | None:
    """A column with its subjects of one language only; None where it has none."""
    if language is None:
        return title, column
    if language not in LANGUAGES:
        raise ConfigError(unknown("language", language, LANGUAGES))
    try:
        task = catalog.load_task(column.task or "")
    except UserError:
        return None
    within = boards.members(column, task) or list(task.subjects)
    spoken = [s for s in within if _language(task, s) == language]
    if not spoken:
        return None
    if len(spoken) == len(within):
        return title, column
    narrow = column.model_copy(update={"subjects": spoken, "group": None, "reported": ""})
    return f"{title}, {language} subjects", narrow


def _language(task: Task, subject: str) -> str:
    return task.subjects[subject].language or task.language


def _spoken(published: str, language: str | None) -> bool:
    """Whether a published column may be of a language; of a benchmark unknown here it may."""
    if language is None or published not in catalog.task_names():
        return True
    return narrowed("", Column(task=published), language) is not None


@dataclass(frozen=True)
class _Job:
    """A column and the runs that stand in it; without any it only holds its place."""

    title: str
    column: Column
    summaries: Iterable[Summary] | None = None
    what: str = ""


def _split(title: str, column: Column, summaries: Sequence[Summary]) -> list[_Job]:
    prints = sorted({str(s["protocol_sha256"]) for s in summaries})
    if len(prints) < 2:
        return [_Job(title, column, summaries, title)]
    out: list[_Job] = []
    for key in prints:
        some = [s for s in summaries if s["protocol_sha256"] == key]
        name = f"{title} #{key[:8]}"
        out.append(_Job(name, column, some, name))
    return out


def _places(jobs: Sequence[_Job], lists: Sequence[Exclusions]) -> list[Place]:
    """Columns in their order, two computed at a time: arrays of many models take the time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(_place, jobs, repeat(lists)))


def _place(job: _Job, lists: Sequence[Exclusions]) -> Place:
    if job.summaries is None:
        return Place(job.title, job.column)
    found = by_model(job.summaries, job.what)
    less = standing(job.title, found, job.column, lists) if lists else None
    return Place(job.title, job.column, standing(job.title, found, job.column), less)


def _mean(title: str, column: Column, places: Sequence[Place]) -> Place:
    """A mean over columns that stand before it; none where one is away or of two protocols."""
    by_title = {place.title: place for place in places}
    parts = [by_title[name] for name in column.mean or () if name in by_title]
    if len(parts) < len(column.mean or ()):
        return Place(title, column)
    found = [part.standing for part in parts if part.standing is not None]
    less = [part.without for part in parts if part.without is not None]
    return Place(title, column, mean(title, found), mean(title, less) if less else None)


def _models(board: Board, summaries: Sequence[Summary]) -> dict[str, Model]:
    """Models of the runs, as the board shows them; names that would be equal get the run's own."""
    out: dict[str, Model] = {}
    for model in sorted({str(s["model"]) for s in summaries}):
        patterns = [p for p in board.models if p == model or fnmatchcase(model, p)]
        if patterns:
            out[model] = board.models[patterns[0]]
        elif not board.only_listed:
            out[model] = Model()
    shown = [found.name for found in out.values() if found.name]
    return {
        model: found.model_copy(update={"name": f"{found.name} ({model})"})
        if shown.count(found.name) > 1
        else found
        for model, found in out.items()
    }


def own(place: Place, model: Model) -> Any:
    """The number that a model's makers report for a column, where the board has it."""
    return model.reported.get(place.title.partition(" #")[0])


def value(place: Place, model: str) -> Estimate | None:
    """A model's average in a column."""
    entry = place.standing.entries.get(model) if place.standing else None
    return entry.value if entry else None
