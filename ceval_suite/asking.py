"""Prompts of several tasks put to a backend in one call; records as soon as they can be made."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ceval_suite.answer import Judge
from ceval_suite.backends import rounds, units
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

    def add(
        self,
        judge: Judge,
        prompts: Sequence[Prompt],
        name: str,
        done: Collection[str] | None = None,
    ) -> int:
        """Add a task; returns its number. `name` tells its items from another protocol's.

        With the ids of records that are `done`, the prompts are all of the task's, and are asked
        unit by unit: a unit that lacks a record is asked whole, so that its numbers are those of
        any other run.
        """
        task = len(self._judges)
        self._judges.append(judge)
        asked: list[Request] = []
        missing: set[str] = set()
        every = [prompt.requests() for prompt in prompts]
        known = any(some[-1].id in self._waiting for some in every)
        prefix = f"{name}: " if known else ""
        have = set(done or ())
        for prompt, some in zip(prompts, every, strict=True):
            one = _Waiting(task, prompt, prefix, len(some))
            for request in some:
                id, after = prefix + request.id, request.after and prefix + request.after
                self._waiting[id] = one
                asked.append(replace(request, id=id, after=after))
            if not have.issuperset(prompt.item.record_ids()):
                missing |= {request.id for request in asked[-len(some) :]}
        if done is not None:
            asked = units.named(asked, name)
            wanted = {request.unit for request in asked if request.id in missing}
            asked = [request for request in asked if request.unit in wanted]
        self.requests += asked
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
