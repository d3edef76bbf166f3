"""Everything a user can get wrong, as types.

UserError               printed as one sentence, exit code 1
├── ConfigError         a YAML file: unknown key, wrong value, unknown name
├── DataError           benchmark files: missing, incomplete, broken row, wrong hash
├── PromptError         a prompt that cannot be built, tokenised or fitted
├── ModelError          a checkpoint that cannot be found, loaded or trusted
│   └── NotNow          what may be over by itself: no memory left, a hub that does not answer
└── RunError            a run folder: another model, protocol or data; locked; broken

A message is one sentence that names the file, the key or row, and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; shown without a traceback."""


class ConfigError(UserError):
    """A YAML file or a name that points into one."""


class DataError(UserError):
    """Benchmark files that are missing, incomplete or not what they should be."""


class PromptError(UserError):
    """A prompt that cannot be built, tokenised or fitted into the context."""


class ModelError(UserError):
    """A checkpoint that cannot be found, loaded or trusted."""


class NotNow(ModelError):
    """Nothing is wrong with the model: memory ran out, or the hub did not answer."""


class RunError(UserError):
    """A run folder that must not be used for this run."""


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
)
"""How torch and what it computes with say it, on CPUs and GPUs."""


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    >>> no_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."))
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name, with the nearest known one.

    >>> unknown("task", "cmlu", ["mmlu", "cmmlu"])
    "unknown task 'cmlu': did you mean 'cmmlu'? Known: cmmlu, mmlu."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    return f"unknown {kind} '{name}':{hint} Known: {shown or 'none'}."
