"""The machine's own matters: matrix products by the fastest kernel, and memory kept at hand.

torch gives a float32 product on a CPU to MKL, which keeps to its AVX2 kernels on processors of
other makers; oneDNN, which torch ships too, uses all they have (2.2 times the rate on an EPYC of
family 26). Which one to take is not known beforehand, so both are timed on real arguments.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

ROUNDS = 3
"""Times that each way is timed; its best time counts, for noise only adds to it."""

WORK = 1 << 23
"""Multiplications of a product that is large enough to be timed."""


KEPT = 256 << 20
"""Freed bytes that the process keeps before it gives memory back."""

LARGEST = 32 << 20
"""Bytes of a block that is still taken from what is kept; glibc allows no more."""


@cache
def keep_memory() -> None:
    """Have glibc keep the blocks of one layer for the next.

    By default those of some megabytes go back to the system when freed, and filling fresh pages
    costs several times the arithmetic of an activation. Does nothing under another allocator, or
    where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is set.
    """
    if any(f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("TRIM", "MMAP")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt(trim, KEPT)
    mallopt(mmap, LARGEST)


class Fastest:
    """One of several ways to compute the same: the one that was fastest on real arguments."""

    def __init__(self, ways: Mapping[str, Callable[..., Any]]) -> None:
        """The first way serves until one is chosen, and must not fail."""
        self.ways = dict(ways)
        self.name = next(iter(self.ways))
        self.chosen = len(self.ways) == 1

    def __call__(self, *args: Any) -> Any:
        """What the ways compute from `args`."""
        return self.ways[self.name](*args)

    def choose(self, *args: Any) -> None:
        """Time all ways on `args`; those that cannot take them are out."""
        seconds = {self.name: float("inf")}
        for _ in range(ROUNDS):
            for name, way in list(self.ways.items()):
                try:
                    begun = time.perf_counter()
                    way(*args)
                    took = time.perf_counter() - begun
                except (RuntimeError, AttributeError, TypeError):
                    if name == self.name:
                        raise
                    del self.ways[name]
                    continue
                seconds[name] = min(took, seconds.get(name, took))
        self.name = min(self.ways, key=seconds.__getitem__)
        self.chosen = True


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # other strides go to a kernel that is a thousand times slower
    x = x.contiguous()
    if not weight.is_contiguous() and not weight.T.is_contiguous():
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def kernel(device: str, dtype: torch.dtype) -> Fastest:
    """How products of a dtype are computed on a kind of device, in this process."""
    ways: dict[str, Callable[..., Any]] = {"torch": torch.nn.functional.linear}
    floating = (torch.float32, torch.bfloat16, torch.float16)
    if device == "cpu" and dtype in floating and torch.backends.mkldnn.is_available():
        ways["oneDNN"] = _onednn
    return Fastest(ways)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N] → [..., N]."""
    found = kernel(x.device.type, x.dtype)
    if not found.chosen and x.numel() * weight.shape[0] >= WORK:
        found.choose(x, weight, bias)
    return found(x, weight, bias)


class Linears:
    """The linear layers of a model, computed by `linear` while asked to."""

    def __init__(self, model: Any) -> None:
        # subclasses (quantised layers and the like) compute something else
        self._found = [
            m for m in model.modules() if type(m) is torch.nn.Linear and "forward" not in vars(m)
        ]

    @contextmanager
    def fast(self) -> Generator[None, None, None]:
        """Within it, layers on a CPU take the fastest kernel; outside, the model is untouched."""
        some = [m for m in self._found if m.weight.device.type == "cpu"]
        for module in some:
            vars(module)["forward"] = _Fast(module)
        try:
            yield
        finally:
            for module in some:
                del vars(module)["forward"]


class _Fast:
    """`forward` of one linear layer."""

    def __init__(self, module: torch.nn.Linear) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self._module.weight, self._module.bias)
