"""What a server must show before its first item: that it serves the model, and log-probabilities.

Servers exist that name no log-probabilities of the prompt, the same ones for every prompt, fewer
than were asked for, or those of another model. Each would pass for an accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.backends import wire
from ceval_suite.backends.base import Say
from ceval_suite.backends.sources import tokenizer_fingerprint
from ceval_suite.backends.tokens import Encoder
from ceval_suite.backends.transport import Refused, Transport
from ceval_suite.errors import ModelError, unknown
from ceval_suite.model_spec import ModelSpec

PROMPT = "1,2,3,4,5,6,7,"
OTHER = "The capital of France is"
PAIRS = (
    (PROMPT, "8", "zebra"),
    ("Monday, Tuesday, Wednesday, Thursday,", " Friday", " zebra"),
    ("a b c d e f", " g", " 7310"),
    ("北京是中国的首", "都", "鸭"),
)
"""A text, what follows it, and what does not; a model that gets none of them right is no model."""

CANNOT = frozenset({400, 422, 500})
"""Answers to a request that asks for what a server does not have."""

COUNTERS = ("/tokenize", "/extras/tokenize/count")


STABLE = ("id", "root", "parent", "owned_by")
"""What a server says of a model that does not change from start to start."""


@dataclass
class Proved:
    """What a server was seen to support: `top` tokens come back where `asked` are asked for.

    `lacking` says, where there are no log-probabilities, that nothing can be scored.
    """

    top: int = 0
    asked: int = 0
    echo: bool = False
    ids: bool = False
    count_path: str | None = None
    overhead: int = 0
    refusal: str = ""
    lacking: str = ""
    max_length: int | None = None


def mass(logprobs: Sequence[float]) -> float:
    """The probability of all of them together."""
    return math.fsum(map(math.exp, logprobs))


def served(transport: Transport, name: str) -> dict[str, Any]:
    """What the server's list of models says of this one; nothing where it keeps no list.

    Raises:
        ModelError: not served, or no such server.
    """
    try:
        listed = transport.get("models")
    except Refused as error:
        if error.status in (404, 405, 501):
            return {}
        raise
    entries: Any = listed.get("data") if isinstance(listed, dict) else None
    by_name = {
        str(entry["id"]): entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and "id" in entry
    }
    if by_name and name not in by_name:
        raise ModelError(f"{transport.url} serves no such model: {unknown('name', name, by_name)}")
    return by_name.get(name, {})


def identity(spec: ModelSpec) -> dict[str, Any]:
    """Which model answers: server, name and what the server says of it.

    Raises:
        ModelError: no such server, or it does not serve this model.
    """
    transport = Transport(spec)
    entry = served(transport, spec.path)
    meta: Any = entry.get("meta")
    about = {key: entry[key] for key in STABLE if entry.get(key) is not None}
    if isinstance(meta, dict):
        about["meta"] = {k: v for k, v in sorted(meta.items()) if k != "n_ctx"}
    where = Path(spec.tokenizer).expanduser() if spec.tokenizer else None
    found = None if where is None else f"hub:{spec.tokenizer}"
    return {
        "backend": "server",
        "url": transport.url,
        "server_model": spec.path,
        "served": about,
        "options": {k: getattr(spec.backend_options(), k) for k in ("api", "top_logprobs")},
        "tokenizer_sha256": tokenizer_fingerprint(where) if where and where.exists() else found,
        "max_length": spec.max_length,
    }


def next_token(transport: Transport, model: str, prompt: Any, top: int, ids: bool) -> Any:
    """One generated token with the likeliest others beside it; chat where the options say so."""
    body: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0}
    if transport.options.api == "chat":
        turns = [{"role": "user", "content": prompt}]
        body |= {"messages": turns, "logprobs": True, "top_logprobs": top}
        return transport.post("chat/completions", body)
    body |= {"prompt": prompt, "logprobs": top}
    if ids:
        body["return_tokens_as_token_ids"] = True  # vLLM; others pass over it
    return transport.post("completions", body)


def echo(transport: Transport, model: str, prompt: Any) -> Any:
    """A prompt with the log-probability of each of its own tokens."""
    body = {"model": model, "prompt": prompt, "echo": True, "logprobs": 1}
    return transport.post("completions", {**body, "max_tokens": 1, "temperature": 0})


def count(transport: Transport, path: str | None, model: str, numbered: tuple[int, str]) -> int:
    """Tokens of a text as the server counts them.

    Raises:
        ModelError: it does not say a number.
    """
    text = numbered[1]
    body = {"model": model, "prompt": text, "content": text, "input": text}
    reply = transport.post(path or "", body | {"add_special_tokens": True, "add_special": True})
    found: Any = reply.get("count", reply.get("tokens")) if isinstance(reply, dict) else None
    number = len(found) if isinstance(found, list) else found
    if not isinstance(number, int) or number < 1:
        raise ModelError(f"{transport.url}{path}: no number of tokens in the answer.")
    return number


def prove(
    transport: Transport, model: str, entry: dict[str, Any], encoder: Encoder | None, say: Say
) -> Proved:
    """Find out what the server supports, by asking. One without log-probabilities can still write.

    Raises:
        ModelError: numbers that cannot be log-probabilities.
    """
    proved = Proved()
    try:
        chat = transport.options.api == "chat"
        if encoder is not None and not chat:
            proved.ids = _takes_ids(transport, model, encoder)
        first, reply = _most(transport, model, proved, say)
        if not chat:
            proved.echo = _echoes(transport, model)
        if first is None and not proved.echo:
            proved.lacking = _unscored(transport, model, "no log-probabilities" + proved.refusal)
        else:
            _sensible(transport, model, proved, first)
        if not chat and entry.get("parent"):
            _adapted(transport, model, str(entry["parent"]), proved, first)
    except wire.NotProved as error:
        raise ModelError(_unscored(transport, model, str(error))) from error
    _lengths(transport, model, entry, proved)
    counted = wire.usage(reply, "prompt_tokens")
    if chat and counted and (encoder is not None or proved.count_path):
        ours = (
            len(encoder.ids([PROMPT], special=True)[0])
            if encoder is not None
            else count(transport, proved.count_path, model, (0, PROMPT))
        )
        proved.overhead = max(0, counted - ours)
    return proved


def _unscored(transport: Transport, model: str, why: str) -> str:
    return (
        f"{transport.url}: model '{model}' cannot be scored, because the server answers with "
        f"{why}; start it with log-probabilities, or load the weights with backend hf."
    )


def _most(
    transport: Transport, model: str, proved: Proved, say: Say
) -> tuple[list[wire.Candidate] | None, Any]:
    """As many next tokens as the server returns, up to what is asked for."""
    asked = transport.options.top_logprobs
    reply: Any = {}
    for top in dict.fromkeys([asked, *(n for n in (20, 10, 5) if n < asked)]):
        try:
            reply = next_token(transport, model, PROMPT, top, proved.ids)
            found = wire.candidates(reply)
        except Refused as error:
            if error.status not in CANNOT:
                raise
            proved.refusal = proved.refusal or f" ({str(error).rstrip('.')})"
            continue
        except wire.NotProved as error:
            if str(error) != "no log-probabilities":
                raise
            return None, reply
        proved.top, proved.asked = min(top, len(found)), top
        if proved.top < min(asked, 20) or top < asked:
            say(f"the server returns {proved.top} log-probabilities where {asked} were asked for")
        return found, reply
    return None, {}


def _takes_ids(transport: Transport, model: str, encoder: Encoder) -> bool:
    """Whether token ids are read as the text that they stand for."""
    (ids,) = encoder.ids([PROMPT], special=True)
    try:
        by_ids = next_token(transport, model, ids.tolist(), 5, False)
        by_text = next_token(transport, model, PROMPT, 5, False)
        pairs = [wire.candidates(reply)[0] for reply in (by_ids, by_text)]
    except Refused as error:
        if error.status not in CANNOT:
            raise
        return False
    except wire.NotProved:
        return False  # what is wrong with its log-probabilities is said elsewhere
    if pairs[0].text != pairs[1].text or abs(pairs[0].logprob - pairs[1].logprob) > 0.1:
        raise ModelError(
            f"{transport.url}: model '{model}' reads the token ids of the tokenizer that is given "
            "as another text; give tokenizer: the directory of the model that is served."
        )
    return True


def _echoes(transport: Transport, model: str) -> bool:
    try:
        return len(wire.prompt_tokens(echo(transport, model, PROMPT))[0]) > 1
    except (wire.NotProved, Refused):
        return False


def _sensible(
    transport: Transport, model: str, proved: Proved, first: list[wire.Candidate] | None
) -> None:
    """Likelier things are likelier, and another prompt has other numbers.

    Raises:
        NotProved: they are not.
    """
    if first is not None:
        second = wire.candidates(next_token(transport, model, OTHER, proved.asked, proved.ids))
        if [(c.text, c.logprob) for c in first] == [(c.text, c.logprob) for c in second]:
            raise wire.NotProved("the same log-probabilities for different prompts")
        if len(first) > 1 and first[0].logprob == first[-1].logprob:
            raise wire.NotProved("the same log-probability for every token")
    if not proved.echo:
        return
    right = 0
    for text, likely, odd in PAIRS:
        replies = [echo(transport, model, text + after) for after in (likely, odd)]
        (a, b), _ = wire.echoed(replies, (likely, odd))
        right += a > b
    if not right:
        raise wire.NotProved("log-probabilities by which nonsense is likelier than sense")


def _adapted(
    transport: Transport,
    model: str,
    parent: str,
    proved: Proved,
    first: list[wire.Candidate] | None,
) -> None:
    """An adapter that the server lists under its base must change something."""
    if first is None:
        return
    try:
        base = wire.candidates(next_token(transport, parent, PROMPT, proved.asked, proved.ids))
    except Refused:
        return
    if [(c.text, c.logprob) for c in base] == [(c.text, c.logprob) for c in first]:
        raise ModelError(
            f"{transport.url}: adapter '{model}' answers exactly as its base '{parent}': the "
            "server does not apply it."
        )


def _lengths(transport: Transport, model: str, entry: dict[str, Any], proved: Proved) -> None:
    """How much the model reads, and which address counts tokens."""
    meta: Any = entry.get("meta")
    found: Any = entry.get("max_model_len")
    if found is None and isinstance(meta, dict):
        found = meta.get("n_ctx")
    if isinstance(found, int) and found > 0:
        proved.max_length = found
    for path in COUNTERS:
        try:
            short, long = (count(transport, path, model, (0, t)) for t in (PROMPT, PROMPT * 9))
        except ModelError:
            continue
        if short < long:
            proved.count_path = path
            return
