"""Random kills of workers and of the driver cost nothing: the records are those of a quiet run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json
from tests import hands

pytest.importorskip("ray")

pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[1]
BENCHMARKS = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")
KILLS = max(2, int(os.environ.get("CEVAL_SUITE_KILLS", "6")))
"""50 take some minutes: `CEVAL_SUITE_KILLS=50 pytest tests/test_ray_kill.py`."""
LEAST = {"worker": max(1, KILLS // 4), "driver": max(1, KILLS // 8)}
"""Of each kind, so many."""
DATA = os.environ.get("CEVAL_SUITE_DATA")
REAL = "CEVAL_SUITE_KILLS" in os.environ and DATA is not None
"""Asked for by number, the kills strike runs of the benchmarks themselves, not of the samples."""
ENGINE = os.environ.get("CEVAL_SUITE_KILLS_ENGINE", "scripted")
"""`hf` has the workers open a real model, which takes each of them many seconds."""
TASKS = BENCHMARKS if REAL else tuple(f"sample-{name}" for name in BENCHMARKS)
CHOSEN = Selection(limit=2, data=DATA) if REAL else Selection()
SEED = 50
GROWTHS = (1, 600, 9000, 30000)
PATIENCE = 300.0

# Importing Ray takes seconds a process: a nursery imports it once and forks real processes. Units
# are small, so that there are many, and workers open a model that answers by what is in its unit.
NURSERY = """
import json, os, sys, traceback
import ray
import ceval_suite.cli, ceval_suite.preview, ceval_suite.progress, ceval_suite.report.board
from ceval_suite import backends, sweep
from ceval_suite.backends import units
from tests.hands import by_unit
units.WORK = 3000
if os.environ.get("CEVAL_SUITE_KILLS_ENGINE") != "hf":
    backends.open_backend = by_unit
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
    """Starts `ceval-suite run --ray` processes that share one warm parent."""

    def __init__(self, model: Path, address: str, log: Path) -> None:
        self.log = log
        self._command = ["run", "--model", str(model), "--tasks", ",".join(TASKS)]
        self._command += ["--ray", address, "--workers", "2", "--dtype", "float32"]
        self._command += ["--limit", "2", "--data", str(DATA)] if REAL else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, out: Path) -> int:
        """Start a run and return its process id."""
        assert self.process.stdin is not None
        command = [*self._command, "--out", str(out)]
        self.process.stdin.write(json.dumps([command, str(self.log)]) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """Wait for the run and return its exit code, negative for a signal."""
        return int(self._line())


@pytest.fixture(scope="module")
def nursery(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        cluster = hands.cluster()
    log = tmp_path_factory.mktemp("log") / "log.txt"
    found = Nursery(tiny_model, cluster.address, log)
    yield found
    found.process.communicate("", timeout=PATIENCE)
    cluster.shutdown()


def records(out: Path) -> dict[str, Any]:
    """All lines of records, by id; none stands twice."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/*/records.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["id"] not in found, f"{row['id']} stands twice"
            found[row["id"]] = row
    return found


def until(true: Callable[[], bool], pid: int) -> None:
    """Return once something is true, or the process is gone."""
    begun = time.monotonic()
    while not true() and alive(pid):
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.002)


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def state(pid: int | str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def size(out: Path) -> int:
    """Bytes of records written so far."""
    return sum(path.stat().st_size for path in out.glob("*/*/records.jsonl"))


def grown(out: Path, by: int, *, with_workers: bool = False) -> Callable[[], bool]:
    """Whether `by` more bytes of records are there than now, and somebody who could write more."""
    goal = size(out) + by
    return lambda: size(out) >= goal and (not with_workers or bool(actors()))


def actors() -> list[int]:
    """Process ids of our workers, on whichever node."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            above = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if name.startswith(b"ray::Worker") and str(os.getpid()) in (parent, above):
            found.append(int(folder.name))
    return found


def test_kills_of_workers_and_driver_lose_nothing_and_write_nothing_twice(
    nursery: Nursery, tmp_path: Path
) -> None:
    nursery.start(tmp_path / "whole")
    assert nursery.end() == 0, nursery.log.read_text()
    whole = records(tmp_path / "whole")
    assert set(whole) == {
        id for name in TASKS for item in prepare(name, CHOSEN).scored() for id in
        item.record_ids()
    }  # fmt: skip
    rng = random.Random(SEED)
    struck = {"worker": 0, "driver": 0}
    round_ = 0

    def left(kind: str) -> bool:
        """Whether one more of a kind leaves enough kills for the other."""
        other = "driver" if kind == "worker" else "worker"
        return struck[kind] + max(struck[other], LEAST[other]) < KILLS

    while sum(struck.values()) < KILLS:
        round_ += 1
        out, code = tmp_path / f"round-{round_}", -1
        while code != 0:
            pid = nursery.start(out)
            # one unit may be struck twice, but the third would be given up
            for _ in range(rng.randint(0, 2)):
                until(grown(out, rng.choice(GROWTHS), with_workers=True), pid)
                some = actors()
                if some and alive(pid) and left("worker"):
                    os.kill(rng.choice(some), signal.SIGKILL)
                    struck["worker"] += 1
            if left("driver") and rng.random() < 0.7:
                if rng.random() < 0.2:  # any moment at all: joining, opening, reading
                    time.sleep(rng.uniform(0, 3))
                else:  # among the records
                    until(grown(out, rng.choice(GROWTHS)), pid)
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            code = nursery.end()
            assert code in (0, -signal.SIGKILL), nursery.log.read_text()
            struck["driver"] += code != 0
        assert records(out) == whole
        for path in (tmp_path / "whole").glob("*/*/summary.json"):
            (again,) = out.glob(f"*/{path.parent.name}/summary.json")
            assert read_json(again)["metrics"] == read_json(path)["metrics"]
    print(
        f"{len(whole)} records of {', '.join(TASKS)} ({ENGINE}): {struck['worker']} workers and "
        f"{struck['driver']} drivers killed in {round_} rounds"
    )
    assert all(struck[kind] >= LEAST[kind] for kind in LEAST)
