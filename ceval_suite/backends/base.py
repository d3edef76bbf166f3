"""The backend protocol: one verb, `ask`. Everything else lets the caller prepare for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from ceval_suite.errors import ModelError
from ceval_suite.schema import Reply, Request


class NotFinite(ModelError):
    """Logits that are not finite, of one of several rows."""

    def __init__(self, row: Any) -> None:
        super().__init__(NOT_FINITE)
        self.row = row


NOT_FINITE = (
    "the model's logits are not finite; the checkpoint is broken or its dtype too narrow "
    "(try --dtype float32)."
)
"""What is said of a model whose numbers mean nothing."""

Say = Callable[[str], None]
"""Shows one line to the person at the terminal."""


@runtime_checkable
class Backend(Protocol):
    """Something that scores continuations and writes texts.

    Replies may come in any order and as soon as they are ready: sorting, batching, servers and
    workers stay invisible to the caller.
    """

    @property
    def max_length(self) -> int:
        """Tokens the model reads at most, the letter or what is written included."""
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
        """Answer every request once: score its continuations, write on after it, or both.

        A request with continuations gets their log-probabilities; one with `max_new_tokens` gets
        what the model writes, greedily. A request that follows another one (`after`) is asked when
        that one is answered, its context behind that one's context and answer. What cannot be
        answered here is refused before anything is computed.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What answers: weights, tokenizer, numerics and the path the engine took."""
        ...
