"""ModelSpec → model and tokenizer, and proof of what they are.

Weights are read from safetensors or GGUF only; code in a checkpoint runs only when the spec
allows it.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ceval_suite.backends import checkpoint, growing, own_code, placement, quantise, weights
from ceval_suite.backends.adapter_files import CONFIG, expand
from ceval_suite.backends.adapters import Attached, attach
from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.backends.sources import identity, resolve
from ceval_suite.backends.tokenizers import load_tokenizer, unreadable
from ceval_suite.errors import ModelError, NotNow, no_memory
from ceval_suite.model_spec import ModelSpec
from ceval_suite.untrusted import from_json, is_inside


@dataclass
class Loaded:
    """A model in evaluation mode, its tokenizer and what is known about them.

    Adapters lie on `model` already; `attached` says what they did to it.
    """

    model: Any
    tokenizer: Any
    dtype: Any
    max_length: int
    about: dict[str, Any]
    attached: Attached


def load(spec: ModelSpec) -> Loaded:
    """Model and tokenizer of a spec, in evaluation mode on its device.

    Raises:
        ModelError: no weights, truncated, incomplete or pickled weights, code not allowed,
            tokenizer and embedding of different sizes.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    path = resolve(spec := expand(spec))
    source = own_code.options(spec)
    where = path
    if path.suffix == ".gguf":
        check_gguf(path)
        where, source["gguf_file"] = path.parent, path.name
    elif path.is_dir():
        check_weights(spec, path)
    tokenizer = load_tokenizer(spec, path)
    device = placement.device(spec)
    try:
        # a GGUF file stores quantised blocks: it has no dtype of its own to read
        config = None if path.suffix == ".gguf" else AutoConfig.from_pretrained(where, **source)
        if spec.tp_plan is not None and config is not None:
            placement.check_heads(spec, config)
        dtype = resolved_dtype(spec, config, device)
        loaded, found, how = _read(spec, where, source, config, dtype)
    except ModelError:
        raise
    except Exception as error:  # transformers raises anything here
        if no_memory(error):
            raise NotNow(
                f"{spec.path}: out of memory while its weights were loaded; give a narrower "
                "--dtype, another --device, or quant or device_map: auto in models.yaml."
            ) from error
        raise unreadable(spec, "the checkpoint", error, path) from error
    _check_complete(spec, found)
    base: Any = (loaded if how else loaded.to(device)).eval()
    if spec.tp_plan is not None:
        placement.settle(spec, base)
    own_code.try_out(spec.path, base, path)
    about = {
        "name_or_path": spec.path,
        "revision": spec.revision,
        **identity(spec, path),
        "architecture": type(base).__name__,
        "unused_tensors": len(found["unexpected_keys"]),
        "vocabulary": len(tokenizer),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if compressed := quantise.settle(spec, path, base, config, dtype):
        about["quantisation"] = compressed
    return _finish(spec, path, base, tokenizer, dtype, about)


def _finish(
    spec: ModelSpec, path: Path, base: Any, tokenizer: Any, dtype: Any, about: dict[str, Any]
) -> Loaded:
    """Give a base the rows and adapters of its spec."""
    # an adapter may bring rows for its own tokens; what `grow_embeddings` adds, it is trained on
    grown = growing.fit(spec, path, base, tokenizer) if spec.grow_embeddings else None
    attached = attach(spec, base, tokenizer)
    model: Any = attached.model
    about |= grown or growing.fit(spec, path, model, tokenizer)
    about |= placement.described(model)
    about |= {"parameters": weights.parameters(model), "bytes": weights.model_size(model)}
    about["embedding_rows"] = int(model.get_input_embeddings().weight.shape[0])
    about["adapters_applied"] = attached.about
    longest = max_length(model.config, tokenizer) - attached.virtual_tokens
    return Loaded(model, tokenizer, dtype, longest, about, attached)


def _read(
    spec: ModelSpec, where: Path, source: dict[str, Any], config: Any, dtype: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model, what was missing or left over, and what was said of devices and quantisation."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    narrow = quantise.options(spec, config, placement.device(spec), dtype)
    how = placement.spread(spec) | narrow
    # the GGUF reader draws a bar of its own that no setting turns off
    with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack:
        if narrow and "gguf_file" in source:
            where = stack.enter_context(quantise.unpacked(where / source.pop("gguf_file"), dtype))
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
            **how,
        )
    return loaded, found, how


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


def check_weights(spec: ModelSpec, path: Path) -> None:
    """Weights that may be read, all there, each file as long as its header says."""
    if not (path / "config.json").is_file():
        if (path / CONFIG).is_file():
            raise ModelError(
                f"{spec.path}: a peft adapter and no checkpoint; give its base as `path` and this "
                "under `adapters` in models.yaml."
            )
        raise ModelError(f"{path}: no config.json; give the directory that save_pretrained wrote.")
    index = path / "model.safetensors.index.json"
    files = sorted(path.glob("*.safetensors"))
    if not files:
        _refuse_weights(spec, path)
    if index.is_file():
        shards = _shards(index)
        for name in sorted(shards - {file.name for file in files}):
            raise ModelError(f"{path}: {name}, which {index.name} names, is missing; fetch it.")
    for file in files:
        checkpoint.safetensors(file)


def _shards(index: Path) -> set[str]:
    """The files that an index names; none of them lies elsewhere."""
    try:
        found = set(map(str, from_json(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: no index of weights ({error!r}); fetch it again.") from error
    for name in sorted(found):
        if not is_inside(name):
            raise ModelError(f"{index}: {name!r} lies outside the checkpoint; fetch it again.")
    return found


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


def resolved_dtype(spec: ModelSpec, config: Any, device: str) -> Any:
    """The dtype that a model is computed in on a device."""
    import torch

    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    if device == "cpu":
        return torch.float32
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16


def max_length(config: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at most, by its configuration or else its tokenizer."""
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
