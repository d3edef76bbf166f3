"""Where the numbers of a broken checkpoint stop being numbers: the layer, and the tensor."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch

from ceval_suite.backends.attention import FAILURES
from ceval_suite.backends.batching import Tokens
from ceval_suite.backends.forward import Forward
from ceval_suite.errors import ModelError


def not_finite(
    model: Any, item: str, forward: Forward | None = None, tokens: Tokens | None = None
) -> ModelError:
    """What to say of an item whose scores are not finite; its row is computed once more, watched.

    Named are the first layer whose output is not finite, and the tensor of its that is not.
    """
    found: list[str] = []
    pair = getattr(model.config, "is_encoder_decoder", False)
    if forward is not None and tokens is not None and not pair:
        with suppress(*FAILURES), _watched(model, found):
            forward.plainly(tokens, [len(tokens) - 1])
    layer = found[0] if found else ""
    where = f"; the first layer whose output is not is '{layer}'" if layer else ""
    tensor = _tensor(model, layer)
    if tensor:
        name, count = tensor
        where += f"; its tensor '{name}' holds {count:,} values that are not"
        remedy = "fetch the checkpoint again, or take an earlier one (or try --dtype float32)"
    else:
        where += "; all its weights are" if layer else ""
        remedy = "the checkpoint is broken or its dtype too narrow (try --dtype float32)"
    return ModelError(
        f"{item}: the model's logits are not finite, and no score is recorded{where}; {remedy}."
    )


def _tensor(model: Any, layer: str) -> tuple[str, int] | None:
    """The first tensor with values that are not finite, of the layer before any other's."""
    named: list[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(named, key=lambda pair: not pair[0].startswith(layer)):
        if tensor.is_floating_point() and tensor.device.type != "meta":
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            if count:
                return name, count
    return None


@contextmanager
def _watched(model: Any, found: list[str]) -> Generator[None, None, None]:
    """Within it, the first module whose output is not finite is noted."""

    def hook(name: str) -> Any:
        def look(_: Any, args: Any, options: Mapping[str, Any], out: Any) -> None:
            if not found and _broken(out):
                given = [*args, options.get("hidden_states")]
                # what comes in broken was made between two modules, by what calls them
                found.append(name.rpartition(".")[0] if _broken(given) and "." in name else name)

        return look

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _broken(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and not bool(torch.isfinite(value).all())
    if isinstance(value, list | tuple):
        return any(map(_broken, cast("Iterable[Any]", value)))
    return False
