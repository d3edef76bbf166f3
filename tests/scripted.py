"""Scripted models: backends whose answers are written down beforehand, not computed.

Each is given what to say to each item and nothing else; it sees ids, contexts and continuations as
any backend does. So whatever a run makes of it can be told without the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ceval_suite.schema import Reply, Request


@dataclass(frozen=True)
class Said:
    """What a scripted model says to one item.

    `letters` is what it believes: one string for each sub-question (or for the item), of one
    letter, or of all the letters of a set. `option` is the text of a whole option that it believes.
    `written` is what it writes, first and then, when it is asked again, second; `finished` that it
    ended by itself.
    """

    letters: tuple[str, ...] = ()
    option: str = ""
    written: tuple[str, ...] = ()
    finished: bool = True


@dataclass
class Scripted:
    """A model that says what stands in its table, and nothing to an item that is not there.

    It believes in texts character by character: each character of a continuation that departs from
    the text it believes in costs as much as any other, so that longer and shorter continuations
    get the probabilities that one model would give them.
    """

    table: Mapping[str, Said]
    max_length: int = 1 << 30
    asked: list[Request] = field(default_factory=list[Request])

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [len(text) for text in texts]

    def wrap(self, user: str) -> str:
        return f"<user>{user}<model>"

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"dtype": "none", "tokens": {}, "path": {}}

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        known = {request.id for request in requests}
        for request in requests:
            assert not request.after or request.after in known
            self.asked.append(request)
            yield self._reply(request)

    def _reply(self, request: Request) -> Reply:
        said, part = self._said(request.id)
        logprobs: tuple[float, ...] = ()
        text = None
        finished = True
        if request.continuations and said.letters:
            target = aim(request.continuations, said.letters[part], said.option)
            logprobs = tuple(likelihood(each, target) for each in request.continuations)
        if request.max_new_tokens:
            stage = 1 if request.after and len(said.written) > 1 else 0
            text = said.written[stage] if said.written else ""
            ends = [text.index(stop) for stop in request.stop if stop in text]
            finished = said.finished or bool(ends)
            text = text[: min(ends, default=len(text))]
        return Reply(
            id=request.id,
            logprobs=logprobs,
            num_tokens=len(request.context),
            choice_mass=0.5 if logprobs else 0.0,
            text=text,
            finished=finished,
            written=len(text or ""),
        )

    def _said(self, id: str) -> tuple[Said, int]:
        """What is said to a request, and which sub-question (from 0) it asks."""
        item, _, part = id.partition("?")[0].partition("#")
        return self.table.get(item, Said()), int(part or 0)


def aim(continuations: Sequence[str], letters: str, option: str) -> str:
    """The continuation that says these letters, or this whole option; with its end, if it has one.

    Where none does, what is believed in is none of them.
    """
    whole = [each for each in continuations if each.strip() == option.strip()]
    spelt = [each for each in continuations if _letters(each) == letters]
    return max(whole if option and whole else spelt, key=len, default="")


def _letters(text: str) -> str:
    """The letters that a continuation says before the text goes on behind them."""
    return "".join(re.findall("[A-G]", re.split(r"[\n<]", text.strip())[0]))


def likelihood(continuation: str, target: str) -> float:
    """The log-probability of a continuation for who believes in the target."""
    pairs = zip(continuation, target, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return -3.0 * (len(continuation) - shared)
