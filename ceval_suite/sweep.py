"""Several models on several tasks, one after the other, with progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ceval_suite import catalog
from ceval_suite.backends import counting
from ceval_suite.backends.base import Say
from ceval_suite.budget import Opener, settle
from ceval_suite.errors import ConfigError
from ceval_suite.fitting import same_shots
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.progress import Items
from ceval_suite.run import evaluate


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
    budget: float | None = None,
) -> list[Path]:
    """Score every model on every task as each selection wants it.

    Everything is prepared before the first model is loaded. `same` shows every model the same
    shots for an item: as many as fit all their contexts. `budget` is the time in seconds that the
    first model may take, for as many items as fit into it.

    Returns:
        The run folders, models first.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    opener: Opener | None = None
    if budget is not None:
        chosen, opener = settle(specs, tasks, chosen, out, budget, say)
    prepared = [prepare(task, selection) for task in tasks for selection in chosen]
    if same:
        contexts = _contexts(specs, chosen)
        prepared = [same_shots(one, contexts) for one in prepared]
    folders: list[Path] = []
    with Items(say) as items:
        for name, spec in specs.items():
            folders += evaluate(
                name, spec, prepared, out, items.watch(), verify=verify, opener=opener
            )
    return folders
