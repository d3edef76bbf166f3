"""How far quantised weights lie from the weights they were made of, and what they take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

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


def dense(model: Any) -> dict[str, torch.Tensor]:
    """The unquantised matrices of a model, by the name of their module."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) > 1 and not quantised(module)
    }


class Kept(Mapping[str, torch.Tensor]):
    """The unquantised matrices of a model that is no longer in memory, read one at a time.

    Those that a safetensors file of its checkpoint holds number for number are read from there;
    others (of a GGUF file, renamed, with an adapter merged) are written to a folder first.
    """

    def __init__(self, model: Any, path: Path, folder: Path) -> None:
        """Note where each matrix lies; `folder` takes what the checkpoint `path` does not have."""
        stored: dict[str, Path] = {}
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
            with safe_open(file, "pt") as content:
                stored |= dict.fromkeys(content.keys(), file)
        self._at: dict[str, tuple[Path, str, torch.dtype]] = {}
        for number, (name, weight) in enumerate(dense(model).items()):
            here = weight.detach().cpu()
            key = f"{name}.weight"
            self._at[name] = (stored.get(key, folder), key, here.dtype)
            if key not in stored or not torch.equal(self[name], here):
                file = folder / f"{number}.safetensors"
                save_file({key: here.contiguous()}, file)
                self._at[name] = (file, key, here.dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The matrix of a module, in the dtype that the model had."""
        file, key, dtype = self._at[name]
        with safe_open(file, "pt") as content:
            return content.get_tensor(key).to(dtype)

    def __iter__(self) -> Iterator[str]:
        """Names of modules."""
        return iter(self._at)

    def __len__(self) -> int:
        """How many matrices."""
        return len(self._at)


def errors(base: Mapping[str, torch.Tensor], other: Any) -> Iterator[LayerError]:
    """Every quantised layer of `other` against the matrix of that name among `base`.

    `other` must be as it was loaded: some libraries rearrange weights in their first forward pass.

    Raises:
        ModelError: the models have different layers.
    """
    for name, module in other.named_modules():
        if not quantised(module):
            continue
        weight = base.get(name)
        if weight is None:
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
    if hasattr(
        tensor, "device_mesh"
    ):  # shared among processes: the whole of it, as for its numbers
        return tensor.numel() * tensor.element_size()
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
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if hasattr(module, "W_q") or hasattr(module, "stored_bytes"):
            total += size(module)
        else:
            total += sum(_bytes(tensor) for tensor in own if id(tensor) not in seen)
        seen |= {id(tensor) for tensor in own}
    return total


def parameters(model: Any) -> int:
    """Numbers that a model's weights stand for, shared ones once.

    Packed weights count as many as they are unpacked into; their scales and zero points do not.
    """
    seen: set[int] = set()
    total = 0
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        packed = any(hasattr(module, name) for name in ("qweight", "W_q", "weight_packed"))
        if packed:
            total += int(module.in_features) * int(module.out_features)
            bias = getattr(module, "bias", None)
            own = {} if bias is None else {"bias": bias}
        elif quantised(module):
            own = {name: own[name] for name in ("weight", "bias") if name in own}
        for tensor in own.values():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state: Any = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits
                total += tensor.numel() if state is None else math.prod(state.shape)
    return total
