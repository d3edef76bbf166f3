"""Quantisers that are applied to the layers of a loaded model: torchao's linear one, and HQQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, cast

import torch

from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec, Quant

HEADS = ("lm_head", "embed_out", "output_layer")
"""Names that architectures give their output embedding."""


def skipped(quant: Quant) -> list[str]:
    """Names of modules to leave, the output embedding's in every architecture's words."""
    return [n for name in quant.skip for n in (HEADS if name == "lm_head" else (name,))]


def torchao_config(quant: Quant) -> Any:
    """Linear quantisation in torchao's words, one scale per channel or group."""
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{quant.bits}"),
        granularity=PerGroup(quant.group_size) if quant.group_size else PerAxis(0),
        mapping_type=MappingType.SYMMETRIC if quant.symmetric else MappingType.ASYMMETRIC,
    )


def linear_tensor(weight: torch.Tensor, quant: Quant) -> Any:
    """A weight [N, K] under torchao's linear quantisation, at any granularity.

    torchao has no integer tensor with one scale for all: that is one whose channels' scales are
    equal.
    """
    from torchao.quantization import IntxUnpackedToInt8Tensor, MappingType
    from torchao.quantization.quant_primitives import choose_qparams_affine

    mapping = MappingType.SYMMETRIC if quant.symmetric else MappingType.ASYMMETRIC
    target = getattr(torch, f"int{quant.bits}")
    block: Any = (1, quant.group_size or weight.shape[1])
    if quant.granularity != "tensor":
        return IntxUnpackedToInt8Tensor.from_hp(weight, block, target, mapping_type=mapping)
    top = 2 ** (quant.bits - 1)
    scale, zero = choose_qparams_affine(
        weight,
        mapping,
        cast("Any", tuple(weight.shape)),
        target_dtype=torch.int8,
        quant_min=-top,
        quant_max=top - 1,
        zero_point_dtype=torch.int8,
    )
    rows = (weight.shape[0], 1)
    return IntxUnpackedToInt8Tensor.from_hp(
        weight,
        block,
        target,
        mapping_type=mapping,
        intx_choose_qparams_algorithm=None,
        custom_scale=scale.reshape(1, 1).expand(rows).contiguous(),
        custom_zero_point=zero.reshape(1, 1).expand(rows).contiguous(),
    )


def check_unpacking(spec: ModelSpec, device: str) -> None:
    """Have quanto build what unpacks its fewer bits: it does so when that is first used.

    Raises:
        ModelError: it could not.
    """
    try:
        import_module("optimum.quanto")  # registers the operation
        torch.ops.quanto.unpack(torch.zeros(8, dtype=torch.uint8, device=device), 4)
    except Exception as error:  # of the compiler, of ninja, of a folder that cannot be written
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        raise ModelError(
            f"{spec.path}: quanto compiles what unpacks fewer than 8 bits, and failed ({reason}); "
            "install a C++ compiler and ninja, or use method: hqq or torchao."
        ) from error


def outside_inference(forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A layer's forward pass for tensors that torch cannot detach in its inference mode."""

    def run(x: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return forward(x)

    return run


def layers(model: Any, quant: Quant) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers that a method quantises: all but the skipped, by name."""
    ends = tuple(skipped(quant))
    head = model.get_output_embeddings() if "lm_head" in quant.skip else None
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and not name.endswith(ends):
            yield name, module


def apply(spec: ModelSpec, model: Any, quant: Quant) -> None:
    """Quantise the linear layers of a loaded model where they are.

    Raises:
        ModelError: groups that do not fill the rows of a layer.
    """
    for name, module in list(layers(model, quant)):
        check_group(spec, name, module, quant)
        if quant.method == "hqq":
            model.set_submodule(name, _hqq(module, quant))
        else:
            weight = linear_tensor(module.weight.detach(), quant)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)


def check_head(spec: ModelSpec, model: Any, quant: Quant) -> None:
    """Raise a ModelError where the head is to be quantised and is the input embedding itself."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    tied = weight is not None and weight is model.get_input_embeddings().weight
    if tied and "lm_head" not in quant.skip:
        raise ModelError(
            f"{spec.path}: its output embedding is tied to the input embedding, which is not "
            "quantised; leave lm_head among skip:."
        )


def check_group(spec: ModelSpec, name: str, module: torch.nn.Linear, quant: Quant) -> None:
    """Raise a ModelError where groups do not fill the rows of a layer."""
    width = module.weight.shape[1]
    if width % (quant.group_size or width):
        raise ModelError(
            f"{spec.path}: quant: group_size {quant.group_size} does not divide the {width} inputs "
            f"of {name}; choose a divisor, or skip: it."
        )


def _hqq(module: torch.nn.Linear, quant: Quant) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings: Any = BaseQuantizeConfig(
        nbits=quant.bits, group_size=cast("Any", quant.group_size), axis=1
    )
    return HQQLinear(
        module,
        settings,
        compute_dtype=module.weight.dtype,
        device=str(module.weight.device),
    )
