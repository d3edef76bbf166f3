"""Where a model's weights go: one device, or several for a model larger than one."""

from __future__ import annotations

import os
from typing import Any

import torch

from ceval_suite.backends import ranks
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec


def device(spec: ModelSpec) -> str:
    """The device that a spec names, or the best there is; of a map, the kind that computes."""
    if spec.device_map is not None:
        places = spec.device_map.values() if isinstance(spec.device_map, dict) else ()
        if spec.device_map == "cpu" or (places and set(places) <= {"cpu", "disk"}):
            return "cpu"
    if spec.device:
        return spec.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def spread(spec: ModelSpec) -> dict[str, Any]:
    """What from_pretrained is told of several devices; nothing for a model on one.

    Raises:
        ModelError: a device beside a map, both ways at once, or tensor parallelism without the
            processes and GPUs it needs, or with what is not made for it.
    """
    one = "device" if spec.tp_plan is None else "tp_plan"
    given = [key for key in (one, "device_map") if getattr(spec, key) is not None]
    if len(given) > 1:
        raise ModelError(f"{spec.path}: {' and '.join(given)} exclude each other; give one.")
    if spec.tp_plan is not None:
        return _parallel(spec)
    return {} if spec.device_map is None else {"device_map": spec.device_map}


def _parallel(spec: ModelSpec) -> dict[str, Any]:
    if ranks.count() < 2:
        raise ModelError(
            f"{spec.path}: tp_plan needs one process for each of several GPUs (torchrun "
            "--nproc-per-node N -m ceval_suite run …); on one process give device_map: auto."
        )
    for key in ("quant", "adapters", "grow_embeddings"):
        if getattr(spec, key):
            raise ModelError(
                f"{spec.path}: {key} cannot be applied to shares of weights; drop tp_plan, or "
                "write a checkpoint first ('ceval-suite model merge' or 'model quantize')."
            )
    found = torch.accelerator.current_accelerator()
    kind = "cpu" if found is None else found.type
    if device(spec) != kind:
        raise ModelError(
            f"{spec.path}: device {device(spec)}, where tp_plan takes the {kind} devices of this "
            "machine; drop device, or hide them (CUDA_VISIBLE_DEVICES= for device: cpu)."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "cuda" and torch.cuda.device_count() < here:
        raise ModelError(
            f"{spec.path}: {here} processes on {torch.cuda.device_count()} GPUs; give torchrun "
            "--nproc-per-node as many as there are."
        )
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan=spec.tp_plan)}
    except (ImportError, TypeError):  # an older transformers
        return {"tp_plan": spec.tp_plan}


def check_heads(spec: ModelSpec, config: Any) -> None:
    """Every process gets whole heads.

    Raises:
        ModelError: it would not.
    """
    config = getattr(config, "text_config", None) or config
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shared = any(key.endswith("k_proj") and way == "colwise" for key, way in plan.items())
    if shared and heads % ranks.count():
        raise ModelError(
            f"{spec.path}: {heads} heads of keys and values cannot be shared evenly by "
            f"{ranks.count()} processes; start a number that divides them."
        )


def settle(spec: ModelSpec, model: Any) -> None:
    """What a model in shares needs beside transformers' plan: its output embedding whole.

    So logits are computed in float32 wherever they are read, as on one device, and none travel.

    Raises:
        ModelError: nothing is shared: transformers has no plan for the architecture.
    """
    if all(in_one_piece(weight) for weight in model.parameters()):
        raise ModelError(
            f"{spec.path}: transformers has no tensor-parallel plan for {type(model).__name__}; "
            "give device_map: auto."
        )
    head = model.get_output_embeddings()
    if head is None or in_one_piece(head.weight):
        return
    rows, width = head.weight.shape
    made = torch.nn.Linear(width, rows, bias=head.bias is not None, device="meta")
    weight = whole(head.weight)
    if head.weight is model.get_input_embeddings().weight:
        del made.weight  # a copy of rows that are counted already
        made.register_buffer("weight", weight, persistent=False)
    else:
        made.weight = torch.nn.Parameter(weight, requires_grad=False)
    if head.bias is not None:
        made.bias = torch.nn.Parameter(whole(head.bias), requires_grad=False)
    model.set_output_embeddings(made)


def input_device(model: Any) -> torch.device:
    """Where token ids must be: on the embedding's device, or where it is brought when used."""
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        return torch.device(embedding.weight.device)
    found = getattr(getattr(embedding, "_hf_hook", None), "execution_device", "cpu")
    return torch.device("cuda", found) if isinstance(found, int) else torch.device(found)


def dtype(model: Any) -> torch.dtype:
    """The dtype of a model's weights, by the first that is a number."""
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def in_one_piece(weight: torch.Tensor) -> bool:
    """Whether a weight lies whole on a device: neither offloaded nor a share among several."""
    return not weight.is_meta and not hasattr(weight, "device_mesh")


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight without its gradient; of one in shares, all of it: every process must ask."""
    weight = weight.detach()
    share: Any = weight
    return share.full_tensor() if hasattr(weight, "device_mesh") else weight


def described(model: Any) -> dict[str, Any]:
    """Which part of the model lies where, for models on several devices."""
    shared = [weight for weight in model.parameters() if hasattr(weight, "device_mesh")]
    if shared:
        own = sum(w.to_local().numel() * w.element_size() for w in shared)
        return {"tensor_parallel": {"processes": ranks.count(), "own_shared_bytes": own}}
    found = getattr(model, "hf_device_map", None) or {}
    places = {str(place): 0 for place in found.values()}
    for place in found.values():
        places[str(place)] += 1
    return {"device_map": places} if len(places) > 1 else {}
