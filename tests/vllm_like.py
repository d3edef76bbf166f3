"""A stand-in for vLLM's `LLM` and `SamplingParams`, which computes with transformers on the CPU.

It takes the arguments that the backend gives to vLLM 0.10 and later, and answers in its types; the
numbers are a tiny model's own.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from tests.serving import Engine


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    stop: list[str] | None = None
    detokenize: bool = True
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None


@dataclass
class OlderSamplingParams:
    """As versions have it that cannot be asked for named tokens."""

    max_tokens: int = 16
    temperature: float = 1.0
    stop: list[str] | None = None
    detokenize: bool = True
    logprobs: int | None = None
    allowed_token_ids: list[int] | None = None


def module(engine: Engine, params: Any = SamplingParams, length: int = 512) -> Any:
    """A module `vllm` whose LLM computes with this engine; `calls` keeps what was generated."""
    found: Any = types.ModuleType("vllm")
    found.__version__ = "0"
    found.SamplingParams = params
    found.calls = []
    found.arguments = {}

    class LLM:
        def __init__(self, **arguments: Any) -> None:
            found.arguments = arguments
            config = types.SimpleNamespace(max_model_len=length, dtype="float32")
            self.llm_engine = types.SimpleNamespace(model_config=config)

        def generate(
            self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any
        ) -> list[Any]:
            pairs = zip(prompts, params, strict=True)
            found.calls.append([(prompt["prompt_token_ids"], one) for prompt, one in pairs])
            return [_answer(engine, ids, one) for ids, one in found.calls[-1]]

    found.LLM = LLM
    return found


def _answer(engine: Engine, ids: list[int], params: Any) -> Any:
    assert params.temperature == 0
    if params.logprobs is None:
        text, reason, made = engine.write(ids, params.max_tokens, params.stop or [])
        one = types.SimpleNamespace(text=text, finish_reason=reason, token_ids=[0] * made)
        return types.SimpleNamespace(outputs=[one])
    last = engine.logprobs(ids)[-1]
    named = getattr(params, "logprob_token_ids", None)
    forced = getattr(params, "allowed_token_ids", None)
    chosen = named or last.topk(params.logprobs).indices.tolist() if params.logprobs else []
    made = forced[0] if forced else int(last.argmax())
    values = {
        int(token): types.SimpleNamespace(logprob=float(last[token])) for token in [*chosen, made]
    }
    one = types.SimpleNamespace(
        logprobs=[values], text="", finish_reason="length", token_ids=[made]
    )
    return types.SimpleNamespace(outputs=[one])
