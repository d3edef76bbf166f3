"""Requests to write, and chains of letters, as rows of the decoder; and replies from them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ceval_suite.backends import drafts as plan
from ceval_suite.backends import writing
from ceval_suite.backends.base import NotFinite
from ceval_suite.backends.batching import Read, Row, Tokens
from ceval_suite.backends.decoding import TRIED, Decoder, one_by_one
from ceval_suite.backends.diagnosis import not_finite
from ceval_suite.backends.drafts import Chain, Draft, Pen, Writing
from ceval_suite.backends.forward import Forward
from ceval_suite.backends.tokens import Encoder
from ceval_suite.schema import Reply, Request

Packs = Callable[[Sequence[Row]], bool]
"""Whether rows may be packed."""

Score = Callable[[Sequence[Request]], Iterator[Reply]]
"""Replies to the continuations of requests."""


class Composer:
    """Writes, and follows chains, with one model; nothing in it keeps gradients from being made."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        forward: Forward,
        encoder: Encoder,
        numbers: Sequence[float] = (),
        agreed: Callable[[str], str] = str,
        sample: Tokens | None = None,
    ) -> None:
        """`numbers` are lengths at which something about the model's attention may change.

        `agreed` gives one process's verdict to all that share the model. Steps are tried on
        `sample`, if given, and never on what is asked.
        """
        self._sample = sample
        self._wrong: dict[int, str] = {}
        self._agreed = agreed
        self._numbers = sorted({int(n) for n in numbers if isinstance(n, int)})
        self._reached = 0
        self.encoder = encoder
        self.pen = Pen(tokenizer, writing.end_tokens(model, tokenizer))
        self.decoder = Decoder(forward)
        self.way = ""
        pad = getattr(tokenizer, "pad_token_id", None)
        self._pad = int(pad) if pad is not None else next(iter(sorted(self.pen.ends)), 0)

    def write(
        self, requests: Sequence[Request], limit: int, packs: Packs, score: Score
    ) -> Iterator[Reply]:
        """Replies with texts, as they come to their end.

        `score` gives the replies to continuations that cannot be read off the same pass.

        Raises:
            PromptError: a context that leaves no room for what is to be written.
        """
        owners: dict[int, list[Request]] = {}
        some: dict[Any, Writing] = {}
        apart: list[Request] = []
        for request, (tokens, wanted) in zip(requests, self._encoded(requests), strict=True):
            writing.check_room(request, len(tokens), limit)
            key = (tokens.tobytes(), request.max_new_tokens, request.stop, wanted)
            if key not in some:
                some[key] = Writing(self.pen, tokens, request.max_new_tokens, request.stop, wanted)
            owners.setdefault(id(some[key]), []).append(request)
            if request.continuations and not wanted:
                apart.append(request)
        drafts = list(some.values())
        packed = self._packed(drafts, packs)
        if not packed:
            apart = [request for request in requests if request.continuations]
        scored = {reply.id: reply for reply in score(only_scored(apart))}
        new = plan.fresh(drafts)

        def owner(row: Any) -> str:
            # what is only tried has the tokens of one of the drafts
            its = (draft for draft in drafts if draft is row or draft.tokens is row.tokens)
            return owners[id(next(its, drafts[0]))][0].id

        with self._told(owner):
            written = (
                self.decoder.write(drafts)
                if packed
                else one_by_one(self.decoder.forward, drafts, self.pen, self._pad)
            )
            for draft in written:
                for number, request in enumerate(owners[id(draft)]):
                    computed = 0 if number else new[id(draft)] + len(draft.ids)
                    reply = _scored(request, draft.scores, len(draft.tokens), computed)
                    other = scored.get(request.id)
                    if other is not None:
                        reply = replace(other, new_tokens=other.new_tokens + computed)
                    yield replace(
                        reply,
                        text=draft.text,
                        finished=draft.finished,
                        written=len(draft.ids),
                    )

    def follow(
        self, chains: Sequence[list[Request]], limit: int, packs: Packs, left: list[Request]
    ) -> Iterator[Reply]:
        """Replies to chains of letters, each chain one row; those of a chain in their order.

        What cannot be asked so is added to `left`: where letters take several tokens, or what
        joins on changes the tokens before it.
        """
        some: list[Chain] = []
        for chain in chains:
            draft = Chain.of(chain, self._one)
            if draft is None or len(draft.tokens) + draft.most > limit:
                left += chain
            else:
                some.append(draft)
        if some and not self._packed(some, packs):
            left += [request for draft in some for request in draft.requests]
            some = []
        new = plan.fresh(some)
        with self._told(lambda draft: draft.requests[0].id):
            for draft in self.decoder.write(some) if some else ():
                before = len(draft.tokens) - new[id(draft)]
                for request, (tokens, scores) in zip(draft.requests, draft.answers, strict=False):
                    reply = _scored(request, scores, tokens, tokens - before)
                    before = tokens
                    yield reply
                rest = draft.requests[len(draft.answers) :]
                if rest:
                    # the first of them goes on from what is answered
                    left += [draft.going_on(rest[0])]
                    left += rest[1:]
        self.encoder.forget()

    @contextmanager
    def _told(self, owner: Callable[[Any], str]) -> Generator[None, None, None]:
        """Within it, logits that are not finite are told of with the item that a draft is of."""
        try:
            yield
        except NotFinite as error:
            row = [*error.row.tokens, *error.row.ids]
            forward = self.decoder.forward
            told = not_finite(forward.model, owner(error.row), forward, np.asarray(row))
            raise told from None

    def _one(self, request: Request) -> tuple[Tokens, tuple[int, ...]] | None:
        """Context tokens and one token for each continuation; None where there are more."""
        (context,) = self.encoder.heads([request])
        (one,) = self.encoder.encode([request])
        if not one.single or len(one.head) != len(context):
            return None
        return context, tuple(tail[0] for tail in one.tails)

    def _encoded(self, requests: Sequence[Request]) -> list[tuple[Tokens, tuple[int, ...]]]:
        """Context tokens, and the tokens of continuations that are read right after them."""
        contexts = self.encoder.heads(requests)
        both = [k for k, r in enumerate(requests) if r.continuations and not r.read_as]
        wanted: list[tuple[int, ...]] = [()] * len(requests)
        for k, one in zip(both, self.encoder.encode([requests[k] for k in both]), strict=True):
            if one.single and len(one.head) == len(contexts[k]):
                wanted[k] = tuple(tail[0] for tail in one.tails)
        self.encoder.forget()
        return list(zip(contexts, wanted, strict=True))

    def _packed(self, some: Sequence[Draft], packs: Packs) -> bool:
        rows = [Row(d.tokens, [Read(len(d.tokens) - 1, 0, (k, 0))]) for k, d in enumerate(some)]
        if not packs(rows):
            self.way = "one row at a time"
            return False
        reach = max(len(draft.tokens) + draft.most for draft in some)
        if self._sample is not None:
            return self._settled(self._sample, reach)
        crossed = [n for n in self._numbers if max(self._reached, 2 * TRIED) < n < reach]
        if not self.way or (crossed and self.way == "packed"):
            wrong = self._agreed(self.decoder.check(some, self.pen.endless(), crossed))
            self.way = f"one row at a time: {wrong}" if wrong else "packed"
        self._reached = max(self._reached, reach)
        return self.way == "packed"

    def _settled(self, sample: Tokens, reach: int) -> bool:
        """Whether steps are right as far as `reach`, whatever was written before."""
        crossed = [n for n in self._numbers if len(sample) <= n < reach][-1:]
        key = max(crossed, default=0)
        if key not in self._wrong:
            tried = [Writing(self.pen, sample, TRIED)]
            self._wrong[key] = self.decoder.check(tried, self.pen.endless(), crossed)
        wrong = self._wrong[key]
        self.way = f"one row at a time: {wrong}" if wrong else "packed"
        return not wrong


def _scored(
    request: Request, scores: Sequence[tuple[float, float]], tokens: int, new: int
) -> Reply:
    logprobs = tuple(logprob for _, logprob in scores)
    return Reply(
        id=request.id,
        logprobs=logprobs,
        logits=tuple(logit for logit, _ in scores),
        num_tokens=tokens,
        choice_mass=float(torch.tensor(logprobs, dtype=torch.float64).exp().sum()),
        new_tokens=new,
        lengths=(1,) * len(scores),
    )


def only_scored(requests: Sequence[Request]) -> list[Request]:
    """The halves of requests that are scored."""
    return [replace(r, max_new_tokens=0, stop=()) for r in requests if r.continuations]
