"""Alerts reach a program or an address, and whatever is wrong with these ends nothing."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import ConfigError, alerts

SENTENCE = "mmlu < 30: acc/micro is 25.0"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def said() -> list[str]:
    return []


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


def test_a_program_is_given_the_sentence_and_its_output_is_no_result(
    said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('noise'); open(sys.argv[1], 'w').write(sys.argv[2])"
    alerts.command(python(code, str(tmp_path / "told")), said.append)(SENTENCE)
    assert (tmp_path / "told").read_text() == SENTENCE
    out, err = capfd.readouterr()
    assert (out, err) == ("", "noise\n")
    assert said == []


def test_what_a_program_is_given_is_never_shown(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "PATIENCE", 0.2)
    secret = "s3cret"
    for line in (
        python("import time; time.sleep(30)", secret),
        python("raise SystemExit(4)", secret),
        f"/nowhere/program --token {secret}",
        f"TOKEN={secret} program",
    ):
        alerts.command(line, said.append)(SENTENCE)
    name = Path(sys.executable).name
    assert said == [
        f"{name}: did not end in 0.2 s, and was ended",
        f"{name} ended with exit code 4",
        "program: could not be run (No such file or directory)",
        "TOKEN: could not be run (No such file or directory)",
    ]
    with pytest.raises(ConfigError) as error:
        alerts.command(f"program '{secret}", said.append)
    assert secret not in str(error.value)


class Server(HTTPServer):
    """Keeps what it is posted and answers with `status`."""

    got: list[tuple[str, Any]]
    status = 200


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        length = int(self.headers["Content-Length"])
        self.server.got.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as found:
        found.got = []
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_an_address_is_posted_the_sentence_as_json(server: Server, said: list[str]) -> None:
    alerts.webhook(f"http://127.0.0.1:{server.server_port}/hook?x=1", said.append)(SENTENCE)
    assert server.got == [("/hook?x=1", {"text": SENTENCE})]
    assert said == []


def test_an_address_that_fails_is_said_without_what_may_be_secret(
    server: Server, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = alerts.webhook(f"http://me:word@127.0.0.1:{server.server_port}/s3cret", said.append)
    for status in (500, 302):
        server.status = status
        tell(SENTENCE)
    monkeypatch.setenv("HTTP_PROXY", "nonsense://me:word@[x")
    tell(SENTENCE)
    monkeypatch.delenv("HTTP_PROXY")
    server.server_close()  # nobody listens any more
    alerts.webhook("http://127.0.0.1:9/s3cret", said.append)(SENTENCE)
    assert said[:2] == [
        "the webhook at 127.0.0.1 failed (status 500)",
        "the webhook at 127.0.0.1 failed (status 302)",
    ]
    assert said[-1] == "the webhook at 127.0.0.1 failed (ConnectError)"
    assert len(said) == 4
    assert not any("s3cret" in line or "word" in line for line in said)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/s3cret",
        "host/s3cret",
        "https://",
        "https:///s3cret",
        "https://h:abc/hook",
        "http://h:99999/",
        "http://[bad",
        "http://a\nb/",
        "http://me:s3cret@[bad/",
    ],
)
def test_what_is_no_address_is_refused_at_the_start(url: str, said: list[str]) -> None:
    with pytest.raises(ConfigError, match="webhook is an http or https address") as error:
        alerts.webhook(url, said.append)
    assert "me:" not in str(error.value)
