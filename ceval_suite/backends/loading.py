"""ModelSpec → model and tokenizer, and proof of what they are.

Weights are read from safetensors or GGUF only; code in a checkpoint runs only when the spec
allows it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.backends.sources import identity, resolve
from ceval_suite.backends.tokenizers import load_tokenizer, unreadable
from ceval_suite.errors import ModelError
from ceval_suite.specs import ModelSpec


@dataclass
class Loaded:
    """A model in evaluation mode, its tokenizer and what is known about them."""

    model: Any
    tokenizer: Any
    dtype: Any
    max_length: int
    about: dict[str, Any]


def load(spec: ModelSpec) -> Loaded:
    """Model and tokenizer of a spec, in evaluation mode on its device.

    Raises:
        ModelError: no weights, truncated, incomplete or pickled weights, code not allowed,
            tokenizer and embedding of different sizes.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    path = resolve(spec)
    source: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    where = path
    if path.suffix == ".gguf":
        check_gguf(path)
        where, source["gguf_file"] = path.parent, path.name
    elif path.is_dir():
        _check_weights(spec, path)
    tokenizer = load_tokenizer(spec, path)
    device = _device(spec)
    try:
        # a GGUF file stores quantised blocks: it has no dtype of its own to read
        config = None if path.suffix == ".gguf" else AutoConfig.from_pretrained(where, **source)
        dtype = _dtype(spec, config, device)
        # the GGUF reader draws a bar of its own that no setting turns off
        with contextlib.redirect_stderr(io.StringIO()):
            pair = bool(getattr(config, "is_encoder_decoder", False))
            kind = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
            read: Any = kind.from_pretrained
            loaded, found = read(
                where,
                dtype=dtype,
                use_safetensors=None if spec.allow_pickle else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name and size
                **source,
            )
    except Exception as error:  # transformers raises anything here
        raise unreadable(spec, "the checkpoint", error) from error
    _check_complete(spec, found)
    model: Any = loaded.to(device).eval()
    _check_sizes(spec, model, tokenizer)
    about = {
        "name_or_path": spec.path,
        "revision": spec.revision,
        **identity(spec, path),
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "unused_tensors": len(found["unexpected_keys"]),
        "vocabulary": len(tokenizer),
        "embedding_rows": int(model.get_input_embeddings().weight.shape[0]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return Loaded(model, tokenizer, dtype, _max_length(model.config, tokenizer), about)


def peak_memory(device: Any) -> dict[str, int]:
    """Largest memory use so far in bytes: of this process, and on the GPU when there is one."""
    import torch

    out: dict[str, int] = {}
    status = Path("/proc/self/status")
    if status.is_file():
        # not ru_maxrss: that of a process starts with what its parent held when it was started
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            out["process"] = int(found[1]) * 1024
    else:
        with contextlib.suppress(ImportError):  # not on Windows
            import resource

            # counts KiB, but bytes on macOS
            unit = 1 if sys.platform == "darwin" else 1024
            out["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        out["gpu"] = int(torch.cuda.max_memory_allocated(device))
    return out


def _check_complete(spec: ModelSpec, found: dict[str, Any]) -> None:
    """transformers fills tensors that are not there, or do not fit, with random numbers."""
    for name, stored, wanted in sorted(found["mismatched_keys"])[:1]:
        raise ModelError(
            f"{spec.path}: tensor {name} is {tuple(stored)} where config.json makes it "
            f"{tuple(wanted)}; weights and config.json do not belong together."
        )
    names = sorted(found["missing_keys"])
    if names:
        raise ModelError(
            f"{spec.path}: the weights lack {len(names)} of the model's tensors ({names[0]}, …); "
            "this is not a complete checkpoint of the architecture in its config.json."
        )


def _check_weights(spec: ModelSpec, path: Path) -> None:
    """Weights that may be read, all there, each file as long as its header says."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json; give the directory that save_pretrained wrote.")
    index = path / "model.safetensors.index.json"
    files = sorted(path.glob("*.safetensors"))
    if not files:
        _refuse_weights(spec, path)
    if index.is_file():
        shards = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        for name in sorted(shards - {file.name for file in files}):
            raise ModelError(f"{path}: {name}, which {index.name} names, is missing; fetch it.")
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if 0 < length <= size - 8 else b""
        try:
            tensors = json.loads(text)
            tensors.pop("__metadata__", None)
            needed = 8 + length + max((t["data_offsets"][1] for t in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(
                f"{file}: truncated or broken safetensors header; fetch it again."
            ) from error
        if size < needed:
            raise ModelError(
                f"{file}: truncated safetensors file ({size} bytes where its header needs "
                f"{needed}); fetch it again."
            )


def _refuse_weights(spec: ModelSpec, path: Path) -> None:
    if any(path.glob("*.gguf")):
        name = sorted(path.glob("*.gguf"))[0].name
        raise ModelError(f"{path}: a directory; name the file itself, {path / name}.")
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        if spec.allow_pickle:
            return
        raise ModelError(
            f"{path}: only pickled weights (.bin), which run code when loaded; convert them to "
            "safetensors, or set allow_pickle: true in models.yaml if you trust their source."
        )
    raise ModelError(
        f"{path}: no weights (*.safetensors) in this directory; give the directory that "
        "save_pretrained wrote, or a .gguf file."
    )


def _dtype(spec: ModelSpec, config: Any, device: str) -> Any:
    import torch

    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    if device == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16


def _device(spec: ModelSpec) -> str:
    import torch

    if spec.device:
        return spec.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_sizes(spec: ModelSpec, model: Any, tokenizer: Any) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"{spec.path}: the tokenizer has {len(tokenizer)} entries but the embedding only "
            f"{rows} rows; give the tokenizer that belongs to these weights."
        )


def _max_length(config: Any, tokenizer: Any) -> int:
    config = getattr(config, "text_config", None) or config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    nominal = int(getattr(tokenizer, "model_max_length", 0) or 0)
    # transformers writes 10**30 where a tokenizer states no length
    return nominal if 0 < nominal < 10**9 else 2048


_WIDTHS = re.compile(
    r"hidden|intermediate|vocab|n_embd|embedding_size|embed_dim|ffn|inner|mlp|head|_dim|d_model|"
    r"token_id|expert|layer|rank|theta|version"
)


def lengths(config: Any) -> list[float]:
    """Numbers anywhere in a configuration that may be lengths in tokens: all but known widths."""
    if isinstance(config, dict):
        named = cast("dict[str, Any]", config).items()
        return [n for key, value in named if not _WIDTHS.search(str(key)) for n in lengths(value)]
    if isinstance(config, list | tuple):
        return [n for value in cast("list[Any]", config) for n in lengths(value)]
    return [config] if isinstance(config, int | float) and config > 1 else []
