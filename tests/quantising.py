"""What the tests of quantised weights share: requests, oracles by hand, files written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite.backends import open_backend
from ceval_suite.model_spec import ModelSpec, Quant
from ceval_suite.schema import Request

LETTERS = ("A", "B", "C", "D")
REQUESTS = [
    Request(
        id=f"{k}", context=f"Question {k}: 下列正确的是 {'很' * k} Answer:", continuations=LETTERS
    )
    for k in range(4)
]


def have(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


def scores(spec: ModelSpec) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Logits of the letters by request, and what the backend says of itself."""
    backend = open_backend(spec)
    found = {reply.id: list(reply.logits) for reply in backend.ask(REQUESTS)}
    return found, backend.describe()


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any) -> dict[str, list[float]]:
    """The same, by one plain forward a request."""
    out: dict[str, list[float]] = {}
    for request in REQUESTS:
        ids = tokenizer(request.context, return_tensors="pt").input_ids
        last = model(input_ids=ids).logits[0, -1].float()
        letters = [tokenizer(request.context + c).input_ids[-1] for c in LETTERS]
        out[request.id] = last[letters].tolist()
    return out


def furthest(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    assert one.keys() == other.keys()
    return max(abs(a - b) for k in one for a, b in zip(one[k], other[k], strict=True))


def read(folder: Path, **options: Any) -> tuple[Any, Any]:
    """A checkpoint as transformers reads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options.setdefault("dtype", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def linear(weight: torch.Tensor, quant: Quant) -> torch.Tensor:
    """Linear quantisation and back, from its definition; scales as torchao chooses them."""
    top = 2 ** (quant.bits - 1)
    shape = {
        "tensor": (1, weight.numel()),
        "channel": (weight.shape[0], weight.shape[1]),
        "group": (-1, quant.group_size or 1),
    }[quant.granularity]
    some = weight.reshape(shape)
    low = some.amin(1, keepdim=True).clamp(max=0)
    high = some.amax(1, keepdim=True).clamp(min=0)
    if quant.symmetric:
        scale, zero = torch.maximum(-low, high) / ((2 * top - 1) / 2), torch.zeros_like(low)
    else:
        scale = (high - low) / (2 * top - 1)
        zero = (-top - (low / scale).round()).clamp(-top, top - 1)
    # an extreme lies half-way between two steps: which one it is, the last bit decides
    steps = ((some * (1.0 / scale)).round() + zero).clamp(-top, top - 1)
    return ((steps - zero) * scale).reshape(weight.shape)


def quiet(_line: str) -> None:
    pass


def as_gguf(folder: Path, file: Path, kind: Any, pack: Callable[[Any], Any] | None = None) -> None:
    """A Llama checkpoint as a GGUF file whose matrices are of one quantisation type.

    `pack` makes the bytes of a matrix's blocks where the gguf package cannot.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for key, found in load_file(folder / "model.safetensors").items():
        value = found
        if "q_proj" in key or "k_proj" in key:  # GGUF pairs the halves of a head's rotation
            n = heads if "q_proj" in key else kv
            value = value.reshape(n, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        name = names.get_name(key, try_suffixes=(".weight",))
        own = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        matrix = pack is not None and value.ndim == 2
        made = pack(value) if matrix else gguf.quants.quantize(value.copy(), own)
        writer.add_tensor(name, made, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
