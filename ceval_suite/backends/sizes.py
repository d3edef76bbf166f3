"""How many tokens go into a forward pass: found by timing real passes, within the memory."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch

from ceval_suite.backends.batching import Pack
from ceval_suite.errors import ModelError, no_memory

SIZES = {"cpu": (1024, 512, 2048), "cuda": (4096, 2048, 8192, 16384)}
"""Tokens of a pack that are tried on a kind of device; the fastest is kept."""

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


def no_room(tokens: int) -> ModelError:
    """What to say when not even one row fits."""
    advice = "use a smaller dtype or another device."
    return ModelError(f"out of memory on one row of {tokens} tokens; {advice}")


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
