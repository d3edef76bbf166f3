"""A key, token or password that is given anywhere is used, and is written and shown nowhere."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ceval_suite import cli, secrecy
from ceval_suite.backends import open_backend
from ceval_suite.errors import DataError, ModelError
from ceval_suite.fetch import get
from ceval_suite.model_spec import ModelSpec
from ceval_suite.records import read_json
from tests.serving import Engine, serving

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SECRETS = {
    "argument": "sk-argument-0123456789",
    "environment": "sk-environment-0123456789",
    "user": "somebody-0123456789",
    "password": "hunter2-0123456789",
    "query": "query-0123456789",
    "proxy": "proxypass-0123456789",
}


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apikey", "OPENAI_API_KEY", "token", "hf_token", "auth_token", "access_token"),
        *("secret", "client_secret", "password", "passwd", "pwd", "auth", "authorization"),
        *(
            "bearer",
            "credentials",
            "cookie",
            "header",
            "headers",
            "frontend_token",
            "tokenizer_auth",
        ),
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert secrecy.shown({name: "x1"}) == {name: "***"}
    assert secrecy.secrets({name: "x1"}) == ["x1"]


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer", "tokenizer_backend", "tokenized_requests", "add_bos_token"),
        *("prefix_token_id", "eos_token_id", "custom_prefix_token_id", "think_end_token"),
        *("max_new_tokens", "max_gen_toks", "pretrained", "base_url", "key_env", "batch_size"),
    ],
)
def test_names_that_only_sound_like_secrets_stay(name: str) -> None:
    # hidden, two models would look like one
    assert secrecy.shown({name: "x1"}) == {name: "x1"}
    assert secrecy.secrets({name: "x1"}) == []


def test_a_text_keeps_its_urls_and_loses_what_opens_them() -> None:
    text = "see http://me:pw@h:8/v1?n=1&api_key=k1#top, https://h/x?X-Amz-Signature=k2 and a@b.cn"
    expected = "see http://h:8/v1?n=1&api_key=***#top, https://h/x?X-Amz-Signature=*** and a@b.cn"
    assert secrecy.clean(text) == expected
    assert secrecy.clean(expected) == expected
    nested = {"headers": {"X": "1", "n": [2]}, "url": "http://me:pw@h/", "on_key": True}
    hidden = {"headers": {"X": "***", "n": ["***"]}, "url": "http://h/", "on_key": True}
    assert secrecy.shown(nested) == hidden
    assert set(secrecy.secrets(nested)) == {"1", "2", "me", "pw"}


# through the whole program ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model)


@pytest.fixture
def call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[int, str]]:
    """`ceval-suite ARGS` with an entry `mine`, and everything that it left or said."""
    caplog.set_level(logging.DEBUG, "lm_eval")
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS["environment"])
    monkeypatch.setenv("MY_KEY", SECRETS["environment"])
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "own"))
    monkeypatch.delenv("CEVAL_SUITE_DEBUG", raising=False)
    (tmp_path / "own" / "leaderboards").mkdir(parents=True)

    def run(entry: dict[str, Any], *args: str) -> tuple[int, str]:
        file = tmp_path / "own" / "leaderboards" / "models.yaml"
        file.write_text(yaml.safe_dump({"mine": entry}))
        monkeypatch.setattr(sys, "argv", ["ceval-suite", *args])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        left = [p.read_text() for p in (tmp_path / "runs").rglob("*") if p.is_file()]
        return int(code), "\n".join([*left, *capfd.readouterr(), caplog.text])

    return run


def none_of_them(text: str) -> None:
    for name, secret in SECRETS.items():
        assert secret not in text, name


def scoring(tmp_path: Path) -> list[str]:
    task = ["--tasks", "sample-ceval", "--shots", "0", "--limit", "1"]
    return ["run", "--model", "mine", *task, "--out", str(tmp_path / "runs")]


def indexed(body: dict[str, Any], reply: Any) -> Any:
    """What lm-eval's class wants of a completions server."""
    for choice in reply["choices"]:
        given = choice["logprobs"]
        given["top_logprobs"] = [top or {"x": -1.0} for top in given["top_logprobs"]]
        choice["index"] = 0
    return reply


def test_secrets_of_an_lm_eval_class_are_used_and_are_nowhere(
    engine: Engine, tiny_model: Path, tmp_path: Path, call: Callable[..., tuple[int, str]]
) -> None:
    with serving(engine, twist=indexed) as served:
        place = f"//{SECRETS['user']}:{SECRETS['password']}@"
        url = served.url.replace("//", place) + f"/completions?token={SECRETS['query']}"
        arguments = {"base_url": url, "auth_token": SECRETS["argument"], "max_retries": 1}
        arguments |= {"tokenized_requests": False, "tokenizer_backend": "huggingface"}
        entry = {"backend": "lm_eval", "path": "tiny", "tokenizer": str(tiny_model)}
        entry["options"] = {"lm": "local-completions", "arguments": arguments}
        code, text = call(entry, *scoring(tmp_path))
        assert code == 0, text
        none_of_them(text)
        assert "options.arguments.auth_token is used and never written" in text
        sent = {head["Authorization"] for head in served.headers}
        # the key from the environment, or what stands in the URL in its place
        assert all(SECRETS["environment"] in head or head.startswith("Basic ") for head in sent)
        (file,) = (tmp_path / "runs").rglob("run.json")
        run = read_json(file)
        given = run["model"]["options"]["arguments"]
        assert given == run["identity"]["arguments"]
        assert given["auth_token"] == "***"
        assert given["base_url"] == f"{served.url}/completions?token=***"
        assert given["tokenizer_backend"] == "huggingface"

        code, text = call(entry, "show", "mine")
        assert code == 0
        none_of_them(text)

        def refuse(_n: int, _path: str, _body: Any) -> Any:
            return 401, {}, {"error": {"message": f"Incorrect key {' '.join(SECRETS.values())}"}}

        served.behave = refuse
        code, text = call(entry, *scoring(tmp_path), "--shots", "1")
    assert code == 1
    assert "lm-eval's 'local-completions' cannot score it" in text
    assert "Traceback" not in text
    # what a server repeats of the environment is no argument of ours
    none_of_them(text.replace(SECRETS["environment"], "").replace(SECRETS["proxy"], ""))


def test_a_url_as_the_path_of_an_lm_eval_class_is_shown_bare(tmp_path: Path) -> None:
    spec = ModelSpec(
        backend="lm_eval",
        path=f"http://{SECRETS['user']}:{SECRETS['password']}@127.0.0.1:9/v1",
        options={"lm": "dummy"},
    )
    assert spec.model_dump()["path"] == "http://127.0.0.1:9/v1"
    backend = open_backend(spec)
    assert backend.describe()["name_or_path"] == "http://127.0.0.1:9/v1"


def test_secrets_of_a_server_are_nowhere_in_run_show_list_and_check(
    engine: Engine, tmp_path: Path, call: Callable[..., tuple[int, str]]
) -> None:
    with serving(engine) as served:
        place = f"//{SECRETS['user']}:{SECRETS['password']}@"
        url = served.url.replace("//", place) + f"?token={SECRETS['query']}"
        entry = {"backend": "server", "path": "tiny", "url": url, "options": {"key_env": "MY_KEY"}}
        for args in (scoring(tmp_path), ["show", "mine"], ["list", "models"], ["check"]):
            code, text = call(entry, *args)
            assert code == 0, text
            none_of_them(text)
        (file,) = (tmp_path / "runs").rglob("run.json")
        assert read_json(file)["model"]["options"] == {"key_env": "MY_KEY"}


@pytest.mark.parametrize("wrong", [SECRETS["argument"], "hf_argument0123456789"])
def test_a_key_in_the_place_of_its_variables_name_is_not_repeated(
    wrong: str, tmp_path: Path, call: Callable[..., tuple[int, str]]
) -> None:
    entry = {"backend": "server", "path": "m", "url": "http://127.0.0.1:9/v1"}
    code, text = call({**entry, "options": {"key_env": wrong}}, *scoring(tmp_path))
    assert code == 1
    assert "key_env" in text
    assert wrong not in text


# proxies and addresses of downloads ------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "gopher", "socks5"])
def test_the_password_of_a_proxy_is_in_no_sentence(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = f"{scheme}://{SECRETS['user']}:{SECRETS['proxy']}@127.0.0.1:{closed_port()}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    url = f"http://{SECRETS['user']}:{SECRETS['password']}@example.invalid/f.zip?key=a1b2c3"
    with pytest.raises(DataError) as data:
        get(url, tmp_path / "f.zip", None, lambda _f, _d, _t: None)
    spec = ModelSpec(
        backend="server",
        path="m",
        url="http://example.invalid/v1",
        options={"retries": 0, "timeout": 5},
    )
    with pytest.raises(ModelError) as model:
        open_backend(spec)
    for error in (data.value, model.value):
        none_of_them(str(error))
        assert "a1b2c3" not in str(error)
        assert "\n" not in str(error)


def test_credentials_in_the_address_of_a_hub_or_an_index_are_in_no_sentence(tmp_path: Path) -> None:
    # in processes of their own: huggingface_hub reads its settings once
    address = f"http://{SECRETS['user']}:{SECRETS['password']}@127.0.0.1:{closed_port()}/simple"
    settings = {"HF_ENDPOINT": address, "HF_TOKEN": SECRETS["argument"], "HF_HUB_OFFLINE": "0"}
    settings |= {"PIP_INDEX_URL": address, "PIP_RETRIES": "0", "PIP_EXTRA_INDEX_URL": ""}
    settings |= {"HF_HOME": str(tmp_path / "hub"), "CEVAL_SUITE_CACHE": str(tmp_path / "cache")}
    for path in ("nobody/nothing", "pypi:nothing-at-all==1.0/a.gguf"):
        command = [sys.executable, "-m", "ceval_suite", "run", "--model", path]
        done = subprocess.run(
            [*command, "--tasks", "sample-ceval", "--out", str(tmp_path / "runs")],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **settings},
        )
        assert done.returncode == 1, done.stderr
        assert path.split("/")[0].split("==")[0] in done.stderr
        none_of_them(done.stdout + done.stderr)
