"""What belongs to an extended checkpoint beside its weights: configuration, tokenizer, the rest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import adapter_files, rewriting
from ceval_suite.backends.sources import TOKENIZER_FILES
from ceval_suite.records import write_json

EXTENSION = "extension.json"
"""What lies beside the weights: base, tokenizer, how rows were made, and the proof."""

SMALL = 2**24
"""Bytes of the largest file that is copied along."""

NOT_COPIED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz"),
    *(".tiktoken", ".model", ".py", ".lock", ".partial"),
)
"""Weights, other tokenizers and code, by the end of a file's name."""

WRITTEN_ANEW = ("config.json", rewriting.INDEX, EXTENSION, "merge.json", "provenance.json")
"""Files that come out otherwise, or that tell how another checkpoint was made."""

TEMPLATES = ("chat_template.jinja", "chat_template.json")


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, as a configuration states them."""
    found = next((part["vocab_size"] for part in _parts(config) if "vocab_size" in part), None)
    return found if isinstance(found, int) else None


def configure(source: Path, folder: Path, rows: int, dtype: torch.dtype | None) -> None:
    """Write config.json with another number of rows and, where one is given, another dtype."""
    config = adapter_files.read(source / "config.json")
    before = vocab_size(config)
    for part in _parts(config):
        if "vocab_size" in part or part is config:
            part["vocab_size"] = rows
        if "padded_vocab_size" in part and part["padded_vocab_size"] == before:
            part["padded_vocab_size"] = rows
        for key in ("dtype", "torch_dtype"):
            if dtype is not None and key in part:
                part[key] = rewriting.name(dtype)
    write_json(folder / "config.json", config)


def _parts(config: Mapping[str, Any]) -> list[Any]:
    """A configuration and, of a model for more than text, that of its language model."""
    inner = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
    return [config, *(part for part in inner if isinstance(part, dict))]


def copy(source: Path, folder: Path, *, code: bool) -> None:
    """The small files beside a checkpoint's weights; of a tokenizer none, and code if allowed."""
    for file in sorted(source.iterdir()):
        skipped = file.suffix in NOT_COPIED and not (code and file.suffix == ".py")
        named = file.name in TOKENIZER_FILES or file.name in WRITTEN_ANEW
        if skipped or named or file.name.startswith(".") or not file.is_file():
            continue
        if file.stat().st_size <= SMALL:
            shutil.copyfile(file, folder / file.name)


def copy_tokenizer(home: Path, tokenizer: Any, folder: Path, *, code: bool) -> None:
    """The files of a tokenizer as they are; one that lies in a GGUF file is written out."""
    if not home.is_dir():
        tokenizer.save_pretrained(folder)
        return
    files = [home / name for name in TOKENIZER_FILES if (home / name).is_file()]
    files += [*home.glob("*.tiktoken"), *home.glob("*.model"), *(home.glob("*.py") if code else ())]
    for file in dict.fromkeys(files):
        shutil.copyfile(file, folder / file.name)
    more = home / "additional_chat_templates"
    if more.is_dir():
        shutil.copytree(more, folder / more.name, ignore=lambda _, names: _no_templates(names))


def _no_templates(names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".jinja")]


def chat_template(base: Any, tokenizer: Any, folder: Path) -> str:
    """Keep the base's chat template where the extended tokenizer brings none; says whose it is."""
    if getattr(tokenizer, "chat_template", None):
        return "the extended tokenizer's"
    found: Any = getattr(base, "chat_template", None)
    text = found.get("default") if isinstance(found, dict) else found
    if not text:
        return "none"
    (folder / TEMPLATES[0]).write_text(text, encoding="utf-8")
    return "the base's"
