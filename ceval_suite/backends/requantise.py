"""`model quantize`: a weight-only checkpoint on disk, with a note of what it was made from.

Eight bits are written as torchao's own tensors. torchao keeps four bits in a byte each, which
would be no smaller: those are computed by torchao too, but packed into compressed-tensors' format.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ceval_suite import __version__
from ceval_suite.backends import own_code, quantise, quantisers, weights
from ceval_suite.backends.base import Say
from ceval_suite.backends.loading import load
from ceval_suite.backends.sources import TOKENIZER_FILES, identity, resolve
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec, Quant
from ceval_suite.records import write_json

PROVENANCE = "provenance.json"


def quantize(name: str, spec: ModelSpec, quant: Quant, out: Path, say: Say) -> dict[str, Any]:
    """Write `spec` with its linear layers quantised to the directory `out`.

    The result is loaded again and compared, layer by layer, with what was meant to be written.

    Returns:
        The content of the provenance file.

    Raises:
        ModelError: not torchao, `out` is in use, or the result does not read back.
    """
    if quant.method != "torchao":
        raise ModelError(
            f"model quantize writes with torchao; {quant.method} quantises while a model is "
            "loaded: name it as quant: in models.yaml."
        )
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: not an empty directory; give another --out.")
    dense = spec.model_copy(update={"quant": None, "device": "cpu", "dtype": _stored(spec)})
    loaded = load(dense)
    if "quantisation" in loaded.about:
        raise ModelError(
            f"{spec.path}: its weights are quantised already "
            f"({loaded.about['quantisation']['method']}); give the unquantised checkpoint."
        )
    model = loaded.model
    quantise.dense_config(model)
    before = weights.model_size(model)
    chosen = dict(quantisers.layers(model, quant))
    made = {layer: _tensor(spec, layer, chosen[layer], quant) for layer in chosen}
    if not made:
        raise ModelError(f"{spec.path}: this model has no linear layer to quantise.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as partial:
        folder = Path(partial)
        (_write_torchao if quant.bits == 8 else _write_packed)(model, made, quant, folder)
        _tokenizer(dense, loaded.tokenizer, folder)
        again = load(ModelSpec(path=partial, device="cpu", dtype=dense.dtype))
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
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            shutil.move(file, out / file.name)
    say(f"{len(made)} layers quantised to {quant.bits} bits, {out}")
    return about


def _stored(spec: ModelSpec) -> str:
    """The dtype to keep: the spec's, else the checkpoint's own."""
    from transformers import AutoConfig

    path = resolve(spec)
    if spec.dtype != "auto" or path.is_file():
        return spec.dtype if spec.dtype != "auto" else "float32"
    config = AutoConfig.from_pretrained(path, **own_code.options(spec))
    return str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")


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
    model.save_pretrained(folder)


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
    model.save_pretrained(folder, state_dict=state)


def _kept(model: Any, made: Mapping[str, Any]) -> list[str]:
    """Linear layers that stay as they are."""
    linear = (n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return [name for name in linear if name not in made]


def _tokenizer(spec: ModelSpec, tokenizer: Any, folder: Path) -> None:
    source = Path(spec.tokenizer).expanduser() if spec.tokenizer else resolve(spec)
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not files:  # a GGUF file, or a tokenizer from the hub
        tokenizer.save_pretrained(folder)
    for file in [*files, *source.glob("*.tiktoken")]:
        shutil.copy(file, folder / file.name)


def _same(made: Mapping[str, Any], model: Any, out: Path) -> None:
    for name, tensor in made.items():
        meant = tensor.dequantize().float()
        found = weights.values(model.get_submodule(name)).float()
        # a half-precision product may be rounded in another order
        near = torch.finfo(tensor.dtype).eps * float(meant.abs().max()) * 2
        if not torch.allclose(found, meant, rtol=0, atol=near):
            raise ModelError(f"{out}: {name} does not read back as it was written; report this.")
