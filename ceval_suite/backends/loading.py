"""ModelSpec → model and tokenizer, and proof of what they are.

Weights are read from safetensors or GGUF only; code in a checkpoint runs only when the spec
allows it.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.backends.sources import TOKENIZER_FILES, identity, resolve
from ceval_suite.backends.tokens import Encoded
from ceval_suite.errors import ModelError
from ceval_suite.schema import Request
from ceval_suite.specs import ModelSpec


@dataclass
class Loaded:
    """A model in evaluation mode, its tokenizer and what is known about them."""

    model: Any
    tokenizer: Any
    dtype: Any
    max_length: int
    about: dict[str, Any]


def load_tokenizer(spec: ModelSpec, path: Path | None = None) -> Any:
    """The tokenizer of a spec.

    Raises:
        ModelError: there is none, or it needs code that is not allowed.
    """
    from transformers import AutoTokenizer

    path = path or resolve(spec)
    where = Path(spec.tokenizer).expanduser() if spec.tokenizer else path
    source: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if where.suffix == ".gguf":
        check_gguf(where)
        where, source["gguf_file"] = where.parent, where.name
    elif where.is_dir() and not any((where / name).is_file() for name in TOKENIZER_FILES[:7]):
        raise ModelError(f"{where}: no tokenizer files; give `tokenizer:` in models.yaml.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.tokenizer if spec.tokenizer and not where.exists() else where, **source
        )
    except Exception as error:  # transformers raises anything here
        raise _wrapped(spec, "the tokenizer", error) from error
    return tokenizer


def load(spec: ModelSpec) -> Loaded:
    """Model and tokenizer of a spec, in evaluation mode on its device.

    Raises:
        ModelError: no weights, truncated or pickled weights, code not allowed, tokenizer and
            embedding of different sizes.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    path = resolve(spec)
    tokenizer = load_tokenizer(spec, path)
    source: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    where = path
    if path.suffix == ".gguf":
        where, source["gguf_file"] = path.parent, path.name
    elif not any(path.glob("*.safetensors")):
        _refuse_weights(spec, path)
    device = _device(spec)
    try:
        # a GGUF file stores quantised blocks: it has no dtype of its own to read
        config = None if path.suffix == ".gguf" else AutoConfig.from_pretrained(where, **source)
        dtype = _dtype(spec, config, device)
        # the GGUF reader draws a bar of its own that no setting turns off
        with contextlib.redirect_stderr(io.StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, use_safetensors=None if spec.allow_pickle else True, **source
            )
    except Exception as error:  # transformers raises anything here
        raise _wrapped(spec, "the checkpoint", error) from error
    model: Any = loaded.to(device).eval()
    _check_sizes(spec, model, tokenizer)
    about = {
        "name_or_path": spec.path,
        "revision": spec.revision,
        **identity(spec, path),
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "embedding_rows": int(model.get_input_embeddings().weight.shape[0]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return Loaded(model, tokenizer, dtype, _max_length(model.config, tokenizer), about)


def peak_memory(device: Any) -> dict[str, int]:
    """Largest memory use so far in bytes: of this process, and on the GPU when there is one."""
    import torch

    out: dict[str, int] = {}
    try:
        import resource  # not on Windows
    except ImportError:
        pass
    else:
        # ru_maxrss counts KiB on Linux and bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        out["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        out["gpu"] = int(torch.cuda.max_memory_allocated(device))
    return out


def _refuse_weights(spec: ModelSpec, path: Path) -> None:
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        if spec.allow_pickle:
            return
        raise ModelError(
            f"{path}: only pickled weights (.bin), which run code when loaded; convert them to "
            "safetensors, or set allow_pickle: true in models.yaml if you trust their source."
        )
    raise ModelError(f"{path}: no weights (*.safetensors or *.gguf) in this directory.")


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


def _wrapped(spec: ModelSpec, what: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(
            f"{spec.path}: {what} brings its own code; set trust_remote_code: true for it in "
            "models.yaml if you trust its source."
        )
    return ModelError(f"{spec.path}: {what} cannot be loaded ({text[:300]}).")


def wrap(tokenizer: Any, user: str) -> str:
    """A user's turn in the chat template, up to the start of the assistant's turn.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("--chat needs a chat template, and this tokenizer has none.")
    turns = [{"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def audit(
    tokenizer: Any, encoded: Sequence[Encoded], requests: Sequence[Request]
) -> list[dict[str, Any]]:
    """What is scored for each continuation: its token ids and their text, in context."""
    return [
        {
            "id": request.id,
            "one_token": one.single,
            "context_tail": tokenizer.decode(one.head[-10:].tolist()),
            "continuations": {
                continuation: {
                    "ids": list(tail),
                    "tokens": tokenizer.convert_ids_to_tokens(list(tail)),
                }
                for continuation, tail in zip(request.continuations, one.tails, strict=True)
            },
        }
        for request, one in zip(requests, encoded, strict=True)
    ]
