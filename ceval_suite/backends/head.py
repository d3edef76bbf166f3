"""The end of the model, applied only where something is read; the output embedding in float32.

In bfloat16 the two best letters of a small model tie exactly on 6 to 7 % of items, and argmax then
prefers A; in float32 they do not. Models with large vocabularies spend more on head rows than on
all else when the head runs over every token, and their logits of one row fill a megabyte: so
hidden states are collected and scored a block of vocabulary rows at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ceval_suite.backends import products
from ceval_suite.backends.batching import Read, Score

BLOCK = 4096
"""Vocabulary rows computed at once: their float32 copy stays in a processor's cache."""

GPU_BLOCK = 16384
"""The same on a GPU, where a step costs its launches."""

HEAD_ROWS = 128
"""Hidden states that are collected before the head is applied to them."""

HEAD_SECONDS = 5.0
"""How long a read may wait for the head, so that a kill loses little."""

Post = Callable[[torch.Tensor], torch.Tensor]
"""What the model does to its logits after the head: nothing, a scale, a soft cap."""


class Float32Head(torch.nn.Module):
    """The model's own output embedding in float32; or, while `collecting`, only its input."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.collecting = False
        self.greedy = False  # whether to look for the largest logit: one more pass over them all
        self.hidden: torch.Tensor | None = None
        self.sample: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The wrapped weights [V, H]: tied models look for them here."""
        return self.inner.weight

    @property
    def bias(self) -> Any:
        """The wrapped bias, which some models set anew."""
        return self.inner.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., H] → logits [..., V] in float32."""
        hidden = hidden.to(self.inner.weight.device)  # of a model on several, perhaps another one
        if self.sample is not None:
            return self.sample.expand(*hidden.shape[:-1], -1)
        if self.collecting:
            self.hidden = hidden
            return hidden.new_zeros(*hidden.shape[:-1], 1, dtype=torch.float32)
        rows = self.inner.weight.shape[0]
        # a copy of float32 weights is not needed, of others it is made block by block
        step = rows if self.inner.weight.dtype == torch.float32 else BLOCK
        plain = products.linear if products.ruled() else torch.nn.functional.linear
        parts = [plain(hidden.float(), *block) for _, block in self._blocks(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _blocks(self, step: int) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor | None]]]:
        """Where each block of rows begins, its weights and its bias in float32."""
        weight, bias = self.inner.weight, self.bias
        # one copy serves all blocks: fresh memory costs more than filling it
        copy: torch.Tensor | None = None
        for at in range(0, weight.shape[0], step):
            some = weight[at : at + step]
            if some.dtype != torch.float32:
                copy = torch.empty_like(some, dtype=torch.float32) if copy is None else copy
                some = copy[: len(some)].copy_(some)
            yield at, (some, None if bias is None else bias[at : at + step].float())

    def score(
        self, hidden: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, post: Post
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of next tokens: `tokens` [m] after the hidden states `rows` [m] of [n, H].

        Returns the raw logit and the natural log-probability of each, [m], in float32, and whether
        no logit is larger (False unless `greedy`).
        """
        hidden = hidden.float()
        total = torch.full((len(hidden),), float("-inf"), device=hidden.device)
        chosen = torch.zeros(len(tokens), device=hidden.device)
        largest = torch.full_like(total, float("-inf") if self.greedy else float("inf"))
        for at, block in self._blocks(BLOCK if hidden.device.type == "cpu" else GPU_BLOCK):
            logits = post(products.linear(hidden, *block))
            total = torch.logaddexp(total, logits.logsumexp(-1))
            if self.greedy:
                largest = torch.maximum(largest, logits.amax(-1))
            inside = (tokens >= at) & (tokens < at + logits.shape[-1])
            place = (tokens - at).clamp(0, logits.shape[-1] - 1)
            chosen = torch.where(inside, logits[rows, place], chosen)
        return chosen, chosen - total[rows], chosen >= largest[rows]


def post_processing(head: Float32Head, forward: Callable[[], torch.Tensor]) -> Post | None:
    """What the model does to logits, found by having the head return known numbers.

    `forward` runs the model on anything and returns its logits. Recognised are y = x, y = s·x and
    y = c·tanh(s·x/c); None means that it is something else, and that the head must run inside the
    model.
    """
    x = torch.linspace(-80, 80, 4097, device=head.inner.weight.device)
    head.sample = torch.cat([x, x.new_tensor([1e-3, 1e9])])
    try:
        y = forward().flatten()[-len(head.sample) :].float()
    finally:
        head.sample = None
    if len(y) != len(x) + 2 or not y[-1]:
        return None
    y, slope, cap = y[:-2], float(y[-2]) * 1e3, float(y[-1])

    def same(z: torch.Tensor) -> torch.Tensor:
        return z

    def scaled(z: torch.Tensor) -> torch.Tensor:
        return z * slope

    def capped(z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z * (slope / cap)) * cap

    for post in (same, scaled, capped):
        if torch.allclose(post(x), y, rtol=1e-5, atol=1e-5):
            return post
    return None


class Waiting:
    """Hidden states waiting for the head."""

    def __init__(self, head: Float32Head, post: Post | None, *, settled: bool = False) -> None:
        """When `settled`, nothing depends on time: neither how long they wait, nor the kernel."""
        self.head = head
        self.post = post
        self._settled = settled
        self._patience = float("inf") if settled else HEAD_SECONDS
        self._reads: list[Read] = []
        self._rows: list[int] = []
        self._hidden: list[torch.Tensor] = []
        self._count = 0
        self._since = time.monotonic()

    def add(
        self, reads: Sequence[Read], rows: Sequence[int], hidden: torch.Tensor
    ) -> Iterator[Score]:
        """Take hidden states [n, H], of which `rows` says which each read is of.

        Yields scores when enough have come together.
        """
        if reads:
            self._reads += reads
            self._rows += [self._count + row for row in rows]
            self._hidden.append(hidden.clone())
            self._count += len(hidden)
        if self._count >= HEAD_ROWS or time.monotonic() - self._since > self._patience:
            yield from self.flush()

    def flush(self) -> Iterator[Score]:
        """The scores of all that wait."""
        self._since = time.monotonic()
        if not self._reads:
            return
        reads, rows, hidden = self._reads, self._rows, torch.cat(self._hidden)
        self._reads, self._rows, self._hidden, self._count = [], [], [], 0
        post = self.post
        assert post is not None
        # one pass may have left more than are worth holding logits of
        for first in range(0, len(hidden), HEAD_ROWS):
            some = [k for k, row in enumerate(rows) if first <= row < first + HEAD_ROWS]
            with products.by_rule(self._settled):
                found = self.head.score(
                    hidden[first : first + HEAD_ROWS],
                    torch.tensor([rows[k] - first for k in some], device=hidden.device),
                    torch.tensor([reads[k].token for k in some], device=hidden.device),
                    post,
                )
            for k, *values in zip(some, *(x.tolist() for x in found), strict=True):
                yield Score(reads[k], *values)


def scores(reads: Sequence[Read], logits: torch.Tensor) -> Iterator[Score]:
    """Scores of reads from their logits [len(reads), V]."""
    wanted = torch.tensor([read.token for read in reads], device=logits.device)[:, None]
    raw = logits.gather(1, wanted)[:, 0]
    logprobs = raw - logits.logsumexp(-1)
    greedy = raw >= logits.amax(-1)
    for read, *values in zip(reads, raw.tolist(), logprobs.tolist(), greedy.tolist(), strict=True):
        yield Score(read, *values)


class LastMLP:
    """The feed-forward part of the last layer, computed only where something is read.

    What it adds to the other tokens is never looked at: nothing comes after it but the head. As
    with all of the packed path, the check at load decides whether that holds for a model.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._real = module.forward if module is not None else None
        self._own = module is not None and "forward" in vars(module)
        self._where: tuple[torch.Tensor, int] | None = None
        if module is not None:
            module.forward = self._forward

    def give_back(self) -> None:
        """Leave the part as it was found."""
        if self._own:
            self._module.forward = self._real
        elif self._module is not None:
            del self._module.forward

    @classmethod
    def of(cls, model: Any) -> LastMLP:
        """The part of a model; of none where no last layer with an `mlp` is found."""
        found: Any = None
        for module in model.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module):
                found = getattr(module[-1], "mlp", None) or found
        return cls(found)

    @contextmanager
    def only(self, index: torch.Tensor, size: int) -> Generator[None, None, None]:
        """Within it, only the tokens `index` of passes of `size` tokens are computed."""
        self._where = (index, size)
        try:
            yield
        finally:
            self._where = None

    def _forward(self, hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
        assert self._real is not None
        if self._where is None or hidden.shape[:-1] != (1, self._where[1]):
            return self._real(hidden, *args, **options)
        index = self._where[0].unique()
        small = self._real(hidden[:, index], *args, **options)
        if not isinstance(small, torch.Tensor):  # with router logits and the like
            return self._real(hidden, *args, **options)
        out = small.new_zeros(1, self._where[1], small.shape[-1])
        out[:, index] = small
        return out
