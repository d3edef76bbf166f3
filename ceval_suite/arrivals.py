"""Checkpoints that a training job writes into a folder: which are there, and which are finished.

Nothing is loaded. A file that is still being written is shorter than its own header says; what
comes after the weights is told by a folder that has not changed between two looks, or by the
state that transformers' Trainer writes last.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ceval_suite.backends import checkpoint
from ceval_suite.backends.adapter_files import CONFIG, PICKLE, VOCABULARIES, WEIGHTS
from ceval_suite.errors import ModelError

STATE = "trainer_state.json"
"""What transformers' Trainer writes when all else of a checkpoint is there."""

INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_PICKLED_SHARD = re.compile(r"-(\d+)-of-(\d+)\.bin$")

_STEP = re.compile(r"(?:checkpoint|step)s?[-_=]?(\d+)", re.IGNORECASE)
"""How training jobs name the folder of a step: checkpoint-500, global_step500, epoch=1-step=500."""

Signature = tuple[tuple[str, int, int], ...]
"""Names, sizes and times of the files of a folder."""


@dataclass(frozen=True)
class Arrival:
    """One checkpoint: `missing` says what of it is not there yet, `sealed` that it is finished.

    `step` is None where neither the job nor the folder's name says one.
    """

    folder: Path
    kind: Literal["full", "adapter"]
    step: int | None
    missing: str
    sealed: bool
    signature: Signature

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies with the weights."""
        return has_tokenizer(self.folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    named = any((folder / name).is_file() for name in VOCABULARIES)
    return named or any(folder.glob("*.tiktoken"))


def look(place: Path) -> list[Arrival]:
    """The checkpoints in the folders of `place`, finished or not, by step and name.

    Links are not followed: what they name is found by itself, or is none of the job's.
    """
    out: list[Arrival] = []
    try:
        folders = [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
    for folder in folders:
        # the Trainer of older versions writes under a name of its own, and renames when finished
        if folder.name.startswith((".", "tmp-")):
            continue
        try:
            found = _look(folder)
        except OSError:  # removed, or being replaced, while it is looked at
            continue
        if found is not None:
            out.append(found)
    return sorted(out, key=lambda one: (-1 if one.step is None else one.step, one.folder.name))


def _look(folder: Path) -> Arrival | None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    adapter = bool(names & {CONFIG, WEIGHTS, PICKLE})
    weights = [path for path in files if path.suffix in (".safetensors", ".bin")]
    if not (adapter or weights or names & {"config.json", INDEX, PICKLED_INDEX}):
        return None
    state = _json(folder / STATE)
    stats = [(path.name, path.stat()) for path in files]
    return Arrival(
        folder=folder,
        kind="adapter" if adapter else "full",
        step=_step(folder.name, state),
        missing=_missing_of_adapter(folder) if adapter else _missing(folder, names),
        sealed=state is not None,
        signature=tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats),
    )


def _step(name: str, state: dict[str, Any] | None) -> int | None:
    said = (state or {}).get("global_step")
    if isinstance(said, int):
        return said
    numbers = _STEP.findall(name) or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def _missing_of_adapter(folder: Path) -> str:
    if _json(folder / CONFIG) is None:
        return f"no whole {CONFIG} yet"
    if (folder / WEIGHTS).is_file():
        return _torn(folder / WEIGHTS)
    return "" if (folder / PICKLE).is_file() else f"no {WEIGHTS} yet"


def _missing(folder: Path, names: set[str]) -> str:
    if _json(folder / "config.json") is None:
        return "no whole config.json yet"
    if INDEX in names or any(_SHARD.search(name) for name in names):
        found = _named(folder / INDEX)
        if found is None:
            return f"no whole {INDEX} yet"
        shards = found
    elif "model.safetensors" in names:
        shards = ["model.safetensors"]
    elif not any(name.endswith(".safetensors") for name in names):
        return _missing_pickled(folder, names)
    else:
        shards = sorted(name for name in names if name.endswith(".safetensors"))
    for name in shards:
        if name not in names:
            return f"no {name} yet"
        if torn := _torn(folder / name):
            return torn
    return ""


def _missing_pickled(folder: Path, names: set[str]) -> str:
    """The same of pickled weights, which say nothing of their length.

    Whether they may be read is decided later.
    """
    if PICKLED_INDEX in names or any(_PICKLED_SHARD.search(name) for name in names):
        shards = _named(folder / PICKLED_INDEX)
        if shards is None:
            return f"no whole {PICKLED_INDEX} yet"
        return next((f"no {name} yet" for name in shards if name not in names), "")
    return "" if any(name.endswith(".bin") for name in names) else "no weights yet"


def _named(index: Path) -> list[str] | None:
    """The files that an index names; None where it is not all there."""
    found: Any = (_json(index) or {}).get("weight_map")
    return sorted({str(name) for name in found.values()}) if isinstance(found, dict) else None


def _torn(file: Path) -> str:
    """What keeps a safetensors file from being whole; nothing if it is."""
    try:
        checkpoint.safetensors(file)
    except ModelError:
        return f"{file.name} is not all there yet"
    return ""


def _json(file: Path) -> dict[str, Any] | None:
    """A JSON object from disk; None where it is not there, or not all there."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
