"""Four-bit checkpoints as GPTQ and AWQ store them, and the dense weights that they stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours AWQ's kernels expect in each four bits of a number."""

CONFIGS = {
    # version 1 of the format, which stores zero points less one
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    },
}


def packed_rows(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of four bits [K, N], eight of a column in one of 32 bits: [K / 8, N]."""
    wide = numbers.to(torch.int64).unflatten(0, (-1, 8))
    return _signed(sum(wide[:, i] << (4 * i) for i in range(8)))


def packed_columns(numbers: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Numbers of four bits [K, N], eight of a row in one of 32 bits: [K, N / 8]."""
    wide = numbers.to(torch.int64).unflatten(1, (-1, 8))
    return _signed(sum(wide[:, :, place] << (4 * i) for i, place in enumerate(order)))


def _signed(numbers: object) -> torch.Tensor:
    assert isinstance(numbers, torch.Tensor)
    return torch.where(numbers >= 1 << 31, numbers - (1 << 32), numbers).to(torch.int32)


def layer(method: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a checkpoint stores of a weight [N, K], and the weight [N, K] that this stands for."""
    groups = weight.float().T.unflatten(0, (-1, GROUP))  # [G, group, N]
    if method == "gptq":
        scale = (groups.abs().amax(1) / 7).half().clamp(min=1e-4)
        zero = torch.full_like(scale, 8, dtype=torch.int64)
    else:
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scale = ((high - low) / 15).half().clamp(min=1e-4)
        zero = (-low / scale.float()).round().clamp(0, 15).to(torch.int64)
    numbers = (groups / scale.float()[:, None]).round().to(torch.int64) + zero[:, None]
    numbers = numbers.clamp(0, 15)
    dense = ((numbers - zero[:, None]) * scale.float()[:, None]).flatten(0, 1).T
    numbers = numbers.flatten(0, 1)
    if method == "gptq":
        stored = {
            "qweight": packed_rows(numbers),
            "qzeros": packed_columns(zero - 1),
            "scales": scale,
            "g_idx": (torch.arange(len(numbers)) // GROUP).to(torch.int32),
        }
    else:
        stored = {
            "qweight": packed_columns(numbers, AWQ_ORDER),
            "qzeros": packed_columns(zero, AWQ_ORDER),
            "scales": scale,
        }
    return stored, dense


def checkpoints(method: str, source: Path, packed: Path, dense: Path) -> None:
    """Write a checkpoint with its layers in four bits, and the dense one that it stands for."""
    for folder in (packed, dense):
        shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    four, plain = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            stored, plain[name] = layer(method, weight)
            plain[name] = plain[name].contiguous()
            del four[name]
            stem = name.removesuffix("weight")
            four |= {stem + key: value.contiguous() for key, value in stored.items()}
    save_file(four, packed / "model.safetensors", {"format": "pt"})
    save_file(plain, dense / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = CONFIGS[method]
    (packed / "config.json").write_text(json.dumps(config))
