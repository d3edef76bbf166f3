"""`model extend`: a checkpoint with a row for every token of an extended tokenizer, on disk.

Files are streamed, so that a checkpoint of any size takes little memory to write; what was written
is then read back and proved to be the base and more, and EXTENSION lies beside it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import (
    checkpoint,
    extension_files,
    extension_note,
    extension_proof,
    gguf_weights,
    growing,
    loading,
    rewriting,
    row_init,
    sources,
)
from ceval_suite.backends.base import Say
from ceval_suite.backends.checkpoint import Stored
from ceval_suite.backends.extension_files import EXTENSION
from ceval_suite.backends.extension_plan import Extension, planned, tables
from ceval_suite.backends.extension_proof import Sides
from ceval_suite.backends.rewriting import FLOATING, Rows
from ceval_suite.backends.row_init import Average, Plan
from ceval_suite.errors import DataError, ModelError, unknown
from ceval_suite.model_spec import ModelSpec
from ceval_suite.records import write_json
from ceval_suite.untrusted import from_json

DTYPES = ("float32", "bfloat16", "float16")


def _quiet(_: str) -> None:
    """Says nothing."""


def extend(
    spec: ModelSpec,
    tokenizer: str | Path,
    out: Path,
    say: Say = _quiet,
    *,
    init: str = "mean",
    dummy_prefix: bool = False,
    pad_to_multiple: int = 1,
    dtype: str | None = None,
    prompts: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `spec` with rows for every token of the tokenizer in a directory; returns EXTENSION.

    Each tensor keeps its dtype unless `dtype` names one for all. `prompts` are texts for the proof
    that old ids keep their logits; some are built in. The folder appears when all is proved.

    Raises:
        ModelError: nothing to extend, adapters or quantised weights, ids that mean something else
            in the extended tokenizer, rows that do not match, a folder that is not empty, or a
            result that is not its base and more.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: not an empty folder; give another --out.")
    wanted = None if dtype is None else _dtype(dtype)
    job = planned(spec, str(tokenizer), init, dummy_prefix, pad_to_multiple, wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = job.plan
    say(f"{job.spec.path}: {plan.before} rows become {plan.after}, {len(plan.new)} of new tokens")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        place = _streamable(job, Path(name) / "base")
        folder = Path(name) / "extended"
        folder.mkdir()
        about, averages = _made(job, place, folder)
        say("reading back what was written, to compare")
        sides = _sides(job, place, folder)
        about["proof"], texts = _read_back(job, sides, averages, prompts)
        memory = {"writing": _peak()}
        del job  # two tokenizers may weigh as much as a small model
        extension_proof.release()
        about["proof"]["answers"] = extension_proof.answers(sides, plan, texts)
        about["peak_memory_bytes"] = memory | {"proof": _peak()}
        write_json(folder / EXTENSION, about)
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    return about


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(unknown("dtype", name, DTYPES))
    return getattr(torch, name)


def _peak() -> int:
    return loading.peak_memory(torch.device("cpu")).get("process", 0)


def _streamable(job: Extension, folder: Path) -> Path:
    """The base as a directory of safetensors: itself, or a GGUF file dequantised into one."""
    if job.path.is_dir():
        return job.path
    gguf_weights.write_dense(job.path, folder, job.dtype or torch.float32)
    job.base.save_pretrained(folder)
    extension_proof.release()
    return folder


def _made(job: Extension, place: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Average]]:
    """Write all of the folder; the note for it, and the averages that rows were made with."""
    found = checkpoint.tensors(place)
    names = tables(job, found)
    _room(folder, found, names, job.plan)
    averages = {name: row_init.average(Rows(found[name]), job.plan) for name in names}
    grown = {
        name: row_init.grown(
            Rows(found[name]), job.plan, averages[name], job.dtype or FLOATING[found[name].dtype]
        )
        for name in names
    }
    done = rewriting.rewrite(place, folder, grown, job.dtype)
    extension_files.configure(place, folder, job.plan.after, job.dtype)
    code = job.spec.trust_remote_code
    extension_files.copy(place, folder, code=code)
    home = sources.tokenizer_place(job.wider, job.path)
    extension_files.copy_tokenizer(home, job.tokenizer, folder, code=code)
    chat = extension_files.chat_template(job.base, job.tokenizer, folder)
    return extension_note.about(job, folder, done, averages, chat), averages


def _room(folder: Path, found: Mapping[str, Stored], names: Sequence[str], plan: Plan) -> None:
    more = sum(found[name].size for name in names) * (plan.after - plan.before) // plan.before
    needed = sum(tensor.size for tensor in found.values()) + more
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{folder.parent.parent}: {needed:,} bytes of weights are to be written and {free:,} "
            "are free; give --out on another disk."
        )


def _sides(job: Extension, place: Path, folder: Path) -> Sides:
    """Base and result as they are loaded for the proof: in the dtype that the result has."""
    stored = checkpoint.embedding(checkpoint.tensors(folder))
    assert stored is not None
    dtype = FLOATING[stored.dtype]
    plain: dict[str, Any] = {"sha256": None, "revision": None, "tokenizer": None}
    plain |= {"dtype": "float32" if dtype == torch.float64 else rewriting.name(dtype)}
    own = plain | {"path": str(place)}
    if job.spec.tokenizer is not None:  # the base's own, from elsewhere
        own |= {"tokenizer": job.spec.tokenizer}
    return Sides(
        job.spec.model_copy(update=own),
        job.spec.model_copy(update=plain | {"path": str(folder)}),
        job.dtype,
    )


def _read_back(
    job: Extension, sides: Sides, averages: Mapping[str, Average], prompts: Sequence[str]
) -> tuple[dict[str, Any], list[extension_proof.Text]]:
    """What the files say, and the texts that the models are to be asked."""
    plan = job.plan
    written = extension_proof.tokens(sides.result, growing.vocabulary(job.base), job.tokens)
    how = {"dummy_prefix": job.dummy_prefix}
    proof = {
        "ids": f"all {len(plan.old)} old ids and {len(plan.new)} new ones as meant",
        **extension_proof.weights(sides, list(averages), plan),
        **extension_proof.sample(sides, averages, plan, job.base, written, **how),
    }
    return proof, extension_proof.tokenised(job.base, written, prompts)


def read_prompts(file: Path) -> list[str]:
    """The texts of a JSONL file of `{"prompt": …}`, as `preview --format jsonl` writes.

    Raises:
        DataError: a line that is none, or no line at all.
    """
    found: list[str] = []
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                content: Any = from_json(line)
                if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
                    raise DataError(f'{file}:{number}: not an object with a text "prompt".')
                found.append(content["prompt"])
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a JSONL file of prompts ({error}).") from error
    if not found:
        raise DataError(f"{file}: no prompts; give a line of JSON for each.")
    return found
