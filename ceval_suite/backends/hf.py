"""torch + transformers: run a plan, score rows.

Two paths, one answer. The plain path runs every row alone through the model as transformers
writes it. The packed path computes each shared head once and packs tails without padding. Which
one is valid for a model is decided by trying both on real rows, never by a list of names.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ceval_suite.backends import attention, loading
from ceval_suite.backends.base import Say
from ceval_suite.backends.batching import (
    Read,
    Row,
    Segment,
    Stem,
    pack,
    plan,
    planned_tokens,
    probe,
)
from ceval_suite.backends.tokens import Encoded, Encoder, rows
from ceval_suite.errors import ModelError
from ceval_suite.schema import Reply, Request
from ceval_suite.specs import ModelSpec

PACK_TOKENS = 1024
HEAD_ROWS = 16384
"""Vocabulary rows the head computes at once in float32."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference of a log-probability between the two paths that rounding explains."""

Values = dict[tuple[int, int], list[tuple[float, float]]]
"""(request, continuation) → (logit, logprob) per token read so far."""


class Float32Head(torch.nn.Module):
    """The model's own output embedding, computed in float32 a block of vocabulary rows at a time.

    In bfloat16 the two best letters of a small model tie exactly on 6 to 7 % of items, and argmax
    then prefers A; in float32 they do not.
    """

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> torch.Tensor:
        """The wrapped weights [V, H]: tied models look for them here."""
        return self.inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., H] → logits [..., V] in float32."""
        hidden = hidden.float()
        if self.inner.weight.dtype == torch.float32:
            return torch.nn.functional.linear(hidden, self.inner.weight, self.inner.bias)
        bias: Any = self.inner.bias
        parts = [
            torch.nn.functional.linear(
                hidden,
                self.inner.weight[at : at + HEAD_ROWS].float(),
                None if bias is None else bias[at : at + HEAD_ROWS].float(),
            )
            for at in range(0, self.inner.weight.shape[0], HEAD_ROWS)
        ]
        return torch.cat(parts, -1)


@dataclass
class _Job:
    """Requests under way: values read so far and reads still missing."""

    requests: Sequence[Request]
    encoded: Sequence[Encoded]
    values: Values = field(default_factory=dict[tuple[int, int], list[tuple[float, float]]])
    missing: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        self.missing = [sum(len(tail) for tail in one.tails) for one in self.encoded]

    def reply(self, index: int) -> Reply:
        """The finished reply of one request; its values are dropped."""
        one = self.encoded[index]
        found = [self.values.pop((index, c)) for c in range(len(one.tails))]
        logprobs = tuple(sum(logprob for _, logprob in values) for values in found)
        return Reply(
            id=self.requests[index].id,
            logprobs=logprobs,
            logits=tuple(values[0][0] for values in found) if one.single else (),
            num_tokens=len(one.head),
            choice_mass=float(torch.tensor(logprobs, dtype=torch.float64).exp().sum()),
        )


class HFBackend:
    """Scores with a transformers model on one device."""

    def __init__(self, spec: ModelSpec, say: Say = lambda _: None) -> None:
        """Load tokenizer and weights.

        Raises:
            ModelError: anything that keeps the checkpoint from being the one that was meant.
        """
        self.spec = spec
        self.say = say
        self.loaded = loading.load(spec)
        self.model = self.loaded.model
        self.device = next(self.model.parameters()).device
        self.encoder = Encoder(self.loaded.tokenizer)
        self.max_length = spec.max_length or self.loaded.max_length
        self.tokens = {"total": 0, "computed": 0}
        self.path: dict[str, Any] = {"attention": "unchecked"}
        self._checked = 0
        self._budget = PACK_TOKENS
        self._plain_attention = str(getattr(self.model.config, "_attn_implementation", "eager"))
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        head = self.model.get_output_embeddings()
        if isinstance(head, torch.nn.Linear):
            self.model.set_output_embeddings(Float32Head(head).eval())
        attention.register()

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [len(i) for i in self.encoder.contexts(texts, template_tokens=template_tokens)]

    def wrap(self, user: str) -> str:
        """A user's turn in the chat template, up to the assistant's turn."""
        return loading.wrap(self.loaded.tokenizer, user)

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """For each request: the scored tokens of each continuation, and what they decode to."""
        return loading.audit(self.loaded.tokenizer, self.encoder.encode(requests), requests)

    def describe(self) -> dict[str, Any]:
        """Weights, tokenizer, numerics and the path taken."""
        return {
            **self.loaded.about,
            "dtype": str(self.loaded.dtype).removeprefix("torch."),
            "device": str(self.device),
            "max_length": self.max_length,
            "path": self.path,
            "tokens": dict(self.tokens),
            "peak_memory_bytes": loading.peak_memory(self.device),
        }

    @torch.inference_mode()
    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Score all requests, in the engine's order."""
        if not requests:
            return
        encoded = self.encoder.encode(requests)
        todo = rows(encoded, self.max_length, requests)
        self.encoder.forget()
        longest = max(len(row.tokens) for row in todo)
        if self.path["attention"] != "plain" and self._length_matters(longest):
            # what does not depend on length was tried the first time: then the longest row will do
            some = [max(todo, key=lambda row: len(row.tokens))] if self._checked else todo
            self.path, self._checked = self._check(some), longest
            if self.path["attention"] == "plain":
                self.say(f"plain path: {self.path['reason']}")
        job = _Job(requests, encoded)
        self.tokens["total"] += sum(len(row.tokens) for row in todo)
        runner = self._plain if self.path["attention"] == "plain" else self._packed
        for reads, logits in runner(todo):
            yield from self._settle(job, reads, logits)

    def _length_matters(self, longest: int) -> bool:
        """Whether rows of `longest` tokens must be tried though shorter ones were found right.

        Attention windows, chunks and position scalings set in at lengths that the configuration
        names: crossing any of its numbers calls for a new trial, and so does doubling the length.
        """
        numbers = loading.numbers(self.model.config.to_dict())
        return longest >= 2 * self._checked or any(self._checked < n < longest for n in numbers)

    def _settle(self, job: _Job, reads: Sequence[Read], logits: torch.Tensor) -> Iterator[Reply]:
        """Take logits [len(reads), V] into the job; yield requests that are complete."""
        if not torch.isfinite(logits).all():
            bad = int((~torch.isfinite(logits)).any(-1).nonzero()[0])
            raise ModelError(
                f"{job.requests[reads[bad].slot[0]].id}: the model's logits are not finite; the "
                "checkpoint is broken or its dtype too narrow (try --dtype float32)."
            )
        wanted = torch.tensor([read.token for read in reads], device=logits.device)[:, None]
        raw = logits.gather(1, wanted)[:, 0]
        logprobs = (raw - logits.logsumexp(-1)).tolist()
        for read, logit, logprob in zip(reads, raw.tolist(), logprobs, strict=True):
            index = read.slot[0]
            job.values.setdefault(read.slot, []).append((logit, logprob))
            job.missing[index] -= 1
            if job.missing[index] == 0:
                yield job.reply(index)

    # the plain path: one row, the model's own attention

    def _plain(self, todo: Sequence[Row]) -> Iterator[tuple[list[Read], torch.Tensor]]:
        self._use(self._plain_attention)
        for row in sorted(todo, key=lambda row: -len(row.tokens)):
            self.tokens["computed"] += len(row.tokens)
            ids = torch.as_tensor(row.tokens, dtype=torch.long, device=self.device)[None]
            with _one_row(len(row.tokens)):
                logits = self._forward(ids, [read.position for read in row.reads])
            yield row.reads, logits

    def _forward(self, ids: torch.Tensor, at: list[int], **inputs: Any) -> torch.Tensor:
        """Logits [len(at), V] in float32 at the positions `at` of ids [1, T]."""
        distinct = sorted(set(at))
        index = torch.tensor(distinct, device=self.device)
        if self._keeps:
            out = self.model(input_ids=ids, use_cache=False, logits_to_keep=index, **inputs)
            logits = out.logits[0]
        else:
            out = self.model(input_ids=ids, use_cache=False, **inputs)
            logits = out.logits[0, index]
        place = {position: i for i, position in enumerate(distinct)}
        return logits.float()[torch.tensor([place[p] for p in at], device=self.device)]

    def _use(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    # the packed path: stems once, tails packed

    def _packed(self, todo: Sequence[Row]) -> Iterator[tuple[list[Read], torch.Tensor]]:
        root = plan(todo)
        self.tokens["computed"] += planned_tokens(root)
        self._use(attention.NAME)
        yield from self._below(root, {})

    def _below(
        self, stem: Stem, kv: dict[int, tuple[torch.Tensor, torch.Tensor]]
    ) -> Iterator[tuple[list[Read], torch.Tensor]]:
        yield from self._tails(stem.tails, kv)
        for child in stem.stems:
            layout = attention.layout([child.segment], kv, self.device)
            layout.keep = True
            with _one_row(len(child.segment.tokens)):
                result = self._run([child.segment], layout)
            if result is not None:
                yield result
            own = layout.own
            if kv:
                own = {
                    layer: (torch.cat([kv[layer][0], k], 2), torch.cat([kv[layer][1], v], 2))
                    for layer, (k, v) in layout.own.items()
                }
            yield from self._below(child, own)

    def _tails(
        self, tails: Sequence[Segment], kv: dict[int, tuple[torch.Tensor, torch.Tensor]]
    ) -> Iterator[tuple[list[Read], torch.Tensor]]:
        """Run tails in packs; when memory runs out, halve the budget for good and pack anew."""
        packs = pack(tails, self._budget)
        while packs:
            some = packs[0]
            result, full = None, False
            try:
                result = self._run(some, attention.layout(some, kv, self.device))
            except torch.OutOfMemoryError:
                # acted on outside this block, whose traceback keeps the failed pass's tensors alive
                full = True
            if full:
                size = sum(len(tail.tokens) for tail in some)
                if len(some) == 1:
                    raise _no_memory(size)
                torch.cuda.empty_cache()
                self._budget = size // 2
                self.say(f"out of memory on {size} tokens at once: {self._budget} from now on")
                packs = pack([tail for left in packs for tail in left], self._budget)
                continue
            packs = packs[1:]
            if result is not None:
                yield result

    def _run(
        self, segments: Sequence[Segment], layout: attention.Pack
    ) -> tuple[list[Read], torch.Tensor] | None:
        """One forward pass over packed segments that hang below the same stem."""
        ids = torch.cat([torch.as_tensor(s.tokens, dtype=torch.long) for s in segments])
        starts = torch.tensor([s.start for s in segments], device=self.device)
        positions = (layout.column + starts[layout.row])[None]
        reads: list[Read] = []
        at: list[int] = []
        offset = 0
        for segment in segments:
            reads += segment.reads
            at += [offset + read.position - segment.start for read in segment.reads]
            offset += len(segment.tokens)
        with attention.using(layout):
            logits = self._forward(
                ids.to(self.device)[None], at or [0], position_ids=positions, attention_mask=None
            )
        return (reads, logits) if reads else None

    def _check(self, todo: Sequence[Row]) -> dict[str, Any]:
        """Score a few rows by both paths; the packed one is used only where they agree."""
        sample = probe(todo)
        tolerance = TOLERANCE.get(self.loaded.dtype, 0.5)
        before = dict(self.tokens)

        def letters(results: Iterator[tuple[list[Read], torch.Tensor]]) -> dict[Any, float]:
            out: dict[Any, float] = {}
            for reads, logits in results:
                logprobs = logits.log_softmax(-1)
                for i, read in enumerate(reads):
                    out[(read.slot, read.position)] = float(logprobs[i, read.token])
            return out

        plain = letters(self._plain(sample))
        try:
            packed = letters(self._packed(sample))
            # torch's maximum keeps a NaN, where Python's drops it
            worst = float(torch.tensor([abs(plain[key] - packed[key]) for key in plain]).max())
        except (
            attention.NotPacked,
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            ModelError,
        ) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return {"attention": "plain", "reason": reason, "checked_rows": len(sample)}
        finally:
            self.tokens.update(before)
        verdict = {"checked_rows": len(sample), "worst_difference": worst, "tolerance": tolerance}
        if not worst <= tolerance:
            reason = f"the packed path differs by {worst:.2g} in log-probability on checked rows"
            return {"attention": "plain", "reason": reason, **verdict}
        return {"attention": "packed", **verdict}


def _no_memory(tokens: int) -> ModelError:
    return ModelError(
        f"out of memory on one row of {tokens} tokens; use a smaller dtype or another device."
    )


@contextmanager
def _one_row(tokens: int) -> Generator[None, None, None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise _no_memory(tokens) from None
