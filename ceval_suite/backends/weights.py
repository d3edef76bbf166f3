"""How far quantised weights lie from the weights they were made of, and what they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ceval_suite.backends.quantise import quantised
from ceval_suite.errors import ModelError


@dataclass(frozen=True)
class LayerError:
    """What quantisation did to the weights of one layer.

    `mse` and `largest` are of the weights' differences; `snr` is the power of the weights over that
    of their differences, in decibels.
    """

    name: str
    shape: tuple[int, ...]
    mse: float
    largest: float
    snr: float
    bytes_before: int
    bytes_after: int


def errors(base: Any, other: Any) -> Iterator[LayerError]:
    """Every quantised layer of `other` against the layer of that name in `base`.

    Both must be as they were loaded: some libraries rearrange weights in their first forward pass.

    Raises:
        ModelError: the models have different layers.
    """
    dense = dict(base.named_modules())
    for name, module in other.named_modules():
        if not quantised(module):
            continue
        found = dense.get(name)
        weight = getattr(found, "weight", None)
        if not isinstance(weight, torch.Tensor) or quantised(found):
            raise ModelError(f"the base model has no unquantised layer {name} to compare with.")
        before = weight.detach().float()
        after = values(module).float().to(before.device)
        if after.shape != before.shape:
            raise ModelError(
                f"{name} is {tuple(before.shape)} in the base and {tuple(after.shape)} in the "
                "quantised model; these are two different models."
            )
        yield measure(name, before, after, weight.element_size(), size(module))


def measure(
    name: str, before: torch.Tensor, after: torch.Tensor, width: int, bytes_after: int
) -> LayerError:
    """The error of one layer [N, K] whose weights took `width` bytes each."""
    off = (after - before).double()
    mse = float(off.square().mean())
    power = float(before.double().square().mean())
    snr = float("inf") if not mse else 10 * float(torch.tensor(power / mse).log10())
    return LayerError(
        name=name,
        shape=tuple(before.shape),
        mse=mse,
        largest=float(off.abs().max()),
        snr=snr,
        bytes_before=before.numel() * width,
        bytes_after=bytes_after,
    )


@torch.no_grad()
def values(module: Any) -> torch.Tensor:
    """The weights [N, K] that a quantised layer stands for."""
    if hasattr(module, "W_q"):  # hqq
        return module.dequantize()
    weight: Any = getattr(module, "weight", None)
    if hasattr(module, "stored_bytes"):  # unpacked while it was loaded
        return module.weight.detach()
    if weight is not None and hasattr(weight, "SCB"):  # bitsandbytes, 8 bits
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * scale.float()[:, None] / 127
    if weight is not None and getattr(weight, "quant_state", None) is not None:
        # bitsandbytes, 4 bits
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if isinstance(weight, torch.Tensor) and type(weight).__module__.split(".")[0] != "torch":
        return weight.dequantize()  # torchao, quanto
    if hasattr(module, "weight_packed"):
        return _unpacked(module)
    # any other: what it does to unit vectors
    width = int(module.in_features)
    like = next(t for t in module.buffers() if t.is_floating_point())
    out = module(torch.eye(width, dtype=like.dtype, device=like.device))
    bias = getattr(module, "bias", None)
    return (out if bias is None else out - bias).T


def _unpacked(module: Any) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor

    scheme = module.quantization_scheme
    kind: Any = BaseCompressor.get_value_from_registry(
        str(getattr(scheme.format, "value", scheme.format))
    )
    return kind.decompress(dict(module.state_dict()), scheme)["weight"]


def size(module: Any) -> int:
    """Bytes of a module's own weights, scales and zero points, packed to the bits they need."""
    if hasattr(module, "stored_bytes"):
        return int(module.stored_bytes)
    if hasattr(module, "W_q"):
        meta = [v for v in module.meta.values() if isinstance(v, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in (module.W_q, *meta))
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(_bytes(tensor) for tensor in own)


def _bytes(tensor: Any) -> int:
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes, 4 bits
        return tensor.numel() * tensor.element_size() + _bytes(state.absmax)
    if getattr(tensor, "SCB", None) is not None:
        return tensor.numel() + _bytes(tensor.SCB)
    target = str(getattr(tensor, "target_dtype", ""))
    if target.startswith("torch.int"):  # torchao keeps four bits in a byte each
        bits = int(target.removeprefix("torch.int"))
        return tensor.numel() * bits // 8 + _bytes(tensor.scale) + _bytes(tensor.zero_point)
    if hasattr(tensor, "__tensor_flatten__"):  # quanto and what torchao has besides
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def model_size(model: Any) -> int:
    """Bytes of all weights of a model, shared ones once."""
    seen: set[int] = set()
    total = 0
    for module in model.modules():
        if hasattr(module, "W_q") or not list(module.children()):
            parts = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            keys = {id(tensor) for tensor in parts}
            if hasattr(module, "W_q") or not keys & seen:
                total += size(module)
            seen |= keys
    return total
