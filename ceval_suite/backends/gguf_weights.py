"""A GGUF file as plain weights on disk: dequantised one tensor after the other.

transformers reads all tensors of such a file before it builds a model, and holds a model and a copy
of it while it writes. Where one tensor of the file is one of the model (LLaMA's kind and most
others) its own table of names and its own order of rows are used here tensor by tensor; files of
other kinds go the long way.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import rewriting

WEIGHTS = "model.safetensors"


def write_dense(file: Path, folder: Path, dtype: torch.dtype) -> bool:
    """Write config.json and weights of a GGUF file to a folder; says whether that was in parts.

    The weights equal those that transformers reads, bit for bit, in `dtype`.
    """
    # the reader draws a bar of its own that no setting turns off
    with contextlib.redirect_stderr(io.StringIO()):
        if _in_parts(file, folder, dtype):
            return True
        from transformers import AutoModelForCausalLM

        read: Any = AutoModelForCausalLM.from_pretrained
        model = read(file.parent, gguf_file=file.name, dtype=dtype)
        dense_config(model)
        model.save_pretrained(folder)
        return False


def dense_config(model: Any) -> None:
    """Have a model that was read from GGUF blocks saved as the plain weights that it holds."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None


def _in_parts(file: Path, folder: Path, dtype: torch.dtype) -> bool:
    from gguf import GGUFReader, dequantize
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as theirs

    reader: Any = GGUFReader(str(file))
    kind = str(reader.fields["general.architecture"].contents())
    simple = (theirs.TensorProcessor, theirs.LlamaTensorProcessor)
    maker: Any = theirs.TENSOR_PROCESSORS.get(kind, theirs.TensorProcessor)
    if maker not in simple:
        return False
    config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.dtype = dtype
    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model = build(config)
    processor = maker(config=config.to_dict())
    names: Mapping[str, str] = theirs.get_gguf_hf_weights_map(model, processor)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}
    parts = {names[t.name]: t for t in reader.tensors if names.get(t.name) in wanted}
    if parts.keys() != wanted.keys() or len(set(names.values())) != len(names):
        return False

    def one(name: str) -> torch.Tensor:
        tensor = parts[name]
        numbers = dequantize(tensor.data, tensor.tensor_type)
        # the published table of names knows no other argument of these two kinds
        found = processor.process(weights=numbers, name=tensor.name).weights
        made = torch.from_numpy(found.copy()).to(dtype)
        if tuple(made.shape) != wanted[name]:
            made = made.reshape(wanted[name])
        return made

    folder.mkdir(parents=True, exist_ok=True)
    rewriting.write_whole(folder / WEIGHTS, wanted, dtype, one)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    return True
