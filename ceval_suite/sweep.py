"""Several models on several tasks, one after the other or by workers, with progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ceval_suite import beacon, catalog
from ceval_suite.backends import counting, open_crew
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.crew import Crew, CrewBackend
from ceval_suite.budget import Opener, settle
from ceval_suite.errors import ConfigError, UserError
from ceval_suite.fitting import same_shots
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.progress import Items
from ceval_suite.run import Watch, evaluate

SILENT = 1800.0
"""Seconds without a reply after which a worker is taken to hang, unless told otherwise."""


@dataclass(frozen=True)
class Staff:
    """Workers that Ray places: how many, on which cluster, with how much of a GPU each."""

    workers: int
    address: str | None = None
    gpus: float | None = None
    patience: float = SILENT


def staff(
    workers: int, address: str | None, gpus: float | None = None, patience: float | None = None
) -> Staff | None:
    """What there is to know of the workers; None where this process works alone.

    Raises:
        ConfigError: something is said of workers, and there are none.
    """
    if workers > 1 or address:
        return Staff(workers, address, gpus, SILENT if patience is None else patience)
    if gpus is not None:
        raise ConfigError(
            "--gpus-per-worker is each worker's share, and there are none; give --workers 2, or "
            "--ray with a cluster (in one process, --device names the GPU)."
        )
    if patience is not None:
        raise ConfigError(
            "--worker-timeout is for workers, and there are none; give --workers 2, or --ray with "
            "a cluster, or leave it out."
        )
    return None


def models(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, ModelSpec]:
    """Name to show → spec, with the options that are not None put in place of the spec's own.

    Raises:
        ConfigError: an unknown model, a value an option does not take, or two of one name.
    """
    given = {key: value for key, value in options.items() if value is not None}
    out: dict[str, ModelSpec] = {}
    for name, spec in map(catalog.load_model_spec, names):
        spec = catalog.override(spec, given)
        if out.setdefault(name, spec) != spec:
            raise ConfigError(f"two models are called '{name}'; give them names in models.yaml.")
    return out


def selections(base: Selection, protocols: Sequence[str], shots: Sequence[str]) -> list[Selection]:
    """`base` under each protocol with each number of shots; none given means the task's own.

    Raises:
        ConfigError: shots that are no number.
    """
    for part in shots:
        if not part.isdecimal():
            raise ConfigError(f"--shots: '{part}' is not a number of shots; give 5, or 0,5.")
    return [
        replace(base, protocol=protocol, shots=number)
        for protocol in protocols or [None]
        for number in [int(part) for part in shots] or [None]
    ]


def _contexts(
    specs: Mapping[str, ModelSpec], chosen: Sequence[Selection]
) -> dict[str, counting.Counter]:
    if len(specs) < 2:
        raise ConfigError("--same-shots fits prompts for several models; give --model twice.")
    if any(selection.chat for selection in chosen):
        raise ConfigError(
            "--same-shots cannot go with --chat: templates make prompts of their own; drop one."
        )
    return {name: counting.Counter(name, spec) for name, spec in specs.items()}


def run(
    specs: Mapping[str, ModelSpec],
    tasks: Sequence[str],
    chosen: Sequence[Selection],
    out: Path,
    say: Say,
    verify: int = 0,
    *,
    same: bool = False,
    staff: Staff | None = None,
    budget: float | None = None,
) -> list[Path]:
    """Score every model on every task as each selection wants it.

    Everything is prepared before the first model is loaded. `same` shows every model the same
    shots for an item: as many as fit all their contexts. With a `staff`, workers share the models
    and the items. `budget` is the time in seconds that the first model may take, for as many items
    as fit into it.

    Returns:
        The run folders, models first.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    opener: Opener | None = None
    if budget is not None:
        if staff is not None:
            raise ConfigError("--budget times one process; with --workers give --items instead.")
        chosen, opener = settle(specs, tasks, chosen, out, budget, say)
    prepared = [prepare(task, selection) for task in tasks for selection in chosen]
    if same:
        contexts = _contexts(specs, chosen)
        prepared = [same_shots(one, contexts) for one in prepared]
    folders: list[Path] = []
    with beacon.work(), Items(say) as items:
        if staff is not None:
            return _by_workers(specs, prepared, out, items, verify, staff)
        for name, spec in specs.items():
            folders += evaluate(
                name, spec, prepared, out, items.watch(), verify=verify, opener=opener
            )
    return folders


def _by_workers(
    specs: Mapping[str, ModelSpec],
    prepared: Sequence[Prepared],
    out: Path,
    items: Items,
    verify: int,
    staff: Staff,
) -> list[Path]:
    """All models at once; a worker that is done with one opens the next.

    A model that fails stops no other one; when all have ended, its error is raised, and of several
    the first, once the others' are said.
    """
    specs = {name: _shareable(name, spec) for name, spec in specs.items()}
    gpus = staff.gpus
    if gpus is None:  # a tensor-parallel group is one worker
        wide = (spec.backend_options() for spec in specs.values() if spec.backend == "vllm")
        sizes = [float(options.tensor_parallel_size) for options in wide]
        gpus = max(sizes) if sizes else None
    crew = open_crew(
        staff.workers,
        address=staff.address,
        gpus=gpus,
        patience=staff.patience,
        coming=len(specs),
    )
    with crew, ThreadPoolExecutor(staff.workers + 1) as threads:
        several = len(specs) > 1
        futures = [
            threads.submit(
                _one, crew, name, spec, prepared, out, items.watch(name if several else ""), verify
            )
            for name, spec in specs.items()
        ]
        try:
            wait(futures)
        except BaseException as error:
            crew.stop(error)
            for future in futures:
                future.cancel()
            raise
    _say_failed(list(specs), futures, items.watch().say)
    return [folder for future in futures for folder in future.result()]


def _say_failed(names: Sequence[str], futures: Sequence[Future[list[Path]]], say: Say) -> None:
    """Why each model failed but the first of them, whose error is raised."""
    errors = [(n, e) for n, f in zip(names, futures, strict=True) if (e := f.exception())]
    said = {str(error) for _, error in errors[:1]}
    for name, error in errors[1:]:
        if str(error) not in said:  # what ends the crew ends all models
            said.add(str(error))
            user = isinstance(error, UserError)
            say(f"{name}: {error}" if user else f"{name}: {type(error).__name__}: {error}")


def _one(
    crew: Crew,
    name: str,
    spec: ModelSpec,
    prepared: Sequence[Prepared],
    out: Path,
    watch: Watch,
    verify: int,
) -> list[Path]:
    opened: list[CrewBackend] = []
    called: list[str] = []

    def opener(spec: ModelSpec, say: Say) -> Backend:
        called.append(name)
        opened.append(crew.open(spec, say))
        return opened[-1]

    try:
        return evaluate(name, spec, prepared, out, watch, verify=verify, opener=opener)
    finally:
        for backend in opened:
            backend.close()
        if not called:
            crew.none()


def _shareable(name: str, spec: ModelSpec) -> ModelSpec:
    """The spec as workers use it: what they answer must not depend on how many they are."""
    if spec.tp_plan is not None:
        raise ConfigError(
            f"model '{name}': tp_plan is for torchrun; with --workers let device_map: auto spread "
            "it over the GPUs of a worker (--gpus-per-worker 2), or use backend vllm."
        )
    if spec.backend == "hf" and spec.engine == "auto":
        return spec.model_copy(update={"engine": "reproducible"})
    return spec
