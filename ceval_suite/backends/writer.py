"""A server as something that writes: what it is sent for that, and whether it writes greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ceval_suite.backends import proof, wire
from ceval_suite.backends.base import Say
from ceval_suite.backends.transport import Refused, Transport
from ceval_suite.errors import ModelError

OPEN = "Here is a story about a fox, a river and a stone that nobody has told before. "
"""A text that goes on in many ways: what is drawn by chance hardly comes out twice alike."""

LENGTH = 32
"""Tokens that are written after it."""

STOPS = 4
"""Stop strings that servers take (OpenAI's limit); the others are looked for here."""

NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1.0}
"""No penalties; some servers else take them from the checkpoint's generation_config.json."""


class Writer:
    """Asks for texts. `greedy` is whether the same prompt gave the same text; None before that."""

    def __init__(self, transport: Transport, model: str) -> None:
        """Nothing is sent yet."""
        self.greedy: bool | None = None
        self._transport = transport
        self._model = model
        self._more: dict[str, Any] = NEUTRAL

    def ask(self, prompt: Any, most: int, stop: Sequence[str] = ()) -> Any:
        """Up to `most` tokens after a prompt, the likeliest at each place; the server's reply."""
        body: dict[str, Any] = {"model": self._model, "max_tokens": most, "temperature": 0}
        body |= self._more
        if stop:
            body["stop"] = list(stop[:STOPS])
        if self._transport.options.api == "chat":
            turns = [{"role": "user", "content": prompt}]
            return self._transport.post("chat/completions", body | {"messages": turns})
        return self._transport.post("completions", body | {"prompt": prompt})

    def prove(self, say: Say) -> None:
        """See whether the same prompt gives the same text, once; said if it does not.

        Raises:
            ModelError: the server writes nothing at all.
        """
        if self.greedy is not None:
            return
        try:
            texts = [wire.written(self._first(), LENGTH)[0]]
            texts.append(wire.written(self.ask(OPEN, LENGTH), LENGTH)[0])
        except wire.NotProved as error:
            raise ModelError(
                f"{self._transport.url}: model '{self._model}' cannot write, because the server "
                f"answers with {error}; give the URL of one that completes texts."
            ) from error
        self.greedy = texts[0] == texts[1]
        if not self.greedy:
            say(
                "the server wrote two different texts after one prompt (temperature 0 is not "
                "greedy there, or its numbers change from batch to batch): another run may answer "
                "otherwise"
            )

    def _first(self) -> Any:
        try:
            return self.ask(OPEN, LENGTH)
        except Refused as error:
            if error.status not in proof.CANNOT:
                raise
            self._more = {}  # not every server knows all names of penalties
            return self.ask(OPEN, LENGTH)
