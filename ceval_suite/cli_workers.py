"""Options of `run` that have several workers share the models and the items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ceval_suite.sweep import Staff

Workers = Annotated[int, typer.Option(min=1, help="Processes that share the work, by Ray.")]
Ray = Annotated[
    str | None, typer.Option(help="Ray cluster to work on: auto, HOST:PORT (else this machine).")
]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", min=0, help="2 for large models, 0.25 for small ones."),
]
Patience = Annotated[
    float, typer.Option("--worker-timeout", min=1, help="Seconds of silence of a hanging worker.")
]


def staff(workers: int, ray: str | None, gpus: float | None, patience: float) -> Staff | None:
    """What `sweep.run` needs to know of the workers; None where this process works alone."""
    from ceval_suite.sweep import Staff

    return Staff(workers, ray, gpus, patience) if workers > 1 or ray else None
