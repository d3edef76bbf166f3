"""Real local servers for tests: files for downloads, and an OpenAI-compatible one.

The latter gives a tiny checkpoint's own log-probabilities. It speaks the older completions shape or
the list shape, echoes prompts or not, and can be told to misbehave: `behave(n, path, body)` may
answer the n-th scoring request in its place.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behave = Callable[[int, str, dict[str, Any]], "tuple[int, dict[str, str], Any] | None"]
Twist = Callable[[dict[str, Any], dict[str, Any]], Any]


class Engine:
    """A checkpoint and the log-probabilities after each token of a prompt."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.texts = [self.tokenizer.decode([i]) for i in range(len(self.tokenizer))]
        self.lock = threading.Lock()

    def ids(self, prompt: Any) -> list[int]:
        return list(prompt) if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]

    def logprobs(self, ids: list[int]) -> Any:
        import torch

        with self.lock, torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def write(self, ids: list[int], most: int, stop: list[str]) -> tuple[str, str, int]:
        """The likeliest token again and again: the text, why it ended and its tokens."""
        made: list[int] = []
        while len(made) < most:
            made.append(int(self.logprobs([*ids, *made])[-1].argmax()))
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            found = [text.index(one) for one in stop if one in text]
            if found or made[-1] == self.tokenizer.eos_token_id:
                return text[: min(found)] if found else text, "stop", len(made)
        return self.tokenizer.decode(made, skip_special_tokens=True), "length", len(made)


class Served:
    """What a server was asked, and how it is to answer."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self.engine = engine
        self.names: list[str] = settings.pop("names", ["tiny"])
        self.echo: bool = settings.pop("echo", True)
        self.lists: bool = settings.pop("lists", False)
        self.most: int = settings.pop("most", 5000)
        self.counts: bool = settings.pop("counts", True)
        self.entry: dict[str, Any] = settings.pop("entry", {})
        self.behave: Behave = settings.pop("behave", lambda _n, _path, _body: None)
        self.twist: Twist = settings.pop("twist", lambda _body, reply: reply)
        self.pause: float = settings.pop("pause", 0.0)
        assert not settings, settings
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.now = 0
        self.busiest = 0
        self.lock = threading.Lock()

    def models(self) -> dict[str, Any]:
        data = [
            {"id": n, "object": "model", "created": time.time()} | self.entry for n in self.names
        ]
        return {"object": "list", "data": data}

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"count": len(self.engine.ids(body["prompt"]))}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.engine.ids(body["prompt"])
        if "logprobs" not in body:
            text, reason, usage = self._written(ids, body)
            return {"choices": [{"text": text, "finish_reason": reason}], "usage": usage}
        table = self.engine.logprobs(ids)
        top = min(body["logprobs"], self.most)
        given = self._lists(table[-1], top) if self.lists else self._older(body, ids, table, top)
        made = int(table[-1].argmax())
        return {
            "choices": [{"text": self.engine.texts[made], "logprobs": given}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        }

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["messages"][0]["role"] == "user"
        ids = self.engine.ids(f"<s>U: {body['messages'][0]['content']}\nA:")
        if "logprobs" not in body:
            text, reason, counts = self._written(ids, body)
            message = {"role": "assistant", "content": text}
            return {"choices": [{"message": message, "finish_reason": reason}], "usage": counts}
        given = self._lists(self.engine.logprobs(ids)[-1], min(body["top_logprobs"], self.most))
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"choices": [{"message": {}, "logprobs": given}], "usage": usage}

    def _written(self, ids: list[int], body: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
        assert body["temperature"] == 0
        stop = body.get("stop", [])
        assert 0 < len(stop) <= 4 or "stop" not in body
        text, reason, made = self.engine.write(ids, body["max_tokens"], stop)
        return text, reason, {"prompt_tokens": len(ids), "completion_tokens": made}

    def _top(self, row: Any, top: int) -> list[tuple[int, float]]:
        values, ids = row.topk(min(top, len(row)))
        return [(int(i), float(v)) for i, v in zip(ids, values, strict=True)]

    def _lists(self, row: Any, top: int) -> dict[str, Any]:
        entries = [
            {"id": i, "token": self.engine.texts[i], "logprob": v} for i, v in self._top(row, top)
        ]
        return {"content": [entries[0] | {"top_logprobs": entries}]}

    def _older(self, body: dict[str, Any], ids: list[int], table: Any, top: int) -> dict[str, Any]:
        texts = self.engine.texts
        best = self._top(table[-1], top)
        if body.get("return_tokens_as_token_ids"):
            likely = {f"token_id:{i}": v for i, v in best}
        else:
            likely = {}
            for i, v in best:
                likely.setdefault(texts[i], v)
        tokens, values, tops = [texts[best[0][0]]], [best[0][1]], [likely]
        if body.get("echo") and self.echo:
            own: list[Any] = [float(table[k, i]) for k, i in enumerate(ids[1:])]
            tokens = [texts[i] for i in ids] + tokens
            values, tops = [None, *own, *values], [None] * len(ids) + tops
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            found = self.path.partition("?")[0].endswith("/models")
            self.answer(200 if found else 404, served.models() if found else {"error": "none"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.partition("?")[0]
            if path == "/tokenize" and served.counts:
                return self.answer(200, served.tokenize(body))
            if not path.endswith("completions"):
                return self.answer(404, {"error": {"message": "no such path"}})
            with served.lock:
                number = len(served.bodies)
                served.bodies.append(body)
                served.headers.append(dict(self.headers))
                served.times.append(time.monotonic())
                served.now += 1
                served.busiest = max(served.busiest, served.now)
            try:
                time.sleep(served.pause)
                other = served.behave(number, path, body)
                if other is None:
                    reply = served.chat(body) if "/chat/" in path else served.complete(body)
                    other = 200, {}, served.twist(body, reply)
            finally:
                with served.lock:  # before the answer, which the next request may follow at once
                    served.now -= 1
            status, headers, content = other
            if status == 0:  # a connection that breaks without an answer
                self.close_connection = True
                return None
            with suppress(BrokenPipeError, ConnectionResetError):
                self.answer(status, content, headers)
            return None

    return Handler


COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit of every file, as a hub would say it."""


class Files(BaseHTTPRequestHandler):
    """What servers of files have in common; `reply` says what is at `self.path`."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        raise NotImplementedError

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        """A whole answer; `_` stands for `-` in the names of headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin(self, content: bytes, etag: str, *, ranges: bool = True) -> int | None:
        """The head of a file's answer; where its body begins, or None beyond its end."""
        asked = self.headers.get("Range") if ranges else None
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked and start >= len(content):
            self.send(416)
            return None
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        # what the hub sends: the commit, and an ETag to keep the file under
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        return start

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A handler on a free port of this machine, as long as the block runs; gives the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[Served]:
    """A server of a checkpoint, as long as the block runs."""
    served = Served(engine, **settings)
    with listening(_handler(served)) as url:
        served.url = f"{url}/v1"
        yield served
