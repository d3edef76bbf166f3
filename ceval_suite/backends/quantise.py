"""Quantised weights: what a method needs, how it is asked for, and proof that it happened.

A checkpoint that is quantised already says so in its config.json and is loaded as it is. For any
other one, `quant:` names what to do while it is loaded. transformers does it where it can; HQQ,
and torchao's one scale per tensor, are applied here to the loaded layers.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from ceval_suite.backends import gguf_weights, quantisers
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec, Quant


@dataclass(frozen=True)
class Needs:
    """What a method needs to run: packages to import, the extra that brings them, a GPU."""

    packages: tuple[str, ...] = ()
    extra: str = ""
    gpu: bool = False


NEEDS = {
    "bitsandbytes": Needs(("bitsandbytes",), "bitsandbytes"),
    "torchao": Needs(("torchao",), "torchao"),
    "quanto": Needs(("optimum.quanto",), "quanto"),
    "hqq": Needs(("hqq",), "hqq"),
    "compressed-tensors": Needs(("compressed_tensors",), "compressed-tensors"),
    "gptq": Needs(("gptqmodel", "optimum"), "gptq", gpu=True),
    "awq": Needs(("gptqmodel",), "gptq", gpu=True),
    "fp8": Needs(gpu=True),
    "fbgemm_fp8": Needs(gpu=True),
}
"""By the name of a method; of others transformers itself knows the needs."""

WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
"""Bytes of a number by safetensors' names."""

FP8_CAPABILITY = (8, 9)
"""Compute capability of the first NVIDIA GPUs that multiply FP8."""


def stored(config: Any) -> dict[str, Any] | None:
    """What config.json says about weights that are quantised already."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    return dict(found if isinstance(found, Mapping) else found.to_dict())


def options(spec: ModelSpec, config: Any, device: str, dtype: Any) -> dict[str, Any]:
    """What from_pretrained must be told so that the weights are quantised as the spec wants them.

    Raises:
        ModelError: quantised already, a missing package, or a GPU that is needed.
    """
    already = stored(config)
    if already is None and spec.quant is None:
        return {}
    if already is not None:
        method = _name(already)
        if spec.quant is not None:
            raise ModelError(
                f"{spec.path}: its weights are quantised already ({method}) and quant: asks for "
                f"{spec.quant.method}; drop quant:, or give the unquantised checkpoint."
            )
        _check_needs(spec, method, device)
        if method == "hqq":
            raise ModelError(
                f"{spec.path}: transformers cannot read weights that are stored in hqq's format; "
                "give the unquantised checkpoint and quant: {method: hqq}."
            )
        return {"device_map": {"": device}} | _dequantised(config, already)
    assert spec.quant is not None
    _check_needs(spec, spec.quant.method, device)
    if spec.quant.method == "quanto" and spec.quant.bits < 8:
        quantisers.check_unpacking(spec, device)
    made = _config(spec.quant, dtype)
    return {"device_map": {"": device}} | ({"quantization_config": made} if made else {})


def _dequantised(config: Any, already: Mapping[str, Any]) -> dict[str, Any]:
    """Have compressed-tensors unpack while loading what it would unpack in the first pass anyway.

    Packed layers with zero points load no other way. Left alone are checkpoints that mix several
    formats, of which transformers would unpack all by the first one's numbers.
    """
    if _name(already) != "compressed-tensors" or len(already.get("config_groups") or {}) != 1:
        return {}
    config.quantization_config = {**already, "dequantize": True}
    return {"config": config}


def _name(already: Mapping[str, Any]) -> str:
    method = already.get("quant_method") or "bitsandbytes"  # its oldest files do not say
    return str(getattr(method, "value", method))


def _check_needs(spec: ModelSpec, method: str, device: str) -> None:
    needs = NEEDS.get(method, Needs())
    kind = torch.device(device).type
    if needs.gpu and kind != "cuda":
        raise ModelError(
            f"{spec.path}: {method} needs a GPU and the device is {device}; give a checkpoint in "
            "another format, or quant: {method: torchao} on the unquantised one."
        )
    if method == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise ModelError(
            f"{spec.path}: fp8 needs a GPU of compute capability 8.9 or later; use another method."
        )
    missing = [name for name in needs.packages if not _installed(name)]
    if missing:
        raise ModelError(
            f"{spec.path}: {method} needs the package {missing[0].replace('.', '-')}, which is not "
            f"installed; run pip install 'ceval-suite[{needs.extra}]'."
        )


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _config(quant: Quant, dtype: Any) -> Any:
    """The method as transformers takes it; None where it is applied afterwards."""
    import transformers

    skip = quantisers.skipped(quant)
    if quant.method == "bitsandbytes":
        if quant.bits == 8:
            return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant.format,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip,
        )
    if quant.method == "torchao" and quant.granularity != "tensor":
        return transformers.TorchAoConfig(
            quantisers.torchao_config(quant), modules_to_not_convert=skip
        )
    if quant.method == "quanto":
        return transformers.QuantoConfig(weights=quant.format, modules_to_not_convert=skip)
    if quant.method == "fp8":
        return transformers.FineGrainedFP8Config(modules_to_not_convert=skip)
    return None


def settle(
    spec: ModelSpec, path: Path, model: Any, config: Any, dtype: Any
) -> dict[str, Any] | None:
    """Apply what transformers could not, and prove that the weights are quantised.

    Returns:
        Method, bits, group size, number of quantised modules; None for an unquantised model.

    Raises:
        ModelError: no module was quantised, or the output embedding was and should not be.
    """
    already = stored(config)
    if spec.quant is None and already is None:
        return None
    quant = spec.quant
    if quant is not None:
        if quant.method in ("hqq", "torchao") and _config(quant, None) is None:
            quantisers.apply(spec, model, quant)
        quantisers.check_head(spec, model, quant)
        head = model.get_output_embeddings()
        if head is not None and "lm_head" in quant.skip and quantised(head):
            raise ModelError(
                f"{spec.path}: {quant.method} quantised the output embedding, which skip: names; "
                "use another method."
            )
    _exact(model, dtype)
    if quant is None and path.is_dir():
        _mark(model, path)
    found = sum(quantised(module) for module in model.modules())
    if not found:
        method = quant.method if quant else _name(already or {})
        raise ModelError(
            f"{spec.path}: {method} left every module of this model as it was; use another method "
            "or drop quant:."
        )
    if quant is not None:
        own = {"granularity", "symmetric"} if quant.method != "torchao" else set[str]()
        about: dict[str, Any] = quant.model_dump(exclude_none=True, exclude=own)
        about |= {"type": quant.format}
    else:
        about = described(already or {})
    return about | {"modules": found}


def _mark(model: Any, path: Path) -> None:
    """Note what a layer takes on disk where it was unpacked while it was loaded."""
    stored: dict[str, int] = {}
    scaled: set[str] = set()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            for key in content.keys():  # noqa: SIM118 (not a mapping)
                name, _, part = key.rpartition(".")
                scaled |= {name} if part == "weight_scale" else set()
                tensor = content.get_slice(key)
                width = WIDTHS.get(tensor.get_dtype(), 0)
                stored[name] = stored.get(name, 0) + math.prod(tensor.get_shape()) * width
    for name, module in model.named_modules():
        if name in scaled and not quantised(module):
            module.stored_bytes = stored[name]


def _exact(model: Any, dtype: Any) -> None:
    for module in model.modules():
        # torchao's tensors come in the dtype that they were stored in, whatever was asked for
        weight: Any = getattr(module, "weight", None)
        if type(weight).__module__.startswith("torchao.") and weight.dtype != dtype:
            module.weight = torch.nn.Parameter(weight.to(dtype=dtype), requires_grad=False)
        if type(weight).__name__ == "WeightQBitsTensor":  # quanto's fewer than 8 bits
            module.forward = quantisers.outside_inference(module.forward)
        # on CPUs with AVX-512 bitsandbytes computes 4-bit layers in bfloat16, whatever was asked
        exact = getattr(module, "compute_dtype", None) == torch.float32
        if exact and getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def quantised(module: Any) -> bool:
    """Whether a module holds its weights in fewer bits: by what they are, not by its name."""
    if any(hasattr(module, name) for name in ("qweight", "W_q", "weight_packed", "stored_bytes")):
        return True
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return False
    # kinds of tensor that are not torch's own are those of quantisation libraries
    foreign = type(weight).__module__.split(".")[0] not in ("torch", "ceval_suite")
    return foreign or weight.element_size() == 1


def described(content: Mapping[str, Any]) -> dict[str, Any]:
    """Method, bits and group size, from the words that the formats use for them."""
    flat = dict(_flat(content))
    bits: Any = next((flat[k] for k in ("bits", "w_bit", "num_bits", "nbits") if k in flat), None)
    if bits is None and (flat.get("load_in_4bit") or flat.get("_load_in_4bit")):
        bits = 4
    if bits is None:
        text = json.dumps(content, default=str).lower()
        named = re.search(r"int(\d)", text) or re.search(r"(?:float|fp)(\d)", text)
        bits = int(named[1]) if named else 8
    size = flat.get("group_size", flat.get("q_group_size"))
    about = {"method": _name(content), "bits": bits}
    return about | ({"group_size": size} if isinstance(size, int) and size > 0 else {})


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in cast("Mapping[str, Any]", content).items():
            if value is not None and not isinstance(value, Mapping | list):
                yield key, value
            yield from _flat(value)
    elif isinstance(content, list):
        for value in cast("list[Any]", content):
            yield from _flat(value)


@contextmanager
def unpacked(path: Path, dtype: Any) -> Generator[Path, None, None]:
    """A GGUF file as an unquantised checkpoint for as long as it is quantised anew."""
    with tempfile.TemporaryDirectory(prefix="ceval-suite-") as folder:
        gguf_weights.write_dense(path, Path(folder), dtype)
        yield Path(folder)
