"""`import` and `lm-eval`: what comes from lm-evaluation-harness, and the harness on our engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.cli_data import show
from ceval_suite.errors import ConfigError

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a verb all of whose arguments are another program's."""


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line with --model ceval_suite known to it."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(
            f'lm-eval is not installed as it should be ({error.name}); run "pip install lm-eval".'
        ) from error
    from ceval_suite.backends import harness

    harness.register()
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()


def import_(
    paths: Annotated[list[Path], typer.Argument(help="lm-eval's results_….json, or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    model: Annotated[str | None, typer.Option(help="Name of the model, for all of them.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder with the files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Take results of lm-eval, with samples where they lie beside them, as run folders."""
    from ceval_suite import harness_import
    from ceval_suite.records import read_json
    from ceval_suite.report import board

    found = harness_import.imported(paths, out, data, model)
    summaries = [read_json(folder / "summary.json") for folder in found.folders]
    show([board.board(summaries, "Imported")], as_json)
    for note in found.notes:
        typer.echo(note, err=True)
    for folder in found.folders:
        typer.echo(f"records: {folder}", err=True)
