"""Code that a checkpoint brings along: which files it is, and what to say when it fails.

Most of it was written for transformers 4, and some of it fails under 5: where it is imported, where
the model is built, or with the first tokens that the model is given.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.untrusted import from_json

HOME = "transformers_modules"
"""The folder, and the package, that transformers copies such code into and imports it from."""

CONFIGS = ("config.json", "tokenizer_config.json")

TRIED = 8
"""Tokens of the first forward pass."""


def options(spec: ModelSpec) -> dict[str, Any]:
    """Whether such code may run and from which commit, in transformers' own words."""
    found: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    return found | ({"code_revision": spec.code_revision} if spec.code_revision else {})


def fingerprint(pinned: str | None, *folders: Path) -> str:
    """SHA-256 over the Python files of a checkpoint, and of a tokenizer from elsewhere.

    `auto_map` may name a class of another repository (`owner/name--module.Class`): of a local
    directory its files count, of one on the hub the commit `pinned`.

    Raises:
        ModelError: code on the hub and no commit.
    """
    digest = hashlib.sha256()
    for folder in folders:
        _add(digest, folder)
        for place in _elsewhere(folder):
            digest.update(b"--\0")
            if Path(place).is_dir():
                _add(digest, Path(place))
            elif pinned is None:
                raise ModelError(
                    f"{folder}: its code lies in another repository, {place}, which may change "
                    "from one run to the next; set code_revision to a commit of it in models.yaml, "
                    "or copy its .py files beside the weights."
                )
            else:
                digest.update(f"{place}@{pinned}\0".encode())
    return digest.hexdigest()


def _add(digest: Any, folder: Path) -> None:
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())


def _elsewhere(folder: Path) -> list[str]:
    """Other repositories that the classes of a checkpoint are taken from."""
    found: set[str] = set()
    for name in CONFIGS:
        content = _json(folder / name)
        found |= {text.split("--")[0] for text in _texts(content.get("auto_map")) if "--" in text}
    return sorted(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for one in value.values() for text in _texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts(one))


def _json(file: Path) -> dict[str, Any]:
    try:
        content: Any = from_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def failure(path: str, error: BaseException, folder: Path | None = None) -> ModelError | None:
    """What to say of an error that a checkpoint's own code raised; None for any other error.

    `folder` is where the checkpoint lies: its configuration says which transformers wrote it.
    """
    text = " ".join(str(error).split())
    lacking = re.search(r"packages that were not found in your environment: (.+?)\. Run", text)
    if lacking:
        return ModelError(
            f"{path}: its own code needs packages that are not installed; run pip install "
            f"{lacking[1].replace(',', '')}."
        )
    place = _place(error)
    if place is None:
        return None
    import transformers

    wrote = _json((folder or Path(path)) / "config.json").get("transformers_version")
    first = text.split(". ")[0][:240].rstrip(".")
    # where the installed package lies tells nobody anything
    first = re.sub(r" \(/[^)]*\)$", "", first) or type(error).__name__
    return ModelError(
        f"{path}: its own code ({place}) fails under transformers {transformers.__version__} "
        f"({first}); take a newer revision or a copy that transformers has a class for, or serve "
        f"it where transformers {wrote or '4'} is installed and score it by backend server."
    )


def _place(error: BaseException) -> str | None:
    """File and line of a checkpoint's own code where an error came from."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        one = one.__cause__ or one.__context__
    for one in seen:
        frames = reversed(traceback.extract_tb(one.__traceback__))
        for frame in frames:
            if HOME in Path(frame.filename).parts:
                return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


def try_out(path: str, model: Any, folder: Path) -> None:
    """Give a model of own code its first tokens.

    Raises:
        ModelError: its code fails.
    """
    import torch

    pair = getattr(model.config, "is_encoder_decoder", False)
    if HOME not in type(model).__module__.split(".") or pair:
        return
    ids = torch.arange(1, TRIED + 1, device=model.get_input_embeddings().weight.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # such code raises anything
        raise failure(path, error, folder) or error from error
