"""Prompts of several tasks put to a backend in one call; records as soon as they can be made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ceval_suite.answer import Judge
from ceval_suite.backends import rounds
from ceval_suite.backends.base import Backend
from ceval_suite.request import Prompt
from ceval_suite.schema import Record, Reply, Request


@dataclass
class _Waiting:
    """A prompt whose replies are not all there."""

    task: int
    prompt: Prompt
    prefix: str
    missing: int
    sha256: str = ""
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])


@dataclass(frozen=True)
class Answer:
    """Which task a reply belongs to, and the records that it completes, if any."""

    task: int
    reply: Reply
    records: Sequence[Record]


class Call:
    """One call of a backend for several tasks, so that what they share is computed once."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._judges: list[Judge] = []
        self._waiting: dict[str, _Waiting] = {}

    def add(self, judge: Judge, prompts: Sequence[Prompt], name: str) -> int:
        """Add a task; returns its number. `name` tells its items from another protocol's."""
        task = len(self._judges)
        self._judges.append(judge)
        for prompt in prompts:
            some = prompt.requests()
            prefix = f"{name}: " if some[-1].id in self._waiting else ""
            one = _Waiting(task, prompt, prefix, len(some))
            for request in some:
                id, after = prefix + request.id, request.after and prefix + request.after
                self._waiting[id] = one
                self.requests.append(replace(request, id=id, after=after))
        return task

    def answers(self, backend: Backend) -> Iterator[Answer]:
        """Ask, and judge each item when all of its replies have come."""
        for reply, context in rounds.contexts(self.requests, backend.ask(self.requests)):
            one = self._waiting.pop(reply.id)
            id = reply.id[len(one.prefix) :]
            one.replies[id] = reply
            one.missing -= 1
            if id == one.prompt.item.id:
                one.sha256 = hashlib.sha256(context.encode()).hexdigest()
            records: list[Record] = []
            if not one.missing:
                records = self._judges[one.task].records(one.prompt, one.replies, one.sha256)
            yield Answer(one.task, reply, records)
