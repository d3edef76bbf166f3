"""`model fetch` against a local server that speaks enough of a hub: chosen files, resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ceval_suite.backends import hub, sources
from ceval_suite.model_spec import ModelSpec
from tests.serving import COMMIT, Files, listening

BIG = bytes(range(256)) * 4096 * 40  # 40 MiB: several blocks of a download


@dataclass
class Hub:
    """Repositories of a local hub, what it was asked for, and where it stalls."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    stall: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    got: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def names(self) -> set[str]:
        """Files whose content was asked for."""
        return {path.split("/resolve/")[1].split("/", 1)[1] for path, _ in self.got}


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf"))


def oid(name: str, content: bytes) -> str:
    """What a hub keeps a file under."""
    if large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def known(name: str, content: bytes, key: str) -> dict[str, Any]:
    """What a hub says of a file."""
    found: dict[str, Any] = {"size": len(content)}
    if large(name):
        found["lfs"] = {key: oid(name, content), "size": len(content), "pointerSize": 130}
    return found


def handler(site: Hub) -> type[Files]:
    class Handler(Files):
        def reply(self, body: bool) -> None:
            path = self.path.split("?")[0]
            site.tokens.add(self.headers.get("Authorization"))
            found = re.match(r"/(?:api/models/)?([^/]+/[^/]+)(/.*)?", path)
            repository = site.repositories.get(found[1]) if found else None
            if repository is None:
                return self.send(404, b"", X_Error_Code="RepoNotFound")
            assert found is not None
            if found[1] in site.gated:
                return self.send(403, b"", X_Error_Code="GatedRepo")
            if path.startswith("/api/"):
                return self.api(found[1], found[2] or "", repository)
            _, revision, name = (found[2] or "").split("/", 2)[1:][0], *found[2].split("/", 3)[2:]
            if revision not in ("main", COMMIT):
                return self.send(404, b"", X_Error_Code="RevisionNotFound")
            return self.file(path, name, repository, body)

        def api(self, repo: str, rest: str, repository: dict[str, bytes]) -> None:
            if "/revision/" in rest and rest.split("/")[-1] not in ("main", COMMIT):
                return self.send(404, b"", X_Error_Code="RevisionNotFound")
            if rest.startswith("/tree/"):
                content: Any = [
                    {"type": "file", "path": name, "oid": "x", **known(name, data, "oid")}
                    for name, data in repository.items()
                ]
            else:
                siblings = [
                    {"rfilename": name, **known(name, data, "sha256")}
                    for name, data in repository.items()
                ]
                content = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(content).encode(), Content_Type="application/json")

        def file(self, path: str, name: str, repository: dict[str, bytes], body: bool) -> None:
            content = repository.get(name)
            if content is None:
                return self.send(404, b"", X_Error_Code="EntryNotFound")
            start = self.begin(content, oid(name, content))
            if start is None or not body:
                return None
            site.got.append((path, self.headers.get("Range")))
            cut = site.cut.pop(name, None)
            if cut is not None:
                self.wfile.write(content[start:cut])
                self.close_connection = True
                return None
            stop = site.stall.get(name)
            if stop is not None and start < stop:
                self.wfile.write(content[start:stop])
                self.wfile.flush()
                deadline = time.monotonic() + 30
                while name in site.stall and time.monotonic() < deadline:
                    time.sleep(0.01)
                self.close_connection = True
                return None
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[start:])
            return None

    return Handler


@pytest.fixture
def site() -> Iterator[Hub]:
    running = Hub()
    with listening(handler(running)) as url:
        running.url = url
        try:
            yield running
        finally:
            running.stall.clear()


def settings(folder: Path, site: Hub | None, **env: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CEVAL_SUITE_"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    endpoint = {"HF_ENDPOINT": site.url if site else "http://127.0.0.1:9"}
    own = {
        "CEVAL_SUITE_PATH": str(folder / "own"),
        "CEVAL_SUITE_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return kept | endpoint | own | env


def entries(folder: Path, **models: dict[str, Any]) -> None:
    (folder / "own" / "leaderboards").mkdir(parents=True, exist_ok=True)
    content = {name.replace("_", "-"): entry for name, entry in models.items()}
    (folder / "own" / "leaderboards" / "models.yaml").write_text(yaml.safe_dump(content))


def call(
    folder: Path, site: Hub | None, *args: str, **env: str
) -> subprocess.CompletedProcess[str]:
    # a process of its own, since hub settings are read at import
    return subprocess.run(
        [sys.executable, "-m", "ceval_suite", *args],
        env=settings(folder, site, **env),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def small(tiny_model: Path) -> dict[str, bytes]:
    return files(tiny_model)


# which files


LLAMA = [
    ".gitattributes",
    "LICENSE.txt",
    "README.md",
    "USE_POLICY.md",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.onnx",
]


def test_of_two_layouts_the_safetensors_are_fetched() -> None:
    found = set(hub.needed(LLAMA, pickle=True, code=True))
    assert {n for n in found if n.endswith((".safetensors", ".bin"))} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert {"config.json", "tokenizer.json", "tokenizer.model", "LICENSE.txt"} <= found
    assert not {n for n in found if "/" in n or n.endswith((".md", ".pth"))}


@pytest.mark.parametrize(
    ("names", "options", "weights"),
    [
        (["model.safetensors", "consolidated.safetensors"], {}, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], {}, ["model.safetensors"]),
        (["gptq_model-4bit-128g.safetensors"], {}, ["gptq_model-4bit-128g.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], {"pickle": True}, ["pytorch_model.bin"]),
        (["pytorch_model.bin", "training_args.bin"], {}, []),
        (["model.safetensors", "pytorch_model.bin"], {"pickle": True}, ["model.safetensors"]),
        (["adapter_model.safetensors", "adapter_model.bin"], {}, ["adapter_model.safetensors"]),
        (["adapter_model.bin"], {"pickle": True}, ["adapter_model.bin"]),
        (["sft/adapter_model.safetensors"], {}, []),
        (
            ["sft/adapter_model.safetensors", "sft/adapter_config.json", "other/x.json"],
            {"folder": "sft"},
            ["sft/adapter_config.json", "sft/adapter_model.safetensors"],
        ),
        (["model.safetensors", "tokenizer.json"], {"weights": False}, ["tokenizer.json"]),
        (["modeling_x.py", "sub/more.py"], {}, []),
        (["modeling_x.py", "sub/more.py"], {"code": True}, ["modeling_x.py", "sub/more.py"]),
    ],
)
def test_which_files_of_a_repository_are_needed(
    names: list[str], options: dict[str, Any], weights: list[str]
) -> None:
    assert hub.needed(names, **options) == weights


# from the hub


def test_a_checkpoint_comes_whole_and_without_what_nobody_reads(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    more = {"pytorch_model.bin": b"x", "README.md": b"x", "original/model.safetensors": b"x"}
    site.repositories["owner/tiny"] = small | more
    entries(tmp_path, tiny={"path": "owner/tiny"})
    done = call(tmp_path, site, "model", "fetch", "tiny", "owner/tiny")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    folder = Path(first.removeprefix("tiny: "))
    assert second == f"owner__tiny: {folder}"
    assert {name: (folder / name).read_bytes() for name in small} == small
    assert site.names() == set(small)
    # the second name fetched nothing again
    assert len(site.got) == len(small)


def test_what_was_fetched_is_shown_and_scored_without_a_network(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories["owner/tiny"] = small | {"pytorch_model.bin": b"x"}
    assert call(tmp_path, site, "model", "fetch", "owner/tiny").returncode == 0
    shown = call(tmp_path, None, "show", "owner/tiny", "--json", HF_HUB_OFFLINE="1")
    found = json.loads(shown.stdout)["checkpoint"]
    assert (found["local"], found["commit"]) == (True, COMMIT)
    for name, offline in (("a", "1"), ("b", "0")):
        done = call(
            tmp_path,
            None,
            *("run", "--model", "owner/tiny", "--tasks", "sample-mmlu", "--limit", "1"),
            *("--shots", "0", "--out", str(tmp_path / name), "--device", "cpu", "--json"),
            HF_HUB_OFFLINE=offline,
        )
        assert done.returncode == 0, done.stderr


def test_adapters_and_a_tokenizer_from_elsewhere_come_along(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories["owner/tiny"] = small
    site.repositories["owner/words"] = {
        "tokenizer.json": small["tokenizer.json"],
        "model.safetensors": b"the tokenizer's own model is not wanted",
    }
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    site.repositories["owner/lora"] = {f"sft/{k}": v for k, v in adapter.items()} | adapter
    tuned = {"path": "owner/lora", "subfolder": "sft", "revision": COMMIT}
    entry = {"path": "owner/tiny", "tokenizer": "owner/words", "adapters": [tuned]}
    entries(tmp_path, tiny=entry)
    done = call(tmp_path, site, "model", "fetch", "tiny")
    assert done.returncode == 0, done.stderr
    lines = [Path(line.removeprefix("tiny: ")) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert files(lines[1].parent).keys() >= {f"{COMMIT}/tokenizer.json"}
    assert {path.name for path in lines[2].iterdir()} == set(adapter)
    asked = {path for path, _ in site.got if path.startswith("/owner/lora")}
    assert {path.split(COMMIT)[1] for path in asked} == {f"/sft/{name}" for name in adapter}
    assert not [path for path, _ in site.got if path.startswith("/owner/words") and "model" in path]


def test_a_killed_download_goes_on_where_it_stopped(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    stop = 25 << 20
    site.repositories["owner/big"] = small | {"model.safetensors": BIG}
    site.stall["model.safetensors"] = stop
    begun = subprocess.Popen(
        [sys.executable, "-m", "ceval_suite", "model", "fetch", "owner/big"],
        env=settings(tmp_path, site),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        kept = 0
        while kept < stop // 2 and time.monotonic() < deadline:
            parts = list((tmp_path / "hf").rglob("*.part"))
            kept = max((part.stat().st_size for part in parts), default=0)
            time.sleep(0.05)
    finally:
        begun.send_signal(signal.SIGKILL)
        begun.wait()
    assert kept >= stop // 2
    # what is half there is not taken for a checkpoint
    early = call(tmp_path, None, "run", "--model", "owner/big", "--tasks", "sample-mmlu")
    assert early.returncode == 1, early.stderr
    assert "neither a local path nor reachable on the hub" in early.stderr

    site.stall.clear()
    site.got.clear()
    done = call(tmp_path, site, "model", "fetch", "owner/big")
    assert done.returncode == 0, done.stderr
    (resumed,) = [asked for path, asked in site.got if path.endswith("/model.safetensors")]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").split("-")[0]) >= stop // 2
    folder = Path(done.stdout.strip().removeprefix("owner__big: "))
    assert (folder / "model.safetensors").read_bytes() == BIG


def test_a_connection_that_breaks_is_taken_up_again(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories["owner/big"] = small | {"model.safetensors": BIG}
    site.cut["model.safetensors"] = 20 << 20
    done = call(tmp_path, site, "model", "fetch", "owner/big")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().removeprefix("owner__big: "))
    assert (folder / "model.safetensors").read_bytes() == BIG
    asked = [asked for path, asked in site.got if path.endswith("/model.safetensors")]
    assert asked == [None, f"bytes={20 << 20}-"]


def test_each_failure_is_a_sentence_and_the_rest_is_fetched(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories |= {
        "owner/tiny": small,
        "owner/gated": small,
        "owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
        "owner/empty": {"README.md": b"x"},
    }
    site.gated.add("owner/gated")
    entries(
        tmp_path,
        old={"path": "owner/tiny", "revision": "v9"},
        far={"backend": "server", "path": "m", "url": "http://127.0.0.1:1/v1"},
        gone={"path": "./nowhere"},
    )
    names = ["nobody/none", "owner/gated", "owner/pickled", "owner/empty", "old", "far", "gone"]
    done = call(tmp_path, site, "model", "fetch", *names, "nonsense", "owner/tiny")
    assert done.returncode == 1
    assert done.stdout.startswith("owner__tiny: ")
    lines = done.stderr.removeprefix("error: ").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *["nobody/none", "owner/gated", "owner/pickled", "owner/empty", "owner/tiny", "far"],
        *["./nowhere", "unknown model 'nonsense'"],
    ]
    for line, word in zip(
        lines,
        ["check the name", "HF_TOKEN", "allow_pickle", "none of the files", "'v9'", "served at"],
        strict=False,
    ):
        assert word in line
    assert not [path for path, _ in site.got if path.endswith(".bin")]


def test_pickled_weights_are_fetched_where_they_are_allowed(site: Hub, tmp_path: Path) -> None:
    site.repositories["owner/pickled"] = {
        "config.json": b"{}",
        "pytorch_model.bin": b"x",
        "training_args.bin": b"x",
    }
    entries(tmp_path, old={"path": "owner/pickled", "allow_pickle": True})
    assert call(tmp_path, site, "model", "fetch", "old").returncode == 0
    assert site.names() == {"config.json", "pytorch_model.bin"}


def test_code_is_fetched_only_where_it_may_run(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories["owner/tiny"] = small | {"modeling_tiny.py": b"x = 1"}
    entries(tmp_path, no={"path": "owner/tiny"}, yes={"path": "owner/tiny"})
    assert call(tmp_path, site, "model", "fetch", "no").returncode == 0
    assert "modeling_tiny.py" not in site.names()
    entries(tmp_path, yes={"path": "owner/tiny", "trust_remote_code": True})
    assert call(tmp_path, site, "model", "fetch", "yes").returncode == 0
    assert "modeling_tiny.py" in site.names()


def test_a_gguf_file_of_a_repository_comes_alone(site: Hub, tmp_path: Path) -> None:
    content = {"a-q4_0.gguf": b"GGUF four", "a-q8_0.gguf": b"GGUF eight", "README.md": b"x"}
    site.repositories["owner/a-GGUF"] = content
    entries(tmp_path, a={"path": "owner/a-GGUF/a-q8_0.gguf"})
    done = call(tmp_path, site, "model", "fetch", "a")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().removeprefix("a: ")).read_bytes() == b"GGUF eight"
    assert site.names() == {"a-q8_0.gguf"}


def test_a_token_goes_to_the_hub_and_nowhere_else(
    site: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    site.repositories["owner/tiny"] = small
    done = call(tmp_path, site, "model", "fetch", "owner/tiny", HF_TOKEN="hf_secret")
    assert done.returncode == 0
    assert "Bearer hf_secret" in site.tokens
    assert "hf_secret" not in done.stdout + done.stderr


def test_without_a_network_and_a_copy_the_remedy_is_told(tmp_path: Path) -> None:
    done = call(tmp_path, None, "model", "fetch", "owner/tiny")
    assert done.returncode == 1
    assert done.stderr == (
        "error: owner/tiny: neither a local path nor reachable on the hub; check the name, the "
        "network, or set HF_ENDPOINT to a mirror.\n"
    )


def test_progress_counts_bytes(
    site: Hub, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.repositories["owner/big"] = small | {"model.safetensors": BIG}
    code = (
        "import json\n"
        "from ceval_suite.backends import sources\n"
        "from ceval_suite.model_spec import ModelSpec\n"
        "seen = []\n"
        "sources.fetch(ModelSpec(path='owner/big'), 'big', lambda *step: seen.append(step))\n"
        "print(json.dumps([seen[0], seen[-1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=settings(tmp_path, site),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    first, last = json.loads(done.stdout)
    assert 0 < first[1] < len(BIG)
    assert last == ["big", len(BIG), len(BIG)]


def test_a_local_checkpoint_needs_no_fetching(tiny_model: Path) -> None:
    spec = ModelSpec(path=str(tiny_model))
    assert sources.fetch(spec, "tiny", lambda *_: None) == [tiny_model]
    assert sources.find(spec) == tiny_model
    assert sources.find(ModelSpec(path="./nowhere")) is None
