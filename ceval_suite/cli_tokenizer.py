"""`ceval-suite tokenizer …`: verbs on tokenizers."""

from __future__ import annotations

import typer

app = typer.Typer(help="Audit, compare or extend tokenizers.", no_args_is_help=True)
