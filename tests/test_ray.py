"""Real Ray: two nodes write the records of one process, bit for bit, and survive each other."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import sweep
from ceval_suite.backends import units
from ceval_suite.errors import ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection
from ceval_suite.records import read_json
from ceval_suite.sweep import Staff

pytest.importorskip("ray")

# one worker: several processes of these tests on two cores would only wait for each other
pytestmark = pytest.mark.xdist_group("ray")

TASKS = ["sample-mmlu", "sample-cmmlu", "sample-ceval"]
SMALL = 3000
"""Bytes of a unit here, so that the small exams have several."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    quiet = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    found = Cluster(initialize_head=True, head_node_args=quiet)
    found.second = found.add_node(num_cpus=1, object_store_memory=80 << 20)
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture(scope="module", autouse=True)
def small_units() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "WORK", SMALL)
        yield


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> ModelSpec:
    return ModelSpec(path=str(tiny_model), dtype="float32", engine="reproducible")


@pytest.fixture(scope="module")
def alone(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of one process."""
    out = tmp_path_factory.mktemp("alone")
    sweep.run({"tiny": spec}, TASKS, [Selection()], out, lambda _: None)
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
    cluster: Any, spec: ModelSpec, alone: dict[str, Any], tmp_path: Path
) -> None:
    auto = spec.model_copy(update={"engine": "auto"})  # workers make it the reproducible one
    staff = Staff(2, cluster.address)
    sweep.run({"tiny": auto}, TASKS, [Selection()], tmp_path, lambda _: None, staff=staff)
    assert records(tmp_path) == alone
    (run,) = tmp_path.glob("tiny/sample-ceval-*/run.json")
    workers = read_json(run)["engine"]["workers"]
    assert (workers["size"], workers["asked"], workers["lost"]) == (2, 2, 0)
    assert workers["alike"] is True
    assert read_json(run)["model"]["engine"] == "reproducible"


def test_a_node_that_goes_away_costs_nothing_but_time(
    cluster: Any, spec: ModelSpec, alone: dict[str, Any], tmp_path: Path
) -> None:
    lines: list[str] = []
    done: list[BaseException | None] = []

    def run() -> None:
        try:
            staff = Staff(2, cluster.address)
            sweep.run({"tiny": spec}, TASKS, [Selection()], tmp_path, lines.append, staff=staff)
            done.append(None)
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not done and not records(tmp_path):
        time.sleep(0.01)
    cluster.remove_node(cluster.second, allow_graceful=False)
    thread.join()
    assert done == [None]
    assert records(tmp_path) == alone


def test_several_models_are_shared_and_a_broken_one_stops_no_other(
    spec: ModelSpec, alone: dict[str, Any], tmp_path: Path
) -> None:
    broken = spec.model_copy(update={"tokenizer": str(tmp_path)})
    specs = {"tiny": spec, "broken": broken, "again": spec}
    lines: list[str] = []
    with pytest.raises(UserError, match=str(tmp_path)):
        sweep.run(specs, TASKS[:1], [Selection()], tmp_path / "o", lines.append, staff=Staff(2))
    found = records(tmp_path / "o")
    expected = {id: row for (_, id), row in alone.items() if id.startswith("sample-mmlu")}
    assert {id: row for (name, id), row in found.items() if name == "tiny"} == expected
    assert {id: row for (name, id), row in found.items() if name == "again"} == expected
    assert "again: loading again" in lines


def test_where_no_cluster_answers_one_sentence_says_so(spec: ModelSpec, tmp_path: Path) -> None:
    staff = Staff(1, "127.0.0.1:1")
    with pytest.raises(ModelError, match=r"--ray 127.0.0.1:1: no Ray cluster answers"):
        sweep.run({"tiny": spec}, TASKS, [Selection()], tmp_path, lambda _: None, staff=staff)


def test_more_gpus_than_there_are_is_said_at_once(spec: ModelSpec, tmp_path: Path) -> None:
    staff = Staff(2, gpus=64)
    with pytest.raises(ModelError, match=r"no node .* room for a worker \(64 GPUs and 1 core each"):
        sweep.run({"tiny": spec}, TASKS[:1], [Selection()], tmp_path, lambda _: None, staff=staff)
