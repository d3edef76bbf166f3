"""Any model class of lm-evaluation-harness, by name: what it scores and writes, we record."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.backends import rounds, writing
from ceval_suite.backends.base import Say
from ceval_suite.backends.sources import identity as of_files
from ceval_suite.backends.sources import resolve
from ceval_suite.errors import ModelError, PromptError, unknown
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request
from ceval_suite.secrecy import clean, is_secret, secrets, shown, without

CHUNK = 64
"""Requests a call: a class answers only when all of a call are done."""

STOPS = 3
"""Stop strings for classes that ask a server, which takes four: the end token's is added."""

UNKNOWN_LENGTH = 2**31
"""For classes that do not say how much they read, or have no tokenizer to count with."""

FROM_FILES = frozenset({"hf", "hf-auto", "huggingface", "vllm", "sglang", "openvino", "mamba_ssm"})
"""Classes that load a checkpoint: found, fetched and fingerprinted by us like any other."""


def identity(spec: ModelSpec) -> dict[str, Any]:
    """The class, its arguments, and the checkpoint's fingerprints where there is one.

    Raises:
        ModelError: the checkpoint cannot be found.
    """
    options = spec.backend_options()
    path = _files(spec)
    about = {"weights_sha256": None} if path is None else of_files(spec, path)
    return {
        "backend": "lm_eval",
        "lm": options.lm,
        "arguments": shown(dict(sorted(options.arguments.items()))),
        "path": clean(spec.path) if path is None else None,
        "revision": spec.revision if path is None else None,
        **about,
    }


def _files(spec: ModelSpec) -> Path | None:
    here = spec.path.startswith("pypi:") or Path(spec.path).expanduser().exists()
    return resolve(spec) if here or spec.backend_options().lm in FROM_FILES else None


class LmEvalBackend:
    """Scores through `loglikelihood` of an lm-eval LM, and writes through `generate_until`."""

    def __init__(self, spec: ModelSpec, say: Say = lambda _: None) -> None:
        """Make the LM.

        Raises:
            ModelError: no such class, an argument it does not take, or a model it cannot load.
        """
        import lm_eval.models  # pyright: ignore[reportUnusedImport] # fills the registry
        from lm_eval.api.instance import Instance
        from lm_eval.api.registry import get_model

        self._instance: Any = Instance
        self.spec = spec
        self.options = spec.backend_options()
        try:
            found: Any = get_model(self.options.lm)
        except (ValueError, KeyError) as error:
            known = lm_eval.models.MODEL_MAPPING
            raise ModelError("lm_eval: " + unknown("lm", self.options.lm, known)) from error
        except ImportError as error:
            raise ModelError(
                f"lm_eval: '{self.options.lm}' needs a package that is not installed "
                f"({error.name}); run \"pip install 'lm-eval[{self.options.lm}]'\"."
            ) from error
        arguments = _arguments(found, spec, _files(spec))
        self._secrets = secrets(arguments)
        _hide(self._secrets)
        for name in filter(is_secret, self.options.arguments):
            say(
                f"lm_eval: options.arguments.{name} is used and never written; a key is better "
                "kept in the environment variable that the class reads"
            )
        try:
            self.lm: Any = found(**arguments)
        except Exception as error:  # such classes raise anything here
            raise ModelError(
                f"{clean(spec.path)}: lm-eval's '{self.options.lm}' cannot load it "
                f"({self._said(error)}); check path and options.arguments in models.yaml."
            ) from error
        self._tokenizes = callable(getattr(self.lm, "tok_encode", None)) and (
            getattr(self.lm, "tokenizer", None) is not None
        )
        length = spec.max_length or (getattr(self.lm, "max_length", None) or 0)
        self.max_length = int(length) if length and self._tokenizes else UNKNOWN_LENGTH
        if self.max_length == UNKNOWN_LENGTH:
            say(
                f"lm_eval: prompts are not fitted into the context: '{self.options.lm}' does not "
                "say how long it is, or has no tokenizer to count with"
            )

    def _said(self, error: Exception) -> str:
        return without(str(error), self._secrets)[:300].rstrip(".") or type(error).__name__

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        """Tokens of each text, as the class tokenises a context.

        Raises:
            ModelError: the class has no tokenizer.
        """
        if not self._tokenizes:
            raise ModelError(f"lm_eval: '{self.options.lm}' has no tokenizer to count with.")
        return [len(self.lm.tok_encode(text)) for text in texts]

    def wrap(self, user: str) -> str:
        """A user's turn in the class's chat template, up to the assistant's turn.

        Raises:
            ModelError: it has none.
        """
        try:
            return str(self.lm.apply_chat_template([{"role": "user", "content": user}]))
        except Exception as error:  # NotImplementedError, or the template's own
            raise ModelError(
                f"--chat needs a chat template, and lm-eval's '{self.options.lm}' has none here."
            ) from error

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """How the class tokenises each continuation in context; only its text where it hides it."""
        return [self._audit(request) for request in requests]

    def _audit(self, request: Request) -> dict[str, Any]:
        pairs: dict[str, dict[str, Any]] = {c: {"text": c} for c in request.continuations}
        if not (self._tokenizes and hasattr(self.lm, "_encode_pair")):
            return {"id": request.id, "one_token": None, "continuations": pairs}
        head: list[int] = []
        for continuation in request.continuations:
            head, tail = self.lm._encode_pair(request.context, continuation)
            tokens = self.lm.tokenizer.convert_ids_to_tokens(tail)
            pairs[continuation] = {"ids": list(tail), "tokens": tokens}
        return {
            "id": request.id,
            "one_token": all(len(pair["ids"]) == 1 for pair in pairs.values()),
            "context_tail": self.lm.tokenizer.decode(head[-10:]),
            "continuations": pairs,
        }

    def describe(self) -> dict[str, Any]:
        """What the class says of itself, and the version that it comes from."""
        from importlib.metadata import version

        about: Any = self.lm.get_model_info() if hasattr(self.lm, "get_model_info") else {}
        dtype = str(about.get("model_dtype", "")).removeprefix("torch.")
        return {
            "backend": "lm_eval",
            "lm": self.options.lm,
            "name_or_path": clean(self.spec.path),
            **{key: without(str(value), self._secrets) for key, value in about.items()},
            "dtype": dtype or None,
            "max_length": None if self.max_length == UNKNOWN_LENGTH else self.max_length,
            "path": {"attention": f"lm_eval {self.options.lm}"},
            "versions": {"lm_eval": version("lm_eval")},
        }

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Answer every request once, in their order, round by round where some follow others."""
        writing.check_asked(requests)
        writing.refuse_readings(requests, "lm-eval")
        yield from rounds.asked(self._round, requests)

    def _round(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for start in range(0, len(requests), CHUNK):
            chunk = requests[start : start + CHUNK]
            yield from writing.halves(chunk, self._score, self._write)

    def _score(self, requests: Sequence[Request]) -> list[Reply]:
        counted = [self._fits(request) for request in requests]
        pairs = [(request.context, c) for request in requests for c in request.continuations]
        found = iter(self._through("loglikelihood", requests, pairs))
        out: list[Reply] = []
        for request, (number, lengths) in zip(requests, counted, strict=True):
            logprobs = tuple(float(next(found)[0]) for _ in request.continuations)
            if not all(map(math.isfinite, logprobs)):
                raise ModelError(
                    f"{request.id}: lm-eval's '{self.options.lm}' gives log-probabilities that are "
                    "not finite; the checkpoint is broken or its dtype too narrow."
                )
            mass = math.fsum(map(math.exp, logprobs))
            out.append(
                Reply(
                    id=request.id,
                    logprobs=logprobs,
                    num_tokens=number,
                    choice_mass=mass,
                    lengths=lengths,
                )
            )
        return out

    def _write(self, requests: Sequence[Request]) -> list[Reply]:
        """Texts by greedy `generate_until`; how many tokens each has is counted afterwards."""
        lengths = [0] * len(requests)
        if self._tokenizes:
            lengths = self.count_tokens([request.context for request in requests])
        for request, number in zip(requests, lengths, strict=True):
            if not request.context:
                raise PromptError(f"{request.id}: an empty context.")
            writing.check_room(request, number, self.max_length)
        # of the checkpoint's own settings for writing, a penalty is what would not be greedy
        local = self.options.lm in FROM_FILES
        neutral = {"repetition_penalty": 1.0} if local else {}
        pairs = [
            (
                request.context,
                {
                    "until": [one for one in request.stop if one][: None if local else STOPS],
                    "max_gen_toks": request.max_new_tokens,
                    "do_sample": False,
                    **neutral,
                },
            )
            for request in requests
        ]
        texts = [str(text or "") for text in self._through("generate_until", requests, pairs)]
        made = [0] * len(texts)
        if self._tokenizes:
            made = [len(self.lm.tok_encode(text, add_special_tokens=False)) for text in texts]
        return [
            writing.reply(
                request,
                text,
                # no class says why a text ended; half a character is no end
                ended=number < request.max_new_tokens and not text.endswith("\ufffd"),
                written=number,
                tokens=length,
            )
            for request, text, number, length in zip(requests, texts, made, lengths, strict=True)
        ]

    def _through(self, verb: str, requests: Sequence[Request], pairs: Sequence[Any]) -> list[Any]:
        """What the class answers to the arguments of each of its own requests."""
        does = "score" if verb == "loglikelihood" else "answer"
        made = [
            self._instance(request_type=verb, doc={}, arguments=pair, idx=k)
            for k, pair in enumerate(pairs)
        ]
        try:
            return list(getattr(self.lm, verb)(made, disable_tqdm=True)) if made else []
        except Exception as error:  # as when it is made: a server that is gone, memory that is full
            raise ModelError(
                f"{requests[0].id}: lm-eval's '{self.options.lm}' cannot {does} it "
                f"({self._said(error)}); finished records are kept."
            ) from error

    def _fits(self, request: Request) -> tuple[int, tuple[int, ...]]:
        """Tokens of the context and, where the class says so, of each continuation.

        These classes cut what is too long from the left, unseen.
        """
        if not request.context:
            raise PromptError(f"{request.id}: an empty context.")
        if not self._tokenizes:
            return 0, ()
        lengths: tuple[int, ...] = ()
        if hasattr(self.lm, "_encode_pair"):
            pairs = [self.lm._encode_pair(request.context, c) for c in request.continuations]
            if not all(tail for _, tail in pairs):
                raise PromptError(
                    f"{request.id}: a continuation adds no token to the context as lm-eval cuts "
                    "it; use backend hf, which scores from the last common border."
                )
            longest = max(len(head) + len(tail) for head, tail in pairs)
            number, lengths = len(pairs[0][0]), tuple(len(tail) for _, tail in pairs)
        else:
            (number,) = self.count_tokens([request.context])
            longest = number + 1
        if longest > self.max_length:
            raise PromptError(
                f"{request.id}: {longest} tokens where the model reads {self.max_length}."
            )
        return number, lengths


def _hide(hidden: list[str]) -> None:
    """Keep secrets out of what the library logs: it repeats what servers and sockets say."""

    def hides(record: logging.LogRecord) -> bool:
        record.msg, record.args = without(record.getMessage(), hidden), ()
        return True

    for name in [n for n in logging.root.manager.loggerDict if n.startswith("lm_eval")]:
        logger = logging.getLogger(name)
        for old in [f for f in logger.filters if getattr(f, "__name__", "") == hides.__name__]:
            logger.removeFilter(old)
        logger.addFilter(hides)


def _arguments(found: Any, spec: ModelSpec, path: Path | None) -> dict[str, Any]:
    """Arguments of an LM class: the spec's where it takes them, and those of the options.

    Raises:
        ModelError: something is asked for that the class cannot be told.
    """
    takes: set[str] = set()
    for kind in found.__mro__:
        if "__init__" in vars(kind):
            takes |= set(inspect.signature(vars(kind)["__init__"]).parameters)
    where = str(path) if path is not None else spec.path
    out: dict[str, Any] = {}
    if path is not None and path.suffix == ".gguf" and "gguf_file" in takes:
        where, out["gguf_file"] = str(path.parent), path.name
    named = next((name for name in ("pretrained", "model", "base_url") if name in takes), None)
    if named:
        out[named] = where
    options = spec.backend_options()
    given = {
        "batch_size": options.batch_size,
        "dtype": None if spec.dtype == "auto" else spec.dtype,
        "device": spec.device,
        "max_length": spec.max_length,
        "tokenizer": spec.tokenizer,
        "revision": spec.revision if path is None else None,
        "trust_remote_code": spec.trust_remote_code or None,
        "code_revision": spec.code_revision,
    }
    for key, value in given.items():
        if value is None:
            continue
        if key in takes:
            out[key] = value
        elif key != "batch_size":
            raise ModelError(
                f"{clean(spec.path)}: lm-eval's '{options.lm}' takes no {key}; drop the key."
            )
    return out | options.arguments
