"""`ceval-suite board`: a leaderboard of runs, of its definition, or of what others printed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ceval_suite.errors import ConfigError, unknown

if TYPE_CHECKING:
    from ceval_suite.arrange import Arranged
    from ceval_suite.boards import Board
    from ceval_suite.exclusions import Exclusions
    from ceval_suite.schema import Table

GATE = 3
"""Exit code where what was checked is not as it should be."""


def _say(line: str) -> None:
    typer.echo(line, err=True)


def board(
    name: Annotated[str | None, typer.Argument(help="A board; 'list boards' names them.")] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Folder with run folders; may be repeated.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Also write it in every format.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 3 if what --write wrote is not up to date.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="Print md, csv, tex, html or json instead of a table.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Also without the items of a list (a name or a file); repeatable."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Only benchmarks in zh or en.")] = None,
    subjects: Annotated[bool, typer.Option("--subjects", help="One table per run.")] = False,
    correlations: Annotated[
        bool, typer.Option("--correlations", help="How alike the columns order the models.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print models × benchmarks with intervals, tests and ranks; write it in five formats.

    A board of leaderboards/ takes its runs from --runs (runs/ by default, where it is there).
    """
    from ceval_suite.report import table

    if name is None and not runs:
        raise ConfigError("give --runs DIR, or the name of a board ('list boards' shows them).")
    if format is not None and format not in table.FORMS:
        raise ConfigError(unknown("format", format, table.FORMS))
    if subjects:
        _subjects(runs or [Path("runs")], as_json)
        return
    found, place = _build(name, runs or [], exclude or [], language, correlations)
    if check:
        _check(found, place)
        return
    form = "json" if as_json else format
    if form is None:
        table.show(found)
    else:
        typer.echo(table.FORMS[form](found).rstrip("\n"))
    if write:
        place.parent.mkdir(parents=True, exist_ok=True)
        for path, content in _files(found, place).items():
            path.write_text(content, encoding="utf-8")
            _say(f"wrote {path}")


def _build(
    name: str | None, runs: list[Path], exclude: list[str], language: str | None, alike: bool
) -> tuple[Table, Path]:
    """The table and where it is written, without the ending."""
    # columns are computed side by side: threads of BLAS beneath would wait for one another
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ceval_suite import arrange, exclusions
    from ceval_suite.report import board as report
    from ceval_suite.report import leaderboard

    lists = [exclusions.load(one) for one in exclude]
    board: Board | None = None
    titles: dict[str, str] | None = None
    if name is None:
        summaries = _summaries(runs)
        titles, title, place = report.columns(summaries), "Leaderboard", runs[0] / "board"
        found = arrange.of_runs(summaries, titles, lists, language)
    else:
        from ceval_suite import boards

        board, place = boards.load(name), boards.generated(name)
        if board.tokenizers:
            return leaderboard.tokenizers(board), place
        title = board.title
        # a board that lists its own exclusions shows both scores by itself
        more = [exclusions.load(one) for one in board.exclude if one not in exclude]
        found = _named(board, runs, [*more, *lists], language)
    if alike:
        return leaderboard.correlations(found), place.with_name(f"{place.name}-correlations")
    return leaderboard.render(found, title, board, titles), place


def _named(
    board: Board, runs: list[Path], lists: list[Exclusions], language: str | None
) -> Arranged:
    from ceval_suite import arrange

    measured = any(column.task for column in board.columns.values())
    folders = runs or [path for path in (Path("runs"),) if measured and path.is_dir()]
    return arrange.named(board, _summaries(folders) if measured else [], lists, language)


def _summaries(folders: list[Path]) -> list[Mapping[str, Any]]:
    from ceval_suite.report import board as report

    return [one for folder in folders for one in report.read_summaries(folder, report.PARTS)]


def _files(found: Table, place: Path) -> dict[Path, str]:
    from ceval_suite.report import table

    made = {place.with_name(f"{place.name}.{end}"): form for end, form in table.FORMS.items()}
    return {path: form(found).rstrip("\n") + "\n" for path, form in made.items()}


def _check(found: Table, place: Path) -> None:
    for path, content in _files(found, place).items():
        there = path.read_text(encoding="utf-8") if path.is_file() else None
        if there != content:
            what = "is not there" if there is None else "is not what the runs say"
            _say(f"error: {path} {what}; write it again with --write.")
            raise typer.Exit(GATE)
    _say(f"{place.parent}: {place.name} is up to date in all {len(_files(found, place))} formats")


def _subjects(runs: list[Path], as_json: bool) -> None:
    from ceval_suite.report import board as report
    from ceval_suite.report import table

    summaries = [summary for folder in runs for summary in report.read_summaries(folder)]
    done = [s for s in summaries if s.get("complete") and s.get("labels")]
    tables = [report.subjects_table(summary) for summary in done]
    if as_json:
        typer.echo(f"[{', '.join(table.to_json(found) for found in tables)}]")
    else:
        for found in tables:
            table.show(found)
