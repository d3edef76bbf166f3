"""The Python API: what the command line does, for notebooks and programs.

Everything here is importable from `ceval_suite` itself. Errors that a user can put right are
`ceval_suite.UserError` and its subclasses, with one sentence each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ceval_suite import catalog, comparison, frames, sweep
from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Backend, Say
from ceval_suite.comparison import Versus
from ceval_suite.errors import ConfigError
from ceval_suite.prepare import Selection
from ceval_suite.records import find_runs, read_json, read_records
from ceval_suite.report import board as boards
from ceval_suite.schema import Record, Table

if TYPE_CHECKING:
    import pandas as pd

Place = str | Path


def _silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Results:
    """Finished runs: their folders and everything that is read from them.

    >>> from ceval_suite import Results
    >>> Results(()).summaries
    []
    """

    folders: Sequence[Path]

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """The content of each run's summary.json, in the order of the folders."""
        return [read_json(folder / "summary.json") for folder in self.folders]

    def records(self) -> Iterator[Record]:
        """Every record of every run, one after the other."""
        for folder in self.folders:
            yield from read_records(folder / "records.jsonl")

    def frame(self) -> pd.DataFrame:
        """The records as a DataFrame (see `load_records`)."""
        return frames.load_records(*self.folders)

    def board(self, title: str = "Results") -> Table:
        """Models × protocols, as the command line prints them."""
        return boards.board(self.summaries, title)


def evaluate(
    model: str | Sequence[str],
    tasks: str | Sequence[str],
    *,
    protocol: str | Sequence[str] | None = None,
    shots: int | Sequence[int] | None = None,
    split: str | None = None,
    subjects: Sequence[str] | None = None,
    limit: int | None = None,
    items: int | None = None,
    seed: int = 0,
    data: Place | None = None,
    out: Place = "runs",
    chat: bool = False,
    circular: bool = False,
    workers: int = 1,
    ray: str | None = None,
    gpus_per_worker: float | None = None,
    say: Say = _silent,
    **options: Any,
) -> Results:
    """Score models on tasks, as `ceval-suite run` does; what is finished is never computed twice.

    `model` is a name of models.yaml, a folder, a file or a hub id, or several; `options` are keys
    of a model's entry (`dtype="float32"`, `device="cuda"`, `max_length=2048`, `memory="8GB"`).
    `None` means the task's own; so many `items` of each task are drawn by subject and `seed`;
    `circular` asks every order of an item's choices. `workers` share the work by Ray, on this
    machine or on the cluster at `ray`, each with `gpus_per_worker`. `say` is given each line of
    progress.

    >>> import ceval_suite
    >>> results = ceval_suite.evaluate(
    ...     model, "sample-mmlu", shots=0, limit=2, out=out, dtype="float32"
    ... )
    >>> results.summaries[0]["metrics"]["acc/micro"]["n"] == len(results.frame())
    True
    >>> results.board().columns
    ('model', 'sample-mmlu test, official, 0-shot (first 2 per subject)')

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    base = Selection(
        None, None, split, subjects, limit, data, chat, circular, items=items, seed=seed
    )
    numbers = [shots] if isinstance(shots, int) else list(shots or ())
    chosen = sweep.selections(base, _several(protocol), [str(k) for k in numbers])
    specs = sweep.models(_several(model), options)
    names = _several(tasks)
    if not (specs and names):
        raise ConfigError("evaluate needs at least one model and one task.")
    staff = sweep.staff(workers, ray, gpus_per_worker)
    return Results(tuple(sweep.run(specs, names, chosen, Path(out), say, staff=staff)))


def _several(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def load_model(name_or_path: str, *, say: Say = _silent, **options: Any) -> Backend:
    """Open a model: a name of models.yaml, a folder, a file or a hub id.

    The backend answers `ask(requests)`, counts (`count_tokens(texts)`) and describes itself.

    >>> import ceval_suite
    >>> backend = ceval_suite.load_model(model, dtype="float32")
    >>> request = ceval_suite.Request(id="1", context="1 + 1 =", continuations=(" 2", " 3"))
    >>> [len(reply.logprobs) for reply in backend.ask([request])]
    [2]
    >>> len(backend.count_tokens(["one text", "another"]))
    2

    Raises:
        ModelError: not found, or it cannot be loaded.
    """
    _, spec = catalog.load_model_spec(name_or_path)
    given = {key: value for key, value in options.items() if value is not None}
    return open_backend(catalog.override(spec, given), say)


def load_records(*places: Place) -> pd.DataFrame:
    """All records of the runs in and below some folders, one row each.

    Run columns (`model`, `task`, `protocol`, `split`, `shots`, …) stand before the record's own;
    log-probabilities have a column for each letter.

    >>> import ceval_suite
    >>> frame = ceval_suite.load_records(out)
    >>> sorted(frame.columns[frame.columns.str.startswith("logprob_")])
    ['logprob_A', 'logprob_B', 'logprob_C', 'logprob_D']
    >>> float(frame.groupby("subject")["correct"].mean().max()) <= 1
    True

    Raises:
        RunError: a folder without a run, or a broken one.
    """
    return frames.load_records(*places)


def compare(first: Place, second: Place) -> list[Versus]:
    """Two run folders, or two models' folders of runs, item by item: one entry for each protocol.

    >>> import ceval_suite
    >>> (run,) = ceval_suite.find_runs(out)
    >>> (versus,) = ceval_suite.compare(run, run)
    >>> versus.fixed, versus.broke, versus.averages["acc/micro"][2].value
    (0, 0, 0.0)

    Raises:
        RunError: nothing in them can be compared, and why.
    """
    pairs, _ = comparison.pair(Path(first), Path(second))
    return [comparison.versus(one, two) for one, two in pairs]


def board(runs: Place | Sequence[Place], title: str = "Leaderboard") -> Table:
    """Models × protocols over all runs in and below one or several folders.

    >>> import ceval_suite
    >>> table = ceval_suite.board(out)
    >>> len(table.rows), table.columns[0]
    (1, 'model')

    Raises:
        RunError: no runs, or one model has two runs in one column.
    """
    places = [runs] if isinstance(runs, (str, Path)) else list(runs)
    found: list[Mapping[str, Any]] = []
    for folder in frames.folders([Path(place) for place in places]):
        found += boards.read_summaries(folder)
    return boards.board(found, title)


__all__ = [
    "Results",
    "board",
    "compare",
    "evaluate",
    "find_runs",
    "load_model",
    "load_records",
]
