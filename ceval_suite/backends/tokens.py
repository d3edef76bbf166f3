"""Requests → rows: contexts tokenised in batches, letters resolved in context.

The tokens of a continuation are the tokens of context + continuation beyond those of the context
alone; where a tokenizer merges the border, every continuation is scored from the last common
border. Nothing is ever taken from `encode("A")[-1]` (CMMLU issue 11, lm-eval issue 614).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ceval_suite.backends.batching import Read, Row, Tokens
from ceval_suite.backends.units import shared
from ceval_suite.errors import PromptError
from ceval_suite.schema import Request

CHUNK = 256
TAIL = 48
"""Characters of context that are tokenised again together with a continuation, at least."""

HEAD = 120
"""Characters that texts must share before their common head is tokenised apart."""

LINE = 256
"""A last line longer than this is cut at a blank, or anywhere, instead of at its start."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request in tokens: the shared head and, per continuation, the tokens scored after it."""

    head: Tokens
    tails: tuple[tuple[int, ...], ...]

    @property
    def single(self) -> bool:
        """Whether every continuation is one token."""
        return all(len(tail) == 1 for tail in self.tails)


class Encoder:
    """Tokenises for one tokenizer, in batches, remembering contexts already seen."""

    def __init__(self, tokenizer: Any, *, apart: bool = False) -> None:
        """`tokenizer` is a transformers tokenizer, fast or slow.

        `apart` is for models with an encoder and a decoder: the context goes to the one with its
        closing token, the continuation to the other, tokenised by itself.
        """
        self.tokenizer = tokenizer
        self.apart = apart
        self._seen: dict[tuple[bool, str], Tokens] = {}
        self._closing = 0
        (bare,), (dressed,) = self.ids(["A"], special=False), self.ids(["A"], special=True)
        for at in range(len(dressed) - len(bare), -1, -1):
            if np.array_equal(dressed[at : at + len(bare)], bare):
                self._closing = len(dressed) - at - len(bare)
                break
        self._end = dressed[len(dressed) - self._closing :]

    def ids(self, texts: Sequence[str], *, special: bool) -> list[Tokens]:
        """Token ids of each text, with the tokenizer's own start token if asked.

        An end or separator token that some tokenizers add is taken off again: nothing may stand
        between a context and its continuation, and the end of the text is not what is scored.
        """
        out: list[Tokens] = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            # verbose=False: a text beyond the nominal length is fitted or refused by us
            encoded = self.tokenizer(
                chunk, add_special_tokens=special, return_attention_mask=False, verbose=False
            )
            cut = self._closing if special else 0
            out += [np.asarray(i[: len(i) - cut], np.int32) for i in encoded["input_ids"]]
        return out

    def contexts(self, texts: Sequence[str], *, template_tokens: bool) -> list[Tokens]:
        """Token ids of contexts; a chat template has written its special tokens itself."""
        keys = [(template_tokens, text) for text in texts]
        new = sorted({text for text in texts if (template_tokens, text) not in self._seen})
        found = self._below_heads(new, special=not template_tokens)
        self._seen.update(zip(((template_tokens, text) for text in new), found, strict=True))
        return [self._seen[key] for key in keys]

    def _below_heads(self, texts: Sequence[str], *, special: bool) -> list[Tokens]:
        """Token ids of sorted texts; a head that many share (the shots) is tokenised once.

        The first and the last text of each group are tokenised whole as well: where they come out
        differently, the cut is none for this tokenizer and the whole group is done the long way.
        """
        out: dict[str, Tokens] = {}
        for first, last, head in _groups(texts):
            if last - first > 2:
                group = texts[first:last]
                out.update(
                    zip(group, self._below(group, head, special=special) or (), strict=False)
                )
        rest = [text for text in texts if text not in out]
        out.update(zip(rest, self.ids(rest, special=special), strict=True))
        return [out[text] for text in texts]

    def _below(self, group: Sequence[str], head: int, *, special: bool) -> list[Tokens] | None:
        shots = group[0][:head]
        tail = _tail(shots)
        start = head - len(tail)
        (above,) = self.ids([shots], special=special)
        below = self.ids([tail, *(text[start:] for text in group)], special=False)
        found = _spliced(above, below[0], below[1:])
        if found is None:
            return None
        whole = self.ids([group[0], group[-1]], special=special)
        same = all(map(np.array_equal, whole, (found[0], found[-1])))
        return found if same else None

    def forget(self) -> None:
        """Drop remembered contexts."""
        self._seen.clear()

    def encode(self, requests: Sequence[Request]) -> list[Encoded]:
        """All requests in tokens.

        Raises:
            PromptError: an empty context or continuation, none at all, or two continuations that
                look the same to this tokenizer.
        """
        contexts = self.heads(requests)
        if self.apart:
            return [self._pair(r, context) for r, context in zip(requests, contexts, strict=True)]
        joined = self._joined(requests, contexts)
        return [
            self._as_read(request, context) if request.read_as else _cut(request, context, full)
            for request, context, full in zip(requests, contexts, joined, strict=True)
        ]

    def heads(self, requests: Sequence[Request]) -> list[Tokens]:
        """Token ids of each request's context; with its closing token where that goes apart."""
        contexts: list[Tokens] = [np.empty(0, np.int32)] * len(requests)
        for template_tokens in (False, True):
            of = [i for i, r in enumerate(requests) if r.template_tokens == template_tokens]
            texts = [requests[i].context for i in of]
            ids = self.contexts(texts, template_tokens=template_tokens)
            for i, found in zip(of, ids, strict=True):
                contexts[i] = np.concatenate([found, self._end]) if self.apart else found
        return contexts

    def _as_read(self, request: Request, context: Tokens) -> Encoded:
        """Each continuation as the last token of every text that it is read after, one by one."""
        texts = [text + c for c in request.continuations for text in request.read_as]
        found = self.ids(texts, special=False)
        if not all(len(ids) for ids in found):
            raise PromptError(
                f"{request.id}: the tokenizer makes no token of one of {texts}; use another "
                "protocol for this model."
            )
        tails = tuple((int(ids[-1]),) for ids in found)
        whole = {tails[k :: len(request.read_as)] for k in range(len(request.read_as))}
        for column in whole:
            _sound(request, Encoded(context, column))
        return Encoded(context, tails)

    def _pair(self, request: Request, context: Tokens) -> Encoded:
        continuations = self.ids(request.continuations, special=False)
        tails = tuple(tuple(map(int, tail)) for tail in continuations)
        return _sound(request, Encoded(context, tails))

    def _joined(
        self, requests: Sequence[Request], contexts: Sequence[Tokens]
    ) -> list[list[Tokens]]:
        """Tokens of context + continuation, by tokenising only the last characters again.

        The short way is taken when tokenising the tail alone gives back the context's own last
        tokens (but for up to two at the cut, where a tokenizer may add a blank); else the whole
        text is tokenised.
        """
        tails = [_tail(request.context) for request in requests]
        spans: list[tuple[int, int]] = []
        texts: list[str] = []
        for request, tail in zip(requests, tails, strict=True):
            spans.append((len(texts), len(request.continuations)))
            texts += [tail, *(tail + c for c in request.continuations)]
        ids = self.ids(texts, special=False)
        out: list[list[Tokens]] = []
        for request, context, (at, n) in zip(requests, contexts, spans, strict=True):
            short = _spliced(context, ids[at], ids[at + 1 : at + 1 + n])
            if short is None:
                whole = [request.context + c for c in request.continuations]
                short = self.ids(whole, special=not request.template_tokens)
            out.append(short)
        return out


def _groups(texts: Sequence[str]) -> list[tuple[int, int, int]]:
    """(from, to, head): sorted texts whose first `head` characters are the same, at least HEAD.

    A text joins a group as long as that does not shorten the group's head to less than half.
    """
    out: list[tuple[int, int, int]] = []
    for k, text in enumerate(texts):
        if out:
            first, _, head = out[-1]
            # of sorted texts, the first and the last share least
            common = shared(texts[first], text)
            if common >= max(HEAD, head // 2):
                out[-1] = (first, k + 1, min(head, common))
                continue
        out.append((k, k + 1, len(text)))
    return out


def _tail(context: str) -> str:
    last = len(context) - TAIL
    if last <= 0:
        return context
    first = max(0, len(context) - LINE)
    line = context.rfind("\n", first, last)
    if line >= 0:
        return context[line + 1 :]
    # whatever the cut, `_spliced` takes it only where it is a border of the context's own tokens
    blank = context.rfind(" ", first, last)
    return context[blank if blank >= 0 else first :]


def _spliced(context: Tokens, tail: Tokens, joined: Sequence[Tokens]) -> list[Tokens] | None:
    for skip in (0, 1, 2):
        m = len(tail) - skip
        if m < 4 or m > len(context):
            return None
        if np.array_equal(tail[skip:], context[-m:]):
            head = context[:-m]
            # the first tokens of the tail must survive the continuation, or the cut was no border
            if any(
                len(j) < skip + 2 or not np.array_equal(j[: skip + 2], tail[: skip + 2])
                for j in joined
            ):
                return None
            return [np.concatenate([head, j[skip:]]) for j in joined]
    return None


def _cut(request: Request, context: Tokens, joined: Sequence[Tokens]) -> Encoded:
    border = len(context)
    for full in joined:
        n = min(border, len(full))
        different = np.flatnonzero(full[:n] != context[:n])
        border = int(different[0]) if len(different) else n
    tails = tuple(tuple(int(t) for t in full[border:]) for full in joined)
    return _sound(request, Encoded(joined[0][:border] if joined else context, tails))


def _sound(request: Request, one: Encoded) -> Encoded:
    if not one.tails:
        raise PromptError(f"{request.id}: there is no continuation to score.")
    if not len(one.head):
        raise PromptError(
            f"{request.id}: no token of the context survives before the continuations; a model "
            "without a start token cannot score them after an empty context."
        )
    if any(not tail for tail in one.tails):
        raise PromptError(f"{request.id}: a continuation adds no token to the context.")
    if len(set(one.tails)) != len(one.tails):
        raise PromptError(
            f"{request.id}: the tokenizer gives two of {list(request.continuations)} the same "
            "tokens, so that they cannot be told apart; use another protocol for this model."
        )
    return one


def rows(encoded: Sequence[Encoded], limit: int, requests: Sequence[Request]) -> list[Row]:
    """Rows and reads of encoded requests; slots are (request, continuation).

    Raises:
        PromptError: a row longer than `limit` tokens (never cut).
    """
    out: list[Row] = []
    for index, one in enumerate(encoded):
        longest = len(one.head) + max(len(tail) for tail in one.tails)
        if longest > limit:
            raise PromptError(
                f"{requests[index].id}: {longest} tokens where the model reads {limit}."
            )
        last = len(one.head) - 1
        by_row: dict[tuple[int, ...], list[Read]] = {}
        for choice, tail in enumerate(one.tails):
            reads = by_row.setdefault(tail[:-1], [])
            reads += [Read(last + k, token, (index, choice)) for k, token in enumerate(tail)]
        for extra, reads in by_row.items():
            tokens = np.concatenate([one.head, np.asarray(extra, np.int32)]) if extra else one.head
            out.append(Row(tokens, reads))
    return out
