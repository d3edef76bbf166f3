"""HTTP to a model server: keys, time limits, retries, rate. No secret ever leaves this file."""

from __future__ import annotations

import logging
import os
import queue
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from ceval_suite.errors import ModelError
from ceval_suite.fetch import unusable_proxy
from ceval_suite.model_spec import ModelSpec, ServerOptions
from ceval_suite.secrecy import HIDDEN, without, without_credentials
from ceval_suite.untrusted import from_json

T = TypeVar("T")
R = TypeVar("R")

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers after which the same request may succeed."""

BACKOFF = 0.5
"""Seconds before the second try; doubled for every further one."""

LONGEST = 60.0
"""Seconds between two tries at most, unless the server asks for more."""

PATIENCE = 600.0
"""A server that asks for a longer pause than this many seconds is not waited for."""


def _without_query(record: logging.LogRecord) -> bool:
    """The HTTP library writes every URL into its log, at a level that some programs show."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            without_credentials(str(a)) if isinstance(a, httpx.URL) else a for a in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_without_query)


class Refused(ModelError):
    """An answer that no further try will change."""

    def __init__(self, message: str, status: int) -> None:
        """`status` is that of the answer."""
        super().__init__(message)
        self.status = status


class Transport:
    """One server, spoken to in JSON by several threads."""

    def __init__(self, spec: ModelSpec) -> None:
        """Nothing is sent yet.

        Raises:
            ModelError: no usable URL, or the key's environment variable is not set.
        """
        self.options: ServerOptions = spec.backend_options()
        self.url = without_credentials(spec.url or "").rstrip("/")
        self._secrets: list[str] = []
        try:
            given = httpx.URL(spec.url or "")
            plain = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise ModelError(f"url: {self.url} is not a URL; give http://host:port/v1.") from None
        if plain.scheme not in ("http", "https") or not plain.host:
            raise ModelError(f"url: {self.url} is not a URL; give http://host:port/v1.")
        headers: dict[str, str] = {}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
            self._secrets.append(key)
        auth = None
        if given.userinfo:
            auth = httpx.BasicAuth(given.username, given.password)
            self._secrets += [part for part in (given.username, given.password) if part]
        self._secrets += [value for _, value in given.params.multi_items() if value]
        limit = httpx.Timeout(self.options.timeout, connect=min(10.0, self.options.timeout))
        try:
            self._client = httpx.Client(
                headers=headers,
                auth=auth,
                params=given.params,
                timeout=limit,
                limits=httpx.Limits(max_connections=self.options.concurrency + 1),
                # a proxy is for what is far away
                trust_env=plain.host not in ("localhost", "127.0.0.1", "::1"),
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise ModelError(unusable_proxy(error)) from None
        weakref.finalize(self, self._client.close)
        self._turn = threading.Lock()
        self._next = 0.0

    def _key(self) -> str | None:
        name = self.options.key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        # what is not written like a variable may be a key that was put here by mistake
        named = f"the environment variable {name if name.isupper() else HIDDEN}"
        if not key:
            raise ModelError(f"{named}, which key_env names, is not set.")
        if not (key.isascii() and key.isprintable()):
            raise ModelError(f"{named} holds what no key can contain.")
        return key

    def clean(self, text: str) -> str:
        """A text in one line without keys and passwords, cut to what a sentence can hold."""
        return without(text, self._secrets)[:300].rstrip(".")

    def get(self, path: str) -> Any:
        """The JSON at a path below the URL, or above it for one that starts with `/`.

        Raises:
            ModelError: no answer after all tries, or none that is JSON; Refused for a final no.
        """
        return self._send("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers a JSON body; see `get`."""
        return self._send("POST", path, body)

    def _send(self, verb: str, path: str, body: dict[str, Any] | None) -> Any:
        base = self.url.removesuffix("/v1") if path.startswith("/") else f"{self.url}/"
        problem, slow, attempt = "", 0, 0
        for attempt in range(self.options.retries + 1):
            pause = min(BACKOFF * 2**attempt, LONGEST) * random.uniform(0.75, 1.25)  # noqa: S311
            self._wait()
            try:
                answer = self._client.request(verb, base + path, json=body)
            except httpx.TimeoutException:
                slow += 1
                problem = f"gave no answer within {self.options.timeout:g} s (options.timeout)"
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = f"cannot be reached ({self.clean(str(error)) or type(error).__name__})"
            else:
                if answer.is_success:
                    return self._json(answer)
                problem = f"answered {answer.status_code} ({self._detail(answer)})"
                # some servers answer 500 to what they do not support
                final = answer.status_code == 500 and re.search("logprob|not support", problem)
                if final or answer.status_code not in AGAIN:
                    raise Refused(self._refusal(answer, problem), answer.status_code)
                pause = max(pause, self._asked(answer)) if self._asked(answer) else pause
            if slow == 2:  # what took that long twice takes as long again
                break
            if attempt < self.options.retries:
                time.sleep(pause)
        raise ModelError(
            f"{self.url} {problem}, {attempt + 1} times in a row; finished records are kept: see "
            "to the server and run the same command again."
        )

    def _refusal(self, answer: httpx.Response, problem: str) -> str:
        remedy = ""
        if answer.status_code in (401, 403):
            remedy = "; give options.key_env the name of the variable that holds a valid key"
        elif answer.status_code == 404 and not self.url.endswith("/v1"):
            remedy = "; does its URL end in /v1?"
        elif answer.is_redirect:
            remedy = "; give the URL that it redirects to"
        return f"{self.url} {problem}{remedy}."

    def _asked(self, answer: httpx.Response) -> float:
        """Seconds of pause that Retry-After asks for."""
        text = answer.headers.get("Retry-After", "").strip()
        try:
            seconds = float(text)
        except ValueError:
            try:
                then = parsedate_to_datetime(text)
                seconds = (then - datetime.now(timezone.utc)).total_seconds()
            except (ValueError, TypeError):
                return 0.0
        if seconds > PATIENCE:
            raise ModelError(
                f"{self.url} answered {answer.status_code} and asks for a pause of {seconds:.0f} "
                "s; finished records are kept: run the same command again then."
            )
        return max(seconds, 0.0)

    def _detail(self, answer: httpx.Response) -> str:
        """What the server says went wrong."""
        try:
            content: Any = from_json(answer.content)
        except ValueError:
            content = answer.text
        for key in ("error", "message", "detail"):
            if isinstance(content, dict):
                content = content.get(key, content)
        return self.clean(str(content)) or answer.reason_phrase

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return from_json(answer.content)
        except ValueError as error:
            raise ModelError(
                f"{self.url} answered something that is not JSON; give the URL of an "
                "OpenAI-compatible server, which mostly ends in /v1."
            ) from error

    def _wait(self) -> None:
        """Pause until the rate limit allows another request."""
        if self.options.per_minute is None:
            return
        with self._turn:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + 60.0 / self.options.per_minute
        time.sleep(max(0.0, at - now))


def each(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`work` of every item by several threads, as they are ready.

    After a first failure nothing new is begun, what is under way is still yielded, and then the
    failure is raised. Threads are daemons, so that an interrupt need not wait for a slow server.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    done: queue.SimpleQueue[tuple[list[R], BaseException | None, bool]] = queue.SimpleQueue()
    stop = threading.Event()

    def go() -> None:
        try:
            while not stop.is_set():
                done.put(([work(todo.get_nowait())], None, False))
        except queue.Empty:
            pass
        except BaseException as error:
            stop.set()
            done.put(([], error, False))
        done.put(([], None, True))

    count = min(workers, len(items))
    for _ in range(count):
        threading.Thread(target=go, daemon=True).start()
    failure: BaseException | None = None
    try:
        while count:
            found, error, ended = done.get()
            count -= ended
            failure = failure or error
            yield from found
    finally:
        stop.set()
    if failure is not None:
        raise failure
