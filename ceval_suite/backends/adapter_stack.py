"""What stands in an adapter's directory, as peft reads it, and which adapters are merged."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ceval_suite.backends import adapter_files
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter

Shape = tuple[int, ...]

UNNAMED = "a base it does not name"


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Without peft's warnings: what they are about is checked, and an error where it matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_sentence(error: Exception) -> str:
    """The beginning of a library's message, fit to stand in a sentence of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:240].rstrip(".")


class Stacked:
    """One adapter directory, read."""

    def __init__(self, spec: Adapter, path: Path) -> None:
        from peft import PeftConfig

        self.path = path
        self.asked = spec.merge
        self.raw = adapter_files.config(path)
        self.kind = str(self.raw.get("peft_type"))
        self.base = str(self.raw.get("base_model_name_or_path") or UNNAMED)
        if self.kind == "XLORA":
            # its weights lie in other directories, which nothing here would check or fingerprint,
            # and a pass over the whole prompt chooses among them
            raise ModelError(
                f"{path}: XLORA mixes adapters that lie elsewhere and cannot be scored; give one "
                "of those that its configuration names under `adapters`."
            )
        try:
            with quiet():
                self.config: Any = PeftConfig.from_pretrained(str(path))
        except Exception as error:  # peft raises anything here
            raise ModelError(
                f"{path}: peft cannot read {adapter_files.CONFIG} ({first_sentence(error)}); it "
                "may need a newer peft than is installed."
            ) from error
        self.config.inference_mode = True
        self.prompts = bool(self.config.is_prompt_learning)
        self.invoked: list[int] = list(getattr(self.config, "alora_invocation_tokens", None) or [])
        variant = "DoRA" if getattr(self.config, "use_dora", False) else self.kind
        self.word = "aLoRA" if self.invoked else variant
        trained = getattr(self.config, "trainable_token_indices", None)
        self.additive = self.word == "LORA" and not trained

    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of its tensors, read without the tensors where the file allows."""
        from peft import load_peft_weights
        from safetensors import safe_open

        file = self.path / adapter_files.WEIGHTS
        try:
            if not file.is_file():
                stored = load_peft_weights(str(self.path), device="cpu")
                return {key: tuple(value.shape) for key, value in stored.items()}
            with safe_open(file, "pt") as stream:
                return {key: tuple(stream.get_slice(key).get_shape()) for key in stream.keys()}  # noqa: SIM118
        except Exception as error:  # truncated files raise anything
            raise ModelError(
                f"{file}: truncated or broken ({first_sentence(error)}); fetch it again."
            ) from error


def plan(base: str, adapters: Sequence[Stacked], quantised: bool) -> list[bool]:
    """Which adapters are merged: as asked, or LoRA and whatever lies below another adapter.

    Raises:
        ModelError: what cannot be merged is to be, or must be and is not to be.
    """
    merges: list[bool] = []
    for number, one in enumerate(adapters):
        last = number == len(adapters) - 1
        if one.prompts and not last:
            raise ModelError(
                f"{one.path}: {one.kind} puts tokens of its own before the prompt and cannot lie "
                "below another adapter; put it last under `adapters`."
            )
        if one.asked and (one.prompts or one.invoked):
            raise ModelError(
                f"{one.path}: {one.kind} has no weights that could be merged; leave `merge` out."
            )
        if one.asked and quantised:
            raise ModelError(
                f"{one.path}: merging into the quantised weights of {base} would round the adapter "
                "away; set merge: false to score it attached, or merge it into the unquantised "
                "checkpoint with `ceval-suite model merge` and quantise the result."
            )
        under = [below for below, done in zip(adapters, merges, strict=False) if not done]
        can = not (one.prompts or one.invoked or quantised or under)
        usual = can and (one.kind == "LORA" or not last)
        merges.append(usual if one.asked is None else one.asked)
        if under and merges[-1]:
            raise ModelError(
                f"{one.path}: cannot be merged while {under[0].path}, which lies below it, stays "
                "attached; set merge: true there or merge: false here."
            )
        for other in [*under, *([one] if under and not one.prompts else [])]:
            if not other.additive:
                raise ModelError(
                    f"{other.path}: {other.word} cannot stay attached in a stack, for each would "
                    "be computed without the other; set merge: true on all but the last adapter."
                )
    return merges
