"""Attention of packed tokens by a small kernel in C, on a CPU, where a compiler is at hand.

torch has no kernel that reads one kept head for many rows and gives each row its own tail; put
together from its operations, half of the scores are computed only to be masked, and all of them
go through memory five times. The kernel in native.c computes those that are seen, in a processor's
registers and nearest cache (2.4 times as fast on an EPYC of family 26). It is compiled once, in
about a second, for the processor it runs on, and kept in the cache folder; without a compiler, or
where anything about it fails, attention takes the other ways.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends.layout import Call
from ceval_suite.files import cache_dir

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-fopenmp")
DTYPES = (torch.float32, torch.bfloat16)
PATIENCE = 60
"""Seconds that the compiler may take."""

_Int = ctypes.c_int64
_Pointer = ctypes.c_void_p


class _Rows(ctypes.Structure):
    _fields_ = (("data", _Pointer), ("head", _Int), ("token", _Int))


class _Call(ctypes.Structure):
    """`Call` of native.c, field by field."""

    _fields_ = (
        *((name, _Rows) for name in ("query", "key", "value", "kept_key", "kept_value")),
        ("out", _Pointer),
        *((name, _Pointer) for name in ("from", "to", "depth", "above_at", "above")),
        *((name, _Int) for name in ("nodes", "heads", "key_heads", "key_width", "value_width")),
        *((name, _Int) for name in ("deepest", "bfloat16")),
        ("scale", ctypes.c_float),
    )


@cache
def kernel() -> Callable[[Any], int] | None:
    """The compiled kernel; None where there is no compiler or it does not go with this torch."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError):
        return None
    found = library.ceval_attend
    found.argtypes, found.restype = [ctypes.POINTER(_Call)], ctypes.c_int
    return found


def _built() -> Path:
    """The library for this source, compiler and processor, made if it is not in the cache."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    version = _run([*compiler, "--version"])
    key = [SOURCE.read_bytes(), version, " ".join([*compiler, *FLAGS]).encode(), _processor()]
    digest = hashlib.sha256(b"\0".join(key)).hexdigest()[:16]
    target = cache_dir() / "native" / f"{digest}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        half, whole = Path(folder) / "native.o", Path(folder) / "native.so"
        _run([*compiler, *FLAGS, "-c", str(SOURCE), "-o", str(half)])
        # OpenMP is left open: torch's own serves, for two pools of threads would fight
        _run([*compiler, "-shared", "-nodefaultlibs", str(half), "-o", str(whole), "-lc"])
        os.replace(whole, target)
    return target


def _run(command: list[str]) -> bytes:
    # nothing of a user's goes into the command but $CC, which is theirs to set
    done = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)  # noqa: S603
    return done.stdout


def _processor() -> bytes:
    """What `-march=native` looks at: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    names = (b"model", b"cpu family", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(names)}))


def attend(call: Call) -> torch.Tensor:
    """Packed tokens against kept and packed ones: [1, T, H, D].

    Raises:
        RuntimeError: the kernel is not there, or had no memory.
    """
    run = kernel()
    if run is None:
        raise RuntimeError("no compiled kernel")
    query, layout = call.query, call.layout
    heads, width = query.shape[1], query.shape[-1]
    out = query.new_empty(1, layout.size, heads, call.value.shape[-1])
    sides = (query, call.key, call.value, *(call.kept or (call.key, call.value)))
    sides = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in sides)
    given = _Call(
        *(_Rows(x.data_ptr(), x.stride(1), x.stride(2)) for x in sides),
        out.data_ptr(),
        *(array.ctypes.data for array in layout.spans),
        len(layout.spans[0]),
        heads,
        call.key.shape[1],
        width,
        call.value.shape[-1],
        layout.depth,
        int(query.dtype == torch.bfloat16),
        call.scaling if call.scaling is not None else width**-0.5,
    )
    if run(ctypes.byref(given)):
        raise torch.OutOfMemoryError("no memory for the panels of keys and values")
    return out
