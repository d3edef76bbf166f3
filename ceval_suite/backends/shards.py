"""A model whose weights lie in shards in the processes that train it, and these processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ceval_suite.backends import placement
from ceval_suite.backends.ranks import PATIENCE


class Peers:
    """The processes that train one model, this one among them; objects travel by gloo."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.first = count == 1 or dist.get_rank() == 0
        self._group: Any = None

    @classmethod
    def of_this_job(cls) -> Peers:
        """Those of torch's default process group; one where there is none."""
        there = dist.is_available() and dist.is_initialized()
        return cls(dist.get_world_size() if there else 1)

    def __enter__(self) -> Peers:
        if self.count > 1:
            # a group of its own: the job's may give up on processes that wait for minutes
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def agreed(self, value: Any = None) -> Any:
        """The first process's value, in all processes."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group, device=torch.device("cpu"))
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Each process's value, in all processes."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._group)
        return found


def in_shards(model: Any) -> bool:
    """Whether no process holds all weights."""
    shares = any(hasattr(weight, "device_mesh") for weight in model.parameters())
    return shares or any(fsdp(module) is not None for module in model.modules())


def fsdp(module: Any) -> str | None:
    """Which generation of FSDP a module is wrapped in."""
    if not dist.is_available():
        return None
    from torch.distributed import fsdp as kinds

    if isinstance(module, kinds.FullyShardedDataParallel):
        return "fsdp"
    two = getattr(kinds, "FSDPModule", None)
    return "fully_shard" if two is not None and isinstance(module, two) else None


def computed_in(model: Any) -> Any:
    """The dtype of a model's passes: FSDP's mixed precision, else that of the weights."""
    for module in model.modules():
        kind = fsdp(module)
        policy: Any = None
        if kind == "fsdp":
            policy = module.mixed_precision
        elif kind:
            policy = module._get_fsdp_state()._mp_policy
        if getattr(policy, "param_dtype", None) is not None:
            return policy.param_dtype
    return placement.dtype(model)


def reshard(modules: Sequence[Any]) -> None:
    """Have FSDP give up weights that it keeps gathered after a pass without gradients.

    It keeps those of the root for a backward pass, and until that comes they would not follow the
    optimizer.
    """
    for module in modules:
        kind = fsdp(module)
        if kind == "fully_shard":
            module.reshard()
        elif kind == "fsdp" and module._is_root is not None:  # None before its first pass
            handle = module._handle
            if handle is not None and handle.uses_sharded_strategy and not handle.needs_unshard():
                _reshard(module, handle)


def _reshard(module: Any, handle: Any) -> None:
    from torch.distributed.fsdp import _runtime_utils

    inner: Any = _runtime_utils
    inner._reshard(module, handle, True)
