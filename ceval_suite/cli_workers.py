"""Options of `run` that have several workers share the models and the items."""

from __future__ import annotations

from typing import Annotated

import typer

Workers = Annotated[int, typer.Option(min=1, help="Processes that share the work, by Ray.")]
Ray = Annotated[
    str | None, typer.Option(help="Ray cluster to work on: auto, HOST:PORT (else this machine).")
]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", min=0, help="2 for large models, 0.25 for small ones."),
]
Patience = Annotated[
    float | None,
    typer.Option("--worker-timeout", min=1, help="Seconds of silence of a hanging worker: 1800."),
]
