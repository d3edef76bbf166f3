"""Tensor parallelism: two real processes under torchrun write the records of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ceval_suite.backends import open_backend, placement
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.records import read_json, read_records

# one worker: several processes of these tests on two cores would only wait for each other
pytestmark = pytest.mark.xdist_group("parallel")

ROOT = Path(__file__).parents[1]
PATIENCE = 240.0
"""Seconds until processes that wait for each other for ever fail the test."""

KILLED = """
if [ "$RANK" = 1 ]; then
  (until [ -s "$(ls {out}/*/*/records.jsonl 2>/dev/null | head -1)" ]; do sleep 0.02; done
   kill -9 $$) &
fi
exec "{python}" -m ceval_suite {arguments}
"""


@pytest.fixture
def models(tiny_model: Path, tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A working folder whose models.yaml has two models for one process and for several."""
    tied = tiny_llama(
        "tied-llama",
        seed=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    entries: dict[str, Any] = {}
    for name, path in (("apart", tiny_model), ("tied", tied)):
        entries[f"{name}-one"] = {"path": str(path), "dtype": "float32", "device": "cpu"}
        entries[f"{name}-two"] = {**entries[f"{name}-one"], "tp_plan": "auto"}
    (tmp_path / "leaderboards").mkdir()
    (tmp_path / "leaderboards" / "models.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path


def environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return {**os.environ, **hidden}


def two(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start two processes with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def one(cwd: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "ceval_suite", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )


def folder(cwd: Path, model: str) -> Path:
    (found,) = (cwd / "runs" / model).iterdir()
    return found


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_two_processes_write_the_records_of_one(models: Path) -> None:
    run = ("run", "--tasks", "sample-mmlu")
    one(models, *run, "--model", "apart-one", "--model", "tied-one")
    done = two(
        models, "-m", "ceval_suite", *run, "--model", "apart-two", "--model", "tied-two", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"rows"') == 1  # one process speaks
    for name in ("apart", "tied"):
        expected = list(read_records(folder(models, f"{name}-one") / "records.jsonl"))
        found = list(read_records(folder(models, f"{name}-two") / "records.jsonl"))
        assert sorted(r.id for r in found) == sorted(r.id for r in expected)
        assert len({r.id for r in found}) == len(found) > 0
        by_id = {r.id: r for r in found}
        for record in expected:
            other = by_id[record.id]
            assert other.logprobs == pytest.approx(record.logprobs, abs=1e-4)
            assert other.logits == pytest.approx(record.logits, abs=1e-4)
            assert other.prediction == record.prediction
        summary = read_json(folder(models, f"{name}-two") / "summary.json")
        assert summary["complete"]
        engine = read_json(folder(models, f"{name}-two") / "run.json")["engine"]
        assert engine["tensor_parallel"]["processes"] == 2
        assert engine["path"]["attention"] == "packed"
        alone = read_json(folder(models, f"{name}-one") / "run.json")["engine"]
        assert engine["parameters"] == alone["parameters"]
        # each process holds half of all but the norms and a head of its own
        head = 0 if name == "tied" else engine["embedding_rows"] * 64
        half = (engine["parameters"] - head - 5 * 64) // 2
        assert engine["tensor_parallel"]["own_shared_bytes"] == 4 * half


def test_two_processes_write_texts_and_follow_answers_like_one(models: Path) -> None:
    run = ("run", "--tasks", "sample-gaokao,sample-agieval", "--shots", "0", "--limit", "2")
    one(models, *run, "--model", "apart-one")
    done = two(models, "-m", "ceval_suite", *run, "--model", "apart-two")
    assert done.returncode == 0, done.stderr
    for task in ("sample-gaokao", "sample-agieval"):
        (expected,) = (models / "runs" / "apart-one").glob(f"{task}-*")
        (found,) = (models / "runs" / "apart-two").glob(f"{task}-*")
        by_id = {r.id: r for r in read_records(found / "records.jsonl")}
        records = list(read_records(expected / "records.jsonl"))
        assert len(records) == len(by_id) > 0
        for record in records:
            other = by_id[record.id]
            assert (other.text, other.prediction) == (record.text, record.prediction)
            assert other.prompt_sha256 == record.prompt_sha256
            assert other.logprobs == pytest.approx(record.logprobs, abs=1e-4)
        engine = read_json(found / "run.json")["engine"]
        assert engine["path"]["writing"] == "packed"
    assert any(record.text for record in records)


def test_trouble_of_one_process_ends_all_with_its_sentence(models: Path, tiny_model: Path) -> None:
    # as on a second machine to which nobody copied the checkpoint
    (models / "elsewhere").mkdir()
    (models / "there").symlink_to(tiny_model)
    script = f"""
    if [ "$RANK" = 1 ]; then cd elsewhere; fi
    exec "{sys.executable}" -m ceval_suite run --tasks sample-mmlu --model here --out {models}/runs
    """
    entry = {"here": {"path": "./there", "dtype": "float32", "device": "cpu", "tp_plan": "auto"}}
    (models / "leaderboards" / "models.yaml").write_text(yaml.safe_dump(entry))
    (models / "start.sh").write_text(script)
    done = two(models, "--no-python", "bash", "start.sh")
    assert done.returncode == 1
    assert len(sentences(done)) == 1
    assert "error: process 1: ./there: no such" in sentences(done)[0]


def test_a_killed_process_ends_all_and_finished_records_are_kept(models: Path) -> None:
    out = models / "runs"
    arguments = f"run --tasks sample-mmlu --model apart-two --engine plain --out {out}"
    script = KILLED.format(out=out, python=sys.executable, arguments=arguments)
    (models / "start.sh").write_text(script)
    done = two(models, "--no-python", "bash", "start.sh")
    assert done.returncode == 1
    records = folder(models, "apart-two") / "records.jsonl"
    ids = [record.id for record in read_records(records)]
    assert 0 < len(ids) == len(set(ids)) < 100
    # one sentence, of whichever trouble the first process sees first
    assert len(sentences(done)) + ("interrupted; finished records are kept" in done.stderr) == 1


# what is refused before anything is loaded


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the first of three processes."""
    known = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("pair")
def test_a_model_without_a_plan_is_not_scored_by_several_processes(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="torchrun started 3 processes, and only a model with"):
        open_backend(ModelSpec(path=str(tiny_model)))


@pytest.mark.usefixtures("pair")
def test_every_process_gets_whole_heads(tiny_model: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_model)
    spec = ModelSpec(path=str(tiny_model), tp_plan="auto", device="cpu")
    with pytest.raises(ModelError, match="2 heads of keys and values cannot be shared evenly by 3"):
        placement.check_heads(spec, config)
    config.num_key_value_heads = 3
    placement.check_heads(spec, config)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"device_map": "auto"}, "tp_plan and device_map exclude each other"),
        ({"quant": {"method": "torchao"}}, "quant cannot be applied to shares of weights"),
        ({"adapters": [{"path": "a"}]}, "adapters cannot be applied to shares of weights"),
        ({"grow_embeddings": True}, "grow_embeddings cannot be applied to shares of weights"),
        ({"device": "mps"}, "device mps, where tp_plan takes the"),
    ],
)
def test_what_shares_of_weights_cannot_take_is_refused(more: dict[str, Any], words: str) -> None:
    spec = ModelSpec(path="m", tp_plan="auto", **{"device": "cpu", **more})
    with pytest.raises(ModelError, match=words):
        placement.spread(spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes would take the GPUs")
@pytest.mark.usefixtures("pair")
def test_without_a_gpu_processes_share_the_cpu() -> None:
    spec = ModelSpec(path="m", tp_plan="auto", device="cpu")
    assert list(placement.spread(spec)) in (["distributed_config"], ["tp_plan"])
