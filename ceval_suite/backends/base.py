"""The backend protocol: one verb, `ask`. Everything else lets the caller prepare for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from ceval_suite.schema import Reply, Request

Say = Callable[[str], None]
"""Shows one line to the person at the terminal."""


@runtime_checkable
class Backend(Protocol):
    """Something that scores continuations.

    Replies may come in any order and as soon as they are ready: sorting, batching, servers and
    workers stay invisible to the caller.
    """

    @property
    def max_length(self) -> int:
        """Tokens the model reads at most, the letter included."""
        ...

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text as it would be put to the model.

        Takes many texts at once because tokenisers are several times faster on batches.
        """
        ...

    def wrap(self, user: str) -> str:
        """A user's turn in the model's chat template, up to the assistant's turn."""
        ...

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """How each request's continuations are tokenised in context."""
        ...

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Score every request once."""
        ...

    def describe(self) -> dict[str, Any]:
        """What answers: weights, tokenizer, numerics and the path the engine took."""
        ...
