"""The transformers backend: requests in batches to tokens, tokens to scores, scores to replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from ceval_suite.backends import (
    loading,
    ranks,
    rolling,
    rounds,
    seq2seq,
    tokenizers,
    writing,
)
from ceval_suite.backends.attention import ways_on
from ceval_suite.backends.base import Say
from ceval_suite.backends.batching import Row, Score
from ceval_suite.backends.composing import Composer, only_scored
from ceval_suite.backends.forward import Forward
from ceval_suite.backends.gathering import Gathering
from ceval_suite.backends.lending import OWN, Lent
from ceval_suite.backends.tokens import Encoded, Encoder, rows
from ceval_suite.backends.units import CHUNK, chunks, units
from ceval_suite.backends.validity import SAMPLE, USUAL, Verdicts, check
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request, Text, TextRecord

TEXTS = 256
"""Whole texts that are tokenised together."""


class HFBackend:
    """Scores with a transformers model on one device, or on several."""

    def __init__(
        self,
        spec: ModelSpec,
        say: Say = lambda _: None,
        loaded: loading.Loaded | None = None,
        lent: Lent = OWN,
    ) -> None:
        """Load tokenizer and weights, or take those that are `loaded` already, perhaps `lent`.

        Raises:
            ModelError: anything that keeps the checkpoint from being the one that was meant.
        """
        self.spec = spec
        self.say = say
        self._shared = spec.tp_plan is not None and ranks.count() > 1
        if self._shared:
            ranks.tell(spec)
        self._agreed = ranks.agreed if self._shared else lent.agreed
        self.loaded = loaded or loading.load(spec)
        self.model = self.loaded.model
        self.forward = Forward(self.model, say, spec.memory_bytes, lent)
        self.device = self.forward.device
        if self._agreed:
            self.forward.keep_in_step()
        if self._shared:
            versions = self.loaded.about["versions"]
            ways = ways_on(self.device.type, self.loaded.dtype)
            ranks.check_alike("versions or kernels", (versions, ways))
        self._pair = bool(getattr(self.model.config, "is_encoder_decoder", False))
        self.encoder = Encoder(self.loaded.tokenizer, apart=self._pair)
        attached = self.loaded.attached
        self.max_length = self.loaded.max_length
        if spec.max_length:
            self.max_length = spec.max_length - attached.virtual_tokens
        for note in attached.notes:
            say(note)
        self.path = self._first_path()
        self._total = 0
        self._checked = 0
        self._numbers = loading.lengths(self.model.config.to_dict())
        self._verdicts: Verdicts | None = None
        if spec.engine == "reproducible":
            self.forward.settle()
            (sample,) = self.encoder.ids([SAMPLE], special=False)
            self._verdicts = Verdicts(
                self.forward, sample, self._numbers, self.max_length, self.path
            )
        self.composer = Composer(
            self.model,
            self.loaded.tokenizer,
            self.forward,
            self.encoder,
            self._numbers,
            self._agreed or str,
            self._verdicts and self._verdicts.sample,
        )

    def _first_path(self) -> dict[str, Any]:
        reason = self.loaded.attached.plain
        if self._pair:
            reason = "encoder and decoder"
        elif not reason and self.spec.engine == "plain":
            reason = "asked for"
        return {"attention": "plain", "reason": reason} if reason else {"attention": "unchecked"}

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [len(i) for i in self.encoder.contexts(texts, template_tokens=template_tokens)]

    def wrap(self, user: str) -> str:
        """A user's turn in the chat template, up to the assistant's turn."""
        return tokenizers.wrap(self.loaded.tokenizer, user)

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """For each request: the scored tokens of each continuation, and what they decode to."""
        return tokenizers.audit(self.loaded.tokenizer, self.encoder.encode(requests), requests)

    def describe(self) -> dict[str, Any]:
        """Weights, tokenizer, numerics and the path taken."""
        return {
            **self.loaded.about,
            "dtype": str(self.loaded.dtype).removeprefix("torch."),
            "device": str(self.device),
            "max_length": self.max_length,
            "path": self.path | ({"writing": self.composer.way} if self.composer.way else {}),
            "kernels": self.forward.kernels(),
            "tokens": {"total": self._total, "computed": self.forward.computed},
            "pack_tokens": self.forward.sizes.now,
            "peak_memory_bytes": loading.peak_memory(self.device),
        }

    @torch.inference_mode()
    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Answer all requests, in the engine's order: what is only scored comes first."""
        requests = list(requests)
        if self._shared:
            ranks.tell(requests)
        yield from self.answers(requests)

    def answers(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """As `ask`, in whatever mode of autograd the caller wants."""
        if not self.forward.settled:
            yield from self._together(requests)
            return
        whole = units(requests)
        scored = [not any(r.after or r.max_new_tokens for r in unit) for unit in whole]
        yield from self._chunks([unit for unit, only in zip(whole, scored, strict=True) if only])
        for unit in (unit for unit, only in zip(whole, scored, strict=True) if not only):
            self.forward.sizes.again()
            yield from self._together(unit)

    def _together(self, requests: Sequence[Request]) -> Iterator[Reply]:
        chains, others = rounds.chains(requests)
        yield from rounds.asked(self._answer, others)
        yield from self._follow(chains)

    def _answer(self, requests: Sequence[Request]) -> Iterator[Reply]:
        yield from self._score([r for r in requests if not r.max_new_tokens])
        written = [r for r in requests if r.max_new_tokens]
        for first in range(0, len(written), CHUNK):
            for reply in self._write(written[first : first + CHUNK]):
                self._total += reply.num_tokens + reply.written
                yield reply

    def _write(self, requests: Sequence[Request]) -> Iterator[Reply]:
        if not self._pair:
            return self.composer.write(requests, self.max_length, self._packs, self._score)
        scored = {r.id: r for r in self._score(only_scored(requests))}
        heads = self.encoder.heads(requests)
        self.encoder.forget()
        texts = seq2seq.texts(self.model, self.loaded.tokenizer, heads, requests)
        return (writing.joined(scored.get(reply.id), reply) for reply in texts)

    def _follow(self, chains: Sequence[list[Request]]) -> Iterator[Reply]:
        """Chains of letters: on the packed path each is one row, else they go round by round."""
        left: list[Request] = []
        if chains and not self._pair:
            for reply in self.composer.follow(chains, self.max_length, self._packs, left):
                self._total += reply.num_tokens
                yield reply
        else:
            left = [request for chain in chains for request in chain]
        yield from rounds.asked(self._answer, left)

    def _score(self, requests: Sequence[Request]) -> Iterator[Reply]:
        return self._chunks(chunks(requests))

    def _chunks(self, some: Sequence[list[Request]]) -> Iterator[Reply]:
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self._encode, chunk) for chunk in some[:1]]
            for number, chunk in enumerate(some):
                encoded = coming.pop().result()
                if number + 1 < len(some):
                    coming.append(pool.submit(self._encode, some[number + 1]))
                todo = rows(encoded, self.max_length, chunk)
                self._total += sum(len(row.tokens) for row in todo)
                found = Gathering(chunk, encoded, todo, self.forward)
                for score in self._scores(encoded, todo):
                    yield from found.take(score)

    def _scores(self, encoded: Sequence[Encoded], todo: Sequence[Row]) -> Iterator[Score]:
        if self._pair:
            for row in todo:
                row.new = len(row.tokens)
            self.forward.computed += sum(row.new for row in todo)
            return seq2seq.scores(self.model, encoded)
        longest = max(len(row.tokens) for row in todo)
        self.forward.sizes.again()
        self.forward.fit(longest)
        return self.forward.packed(todo) if self._packs(todo) else self.forward.plain(todo)

    @torch.inference_mode()
    def read(self, todo: Sequence[Row]) -> Iterator[Score]:
        """Scores of rows that are tokens already, none longer than `max_length`.

        Raises:
            ModelError: an encoder and a decoder.
        """
        if self._pair:
            raise ModelError(
                f"{self.spec.path}: rows of tokens need a model that reads from left to right; "
                "this one has an encoder and a decoder."
            )
        self._total += sum(len(row.tokens) for row in todo)
        yield from self._scores((), todo)

    def windows(self, window: int | None = None, stride: int | None = None) -> dict[str, Any]:
        """How windows roll over a text, and the token that stands before it.

        Raises:
            ModelError: an encoder and a decoder, no start token, or numbers out of range.
        """
        if self._pair:
            raise ModelError(
                f"{self.spec.path}: bits per byte need a model that reads from left to right; this "
                "one has an encoder and a decoder."
            )
        window = window or self.max_length
        stride = stride or window
        if window > self.max_length or stride > window:
            raise ModelError(
                f"--window {window} --stride {stride}: {self.spec.path} reads {self.max_length} "
                "tokens, and the stride may be no more than the window; give smaller numbers."
            )
        start = rolling.start_token(self.loaded.tokenizer)
        return {"window": window, "stride": stride, "start": asdict(start)}

    @torch.inference_mode()
    def measure(
        self, texts: Sequence[Text], window: int | None = None, stride: int | None = None
    ) -> Iterator[TextRecord]:
        """The log-probability of each whole text, by windows that roll over it.

        `window` is in tokens, the start token included, and by default the model's context;
        `stride` is by default the window.

        Raises:
            ModelError: this model cannot do that, or its logits are not finite.
        """
        found = self.windows(window, stride)
        sums = rolling.Sums(texts, getattr(self.loaded.tokenizer, "unk_token_id", None))
        for todo in self._rolling(texts, found, sums):
            self._total += sum(len(row.tokens) for row in todo)
            for score in self._scores((), todo):
                done = sums.take(score)
                if done is not None:
                    yield sums.record(done)
        yield from sums.empty()

    def _rolling(
        self, texts: Sequence[Text], how: Mapping[str, Any], sums: rolling.Sums
    ) -> Iterator[list[Row]]:
        """Rows of the texts, about `READS` reads at a time, however long a text is."""
        start, window, stride = how["start"]["id"], how["window"], how["stride"]
        todo: list[Row] = []
        waiting = 0
        for first in range(0, len(texts), TEXTS):
            some = texts[first : first + TEXTS]
            ids = self.encoder.ids([one.text for one in some], special=False)
            for index, tokens in enumerate(ids, first):
                sums.begin(index, tokens)
                for row in rolling.rows(tokens, start, index, window, stride):
                    todo.append(row)
                    waiting += len(row.reads)
                    if waiting >= rolling.READS:
                        yield todo
                        todo, waiting = [], 0
        if todo:
            yield todo

    def _encode(self, requests: Sequence[Request]) -> list[Encoded]:
        encoded = self.encoder.encode(requests)
        self.encoder.forget()
        return encoded

    def _packs(self, todo: Sequence[Row]) -> bool:
        """Whether the packed path is right for these rows; tried where that is not yet known.

        Attention windows, chunks and position scalings set in at lengths that the configuration
        names: rows that cross one of its numbers are tried at their full length.
        """
        longest = max(len(row.tokens) for row in todo)
        if self._verdicts is not None:
            self.path = self._verdicts(longest)
            return self.path["attention"] == "packed"
        usual = min(USUAL, longest)
        for length in dict.fromkeys((usual, longest)):
            crossed = any(self._checked < n < length for n in self._numbers)
            new = self._checked < length and (length == usual or crossed)
            if self.path["attention"] != "plain" and new:
                found = check(self.forward, todo, length)
                self.path = self._agreed(found) if self._agreed else found
                self._checked = length
                if self.path["attention"] == "plain":
                    self.say(f"plain path: {self.path['reason']}")
        return self.path["attention"] == "packed"
