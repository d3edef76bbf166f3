"""The embedded default: a small real model, and the same with a Chinese-extended tokenizer."""

from __future__ import annotations

from pathlib import Path

from ceval_suite import catalog, sweep
from ceval_suite.backends.base import Say
from ceval_suite.model_spec import ModelSpec
from ceval_suite.tokenizer.ordered import Order, carry_out

BASE = "smollm2-135m"
EXTENDED = "smollm2-135m-zh"

SAMPLES = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")

CHINESE = ("ceval", "cmmlu", "gaokao-bench")
"""Bundled exams that the new pieces are learnt from."""

PIECES = 300


def models(out: Path, say: Say) -> dict[str, ModelSpec]:
    """The base and its extension; the extended tokenizer is made in `out` when it is not there.

    New rows are the means of the old rows of their pieces and have seen no training, so that the
    second row of the board shows what an extension costs before it is trained.

    Raises:
        UserError: the base cannot be fetched, or `out` cannot be written.
    """
    specs = sweep.models([BASE], {})
    folder = out / "tokenizer-zh"
    if not (folder / "extension.json").is_file():
        exams = catalog.data_root() / "tasks" / "sample"
        train = [exams / name for name in CHINESE]
        order = Order(base=BASE, out=folder, train=train, size=PIECES, only_han=True, tasks=())
        carry_out(order, say)
    extension = {"tokenizer": str(folder), "grow_embeddings": True}
    return specs | {EXTENDED: catalog.override(specs[BASE], extension)}
