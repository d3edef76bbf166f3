"""`ceval-suite compare` and `ceval-suite bits`: models side by side, whatever their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ceval_suite.cli_data import ensure, listed, show
from ceval_suite.errors import ConfigError

Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A text file, or LANGUAGE=FILE; .jsonl: one text a line."),
]
Lines = Annotated[bool, typer.Option("--lines", help="Every line of a text file is a text.")]
Window = Annotated[int | None, typer.Option(min=1, help="Tokens of a window (the context).")]
Stride = Annotated[int | None, typer.Option(min=1, help="Tokens it advances by (the window).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _say(line: str) -> None:
    typer.echo(line, err=True)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Two or more run folders, or folders of one model's runs.")
    ],
    subjects: Annotated[
        bool, typer.Option("--subjects", help="Each subject and category.")
    ] = False,
    items: Annotated[
        int, typer.Option(min=0, help="List N items, by what changed most.", show_default=False)
    ] = 0,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Also without these items: NAME or FILE.")
    ] = None,
    text: Texts = None,
    lines: Lines = False,
    as_json: Json = False,
) -> None:
    """Compare models with the first on the same items: differences, tests, flips, bits per byte.

    Everything comes from records. With --text all models are loaded and measured on it first. With
    --json subjects, categories and every item that changed come along.
    """
    from ceval_suite import exclusions
    from ceval_suite.report import compare as report

    if len(runs) < 2:
        raise ConfigError("give at least two run folders to compare.")
    lists = [exclusions.load(name) for name in exclude or ()]
    if text:
        from ceval_suite import bits as verb
        from ceval_suite import texts

        groups = texts.of_files(text, lines=lines)
        corpora = [verb.Corpus(group, found) for group, found in groups.items()]
        for folder in runs:
            verb.measure_again(folder, corpora, _say)
    wanted = report.Wanted(subjects or as_json, items or (None if as_json else 0), lists)
    show(report.compare(*runs, wanted=wanted), as_json)


def calibration(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    fit: Annotated[
        Path | None, typer.Option(help="Fit the temperature on this run of the same model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how far confidence can be trusted, and how a model favours letters, from records."""
    from ceval_suite.report import calibration as report

    show(report.calibration(runs, fit), as_json)


def bits(
    models: Annotated[list[str], typer.Argument(help="Registered names, paths or hub ids.")],
    tasks: Annotated[str | None, typer.Option(help="Question texts of tasks: a,b.")] = None,
    text: Texts = None,
    lines: Lines = False,
    window: Window = None,
    stride: Stride = None,
    split: Annotated[str | None, typer.Option(help="Split of the tasks.")] = None,
    subjects: Annotated[str | None, typer.Option(help="Subjects, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N items per subject.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    as_json: Json = False,
) -> None:
    """Measure bits per byte and perplexity per character of whole texts, in rolling windows."""
    from ceval_suite import bits as verb
    from ceval_suite import sweep, texts
    from ceval_suite.prepare import Selection
    from ceval_suite.records import read_json
    from ceval_suite.report import bits as report

    names = listed(tasks)
    if not names and not text:
        raise ConfigError("give --tasks, --text or both: the texts to measure.")
    ensure(names, data)
    chosen = Selection(None, None, split, listed(subjects) or None, limit, data)
    groups = texts.of_tasks(names, chosen) | texts.of_files(text or (), lines=lines)
    corpora = [verb.Corpus(group, found, window, stride) for group, found in groups.items()]
    folders: list[Path] = []
    for name, spec in sweep.models(models, {"dtype": dtype, "device": device}).items():
        folders += verb.measure(name, spec, corpora, out, _say)
    found = [read_json(folder / "summary.json") for folder in folders]
    show([report.bits(found)], as_json)
    if not as_json:
        for folder in folders:
            _say(f"records: {folder}")
