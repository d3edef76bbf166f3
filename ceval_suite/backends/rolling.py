"""Whole texts → rows: windows that roll over a text and score each of its tokens once.

As lm-eval's `loglikelihood_rolling` does it (EleutherAI/lm-evaluation-harness, `lm_eval/utils.py`,
`get_rolling_token_windows`): a start token stands before the text, the first window scores all of
its tokens, and every later one scores the next `stride` tokens after as many of those before them
as fill the window; the last reaches back as far. With `stride` = `window`, as there, later windows
have one token of context at least; smaller strides give each token more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ceval_suite.backends.base import NOT_FINITE
from ceval_suite.backends.batching import Read, Row, Score, Tokens
from ceval_suite.errors import ModelError
from ceval_suite.schema import Text, TextRecord

READS = 2**16
"""Tokens that are planned together, about."""


@dataclass(frozen=True)
class Start:
    """The token that stands before a text: which one, and why that."""

    id: int
    token: str
    role: str


def start_token(tokenizer: Any) -> Start:
    """The start token, or the end token where there is none (lm-eval's `prefix_token_id`).

    Raises:
        ModelError: it has neither, so that the first token of a text has no probability.
    """
    for role in ("bos", "eos"):
        found = getattr(tokenizer, f"{role}_token_id", None)
        if found is not None:
            return Start(int(found), str(getattr(tokenizer, f"{role}_token")), role)
    raise ModelError(
        "the tokenizer has neither a start nor an end token to put before a text; give one as "
        "bos_token in tokenizer_config.json."
    )


def windows(number: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(from, first, to): a row holds tokens from..to-1 of start + text; it scores first..to-1.

    Counted in tokens of the text: a row that begins with the start token has `from` = -1, and its
    input is what lies before the token that is scored last.

    >>> list(windows(10, 4, 4))
    [(-1, 0, 4), (3, 4, 8), (5, 8, 10)]
    """
    scored = min(window, number)
    if number:
        yield -1, 0, scored
    while scored < number:
        end = min(number, scored + stride)
        yield end - window - 1, scored, end
        scored = end


def rows(tokens: Tokens, start: int, index: int, window: int, stride: int) -> Iterator[Row]:
    """Rows and reads of one text; slots are (text, window)."""
    whole = np.concatenate([np.asarray([start], np.int32), tokens])
    for number, (begin, first, end) in enumerate(windows(len(tokens), window, stride)):
        # of start + text, token t of the text stands at place t + 1
        reads = [Read(t - begin - 1, int(tokens[t]), (index, number)) for t in range(first, end)]
        yield Row(whole[begin + 1 : end], reads)


class Sums:
    """Texts under way: what is read of them so far and how much is missing."""

    def __init__(self, texts: Sequence[Text], unknown: int | None) -> None:
        """`unknown` is the id of the unknown token, where there is one."""
        self._texts = texts
        self._unknown = unknown
        self._sums = [0.0] * len(texts)
        self._missing = [-1] * len(texts)
        self._counts: list[tuple[int, int]] = [(0, 0)] * len(texts)

    def begin(self, index: int, tokens: Tokens) -> None:
        """Note the tokens of a text."""
        self._missing[index] = len(tokens)
        unknown = 0 if self._unknown is None else int((tokens == self._unknown).sum())
        self._counts[index] = (len(tokens), unknown)

    def take(self, score: Score) -> int | None:
        """Add one score; the number of the text that it completes, if it does.

        Raises:
            ModelError: not a finite number.
        """
        index = score.read.slot[0]
        if not abs(score.logprob) < float("inf"):
            raise ModelError(f"{self._texts[index].id}: {NOT_FINITE}")
        self._sums[index] += score.logprob
        self._missing[index] -= 1
        return index if self._missing[index] == 0 else None

    def empty(self) -> Iterator[TextRecord]:
        """Records of the texts that have no tokens: they are certain."""
        for index, (tokens, _) in enumerate(self._counts):
            if not tokens:
                yield self.record(index)

    def record(self, index: int) -> TextRecord:
        """The finished record of a text."""
        one = self._texts[index]
        tokens, unknown = self._counts[index]
        return TextRecord(
            id=one.id,
            group=one.group,
            language=one.language,
            cluster=one.cluster,
            logprob=self._sums[index],
            tokens=tokens,
            unknown=unknown,
            size=len(one.text.encode()),
            characters=len(one.text),
            text_sha256=hashlib.sha256(one.text.encode()).hexdigest(),
        )
