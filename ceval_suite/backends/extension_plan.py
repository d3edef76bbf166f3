"""What is to be made of a base and an extended tokenizer; refused here is all that can be early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import adapter_files, checkpoint, growing, loading, quantise, sources
from ceval_suite.backends.checkpoint import Stored
from ceval_suite.backends.extension_files import vocab_size
from ceval_suite.backends.rewriting import FLOATING
from ceval_suite.backends.row_init import INITS, Plan
from ceval_suite.backends.tokenizers import load_tokenizer
from ceval_suite.errors import ModelError, unknown
from ceval_suite.model_spec import ModelSpec

BIASES = ("lm_head.bias", "embed_out.bias", "output_layer.bias")
"""How architectures name the bias of the head, by the end of the name."""


@dataclass(frozen=True)
class Extension:
    """A base, the tokenizer that extends it, and what is to be made of both."""

    spec: ModelSpec
    path: Path
    wider: ModelSpec
    base: Any
    tokenizer: Any
    plan: Plan
    unreachable: Sequence[int]
    dummy_prefix: bool
    dtype: torch.dtype | None

    @property
    def tokens(self) -> dict[int, growing.Token]:
        """Id → token of the extended tokenizer."""
        return growing.vocabulary(self.tokenizer)


def planned(
    spec: ModelSpec,
    tokenizer: str,
    init: str,
    dummy_prefix: bool,
    multiple: int,
    dtype: torch.dtype | None,
) -> Extension:
    """Read both tokenizers and the base's headers; nothing is written.

    Raises:
        ModelError: whatever makes an extension impossible or pointless.
    """
    if init not in INITS:
        raise ModelError(unknown("--init", init, INITS))
    if multiple < 1:
        raise ModelError(f"--pad-to-multiple {multiple}: give a number of rows, 1 or more.")
    spec = _plain(spec)
    path = sources.resolve(spec)
    rows = _rows(spec, path)
    base = load_tokenizer(spec, path)
    # from here on the extended one is the tokenizer
    wider = spec.model_copy(update={"tokenizer": tokenizer, "tokenizer_revision": None})
    extended = load_tokenizer(wider, path)
    old, tokens = growing.vocabulary(base), growing.vocabulary(extended)
    if max(old, default=-1) >= rows:
        raise ModelError(
            f"{spec.path}: its tokenizer has {len(old)} entries, up to id {max(old)}, but the "
            f"embedding only {rows} rows; put the tokenizer that belongs to these weights beside "
            "them."
        )
    at = growing.first_difference(old, tokens)
    if at is not None:
        raise ModelError(
            f"{tokenizer}: id {at} is {tokens.get(at)!r} where the base's tokenizer has "
            f"{old[at]!r}; an extended tokenizer must keep every old id."
        )
    new = sorted(set(tokens) - set(old))
    if not new:
        raise ModelError(
            f"{tokenizer}: nothing to do, it has no token that the tokenizer of {spec.path} lacks "
            f"({len(old)} entries each); give the extended tokenizer."
        )
    odd = growing.unknown(base)
    found = growing.pieces(base, extended, new, dummy_prefix=dummy_prefix)
    known = [[piece for piece in some if piece < rows and piece != odd] for some in found]
    after = math.ceil(max(rows, new[-1] + 1) / multiple) * multiple
    plan = Plan(new, known, sorted(old), rows, after, init)
    lost = growing.unreachable(extended, new)
    return Extension(spec, path, wider, base, extended, plan, lost, dummy_prefix, dtype)


def _plain(spec: ModelSpec) -> ModelSpec:
    """The spec of an unquantised checkpoint without adapters, its own tokenizer beside it."""
    if spec.backend not in ("hf", "vllm"):
        raise ModelError(
            f"{spec.path}: reached through backend {spec.backend}; give the checkpoint itself."
        )
    spec = adapter_files.expand(spec)
    if spec.adapters:
        raise ModelError(
            f"{spec.path}: has adapters ({spec.adapters[0].path}, …), which are not part of its "
            "weights; write them into it with 'ceval-suite model merge' and extend that."
        )
    if spec.quant is not None:
        raise ModelError(
            f"{spec.path}: rows are added to unquantised weights; leave `quant` out, and quantise "
            "the extended checkpoint ('ceval-suite model quantize')."
        )
    # of an entry that grows while it is loaded, `tokenizer` is the extended one
    own = {"tokenizer": None, "tokenizer_revision": None} if spec.grow_embeddings else {}
    update: dict[str, Any] = {"grow_embeddings": False, "max_length": None, "memory": None}
    update |= {"device": "cpu", "device_map": None, "tp_plan": None}
    return spec.model_copy(update=update | own)


def _rows(spec: ModelSpec, path: Path) -> int:
    """Rows of embedding and head, which configuration and tensors agree on."""
    if path.is_dir():
        loading.check_weights(spec, path)
        config = adapter_files.read(path / "config.json")
        for key in ("quantization_config", "compression_config"):
            if config.get(key):
                method = quantise.described(config[key])["method"]
                raise ModelError(
                    f"{spec.path}: its weights are quantised ({method}), and packed rows cannot be "
                    "averaged; extend the unquantised checkpoint and quantise the result "
                    "('ceval-suite model quantize')."
                )
    found = checkpoint.tensors(path)
    if not found:
        raise ModelError(
            f"{spec.path}: pickled weights can only be loaded whole; write them as safetensors "
            "(save_pretrained) and extend those."
        )
    embedding, head = checkpoint.embedding(found), checkpoint.head(found)
    if embedding is None:
        raise ModelError(
            f"{spec.path}: none of its tensors is known as an embedding; name the tokenizer with "
            "`tokenizer:` and set grow_embeddings: true in models.yaml, which asks the model "
            "itself."
        )
    rows = embedding.shape[0]
    if head is not None and head.shape[0] != rows:
        raise ModelError(
            f"{spec.path}: the embedding has {rows} rows and the head {head.shape[0]}; these "
            "weights do not belong together."
        )
    stated = vocab_size(adapter_files.read(path / "config.json")) if path.is_dir() else None
    if stated is not None and stated != rows:
        raise ModelError(
            f"{spec.path}: the embedding has {rows} rows where config.json makes vocab_size "
            f"{stated}; weights and config.json do not belong together."
        )
    return rows


def tables(job: Extension, found: Mapping[str, Stored]) -> list[str]:
    """The tensors that have a row for each token.

    Raises:
        ModelError: one that may have, and is none of those known.
    """
    rows = job.plan.before
    ends = (*checkpoint.EMBEDDINGS, *checkpoint.HEADS, *BIASES)
    sized = {name: tensor for name, tensor in found.items() if rows in tensor.shape}
    names = [
        name
        for name, tensor in sized.items()
        if tensor.shape[0] == rows and any(name == end or name.endswith(f".{end}") for end in ends)
    ]
    for name in sorted(set(sized) - set(names)):
        raise ModelError(
            f"{job.spec.path}: {name} is {sized[name].shape} and may have a place for each of the "
            f"{rows} tokens too; grow_embeddings: true in models.yaml grows the loaded model "
            "instead."
        )
    for name in names:
        if found[name].dtype not in FLOATING:
            raise ModelError(
                f"{job.spec.path}: {name} is stored as {found[name].dtype}, whose rows cannot be "
                "averaged; extend the unquantised checkpoint."
            )
    return names
