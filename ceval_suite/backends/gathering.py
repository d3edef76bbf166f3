"""Scores of reads gathered into replies: values come in any order, a reply when all are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ceval_suite.backends import writing
from ceval_suite.backends.batching import Row, Score
from ceval_suite.backends.diagnosis import not_finite
from ceval_suite.backends.forward import Forward
from ceval_suite.backends.tokens import Encoded
from ceval_suite.schema import Reply, Request


class Gathering:
    """Requests under way: values read so far and reads still missing."""

    def __init__(
        self,
        requests: Sequence[Request],
        encoded: Sequence[Encoded],
        todo: Sequence[Row],
        forward: Forward,
    ) -> None:
        """`forward` is asked where a number that is not finite comes from."""
        self.requests = requests
        self._forward = forward
        self.encoded = encoded
        self._rows = todo
        self._new: dict[int, int] | None = None
        self._values: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self._missing = [sum(len(tail) for tail in one.tails) for one in encoded]

    def take(self, score: Score) -> Iterator[Reply]:
        """Note one score; yield the reply that it completes.

        Raises:
            ModelError: not a finite number.
        """
        index = score.read.slot[0]
        if not abs(score.logprob) < float("inf"):
            one = self.encoded[index]
            row = np.asarray([*one.head, *one.tails[score.read.slot[1]][:-1]])
            raise not_finite(self._forward.model, self.requests[index].id, self._forward, row)
        self._values.setdefault(score.read.slot, []).append((score.logit, score.logprob))
        self._missing[index] -= 1
        if self._missing[index] == 0:
            yield self._reply(index)

    def _reply(self, index: int) -> Reply:
        one = self.encoded[index]
        found = [self._values.pop((index, c)) for c in range(len(one.tails))]
        logprobs = tuple(sum(logprob for _, logprob in values) for values in found)
        reply = Reply(
            id=self.requests[index].id,
            logprobs=logprobs,
            logits=tuple(values[0][0] for values in found) if one.single else (),
            num_tokens=len(one.head),
            choice_mass=float(torch.tensor(logprobs, dtype=torch.float64).exp().sum()),
            new_tokens=self._share().get(index, 0),
            lengths=tuple(len(tail) for tail in one.tails),
        )
        return writing.as_read(self.requests[index], reply)

    def _share(self) -> dict[int, int]:
        # a row that others extend belongs to whoever asked first; planned before the first score
        if self._new is None:
            self._new = {}
            for row in self._rows:
                owner = row.reads[0].slot[0]
                self._new[owner] = self._new.get(owner, 0) + row.new
        return self._new
