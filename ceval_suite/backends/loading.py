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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    elif where.is_file():
        raise ModelError(f"{where}: expected a checkpoint directory or a .gguf file.")
    elif where.is_dir() and not any((where / name).is_file() for name in TOKENIZER_FILES[:7]):
        raise ModelError(f"{where}: no tokenizer files; give `tokenizer:` in models.yaml.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.tokenizer if spec.tokenizer and not where.exists() else where, **source
        )
    except Exception as error:  # transformers raises anything here
        raise _wrapped(spec, "the tokenizer", error) from error
    return _exact(tokenizer, where) if where.is_dir() else tokenizer


def _exact(tokenizer: Any, folder: Path) -> Any:
    """`tokenizer` itself, or SentencePiece's own reading of a bare `tokenizer.model`.

    transformers 5 rebuilds such a LLaMA file as a BPE with its merges in the order of piece ids,
    where SentencePiece goes by score: `a  b` becomes `▁a ▁▁ b` instead of `▁a ▁ ▁b`, and most
    prompts differ for a tokenizer extended with Chinese pieces. No order of merges repairs those:
    their scores are equal, which SentencePiece settles by position in the text.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer, TokenizersBackend

    bare = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    # the generic class is what a folder without tokenizer_config.json gets
    if not bare or type(tokenizer) not in (LlamaTokenizer, TokenizersBackend):
        return tokenizer
    try:
        SentencePieceProcessor(str(folder / "tokenizer.model"))
    except (RuntimeError, OSError):
        return tokenizer  # a tiktoken file of the same name, which transformers reads as it is
    return _sentencepiece().from_pretrained(folder)


def _sentencepiece() -> Any:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class SentencePiece(SentencePieceBackend):
        """LLaMA's start token in front and, unless `legacy`, its blank before the text alone."""

        def __init__(self, vocab_file: str, add_bos_token: bool = True, **options: Any) -> None:
            self.add_bos_token = add_bos_token
            tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            options = {**tokens, **options, "add_bos_token": add_bos_token}
            super().__init__(vocab_file=vocab_file, **options)

        def tokenize(self, text: str, **options: Any) -> list[str]:
            if self.legacy or not text:
                return super().tokenize(text, **options)
            found = super().tokenize("▁" + text.replace("▁", " "), **options)
            special = len(found) > 1 and found[0] == "▁" and found[1] in self.all_special_tokens
            return found[1:] if special else found

        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: list[int] | None = None
        ) -> list[int]:
            bos: Any = self.bos_token_id
            start = [int(bos)] if self.add_bos_token else []
            return start + token_ids_0 + (token_ids_1 or [])

    return SentencePiece


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
        raise _wrapped(spec, "the checkpoint", error) from error
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


def _wrapped(spec: ModelSpec, what: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(
            f"{spec.path}: {what} brings its own code; set trust_remote_code: true for it in "
            "models.yaml if you trust its source."
        )
    first = text.split(". ")[0][:300].rstrip(".")
    return ModelError(
        f"{spec.path}: {what} cannot be loaded ({first}); fetch it again, or check that its files "
        "belong together."
    )


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
