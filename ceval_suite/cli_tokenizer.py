"""`ceval-suite tokenizer …`: verbs on tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.errors import ConfigError, unknown

if TYPE_CHECKING:
    from ceval_suite.prepare import Prepared
    from ceval_suite.tokenizer.corpus import Corpus

app = typer.Typer(help="Audit, compare or extend tokenizers.", no_args_is_help=True)

FORMATS = ("table", "csv", "json", "markdown")
SAMPLES = "sample-mmlu,sample-cmmlu,sample-ceval"


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@app.callback()
def options() -> None:
    """Audit, compare or extend tokenizers."""


@app.command()
def compare(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Names, paths, hub ids, files; NAME=… names a row.")
    ],
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text file, .tsv of pairs, Moses prefix or hub:NAME[:CONFIG]; repeat."),
    ] = None,
    parallel: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two files whose lines correspond.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Benchmarks, separated by commas: prompts and questions.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the benchmarks.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Named wording.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Solved items before each.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N items per subject.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    contexts: Annotated[str, typer.Option(help="Context lengths to fit into.")] = "2048,4096",
    published: Annotated[bool, typer.Option(help="Show what others reported.")] = True,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw into a .svg, .png or .pdf.")] = None,
) -> None:
    """Lengths, compression, speed and prompt costs of tokenizers, on the same texts.

    The texts are those of --corpus or --parallel, else the questions of --task, else of the bundled
    exams.
    """
    from ceval_suite import catalog
    from ceval_suite.cli_data import ensure
    from ceval_suite.prepare import Selection, prepare
    from ceval_suite.progress import Bytes
    from ceval_suite.report import tokenizer_plot
    from ceval_suite.report import tokenizers as report
    from ceval_suite.tokenizer import compare as comparing
    from ceval_suite.tokenizer.prompts import Bench

    form = "json" if as_json else form
    if form not in FORMATS:
        raise ConfigError(unknown("format", form, FORMATS))
    lengths = _lengths(contexts)
    if plot is not None:
        tokenizer_plot.check_plot(plot)
    names = list(dict.fromkeys(_parts(task))) or ([] if corpus or parallel else _parts(SAMPLES))
    chosen = Selection(protocol, shots, split, None, limit, data)
    ensure(names, data)
    tasks = [prepare(name, chosen) for name in names]
    read = _corpus(corpus, parallel, tasks)
    opened = comparing.open_all(tokenizers, trust_remote_code=trust_remote_code)
    benches = [Bench(prepared) for prepared in tasks]
    with Bytes(_say) as progress:
        found = comparing.compare(opened, read, benches, lengths, progress.update)
    known = catalog.published_tokenizers() if published else {}
    if plot is not None:
        tokenizer_plot.plot(found, known, plot)
        _say(f"plot: {plot}")
    report.write(found, known, form, typer.echo)


def _corpus(
    files: list[str] | None, pair: tuple[Path, Path] | None, tasks: list[Prepared]
) -> Corpus:
    from ceval_suite.tokenizer import corpus

    if files and pair:
        raise ConfigError("give --corpus or --parallel, not both.")
    if pair:
        return corpus.parallel(*pair)
    return corpus.open_corpus(files) if files else corpus.questions(tasks)


def _lengths(text: str) -> list[int]:
    parts = _parts(text)
    if not parts or not all(part.isdigit() and int(part) > 1 for part in parts):
        raise ConfigError(f"--contexts {text}: give lengths in tokens, as in 2048,4096.")
    return list(map(int, parts))
