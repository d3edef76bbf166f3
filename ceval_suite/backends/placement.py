"""Where a model's weights go: one device, or several for a model larger than one."""

from __future__ import annotations

import os
from typing import Any

import torch

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
            processes and GPUs it needs.
    """
    given = [key for key in ("device", "device_map", "tp_plan") if getattr(spec, key) is not None]
    if len(given) > 1:
        raise ModelError(f"{spec.path}: {' and '.join(given)} exclude each other; give one.")
    if spec.tp_plan is not None:
        if "RANK" not in os.environ or torch.cuda.device_count() < 2:
            raise ModelError(
                f"{spec.path}: tp_plan needs one process for each of several GPUs (torchrun "
                "--nproc-per-node N -m ceval_suite run …); on one process give device_map: auto."
            )
        return {"tp_plan": spec.tp_plan}
    return {} if spec.device_map is None else {"device_map": spec.device_map}


def input_device(model: Any) -> torch.device:
    """Where token ids must be: on the embedding's device, or where it is brought when used."""
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        return torch.device(embedding.weight.device)
    found = getattr(getattr(embedding, "_hf_hook", None), "execution_device", "cpu")
    return torch.device("cuda", found) if isinstance(found, int) else torch.device(found)


def in_one_piece(weight: torch.Tensor) -> bool:
    """Whether a weight lies whole on a device: neither offloaded nor a share among several."""
    return not weight.is_meta and not hasattr(weight, "device_mesh")


def described(model: Any) -> dict[str, Any]:
    """Which part of the model lies where, for models on several devices."""
    found = getattr(model, "hf_device_map", None) or {}
    places = {str(place): 0 for place in found.values()}
    for place in found.values():
        places[str(place)] += 1
    return {"device_map": places} if len(places) > 1 else {}
