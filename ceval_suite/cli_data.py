"""`ceval-suite data …`: verbs on benchmark files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.errors import UserError

if TYPE_CHECKING:
    from ceval_suite.schema import Table

app = typer.Typer(help="Fetch or verify benchmark files.", no_args_is_help=True)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def listed(text: str | None) -> list[str]:
    """The parts of an option that takes several names separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def show(tables: list[Table], as_json: bool) -> None:
    """Print tables, or a JSON list of them."""
    from ceval_suite.report import table

    if as_json:
        typer.echo(f"[{', '.join(table.to_json(found) for found in tables)}]")
        return
    for found in tables:
        table.show(found)


def ensure(tasks: list[str], data: Path | None) -> None:
    """Fetch what is found nowhere; a folder given by hand is taken as it is."""
    from ceval_suite import catalog, fetch
    from ceval_suite.progress import Bytes

    with Bytes(_say) as progress:
        for name in tasks:
            fetch.ensure(catalog.load_task(name), data, _say, progress.update)


def _bundled(name: str) -> bool:
    from ceval_suite import catalog

    return catalog.load_task(name).source.bundled


@app.command("fetch")
def data_fetch(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks (all five by default).")] = None,
) -> None:
    """Download benchmark files into the cache; an interrupted download continues."""
    from ceval_suite import catalog, fetch
    from ceval_suite.progress import Bytes

    chosen = tasks or [n for n in catalog.task_names() if not _bundled(n)]
    failed: list[str] = []
    for name in chosen:
        task = catalog.load_task(name)
        if task.source.bundled:
            _say(f"{name} ships with ceval-suite; nothing to fetch")
            continue
        try:
            with Bytes() as progress:
                folder = fetch.fetch(task, progress.update)
            typer.echo(f"{name}: {folder}")
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise UserError("\n".join(failed))


@app.command("verify")
def data_verify(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks (all five by default).")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the benchmark files.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count what is there against what was published; exit 1 when something differs."""
    from ceval_suite import catalog
    from ceval_suite.report import listing, table

    chosen = tasks or [n for n in catalog.task_names() if not _bundled(n)]
    found, wrong = listing.verify(chosen, data)
    typer.echo(table.to_json(found)) if as_json else table.show(found)
    if wrong:
        raise UserError("\n".join(wrong))


@app.command("issues")
def data_issues(
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks (all five by default).")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the benchmark files.")
    ] = None,
    items: Annotated[bool, typer.Option("--items", help="List every item.")] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write them as an exclusion list (.yaml).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find bad and repeated items: shown as shots, conflicting labels, broken options, pictures."""
    from ceval_suite import catalog, issues
    from ceval_suite.report import listing, table

    chosen = tasks or [n for n in catalog.task_names() if not _bundled(n)]
    found = {name: issues.find(catalog.load_task(name), data) for name in chosen}
    shown = listing.issues(found, every=items)
    typer.echo(table.to_json(shown)) if as_json else table.show(shown)
    if write is not None:
        every = [issue for some in found.values() for issue in some]
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(issues.as_yaml(write.stem, every, chosen), encoding="utf-8")
        _say(f"wrote {write}: {len(issues.reasons(every)):,} items")
