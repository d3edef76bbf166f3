"""Continuations token by token: each prompt asks for the log-probabilities of what comes next.

A continuation of several tokens becomes several prompts, each one token longer. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ceval_suite.backends import writing
from ceval_suite.backends.tokens import Encoded
from ceval_suite.errors import ModelError
from ceval_suite.schema import Reply, Request

Slot = tuple[int, int]
"""(request, continuation)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and for each token wanted next the slots that its log-probability belongs to."""

    ids: tuple[int, ...]
    wanted: Mapping[int, tuple[Slot, ...]]


def plan(encoded: Sequence[Encoded]) -> list[Prompt]:
    """Requests as prompts of one generated token each; equal prompts are asked once.

    Sorted, so that prompts with a common head follow each other in the engine's cache.
    """
    found: dict[tuple[int, ...], dict[int, list[Slot]]] = {}
    for index, one in enumerate(encoded):
        head = tuple(map(int, one.head))
        for choice, tail in enumerate(one.tails):
            for k, token in enumerate(tail):
                wanted = found.setdefault(head + tail[:k], {})
                wanted.setdefault(token, []).append((index, choice))
    return [
        Prompt(ids, {token: tuple(slots) for token, slots in wanted.items()})
        for ids, wanted in sorted(found.items())
    ]


def portions(prompts: Sequence[Prompt], size: int) -> list[tuple[int, list[int]]]:
    """Wanted tokens in requests of at most `size`: which prompt, and what is wanted after it."""
    out: list[tuple[int, list[int]]] = []
    for index, prompt in enumerate(prompts):
        every = list(prompt.wanted)
        out += [(index, every[at : at + size]) for at in range(0, len(every), size)]
    return out


def gather(
    requests: Sequence[Request],
    encoded: Sequence[Encoded],
    prompts: Sequence[Prompt],
    answers: Sequence[Mapping[int, float]],
) -> list[Reply]:
    """Replies from the log-probability of each wanted token of each prompt.

    Raises:
        ModelError: one is missing or no finite number.
    """
    sums: dict[Slot, list[float]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        for token, slots in prompt.wanted.items():
            value = answer.get(token)
            if value is None or not math.isfinite(value) or value > 1e-3:
                raise ModelError(
                    f"{requests[slots[0][0]].id}: vLLM gives {value} as the log-probability of "
                    f"token {token}; the checkpoint is broken or its dtype too narrow."
                )
            for slot in slots:
                sums.setdefault(slot, []).append(min(value, 0.0))
    out: list[Reply] = []
    for index, (request, one) in enumerate(zip(requests, encoded, strict=True)):
        logprobs = tuple(math.fsum(sums[index, c]) for c in range(len(one.tails)))
        reply = Reply(
            id=request.id,
            logprobs=logprobs,
            num_tokens=len(one.head),
            choice_mass=math.fsum(map(math.exp, logprobs)),
            lengths=tuple(map(len, one.tails)),
        )
        out.append(writing.as_read(request, reply))
    return out
