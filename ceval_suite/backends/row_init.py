"""How the rows of new tokens begin, computed from stored rows a block at a time.

`mean` is the mean of the old rows of the pieces that the base's tokenizer gives for a token's text
(the start that Colossal-LLaMA trained from). A mean is shorter than what it is the mean of;
`norm-matched` gives it the average length of the old rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ceval_suite.backends.rewriting import Grown, Rows, narrowed

INITS = {
    "mean": "mean of the old rows of the base's pieces",
    "norm-matched": "mean of the old rows of the base's pieces, scaled to the old rows' mean norm",
}
"""Names of `--init` and what they do."""


@dataclass(frozen=True)
class Plan:
    """Which rows are made, and of what.

    `new` are ids that get a row of their own, in ascending order, and `pieces` the old ids that
    each is the mean of; one without any gets the mean of all old rows, as does padding. `old` are
    the ids of the base's tokens, `before` and `after` numbers of rows.
    """

    new: Sequence[int]
    pieces: Sequence[Sequence[int]]
    old: Sequence[int] = field(repr=False)
    before: int
    after: int
    init: str = "mean"


@dataclass(frozen=True)
class Average:
    """The mean [width] of the rows of old tokens, and the mean of their lengths."""

    row: torch.Tensor
    norm: float


def average(rows: Rows, plan: Plan) -> Average:
    """What a stored tensor's old rows are like; rows of padding are left out."""
    kept = torch.zeros(rows.count, dtype=torch.bool)
    kept[torch.tensor(plan.old)] = True
    total = torch.zeros(rows.width, dtype=torch.float64)
    norms, first = 0.0, 0
    for block in rows.blocks():
        wide = block.double()[kept[first : first + len(block)]]
        total += wide.sum(0)
        norms += float(wide.norm(dim=1).sum())
        first += len(block)
    return Average(total / len(plan.old), norms / len(plan.old))


def grown(rows: Rows, plan: Plan, of: Average, dtype: torch.dtype) -> Grown:
    """A stored tensor with the rows of a plan, in `dtype`."""

    def blocks() -> Iterator[torch.Tensor]:
        for first in range(0, plan.after, rows.step):
            yield _block(rows, plan, of, dtype, (first, min(first + rows.step, plan.after)))

    return Grown(plan.after, blocks)


def _block(
    rows: Rows, plan: Plan, of: Average, dtype: torch.dtype, span: tuple[int, int]
) -> torch.Tensor:
    first, last = span
    kept = rows.between(min(first, plan.before), min(last, plan.before))
    out = of.row.to(dtype).expand(last - first, -1).clone()
    out[: len(kept)] = narrowed(kept, dtype, rows.stored.file)
    here = range(bisect_left(plan.new, first), bisect_left(plan.new, last))
    used = sorted({piece for k in here for piece in plan.pieces[k]})
    place = {piece: at for at, piece in enumerate(used)}
    wide = torch.float64 if rows.stored.dtype == "F64" else torch.float32
    table = rows.at(used).to(wide)
    for k in here:
        some = [place[piece] for piece in plan.pieces[k]]
        made = table[some].mean(0) if some else of.row
        out[plan.new[k] - first] = _scaled(made, plan, of).to(dtype)
    return out


def _scaled(row: torch.Tensor, plan: Plan, of: Average) -> torch.Tensor:
    norm = float(row.norm())
    # one number has no length of its own: a bias stays a mean
    if plan.init == "mean" or len(row) == 1 or not norm:
        return row
    return row * (of.norm / norm)
