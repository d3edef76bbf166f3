"""How many tokens go into a forward pass: found by timing real passes, within the memory."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ceval_suite.backends.batching import Pack
from ceval_suite.errors import ModelError, NotNow, no_memory

SIZES = {"cpu": (1024, 512, 2048), "cuda": (4096, 2048, 8192, 16384)}
"""Tokens of a pack that are tried on a kind of device; the fastest is kept."""

SMALLEST = 32
"""Tokens that a pack must be able to hold."""

TRIALS = 2
"""Full packs of each size that are timed."""


class Sizes:
    """How many tokens go into a pack: measured while real packs run, then kept."""

    def __init__(self, device: str = "cpu") -> None:
        sizes = SIZES.get(device, SIZES["cpu"])
        self._first: int | None = None
        self.now = self.longest = sizes[0]
        self._trials = [size for size in sizes for _ in range(TRIALS)]
        self._rates: dict[int, list[float]] = {}

    def fix(self, size: int) -> None:
        """Never anything but `size` from now on."""
        self._trials = []
        self.now = self.longest = size

    def settle(self) -> None:
        """From now on the first size, but for what is fixed or capped until `again`."""
        self._first = self.now
        self.fix(self.now)

    def again(self) -> None:
        """Back to the first size, if settled: what was computed before is to change nothing."""
        if self._first is not None:
            self.fix(self._first)

    def cap(self, size: int) -> None:
        """Never more than `size` from now on."""
        self._trials = [trial for trial in self._trials if trial <= size]
        self.now, self.longest = min(self.now, size), min(self.longest, size)

    @contextmanager
    def timing(self, some: Pack) -> Generator[None, None, None]:
        """Time a pack, and move on to the next size when enough were timed."""
        begun = time.perf_counter()
        yield
        if self._trials and torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU's work is only queued by now
        size = len(some.tokens)
        if not self._trials or size < 0.75 * self.now:
            return
        self._rates.setdefault(self.now, []).append(size / (time.perf_counter() - begun))
        self._trials.pop(0)
        if self._trials:
            self.now = self._trials[0]
        else:
            self.now = max(self._rates, key=lambda s: max(self._rates[s]))


def tokens_in(memory: int, model: Any, head: Any, longest: int, kept_bytes: int) -> int:
    """Tokens that may be worked on at once, beside weights and `longest` kept tokens.

    Raises:
        ModelError: not even a short pack fits.
    """
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    widest = max((m.out_features for m in linears if m is not head), default=0)
    token = 4 * (6 * widest + 16 * int(model.get_input_embeddings().weight.shape[1]))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = longest * kept_bytes
    room = (memory - weights - kept) // token
    if room < SMALLEST:
        raise ModelError(
            f"--memory: weights take {weights:,} bytes, the keys and values of {longest} "
            f"tokens {kept:,}; give at least {weights + kept + SMALLEST * token:,}."
        )
    return room


def no_room(tokens: int) -> NotNow:
    """What to say when not even one row fits."""
    advice = "use a smaller dtype or another device."
    return NotNow(f"out of memory on one row of {tokens} tokens; {advice}")


@contextmanager
def one_row(tokens: int) -> Generator[None, None, None]:
    """Within it, a row of so many tokens is computed alone.

    Raises:
        ModelError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        raise no_room(tokens) from None
