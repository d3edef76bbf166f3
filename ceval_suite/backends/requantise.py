"""`model quantize`: a weight-only checkpoint on disk, with a note of what it was made from.

Eight bits are written as torchao's own tensors. torchao keeps four bits in a byte each, which
would be no smaller: those are computed by torchao too, but packed into compressed-tensors' format.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ceval_suite import __version__
from ceval_suite.backends import (
    adapter_files,
    checkpoint,
    gguf_weights,
    quantise,
    quantisers,
    weights,
)
from ceval_suite.backends.base import Say
from ceval_suite.backends.loading import load
from ceval_suite.backends.sources import TOKENIZER_FILES, identity, resolve, tokenizer_place
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec, Quant
from ceval_suite.records import write_json

PROVENANCE = "provenance.json"

SHARD = "4GB"
"""Largest file of weights."""

WRITTEN: dict[str, Any] = {
    **dict.fromkeys(("revision", "sha256", "tokenizer", "tokenizer_revision", "max_length")),
    "adapters": [],
    "grow_embeddings": False,
}
"""What of a spec the written checkpoint needs no longer."""


def quantize(name: str, spec: ModelSpec, quant: Quant, out: Path, say: Say) -> dict[str, Any]:
    """Write `spec` with its linear layers quantised to the directory `out`.

    The directory appears when it is whole: the result is written under another name, loaded again
    and compared, layer by layer, with what was meant to be written.

    Returns:
        The content of the provenance file.

    Raises:
        ModelError: not torchao, `out` is in use, weights that are quantised already, an adapter
            that cannot be merged, a tied head, or a result that does not read back.
    """
    if quant.method != "torchao":
        raise ModelError(
            f"model quantize writes with torchao; {quant.method} quantises while a model is "
            "loaded: name it as quant: in models.yaml."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: not an empty directory; give another --out.")
    dense = _dense(spec)
    loaded = load(dense)
    if not all(one["merged"] for one in loaded.about["adapters_applied"]):
        raise ModelError(
            f"{spec.path}: its adapters stay attached; write the merged checkpoint with "
            "'ceval-suite model merge' and quantise that."
        )
    model = loaded.model
    quantisers.check_head(spec, model, quant)
    gguf_weights.dense_config(model)
    before = weights.model_size(model)
    chosen = dict(quantisers.layers(model, quant))
    made = {layer: _tensor(spec, layer, chosen[layer], quant) for layer in chosen}
    if not made:
        raise ModelError(f"{spec.path}: this model has no linear layer to quantise.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as partial:
        folder = Path(partial) / "quantised"
        generation = _generation(model, resolve(spec))
        (_write_torchao if quant.bits == 8 else _write_packed)(model, made, quant, folder)
        _copy(dense, loaded.tokenizer, generation, folder)
        again = load(dense.model_copy(update=WRITTEN | {"path": str(folder)}))
        _same(made, again.model, out)
        about = {
            "made_from": {"name": name, **spec.model_dump(exclude_defaults=True)},
            "identity": identity(dense, resolve(dense)),
            "quantisation": quant.model_dump(),
            "format": "torchao" if quant.bits == 8 else "compressed-tensors",
            "modules": len(made),
            "bytes": {"before": before, "after": weights.model_size(again.model)},
            "versions": {"ceval_suite": __version__, **loaded.about["versions"]},
        }
        write_json(folder / PROVENANCE, about)
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    say(f"{len(made)} layers quantised to {quant.bits} bits, {out}")
    return about


def _dense(spec: ModelSpec) -> ModelSpec:
    """The spec without quantisation, on a CPU, in the dtype that it names or is stored in."""
    file = resolve(spec) / "config.json"
    content = adapter_files.read(file) if file.is_file() else {}
    if how := content.get("quantization_config") or content.get("compression_config"):
        raise ModelError(
            f"{spec.path}: its weights are quantised already "
            f"({quantise.described(how)['method']}); give the unquantised checkpoint."
        )
    dtype = spec.dtype if spec.dtype != "auto" else checkpoint.stored_dtype(content)
    return spec.model_copy(update={"quant": None, "device": "cpu", "dtype": dtype})


def _tensor(spec: ModelSpec, name: str, module: Any, quant: Quant) -> Any:
    quantisers.check_group(spec, name, module, quant)
    return quantisers.linear_tensor(module.weight.detach(), quant)


def _write_torchao(model: Any, made: Mapping[str, Any], quant: Quant, folder: Path) -> None:
    from transformers import TorchAoConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    for name, tensor in made.items():
        model.get_submodule(name).weight = torch.nn.Parameter(tensor, requires_grad=False)
    # the configuration cannot name one scale for all: each tensor's own note says it
    config = TorchAoConfig(
        quantisers.torchao_config(quant), modules_to_not_convert=_kept(model, made)
    )
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    model.save_pretrained(folder, max_shard_size=SHARD)


def _write_packed(model: Any, made: Mapping[str, Any], quant: Quant, folder: Path) -> None:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for name, tensor in made.items():
        one = quant.granularity == "tensor"
        scale, zero = (t[:1, 0] if one else t for t in (tensor.scale, tensor.zero_point))
        del state[f"{name}.weight"]
        state[f"{name}.weight_packed"] = pack_to_int32(tensor.qdata, quant.bits)
        state[f"{name}.weight_scale"] = scale.to(model.dtype).contiguous()
        state[f"{name}.weight_shape"] = torch.tensor(tensor.shape)
        if not quant.symmetric:
            packed = zero if one else pack_to_int32(zero, quant.bits, packed_dim=0)
            state[f"{name}.weight_zero_point"] = packed.contiguous()
    numbers = {"num_bits": quant.bits, "type": "int", "symmetric": quant.symmetric}
    numbers |= {"strategy": quant.granularity, "group_size": quant.group_size, "dynamic": False}
    model.config.quantization_config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": numbers}},
        "ignore": _kept(model, made),
    }
    model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD)


def _kept(model: Any, made: Mapping[str, Any]) -> list[str]:
    """Linear layers that stay as they are."""
    linear = (n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return [name for name in linear if name not in made]


def _generation(model: Any, base: Path) -> Path | None:
    """The base's file of generation settings, which stands for what the model made of them."""
    from transformers import GenerationConfig

    file = base / "generation_config.json"
    if not file.is_file():
        return None
    # one that contradicts itself cannot be saved
    model.generation_config = GenerationConfig()
    return file


def _copy(spec: ModelSpec, tokenizer: Any, generation: Path | None, folder: Path) -> None:
    """Tokenizer, chat templates, generation settings and, where it is allowed, code."""
    base = resolve(spec)
    home = tokenizer_place(spec, base)
    if home.is_dir():
        files = [*(home / name for name in TOKENIZER_FILES), *home.glob("*.tiktoken")]
        templates = home / "additional_chat_templates"
        if templates.is_dir():
            shutil.copytree(templates, folder / templates.name)
    else:  # in a GGUF file
        files = list[Path]()
        tokenizer.save_pretrained(folder)
    files += [generation] if generation else []
    files += base.glob("*.py") if spec.trust_remote_code else []
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _same(made: Mapping[str, Any], model: Any, out: Path) -> None:
    for name, tensor in made.items():
        meant = tensor.dequantize().float()
        found = weights.values(model.get_submodule(name)).float()
        # a half-precision product may be rounded in another order
        near = torch.finfo(tensor.dtype).eps * float(meant.abs().max()) * 2
        if not torch.allclose(found, meant, rtol=0, atol=near):
            raise ModelError(f"{out}: {name} does not read back as it was written; report this.")
