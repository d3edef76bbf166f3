"""A checkpoint with its adapters merged, on disk: weights, tokenizer and where they come from."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ceval_suite import __version__
from ceval_suite.backends import adapter_files, checkpoint, loading
from ceval_suite.backends.adapter_proof import Probe, apart, logits
from ceval_suite.backends.base import Say
from ceval_suite.backends.sources import (
    TOKENIZER_FILES,
    resolve,
    tokenizer_fingerprint,
    tokenizer_place,
    weights_fingerprint,
)
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec

PROVENANCE = "merge.json"
"""What lies beside the weights: base, adapters, hashes, versions and the proof of the merge."""

SHARD = "4GB"
"""Largest file of weights."""


def merge(spec: ModelSpec, out: Path, say: Say) -> dict[str, Any]:
    """Write the merged checkpoint of a spec with adapters; returns its provenance.

    The folder appears when it is whole: it is written under another name, loaded again, and its
    answers are compared with those of the model whose adapters are still attached.

    Raises:
        ModelError: nothing to merge, a quantised base, a folder that is not empty, or a checkpoint
            that answers otherwise than the attached adapters.
    """
    spec = _whole(spec)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: not an empty folder; give another --out.")
    say(f"merging {len(spec.adapters)} adapter(s) into {spec.path} in {spec.dtype}")
    loaded = loading.load(spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name) / "merged"
        _write(spec, loaded, folder)
        probe, about = loaded.attached.probe, loaded.about
        assert probe is not None
        del loaded  # two models side by side may be too much
        gc.collect()
        say("loading what was written, to compare")
        again = _compare(spec, folder, probe)
        provenance = _provenance(spec, folder, about, again)
        text = json.dumps(provenance, ensure_ascii=False, indent=1) + "\n"
        (folder / PROVENANCE).write_text(text, encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    return provenance


def _whole(spec: ModelSpec) -> ModelSpec:
    """The spec with every adapter to be merged, in the base's own dtype where none is named."""
    spec = adapter_files.expand(spec)
    if not spec.adapters:
        raise ModelError(f"{spec.path}: no adapters to merge; name some with --adapter.")
    if spec.quant is not None:
        raise ModelError(
            f"{spec.path}: adapters are merged into unquantised weights; leave `quant` out, and "
            "quantise the merged checkpoint."
        )
    adapters = [adapter.model_copy(update={"merge": True}) for adapter in spec.adapters]
    dtype = spec.dtype if spec.dtype != "auto" else _stored(resolve(spec))
    return spec.model_copy(update={"adapters": adapters, "dtype": dtype, "max_length": None})


def _stored(path: Path) -> str:
    config = path / "config.json"
    return checkpoint.stored_dtype(adapter_files.read(config) if config.is_file() else {})


def _write(spec: ModelSpec, loaded: loading.Loaded, folder: Path) -> None:
    from transformers import GenerationConfig

    base = resolve(spec)
    generation = base / "generation_config.json"
    if generation.is_file():
        # one that contradicts itself cannot be saved: the base's own file is copied below
        loaded.model.generation_config = GenerationConfig()
    loaded.model.save_pretrained(folder, max_shard_size=SHARD)
    home = tokenizer_place(spec, base)
    if home.is_dir():
        files = [home / name for name in TOKENIZER_FILES] + sorted(home.glob("*.tiktoken"))
    else:  # in a GGUF file
        files = []
        loaded.tokenizer.save_pretrained(folder)
    files += [generation] + (sorted(base.glob("*.py")) if spec.trust_remote_code else [])
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _compare(spec: ModelSpec, folder: Path, probe: Probe) -> float:
    """How far the checkpoint's log-probabilities are from those with the adapters attached."""
    plain = spec.model_copy(update={"path": str(folder), "adapters": [], "tokenizer": None})
    plain = plain.model_copy(update={"revision": None, "sha256": None, "grow_embeddings": False})
    with torch.no_grad():
        away = apart(logits(loading.load(plain).model, probe.ids), probe.logits)
    if not away <= probe.tolerance:
        raise ModelError(
            f"{spec.path}: the merged checkpoint differs from the attached adapters by {away:.2g} "
            f"in log-probability, where {probe.tolerance:g} is tolerated, and was not kept; try "
            "--dtype float32."
        )
    return away


def _provenance(
    spec: ModelSpec, folder: Path, about: dict[str, Any], away: float
) -> dict[str, Any]:
    paths = adapter_files.folders(spec)
    adapters = [
        {
            **adapter.model_dump(exclude={"merge"}, exclude_defaults=True),
            "sha256": adapter_files.sha256(path),
            "proof": proof,
        }
        for adapter, path, proof in zip(
            spec.adapters, paths, about["adapters_applied"], strict=True
        )
    ]
    return {
        "made_by": "ceval-suite model merge",
        "base": {
            "path": spec.path,
            "revision": spec.revision,
            "weights_sha256": about["weights_sha256"],
        },
        "adapters": adapters,
        "dtype": spec.dtype,
        "merged": {
            "weights_sha256": weights_fingerprint(folder),
            "tokenizer_sha256": tokenizer_fingerprint(folder),
            "difference_from_attached": away,
        },
        "versions": {"ceval_suite": __version__, **about["versions"]},
    }
