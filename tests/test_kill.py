"""Twenty kills at random moments cost nothing: the records equal those of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.schema import Record

# one worker: several processes of these tests on two cores would only wait for each other
pytestmark = pytest.mark.xdist_group("kill")

TASKS = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")
KILLS = 20
SEED = 20
SLOWLY = ("--engine", "plain")
PATIENCE = 300.0
"""Seconds until a process that does nothing fails the test; never reached on a working machine."""

# Importing torch takes seconds a process: a nursery imports it once and forks real processes, each
# of which runs the command line as `python -m ceval_suite` does.
NURSERY = """
import json, os, signal, sys, traceback
import torch
import ceval_suite.cli, ceval_suite.preview, ceval_suite.progress, ceval_suite.report.board
from ceval_suite.backends import loading
from ceval_suite.model_spec import ModelSpec
loading.load(ModelSpec(path=sys.argv[1]))
# a shell has what it starts in the background ignore interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
for line in sys.stdin:
    argv, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.argv = ["ceval-suite", *argv]
        code = 70
        try:
            ceval_suite.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Starts `ceval-suite run` processes that share one warm parent."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model = model
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, out: Path, *more: str) -> int:
        """Start a run and return its process id."""
        assert self.process.stdin is not None
        command = json.dumps([arguments(self.model, out, TASKS) + list(more), str(self.log)])
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """Wait for the run and return its exit code, negative for a signal."""
        return int(self._line())


def arguments(model: Path, out: Path, tasks: tuple[str, ...]) -> list[str]:
    return ["run", "--model", str(model), "--tasks", ",".join(tasks), "--out", str(out)]


@pytest.fixture(scope="module")
def nursery(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tiny_model, tmp_path_factory.mktemp("log") / "log.txt")
    yield found
    found.process.communicate("", timeout=PATIENCE)


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    nursery.start(out)
    assert nursery.end() == 0, nursery.log.read_text()
    return out


def size(out: Path) -> int:
    """Bytes of records written so far."""
    return sum(path.stat().st_size for path in out.glob("*/*/records.jsonl"))


def wait_for_growth(out: Path, by: int, pid: int) -> None:
    """Return once `by` more bytes of records are on the disk, or the process is gone."""
    goal, begun = size(out) + by, time.monotonic()
    while size(out) < goal and alive(pid):
        assert time.monotonic() - begun < PATIENCE, "no record came"
        time.sleep(0.0005)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def records_of(out: Path) -> dict[str, Record]:
    """All records below `out`, by id; an item that stands twice fails the test."""
    found: dict[str, Record] = {}
    for path in sorted(out.glob("*/*/records.jsonl")):
        for record in read_records(path):
            assert record.id not in found, f"{record.id} stands twice"
            found[record.id] = record
    return found


def assert_identical(out: Path, whole: Path) -> None:
    """The same records but for order, and the same numbers made of them."""
    expected, found = records_of(whole), records_of(out)
    items = {i.id for name in TASKS for i in prepare(name, Selection()).scored()}
    assert set(found) == set(expected) == items
    for id, record in found.items():
        left, right = asdict(record), asdict(expected[id])
        for key in ("logits", "logprobs", "choice_mass"):
            assert left.pop(key) == pytest.approx(right.pop(key), abs=1e-5), id
        assert left == right
    folders = {path.parent.name: path for path in whole.glob("*/*/summary.json")}
    assert len(folders) == len(TASKS)
    for name, path in folders.items():
        (again,) = out.glob(f"*/{name}/summary.json")
        before, after = read_json(path), read_json(again)
        for key in ("n", "complete", "metrics", "subjects", "letters", "chance", "ties"):
            assert after[key] == before[key], (name, key)
        assert after["complete"] is True


def test_records_after_20_kills_equal_those_of_an_uninterrupted_run(
    nursery: Nursery, uninterrupted: Path, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    kills, during_scoring, round_ = 0, 0, 0
    while kills < KILLS:
        round_ += 1
        out = tmp_path / f"round-{round_}"
        while True:
            pid = nursery.start(out)
            before = size(out)
            if kills % 5 == 0:  # any moment at all: loading, reading, planning
                time.sleep(rng.uniform(0, 0.3))
            else:  # among the records
                wait_for_growth(out, rng.choice((1, 1, 600, 3000, 9000)), pid)
                time.sleep(rng.choice((0, 0, rng.uniform(0, 0.02))))
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
            code = nursery.end()
            if code == -signal.SIGKILL:
                kills += 1
                during_scoring += size(out) > before
            else:
                assert code == 0, nursery.log.read_text()
            if code == 0 or kills == KILLS:
                break
        if code != 0:
            nursery.start(out)
            assert nursery.end() == 0, nursery.log.read_text()
        assert_identical(out, uninterrupted)
    print(f"{kills} kills, {during_scoring} among records, in {round_} rounds")
    assert during_scoring >= KILLS // 2


def test_an_interrupt_keeps_the_records_and_prints_the_command_to_go_on(
    nursery: Nursery, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    nursery.log.unlink(missing_ok=True)
    # one row at a time: many records after the first, so that the signal never comes too late
    pid = nursery.start(out, *SLOWLY)
    wait_for_growth(out, 1, pid)
    os.kill(pid, signal.SIGINT)
    assert nursery.end() == 130
    log = nursery.log.read_text()
    assert "Traceback" not in log
    assert "interrupted; finished records are kept" in log
    again = ["ceval-suite", *arguments(nursery.model, out, TASKS), *SLOWLY]
    assert log.splitlines()[-1].strip() == " ".join(again)
    kept = records_of(out)
    assert 0 < len(kept) < len(records_of(uninterrupted))
    nursery.start(out)
    assert nursery.end() == 0
    assert {id: r for id, r in records_of(out).items() if id in kept} == kept
    assert_identical(out, uninterrupted)


def test_a_process_of_its_own_exits_130_when_terminated(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ceval_suite"]
    command += arguments(tiny_model, tmp_path, ("sample-agieval",))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        wait_for_growth(tmp_path, 1, process.pid)
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("  ceval-suite run --model ")
    assert records_of(tmp_path)
