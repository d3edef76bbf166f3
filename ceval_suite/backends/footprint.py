"""What a model takes of memory, from its files and configuration, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.backends import checkpoint, placement
from ceval_suite.backends.loading import resolved_dtype
from ceval_suite.backends.sizes import SIZES
from ceval_suite.model_spec import ModelSpec


@dataclass(frozen=True)
class Footprint:
    """Bytes for weights, for the keys and values of one row, and for work on one pack.

    None where neither files nor configuration say it.
    """

    weights: int | None
    kept: int | None
    work: int | None

    @property
    def total(self) -> int | None:
        """All of it, where all is known."""
        if self.weights is None or self.kept is None or self.work is None:
            return None
        return self.weights + self.kept + self.work


def footprint(spec: ModelSpec, path: Path, config: Any, longest: int) -> Footprint:
    """What a model needs for rows of up to `longest` tokens."""
    device = placement.device(spec)
    size = resolved_dtype(spec, config, device).itemsize
    config = getattr(config, "text_config", None) or config
    width, layers = (_number(config, name) for name in ("hidden_size", "num_hidden_layers"))
    kept = work = None
    if width and layers:
        heads = _number(config, "num_attention_heads") or 1
        shared = _number(config, "num_key_value_heads") or heads
        head = _number(config, "head_dim") or width // heads
        kept = 2 * layers * shared * head * size * longest
        widest = max(_number(config, "intermediate_size") or 4 * width, width)
        # as the engine reckons where --memory is given: generous
        pack = max(SIZES.get(device.partition(":")[0], SIZES["cpu"]))
        work = 4 * (6 * widest + 16 * width) * min(pack, max(longest, 1) * 64)
    return Footprint(_weights(spec, path, config, size), kept, work)


def _weights(spec: ModelSpec, path: Path, config: Any, size: int) -> int | None:
    tensors = checkpoint.tensors(path)
    if not tensors:
        return None
    if getattr(config, "quantization_config", None):
        return sum(one.size for one in tensors.values())
    numbers = sum(math.prod(one.shape) for one in tensors.values())
    if spec.quant is not None:
        return math.ceil(numbers * spec.quant.bits / 8)
    return numbers * size


def _number(config: Any, name: str) -> int | None:
    found = getattr(config, name, None)
    return found if isinstance(found, int) and found > 0 else None
