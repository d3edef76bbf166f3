"""A model scored while it trains: the same questions, engine and records as a run of its own.

Works in any loop. All processes that train the model call it together, with the model as they use
it; it is left as it was found (see `backends.undisturbed`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ceval_suite import run, sweep
from ceval_suite.backends import live
from ceval_suite.backends.base import Say
from ceval_suite.catalog import override
from ceval_suite.curves import averages
from ceval_suite.errors import ConfigError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, safe_name
from ceval_suite.schema import Estimate

PREFIX = "ceval"
"""What stands before the name of every value that is logged."""


def silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Scores:
    """What a model scored at one moment of its training.

    `summaries` are those of its runs (summary.json), in the order of the tasks; `folders` are the
    run folders, none where nothing is kept.
    """

    step: int | None
    summaries: tuple[Mapping[str, Any], ...]
    folders: tuple[Path, ...] = ()
    seconds: float = 0.0

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Each task's averages, the official one first; a task that is there twice by its wording.

        >>> from ceval_suite import Scores
        >>> Scores(step=1, summaries=()).estimates()
        {}
        """
        out: dict[str, dict[str, Estimate]] = {}
        names = [str(found["task"]) for found in self.summaries]
        for found in self.summaries:
            name = str(found["task"])
            if names.count(name) > 1:
                name = f"{name}-{found['protocol']}-{found['shots']}shot"
            out[name] = averages(found)
        return out

    def values(self, prefix: str = PREFIX) -> dict[str, float]:
        """Names and numbers for a logger: `ceval/<task>/<average>`, and both ends of its interval.

        >>> from ceval_suite import Scores
        >>> Scores(step=1, summaries=()).values()
        {}
        """
        out: dict[str, float] = {}
        for task, some in self.estimates().items():
            for name, found in some.items():
                key = f"{prefix}/{task}/{name}"
                out |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
        return out


@dataclass
class Scorer:
    """Tasks to put to a model again and again while it trains.

    `name` is the training job's; with `out`, each moment leaves ordinary run folders there, of a
    model `<name>-step-<step>`. `chosen` are the fields of a `Selection` (limit, subjects, shots,
    protocol, split, data, chat, …), `options` keys of a model's entry (max_length, memory, engine).
    """

    tasks: Sequence[str]
    name: str = "model"
    out: Path | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    say: Say = silent
    _prepared: list[Prepared] = field(default_factory=list[Prepared])

    def prepare(self) -> list[Prepared]:
        """The tasks, read and checked once.

        Raises:
            UserError: an unknown task, missing files, or a choice that they do not have.
        """
        if not self._prepared:
            if not self.tasks:
                raise ConfigError("no task to score; name one or several.")
            self._prepared = [prepare(task, s) for task in self.tasks for s in self._selections()]
        return self._prepared

    def _selections(self) -> list[Selection]:
        known = set(Selection.__dataclass_fields__)
        for key in self.chosen:
            if key not in known:
                raise ConfigError(f"'{key}' is nothing that can be chosen; there are {known}.")
        rest = {k: v for k, v in self.chosen.items() if k not in ("protocol", "shots")}
        shots = _several(self.chosen.get("shots"))
        return sweep.selections(
            Selection(**rest), _several(self.chosen.get("protocol")), [str(k) for k in shots]
        )

    def spec(self, model: str) -> ModelSpec:
        """What is written of a model that is in no file.

        Raises:
            ConfigError: an option that a live model does not take.
        """
        for key in self.options:
            if key not in ("max_length", "memory", "engine"):
                raise ConfigError(
                    f"'{key}' cannot be chosen for a model in training, which is scored as it "
                    "stands; choose max_length, memory or engine."
                )
        return override(ModelSpec(path=model), self.options)

    def score(self, model: Any, tokenizer: Any, step: int | None = None) -> Scores:
        """Score the model as it stands; every process of the training job calls this together.

        Raises:
            UserError: the model cannot be scored as it stands, or a run that cannot be written;
                raised in all processes.
        """
        begun = time.perf_counter()
        name = self.name if step is None else f"{self.name}-step-{step}"
        notes = {"series": self.name, "live": True} | ({} if step is None else {"step": step})
        watch = run.Watch(say=self.say)

        def work(weights: live.AsLent, opener: live.Opener) -> Scores:
            with ExitStack() as stack:
                place = self.out or Path(stack.enter_context(TemporaryDirectory()))
                model = _free_name(name, place, self.prepare(), weights.identity)
                folders = run.evaluate(
                    model,
                    self.spec(model),
                    self.prepare(),
                    place,
                    watch,
                    opener=opener,
                    weights=weights,
                    notes=notes,
                )
                found = tuple(read_json(folder / "summary.json") for folder in folders)
            return Scores(step, found, tuple(folders) if self.out else ())

        found = live.visit(model, tokenizer, self.spec(name), self.say, work)
        seconds = time.perf_counter() - begun
        return Scores(found.step, found.summaries, found.folders, seconds)


def _free_name(
    name: str, place: Path, tasks: Sequence[Prepared], identity: Mapping[str, Any]
) -> str:
    """`name`, or one with a mark where another state of the model left its run under it.

    A training that goes on from a checkpoint comes by steps again that it has scored before.
    """
    for prepared in tasks:
        about = place / safe_name(name) / prepared.folder / "run.json"
        if about.is_file():
            there = read_json(about).get("identity", {}).get("live_weights_sha256")
            if there != identity["live_weights_sha256"]:
                return f"{name}-{identity['live_weights_sha256'][:8]}"
    return name


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | int) else list(value)


def score_live(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    step: int | None = None,
    name: str = "model",
    out: str | Path | None = None,
    max_length: int | None = None,
    memory: str | None = None,
    say: Say = silent,
    **chosen: Any,
) -> Scores:
    """Score a loaded transformers model as it stands, in any training loop, and leave it so.

    Modes, gradients, random generators, attention and everything else of the model are afterwards
    as they were. It computes in the dtype of its weights, outside autocast, as a `run` on its
    saved checkpoint would. Under DDP, FSDP or tensor parallelism all processes call this together
    and all are given the scores. `chosen` is what `evaluate` takes too: `limit`, `subjects`,
    `shots`, `protocol`, `split`, `data`, `chat`. With `out`, run folders are left there.

    >>> import ceval_suite
    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> net = AutoModelForCausalLM.from_pretrained(model)
    >>> words = AutoTokenizer.from_pretrained(model)
    >>> scores = ceval_suite.score_live(net, words, "sample-mmlu", limit=1, shots=0, step=10)
    >>> sorted(scores.values())[:2]
    ['ceval/sample-mmlu/acc/macro', 'ceval/sample-mmlu/acc/macro_high']

    Raises:
        UserError: anything a user can put right, in one sentence.
    """
    options = {"max_length": max_length, "memory": memory}
    scorer = Scorer(
        _several(tasks),
        name,
        None if out is None else Path(out),
        {key: value for key, value in chosen.items() if value is not None},
        {key: value for key, value in options.items() if value is not None},
        say,
    )
    return scorer.score(model, tokenizer, step)
