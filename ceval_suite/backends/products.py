"""The machine's own matters: matrix products by the fastest kernel, and memory kept at hand.

torch gives a float32 product on a CPU to MKL, which keeps to its AVX2 kernels on processors of
other makers; oneDNN, which torch ships too, uses all they have (2.2 times the rate on an EPYC of
family 26), and more still when weights lie in its own order (by 10 to 30 % there). Which one to
take is not known beforehand, so all are timed once, before anything is computed: an answer must
not depend on when that happens. Where it must not depend on time at all, oneDNN is taken wherever
it can be: what it computes does not depend on the number of threads, as some of MKL's sums do.
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

SHAPE = (777, 576, 1536)
"""M, K and N of the product that is timed: M as odd as real packs are."""

PACKED = 256 << 20
"""Bytes of weights that are copied into oneDNN's own order, at most."""

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

    def first(self, *args: Any) -> Any:
        """The same by the way that stands first, whichever was chosen."""
        return next(iter(self.ways.values()))(*args)

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


def _onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    # other strides go to a kernel that is a thousand times slower
    x = x.contiguous()
    if not weight.is_mkldnn and not weight.is_contiguous() and not weight.T.is_contiguous():
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _arguments(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, None]:
    m, k, n = SHAPE
    x, weight = (torch.full((rows, k), 0.5, dtype=dtype, device=device) for rows in (m, n))
    return x, weight, None


_by_rule: list[bool] = []


@contextmanager
def by_rule(on: bool = True) -> Generator[None, None, None]:
    """Within it, nothing is chosen by time if `on`: the same on every machine of a kind."""
    _by_rule.append(on)
    try:
        yield
    finally:
        _by_rule.pop()


def ruled() -> bool:
    """Whether nothing may be chosen by time now."""
    return bool(_by_rule) and _by_rule[-1]


def kernel(device: str, dtype: torch.dtype) -> Fastest:
    """How products of a dtype are computed on a kind of device, in this process."""
    return _first(device, dtype) if ruled() else _fastest(device, dtype)


@cache
def _first(device: str, dtype: torch.dtype) -> Fastest:
    """oneDNN on a CPU that it has a kernel for, else torch's own."""
    if device == "cpu" and torch.backends.mkldnn.is_available():
        try:
            _onednn(*_arguments(device, dtype))
        except (RuntimeError, AttributeError, TypeError):
            return Fastest({"torch": torch.nn.functional.linear})
        return Fastest({"oneDNN": _onednn})
    return Fastest({"torch": torch.nn.functional.linear})


@cache
def _fastest(device: str, dtype: torch.dtype) -> Fastest:
    ways: dict[str, Callable[..., Any]] = {"torch": torch.nn.functional.linear}
    floating = (torch.float32, torch.bfloat16, torch.float16)
    if device == "cpu" and dtype in floating and torch.backends.mkldnn.is_available():
        ways["oneDNN"] = _onednn
    found = Fastest(ways)
    if not found.chosen:
        found.choose(*_arguments(device, dtype))
    return found


def packing_pays(dtype: torch.dtype) -> bool:
    """Whether products on a CPU are to take weights in oneDNN's own order: where it is faster."""
    return _can_pack(dtype) if ruled() else _packing_is_faster(dtype)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    if "oneDNN" not in _first("cpu", dtype).ways:
        return False
    x, weight, _ = _arguments("cpu", dtype)
    try:
        _onednn(x, _packed(weight))
    except (RuntimeError, AttributeError, TypeError):
        return False
    return True


@cache
def _packing_is_faster(dtype: torch.dtype) -> bool:
    usual = _fastest("cpu", dtype)
    if "oneDNN" not in usual.ways:
        return False
    x, weight, _ = _arguments("cpu", dtype)
    try:
        own = _packed(weight)
        both = Fastest({"usual": lambda: usual(x, weight, None), "own": lambda: _onednn(x, own)})
        both.choose()
    except (RuntimeError, AttributeError, TypeError):
        return False
    return both.name == "own"


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N] → [..., N]."""
    return kernel(x.device.type, x.dtype)(x, weight, bias)


def plain(module: Any) -> bool:
    """Whether a module is nothing but torch's own linear layer over a dense weight.

    Subclasses, kinds of tensor that are not torch's own (both are how quantised layers come) and
    layers with a `forward` of their own compute something else.
    """
    return (
        type(module) is torch.nn.Linear
        and type(getattr(module, "weight", None)) in (torch.nn.Parameter, torch.Tensor)
        and "forward" not in vars(module)
    )


class Linears:
    """The linear layers of a model, computed by the fastest kernel while asked to."""

    def __init__(self, model: Any, apart: Any = None, room: int = PACKED) -> None:
        """`apart` is a layer to leave alone: the head, which is computed apart.

        `room` is what copies of the weights may take, in bytes; they are made on first use.
        """
        found = [m for m in model.modules() if plain(m) and m is not apart]
        size = sum(m.weight.numel() * m.weight.element_size() for m in found)
        self._layers = [(m, _Fast(m, size <= room)) for m in found]

    @property
    def copied(self) -> int:
        """Layers whose weights have been copied into oneDNN's own order."""
        return sum(fast.copied for _, fast in self._layers)

    @contextmanager
    def fast(self) -> Generator[None, None, None]:
        """Within it, layers on a CPU take the fastest kernel; outside, the model is untouched."""
        some = [(m, fast) for m, fast in self._layers if m.weight.device.type == "cpu"]
        for module, fast in some:
            vars(module)["forward"] = fast
        try:
            yield
        finally:
            for module, _ in some:
                del vars(module)["forward"]


class _Fast:
    """`forward` of one linear layer."""

    def __init__(self, module: torch.nn.Linear, pack: bool) -> None:
        self._module = module
        self._pack = pack
        self._copy: torch.Tensor | None = None
        self._of: tuple[int, int] | None = None

    @property
    def copied(self) -> bool:
        """Whether a copy of the weights has been made."""
        return self._copy is not None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._module.weight, self._module.bias
        if not self._pack or not packing_pays(weight.dtype):
            return linear(x, weight, bias)
        # a model that is being trained changes its weights where they lie
        now = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if now != self._of:
            self._copy, self._of = _packed(weight), now
        assert self._copy is not None
        return _onednn(x, self._copy, bias)
