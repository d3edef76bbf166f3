"""Adapter directories: where they lie, what they say of themselves, and which ones they are.

No torch, no peft: what decides whether finished records may be reused must be cheap to find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ceval_suite.backends import hub
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter, ModelSpec
from ceval_suite.untrusted import from_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer needs one."""


def expand(spec: ModelSpec) -> ModelSpec:
    """`spec`; or, where its path is an adapter's own directory, the adapter on its base.

    Raises:
        ModelError: the adapter does not say what its base is, or that is not here.
    """
    path = Path(spec.path).expanduser()
    if not (path / CONFIG).is_file():
        return spec
    if (path / "config.json").is_file():
        raise ModelError(
            f"{path}: both a checkpoint and an adapter ({CONFIG}), and libraries differ in which "
            "of them they load; move the adapter's files into a directory of their own."
        )
    base = str(config(path).get("base_model_name_or_path") or "")
    hub_like = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    if not base or not (Path(base).expanduser().exists() or hub_like):
        raise ModelError(without_base(path, base))
    if len(spec.adapters) > 16:
        raise ModelError(f"{path}: adapters that name each other as their base; give the base.")
    adapters = [Adapter(path=spec.path), *spec.adapters]
    # a revision would be the adapter's: that of the base is not known here
    above = spec.model_copy(update={"path": base, "adapters": adapters, "revision": None})
    return expand(above)


def without_base(path: Path | str, base: str) -> str:
    """What to say of an adapter that was given alone and whose base is not to be had."""
    named = f", {base}, cannot be found" if base else " is not named in its configuration"
    return (
        f"{path}: a peft adapter whose base{named}; give the base as `path` and this directory "
        "under `adapters` in models.yaml."
    )


def folders(spec: ModelSpec) -> list[Path]:
    """The local directories of a spec's adapters, fetched into the cache if need be.

    Raises:
        ModelError: not found, not an adapter, or pickled where that is not allowed.
    """
    return [folder(adapter, spec.allow_pickle) for adapter in spec.adapters]


def folder(adapter: Adapter, allow_pickle: bool, progress: hub.Progress | None = None) -> Path:
    """The local directory of one adapter, fetched into the cache if need be.

    Raises:
        ModelError: as `folders`.
    """
    root = Path(adapter.path).expanduser()
    if not root.exists():
        if adapter.path.startswith(("/", ".", "~")) or adapter.path.count("/") != 1:
            raise ModelError(f"{adapter.path}: no such directory; check the path of the adapter.")
        root = _from_hub(adapter, allow_pickle, progress)
    found = root / adapter.subfolder
    if not (found / CONFIG).is_file():
        raise ModelError(
            f"{found}: no {CONFIG}; give the directory that peft's save_pretrained wrote."
        )
    if (found / WEIGHTS).is_file() or (allow_pickle and (found / PICKLE).is_file()):
        return found
    if (found / PICKLE).is_file():
        raise ModelError(
            f"{found}: only a pickled adapter ({PICKLE}), which runs code when loaded; save it as "
            "safetensors, or set allow_pickle: true in models.yaml if you trust its source."
        )
    raise ModelError(f"{found}: no weights ({WEIGHTS}) beside {CONFIG}; fetch the adapter again.")


def _from_hub(adapter: Adapter, allow_pickle: bool, progress: hub.Progress | None) -> Path:
    def choose(names: list[str]) -> list[str]:
        hub.refuse_pickles(adapter.path, names, allow_pickle)
        return hub.needed(names, pickle=allow_pickle, folder=adapter.subfolder)

    return hub.download(adapter.path, adapter.revision, choose, progress)


def config(folder: Path) -> dict[str, Any]:
    """What an adapter says of itself.

    Raises:
        ModelError: not JSON.
    """
    return read(folder / CONFIG)


def read(file: Path) -> dict[str, Any]:
    """A JSON object from disk.

    Raises:
        ModelError: it is none.
    """
    try:
        content: Any = from_json(file.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: not a JSON object; fetch it again.")
    return cast("dict[str, Any]", content)


def tokenizer_home(spec: ModelSpec) -> Path | None:
    """The adapter whose tokenizer is used: the last one that brings any; None leaves the base's.

    Adapters that were trained with added tokens bring the tokenizer that has them.
    """
    if spec.tokenizer:
        return None
    for folder in reversed(folders(spec)):
        files = (*(folder / name for name in VOCABULARIES), *folder.glob("*.tiktoken"))
        if any(file.is_file() for file in files):
            return folder
    return None


def identity(spec: ModelSpec) -> list[dict[str, Any]] | None:
    """Which adapters, in which order and how applied; None where there are none."""
    found = zip(spec.adapters, folders(spec), strict=True)
    return [{"sha256": sha256(folder), "merge": one.merge} for one, folder in found] or None


def sha256(folder: Path) -> str:
    """SHA-256 of an adapter's configuration and weights, whole."""
    digest = hashlib.sha256()
    for name in _read(folder):
        digest.update(f"{name}\0{(folder / name).stat().st_size}\0".encode())
        with (folder / name).open("rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _read(folder: Path) -> Sequence[str]:
    """The files that peft reads."""
    return (CONFIG, WEIGHTS if (folder / WEIGHTS).is_file() else PICKLE)
