"""Rows of the embedding and the head that an adapter brings along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ceval_suite.backends.adapter_stack import Shape
from ceval_suite.errors import ModelError


def grow(model: Any, shapes: Mapping[str, Shape], config: Any, adapter: str, base: str) -> int:
    """Give the model the rows that an adapter's own tensors have; never fewer than it has.

    A padded embedding keeps its rows: how many there are is what the adapter was trained on, not
    what a tokenizer has entries.

    Returns:
        The rows that the embedding has now.

    Raises:
        ModelError: the adapter has fewer rows, its tensors disagree, or one of the embedding and
            the head would get rows that nothing was trained for.
    """
    embedding = model.get_input_embeddings()
    before = int(embedding.weight.shape[0])
    named = {side: name_of(model, side) for side in ("input", "output")}
    rows = {side: set(implied(shapes, name, side)) for side, name in named.items()}
    trained = trained_rows(config)
    wanted = {n for some in rows.values() for n, _ in some}
    if not wanted and max(trained, default=-1) >= before:
        wanted = {max(trained) + 1}
    if len(wanted) > 1:
        raise ModelError(
            f"{adapter}: its embedding and head have different numbers of rows "
            f"({', '.join(map(str, sorted(wanted)))}); the adapter is broken, fetch it again."
        )
    if not wanted or wanted == {before}:
        return before
    after = wanted.pop()
    if after < before:
        raise ModelError(
            f"{adapter}: its embedding has {after} rows and that of {base} has {before}, which is "
            "never cut; give the base it was trained on."
        )
    filled = {side for side, some in rows.items() if any(whole for _, whole in some)}
    if set(range(before, after)) <= set(trained):
        filled.add("input")
    head = model.get_output_embeddings()
    tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
    if tied and not _copies(config, named["input"]):
        filled |= {"input", "output"} if filled else set()
    lacking = {"input": "embedding", "output": "head"}
    for side in [s for s in lacking if s not in filled and named[s]]:
        raise ModelError(
            f"{adapter}: it adds {after - before} tokens to the {before} of {base} but brings no "
            f"rows of the {lacking[side]} for them; save it with save_embedding_layers=True."
        )
    try:
        _resize(model, before, after)
    except Exception as error:  # quantised, or under an adapter that stays attached
        raise ModelError(
            f"{adapter}: it adds {after - before} tokens, and the embedding of {base} cannot grow "
            f"as it is ({type(error).__name__}); merge the adapters below it into the unquantised "
            "base first."
        ) from error
    return after


def _resize(model: Any, before: int, after: int) -> None:
    model.resize_token_embeddings(after, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:  # until the adapter's rows come: nothing random
                usual = layer.weight[:before].float().mean(0)
                layer.weight[before:] = usual.to(layer.weight.dtype)


def untie(model: Any) -> None:
    """A head of its own where an adapter computes with the head or the embedding alone.

    Merging into weights that both share would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    embedding, head = (_inside(layer) for layer in layers)
    if head is not None and embedding.weight.data_ptr() == head.weight.data_ptr():
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        settle_tie(model)


def settle_tie(model: Any) -> None:
    """Have the configuration say so when embedding and head no longer share their weights."""
    embedding, head = _inside(model.get_input_embeddings()), _inside(model.get_output_embeddings())
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if embedding.weight.data_ptr() != head.weight.data_ptr():
        model.config.tie_word_embeddings = False


def _inside(layer: Any) -> Any:
    """The layer that peft's wrappers are around."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    while isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
        name = "base_layer" if isinstance(layer, BaseTunerLayer) else "original_module"
        layer = getattr(layer, name)
    return layer


def name_of(model: Any, side: str) -> str:
    """What the embedding (`input`) or the head (`output`) is called in a model."""
    layer = model.get_input_embeddings() if side == "input" else model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is layer), "")


def implied(shapes: Mapping[str, Shape], name: str, side: str) -> Iterator[tuple[int, bool]]:
    """Rows that the tensors of a layer imply, and whether each is the whole layer."""
    for key, shape in shapes.items():
        parts = key.removeprefix("base_model.model.").split(f"{name}.", 1)
        if not name or len(parts) != 2 or parts[0] or len(shape) != 2:
            continue
        rest = parts[1].removesuffix(".weight")
        if rest.startswith("lora_embedding_A"):
            yield shape[1], False
        elif rest.startswith("lora_B") and side == "output":
            yield shape[0], False
        elif rest in ("weight", "base_layer", "original_module", "modules_to_save"):
            yield shape[0], True


def trained_rows(config: Any) -> list[int]:
    """Rows of the embedding that are trained one by one."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    name = "token_indices" if kind == "TRAINABLE_TOKENS" else "trainable_token_indices"
    found: Any = getattr(config, name, None) or []
    some: list[list[int]] = list(found.values()) if isinstance(found, Mapping) else [found]
    return [int(index) for part in some for index in part]


def _copies(config: Any, name: str) -> bool:
    """Whether the adapter has a copy of the embedding, apart from a head that shares it."""
    saved: list[str] = list(getattr(config, "modules_to_save", None) or [])
    apart = not getattr(config, "ensure_weight_tying", False)
    return apart and any(name.endswith(one) for one in saved)
