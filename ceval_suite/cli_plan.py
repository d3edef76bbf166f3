"""Options of `ceval-suite run` that choose a part of the items, and its plan (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.cli_data import show
from ceval_suite.errors import ConfigError

if TYPE_CHECKING:
    from ceval_suite.backends.base import Say
    from ceval_suite.model_spec import ModelSpec
    from ceval_suite.prepare import Selection

Items = Annotated[int | None, typer.Option(min=1, help="So many items a task, drawn by subject.")]
Budget = Annotated[str | None, typer.Option(help="As many items as fit into 10min, 1h30min.")]
Seed = Annotated[int, typer.Option(help="Draw other items.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show items, tokens, memory and time.")]
Probe = Annotated[bool, typer.Option("--probe", help="With --dry-run: load and time a little.")]


def plan(
    specs: Mapping[str, ModelSpec],
    tasks: Sequence[str],
    chosen: Sequence[Selection],
    out: Path,
    say: Say,
    *,
    measure: bool,
    budget: float | None,
    as_json: bool,
) -> None:
    """Print the plan; with `measure` the models are loaded, which a `budget` needs."""
    from ceval_suite import plan as verb
    from ceval_suite.budget import Opener, settle
    from ceval_suite.report import plan as report

    opener: Opener | None = None
    if budget is not None:
        if not measure:
            raise ConfigError("--budget needs to see how fast the model is: add --probe.")
        chosen, opener = settle(specs, tasks, chosen, out, budget, say)
    found = verb.plans(specs, tasks, chosen, out, say, measure=measure, opener=opener)
    show(report.plan(found), as_json)
