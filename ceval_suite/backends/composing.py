"""Requests to write → texts: drafts for the decoder, and replies from what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ceval_suite.backends.batching import Read, Row
from ceval_suite.backends.decoding import Decoder, one_by_one
from ceval_suite.backends.drafts import Draft, Pen
from ceval_suite.backends.forward import Forward
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import PromptError
from ceval_suite.schema import Reply, Request


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens with which a model says that it has finished.

    Those of generation_config.json, which chat models extend by the end of a turn; else the
    configuration's or the tokenizer's own.
    """
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return []


class Composer:
    """Writes for one model."""

    def __init__(self, model: Any, tokenizer: Any, forward: Forward, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder
        self.pen = Pen(tokenizer, end_tokens(model, tokenizer))
        self.decoder = Decoder(forward, self.pen)
        self.way = ""
        pad = getattr(tokenizer, "pad_token_id", None)
        self._pad = int(pad) if pad is not None else next(iter(sorted(self.pen.ends)), 0)

    def write(
        self,
        requests: Sequence[Request],
        limit: int,
        packs: Callable[[Sequence[Row]], bool],
        score: Callable[[Sequence[Request]], Iterator[Reply]],
    ) -> Iterator[Reply]:
        """Replies with texts, as they come to their end.

        `packs` says whether rows may be packed, `score` gives the replies to the continuations of
        requests that have some, where they cannot be read off the same pass.

        Raises:
            PromptError: a context that leaves no room for what is to be written.
        """
        drafts: dict[int, list[Request]] = {}
        some: list[Draft] = []
        at: dict[Any, Draft] = {}
        apart: list[Request] = []
        encoded = self._encoded(requests)
        for request, (tokens, wanted) in zip(requests, encoded, strict=True):
            if len(tokens) + request.max_new_tokens > limit:
                raise PromptError(
                    f"{request.id}: {len(tokens)} tokens and {request.max_new_tokens} to be "
                    f"written where the model reads {limit}."
                )
            key = (tokens.tobytes(), request.max_new_tokens, request.stop, wanted)
            if key not in at:
                at[key] = Draft(tokens, request.max_new_tokens, request.stop, wanted)
                some.append(at[key])
            drafts.setdefault(id(at[key]), []).append(request)
            if request.continuations and not wanted:
                apart.append(request)
        packed = self._packed(some, packs)
        if not packed:
            apart = [request for request in requests if request.continuations]
        scored = {reply.id: reply for reply in score([_only_scored(r) for r in apart])}
        with torch.inference_mode():
            written = (
                self.decoder.write(some)
                if packed
                else one_by_one(self.model, some, self.pen, self._pad)
            )
            for draft in written:
                for number, request in enumerate(drafts[id(draft)]):
                    yield self._reply(request, draft, scored.get(request.id), first=not number)

    def _encoded(self, requests: Sequence[Request]) -> list[tuple[Any, tuple[int, ...]]]:
        """Context tokens, and the tokens of continuations that are read right after them."""
        contexts: list[Any] = [None] * len(requests)
        for template in (False, True):
            of = [k for k, r in enumerate(requests) if r.template_tokens == template]
            ids = self.encoder.contexts([requests[k].context for k in of], template_tokens=template)
            for k, tokens in zip(of, ids, strict=True):
                contexts[k] = tokens
        both = [k for k, request in enumerate(requests) if request.continuations]
        wanted: list[tuple[int, ...]] = [()] * len(requests)
        for k, one in zip(both, self.encoder.encode([requests[k] for k in both]), strict=True):
            if one.single and len(one.head) == len(contexts[k]) and not requests[k].read_as:
                wanted[k] = tuple(tail[0] for tail in one.tails)
        self.encoder.forget()
        return list(zip(contexts, wanted, strict=True))

    def _packed(self, some: Sequence[Draft], packs: Callable[[Sequence[Row]], bool]) -> bool:
        rows = [Row(d.tokens, [Read(len(d.tokens) - 1, 0, (k, 0))]) for k, d in enumerate(some)]
        if not packs(rows):
            self.way = "one row at a time"
            return False
        if not self.way:
            wrong = self.decoder.check(some)
            self.way = f"one row at a time: {wrong}" if wrong else "packed"
        return self.way == "packed"

    def _reply(self, request: Request, draft: Draft, scored: Reply | None, first: bool) -> Reply:
        scores = draft.scores if scored is None else ()
        logprobs = tuple(logprob for _, logprob in scores)
        reply = Reply(
            id=request.id,
            logprobs=logprobs,
            logits=tuple(logit for logit, _ in scores),
            choice_mass=float(torch.tensor(logprobs, dtype=torch.float64).exp().sum()),
        )
        new = draft.new + len(draft.ids) if first else 0
        return replace(
            scored or reply,
            num_tokens=len(draft.tokens),
            new_tokens=new + (scored.new_tokens if scored else 0),
            text=draft.text,
            finished=draft.finished,
            written=len(draft.ids),
        )


def _only_scored(request: Request) -> Request:
    return replace(request, max_new_tokens=0, stop=())
