"""vLLM in this process: texts, or one token a prompt with the wanted tokens' log-probabilities.

Log-probabilities of a prompt's own tokens would keep vLLM from using its prefix cache, so that
every shot would be computed again for every item; `stepwise` says what is asked for instead.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.backends import own_code, rounds, tokenizers, writing
from ceval_suite.backends.base import Say
from ceval_suite.backends.sources import identity, resolve
from ceval_suite.backends.stepwise import Prompt, gather, plan, portions
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

CHUNK = 1024
"""Requests a call of the engine, which schedules them itself."""

NAMED = 128
"""Tokens that vLLM lets one request name (MAX_LOGPROB_TOKEN_IDS of its sampling_params.py)."""

PROBE = "1,2,3,4,5,6,7,"
CLOSE = 0.05
"""Two ways of asking for one log-probability may differ by this much (narrow dtypes)."""


def lora_rank(folder: Path) -> int:
    """The largest rank that an adapter's configuration names, rounded up to what vLLM takes.

    Raises:
        ModelError: no LoRA configuration.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA":
            raise ModelError(f"{folder}: vLLM takes LoRA adapters only; use backend hf.")
        ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: no readable adapter_config.json of a LoRA.") from error
    taken = (8, 16, 32, 64, 128, 256, 320, 512)
    if max(ranks) > taken[-1]:
        raise ModelError(f"{folder}: rank {max(ranks)}, where vLLM takes {taken[-1]} at most.")
    return next(rank for rank in taken if rank >= max(ranks))


class VllmBackend:
    """Scores and writes with vLLM on the devices it finds."""

    def __init__(self, spec: ModelSpec, say: Say = lambda _: None) -> None:
        """Load tokenizer and weights, and prove log-probabilities and adapter.

        Raises:
            ImportError: vLLM is not installed.
            ModelError: it cannot load the model, or an adapter changes nothing.
        """
        self.vllm: Any = __import__("vllm")
        self.spec = spec
        self.options = spec.backend_options()
        path = resolve(spec)
        self.lora, more = self._adapter()
        self.tokenizer = tokenizers.load_tokenizer(spec, path)
        self.encoder = Encoder(self.tokenizer)
        arguments: dict[str, Any] = {
            "model": str(path),
            "tokenizer": spec.tokenizer or (str(path) if path.is_dir() else None),
            "dtype": spec.dtype,
            "max_model_len": spec.max_length,
            **own_code.options(spec),
            "enable_prefix_caching": True,
            **self.options.model_dump(),
            **more,
        }
        try:
            self.llm = self.vllm.LLM(**arguments)
        except Exception as error:  # vLLM raises anything here
            text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            raise ModelError(f"{spec.path}: vLLM cannot load it ({text}).") from error
        self.config: Any = self.llm.llm_engine.model_config
        self.max_length = int(spec.max_length or self.config.max_model_len)
        # newer versions return chosen tokens; older ones the likeliest, and any that is forced
        known = inspect.signature(self.vllm.SamplingParams).parameters
        self.by_id = "logprob_token_ids" in known
        self.about = {"backend": "vllm", "name_or_path": spec.path, **identity(spec, path)}
        self._prove()

    def _adapter(self) -> tuple[Any, dict[str, Any]]:
        if not self.spec.adapters:
            return None, {}
        if len(self.spec.adapters) > 1 or self.spec.adapters[0].merge:
            raise ModelError(
                f"{self.spec.path}: vLLM applies one unmerged adapter; merge them into a "
                "checkpoint first ('ceval-suite model merge'), or use backend hf."
            )
        adapter = self.spec.adapters[0]
        found = resolve(ModelSpec(path=adapter.path, revision=adapter.revision))
        folder = found / adapter.subfolder if adapter.subfolder else found
        from importlib import import_module

        request: Any = import_module("vllm.lora.request").LoRARequest
        rank = lora_rank(folder)
        return request("adapter", 1, str(folder)), {"enable_lora": True, "max_lora_rank": rank}

    def _prove(self) -> None:
        """Named or forced and returned log-probabilities agree, and the adapter changes them.

        Raises:
            ModelError: they do not, or it does not.
        """
        (ids,) = self.encoder.ids([PROBE], special=True)
        head = tuple(map(int, ids))
        likeliest = {"logprobs": min(5, self.options.max_logprobs)}
        top = self._generate([head], [likeliest], self.lora)[0]
        # the likeliest is generated and comes back in any case: the last one tells more
        token = min(top, key=lambda t: top[t])
        named: list[dict[int, float]] = []
        if self.by_id:
            named = self._generate([head] * 2, [_named([token]), _named([*top])], self.lora)
            self.by_id = token in named[0] and set(top) <= set(named[1])
        if not self.by_id:
            named = self._generate([head], [_forced(token)], self.lora)
        off = max(abs(one.get(token, math.inf) - top[token]) for one in named)
        if off > CLOSE or sum(map(math.exp, top.values())) > 1.01:
            raise ModelError(
                f"{self.spec.path}: vLLM's log-probabilities depend on how they are asked for; "
                "use another version of vLLM, or backend hf."
            )
        if self.lora is not None and top == self._generate([head], [likeliest], None)[0]:
            raise ModelError(
                f"{self.spec.adapters[0].path}: the adapter changes nothing in vLLM's answers; "
                "check that it belongs to this base."
            )

    def _answers(self, prompts: Sequence[Prompt]) -> list[Mapping[int, float]]:
        """The log-probability of every wanted token of every prompt.

        Without a way to name tokens, the likeliest are asked for; what is not among them is
        generated by force, since the generated token's own raw log-probability always comes back.
        """
        ids = [prompt.ids for prompt in prompts]
        found: list[dict[int, float]]
        if self.by_id:
            size = min(NAMED, self.options.max_logprobs)
            parts = portions(prompts, size)
            asked = [_named(some) for _, some in parts]
            found = [{} for _ in prompts]
            answers = self._generate([ids[k] for k, _ in parts], asked, self.lora)
            for (k, _), one in zip(parts, answers, strict=True):
                found[k] |= one
            return [*found]
        top = {"logprobs": self.options.max_logprobs}
        found = self._generate(ids, [top] * len(ids), self.lora)
        left = [
            (k, token)
            for k, prompt in enumerate(prompts)
            for token in prompt.wanted
            if token not in found[k]
        ]
        forced = [_forced(token) for _, token in left]
        again = self._generate([ids[k] for k, _ in left], forced, self.lora)
        for (k, token), one in zip(left, again, strict=True):
            if token in one:
                found[k][token] = one[token]
        return [*found]

    def _generate(
        self, ids: Sequence[tuple[int, ...]], wanted: Sequence[dict[str, Any]], lora: Any
    ) -> list[Any]:
        """Log-probability by token id of one generated token after each prompt."""
        if not ids:
            return []
        params = [
            self.vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **one)
            for one in wanted
        ]
        prompts = [{"prompt_token_ids": list(one)} for one in ids]
        outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
        return [
            {int(token): float(one.logprob) for token, one in o.outputs[0].logprobs[0].items()}
            for o in outputs
        ]

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [len(i) for i in self.encoder.contexts(texts, template_tokens=template_tokens)]

    def wrap(self, user: str) -> str:
        """A user's turn in the chat template, up to the assistant's turn."""
        return tokenizers.wrap(self.tokenizer, user)

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """For each request: the scored tokens of each continuation, and what they decode to."""
        return tokenizers.audit(self.tokenizer, self.encoder.encode(requests), requests)

    def describe(self) -> dict[str, Any]:
        """Weights, adapter, numerics and the way tokens are asked for."""
        return {
            **self.about,
            "dtype": str(self.config.dtype).removeprefix("torch."),
            "max_length": self.max_length,
            "path": {"attention": "vllm", "tokens": "by id" if self.by_id else "likeliest, forced"},
            "adapters": [adapter.path for adapter in self.spec.adapters],
            "versions": {"vllm": str(self.vllm.__version__)},
        }

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Answer every request once, a thousand or so at a time."""
        writing.check_asked(requests)
        yield from rounds.asked(self._round, requests)

    def _round(self, requests: Sequence[Request]) -> Iterator[Reply]:
        ordered = sorted(requests, key=lambda request: request.context)
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            yield from writing.halves(chunk, self._score, self._write)

    def _score(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the requests' order."""
        encoded = self.encoder.encode(requests)
        self.encoder.forget()
        for request, one in zip(requests, encoded, strict=True):
            longest = len(one.head) + max(len(tail) for tail in one.tails)
            if longest > self.max_length:
                raise PromptError(
                    f"{request.id}: {longest} tokens where the model reads {self.max_length}."
                )
        prompts = plan(encoded)
        return gather(requests, encoded, prompts, self._answers(prompts))

    def _write(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the requests' order; the likeliest token at each place."""
        if not requests:
            return []
        heads = self.encoder.heads(requests)
        self.encoder.forget()
        for request, ids in zip(requests, heads, strict=True):
            writing.check_room(request, len(ids), self.max_length)
        params = [
            self.vllm.SamplingParams(
                max_tokens=request.max_new_tokens,
                temperature=0.0,
                stop=[one for one in request.stop if one],
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in heads]
        outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self.lora)
        found = [output.outputs[0] for output in outputs]
        return [
            writing.reply(
                request,
                str(one.text),
                ended=one.finish_reason != "length",
                written=len(one.token_ids),
                tokens=len(ids),
            )
            for request, ids, one in zip(requests, heads, found, strict=True)
        ]


def _named(tokens: Sequence[int]) -> dict[str, Any]:
    """Sampling parameters that ask for the log-probabilities of these tokens."""
    # versions that read the number of answers from `logprobs` alone give none without it
    return {"logprob_token_ids": list(tokens), "logprobs": len(tokens)}


def _forced(token: int) -> dict[str, Any]:
    """Sampling parameters that leave only this token to generate."""
    return {"logprobs": 0, "allowed_token_ids": [token]}
