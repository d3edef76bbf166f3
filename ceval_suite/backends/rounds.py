"""Chains: requests whose context goes on from what was answered to another one.

Any way of asking can follow them round by round: what follows nothing is asked first, then what
follows the answers, and so on. A round is one call, so that its requests still share what they
have in common. No torch, no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ceval_suite.errors import ModelError, PromptError
from ceval_suite.schema import Reply, Request


def likeliest(reply: Reply) -> int | None:
    """The place of the likeliest continuation, the first on a tie; None without scores."""
    scores = reply.logits or reply.logprobs
    return max(range(len(scores)), key=scores.__getitem__) if scores else None


def said(request: Request, reply: Reply) -> str:
    """What a reply says: its likeliest continuation, or what was written; empty if unanswered."""
    if not request.continuations:
        return reply.text or ""
    best = likeliest(reply)
    return "" if best is None else request.continuations[best]


class Chains:
    """Requests of one call that follow one another, and how far they have got."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Nothing is answered yet.

        Raises:
            PromptError: two requests of one id, one that follows what is not there, itself, or a
                request that has two answers (a continuation and a text).
        """
        self._followers: dict[str, list[Request]] = {}
        for request in requests:
            if request.after:
                self._followers.setdefault(request.after, []).append(request)
        self.first = [request for request in requests if not request.after]
        self._open = {request.id: request for request in self.first}
        self._check(requests)

    def _check(self, requests: Sequence[Request]) -> None:
        known = {request.id: request for request in requests}
        if len(known) < len(requests):
            ids = [request.id for request in requests]
            twice = next(name for name in ids if ids.count(name) > 1)
            raise PromptError(f"{twice}: two requests of one call have this id; give each its own.")
        for name, followers in self._followers.items():
            if name not in known:
                raise PromptError(
                    f"{followers[0].id}: it follows '{name}', which is not asked in the same call; "
                    "ask both together."
                )
            if known[name].continuations and known[name].max_new_tokens:
                raise PromptError(
                    f"{followers[0].id}: it follows '{name}', which is answered twice, by a "
                    "continuation and by a text; ask these as two requests."
                )
        reached = list(self.first)
        for request in reached:  # grows as it is walked through
            reached += self._followers.get(request.id, ())
        if len(reached) < len(requests):
            missed = min(set(known) - {request.id for request in reached})
            raise PromptError(f"{missed}: the requests that it follows lead back to itself.")

    def take(self, reply: Reply) -> tuple[Request, list[Request]]:
        """The request that a reply answers, its context whole, and those that can be asked now.

        Raises:
            ModelError: this was not asked, or is answered already.
        """
        request = self._open.pop(reply.id, None)
        if request is None:
            raise ModelError(f"{reply.id}: the backend answered what was not asked, or twice.")
        followers = self._followers.pop(reply.id, [])
        if followers:
            answer = said(request, reply)
            followers = [
                replace(
                    one,
                    context=request.context + one.joint + answer + one.context,
                    template_tokens=request.template_tokens,
                    after="",
                    joint="",
                )
                for one in followers
            ]
            self._open |= {one.id: one for one in followers}
        return request, followers


def chains(requests: Sequence[Request]) -> tuple[list[list[Request]], list[Request]]:
    """Chains of letters, and all other requests.

    In a chain each request follows the one before it, and each is answered by a continuation.
    """
    followers: dict[str, list[Request]] = {}
    for request in requests:
        followers.setdefault(request.after, []).append(request)
    found: list[list[Request]] = []
    for first in followers.get("", ()):
        chain = [first]
        while len(next_ones := followers.get(chain[-1].id, [])) == 1:
            chain += next_ones
        plain = all(r.continuations and not r.max_new_tokens and not r.read_as for r in chain)
        if len(chain) > 1 and plain and chain[-1].id not in followers:
            found.append(chain)
    inside = {request.id for chain in found for request in chain}
    return found, [request for request in requests if request.id not in inside]


def asked(
    ask: Callable[[Sequence[Request]], Iterator[Reply]], requests: Sequence[Request]
) -> Iterator[Reply]:
    """Replies to all requests through an `ask` that knows of no `after`; one call of it a round.

    Raises:
        PromptError: chains that cannot be followed; see `Chains`.
        ModelError: `ask` left something unanswered that others follow.
    """
    if not any(request.after for request in requests):
        yield from ask(requests)
        return
    chains = Chains(requests)
    ready, left = chains.first, len(requests)
    while ready:
        coming: list[Request] = []
        for reply in ask(ready):
            coming += chains.take(reply)[1]
            left -= 1
            yield reply
        ready = coming
    if left:
        raise ModelError(f"{left} requests were not answered; finished records are kept.")


def contexts(requests: Sequence[Request], replies: Iterable[Reply]) -> Iterator[tuple[Reply, str]]:
    """Each reply with the whole context that it was asked with, whoever followed the chains.

    A reply must come after the one that its request follows, as it cannot but do.

    Raises:
        PromptError: chains that cannot be followed; see `Chains`.
        ModelError: a reply to what was not asked.
    """
    chains = Chains(requests)
    for reply in replies:
        yield reply, chains.take(reply)[0].context


def rehearsed(requests: Sequence[Request]) -> list[Request]:
    """All requests as they would be asked if every answer were the first, and every text empty.

    For what must be known before anything is computed: contexts of about the right length.
    """
    if not any(request.after for request in requests):
        return list(requests)
    chains = Chains(requests)
    out: list[Request] = []
    ready = list(chains.first)
    for request in ready:  # grows as it is walked through
        first = tuple(-float(k > 0) for k in range(len(request.continuations)))
        whole, followers = chains.take(Reply(id=request.id, logprobs=first, text=""))
        out.append(whole)
        ready += followers
    return out
