"""What OpenAI-compatible servers write, as plain numbers: pure, no network, no torch.

Two shapes are about: parallel lists with a mapping of top tokens (the older completions), and a
list of entries with the top tokens inside (chat, and some servers' completions too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SLACK = 1e-3
"""What rounding may add to a log-probability, or to a sum of probabilities."""

BARRED = -9000.0
"""Servers write -9999 for minus infinity, which JSON cannot hold."""

PART = "\ufffd"
"""How a token that is part of a character is written."""

SPELT = 96
"""Tokens at the end of a prompt that its continuation may take."""

UNDER = 1e-6
"""How much below its bound a label that was not returned is put: never level with one that was."""


class NotProved(ValueError):
    """Numbers that cannot be log-probabilities, or none at all; the text says why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that a server might have written next; `id` where it says one."""

    text: str
    id: int | None
    logprob: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A continuation to look up: its text, and its one token where a tokenizer is at hand."""

    text: str
    id: int | None = None
    loose: bool = False

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate is this continuation; `loose` passes over blanks around it."""
        if self.id is not None and candidate.id is not None:
            return candidate.id == self.id
        if self.loose:
            return candidate.text.strip() == self.text.strip()
        return candidate.text.replace("▁", " ") == self.text


def choice(reply: Any) -> dict[str, Any]:
    """The one answer inside a reply.

    Raises:
        NotProved: there is none.
    """
    found = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise NotProved("a reply without choices")
    return found[0]


def usage(reply: Any, key: str) -> int | None:
    """A number of tokens that the server counted."""
    found: Any = reply.get("usage") if isinstance(reply, dict) else None
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def written(reply: Any, most: int) -> tuple[str, bool]:
    """What a server wrote, and whether it ended by itself and not because `most` were written.

    Raises:
        NotProved: no text.
    """
    found = choice(reply)
    message: Any = found.get("message")
    text: Any = found.get("text")
    if isinstance(message, dict) and "content" in message:
        # null where a model is still thinking, or wrote nothing
        text = message["content"] or ""
    if not isinstance(text, str):
        raise NotProved("no text")
    reason = found.get("finish_reason")
    if reason is None:
        made = usage(reply, "completion_tokens")
        return text, made is None or made < most
    return text, reason != "length"


def candidates(reply: Any) -> list[Candidate]:
    """The likeliest tokens after the prompt, likeliest first.

    Raises:
        NotProved: no log-probabilities, or numbers that cannot be any.
    """
    given: Any = choice(reply).get("logprobs")
    if not isinstance(given, dict):
        raise NotProved("no log-probabilities")
    out: dict[tuple[str, int | None], Candidate] = {}
    if isinstance(given.get("content"), list):
        for entry in given["content"][:1]:
            for one in [*(entry.get("top_logprobs") or []), entry]:
                _put(out, one.get("token"), one.get("id"), one.get("logprob"))
    else:
        top: Any = (given.get("top_logprobs") or [None])[0]
        for text, logprob in top.items() if isinstance(top, dict) else ():
            _put(out, text, None, logprob)
        first = [(given.get(key) or [None])[0] for key in ("tokens", "token_logprobs")]
        if first[0] is not None:
            _put(out, first[0], None, first[1])
    if not out:
        raise NotProved("no log-probabilities")
    total = sum(math.exp(c.logprob) for c in out.values())
    if total > 1 + 10 * SLACK:
        raise NotProved(f"probabilities of different tokens that add up to {total:.3f}")
    return sorted(out.values(), key=lambda candidate: -candidate.logprob)


def _put(
    out: dict[tuple[str, int | None], Candidate], text: Any, number: Any, logprob: Any
) -> None:
    text = str(text)
    if text.startswith("token_id:") and text[9:].isdecimal():
        number = int(text[9:])
    one = number if isinstance(number, int) else None
    out.setdefault((text, one), Candidate(text, one, sound(logprob)))


def sound(value: Any) -> float:
    """A number that can be a log-probability.

    Raises:
        NotProved: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotProved(f"{value} as a log-probability")
    if value > SLACK:
        raise NotProved(f"{value:g} as a log-probability, which cannot be above 0")
    return min(float(value), 0.0)


def look_up(found: Sequence[Candidate], wanted: Sequence[Wanted]) -> list[float | None]:
    """The log-probability of each continuation among the candidates; None where it is not there.

    Tokens that read the same are one answer: their probabilities are added.
    """
    out: list[float | None] = []
    for one in wanted:
        fitting = [c.logprob for c in found if one.fits(c) and c.logprob > BARRED]
        out.append(math.log(sum(map(math.exp, fitting))) if fitting else None)
    return out


def bounded(found: Sequence[Candidate], values: Sequence[float | None]) -> tuple[float, ...]:
    """`values` with the most that a token which was not returned can have in place of None.

    That is the smallest returned log-probability, or what all returned tokens leave over.
    """
    left = 1.0 - sum(math.exp(c.logprob) for c in found)
    most = min(c.logprob for c in found)
    if left > 0:
        most = min(most, math.log(left))
    return tuple(most - UNDER if value is None else value for value in values)


def prompt_tokens(reply: Any) -> tuple[list[str], list[Any]]:
    """Text and log-probability of each token of an echoed prompt, what was generated left out.

    Raises:
        NotProved: the server does not echo log-probabilities of the prompt.
    """
    given: Any = choice(reply).get("logprobs")
    if not isinstance(given, dict):
        raise NotProved("no log-probabilities")
    texts: Any = given.get("tokens")
    values: Any = given.get("token_logprobs")
    if isinstance(given.get("content"), list):
        texts = [entry.get("token") for entry in given["content"]]
        values = [entry.get("logprob") for entry in given["content"]]
    if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
        raise NotProved("no log-probabilities of the prompt")
    made = usage(reply, "completion_tokens")
    end = len(texts) - (1 if made is None else made)
    if end < 2:
        raise NotProved("no log-probabilities of the prompt")
    return [str(text).replace("▁", " ") for text in texts[:end]], values[:end]


def starts(texts: Sequence[str], continuation: str) -> int:
    """The token that a continuation at the end of an echoed prompt begins with.

    A token that also holds the end of the context counts as its beginning.

    Raises:
        NotProved: the tokens do not spell the continuation.
    """
    bare = continuation.lstrip()
    text = ""
    for k in range(len(texts) - 1, -1, -1):
        text = texts[k] + text
        if text.endswith(continuation):
            return k
        if text == bare:
            # a blank that is a token of its own, or one that the tokenizer does not show
            apart = k > 0 and texts[k - 1] != "" and texts[k - 1].isspace()
            return k - 1 if apart and bare != continuation else k
        if len(text) > len(continuation) + 64:
            break
    raise NotProved(f"tokens of the prompt that do not spell {continuation!r}")


def _common(rows: Sequence[tuple[list[str], list[Any]]]) -> int:
    """The first token that differs between echoed prompts.

    For characters of several tokens, whose parts all look alike: equal tokens after equal ones
    have equal log-probabilities, which tells parts of characters apart.
    """
    for k, column in enumerate(zip(*(zip(*row, strict=True) for row in rows), strict=False)):
        texts = {text for text, _ in column}
        values = [value for _, value in column if isinstance(value, int | float)]
        parts = PART in "".join(texts) and values and max(values) - min(values) > SLACK
        if len(texts) > 1 or parts:
            return k
    return min(len(texts) for texts, _ in rows) - 1


def echoed(
    replies: Sequence[Any], continuations: Sequence[str], lengths: Sequence[int] | None = None
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Summed log-probability of each continuation, from prompts echoed with it at their end.

    Also the number of tokens that each sum is over.

    `lengths` are the continuations' numbers of tokens, where known; else their text is looked for
    from the end. As with any other backend, all are scored from their last common border.

    Raises:
        NotProved: nothing is echoed, or not this.
    """
    rows = [prompt_tokens(reply) for reply in replies]
    if lengths is not None:
        begins = [len(texts) - n for (texts, _), n in zip(rows, lengths, strict=True)]
    elif any(PART in text for texts, _ in rows for text in texts[-SPELT:]):
        begins = [_common(rows)]
    else:
        pairs = zip(rows, continuations, strict=True)
        begins = [starts(texts, continuation) for (texts, _), continuation in pairs]
    begin = min(begins)
    out: list[float] = []
    for _, values in rows:
        scored = values[begin:]
        if not scored:
            raise NotProved("no log-probabilities of the prompt")
        out.append(sum(sound(value) for value in scored))
    return tuple(out), tuple(len(values) - begin for _, values in rows)
