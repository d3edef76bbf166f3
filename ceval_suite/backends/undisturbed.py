"""A model in training as it is found, kept while it is scored, and put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ceval_suite.backends.shards import in_shards, reshard

REPLACED = ("forward", "_compiled_call_impl")
"""What stands in a module itself where its pass is another than that of its class."""


@contextmanager
def undisturbed(model: Any) -> Generator[None, None, None]:
    """Within it the model is in evaluation mode, outside autocast; afterwards all is as before.

    That is the mode of every submodule, their buffers, configuration (attention and cache with
    it), output embedding, replaced or compiled passes, and the states of all random generators.
    """
    modules = list(model.modules())
    before = [_Kept.of(module) for module in modules]
    configs = _configs(modules)
    rng = _random_states()
    reshard(modules)
    shards = in_shards(model)
    head = model.get_output_embeddings()
    try:
        for module in modules:
            # not eval(): some classes merge weights when their mode is changed
            module.training = False
            own = vars(module)
            if own.get("_compiled_call_impl") is not None:
                own["_compiled_call_impl"] = None
            if "forward" in own and "_original_forward" in own:  # accelerate's autocast around it
                own["forward"] = own["_original_forward"]
        kind = next(model.parameters()).device.type
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        if model.get_output_embeddings() is not head:
            model.set_output_embeddings(head)
        reshard(modules)
        for kept in before:
            kept.restore(buffers=not shards)
        for config, content in configs:
            vars(config).clear()
            vars(config).update(content)
        _restore_random(rng)


@dataclass
class _Kept:
    """What scoring may change of one module."""

    module: Any
    training: bool
    own: dict[str, Any]
    buffers: dict[str, Any]

    @classmethod
    def of(cls, module: Any) -> _Kept:
        own = vars(module)
        names = [n for n in own if n in REPLACED or n.endswith("max_seq_len_cached")]
        return cls(module, module.training, {n: own[n] for n in names}, dict(module._buffers))

    def restore(self, *, buffers: bool) -> None:
        own = vars(self.module)
        for name in REPLACED:
            if name in own and name not in self.own:
                del own[name]
        own.update(self.own)
        self.module.training = self.training
        if buffers:
            self.module._buffers.update(self.buffers)


def _configs(modules: Sequence[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The configurations of a model, each once, with what they hold."""
    found: dict[int, Any] = {}
    waiting = [
        getattr(module, name, None)
        for module in modules
        for name in ("config", "generation_config")
    ]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in found or not hasattr(one, "__dict__"):
            continue
        found[id(one)] = one
        inner: Mapping[str, Any] = getattr(one, "sub_configs", None) or {}
        waiting += [getattr(one, key, None) for key in inner]
    return [(one, dict(vars(one))) for one in found.values()]


def _accelerator() -> Any:
    """torch's module for the accelerator that is in use; None on a CPU alone."""
    found = torch.accelerator.current_accelerator()
    if found is None:
        return None
    module: Any = torch.get_device_module(found.type)
    ready = getattr(module, "is_initialized", lambda: True)
    return module if ready() else None


def _random_states() -> list[Callable[[], None]]:
    """What sets every random generator back to where it is now."""
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    out: list[Callable[[], None]] = [
        lambda: random.setstate(python),
        lambda: np.random.set_state(arrays),
        lambda: torch.set_rng_state(cpu),
    ]
    device = _accelerator()
    if hasattr(device, "get_rng_state_all"):
        states = device.get_rng_state_all()
        out.append(lambda: device.set_rng_state_all(states))
    elif device is not None:
        state = device.get_rng_state()
        out.append(lambda: device.set_rng_state(state))
    return out


def _restore_random(states: Sequence[Callable[[], None]]) -> None:
    for restore in states:
        restore()
