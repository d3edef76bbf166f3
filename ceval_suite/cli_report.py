"""`ceval-suite report`: run folders as a static site in which every number can be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _say(line: str) -> None:
    typer.echo(line, err=True)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with run folders.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the site.")],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Exclusion list to leave out: a name or a file.")
    ] = None,
    without_prompts: Annotated[
        bool, typer.Option("--without-prompts", help="No text of the benchmarks in the site.")
    ] = False,
) -> None:
    """Write a site that opens from disk: board, subjects, calibration, items, comparisons."""
    from ceval_suite import exclusions
    from ceval_suite.site.write import Wanted, build

    lists = [exclusions.load(name) for name in exclude or ()]
    wanted = Wanted(title=title, data=data, exclude=lists, texts=not without_prompts)
    typer.echo(str(build(folders, out, wanted, _say)))
