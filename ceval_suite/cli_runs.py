"""`ceval-suite runs`: the index of run folders, and what of them may be cleared away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.errors import ConfigError, unknown
from ceval_suite.outcome import say


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs (default: runs).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only complete, partial, locked or broken ones.")
    ] = None,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="List unfinished runs, and finished ones named, to delete."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --clean: delete them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List runs: model, task, state, records of those expected, date, result, folder."""
    from ceval_suite import inventory
    from ceval_suite.report import runs as report
    from ceval_suite.report import table

    if state is not None and state not in inventory.STATES:
        raise ConfigError(unknown("--state", state, inventory.STATES))
    if yes and not clean:
        raise ConfigError("--yes deletes what --clean lists; give both.")
    places = folders or [Path("runs")]
    found = inventory.chosen(inventory.look(places), model, task, state)
    if clean:
        found = inventory.clearable(found, places)
    if as_json:
        typer.echo(json.dumps(report.data(found), ensure_ascii=False, indent=1))
    else:
        table.show(report.index(found))
    if not clean:
        return
    if not yes:
        say(f"{len(found)} runs would be deleted, with all their records; add --yes to do it")
    for one in found if yes else ():
        left = inventory.clear(one)
        more = f", but for {', '.join(left)}, which no run wrote" if left else ""
        say(f"deleted {one.folder}{more}")
