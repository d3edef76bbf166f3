"""`ceval-suite gate`: may a candidate pass? Exit code 3 where a benchmark fell too far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.cli_data import listed
from ceval_suite.errors import UserError


def gate(
    candidate: Annotated[Path, typer.Argument(help="A run folder, or a folder of a model's runs.")],
    baseline: Annotated[Path, typer.Argument(help="The same of the model to compare with.")],
    margin: Annotated[
        list[str] | None,
        typer.Option(help="Allowed drop in points: 0.5, or of one task: mmlu=1 (0 by default)."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of all tests together.")] = 0.05,
    mode: Annotated[
        str,
        typer.Option(
            help="What must be proven: inferiority (to fail), or non-inferiority (to pass)."
        ),
    ] = "inferiority",
    tasks: Annotated[str | None, typer.Option(help="Only these tasks: a,b.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Without these items: NAME or FILE.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a comment.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare a candidate with a baseline, benchmark by benchmark; exit 3 where it fell too far.

    Paired one-sided tests on the same items, all together at the level alpha. What cannot be
    compared in full (an unfinished run, a benchmark of one side) is an error, never a pass.
    """
    from ceval_suite import gate as verb
    from ceval_suite.report import gate as report
    from ceval_suite.report import table

    try:
        rules = verb.rules(mode, alpha, margin or (), listed(tasks), exclude or ())
        verdict = verb.judge(candidate, baseline, rules)
    except UserError as error:
        # a file of an earlier verdict must not be taken for this one's
        _write(markdown, report.trouble_as_markdown(str(error)))
        _write(junit, report.trouble_as_junit(str(error)))
        raise
    _write(markdown, report.to_markdown(verdict))
    _write(junit, report.to_junit(verdict))
    if as_json:
        typer.echo(report.to_json(verdict))
    else:
        table.show(report.gate(verdict))
    if verdict.failed:
        raise typer.Exit(3)


def _write(path: Path | None, content: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
