"""A model behind an OpenAI-compatible server, whose log-probabilities are proved before use.

A prompt's continuations are looked up among the likeliest next tokens (one request an item). What
is not among them, or is longer than a token, is scored from an echoed prompt (one request a
continuation) where the server echoes log-probabilities. Where it does not, a label that was not
returned gets the most that it can have and is named in the record (`bounded`), and an item none of
whose labels was returned stays unanswered. A server without log-probabilities can still write.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.backends import proof, queries, rounds, tokenizers, wire, writing
from ceval_suite.backends.base import Say
from ceval_suite.backends.queries import Query
from ceval_suite.backends.tokens import Encoder
from ceval_suite.backends.transport import Refused, Transport, each
from ceval_suite.backends.writer import Writer
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

UNKNOWN_LENGTH = 2**31
"""Where nothing says how much the model reads, or nothing counts tokens: prompts are not fitted."""

APART = 0.25
"""Two ways of asking for the same log-probability may differ by this much (narrow dtypes)."""


class ServerBackend:
    """Asks a server; its tokenizer is the server's own unless the spec names one."""

    def __init__(self, spec: ModelSpec, say: Say = lambda _: None) -> None:
        """Find out whether the server answers with log-probabilities that make sense.

        Raises:
            ModelError: they make none, or it does not serve this model.
        """
        self.spec = spec
        self.say = say
        self.options = spec.backend_options()
        self.transport = Transport(spec)
        self.chat = self.options.api == "chat"
        self.served = proof.served(self.transport, spec.path)
        self.encoder = None
        self.tokenizer: Any = None
        if spec.tokenizer:
            self.tokenizer = tokenizers.load_tokenizer(spec, Path(spec.tokenizer))
            self.encoder = Encoder(self.tokenizer)
        self.proved = proof.prove(self.transport, spec.path, self.served, self.encoder, say)
        self.max_length = self._length()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._systems: set[str] = set()
        self._compared = False
        self.writer = Writer(self.transport, spec.path)

    def _length(self) -> int:
        found = self.spec.max_length or self.proved.max_length
        counts = self.encoder is not None or self.proved.count_path is not None
        if found and counts:
            return found
        if self.spec.max_length:
            raise ModelError(
                f"{self.spec.path}: max_length needs a way to count tokens, which this server does "
                "not offer; give tokenizer: DIR too, or drop max_length."
            )
        self.say(
            "prompts are not fitted into the context: "
            + ("the server does not say how long it is" if counts else "nothing counts tokens")
            + " (give max_length and tokenizer in models.yaml); what is too long is refused"
        )
        return UNKNOWN_LENGTH

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, those of the server's chat template included.

        Raises:
            ModelError: neither a tokenizer nor a server that counts.
        """
        if self.encoder is not None:
            special = template_tokens and not self.chat
            found = [len(i) for i in self.encoder.contexts(texts, template_tokens=special)]
        elif self.proved.count_path is None:
            raise ModelError(f"{self.spec.path}: nothing counts tokens; give tokenizer: DIR.")
        else:

            def count(pair: tuple[int, str]) -> tuple[int, int]:
                counted = proof.count(self.transport, self.proved.count_path, self.spec.path, pair)
                return pair[0], counted

            pairs = each(count, list(enumerate(texts)), self.options.concurrency)
            found = [number for _, number in sorted(pairs)]
        return [number + self.proved.overhead for number in found]

    def wrap(self, user: str) -> str:
        """A user's turn: in the tokenizer's chat template, or as it is for a server that wraps.

        Raises:
            ModelError: completions without a tokenizer to wrap with.
        """
        if self.chat:
            return user if user.endswith("\n") else user + "\n"
        if self.tokenizer is None or not self.proved.ids:
            raise ModelError(
                f"{self.spec.path}: --chat needs options.api: chat, or the model's own tokenizer "
                "(tokenizer: DIR) and a server that takes token ids."
            )
        return tokenizers.wrap(self.tokenizer, user)

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """How each continuation is looked up: by its token where a tokenizer is given, or text."""
        plan = [query for query in self._plan(requests) if query.request.continuations]
        encoded = [query.encoded for query in plan if query.encoded is not None]
        if encoded:
            return tokenizers.audit(self.tokenizer, encoded, [query.request for query in plan])
        return [
            {
                "id": query.request.id,
                "one_token": query.single,
                "context_tail": query.request.context[-40:],
                "continuations": {
                    wanted.text: {"text": wanted.text.strip() if wanted.loose else wanted.text}
                    for wanted in query.wanted
                },
            }
            for query in plan
        ]

    def describe(self) -> dict[str, Any]:
        """Server, model, what was proved and how often labels were out of sight."""
        counts = dict(self._counts)
        return {
            "backend": "server",
            "url": self.transport.url,
            "name_or_path": self.spec.path,
            "served": self.served,
            "api": self.options.api,
            "max_length": None if self.max_length == UNKNOWN_LENGTH else self.max_length,
            "path": {"attention": "server", "top_logprobs": self.proved.top}
            | {"echo": self.proved.echo, "token_ids": self.proved.ids}
            | ({} if self.writer.greedy is None else {"greedy": self.writer.greedy}),
            "items": {k: counts.pop(k, 0) for k in ("next", "echo", "bounded", "unanswered")}
            | counts,
            "systems": sorted(self._systems),
        }

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Answer all requests, several at a time, as the server answers."""
        if any(request.after for request in requests):
            self._possible(rounds.rehearsed(requests))
        yield from rounds.asked(self._round, requests)

    def _round(self, requests: Sequence[Request]) -> Iterator[Reply]:
        plan = self._possible(requests)
        scored = [query for query in plan if query.request.continuations]
        if scored and not self._compared:
            self._compare(scored[0])
        if any(request.max_new_tokens for request in requests):
            self.writer.prove(self.say)
        yield from each(self._answer, plan, self.options.concurrency)

    def _answer(self, query: Query) -> Reply:
        try:
            scored = self._score(query) if query.request.continuations else None
            return writing.joined(
                scored, self._write(query) if query.request.max_new_tokens else None
            )
        except wire.NotProved as error:
            raise ModelError(
                f"{query.request.id}: {self.transport.url} answered with {error}; finished records "
                "are kept."
            ) from error
        except Refused as error:
            raise ModelError(f"{query.request.id}: {error}") from error

    def _plan(self, requests: Sequence[Request]) -> list[Query]:
        writing.check_asked(requests)
        if any(request.template_tokens != self.chat for request in requests) and self.chat:
            raise ModelError(
                f"{self.spec.path}: options.api: chat puts every prompt into the server's chat "
                "template; give --chat, so that the run says so."
            )
        if self.chat or not self.proved.ids:
            who = "this server" if self.encoder else "a server without tokenizer: DIR in its entry"
            writing.refuse_readings(requests, who)
        encoder = None if self.chat else self.encoder
        return queries.plan(requests, encoder, self.tokenizer, chat=self.chat)

    def _possible(self, requests: Sequence[Request]) -> list[Query]:
        """Requests as they are sent, if the server can answer them at all."""
        plan = self._plan(requests)
        for query in plan:
            if query.ids is not None:
                writing.check_room(query.request, len(query.ids), self.max_length)
            if query.request.continuations:
                self._scorable(query)
        return plan

    def _scorable(self, query: Query) -> None:
        if self.proved.lacking:
            raise ModelError(self.proved.lacking)
        if query.encoded is not None:
            longest = len(query.encoded.head) + max(len(tail) for tail in query.encoded.tails)
            if longest > self.max_length:
                raise PromptError(
                    f"{query.request.id}: {longest} tokens where the model reads {self.max_length}."
                )
        if self.proved.echo:
            return
        if not query.single:
            raise ModelError(
                f"{self.spec.path}: continuations of several tokens need log-probabilities of the "
                "prompt (echo), which this server does not give; choose a protocol that scores "
                "letters, or load the weights with backend hf."
            )
        if self.proved.top < len(query.wanted):
            raise ModelError(
                f"{self.spec.path}: the server returns {self.proved.top} log-probabilities where "
                f"{len(query.wanted)} letters are compared ({query.request.id}); allow it more, or "
                "load the weights with backend hf."
            )

    def _compare(self, query: Query) -> None:
        """The first item, asked both ways: the same text must be the same token."""
        self._compared = True
        if not (self.proved.echo and self.proved.top and query.single):
            return
        values = wire.look_up(self._candidates(query)[0], query.wanted)
        exact = self._echoed(query)[0]
        apart = [abs(v - e) for v, e in zip(values, exact, strict=True) if v is not None]
        if any(difference > APART for difference in apart):
            self.proved.top = 0
            self.say(
                "the letters among the next tokens are not those of the prompt's own tokens; every "
                "letter is scored from an echoed prompt"
            )

    def _score(self, query: Query) -> Reply:
        if query.single and self.proved.top:
            found, reply = self._candidates(query)
            values = wire.look_up(found, query.wanted)
            whole = tuple(value for value in values if value is not None)
            if len(whole) == len(values):
                return self._reply(query, "next", whole, [reply])
            if not self.proved.echo:
                kind = "bounded" if whole else "unanswered"
                logprobs = wire.bounded(found, values) if whole else ()
                return self._reply(query, kind, logprobs, [reply], values)
        exact, replies, lengths = self._echoed(query)
        return self._reply(query, "echo", exact, replies, lengths=lengths)

    def _write(self, query: Query) -> Reply:
        request = query.request
        prompt: Any = request.context.rstrip("\n") if self.chat else request.context
        ours = 0
        if query.ids is not None and self.proved.ids:
            prompt, ours = query.ids.tolist(), len(query.ids)
        most = request.max_new_tokens
        reply = self.writer.ask(prompt, most, request.stop)
        text, ended = wire.written(reply, most)
        asked, new = self._counted(query, "written", [reply], ours)
        made = wire.usage(reply, "completion_tokens") or 0
        return writing.reply(
            request, text, ended=ended, written=made, tokens=ours or asked, new=new
        )

    def _candidates(self, query: Query) -> tuple[list[wire.Candidate], Any]:
        if self.chat:
            prompt: Any = query.request.context.rstrip("\n")
        else:
            prompt = self._prompt(query, ())
        reply = proof.next_token(
            self.transport, self.spec.path, prompt, self.proved.asked, self.proved.ids
        )
        return wire.candidates(reply), reply

    def _prompt(self, query: Query, tail: Sequence[int], text: str = "") -> Any:
        if query.encoded is None or not self.proved.ids:
            return query.request.context + text
        return [*map(int, query.encoded.head), *tail]

    def _echoed(self, query: Query) -> tuple[tuple[float, ...], list[Any], tuple[int, ...]]:
        ids = query.encoded is not None and self.proved.ids
        tails = query.encoded.tails if query.encoded else [()] * len(query.texts)
        pairs = zip(tails, query.texts, strict=True)
        prompts = [self._prompt(query, tail, text) for tail, text in pairs]
        replies = [proof.echo(self.transport, self.spec.path, prompt) for prompt in prompts]
        known = [len(tail) for tail in tails] if ids else None
        scored, lengths = wire.echoed(replies, query.texts, known)
        return scored, replies, lengths

    def _reply(
        self,
        query: Query,
        kind: str,
        logprobs: tuple[float, ...],
        replies: Sequence[Any],
        seen: Sequence[float | None] | None = None,
        lengths: tuple[int, ...] = (),
    ) -> Reply:
        ours = len(query.encoded.head) if query.encoded and self.proved.ids else 0
        asked, new = self._counted(query, kind, replies, ours)
        found = logprobs if seen is None else seen
        reply = Reply(
            id=query.request.id,
            logprobs=logprobs,
            num_tokens=ours or max(0, asked - (lengths[0] if lengths else 0)),
            choice_mass=proof.mass([v for v in found if v is not None]),
            new_tokens=new,
            bounded=tuple(k for k, v in enumerate(found) if v is None) if logprobs else (),
            lengths=lengths or (1,) * len(logprobs),
        )
        return writing.as_read(query.request, reply)

    def _counted(
        self, query: Query, kind: str, replies: Sequence[Any], ours: int
    ) -> tuple[int, int]:
        """Tokens that the server read of the first prompt, and that it computed of all."""
        asked = [wire.usage(reply, "prompt_tokens") or 0 for reply in replies]
        cached = [wire.usage(r, "prompt_tokens_details.cached_tokens") or 0 for r in replies]
        if asked[0] and asked[0] < ours:
            raise ModelError(
                f"{query.request.id}: the server read {asked[0]} tokens of a prompt of {ours}: it "
                "cuts prompts; set max_length to what it reads."
            )
        with self._lock:
            self._counts[kind] += 1
            self._systems |= {
                str(r["system_fingerprint"]) for r in replies if r.get("system_fingerprint")
            }
        return asked[0], sum(asked) - sum(cached)
