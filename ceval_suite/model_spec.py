"""One entry of models.yaml, as validated types: ModelSpec and its parts."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidationError, model_validator

from ceval_suite.secrecy import clean, shown, without_credentials
from ceval_suite.specs import Strict


class Adapter(Strict):
    """A peft adapter on top of a checkpoint, or on top of the adapters before it.

    `merge: true` adds its weights into the base's before scoring; unset, it is merged where its
    kind and the base allow (LoRA on an unquantised base), and stays attached elsewhere.
    """

    path: str
    revision: str | None = None
    subfolder: str = ""
    merge: bool | None = None


FORMATS: dict[tuple[str, int], tuple[str, ...]] = {
    ("bitsandbytes", 8): ("int8",),
    ("bitsandbytes", 4): ("nf4", "fp4"),
    ("torchao", 8): ("int8",),
    ("torchao", 4): ("int4",),
    ("quanto", 8): ("int8", "float8"),
    ("quanto", 4): ("int4",),
    ("quanto", 2): ("int2",),
    ("hqq", 8): ("int8",),
    ("hqq", 4): ("int4",),
    ("hqq", 3): ("int3",),
    ("hqq", 2): ("int2",),
    ("fp8", 8): ("float8",),
}
"""Number formats that a method has for a number of bits; the first is its own choice."""


class Quant(Strict):
    """Weight-only quantisation applied while loading, or written by `model quantize`.

    `type` names a number format where the method has several (`nf4`, `fp4`, `int8`, `float8`).
    `granularity` and `symmetric` are torchao's to choose, and groups also hqq's.
    `skip` names modules, by the end of their name, that keep their dtype; `lm_head` stands for the
    output embedding, however the architecture calls it.
    """

    method: Literal["bitsandbytes", "torchao", "quanto", "hqq", "fp8"]
    bits: Literal[2, 3, 4, 8] = 8
    type: str | None = None
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group_size: int | None = Field(default=None, gt=0)
    symmetric: bool = True
    skip: list[str] = Field(default_factory=lambda: ["lm_head"])

    @model_validator(mode="after")
    def _possible(self) -> Quant:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("granularity: group and group_size go together")
        known = FORMATS.get((self.method, self.bits))
        if known is None:
            raise ValueError(f"method {self.method} has no {self.bits} bits")
        if self.type is not None and self.type not in known:
            raise ValueError(
                f"type '{self.type}' is not one of {', '.join(known)}, which {self.method} has for "
                f"{self.bits} bits"
            )
        plain = self.symmetric and self.granularity == "channel"
        groups = self.symmetric and self.granularity == "group" and self.method == "hqq"
        if not (plain or groups or self.method == "torchao"):
            raise ValueError(
                f"method {self.method} chooses granularity and symmetric itself; drop them, or use "
                "method: torchao"
            )
        return self

    @property
    def format(self) -> str:
        """The number format of the weights."""
        return self.type or FORMATS[self.method, self.bits][0]


class ServerOptions(Strict):
    """`options` of a model behind an OpenAI-compatible server.

    `key_env` names the environment variable that holds the key; the key itself is never written.
    """

    api: Literal["completions", "chat"] = "completions"
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    concurrency: int = Field(default=8, gt=0)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=6, ge=0)
    per_minute: int | None = Field(default=None, gt=0)
    top_logprobs: int = Field(default=20, gt=0)


class VllmOptions(Strict):
    """`options` of a model that vLLM runs in this process."""

    tensor_parallel_size: int = Field(default=1, gt=0)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    enforce_eager: bool = False
    max_logprobs: int = Field(default=64, gt=0)


class LmEvalOptions(Strict):
    """`options` of a model of lm-evaluation-harness: the name of its LM class and its arguments.

    A key among the arguments is used and hidden wherever they are written; most classes read it
    from the environment, which is the place for it.
    """

    lm: str = "hf"
    batch_size: int | str = 1
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)


OPTIONS: dict[str, type[Strict]] = {
    "server": ServerOptions,
    "vllm": VllmOptions,
    "lm_eval": LmEvalOptions,
}


NOT_APPLIED: dict[str, tuple[str, ...]] = {
    "server": (
        *("adapters", "quant", "grow_embeddings", "dtype", "device", "device_map", "tp_plan"),
        *("memory", "engine", "revision", "sha256", "allow_pickle"),
    ),
    "lm_eval": (
        *("adapters", "quant", "grow_embeddings", "device_map", "tp_plan", "memory", "engine"),
    ),
    "vllm": (*("quant", "grow_embeddings", "device", "device_map", "tp_plan", "memory", "engine"),),
}
"""Keys that a backend cannot honour: given all the same, they are an error, never passed over."""


Url = Annotated[str, PlainSerializer(without_credentials)]
"""A URL that is shown and stored without its credentials."""

Place = Annotated[str, PlainSerializer(clean)]
"""A path; lm-eval has classes whose path is a URL."""


class ModelSpec(Strict):
    """One entry of models.yaml, or a path given on the command line.

    `options` belong to the backend: ServerOptions, VllmOptions or LmEvalOptions say which there
    are. `code_revision` is the commit of the repository that a checkpoint takes its code from,
    where that is not its own (needs `trust_remote_code`). `device_map` and `tp_plan` spread a model
    over several devices (accelerate's and transformers' own words).
    """

    backend: Literal["hf", "server", "vllm", "lm_eval"] = "hf"
    path: Place
    revision: str | None = None
    sha256: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    adapters: list[Adapter] = Field(default_factory=list[Adapter])
    quant: Quant | None = None
    grow_embeddings: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    device_map: str | dict[str, int | str] | None = None
    tp_plan: Literal["auto"] | None = None
    max_length: int | None = Field(default=None, gt=0)
    memory: str | None = Field(default=None, pattern=r"^\d+(\.\d+)?\s*([KMGT]i?)?B?$")
    engine: Literal["auto", "plain", "reproducible"] = "auto"
    trust_remote_code: bool = False
    code_revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    allow_pickle: bool = False
    url: Url | None = None
    options: Annotated[dict[str, Any], PlainSerializer(shown)] = Field(default_factory=dict)
    note: str = ""

    @model_validator(mode="after")
    def _belongs(self) -> ModelSpec:
        if (self.backend == "server") != (self.url is not None):
            raise ValueError("backend: server and url go together")
        if self.code_revision and not self.trust_remote_code:
            raise ValueError("code_revision pins code that only trust_remote_code: true lets run")
        if self.options and self.backend not in OPTIONS:
            raise ValueError(f"backend {self.backend} takes no options")
        if self.backend in OPTIONS:
            try:
                self.backend_options()
            except ValidationError as error:
                # without the values: one of them may be a key that was written here by mistake
                found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
                raise ValueError(f"options: {'; '.join(found)}") from None
        for key in NOT_APPLIED.get(self.backend, ()):
            if getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{key} cannot be applied by backend {self.backend}")
        return self

    def backend_options(self) -> Any:
        """`options` as the backend's own type, defaults filled in."""
        return OPTIONS[self.backend](**self.options)

    @property
    def memory_bytes(self) -> int | None:
        """`memory` as a number."""
        found = re.match(r"([\d.]+)\s*([KMGT]?)(i?)", self.memory or "")
        if not found:
            return None
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))
