"""What shows that an adapter is the one that was meant: it fits, loads whole and does something.

peft says nothing of tensors that it did not load, and an adapter that was never trained changes
nothing: both end in the base's score under the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import adapter_files
from ceval_suite.backends.adapter_rows import name_of, trained_rows
from ceval_suite.backends.adapter_stack import UNNAMED, Shape, Stacked, first_sentence
from ceval_suite.errors import ModelError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""How far merging may move a log-probability: the rounding of the weights explains that much."""

TEXT = (
    "Which of these is a prime number?\nA. 12\nB. 7\nAnswer: B\n\n以下是一道选择题。\nA. 是\n答案："
)
"""What is put to the model to see whether an adapter changes anything."""

ADDED = 64
"""Added or singly trained tokens that are put after it, at most."""

ELSEWHERE = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")
"""Tensors of prompts that peft loads itself and then reports as unexpected."""


@dataclass
class Probe:
    """Tokens put to the model, and the logits [T, V] that the adapters attached give them."""

    ids: torch.Tensor
    logits: torch.Tensor
    tolerance: float


def tolerance(dtype: torch.dtype) -> float:
    """How far merging may move a log-probability of a model of this dtype."""
    return TOLERANCE.get(dtype, 0.5)


def probe_ids(
    tokenizer: Any, one: Stacked, rows: int, added: Iterable[int] = ()
) -> list[list[int]]:
    """Tokens [1, T] among the first `rows`: a text, then `added` ones and what switches it on."""
    ids: list[int] = [i for i in tokenizer(TEXT)["input_ids"] if i < rows]
    more = dict.fromkeys([*added, *trained_rows(one.config)])
    return [ids + [i for i in list(more)[-ADDED:] if i < rows] + one.invoked]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of ids [1, T] in float32."""
    pair = bool(getattr(model.config, "is_encoder_decoder", False))
    more = {"decoder_input_ids": ids} if pair else {}
    out = model(input_ids=ids, use_cache=False, **more).logits
    return out[0, -ids.shape[1] :].float()


def run(one: Stacked, whole: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits with an adapter attached.

    Raises:
        ModelError: it wants to be told more than a prompt.
    """
    try:
        return logits(whole, ids)
    except Exception as error:  # peft raises anything here
        raise ModelError(
            f"{one.path}: {one.word} cannot be run on a prompt alone ({first_sentence(error)}); "
            "it cannot be scored."
        ) from error


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference."""
    return float((a - b).abs().max())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of a log-probability."""
    return far(a.log_softmax(-1), b.log_softmax(-1))


def changes(one: Stacked, base: str, change: float, dtype: torch.dtype) -> None:
    """Refuse an adapter that changes nothing."""
    if change != change:
        raise ModelError(
            f"{one.path}: with the adapter on {base} the logits are not finite; it is broken, or "
            "the dtype too narrow (try --dtype float32)."
        )
    if change == 0:
        raise ModelError(
            f"{one.path}: the adapter changes no logit of {base} (in "
            f"{str(dtype).removeprefix('torch.')}); it was never trained, or is not the one that "
            "was meant."
        )


def same_base(one: Stacked, model: Any, base: str) -> str:
    """What to note where an adapter names another base than the one it is put on.

    Raises:
        ModelError: it names another architecture, or one of another size.
    """
    named = (one.raw.get("auto_mapping") or {}).get("base_model_class")
    # a class that is not for language modelling was only how the base was once loaded
    if named and str(named).endswith("ForCausalLM") and named != type(model).__name__:
        raise ModelError(
            f"{one.path}: the adapter was made for {one.base}, a {named}, and {base} is a "
            f"{type(model).__name__}; give the base it was trained on."
        )
    file = Path(one.base).expanduser() / "config.json"
    other = adapter_files.read(file) if file.is_file() else {}
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        here = getattr(model.config, key, None)
        if other.get(key) is not None and here is not None and other[key] != here:
            raise ModelError(
                f"{one.path}: the adapter was made for {one.base}, whose {key} is {other[key]}, "
                f"and {base} has {here}; give the base it was trained on."
            )
    if one.base == UNNAMED or Path(one.base).name.lower() == Path(base).name.lower():
        return ""
    return f"{one.path} names {one.base} as its base and is put on {base}, whose shapes it fits"


def all_loaded(
    one: Stacked, whole: Any, found: Any, model: Any, base: str, shapes: Mapping[str, Shape]
) -> None:
    """Refuse an adapter that lacks tensors or has some left over; `found` is peft's report."""
    state = whole.state_dict() if found.missing_keys else {}
    have = {value.data_ptr() for key, value in state.items() if key not in found.missing_keys}
    # some kinds keep one tensor under many names and store it under the first
    missing = [key for key in found.missing_keys if state[key].data_ptr() not in have]
    names = name_of(model, "output"), name_of(model, "input")
    left = [key for key in found.unexpected_keys if not _twin(key, shapes, *names)]
    if missing or left:
        lacks = f"lacks {len(missing)} of the tensors that it needs on"
        over = f"has {len(left)} tensors that have no place on"
        raise ModelError(
            f"{one.path}: the adapter (of {one.base}) {lacks if missing else over} {base} "
            f"({(missing or left)[0]}, …); give the base it was trained on, or the whole adapter."
        )


def _twin(key: str, shapes: Mapping[str, Shape], head: str, embedding: str) -> bool:
    """Whether what `key` holds was read all the same: peft stores some tensors twice."""
    twins = {
        re.sub(r"\.modules_to_save\.([^.]+\.)?", ".", key),
        key.replace(f".{head}.token_adapter.", f".{embedding}.token_adapter."),
    }
    # the report may have the adapter's name in it, the file has not
    bare = {re.sub(r"(trainable_tokens_delta)\.[^.]+$", r"\1", twin) for twin in twins - {key}}
    return key in ELSEWHERE or any(name in shapes for name in bare)


def refused(one: Stacked, base: str, error: Exception) -> ModelError:
    """What to say of an adapter that peft cannot put on a model."""
    text = " ".join(str(error).split())
    size = re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", text)
    if size:
        why = f"tensor {size[1]} is ({size[2]}) where that needs ({size[3]})"
    elif isinstance(error, KeyError):
        why = "its tensor " + text.strip("'\"") + " is missing"
    else:
        why = first_sentence(error)
    return ModelError(
        f"{one.path}: the adapter (of {one.base}) cannot be put on {base} ({why}); give the base "
        "it was trained on."
    )
