"""What the files of a checkpoint say without being loaded: tensors, shapes, rows never trained.

No torch, no transformers: headers are read as bytes, and rows are compared as bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ceval_suite.backends.gguf_header import check_gguf
from ceval_suite.errors import ModelError
from ceval_suite.untrusted import from_json

Rows = NDArray[np.uint8]
"""The rows of a matrix as bytes, [rows, bytes of a row]."""

EMBEDDINGS = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embd.weight",
    "embed_in.weight",
    "wte.weight",
    "shared.weight",
)
"""How architectures name the embedding, by the end of the name."""

HEADS = ("lm_head.weight", "output_layer.weight", "embed_out.weight", "output.weight")
"""How they name the output embedding; of these, the outermost."""

PARTS = re.compile(
    r"[._](SCB|weight_(format|scale|scale_inv|zero_point|shape|g_idx|global_scale)|input_scale"
    r"|absmax|quant_map|nested_\w+|quant_state\.\w+|scales|qzeros|g_idx)$"
)
"""How the formats name what belongs to quantised weights and is none itself."""

DTYPES = ("float32", "bfloat16", "float16")
"""What weights are computed in."""

KEY = 16
"""Bytes of a row that are compared before whole rows are."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape, its dtype as the file names it, and its bytes."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int

    @property
    def parameters(self) -> int:
        """Numbers in it; of packed weights, the packed ones."""
        return math.prod(self.shape)


def safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file that is as long as its header says.

    Raises:
        ModelError: a broken header, or fewer bytes than it promises.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = from_json(text)
        tensors.pop("__metadata__", None)
        found = {
            name: Stored(
                file,
                tuple(t["shape"]),
                t["dtype"],
                8 + length + t["data_offsets"][0],
                t["data_offsets"][1] - t["data_offsets"][0],
            )
            for name, t in tensors.items()
        }
        needed = max((t.start + t.size for t in found.values()), default=8 + length)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{file}: truncated or broken safetensors header; fetch it again."
        ) from error
    if size < needed:
        raise ModelError(
            f"{file}: truncated safetensors file ({size} bytes where its header needs {needed}); "
            "fetch it again."
        )
    return found


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint that hold weights; copies in another layout are not among them."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    usual = [file for file in found if not file.name.startswith("consolidated")]
    pickled = sorted(path.glob("pytorch_model*.bin")) or sorted(path.glob("*.bin"))
    return usual or found or pickled


def tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint, by name; pickled weights are not opened and give none.

    Raises:
        ModelError: a broken or truncated file.
    """
    if path.suffix == ".gguf":
        header = check_gguf(path)
        return {
            name: Stored(path, t.shape, t.type, t.start, t.size)
            for name, t in header.tensors.items()
        }
    found: dict[str, Stored] = {}
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            found |= safetensors(file)
    return found


def stored_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a config.json names; float32 where it names none that is computed in."""
    content = config.get("text_config") or config
    found = str(content.get("dtype") or content.get("torch_dtype") or "float32")
    return found if found in DTYPES else "float32"


def parameters(found: Mapping[str, Stored], bits: int | None = None) -> int:
    """Numbers that the tensors stand for: packed ones unpacked, scales and zero points left out.

    `bits` is the width of a quantised weight, None of a checkpoint that is not quantised.
    """
    if bits is None:
        return sum(tensor.parameters for tensor in found.values())
    total = 0
    states = {n.split(".quant_state.")[0]: t for n, t in found.items() if ".quant_state." in n}
    for name, tensor in found.items():
        if PARTS.search(name):
            continue
        shape = found.get(f"{name.removesuffix('_packed')}_shape")
        if name in states:  # bitsandbytes, 4 bits
            total += math.prod(from_json(_content(states[name]))["shape"])
        elif name.endswith(".weight_packed") and shape is not None:  # compressed-tensors
            total += math.prod(np.frombuffer(_content(shape), np.int64).tolist())
        elif name.endswith(".qweight"):  # GPTQ and AWQ
            total += tensor.size * 8 // bits
        else:
            total += tensor.parameters
    return total


def _content(tensor: Stored) -> bytes:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return stream.read(tensor.size)


def embedding(found: dict[str, Stored]) -> Stored | None:
    """The input embedding among tensors, [rows, width]."""
    return _ending(found, EMBEDDINGS)


def head(found: dict[str, Stored]) -> Stored | None:
    """The output embedding, where it is stored apart from the input embedding."""
    return _ending(found, HEADS)


def _ending(found: dict[str, Stored], endings: tuple[str, ...]) -> Stored | None:
    for ending in endings:
        names = [n for n in found if n == ending or n.endswith(f".{ending}")]
        matrices = [n for n in names if len(found[n].shape) == 2]
        if matrices:
            return found[min(matrices, key=lambda n: (n.count("."), n))]
    return None


def stored_rows(tensor: Stored) -> Rows:
    """The rows of a stored matrix, mapped into memory and read only where looked at."""
    rows = tensor.shape[0]
    # ValueError for an empty file or a matrix of no rows: neither passes the header's check
    flat = np.memmap(tensor.file, np.uint8, "r", offset=tensor.start, shape=(tensor.size,))
    return flat.reshape(rows, -1)


def never_trained(rows: Rows) -> tuple[list[int], list[int]]:
    """Indices of rows of zeros, and of other rows that equal one another in every byte.

    Training moves every row that it meets, and no two the same way.
    """
    keys = np.ascontiguousarray(rows[:, :KEY])
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    some = np.flatnonzero((counts[inverse.reshape(-1)] > 1) | ~keys.any(1))
    return equal_rows(some, [rows[i].tobytes() for i in some])


def equal_rows(indices: Any, contents: list[bytes]) -> tuple[list[int], list[int]]:
    """The same of rows that begin alike: which are zeros, and which equal another one."""
    by_content: dict[bytes, list[int]] = {}
    for index, content in zip(indices, contents, strict=True):
        by_content.setdefault(content, []).append(int(index))
    zero = [i for content, found in by_content.items() if not any(content) for i in found]
    groups = [found for content, found in by_content.items() if any(content)]
    equal = [i for found in groups if len(found) > 1 for i in found]
    return sorted(zero), sorted(equal)
