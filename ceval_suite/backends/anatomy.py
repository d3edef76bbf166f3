"""What a checkpoint is, for people: read from headers, configuration and tokenizer.

No weights are loaded; of the embedding, rows are compared as bytes. Code in a checkpoint runs only
when its entry allows it, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ceval_suite.backends import checkpoint, growing, hub, own_code, quantise, sources
from ceval_suite.backends.adapter_files import WEIGHTS, config, expand
from ceval_suite.backends.adapter_rows import implied, trained_rows
from ceval_suite.backends.checkpoint import Stored
from ceval_suite.backends.loading import check_weights, max_length
from ceval_suite.backends.tokenizers import (
    chat_template,
    configuration,
    json_of,
    load_tokenizer,
    start_token,
)
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter, ModelSpec


def describe(name: str, spec: ModelSpec) -> dict[str, Any]:
    """Everything that can be said of a model without loading or fetching it."""
    if spec.backend in ("server", "lm_eval"):
        return {"local": False, "note": f"answers come through backend {spec.backend}"}
    try:
        spec = expand(spec)
    except ModelError as error:  # an adapter whose base is not to be had
        return {"local": False, "note": str(error)}
    path = sources.find(spec)
    if path is None:
        return {
            "local": False,
            "note": f"not on this machine; 'ceval-suite model fetch {name}' brings it",
        }
    about: dict[str, Any] = {"local": True, "path": str(path)}
    if path.parent.name == "snapshots":
        about["commit"] = path.name
    warnings: list[str] = []
    config = configuration(path)
    try:
        if path.is_dir():
            check_weights(spec, path)
        tensors = checkpoint.tensors(path)
    except ModelError as error:
        warnings.append(str(error))
        tensors = {}
    about |= _files(path) | _weights(path, config, tensors)
    here = _with_adapters_here(spec)
    tokenizer = _tokenizer(here, path, warnings)
    if tokenizer is not None:
        about["max_length"] = spec.max_length or max_length(_readable(spec, path), tokenizer)
        about["tokenizer"] = _vocabulary(here, path, tokenizer, tensors, warnings)
        about["start_token"] = start_token(path, tokenizer, warnings)
        about["chat_template"] = chat_template(tokenizer, warnings)
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            about["quantization"] = config[key]
    if spec.adapters:
        about["adapters"] = [_adapter(adapter) for adapter in spec.adapters]
    return about | {"fingerprints": _fingerprints(spec, path, warnings)} | {"warnings": warnings}


def _readable(spec: ModelSpec, path: Path) -> Any:
    """The configuration as transformers fills it in, or as it stands where it cannot."""
    if path.is_dir():
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(path, **own_code.options(spec))
        except Exception:  # transformers raises anything here  # noqa: S110
            pass
    config = configuration(path)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = SimpleNamespace(**config["text_config"])
    return SimpleNamespace(**config)


def _files(path: Path) -> dict[str, Any]:
    files = {file.name: file.stat().st_size for file in checkpoint.weight_files(path)}
    return {"files": files, "bytes": sum(files.values())}


def _weights(path: Path, config: Mapping[str, Any], tensors: dict[str, Stored]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "architecture": ", ".join(config.get("architectures") or ["unknown"]),
        "model_type": config.get("model_type"),
    }
    if not tensors:
        pickled = any(file.suffix == ".bin" for file in checkpoint.weight_files(path))
        return about | ({"weights": "pickled: not opened"} if pickled else {})
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.parameters
    how = config.get("quantization_config") or config.get("compression_config")
    bits = quantise.described(how)["bits"] if isinstance(how, Mapping) else None
    count = checkpoint.parameters(tensors, bits)
    about |= {"tensors": len(tensors), "parameters": count, "dtypes": dtypes}
    embedding, head = checkpoint.embedding(tensors), checkpoint.head(tensors)
    if embedding is not None:
        about["embedding"] = list(embedding.shape)
        about["head"] = "tied to the embedding" if head is None else list(head.shape)
    return about


def _tokenizer(spec: ModelSpec, path: Path, warnings: list[str]) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        if spec.tokenizer and not Path(spec.tokenizer).expanduser().exists():
            kept = hub.cached(spec.tokenizer, spec.tokenizer_revision)
            if kept is None:
                warnings.append(f"tokenizer {spec.tokenizer} is not on this machine")
                return None
            spec = spec.model_copy(update={"tokenizer": str(kept)})
        return load_tokenizer(spec, path)
    except ModelError as error:
        warnings.append(str(error))
        return None


def _vocabulary(
    spec: ModelSpec, path: Path, tokenizer: Any, tensors: dict[str, Stored], warnings: list[str]
) -> dict[str, Any]:
    tokens = growing.vocabulary(tokenizer)
    special = {
        key: value
        for key in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
        if (value := getattr(tokenizer, key, None)) is not None
    }
    about: dict[str, Any] = {"class": type(tokenizer).__name__, "entries": len(tokens)}
    about["special"] = {key: str(value) for key, value in special.items()}
    embedding = checkpoint.embedding(tensors)
    if embedding is not None:
        about |= _rows(spec, embedding, tokens, warnings)
    base = growing.base_tokenizer(spec, path)
    return about | (_extension(base, tokenizer, warnings) if base is not None else {})


def _rows(
    spec: ModelSpec, embedding: Stored, tokens: Mapping[int, growing.Token], warnings: list[str]
) -> dict[str, Any]:
    """Rows of the embedding beside the entries of the tokenizer, as they are once it is loaded."""
    size = max(tokens, default=-1) + 1
    base = rows = embedding.shape[0]
    for adapter in spec.adapters:
        brought, whole = _brought(adapter, rows, warnings)
        if brought is None:
            continue
        if brought < rows:
            warnings.append(
                f"the embedding of {adapter.path} has {brought} rows and the one below it {rows}, "
                "which is never cut: it cannot be loaded"
            )
            continue
        rows, embedding = brought, whole or embedding
    about: dict[str, Any] = {"embedding_rows": rows}
    if rows != base:
        about["embedding_rows_of_the_base"] = base
    if size > rows and not spec.grow_embeddings:
        warnings.append(
            f"the tokenizer has {len(tokens)} entries but the embedding only {rows} rows: it "
            "cannot be scored without grow_embeddings: true"
        )
    if size > base and spec.grow_embeddings and spec.tokenizer is None:
        warnings.append(
            "grow_embeddings grows only to a tokenizer that `tokenizer:` names: it cannot be loaded"
        )
    zero, equal = checkpoint.never_trained(checkpoint.stored_rows(embedding))
    about["never_trained"] = {
        "beyond_tokenizer": max(0, rows - size),
        **growing.note(zero, equal, tokens),
    }
    if named := about["never_trained"]["tokens"]:
        warnings.append(f"{named} tokens have rows that were never trained")
    return about


def _brought(adapter: Adapter, rows: int, warnings: list[str]) -> tuple[int | None, Stored | None]:
    """Rows that an adapter gives an embedding of `rows`, and its own copy of them, if any."""
    folder = Path(adapter.path) / adapter.subfolder
    try:
        stored = checkpoint.safetensors(folder / WEIGHTS)
        settings = SimpleNamespace(**{"peft_type": None, **config(folder)})
    except ModelError as error:
        warnings.append(str(error))
        return None, None
    ends = [f".{name.removesuffix('.weight')}." for name in checkpoint.EMBEDDINGS]
    numbers: set[int] = set()
    whole: Stored | None = None
    for key, tensor in stored.items():
        inner = f".{key.removeprefix('base_model.model.')}"
        for end in [end for end in ends if end in inner]:
            name = f"{inner.split(end)[0]}{end}".strip(".")
            for number, all_of_it in implied({key: tensor.shape}, name, "input"):
                numbers.add(number)
                whole = tensor if all_of_it else whole
    trained = max(trained_rows(settings), default=-1) + 1
    if not numbers and trained > rows:
        numbers = {trained}
    return max(numbers, default=None), whole


def _extension(base: Any, tokenizer: Any, warnings: list[str]) -> dict[str, Any]:
    """How a tokenizer from elsewhere differs from the one beside the weights."""
    old, new = growing.vocabulary(base), growing.vocabulary(tokenizer)
    at = growing.first_difference(old, new)
    if at is not None:
        warnings.append(
            f"id {at} is {new.get(at)!r} in the tokenizer and {old[at]!r} in the one beside the "
            "weights"
        )
    added = sorted(set(new) - set(old))
    lost = growing.unreachable(tokenizer, added)
    if lost:
        warnings.append(f"{len(lost)} new tokens are unreachable: their own text never gives them")
    names = [str(new[i]) for i in lost[: growing.SHOWN]]
    return {"new_tokens": len(added), "unreachable": len(lost), "unreachable_tokens": names}


def _with_adapters_here(spec: ModelSpec) -> ModelSpec:
    """The spec with those adapters alone that can be read without fetching anything."""
    kept: list[Adapter] = []
    for adapter in spec.adapters:
        folder = _adapter_place(adapter)
        if folder is not None and (folder / adapter.subfolder / WEIGHTS).is_file():
            kept.append(adapter.model_copy(update={"path": str(folder)}))
    return spec.model_copy(update={"adapters": kept})


def _adapter_place(adapter: Adapter) -> Path | None:
    here = Path(adapter.path).expanduser()
    return here if here.exists() else hub.cached(adapter.path, adapter.revision)


def _adapter(adapter: Adapter) -> dict[str, Any]:
    folder = _adapter_place(adapter)
    if folder is None:
        return {"path": adapter.path, "local": False}
    config = json_of(folder / adapter.subfolder / "adapter_config.json")
    known = ("peft_type", "r", "base_model_name_or_path", "modules_to_save")
    return {"path": adapter.path, "local": True} | {k: config[k] for k in known if config.get(k)}


def _fingerprints(spec: ModelSpec, path: Path, warnings: list[str]) -> dict[str, Any]:
    tokenizer = Path(spec.tokenizer).expanduser() if spec.tokenizer else path
    if not tokenizer.exists():
        tokenizer = hub.cached(str(spec.tokenizer), spec.tokenizer_revision) or path
    local = spec.model_copy(update={"tokenizer": str(tokenizer)}) if spec.tokenizer else spec
    try:
        found = sources.identity(_with_adapters_here(local), path)
    except ModelError as error:  # code that nothing pins
        warnings.append(str(error))
        return {}
    return {k: v for k, v in found.items() if k.endswith("_sha256") or k == "adapters"}
