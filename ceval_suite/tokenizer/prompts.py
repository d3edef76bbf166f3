"""What a benchmark's prompts cost with a tokenizer: lengths, shots that do not fit, all tokens."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ceval_suite.backends.batching import Row, planned_tokens, trie
from ceval_suite.backends.tokens import Encoder, rows
from ceval_suite.errors import PromptError
from ceval_suite.prepare import Prepared

CHUNK = 2048
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Fit:
    """Items that a context of `length` tokens does not hold whole.

    `dropped` items lose shots (or, at last, the header) by the benchmark's own rule; `unfit` ones
    are too long even so, and would stop a run.
    """

    length: int
    dropped: int
    unfit: int


@dataclass(frozen=True)
class Cost:
    """The prompts of a benchmark in tokens, with all of their shots.

    `total` are the tokens of all rows a model would read; `distinct` those the engine computes:
    of what rows share at their start, one is enough.
    """

    items: int
    shots: int
    mean: float
    median: float
    longest: int
    total: int
    distinct: int
    fits: tuple[Fit, ...]


class Bench:
    """The prompts of one benchmark, rendered once for all tokenizers."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self._renderers = {s: prepared.renderer(s) for s in prepared.subjects}
        # what a model answers is not known: sub-questions stand after the right answers
        self.prompts = [
            self._renderers[item.subject].render(item, before=item.before or None)
            for item in prepared.scored()
        ]

    @property
    def title(self) -> str:
        """Benchmark, split, wording, shots and number of items."""
        made = self.prepared
        return (
            f"{made.task.name} {made.split}, {made.protocol}, {made.shots}-shot, "
            f"{len(self.prompts):,} items"
        )

    @property
    def bytes(self) -> int:
        """Size of all prompts."""
        return sum(len(prompt.text.encode()) for prompt in self.prompts)

    def cost(
        self, encoder: Encoder, contexts: Sequence[int], step: Callable[[int], None]
    ) -> Cost | None:
        """What they cost; None without prompts. `step` is told the bytes that were encoded.

        Raises:
            PromptError: a letter that this tokenizer cannot score.
        """
        if not self.prompts:
            return None
        found: list[Row] = []
        lengths: list[int] = []
        for start in range(0, len(self.prompts), CHUNK):
            chunk = self.prompts[start : start + CHUNK]
            requests = [prompt.request() for prompt in chunk]
            texts = [request.context for request in requests]
            # as a backend counts them: this is what is held against its context
            lengths += map(len, encoder.contexts(texts, template_tokens=False))
            scored = [request for request in requests if request.continuations]
            found += rows(encoder.encode(scored), _NO_LIMIT, scored)
            written = [request for request in requests if not request.continuations]
            found += [Row(ids, []) for ids in encoder.heads(written)]
            encoder.forget()
            step(sum(len(text.encode()) for text in texts))
        return Cost(
            items=len(lengths),
            shots=self.prepared.shots,
            mean=statistics.fmean(lengths),
            median=statistics.median(lengths),
            longest=max(lengths),
            total=sum(len(row.tokens) for row in found),
            distinct=planned_tokens(trie(found, _NO_LIMIT)),
            fits=tuple(self._fit(encoder, length, lengths) for length in contexts),
        )

    def _fit(self, encoder: Encoder, limit: int, lengths: Sequence[int]) -> Fit:
        # the shots of a subject come again with each of its items
        known: dict[str, int] = {}

        def count(text: str) -> int:
            if text not in known:
                known[text] = len(encoder.contexts([text], template_tokens=False)[0])
                encoder.forget()
            return known[text]

        dropped = unfit = 0
        for prompt, length in zip(self.prompts, lengths, strict=True):
            if length <= limit - prompt.room:
                continue
            known[prompt.request().context] = length
            try:
                self._renderers[prompt.item.subject].fit(
                    prompt.item, count, limit, prompt.item.before or None
                )
                dropped += 1
            except PromptError:
                unfit += 1
        return Fit(limit, dropped, unfit)
