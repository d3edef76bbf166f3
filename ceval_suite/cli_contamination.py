"""`ceval-suite contamination`: which benchmark items stand in a user's training data."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.cli_data import ensure, listed
from ceval_suite.errors import ConfigError


def _say(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _nothing_if_interrupted() -> Generator[None]:
    """An interrupt leaves no report at all, so that none is taken for a whole one."""
    try:
        yield
    except KeyboardInterrupt:
        _say("\ninterrupted; nothing was written. To search again, from the beginning:")
        _say("  " + shlex.join(["ceval-suite", *sys.argv[1:]]))
        raise typer.Exit(130) from None


def contamination(
    corpus: Annotated[
        list[str],
        typer.Argument(help="Files, folders or globs: JSONL, JSON, Parquet, text; packed or not."),
    ],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")],
    split: Annotated[str | None, typer.Option(help="Split (the task's own by default).")] = None,
    subjects: Annotated[str | None, typer.Option(help="Subjects, separated by commas.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("contamination"),
    field: Annotated[
        list[str] | None, typer.Option(help="Field or column with the text (guessed); repeatable.")
    ] = None,
    ngram: Annotated[
        int, typer.Option(min=5, max=50, help="Words (Chinese: characters) of an n-gram.")
    ] = 13,
    threshold: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Share of an item that tells by itself.")
    ] = 0.5,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (as many as cores, at most 8).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find benchmark items in training data: whole, in part, re-spaced or reworded."""
    from ceval_suite.contamination import files, search, targets, verify
    from ceval_suite.prepare import Selection, prepare
    from ceval_suite.progress import Bytes
    from ceval_suite.report import contamination as report
    from ceval_suite.report import table

    names = listed(tasks)
    if not names:
        raise ConfigError("--tasks names no task; 'ceval-suite list tasks' shows them.")
    found_files = files.sources(corpus)
    ensure(names, data)
    chosen = Selection(shots=0, split=split, subjects=listed(subjects) or None, data=data)
    prepared = [prepare(name, chosen) for name in names]
    items = [(p.task.name, i) for p in prepared for s in p.subjects for i in p.items[s]]
    with _nothing_if_interrupted():
        with Bytes(_say) as progress:
            outcome = search.search(
                targets.of_items(items),
                found_files,
                verify.Rules(ngram=ngram, threshold=threshold),
                fields=field or (),
                workers=workers or min(8, os.cpu_count() or 1),
                step=lambda done, total: progress.update("corpus", done, total),
            )
        written = report.write(outcome, out)
    for line in outcome.named:
        _say(f"passed over: {line}")
    if outcome.broken > len(outcome.named):
        _say(f"and {outcome.broken - len(outcome.named)} more")
    if as_json:
        typer.echo(json.dumps(report.summary(outcome), ensure_ascii=False, indent=1))
    else:
        table.show(report.overview(outcome))
        _say(f"wrote {', '.join(str(path) for path in written)}")
