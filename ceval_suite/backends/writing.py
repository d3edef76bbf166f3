"""What backends that write have in common: stop strings, lengths, replies of two halves. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ceval_suite.errors import ModelError, PromptError
from ceval_suite.schema import Reply, Request


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first place where one of the stop strings begins, and whether one does."""
    places = [at for at in (text.find(one) for one in stop if one) if at >= 0]
    return (text[: min(places)], True) if places else (text, False)


def reply(
    request: Request, text: str, *, ended: bool, written: int, tokens: int = 0, new: int = 0
) -> Reply:
    """The reply that a text makes. A text in which a stop string appears is finished.

    `ended` says whether the model had stopped by itself, `written` how many tokens it wrote;
    `tokens` and `new` are those of the context, in all and computed for this.
    """
    text, stopped = cut(text, request.stop)
    return Reply(
        id=request.id,
        logprobs=(),
        num_tokens=tokens,
        new_tokens=new,
        text=text,
        finished=ended or stopped,
        written=written,
    )


def joined(scored: Reply | None, written: Reply | None) -> Reply:
    """One reply from the two halves of a request that was scored, written on after, or both."""
    if scored is None or written is None:
        whole = scored or written
        assert whole is not None, "neither continuations nor anything to write"
        return whole
    return replace(
        scored,
        new_tokens=scored.new_tokens + written.new_tokens,
        text=written.text,
        finished=written.finished,
        written=written.written,
    )


def check_room(request: Request, tokens: int, limit: int) -> None:
    """What is to be written must fit behind a context of so many tokens.

    Raises:
        PromptError: it does not.
    """
    if tokens + request.max_new_tokens > limit:
        raise PromptError(
            f"{request.id}: {tokens} tokens and {request.max_new_tokens} to write where the model "
            f"reads {limit}; set max_length, show fewer shots, or write less (max_new_tokens)."
        )


def check_asked(requests: Sequence[Request]) -> None:
    """Every request must ask for something.

    Raises:
        PromptError: neither a continuation nor anything to write.
    """
    for request in requests:
        if not (request.continuations or request.max_new_tokens):
            raise PromptError(f"{request.id}: there is no continuation to score, nor any to write.")


def refuse_readings(requests: Sequence[Request], who: str) -> None:
    """Refuse `read_as`, which names tokens by their ids.

    Raises:
        ModelError: one request has it.
    """
    for request in requests:
        if request.read_as:
            raise ModelError(
                f"{request.id}: this protocol reads letters by token ids, which {who} does not "
                "take; load the weights with backend hf."
            )
