"""What backends that write have in common: stop strings, lengths, replies of two halves. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ceval_suite.backends.base import NotFinite
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


def as_read(request: Request, reply: Reply) -> Reply:
    """The reply to a request with `read_as`, from one with a value for each reading.

    Readings stand as `Encoder.encode` gives them: all of the first continuation, then the next. The
    likeliest counts. A continuation is only bounded where none of its readings was returned: what
    was not returned is less likely than what was.
    """
    if not (request.read_as and reply.logprobs):
        return reply
    number = len(request.read_as)
    starts = range(0, len(reply.logprobs), number)
    logprobs = tuple(max(reply.logprobs[k : k + number]) for k in starts)
    hidden = [all(k + n in reply.bounded for n in range(number)) for k in starts]
    bounded = tuple(c for c, unseen in enumerate(hidden) if unseen)
    seen = [value for value, unseen in zip(logprobs, hidden, strict=True) if not unseen]
    return replace(
        reply,
        logprobs=logprobs,
        lengths=(1,) * len(logprobs),
        bounded=bounded,
        choice_mass=math.fsum(map(math.exp, seen)),
    )


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


@contextmanager
def settings(model: Any, config: Any) -> Generator[None, None, None]:
    """Within it a transformers model generates by these settings, and by none of its own.

    Penalties and suppressed tokens of a generation_config.json would change the letters, which all
    stand in the prompt.
    """
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


class Finite:
    """Sees that the scores that `generate` chooses by are numbers; `rows` are whose they are."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores as they are.

        Raises:
            NotFinite: the best of a row is not finite.
        """
        best = scores.amax(-1)
        if not bool(best.isfinite().all()):
            raise NotFinite(self._rows[best.isfinite().tolist().index(False)])
        return scores


def halves(
    requests: Sequence[Request],
    score: Callable[[list[Request]], Sequence[Reply]],
    write: Callable[[list[Request]], Sequence[Reply]],
) -> Iterator[Reply]:
    """Replies to requests that are scored, written on after, or both, in their order.

    `score` and `write` answer theirs in the order in which they are given.
    """
    scored = iter(score([r for r in requests if r.continuations]))
    written = iter(write([r for r in requests if r.max_new_tokens]))
    for request in requests:
        yield joined(
            next(scored) if request.continuations else None,
            next(written) if request.max_new_tokens else None,
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
