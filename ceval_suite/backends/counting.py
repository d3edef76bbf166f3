"""A model's context without its weights: how much it reads, and how its tokenizer counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ceval_suite.backends import own_code
from ceval_suite.backends.adapter_files import expand
from ceval_suite.backends.loading import max_length
from ceval_suite.backends.sources import resolve
from ceval_suite.backends.tokenizers import load_tokenizer, unreadable, wrap
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec


class Counter:
    """Counts tokens as the hf backend of the same spec will."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        """Read the tokenizer and the configuration.

        Raises:
            ModelError: another backend, or a checkpoint that cannot be read.
        """
        from transformers import AutoConfig

        if spec.backend != "hf":
            raise ModelError(
                f"tokens are counted before a model is loaded; model '{name}' is of "
                f"backend {spec.backend}, and only hf can do that."
            )
        where = path = resolve(spec := expand(spec))
        self.encoder = Encoder(load_tokenizer(spec, path))
        source: dict[str, Any] = own_code.options(spec)
        if path.suffix == ".gguf":
            where, source["gguf_file"] = path.parent, path.name
        try:
            config = AutoConfig.from_pretrained(where, **source)
        except Exception as error:  # transformers raises anything here
            raise unreadable(spec, "config.json", error, path) from error
        self.spec, self.path, self.config = spec, path, config
        self.max_length = spec.max_length or max_length(config, self.encoder.tokenizer)

    def wrap(self, user: str) -> str:
        """A user's turn in the model's chat template, up to the assistant's turn."""
        return wrap(self.encoder.tokenizer, user)

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, special tokens included."""
        found = self.encoder.contexts(texts, template_tokens=template_tokens)
        self.encoder.forget()
        return [len(ids) for ids in found]
