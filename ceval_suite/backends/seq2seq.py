"""Models with an encoder and a decoder: the context to the one, continuations to the other.

As lm-eval does it: the encoder reads the context with its closing token, the decoder starts from
its start token, and a continuation is tokenised by itself. One request at a time; the context is
encoded once for all its continuations. What is written comes from transformers' own `generate`,
several requests at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ceval_suite.backends import placement, writing
from ceval_suite.backends.base import NotFinite
from ceval_suite.backends.batching import Read, Score, Tokens
from ceval_suite.backends.diagnosis import not_finite
from ceval_suite.backends.tokens import Encoded
from ceval_suite.errors import ModelError
from ceval_suite.schema import Reply, Request

TOGETHER = 16
"""Requests that are written on at once."""


def scores(model: Any, encoded: Sequence[Encoded]) -> Iterator[Score]:
    """Scores of every token of every continuation; slots are (request, continuation)."""
    device = placement.input_device(model)
    start = _start(model)
    for index, one in enumerate(encoded):
        ids = torch.as_tensor(one.head, dtype=torch.long, device=device)[None]
        states = model.get_encoder()(input_ids=ids)
        for choice, tail in enumerate(one.tails):
            given = torch.tensor([[start, *tail[:-1]]], device=device)
            out = model(encoder_outputs=states, decoder_input_ids=given, use_cache=False)
            logits = out.logits[0].float()
            wanted = torch.tensor(tail, device=device)[:, None]
            raw = logits.gather(1, wanted)[:, 0]
            logprobs = raw - logits.logsumexp(-1)
            found = zip(tail, raw.tolist(), logprobs.tolist(), strict=True)
            for position, (token, logit, logprob) in enumerate(found):
                yield Score(Read(position, token, (index, choice)), logit, logprob)


def texts(
    model: Any, tokenizer: Any, heads: Sequence[Tokens], requests: Sequence[Request]
) -> Iterator[Reply]:
    """What the decoder writes after each context, greedily, in the order of their lengths.

    `heads` are the contexts' tokens with the closing one (`Encoder.heads`). A checkpoint's own
    settings for writing (beams, penalties, forced tokens) are left out but for its end tokens.
    """
    order = sorted(range(len(requests)), key=lambda k: (requests[k].max_new_tokens, len(heads[k])))
    for first in range(0, len(order), TOGETHER):
        some = order[first : first + TOGETHER]
        yield from _written(model, tokenizer, [heads[k] for k in some], [requests[k] for k in some])


def _written(
    model: Any, tokenizer: Any, heads: Sequence[Tokens], requests: Sequence[Request]
) -> Iterator[Reply]:
    from transformers import GenerationConfig, StoppingCriteriaList

    device = placement.input_device(model)
    ends = _ends(model, tokenizer)
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = ends[0] if pad is None else pad
    ids = torch.full((len(heads), max(map(len, heads))), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, head in enumerate(heads):
        ids[row, : len(head)] = torch.as_tensor(head, device=device)
        mask[row, : len(head)] = 1
    most = max(request.max_new_tokens for request in requests)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=ends,
        pad_token_id=pad,
        decoder_start_token_id=_start(model),
    )
    with writing.settings(model, config):
        stops = _Stops(tokenizer, requests)
        ended = StoppingCriteriaList([stops])
        finite = [writing.Finite(requests)]
        try:
            out = model.generate(
                ids, attention_mask=mask, stopping_criteria=ended, logits_processor=finite
            )
        except NotFinite as error:
            raise not_finite(model, error.row.id) from None
    for k, (request, head, row) in enumerate(
        zip(requests, heads, out[:, 1:].tolist(), strict=True)
    ):
        made = row[: stops.lengths.get(k, len(row))]
        end = next((n for n, token in enumerate(made) if token in ends), None)
        made = made if end is None else made[: end + 1]
        text = tokenizer.decode(made, skip_special_tokens=True)
        written, tokens = len(made), len(head)
        yield writing.reply(
            request, text, ended=end is not None, written=written, tokens=tokens, new=tokens
        )


class _Stops:
    """Ends a row when its text holds one of its stop strings, or it is as long as it may be.

    `lengths` are the tokens of the rows that ended so; what stands behind them is padding.
    """

    def __init__(self, tokenizer: Any, requests: Sequence[Request]) -> None:
        self._tokenizer = tokenizer
        self._requests = requests
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        for k, row in enumerate(input_ids[:, 1:].tolist()):
            request = self._requests[k]
            if k not in self.lengths and self._done(request, row):
                self.lengths[k] = len(row)
        found = [k in self.lengths for k in range(len(self._requests))]
        return torch.tensor(found, device=input_ids.device)

    def _done(self, request: Request, row: Sequence[int]) -> bool:
        if len(row) >= request.max_new_tokens:
            return True
        if not request.stop:
            return False
        return writing.cut(self._tokenizer.decode(row, skip_special_tokens=True), request.stop)[1]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    found = writing.end_tokens(model, tokenizer)
    if not found:
        raise ModelError("config.json names no eos_token_id; add the one it was trained with.")
    return found


def _start(model: Any) -> int:
    for config in (model.config, getattr(model, "generation_config", None)):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise ModelError(
        "config.json names no decoder_start_token_id; add the one it was trained with."
    )
