"""Whether the packed path is right for a model: found by trying it on real rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ceval_suite.backends.attention import forced, ways_on
from ceval_suite.backends.batching import Row, Score, probe
from ceval_suite.backends.forward import FAILURES, Forward

Place = tuple[tuple[int, int], int]
"""Who asked, and the position that was read."""

USUAL = 192
"""Tokens of the rows on which both paths are compared, where their length does not matter."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference of a log-probability between the two paths that rounding explains."""

LEAK = {torch.float32: 5e-5}
"""How far other rows of a pack may move a log-probability: not at all but for rounding.

What float32 products round to depends on the kernel (1.1e-5 was seen on AVX2, MiniCPM3); models in
which rows do leak differ by more than `TOLERANCE`.
"""


def check(forward: Forward, rows: Sequence[Row], length: int) -> dict[str, Any]:
    """Score a few rows by both paths; the packed one is used only where they agree."""
    sample = probe(rows, length)
    tolerance = TOLERANCE.get(forward.dtype, 0.5)
    before = forward.computed
    plain = _by_place(forward.plain(sample))
    off, leaks = [0.0], [0.0]
    try:
        for way in ways_on(forward.device.type, forward.dtype):
            with forced(way):
                packed: dict[Place, float] = {}
                for cut in (1, 1 << 30):  # heads kept from pass to pass, heads shared within one
                    packed = _by_place(forward.packed(sample, cut=cut))
                    off += [abs(packed[place] - plain[place]) for place in plain]
                # what stands in other rows must not reach the first: rounding hides less of that
                turned = [sample[0], *map(_turned, sample[1:])]
                other = _by_place(forward.packed(turned, cut=1 << 30))
            own = [place for place in packed if place[0] == sample[0].reads[0].slot]
            leaks += [abs(packed[place] - other[place]) for place in own]
    except FAILURES as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return {"attention": "plain", "reason": reason, "checked_rows": len(sample)}
    finally:
        forward.computed = before
    worst = float(torch.tensor(off).max())  # keeps a NaN, where Python's max drops it
    verdict = {"checked_rows": len(sample), "worst_difference": worst, "tolerance": tolerance}
    if not worst <= tolerance:
        reason = f"the packed path differs by {worst:.2g} in log-probability on checked rows"
        return {"attention": "plain", "reason": reason, **verdict}
    if not float(torch.tensor(leaks).max()) <= LEAK.get(forward.dtype, 1e-3):
        reason = f"what stands in other rows of a pack moves a score by {max(leaks):.2g}"
        return {"attention": "plain", "reason": reason, **verdict}
    return {"attention": "packed", **verdict}


def _by_place(scores: Iterator[Score]) -> dict[Place, float]:
    return {(s.read.slot, s.read.position): s.logprob for s in scores}


def _turned(row: Row) -> Row:
    """A made-up sibling with other tokens after its border."""
    tokens = row.tokens.copy()
    border = row.reads[0].position + 1
    tokens[border:] = tokens[border:][::-1]
    return Row(tokens, row.reads)
