"""A run can be watched, found, cleared away and started again by programs that do not know it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ceval_suite import beacon, stopping, terminal
from ceval_suite.records import RunFolder, read_json
from tests import faulty
from tests.faulty import Bench, Hashed, kill, records_in

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("faults")]

DEPLOY = Path(__file__).parents[1] / ".deploy"
ALL = 10


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    return faulty.bench(tmp_path, monkeypatch, capsys, None)


# the index of runs


def states(bench: Bench, *args: object) -> dict[str, str]:
    found = bench.call("runs", bench.out, "--json", *args)
    assert found.code == 0, found.err
    return {Path(one["folder"]).name: one["state"] for one in json.loads(found.out)}


@pytest.fixture
def four(bench: Bench) -> dict[str, Path]:
    """A run of each state, by state; the locked one is not locked yet."""
    bench.score()
    whole = bench.run
    out = {"complete": whole}
    for name in ("partial", "locked", "broken"):
        out[name] = Path(shutil.copytree(whole, whole.with_name(name)))
    for name in ("partial", "locked"):
        (out[name] / "summary.json").unlink()
        lines = (out[name] / "records.jsonl").read_bytes().splitlines(keepends=True)
        (out[name] / "records.jsonl").write_bytes(b"".join(lines[:4]))
    (out["broken"] / "run.json").write_text("{")
    return out


def hold(folder: Path) -> RunFolder:
    return RunFolder(folder, read_json(folder / "run.json")["identity"], {})


def test_the_index_tells_finished_unfinished_held_and_broken_runs_apart(
    bench: Bench, four: dict[str, Path]
) -> None:
    with hold(four["locked"]):
        found = json.loads(bench.call("runs", bench.out, "--json").out)
        shown = bench.call("runs", bench.out)
    by_name = {Path(one["folder"]).name: one for one in found}
    assert {by_name[path.name]["state"]: path for path in four.values()} == four
    whole, part = by_name[four["complete"].name], by_name["partial"]
    summary = read_json(four["complete"] / "summary.json")
    assert (whole["records"], whole["expected"]) == (ALL, ALL)
    assert (part["records"], part["expected"], part["value"]) == (4, ALL, None)
    assert whole["value"] == summary["metrics"][summary["headline"]]["value"]
    assert whole["date"][:10] == summary["date"]
    assert re.search(r"pid \d+ of .*: ceval-suite run ", by_name["locked"]["note"])
    assert "put a copy of it back" in by_name["broken"]["note"]
    assert "1 complete, 1 partial, 1 locked, 1 broken" in shown.out


def test_the_index_can_be_narrowed_and_wrong_states_are_a_sentence(
    bench: Bench, four: dict[str, Path]
) -> None:
    assert set(states(bench, "--state", "partial")) == {"partial", "locked"}
    assert states(bench, "--model", "other") == {}
    assert len(states(bench, "--task", "sample-mmlu")) == 3  # a broken one does not say
    assert "did you mean 'partial'" in bench.call("runs", bench.out, "--state", "partal").err
    assert "nowhere does not exist" in bench.call("runs", "nowhere").err


def test_looking_at_runs_changes_nothing(bench: Bench, four: dict[str, Path]) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in bench.out.rglob("*")}

    before = stamps()
    bench.call("runs", bench.out)
    bench.call("runs", bench.out, "--clean")
    assert stamps() == before


def test_cleaning_takes_unfinished_runs_and_nothing_else(
    bench: Bench, four: dict[str, Path]
) -> None:
    (four["partial"] / "notes.txt").write_text("mine")
    elsewhere = bench.path / "elsewhere"
    shutil.copytree(four["locked"], elsewhere)
    (four["complete"].parent / "link").symlink_to(elsewhere)
    foreign = four["complete"].parent / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text('{"format": 1, "who": "another program"}')
    with hold(four["locked"]):
        found = bench.call("runs", bench.out, "--clean", "--yes")
    assert found.code == 0, found.err
    assert re.findall(r"deleted \S+", found.err) == [f"deleted {four['partial']},"]
    assert "but for notes.txt, which no run wrote" in found.err
    assert [path.name for path in four["partial"].iterdir()] == ["notes.txt"]
    for kept in (four["complete"], four["locked"], four["broken"], elsewhere, foreign):
        assert (kept / "run.json").exists()
    bench.call("runs", bench.out, "--clean", "--yes")
    assert not four["locked"].exists()  # whose writer has gone


def test_a_finished_run_goes_only_when_it_is_named_itself(
    bench: Bench, four: dict[str, Path]
) -> None:
    bench.call("runs", bench.out, "--clean", "--yes")
    assert four["complete"].exists()
    assert bench.call("runs", four["complete"], "--yes").code == 1
    bench.call("runs", four["complete"], "--clean", "--yes")
    assert not four["complete"].exists()


# messages as JSON


def test_messages_are_json_on_request_one_object_a_line(bench: Bench) -> None:
    found = bench.score(None, "--log-format", "json")
    lines = [json.loads(line) for line in found.err.splitlines()]
    assert all({"time", "level", "event"} <= set(line) for line in lines)
    assert {line["level"] for line in lines} == {"info"}
    assert any(line.get("message", "").startswith("records: ") for line in lines)
    assert "Results" in found.out


def test_errors_are_json_too_and_the_variable_serves_as_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEVAL_SUITE_LOG_FORMAT", "json")
    (line,) = bench.call("runs", "nowhere").err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["event"]) == ("error", "message")
    assert found["message"].startswith("nowhere does not exist")
    monkeypatch.delenv("CEVAL_SUITE_LOG_FORMAT")
    assert "did you mean 'json'" in bench.call("--log-format", "jsno", "check").err


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_of_the_environment_are_in_no_message(
    form: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")

    def fail() -> None:
        raise OSError(5, "sent hf_0123456789abcdef and sk-0123456789", "http://a:b@host/x")

    found = bench.score(Hashed(at={1: fail}), "--log-format", form)
    assert found.code == 1
    assert "sent *** and ***" in found.err
    for secret in ("hf_0123", "sk-0123"):
        assert secret not in found.err + found.out


# files for pollers


def test_the_progress_file_says_how_it_ended_and_what_came_of_it(bench: Bench) -> None:
    path = bench.path / "deep" / "progress.json"
    ends = {
        "interrupted": Hashed(at={4: kill(signal.SIGINT)}),
        "failed": Hashed(at={1: lambda: 1 / 0}),
        "finished": Hashed(),
    }
    for state, model in ends.items():
        if state == "failed":
            with pytest.raises(ZeroDivisionError):
                bench.score(model, "--progress", path)
        else:
            bench.score(model, "--progress", path)
        found = json.loads(path.read_text())
        assert found["state"] == state
        assert found["done"] == len(records_in(bench.run))
        assert found["total"] == ALL
    (task,) = found["tasks"]
    assert (task["model"], task["task"]) == ("checkpoint", "sample-mmlu")
    fresh = [r.correct for r in list(records_in(bench.run).values())[5:]]
    assert task["accuracy"] == pytest.approx(sum(map(bool, fresh)) / len(fresh))
    assert [p.name for p in path.parent.iterdir()] == ["progress.json"]


def test_it_is_always_whole_and_written_at_most_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, writes = [0.0], []
    real = os.replace
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "replace", lambda a, b: (writes.append(b), real(a, b)))
    path = tmp_path / "progress.json"
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if path.exists():
                seen.append(json.loads(path.read_text())["state"])

    reader = threading.Thread(target=read)
    reader.start()
    beacon.begin(path, None, print)
    beacon.start("m", "t", 5000, 0)
    for _ in range(5000):
        now[0] += 0.01
        beacon.step("m", "t", True)
    beacon.end("finished")
    stop.set()
    reader.join()
    assert 50 <= len(writes) <= 53
    found = json.loads(path.read_text())
    assert set(seen) <= {"running", "finished"}
    assert found["tasks"][0]["items_per_second"] == pytest.approx(100, rel=0.01)
    assert found["tasks"][0]["seconds_left"] == 0


def test_models_that_are_scored_in_several_threads_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beacon, "EVERY", 0.0)
    path = tmp_path / "progress.json"
    beacon.begin(path, None, print)
    beacon.start("a", "t", 10, 0)
    real, others = beacon.Part.about, list[threading.Thread]()

    def about(part: beacon.Part) -> dict[str, Any]:
        if not others:  # another model begins while the file is being made
            others.append(threading.Thread(target=beacon.start, args=("b", "t", 10, 0)))
            others[0].start()
            others[0].join(0.3)
        return real(part)

    monkeypatch.setattr(beacon.Part, "about", about)
    beacon.step("a", "t", True)
    others[0].join(10)
    assert [part["model"] for part in json.loads(path.read_text())["tasks"]] == ["a", "b"]
    beacon.end("finished")
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_a_wall_clock_that_jumps_changes_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: -1e9 * (now[0] % 7))
    beacon.begin(tmp_path / "p", None, print)
    beacon.start("m", "t", 10, 0)
    for _ in range(4):
        now[0] += 0.5
        beacon.step("m", "t", None)
    beacon.end("interrupted")
    (task,) = json.loads((tmp_path / "p").read_text())["tasks"]
    assert (task["items_per_second"], task["seconds_left"], task["accuracy"]) == (2.0, 3.0, None)


@pytest.mark.parametrize("name", ["plain", 'a "quoted"\\model\nof two lines', "模型"])
def test_prometheus_own_parser_reads_the_metrics(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ceval-suite.prom"
    beacon.begin(None, path, print)
    beacon.start(name, "mmlu", 200, 100)
    for number in range(50):
        beacon.step(name, "mmlu", number % 2 == 0)
    beacon.end("finished")
    families = {one.name: one for one in text_string_to_metric_families(path.read_text())}
    assert all(one.type == "gauge" and one.documentation for one in families.values())
    labels = {"model": name, "task": "mmlu"}
    values = {n: [s.value for s in f.samples if s.labels == labels] for n, f in families.items()}
    assert values["ceval_suite_items"] == [200]
    assert values["ceval_suite_items_done"] == [150]
    assert values["ceval_suite_accuracy"] == [0.5]
    state = {s.labels["state"]: s.value for s in families["ceval_suite_state"].samples}
    assert state == {"running": 0, "finished": 1, "interrupted": 0, "failed": 0}


# an end that is asked for


def test_an_end_that_is_asked_for_leaves_no_alarm_and_no_wish_behind(bench: Bench) -> None:
    found = bench.score(Hashed(at={1: kill(signal.SIGTERM)}))
    assert found.code == 130
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert bench.score().code == 0
    assert len(records_in(bench.run)) == ALL


def test_who_has_no_places_to_stop_is_ended_when_the_grace_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ceval_suite.stopping.GRACE", 0.3)
    begun = time.monotonic()
    model = Hashed(at={1: kill(signal.SIGTERM), 2: lambda: time.sleep(60)})
    assert bench.score(model).code == 130
    assert time.monotonic() - begun < 30
    assert len(records_in(bench.run)) == 2


def test_threads_that_come_and_go_at_once_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Between reading the number and writing it, every other thread has its turn."""

        asked = False
        number = 0

        @property
        def within(self) -> int:
            found = self.number
            time.sleep(0.01)
            return found

        @within.setter
        def within(self, value: int) -> None:
            self.number = value

    state = Slow()
    monkeypatch.setattr(stopping, "_state", state)
    inside = threading.Barrier(5, timeout=30)

    def records() -> None:
        with stopping.grace():
            inside.wait()
            inside.wait()

    threads = [threading.Thread(target=records) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait()
    assert state.number == 4
    inside.wait()
    for thread in threads:
        thread.join()
    assert state.number == 0


# the examples


def documents() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        found += [(path.name, one) for one in yaml.safe_load_all(path.read_text())]
    return found


def pods() -> list[dict[str, Any]]:
    by_kind = {one["kind"]: one for _, one in documents()}
    cluster = by_kind["RayJob"]["spec"]["rayClusterSpec"]
    templates = [by_kind["Job"]["spec"]["template"], cluster["headGroupSpec"]["template"]]
    return [t["spec"] for t in [*templates, *(g["template"] for g in cluster["workerGroupSpecs"])]]


def test_manifests_are_of_known_kinds_and_versions() -> None:
    assert {(one["apiVersion"], one["kind"]) for _, one in documents()} == {
        ("v1", "PersistentVolumeClaim"),
        ("batch/v1", "Job"),
        ("ray.io/v1", "RayJob"),
    }


def test_kubernetes_own_schema_takes_the_manifests() -> None:
    schema = pytest.importorskip("kubernetes_validate")  # 22 MB: not among what tests install
    for _, one in documents():
        if one["apiVersion"] != "ray.io/v1":
            schema.validate(one, "1.37", strict=True)
    for pod in pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        schema.validate(pod, "1.37", strict=True)


def test_pods_run_without_rights_within_limits_and_mount_what_there_is() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert container["resources"]["limits"]["memory"]
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes


def options_of(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def test_the_commands_of_the_examples_have_options_that_exist(bench: Bench) -> None:
    by_kind = {one["kind"]: one for _, one in documents()}
    job = by_kind["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    ray = by_kind["RayJob"]["spec"]["entrypoint"].split()
    flow = (DEPLOY / "github" / "gate.yml").read_text()
    slurm = "".join(path.read_text() for path in (DEPLOY / "slurm").glob("*.sbatch"))
    top, run = bench.call("--help").out, bench.call("run", "--help").out
    for option in options_of(job[: job.index("run")]):
        assert option in top
    known = run + "--workers --ray"  # the options of the backend over Ray
    for option in [*options_of(job[job.index("run") :]), *options_of(ray[ray.index("run") :])]:
        assert option in known, option
    for name in ("--log-format", "--progress"):
        assert name in slurm
        assert name in top
    assert "ceval-suite gate" in flow
    # workers of a Ray cluster are started by Ray's own command, which only one image has
    groups = by_kind["RayJob"]["spec"]["rayClusterSpec"]
    pods = [groups["headGroupSpec"], *groups["workerGroupSpecs"]]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in pods}
    assert images == {"ceval-suite:ray"}
    assert "EXTRAS=lora,ray" in (DEPLOY / "kubernetes" / "rayjob.yaml").read_text()


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("slurm/*")), ids=lambda path: path.name)
def test_batch_scripts_are_bash_and_ask_for_the_signal_in_time(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#SBATCH ")
    (seconds,) = re.findall(r"^#SBATCH --signal=(?:B:)?TERM@(\d+)$", text, re.M)
    assert int(seconds) >= 60
    assert "#SBATCH --requeue" in text


def test_the_workflow_runs_bash_and_puts_no_event_into_a_script() -> None:
    flow = yaml.safe_load((DEPLOY / "github" / "gate.yml").read_text())
    assert flow["permissions"] == {"contents": "read"}
    steps = flow["jobs"]["gate"]["steps"]
    (kept,) = [step["with"]["path"] for step in steps if "cache@" in step.get("uses", "")]
    assert kept == "runs/${{ env.BASELINE }}"  # the candidate is another one each time
    assert all(("uses" in step) != ("run" in step) for step in steps)
    for step in steps:
        script = step.get("run", "")
        assert "${{" not in script  # what comes with an event is no part of a command
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_container_has_no_rights_and_its_command_gets_the_signals() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and line[0] not in "# "]
    assert lines[0].startswith("ARG BASE=")
    assert lines[1] == "FROM ${BASE}"
    assert "USER 10001" in lines
    assert 'ENTRYPOINT ["ceval-suite"]' in lines
    ignored = (DEPLOY.parent / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


SRUN = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
out, mark = Path(os.environ["OUT"]), Path(os.environ["MARK"])
step = subprocess.Popen(sys.argv[1:])
if not mark.exists():  # the first time, the node is taken back when there are records
    mark.touch()
    while step.poll() is None:
        if any(p.stat().st_size for p in out.glob("*/*/records.jsonl")):
            os.kill(os.getppid(), signal.SIGTERM)  # the batch shell hears of it as well
            step.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
sys.exit(step.wait())
"""


def test_a_job_that_is_taken_its_node_is_queued_again_and_goes_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    requeued = tmp_path / "requeued"
    scripts = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": f'#!/bin/sh\necho "$@" >> {requeued}\n',
        "ceval-suite": f'#!/bin/sh\nexec {sys.executable} -m ceval_suite "$@"\n',
    }
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(DEPLOY.parent),
        "SLURM_JOB_ID": "77",
        "MODEL": str(tiny_model),
        "TASKS": "sample-cmmlu",
        "OUT": str(tmp_path / "runs"),
        "MARK": str(tmp_path / "mark"),
        "OMP_NUM_THREADS": "1",
    }
    kept: list[set[str]] = []
    for state in ("interrupted", "finished"):
        command = ["bash", DEPLOY / "slurm" / "run.sbatch", "--engine", "plain"]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        progress = json.loads((tmp_path / "runs" / "progress-77.json").read_text())
        assert progress["state"] == state
        assert all(json.loads(line)["event"] for line in done.stderr.splitlines())
        (run,) = (tmp_path / "runs").glob("*/sample-cmmlu-*")
        kept.append(set(records_in(run)))
    assert requeued.read_text() == "requeue 77\n"
    assert kept[0] < kept[1]
    assert kept[0]
    assert read_json(run / "summary.json")["complete"] is True


def test_visible_text_is_the_same_text_where_there_is_nothing_to_hide() -> None:
    plain = "题目：下列 a\tb\nc — “quoted” é 😀"
    assert terminal.visible(plain) == plain
    escapes: Callable[[str], str] = terminal.visible
    assert escapes("\x1b]0;t\x07\x9b2J\u202e") == "\\x1b]0;t\\x07\\x9b2J\\u202e"
