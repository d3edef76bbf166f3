"""Real Ray: two nodes write the records of one process, bit for bit, and survive each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ceval_suite
from ceval_suite import backends, sweep
from ceval_suite.backends import units
from ceval_suite.backends.hands import Lost
from ceval_suite.backends.ray import RayHands
from ceval_suite.errors import ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json
from ceval_suite.run import evaluate
from ceval_suite.sweep import Staff
from tests import hands
from tests.hands import by_unit

pytest.importorskip("ray")

# one worker: several processes of these tests on two cores would only wait for each other
pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[1]
KNOCK = "import socket; socket.create_connection(('10.213.77.1', 6399), timeout=5)"
TASKS = ["sample-mmlu", "sample-cmmlu", "sample-ceval"]
SMALL = 3000
"""Bytes of a unit here, so that the small exams have several."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of the workers
    found = hands.cluster()
    yield found
    found.shutdown()


@pytest.fixture(scope="module", autouse=True)
def small_units() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "WORK", SMALL)
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers open a model that needs no torch, and answers by all that is in a unit."""
    monkeypatch.setattr(backends, "open_backend", by_unit)


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> ModelSpec:
    return ModelSpec(path=str(tiny_model), dtype="float32", engine="reproducible")


def alone(
    spec: ModelSpec, out: Path, opener: Any = None, tasks: Sequence[str] = tuple(TASKS)
) -> dict[str, Any]:
    """The records of one process."""
    evaluate("tiny", spec, [prepare(name, Selection()) for name in tasks], out, opener=opener)
    return records(out)


def records(out: Path) -> dict[str, Any]:
    """All lines of records, by id; none stands twice."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/*/records.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            key = path.parts[-3], row["id"]
            assert key not in found
            found[key] = row
    return found


def test_two_nodes_write_the_records_of_one_process_bit_for_bit(
    cluster: Any, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, at = tmp_path / "two", tmp_path / "at"
    at.mkdir()
    auto = spec.model_copy(update={"engine": "auto"})  # workers make it the reproducible one
    staff = Staff(2, cluster.address)
    # neither answers before both have opened the model
    monkeypatch.setattr(backends, "open_backend", partial(hands.together, at))
    sweep.run({"tiny": auto}, TASKS, [Selection()], out, lambda _: None, staff=staff)
    monkeypatch.undo()
    assert records(out) == alone(spec, tmp_path / "one")
    (run,) = out.glob("tiny/sample-ceval-*/run.json")
    workers = read_json(run)["engine"]["workers"]
    assert (workers["size"], workers["asked"], workers["lost"]) == (2, 2, 0)
    assert workers["alike"] is True
    assert read_json(run)["model"]["engine"] == "reproducible"


def test_a_node_that_goes_away_costs_nothing_but_time(
    cluster: Any, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, at = tmp_path / "two", tmp_path / "at"
    at.mkdir()
    monkeypatch.setattr(backends, "open_backend", partial(hands.held, at))
    lines: list[str] = []
    done: list[BaseException | None] = []

    def run() -> None:
        try:
            staff = Staff(2, cluster.address)
            sweep.run({"tiny": spec}, TASKS, [Selection()], out, lines.append, staff=staff)
            done.append(None)
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not done and not (len(list(at.iterdir())) == 2 and records(out)):
        time.sleep(0.01)
    cluster.remove_node(cluster.second, allow_graceful=False)
    (at / "go").touch()
    thread.join()
    assert done == [None]
    lost = [line for line in lines if line.startswith("a worker was lost (")]
    assert len(lost) == 1
    assert lost[0].endswith("); another does its work")
    assert records(out) == alone(spec, tmp_path / "one", by_unit)


def test_several_models_are_shared_and_a_broken_one_stops_no_other(
    quick: None, spec: ModelSpec, tmp_path: Path
) -> None:
    broken = spec.model_copy(update={"path": str(tmp_path / "away")})
    specs = {"tiny": spec, "broken": broken, "again": spec}
    lines: list[str] = []
    with pytest.raises(UserError, match="away"):
        sweep.run(specs, TASKS[:1], [Selection()], tmp_path / "o", lines.append, staff=Staff(2))
    found = records(tmp_path / "o")
    one = alone(spec, tmp_path / "one", by_unit, TASKS[:1])
    expected = {id: row for (_, id), row in one.items()}
    assert {id: row for (name, id), row in found.items() if name == "tiny"} == expected
    assert {id: row for (name, id), row in found.items() if name == "again"} == expected
    assert "again: loading again" in lines


def test_programs_have_workers_too(quick: None, spec: ModelSpec, tmp_path: Path) -> None:
    options = {"dtype": "float32", "engine": "reproducible"}
    found = ceval_suite.evaluate(
        spec.path, TASKS[:1], shots=0, circular=True, workers=2, out=tmp_path, **options
    )
    (run,) = [read_json(folder / "run.json") for folder in found.folders]
    assert run["engine"]["workers"]["size"] == 2
    assert found.summaries[0]["circular"]


def test_where_no_cluster_answers_one_sentence_says_so(spec: ModelSpec, tmp_path: Path) -> None:
    staff = Staff(1, "127.0.0.1:1")
    with pytest.raises(ModelError, match=r"--ray 127.0.0.1:1: no Ray cluster answers"):
        sweep.run({"tiny": spec}, TASKS, [Selection()], tmp_path, lambda _: None, staff=staff)


def test_more_gpus_than_there_are_is_said_at_once(spec: ModelSpec, tmp_path: Path) -> None:
    staff = Staff(2, gpus=64)
    with pytest.raises(ModelError, match=r"no node .* room for a worker \(64 GPUs and 1 core each"):
        sweep.run({"tiny": spec}, TASKS[:1], [Selection()], tmp_path, lambda _: None, staff=staff)


def _ip(*arguments: str) -> bool:
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two network namespaces with one cable between them: the head's at 10.213.77.1."""
    names = (f"ceval{os.getpid()}a", f"ceval{os.getpid()}b")
    if os.environ.get("CEVAL_SUITE_NETWORKS") != "1":
        pytest.skip("takes a minute of two cores: CEVAL_SUITE_NETWORKS=1 has it run")
    if shutil.which("ip") is None or os.getuid() != 0 or not _ip("netns", "add", names[0]):
        pytest.skip("network namespaces need root and iproute2")
    try:
        _ip("netns", "add", names[1])
        _ip("link", "add", "cevala", "netns", names[0], "type", "veth", "peer", "name", "cevalb",
            "netns", names[1])  # fmt: skip
        for number, (name, link) in enumerate(zip(names, ("cevala", "cevalb"), strict=True), 1):
            _ip("-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", link)
            _ip("-n", name, "link", "set", "lo", "up")
            if not _ip("-n", name, "link", "set", link, "up"):
                pytest.skip("no cable can be laid between network namespaces here")
        yield names
    finally:
        for name in names:
            _ip("netns", "del", name)


def test_two_network_namespaces_write_the_records_of_one_process_bit_for_bit(
    networks: tuple[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    address = "10.213.77.1:6399"
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    env["RAY_AUTH_MODE"] = "disabled"  # else it depends on whether there is a token at home
    ray = str(Path(sys.executable).with_name("ray"))
    both = ["--num-cpus", "1", "--object-store-memory", str(80 << 20), "--block"]
    # paths of sockets must be short
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as place:
        head = ["--head", "--node-ip-address", "10.213.77.1", "--port", "6399"]
        head += ["--include-dashboard", "false", "--temp-dir", place]
        other = ["--address", address, "--node-ip-address", "10.213.77.2"]
        nodes: list[subprocess.Popen[bytes]] = []
        run = [sys.executable, "-m", "ceval_suite", "run", "--model", str(tiny_model)]
        run += ["--dtype", "float32", "--tasks", "sample-mmlu", "--shots", "0"]
        try:
            for network, what in zip(networks, (head, other), strict=True):
                command = ["ip", "netns", "exec", network, ray, "start", *what, *both]
                quiet = subprocess.DEVNULL
                nodes.append(subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet))
                begun = time.monotonic()
                while not _ip("netns", "exec", networks[0], sys.executable, "-c", KNOCK):
                    assert time.monotonic() - begun < 120
            shared = [*run, "--out", str(tmp_path / "two"), "--workers", "2", "--ray", address]
            done = subprocess.run(
                ["ip", "netns", "exec", networks[0], *shared], env=env, capture_output=True,
                check=False, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        finally:
            for node in reversed(nodes):
                node.terminate()
                node.wait()
    alone = [*run, "--out", str(tmp_path / "one"), "--engine", "reproducible"]
    subprocess.run(alone, env=env, capture_output=True, check=True)
    assert records(tmp_path / "two") == records(tmp_path / "one")


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    placed = RayHands(by_unit, backends.identify, 2)
    placed._actor = placed._ray.remote(max_restarts=0)(hands.Stuck)
    placed._arguments = ()
    try:
        worker = placed.start()
        while not (events := placed.wait(1)):
            pass
        assert [(event.kind, event.value) for event in events] == [("ready", None)]
        assert placed.call(worker, "return")(60) is None
        answer = placed.call(worker, "hang")
        with pytest.raises(TimeoutError):
            answer(0.1)
        placed.kill(worker)
        with pytest.raises(Lost):
            answer(60)
        with pytest.raises(Lost):
            placed.call(worker, "return")
    finally:
        placed.close()
