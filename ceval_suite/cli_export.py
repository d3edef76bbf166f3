"""`export`, `score`, `papers` and `agreement`: what finished runs say, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.cli_data import listed, show

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with the benchmark files.")]
Run = Annotated[Path, typer.Argument(help="A run folder.")]


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file or folder to write.")],
    format: Annotated[
        str,
        typer.Option(
            "--as",
            help="ceval-submission, open-questions, lm-eval, lm-eval-tasks, csv or parquet.",
        ),
    ],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task, where no run is needed.")] = None,
    data: Data = None,
    protocol: Annotated[str | None, typer.Option(help="Wording, with --task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Shots, with --task.")] = None,
    split: Annotated[str | None, typer.Option(help="Split, with --task.")] = None,
    subjects: Annotated[
        str | None, typer.Option(help="Subjects, separated by commas, with --task.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="First N items per subject, with --task.")
    ] = None,
) -> None:
    """Write what others read: lm-eval's results or tasks, CSV, Parquet, submissions, questions."""
    from ceval_suite import exports
    from ceval_suite.prepare import Selection

    wanted = listed(subjects) or None
    chosen = Selection(protocol, shots, split, wanted, limit, data)
    sentence = exports.export(format, exports.Wanted(tuple(runs or ()), task, data, chosen), output)
    typer.echo(f"wrote {output}: {sentence}", err=True)


def score(
    run: Run,
    labels: Annotated[Path, typer.Option(help="Labelled csv files, or a submission's JSON.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the new run folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a run on unlabelled items by labels given now, in a new run folder."""
    from ceval_suite import relabel
    from ceval_suite.records import read_json
    from ceval_suite.report import board, table

    folder = relabel.score(run, labels, out)
    found = board.board([read_json(folder / "summary.json")], "Results")
    if as_json:
        typer.echo(table.to_json(found))
    else:
        table.show(found)
    typer.echo(f"records: {folder}", err=True)


def rescore(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 3 where a number differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compute summary.json again from the records alone: no model, no benchmark files."""
    from ceval_suite import summary
    from ceval_suite.report import rescored

    found = summary.again(runs, write=not check)
    show([rescored.changes(found, written=not check)], as_json)
    if check and any(one.changed for one in found):
        raise typer.Exit(3)


def papers(
    run: Run,
    year: Annotated[str | None, typer.Option(help="Papers of one year only.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Points of exam papers by file, subject and year, and the objective marks of a whole exam."""
    from ceval_suite.report import papers as report

    show(report.tables(run, year, data), as_json)


def agreement(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of the same items.")],
    as_json: Json = False,
) -> None:
    """How far methods agree on the same items: letters, whole options, generation."""
    from ceval_suite.report import agreement as report

    show(report.tables(runs), as_json)
