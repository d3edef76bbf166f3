"""Checkpoints that a training job writes are scored once each, when they are finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import watching
from ceval_suite.arrivals import look
from ceval_suite.backends import hub
from ceval_suite.curves import find, of
from ceval_suite.errors import NotNow
from ceval_suite.lock import Lock
from ceval_suite.model_spec import Adapter, ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.report import curve
from ceval_suite.run import evaluate
from ceval_suite.watching import Wanted, Watcher
from tests import faulty, filling
from tests.training_jobs import model

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("processes")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model(tiny_tokenizer, initializer_range=0.1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def wanted(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    monkeypatch.setattr(watching, "SETTLE", 0.3)
    (tmp_path / "sft").mkdir()
    tasks = [prepare("sample-mmlu", Selection(shots=0, limit=2))]
    return Wanted(
        folder=tmp_path / "sft",
        tasks=tasks,
        out=tmp_path / "runs",
        name="sft",
        base=str(base),
        options={"dtype": "float32"},
        every=0.3,
        once=True,
    )


def full(base: Path, folder: Path, step: int, *, tokenizer: bool = True) -> Path:
    """The base as a whole checkpoint of a step."""
    shutil.copytree(base, folder)
    if not tokenizer:
        for file in (*folder.glob("tokenizer*"), *folder.glob("special*")):
            file.unlink()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def lines() -> tuple[list[str], Callable[[str], None]]:
    said: list[str] = []
    return said, said.append


def loaded(said: list[str]) -> list[str]:
    return [line.removeprefix("loading ") for line in said if line.startswith("loading ")]


def test_a_folder_that_a_process_fills_is_scored_once_each_and_the_curve_is_right(
    wanted: Wanted, base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    place = tmp_path / "filled" / "sft"
    place.parent.mkdir()
    command = [sys.executable, str(ROOT / "tests" / "filling.py"), str(base), str(place)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as filler:
        assert filler.stdout is not None
        assert filler.stdout.readline().strip() == "1"
        said, say = lines()
        watcher = Watcher(replace(wanted, folder=place, once=False, idle=6, base=None), say)
        scored = list(watcher)
        assert filler.wait(60) == 0
    assert sorted(one.arrival.step or 0 for one in scored) == [1, 2, 3, 4]
    assert sorted(loaded(said)) == [f"sft-step-{step}" for step in (1, 2, 3, 4)]
    # the second was finished late, the last never
    assert [one.arrival.step for one in scored].index(2) > 0
    assert said[-1] == (
        "checkpoint-5: not finished when the watch ended: "
        "adapter_model.safetensors is not all there yet"
    )
    (found,) = scored[-1].curves
    assert [point.step for point in found.points] == [1, 2, 3, 4]
    separate = tmp_path / "separate"
    for point in found.points:
        adapters = [Adapter(path=str(place / f"checkpoint-{point.step}"))]
        spec = ModelSpec(path=str(base), adapters=adapters, dtype="float32")
        (run,) = evaluate(f"alone-{point.step}", spec, wanted.tasks, separate)
        assert point.folder is not None
        mine, alone = (
            {r.id: r for r in read_records(f / "records.jsonl")} for f in (point.folder, run)
        )
        assert mine.keys() == alone.keys()
        for id, one in mine.items():
            assert one.prediction == alone[id].prediction
            assert one.logprobs == pytest.approx(alone[id].logprobs, abs=2e-5)
        right = [bool(one.correct) for one in alone.values()]
        assert point.averages["acc/micro"].value == sum(right) / len(right)
    table = curve.curve(found)
    assert [row[0].value for row in table.rows] == [1, 2, 3, 4]
    assert curve.plot(found).count("●") == 4


def test_a_file_is_unfinished_at_every_length_but_its_own(base: Path, tmp_path: Path) -> None:
    folder = full(base, tmp_path / "checkpoint-3", 3)
    weights = (folder / "model.safetensors").read_bytes()
    for share in (0, 4, 8, 100, len(weights) // 2, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:share])
        assert look(tmp_path)[0].missing == "model.safetensors is not all there yet"
    (folder / "model.safetensors").write_bytes(weights)
    (one,) = look(tmp_path)
    assert (one.kind, one.step, one.missing, one.sealed) == ("full", 3, "", True)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config[:-5])
    assert look(tmp_path)[0].missing == "no whole config.json yet"


def test_shards_are_told_by_their_index(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "step_000120"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="100KB")
    (one,) = look(tmp_path)
    assert (one.step, one.missing, one.sealed) == (120, "", False)
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-1])
    assert look(tmp_path)[0].missing == f"{shards[1].name} is not all there yet"
    shards[1].unlink()
    assert look(tmp_path)[0].missing == f"no {shards[1].name} yet"
    shards[1].write_bytes(whole)
    # shards are written before their index
    text = index.read_bytes()
    index.write_bytes(text[:-9])
    assert look(tmp_path)[0].missing == f"no whole {index.name} yet"
    index.unlink()
    assert look(tmp_path)[0].missing == f"no whole {index.name} yet"


def test_pickled_shards_are_told_by_their_index_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    shards = [f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)]
    index = folder / "pytorch_model.bin.index.json"
    (folder / shards[0]).write_bytes(b"x")
    assert look(tmp_path)[0].missing == f"no whole {index.name} yet"
    text = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}})
    index.write_text(text[:-3])
    assert look(tmp_path)[0].missing == f"no whole {index.name} yet"
    index.write_text(text)
    assert look(tmp_path)[0].missing == f"no {shards[1]} yet"
    (folder / shards[1]).write_bytes(b"x")
    assert look(tmp_path)[0].missing == ""


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("checkpoint-500-merged-7b", 500),
        ("global_step1200_hf", 1200),
        ("qwen2-step_000120-v3", 120),
        ("epoch=3-step=900-v1", 900),
        ("run2-40", 40),
        ("final", None),
    ],
)
def test_the_step_is_what_follows_its_name(name: str, step: int | None, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    assert look(tmp_path)[0].step == step


def test_folders_that_are_no_checkpoints_are_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out").write_text("x")
    full(base, tmp_path / "tmp-checkpoint-9", 9)
    full(base, tmp_path / ".cache-8", 8)
    (tmp_path / "latest").symlink_to(tmp_path / "tmp-checkpoint-9")
    assert look(tmp_path) == []
    assert look(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("order", "expected"),
    [("newest-first", [30, 20, 10]), ("all", [10, 20, 30]), ("newest", [30])],
)
def test_checkpoints_come_in_the_order_that_was_asked_for(
    order: watching.Order, expected: list[int], wanted: Wanted, base: Path
) -> None:
    for step in (10, 20, 30):
        full(base, wanted.folder / f"checkpoint-{step}", step)
    said, say = lines()
    found = [one.arrival.step for one in Watcher(replace(wanted, order=order), say)]
    assert found == expected
    assert sum("is newer" in line for line in said) == 3 - len(expected)


def test_a_watch_that_was_stopped_goes_on_and_scores_nothing_twice(
    wanted: Wanted, base: Path
) -> None:
    for step in (1, 2):
        full(base, wanted.folder / f"checkpoint-{step}", step)
    said, say = lines()
    for scored in Watcher(replace(wanted, order="all"), say):
        assert scored.new
        break
    assert loaded(said) == ["sft-step-1"]
    again = list(Watcher(replace(wanted, order="all"), say))
    assert [(one.arrival.step, one.new) for one in again] == [(1, False), (2, True)]
    assert loaded(said) == ["sft-step-1", "sft-step-2"]
    # in one watch as well: a second look at the same folder finds nothing new
    watcher = Watcher(replace(wanted, once=False, idle=1.5), say)
    assert len(list(watcher)) == 2
    assert len(loaded(said)) == 2


def test_a_broken_one_is_named_and_passed_over_until_it_changes(wanted: Wanted, base: Path) -> None:
    broken = full(base, wanted.folder / "checkpoint-2", 2)
    full(base, wanted.folder / "checkpoint-1", 1)
    weights = (broken / "model.safetensors").read_bytes()
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    said, say = lines()
    watcher = Watcher(replace(wanted, once=False, idle=1.5), say)
    assert [one.arrival.step for one in watcher] == [1]
    told = [line for line in said if line.startswith("checkpoint-2: passed over: ")]
    assert len(told) == 1
    assert "the weights lack" in told[0]
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes(weights)
    watcher = Watcher(wanted, say)
    assert [one.arrival.step for one in watcher if one.new] == [2]


def test_one_that_is_removed_while_it_is_scored_is_a_sentence(wanted: Wanted, base: Path) -> None:
    for step in (1, 2):
        full(base, wanted.folder / f"checkpoint-{step}", step)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line == "loading sft-step-2":  # save_total_limit strikes
            shutil.rmtree(wanted.folder / "checkpoint-2")

    assert [one.arrival.step for one in Watcher(wanted, say)] == [1]
    assert "checkpoint-2: removed while it was being scored; passed over" in said


def test_what_lacks_a_tokenizer_takes_the_one_beside_it_or_the_bases(
    wanted: Wanted, base: Path, tiny_tokenizer: Any
) -> None:
    full(base, wanted.folder / "checkpoint-1", 1, tokenizer=False)
    said, say = lines()
    assert list(Watcher(replace(wanted, base=None), say)) == []
    assert "no tokenizer in it or beside it" in said[-1]
    assert len(list(Watcher(wanted, say))) == 1
    full(base, wanted.folder / "checkpoint-2", 2, tokenizer=False)
    tiny_tokenizer.save_pretrained(wanted.folder)
    found = [one for one in Watcher(replace(wanted, base=None), say) if one.arrival.step == 2]
    assert len(found) == 1


def test_what_says_no_step_is_scored_but_on_no_curve(wanted: Wanted, base: Path) -> None:
    shutil.copytree(base, wanted.folder / "final")
    (one,) = Watcher(wanted, print)
    assert one.arrival.step is None
    assert one.folders[0].parent.name == "sft-final"
    assert one.curves == []
    assert of(find([wanted.out])) == []


def test_an_adapter_whose_base_is_not_here_names_the_remedy(wanted: Wanted, base: Path) -> None:
    pytest.importorskip("peft")
    filling.save(str(base), wanted.folder / "checkpoint-1", 1)
    file = wanted.folder / "checkpoint-1" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/base"}))
    said, say = lines()
    assert list(Watcher(replace(wanted, base=None), say)) == []
    assert "--base" in said[-1]
    assert len(list(Watcher(wanted, say))) == 1


def test_a_rule_ends_the_watch_with_exit_code_3_and_tells_a_program(
    wanted: Wanted, base: Path, tmp_path: Path
) -> None:
    full(base, wanted.folder / "checkpoint-7", 7)
    told = tmp_path / "told; touch evil"
    code = f"import sys, pathlib; pathlib.Path({str(told)!r}).write_text(sys.argv[1])"
    program = f'"{sys.executable}" -c "{code}"'
    command = [sys.executable, "-m", "ceval_suite", "watch", str(wanted.folder)]
    command += ["--tasks", "sample-mmlu", "--limit", "1", "--shots", "0", "--dtype", "float32"]
    command += ["--out", str(tmp_path / "runs"), "--idle", "1", "--every", "0.5"]
    command += ["--stop-when", "sample-mmlu <= 100", "--alert-command", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "stop: sample-mmlu <= 100: acc/micro is " in done.stderr
    assert told.read_text().startswith("sample-mmlu <= 100: acc/micro is ")
    assert not (tmp_path / "evil").exists()
    assert "sft: sample-mmlu test, official, 0-shot" in done.stdout


def command_line(wanted: Wanted, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ceval_suite", "watch", str(wanted.folder)]
    command += ["--tasks", "sample-mmlu", "--limit", "1", "--shots", "0", "--dtype", "float32"]
    command += ["--out", str(wanted.out), "--every", "0.5", *more]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def hindered(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> list[str]:
    """Scoring fails in these ways, one after the other, before it succeeds; who was scored when."""
    real, tried = evaluate, list[str]()

    def fails(name: str, *args: Any, **given: Any) -> list[Path]:
        tried.append(name)
        if failures:
            raise failures.pop(0)
        return real(name, *args, **given)

    monkeypatch.setattr(watching, "evaluate", fails)
    return tried


def test_what_is_in_the_way_of_one_is_said_once_and_tried_again_when_it_is_over(
    wanted: Wanted, base: Path
) -> None:
    full(base, wanted.folder / "checkpoint-1", 1)
    (place,) = [wanted.out / "sft-step-1" / task.folder for task in wanted.tasks]
    place.mkdir(parents=True)
    said: list[str] = []
    lock = Lock(place)
    lock.acquire()

    def say(line: str) -> None:
        said.append(line)
        if said.count("checkpoint-1: full checkpoint") == 3:
            assert list(watcher.failed) == [wanted.folder / "checkpoint-1"]
            lock.release()

    watcher = Watcher(replace(wanted, once=False, until=1, every=0.2), say)
    (scored,) = watcher
    assert scored.new
    told = [line for line in said if "tried again at later looks" in line]
    assert len(told) == 1
    assert "is being written by another run" in told[0]
    assert watcher.failed == {}


@pytest.mark.parametrize(
    "failure",
    [
        NotNow("base: the download broke off"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(28, "No space left on device"),
    ],
    ids=["the hub", "memory", "disk"],
)
def test_no_memory_no_hub_and_no_room_are_nothing_wrong_with_a_checkpoint(
    failure: Exception, wanted: Wanted, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        full(base, wanted.folder / f"checkpoint-{step}", step)
    tried = hindered(monkeypatch, [failure])
    watcher = Watcher(replace(wanted, once=False, idle=2, every=0.2), print)
    assert sorted(one.arrival.step or 0 for one in watcher) == [1, 2]
    assert tried == ["sft-step-2", "sft-step-1", "sft-step-2"]
    assert watcher.failed == {}


def test_what_fails_again_and_again_waits_longer_each_time_and_lets_the_watch_end(
    wanted: Wanted, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(base, wanted.folder / "checkpoint-1", 1)
    tried = hindered(monkeypatch, [NotNow("no hub") for _ in range(99)])
    watcher = Watcher(replace(wanted, once=False, idle=3, every=0.1), print)
    assert list(watcher) == []
    assert list(watcher.failed.values()) == ["no hub"]
    assert 3 <= len(tried) <= 6  # after 0.1, 0.2, 0.4, 0.8 and 1.6 seconds, not at all 30 looks
    tried.clear()
    assert list(Watcher(wanted, print)) == []
    assert tried == ["sft-step-1"]  # one round is one try


def test_a_hub_that_does_not_answer_is_told_from_one_that_says_no(
    wanted: Wanted, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotNow):
        hub.download("nobody/nothing-here", None, lambda names: list(names))


def test_the_watch_ends_where_the_last_step_cannot_be_scored(wanted: Wanted, base: Path) -> None:
    broken = full(base, wanted.folder / "checkpoint-9", 9)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    watcher = Watcher(replace(wanted, once=False, until=9), print)
    assert list(watcher) == []
    assert list(watcher.failed) == [broken]


def test_what_was_passed_over_and_not_mended_is_exit_code_1(wanted: Wanted, base: Path) -> None:
    broken = full(base, wanted.folder / "checkpoint-2", 2)
    full(base, wanted.folder / "checkpoint-1", 1)
    content = (broken / "config.json").read_text()
    config = json.loads(content)
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    done = command_line(wanted, "--once")
    assert done.returncode == 1, done.stderr
    assert "error: not scored: checkpoint-2; see above why" in done.stderr
    assert "checkpoint-2: passed over: " in done.stderr
    assert "sft: sample-mmlu test, official, 0-shot" in done.stdout  # the first one's curve
    (broken / "config.json").write_text(content)
    done = command_line(wanted, "--once")
    assert done.returncode == 0, done.stderr


def test_sigterm_lets_the_pass_under_way_finish_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = faulty.bench(tmp_path, monkeypatch, capsys, None)
    weights = faulty.checkpoint(tmp_path / "sft")  # stands for the folder that fills
    (weights / "checkpoint-4").mkdir()
    for file in [path for path in weights.iterdir() if path.is_file()]:
        file.rename(weights / "checkpoint-4" / file.name)
    (weights / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4}')
    write_weights(weights / "checkpoint-4" / "model.safetensors")
    given = ["watch", weights, *faulty.TASK, "--out", bench.out, "--once", "--every", "0.1"]
    bench.use(faulty.Hashed(at={1: faulty.kill(signal.SIGTERM)}))
    ended = bench.call(*given)
    assert ended.code == 130, ended.err
    assert "finished records are kept. To go on:\n  ceval-suite watch " in ended.err
    (run,) = bench.out.glob("sft-step-4/sample-mmlu-*")
    kept = faulty.records_in(run)
    assert len(kept) == faulty.PACK
    model = faulty.Hashed()
    bench.use(model)
    ended = bench.call(*given)
    assert ended.code == 0, ended.err
    assert not set(model.asked) & set(kept)
    assert read_json(run / "summary.json")["complete"] is True


def write_weights(file: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"w": zeros(2)}, file)
