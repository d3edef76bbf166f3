"""Whether the packed path is right for a model: found by trying it on real rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ceval_suite.backends.attention import FAILURES, forced, ways_on
from ceval_suite.backends.batching import Read, Row, Score, Tokens, probe
from ceval_suite.backends.forward import Forward

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


SAMPLE = (
    "Question 17. Water boils at 100 °C at sea level; on a mountain of 3,000 m it boils earlier. "
    "Why?\nA. The air is colder.\nB. The pressure is lower.\nC. 水的成分不同。\nD. 海拔越高，"
    "重力越大。\n答案：B。大气压随海拔升高而降低，沸点也随之降低。\n"
)
"""A text that models are tried on where what is asked must not decide."""


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


class Verdicts:
    """Whether the packed path is right, tried on rows that are always the same.

    So neither what is asked nor what was asked before decides how anything is computed.
    """

    def __init__(
        self,
        forward: Forward,
        sample: Sequence[int] | Tokens,
        numbers: Sequence[float],
        limit: int,
        given: dict[str, Any],
    ) -> None:
        """`numbers` are lengths at which attention may change; `given` is what is known before."""
        self.sample: Tokens = np.resize(np.asarray([*sample] or [0, 1], np.int32), USUAL)
        self._forward = forward
        self._numbers = numbers
        self._limit = limit
        self._given = given
        self._found: dict[int, dict[str, Any]] = {}

    def __call__(self, longest: int) -> dict[str, Any]:
        """The verdict on rows of at most `longest` tokens."""
        if self._given["attention"] == "plain":
            return self._given
        crossed = max((int(n) for n in self._numbers if USUAL <= n < longest), default=0)
        usual = self._at(USUAL)
        return self._at(crossed + USUAL) if crossed and usual["attention"] == "packed" else usual

    def _at(self, length: int) -> dict[str, Any]:
        length = min(length, self._limit)
        if length not in self._found:
            tokens = np.resize(self.sample, length)
            row = Row(tokens, [Read(length - 1, 0, (0, 0))])
            found = check(self._forward, [row], length)
            self._found[length] = found
            if found["attention"] == "plain":
                self._forward.say(f"plain path: {found['reason']}")
        return self._found[length]


def _by_place(scores: Iterator[Score]) -> dict[Place, float]:
    return {(s.read.slot, s.read.position): s.logprob for s in scores}


def _turned(row: Row) -> Row:
    """A made-up sibling with other tokens after its border."""
    tokens = row.tokens.copy()
    border = row.reads[0].position + 1
    tokens[border:] = tokens[border:][::-1]
    return Row(tokens, row.reads)
