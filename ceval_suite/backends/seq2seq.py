"""Models with an encoder and a decoder: the context to the one, continuations to the other.

As lm-eval does it: the encoder reads the context with its closing token, the decoder starts from
its start token, and a continuation is tokenised by itself. One request at a time; the context is
encoded once for all its continuations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ceval_suite.backends import placement
from ceval_suite.backends.batching import Read, Score
from ceval_suite.backends.tokens import Encoded
from ceval_suite.errors import ModelError


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


def _start(model: Any) -> int:
    for config in (model.config, getattr(model, "generation_config", None)):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise ModelError(
        "config.json names no decoder_start_token_id; add the one it was trained with."
    )
