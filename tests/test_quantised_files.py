"""Packed weights: files written here by hand from the definitions of their formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ceval_suite.backends import anatomy, loading, requantise
from ceval_suite.model_spec import ModelSpec, Quant
from tests.quantising import as_gguf, by_hand, furthest, have, quiet, read, scores

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # bitsandbytes says for each layer that it multiplies in float16
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]

EXACT = 1e-4
"""What the order of float32 sums may change."""

PARAMETERS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64) + 64 + 2 * 2000 * 64
"""Numbers of the tiny model: two blocks and their norms, the last norm, embedding and head."""


# compressed-tensors


def packed(steps: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers [N, K] side by side in 32-bit words [N, K * bits / 32], the first one lowest."""
    offset = steps.numpy().astype(np.int64) + 2 ** (bits - 1)
    words = offset.reshape(len(offset), -1, 32 // bits)
    word = sum(words[:, :, i] << (bits * i) for i in range(32 // bits))
    return torch.from_numpy(word.astype(np.uint32).view(np.int32).copy())


def quantised(
    weight: torch.Tensor, bits: int, group: int | None, symmetric: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of one layer, and the weights that they stand for."""
    top = 2 ** (bits - 1)
    some = weight.reshape(len(weight), -1, group or weight.shape[1])
    low, high = some.amin(2).clamp(max=0), some.amax(2).clamp(min=0)
    scale = torch.maximum(-low, high) / (top - 1) if symmetric else (high - low) / (2 * top - 1)
    zero = torch.zeros_like(low) if symmetric else (-top - low / scale).round()
    steps = (some / scale[:, :, None]).round() + zero[:, :, None]
    steps = steps.clamp(-top, top - 1)
    values = (steps - zero[:, :, None]) * scale[:, :, None]
    tensors = {
        "weight_packed": packed(steps.reshape(weight.shape), bits),
        "weight_scale": scale.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:  # zero points are packed down the rows
        tensors["weight_zero_point"] = packed(zero.T, bits).T.contiguous()
    return tensors, values.reshape(weight.shape)


def scheme(targets: list[str], bits: int, group: int | None, symmetric: bool) -> dict[str, Any]:
    numbers = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False}
    how = {"strategy": "group" if group else "channel", "group_size": group}
    return {"targets": targets, "weights": numbers | how, "format": "pack-quantized"}


Way = tuple[int, int | None, bool]


def write(folder: Path, out: Path, ways: dict[str, Way]) -> dict[str, torch.Tensor]:
    """A checkpoint whose layers of these targets are packed; returns what the layers stand for."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    state = load_file(folder / "model.safetensors")
    values: dict[str, torch.Tensor] = {}
    for target, way in ways.items():
        for key in [k for k in state if target in k and k.endswith("_proj.weight")]:
            tensors, values[key] = quantised(state.pop(key), *way)
            state |= {key.removesuffix("weight") + part: t for part, t in tensors.items()}
    save_file(state, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    groups = {
        f"group_{i}": scheme([f"re:.*{t}.*"], *way) for i, (t, way) in enumerate(ways.items())
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    (out / "config.json").write_text(json.dumps(config))
    return values


WAYS: dict[str, dict[str, Way]] = {
    "W8A16 channel": {"proj": (8, None, True)},
    "W8A16 groups": {"proj": (8, 32, True)},
    "W4A16 channel": {"proj": (4, None, True)},
    "W4A16 groups": {"proj": (4, 32, True)},
    "W4A16 groups asymmetric": {"proj": (4, 32, False)},
    "W8A16 attention and W4A16 mlp": {"self_attn": (8, None, True), "mlp": (4, 32, True)},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WAYS)
def test_compressed_tensors_written_by_hand_score_as_their_unpacked_weights(
    tiny_model: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    have("compressed_tensors")
    values = write(tiny_model, tmp_path / "packed", WAYS[name])
    spec = ModelSpec(path=str(tmp_path / "packed"), device="cpu", dtype=dtype)
    found, told = scores(spec)
    model, tokenizer = read(tiny_model, dtype=getattr(torch, dtype))
    for key, value in values.items():
        model.get_parameter(key).data = value.to(model.dtype)
    assert len(values) == 14
    assert furthest(found, by_hand(model, tokenizer)) <= (EXACT if dtype == "float32" else 0.3)
    assert told["quantisation"]["method"] == "compressed-tensors"
    assert told["quantisation"]["modules"] == 14
    assert told["quantisation"]["bits"] in {way[0] for way in WAYS[name].values()}
    assert told["parameters"] == PARAMETERS


# hqq


@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_hqq_scores_as_plain_layers_of_what_it_stands_for(
    tiny_model: Path, bits: int, group: int | None
) -> None:
    have("hqq")
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer

    size = {"granularity": "group", "group_size": group} if group else {}
    quant = Quant(method="hqq", bits=bits, **size)  # type: ignore[arg-type]
    found, about = scores(ModelSpec(path=str(tiny_model), quant=quant, device="cpu"))
    model, tokenizer = read(tiny_model)
    how = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)["weight_quant_params"]
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            numbers, meta = Quantizer.quantize(weight, device="cpu", bitpack=False, **how)
            steps = numbers.reshape(-1, group or weight.shape[1]).float()
            assert float(steps.max()) == 2**bits - 1
            values = (steps - meta["zero"]) * meta["scale"]
            module.weight.data = values.reshape(weight.shape)
    assert furthest(found, by_hand(model, tokenizer)) <= EXACT
    assert about["quantisation"]["bits"] == bits
    assert about["quantisation"]["type"] == f"int{bits}"
    assert about["parameters"] == PARAMETERS


# quanto


@pytest.mark.skipif(not shutil.which("ninja"), reason="quanto compiles its unpacking with ninja")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 2])
def test_quanto_of_few_bits_scores_as_plain_layers_of_what_it_stands_for(
    tiny_model: Path, bits: int, dtype: str
) -> None:
    have("optimum.quanto")
    quant = Quant(method="quanto", bits=bits)  # type: ignore[arg-type]
    spec = ModelSpec(path=str(tiny_model), quant=quant, device="cpu", dtype=dtype)
    found, about = scores(spec)
    model, tokenizer = read(tiny_model, dtype=getattr(torch, dtype))
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            some = weight.reshape(-1, weight.shape[1])
            # asymmetric steps from the least to the largest of a group of 128, here a whole row
            low, high = some.amin(1, keepdim=True), some.amax(1, keepdim=True)
            scale = (high - low) / (2**bits - 1)
            steps = ((some - low) / scale).round().clamp(0, 2**bits - 1)
            module.weight.data = (steps * scale + low).reshape(weight.shape).to(weight.dtype)
    assert furthest(found, by_hand(model, tokenizer)) <= (1e-2 if dtype == "float32" else 0.3)
    assert about["quantisation"]["modules"] == 14
    assert about["quantisation"]["bits"] == bits
    assert about["parameters"] == PARAMETERS


def test_quanto_without_a_compiler_says_what_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    have("optimum.quanto")
    code = (
        "import sys\n"
        "from ceval_suite.backends import loading\n"
        "from ceval_suite.model_spec import ModelSpec, Quant\n"
        "quant = Quant(method='quanto', bits=4)\n"
        "try:\n"
        "    loading.load(ModelSpec(path=sys.argv[1], quant=quant, device='cpu'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model)],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.strip().splitlines()[-1]
    assert said.startswith(f"ModelError {tiny_model}: quanto compiles")
    assert "install a C++ compiler and ninja" in said


# GGUF


def sixths(steps: Any, base: Any) -> Any:
    """6-bit scales (first four, last four) and minima of a superblock in twelve bytes."""
    scales, minima = steps.astype(np.uint8), base.astype(np.uint8)
    return np.concatenate(
        [
            scales[:, :4] | (scales[:, 4:] >> 4) << 6,
            minima[:, :4] | (minima[:, 4:] >> 4) << 6,
            (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4,
        ],
        axis=1,
    )


def q4_k(matrix: Any) -> tuple[Any, Any]:
    """Blocks of 256 weights in 144 bytes, and their values: 8 groups of 32 with scale, minimum."""
    some = matrix.reshape(-1, 8, 32)
    low = np.maximum(-some.min(2), 0)
    width = (some.max(2) + low) / 15
    d, least = ((x.max(1) / 63).astype(np.float16) for x in (width, low))
    wide, narrow = d.astype(np.float32)[:, None], least.astype(np.float32)[:, None]
    scales, minima = np.rint(width / wide).clip(1, 63), np.rint(low / narrow).clip(0, 63)
    step, from_ = (wide * scales)[:, :, None], (narrow * minima)[:, :, None]
    steps = np.rint((some + from_) / step).clip(0, 15)
    values = (steps * step - from_).reshape(matrix.shape)
    pairs = steps.astype(np.uint8).reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    ends = [x.view(np.uint8).reshape(-1, 2) for x in (d, least)]
    block = np.concatenate([*ends, sixths(scales, minima), nibbles], axis=1)
    return block.reshape(len(matrix), -1), values


def q6_k(matrix: Any) -> tuple[Any, Any]:
    """Blocks of 256 weights in 210 bytes, and their values: 16 groups of 16 with 8-bit scales."""
    some = matrix.reshape(-1, 16, 16)
    width = np.abs(some).max(2) / 31
    d = (width.max(1) / 127).astype(np.float16)
    wide = d.astype(np.float32)[:, None]
    scales = np.rint(width / wide).clip(1, 127)
    step = (wide * scales)[:, :, None]
    steps = np.rint(some / step).clip(-32, 31)
    values = (steps * step).reshape(matrix.shape)
    # half a block: 32 columns of four quarters; the low bits of two share a byte, the high of all
    parts = (steps + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = parts & 15, parts >> 4
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    block = np.concatenate(
        [
            nibbles.reshape(-1, 128),
            upper.reshape(-1, 64),
            scales.astype(np.int8).view(np.uint8),
            d.view(np.uint8).reshape(-1, 2),
        ],
        axis=1,
    )
    return block.reshape(len(matrix), -1), values


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_gguf_superblocks_written_by_hand_score_as_their_values(
    tiny_llama: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    import gguf

    folder = tiny_llama(
        "wide-llama",
        seed=1,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        initializer_range=0.05,
    )
    made = {"Q4_K": q4_k, "Q6_K": q6_k}[kind]
    own = gguf.GGMLQuantizationType[kind]
    as_gguf(folder, tmp_path / "tiny.gguf", own, lambda matrix: made(matrix)[0])
    spec = ModelSpec(path=str(tmp_path / "tiny.gguf"), tokenizer=str(folder), device="cpu")
    found, told = scores(spec)
    model, tokenizer = read(folder)
    plain = by_hand(model, tokenizer)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.from_numpy(made(parameter.detach().numpy())[1])
    assert furthest(found, by_hand(model, tokenizer)) <= 1e-3
    assert furthest(found, plain) > 1e-2
    assert told["parameters"] == sum(p.numel() for p in model.parameters())


# what run.json and show say of their size


QUANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bitsandbytes int8": ("bitsandbytes", {"method": "bitsandbytes"}),
    "bitsandbytes nf4": ("bitsandbytes", {"method": "bitsandbytes", "bits": 4}),
    "torchao int8": ("torchao", {"method": "torchao"}),
    "torchao int8 tensor": ("torchao", {"method": "torchao", "granularity": "tensor"}),
    "torchao int4": ("torchao", {"method": "torchao", "bits": 4}),
    "quanto int8": ("optimum.quanto", {"method": "quanto"}),
    "quanto float8": ("optimum.quanto", {"method": "quanto", "type": "float8"}),
}


@pytest.mark.parametrize("name", QUANTS)
def test_packed_weights_count_as_the_parameters_that_they_are(tiny_model: Path, name: str) -> None:
    package, line = QUANTS[name]
    have(package)
    spec = ModelSpec(path=str(tiny_model), quant=Quant(**line), device="cpu")
    about = loading.load(spec).about
    linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    bits = line.get("bits", 8)
    assert about["parameters"] == PARAMETERS
    # the rest is float32; scales take less than a tenth, at 4 bits in groups less than a third
    rest = 4 * (PARAMETERS - linear) + 4096
    assert linear * bits // 8 + 4 * (PARAMETERS - linear) <= about["bytes"]
    assert about["bytes"] <= linear * bits // 8 * 1.35 + rest


def test_an_unquantised_model_counts_every_number_once(
    tiny_model: Path, tiny_llama: Callable[..., Path]
) -> None:
    found = loading.load(ModelSpec(path=str(tiny_model), device="cpu", dtype="bfloat16")).about
    buffers = 4 * 8  # rotary frequencies, once for all layers
    assert found["parameters"] == PARAMETERS
    assert 2 * PARAMETERS <= found["bytes"] <= 2 * PARAMETERS + 2 * buffers
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    tied = tiny_llama("tied-llama", seed=3, tie_word_embeddings=True, **shape)
    about = loading.load(ModelSpec(path=str(tied), device="cpu")).about
    assert about["parameters"] == PARAMETERS - 2000 * 64


@pytest.mark.parametrize("kind", ["torchao 8", "torchao 4", "bitsandbytes 8", "bitsandbytes 4"])
def test_show_counts_packed_files_as_loading_does(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    method, bits = kind.split()
    have("torchao", "compressed_tensors", "bitsandbytes")
    out = tmp_path / "out"
    if method == "torchao":
        quant = Quant(method="torchao", bits=int(bits))  # type: ignore[arg-type]
        requantise.quantize("t", ModelSpec(path=str(tiny_model)), quant, out, quiet)
    else:
        quant = Quant(method="bitsandbytes", bits=int(bits))  # type: ignore[arg-type]
        loaded = loading.load(ModelSpec(path=str(tiny_model), quant=quant, device="cpu"))
        loaded.model.save_pretrained(out)
        loaded.tokenizer.save_pretrained(out)
    found = anatomy.describe("packed", ModelSpec(path=str(out)))
    assert found["parameters"] == PARAMETERS
    assert found["bytes"] < 0.9 * (tiny_model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("method", "shape"), [("gptq", [64 * 4 // 32, 128]), ("awq", [64, 128 * 4 // 32])]
)
def test_show_counts_what_gptq_and_awq_pack(
    tiny_model: Path, tmp_path: Path, method: str, shape: list[int]
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "packed")
    state = load_file(tiny_model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    del state[f"{name}.weight"]
    state[f"{name}.qweight"] = torch.zeros(shape, dtype=torch.int32)
    state[f"{name}.qzeros"] = torch.zeros([1, 16], dtype=torch.int32)
    state[f"{name}.scales"] = torch.zeros([1, 128], dtype=torch.float16)
    save_file(state, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    config = json.loads((tiny_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 64}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    found = anatomy.describe("packed", ModelSpec(path=str(tmp_path / "packed")))
    assert found["parameters"] == PARAMETERS
