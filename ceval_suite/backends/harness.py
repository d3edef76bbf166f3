"""Our engine as a model class of lm-evaluation-harness: `lm_eval --model ceval_suite`.

The numbers are those of its own `hf` class: the same tokens are put to the model, cut on the left
where they are too many, and the same are scored. What differs is how they are computed: all
requests are handed over at once, so that every shared token is computed once, and the head only
where something is read. Where a tokenizer merges a context with its continuation so that no token
of that is left (`hf` calls it certain: 0.0), all continuations of that context are scored from
their last common border.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from ceval_suite import __version__, catalog
from ceval_suite.backends import open_backend, rolling
from ceval_suite.backends.base import NOT_FINITE
from ceval_suite.backends.batching import Read, Row, common
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.schema import Request

NAME = "ceval_suite"
CHUNK, MOST = 2048, 8192
"""Rows that are planned together: so many at least where neighbours share much, and at most."""

APART = 16
"""Rows that share fewer tokens than this are better planned apart."""

WRITTEN = 256
"""Tokens that are written where a task does not say."""

Pair = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation, and the tokens of both."""

OWN = (
    *("pretrained", "dtype", "device", "add_bos_token", "prefix_token_id", "max_gen_toks", "peft"),
    *("trust_remote_code", "chat_template_args", "enable_thinking"),
)
"""Arguments of the class itself."""

SPEC = ("tokenizer", "revision", "device_map", "max_length", "memory", "engine", "code_revision")
"""Arguments that are keys of a model's entry in models.yaml."""

log = logging.getLogger(__name__)


def register() -> None:
    """Make the class known to a harness that does not look for entry points."""
    import_module("lm_eval.models")  # its registry fills itself only while nothing stands in it
    register_model(NAME)(HarnessLM)


class HarnessLM(TemplateLM):
    """A causal model of ours, as lm-eval asks its models."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = WRITTEN,
        peft: str | None = None,
        trust_remote_code: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        **options: Any,
    ) -> None:
        """Load a model.

        `pretrained` is a name of models.yaml, a folder, a file or a hub id. Sizes of batches are
        the engine's own affair; `batch_size` and `max_batch_size` are taken and not used.

        Raises:
            UserError: an argument that is not known, or a model that cannot be loaded.
        """
        super().__init__()
        for name in options:
            if name not in SPEC:
                raise ModelError(
                    f"--model_args: {NAME} takes no '{name}'; it takes {', '.join(OWN + SPEC)}."
                )
        _, spec = catalog.load_model_spec(pretrained)
        # lm-eval's command line asks for cuda wherever it runs, and its `hf` takes what is there
        there = device is None or "cuda" not in device or torch.cuda.is_available()
        given = {"device": device if there else None, "dtype": dtype, **options}
        given |= {"trust_remote_code": trust_remote_code or None}
        if peft:
            given["adapters"] = [*(a.model_dump() for a in spec.adapters), {"path": peft}]
        spec = catalog.override(spec, {k: v for k, v in given.items() if v is not None})
        if spec.backend != "hf":
            raise ModelError(
                f"{pretrained}: backend {spec.backend} has a class of its own in lm-eval; "
                f"--model {NAME} loads weights (backend hf)."
            )
        self.spec = spec
        self.engine: Any = open_backend(spec, log.warning)
        self.engine.forward.look_for_largest()
        self.tokenizer: Any = self.engine.loaded.tokenizer
        self.max_length: int = self.engine.max_length
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self._prefix = prefix_token_id
        self._chat = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._chat["enable_thinking"] = enable_thinking

    # tokens: as lm_eval.models.huggingface makes them

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: the start, else the end token."""
        return rolling.start_token(self.tokenizer).id if self._prefix is None else self._prefix

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in caches of requests."""
        return str(self.tokenizer.name_or_path or self.spec.path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokens of a text, with a start token where the tokenizer adds one."""
        return list(self._encode([string], add_special_tokens)[0])

    def _special(self, text: str, wanted: bool | None) -> bool:
        if wanted is None and text.startswith(self.tokenizer.decode(self.prefix_token_id)):
            return False
        return wanted if wanted is not None else self.add_bos_token is not False

    def _encode(self, texts: Sequence[str], special: bool | None = None) -> list[list[int]]:
        """Tokens of many texts, each different one encoded once, many at a time."""
        out: dict[str, list[int]] = {}
        ordered = sorted(dict.fromkeys(texts), key=lambda text: self._special(text, special))
        for add, some in groupby(ordered, key=lambda text: self._special(text, special)):
            group = list(some)
            found = self.tokenizer(
                group, add_special_tokens=add, return_attention_mask=False, verbose=False
            )
            out.update(zip(group, found["input_ids"], strict=True))
        return [out[text] for text in texts]

    # scoring

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is what greedy writing gives."""
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens(list(self._pairs(pairs)))

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Pair]:
        """Tokens of contexts and continuations; blanks that end a context go to what follows."""
        moved = [_moved(*pair) if pair[0] else pair for pair in pairs]
        heads = iter(self._encode([context for context, _ in moved if context]))
        wholes = iter(self._encode([context + more for context, more in moved if context]))
        bare = iter(self._encode([more for context, more in moved if not context], special=False))
        out: list[Pair] = []
        for pair in pairs:
            if pair[0]:
                head, whole = next(heads), next(wholes)
                out.append((pair, head, whole[len(head) :]))
            else:
                tail, start = next(bare), [self.prefix_token_id]
                again = tail[:1] == start  # as there: it does not stand twice
                out.append((pair, start, tail[1:] if again else tail))
        for _, group in groupby(out, key=lambda one: one[0][0]):
            yield from self._sound(list(group))

    def _sound(self, group: list[Pair]) -> list[Pair]:
        """Continuations of one context, from their last common border where one has no token."""
        if all(tail for _, _, tail in group):
            return group
        (context, _), head, _ = group[0]
        wholes = self._encode([context + pair[1] for pair, _, _ in group])
        border = min(common(np.asarray(head), np.asarray(whole)) for whole in wholes)
        if not context or not border or any(len(whole) <= border for whole in wholes):
            raise PromptError(
                f"a continuation of …{context[-40:]!r} adds no token to it; give it another one."
            )
        return [
            (pair, whole[:border], whole[border:])
            for (pair, _, _), whole in zip(group, wholes, strict=True)
        ]

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        rows: dict[bytes, Row] = {}
        for index, (_pair, head, tail) in enumerate(requests):
            if len(tail) > self.max_length:
                most = f"the model reads {self.max_length}; score shorter ones."
                raise PromptError(f"a continuation of {len(tail)} tokens: {most}")
            tokens = np.asarray([*head, *tail][-(self.max_length + 1) :][:-1], np.int32)
            row = rows.setdefault(tokens.tobytes(), Row(tokens, []))
            first = len(tokens) - len(tail)
            row.reads += [Read(first + k, token, (index, k)) for k, token in enumerate(tail)]
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        for slot, logprob, best in self._read(list(rows.values())):
            sums[slot] += logprob
            greedy[slot] &= best
        out = list(zip(sums, greedy, strict=True))
        for (pair, _head, _tail), answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return out

    def _read(self, rows: list[Row]) -> Iterator[tuple[int, float, bool]]:
        """(who asked, log-probability, is it the likeliest) of every token that is read."""
        for some in _together(rows):
            for score in self.engine.read(some):
                if not abs(score.logprob) < float("inf"):
                    raise ModelError(f"{self.spec.path}: {NOT_FINITE}")
                yield score.read.slot[0], score.logprob, score.greedy

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text, in windows of the model's context."""
        texts = [request.args[0] for request in requests]
        window = self.max_length
        rows = [
            row
            for index, ids in enumerate(self._encode(texts))
            for row in rolling.rows(
                np.asarray(ids, np.int32), self.prefix_token_id, index, window, window
            )
        ]
        sums = [0.0] * len(texts)
        for slot, logprob, _ in self._read(rows):
            sums[slot] += logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    # writing

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, greedily.

        Raises:
            ModelError: anything but greedy writing is asked for.
            PromptError: a prompt that cannot be cut to the model's context.
        """
        asked = [self._written(k, *request.args) for k, request in enumerate(requests)]
        found = {reply.id: reply.text or "" for reply in self.engine.ask(asked)}
        out = [found[one.id] for one in asked]
        for request, text in zip(requests, out, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return out

    def _written(self, number: int, context: str, settings: Mapping[str, Any]) -> Request:
        until, most = _settings(settings, self.max_gen_toks)
        room = self.max_length - most
        if room <= 0:
            raise ModelError(f"max_gen_toks {most}: the model reads {self.max_length}; give less.")
        special = self._special(context, None)
        (ids,) = self._encode([context])
        if len(ids) > room:
            log.warning("a prompt of %d tokens loses all but its last %d", len(ids), room)
            ids, special = ids[-room:], False
            context = str(self.tokenizer.decode(ids))
            if self._encode([context], special=False)[0] != ids:
                raise PromptError(
                    f"a prompt of over {room} tokens cannot be cut there; show fewer shots."
                )
        end = self.tokenizer.decode(self.eot_token_id)
        return Request(
            id=str(number),
            context=context,
            template_tokens=not special,
            max_new_tokens=most,
            stop=tuple(dict.fromkeys([*until, end])),
        )

    # chat templates and what is written of the model

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the model's chat template.

        Raises:
            ModelError: it has none.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(f"--apply_chat_template: {self.spec.path} has no template.")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._chat,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results about the model and the engine."""
        about = self.engine.describe()
        return {
            "model_num_parameters": self.engine.model.num_parameters(),
            "model_dtype": f"torch.{about['dtype']}",
            "model_revision": self.spec.revision or "main",
            "model_sha": "",
            "ceval_suite": __version__,
            "ceval_suite_engine": {key: about[key] for key in ("path", "kernels", "tokens")},
        }


def _moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if kept else (context, continuation)


def _settings(settings: Mapping[str, Any], default: int) -> tuple[list[str], int]:
    """Stop strings and how many tokens may be written; anything that is not greedy is refused."""
    given = dict(settings)
    until = given.pop("until", None) or []
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    numbers = [value for value in (given.pop(name, None) for name in names) if value is not None]
    warm = float(given.get("temperature") or 0) > 0
    if given.get("do_sample") or (warm and "do_sample" not in given):
        raise ModelError(f"--gen_kwargs: {NAME} writes greedily; give do_sample=False.")
    for name in ("do_sample", "temperature", "top_p", "top_k", "min_p"):
        given.pop(name, None)
    if given:
        raise ModelError(f"--gen_kwargs: {NAME} takes no {', '.join(given)}; drop it.")
    stops = [until] if isinstance(until, str) else list(until)
    return [str(one) for one in stops if one], int(numbers[0]) if numbers else default


def _together(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows in the order of their tokens, cut where neighbours share little."""
    rows.sort(key=lambda row: row.tokens.astype(">u4").tobytes())
    out: list[Row] = []
    for row in rows:
        apart = len(out) >= CHUNK and common(out[-1].tokens, row.tokens) < APART
        if apart or len(out) >= MOST:
            yield out
            out = []
        out.append(row)
    if out:
        yield out
