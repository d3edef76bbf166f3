"""A model behind an OpenAI-compatible server, whose log-probabilities are proved before use.

A prompt's continuations are looked up among the likeliest next tokens (one request an item). What
is not among them, or is longer than a token, is scored from an echoed prompt (one request a
continuation) where the server echoes log-probabilities. Where it does not, a label that was not
returned gets the most that it can have and is named in the record (`bounded`), and an item none of
whose labels was returned stays unanswered.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.backends import proof, tokenizers, wire
from ceval_suite.backends.base import Say
from ceval_suite.backends.sources import tokenizer_fingerprint
from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.backends.transport import Refused, Transport, each
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

UNKNOWN_LENGTH = 2**31
"""Where nothing says how much the model reads, or nothing counts tokens: prompts are not fitted."""

APART = 0.25
"""Two ways of asking for the same log-probability may differ by this much (narrow dtypes)."""

STABLE = ("id", "root", "parent", "owned_by")
"""What a server says of a model that does not change from start to start."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request as it is sent: text or token ids, and what to look up."""

    request: Request
    encoded: Encoded | None
    wanted: tuple[wire.Wanted, ...]

    @property
    def single(self) -> bool:
        """Whether every continuation is one token; without a tokenizer, one character."""
        if self.encoded is not None:
            return self.encoded.single
        return all(len(c.strip()) == 1 for c in self.request.continuations)


def identity(spec: ModelSpec) -> dict[str, Any]:
    """Which model answers: server, name and what the server says of it.

    Raises:
        ModelError: no such server, or it does not serve this model.
    """
    transport = Transport(spec)
    served = proof.served(transport, spec.path)
    meta: Any = served.get("meta")
    about = {key: served[key] for key in STABLE if served.get(key) is not None}
    if isinstance(meta, dict):
        about["meta"] = {k: v for k, v in sorted(meta.items()) if k != "n_ctx"}
    where = Path(spec.tokenizer).expanduser() if spec.tokenizer else None
    found = None if where is None else f"hub:{spec.tokenizer}"
    return {
        "backend": "server",
        "url": transport.url,
        "server_model": spec.path,
        "served": about,
        "options": {k: getattr(spec.backend_options(), k) for k in ("api", "top_logprobs")},
        "tokenizer_sha256": tokenizer_fingerprint(where) if where and where.exists() else found,
        "max_length": spec.max_length,
    }


class ServerBackend:
    """Asks a server; its tokenizer is the server's own unless the spec names one."""

    def __init__(self, spec: ModelSpec, say: Say = lambda _: None) -> None:
        """Prove that the server answers with log-probabilities.

        Raises:
            ModelError: it does not, or not for this model.
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
        asks = self._plan(requests)
        if self.encoder is not None and not self.chat:
            encoded = [ask.encoded for ask in asks if ask.encoded is not None]
            return tokenizers.audit(self.tokenizer, encoded, requests)
        return [
            {
                "id": ask.request.id,
                "one_token": ask.single,
                "context_tail": ask.request.context[-40:],
                "continuations": {
                    wanted.text: {"text": wanted.text.strip() if wanted.loose else wanted.text}
                    for wanted in ask.wanted
                },
            }
            for ask in asks
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
            | {"echo": self.proved.echo, "token_ids": self.proved.ids},
            "items": {k: counts.get(k, 0) for k in ("next", "echo", "bounded", "unanswered")},
            "systems": sorted(self._systems),
        }

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Score all requests, several at a time, as the server answers."""
        asks = self._plan(requests)
        for ask in asks:
            self._possible(ask)
        if asks and not self._compared:
            self._compare(asks[0])
        yield from each(self._score, asks, self.options.concurrency)

    def _plan(self, requests: Sequence[Request]) -> list[_Ask]:
        if any(request.template_tokens != self.chat for request in requests) and self.chat:
            raise ModelError(
                f"{self.spec.path}: options.api: chat puts every prompt into the server's chat "
                "template; give --chat, so that the run says so."
            )
        encoded: Sequence[Encoded | None] = [None] * len(requests)
        if self.encoder is not None and not self.chat:
            encoded = self.encoder.encode(requests)
            self.encoder.forget()
        return [self._one(request, one) for request, one in zip(requests, encoded, strict=True)]

    def _one(self, request: Request, one: Encoded | None) -> _Ask:
        wanted = tuple(wire.Wanted(c, loose=self.chat) for c in request.continuations)
        if one is not None and one.single:
            tokens = [tail[0] for tail in one.tails]
            texts = [str(self.tokenizer.decode([token])) for token in tokens]
            pairs = zip(texts, tokens, strict=True)
            wanted = tuple(wire.Wanted(text, token) for text, token in pairs)
        if not request.continuations or len({w.text for w in wanted}) < len(wanted):
            raise PromptError(f"{request.id}: no continuations, or two that read the same.")
        return _Ask(request, one, wanted)

    def _possible(self, ask: _Ask) -> None:
        """Whether the server can score this at all, before anything is asked."""
        if ask.encoded is not None:
            longest = len(ask.encoded.head) + max(len(tail) for tail in ask.encoded.tails)
            if longest > self.max_length:
                raise PromptError(
                    f"{ask.request.id}: {longest} tokens where the model reads {self.max_length}."
                )
        if self.proved.echo:
            return
        if not ask.single:
            raise ModelError(
                f"{self.spec.path}: continuations of several tokens need log-probabilities of the "
                "prompt (echo), which this server does not give; choose a protocol that scores "
                "letters, or load the weights with backend hf."
            )
        if self.proved.top < len(ask.wanted):
            raise ModelError(
                f"{self.spec.path}: the server returns {self.proved.top} log-probabilities where "
                f"{len(ask.wanted)} letters are compared ({ask.request.id}); allow it more, or "
                "load the weights with backend hf."
            )

    def _compare(self, ask: _Ask) -> None:
        """The first item, asked both ways: the same text must be the same token."""
        self._compared = True
        if not (self.proved.echo and self.proved.top and ask.single):
            return
        values = wire.look_up(self._candidates(ask)[0], ask.wanted)
        exact = self._echoed(ask)[0]
        apart = [abs(v - e) for v, e in zip(values, exact, strict=True) if v is not None]
        if any(difference > APART for difference in apart):
            self.proved.top = 0
            self.say(
                "the letters among the next tokens are not those of the prompt's own tokens; every "
                "letter is scored from an echoed prompt"
            )

    def _score(self, ask: _Ask) -> Reply:
        try:
            if ask.single and self.proved.top:
                found, reply = self._candidates(ask)
                values = wire.look_up(found, ask.wanted)
                whole = tuple(value for value in values if value is not None)
                if len(whole) == len(values):
                    return self._reply(ask, "next", whole, [reply])
                if not self.proved.echo:
                    kind = "bounded" if whole else "unanswered"
                    logprobs = wire.bounded(found, values) if whole else ()
                    return self._reply(ask, kind, logprobs, [reply], values)
            exact, replies, length = self._echoed(ask)
            return self._reply(ask, "echo", exact, replies, beyond=length)
        except wire.NotProved as error:
            raise ModelError(
                f"{ask.request.id}: {self.transport.url} answered with {error}; finished records "
                "are kept."
            ) from error
        except Refused as error:
            raise ModelError(f"{ask.request.id}: {error}") from error

    def _candidates(self, ask: _Ask) -> tuple[list[wire.Candidate], Any]:
        if self.chat:
            prompt: Any = ask.request.context.rstrip("\n")
        else:
            prompt = self._prompt(ask, ())
        reply = proof.next_token(
            self.transport, self.spec.path, prompt, self.proved.asked, self.proved.ids
        )
        return wire.candidates(reply), reply

    def _prompt(self, ask: _Ask, tail: Sequence[int], text: str = "") -> Any:
        if ask.encoded is None or not self.proved.ids:
            return ask.request.context + text
        return [*map(int, ask.encoded.head), *tail]

    def _echoed(self, ask: _Ask) -> tuple[tuple[float, ...], list[Any], int]:
        ids = ask.encoded is not None and self.proved.ids
        tails = ask.encoded.tails if ask.encoded else [()] * len(ask.request.continuations)
        pairs = zip(tails, ask.request.continuations, strict=True)
        prompts = [self._prompt(ask, tail, text) for tail, text in pairs]
        replies = [proof.echo(self.transport, self.spec.path, prompt) for prompt in prompts]
        lengths = [len(tail) for tail in tails] if ids else None
        scored, length = wire.echoed(replies, ask.request.continuations, lengths)
        return scored, replies, length

    def _reply(
        self,
        ask: _Ask,
        kind: str,
        logprobs: tuple[float, ...],
        replies: Sequence[Any],
        seen: Sequence[float | None] | None = None,
        beyond: int = 0,
    ) -> Reply:
        asked = [wire.usage(reply, "prompt_tokens") or 0 for reply in replies]
        cached = [wire.usage(r, "prompt_tokens_details.cached_tokens") or 0 for r in replies]
        systems = {str(r["system_fingerprint"]) for r in replies if r.get("system_fingerprint")}
        ours = len(ask.encoded.head) if ask.encoded and self.proved.ids else 0
        found = logprobs if seen is None else seen
        if asked[0] and asked[0] < ours:
            raise ModelError(
                f"{ask.request.id}: the server read {asked[0]} tokens of a prompt of {ours}: it "
                "cuts prompts; set max_length to what it reads."
            )
        with self._lock:
            self._counts[kind] += 1
            self._systems |= systems
        return Reply(
            id=ask.request.id,
            logprobs=logprobs,
            num_tokens=ours or max(0, asked[0] - beyond),
            choice_mass=proof.mass([v for v in found if v is not None]),
            new_tokens=sum(asked) - sum(cached),
            bounded=tuple(k for k, v in enumerate(found) if v is None) if logprobs else (),
        )
