"""A model that several processes train is scored in their midst, under DDP and both FSDPs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import ceval_suite
from ceval_suite.backends import live
from ceval_suite.schema import Reply, Request
from tests import training_jobs as jobs
from tests.test_training import assert_same_records

pytestmark = pytest.mark.xdist_group("processes")
ROOT = Path(__file__).parents[1]


def started(kind: str, tokenizer: Any, out: Path) -> subprocess.CompletedProcess[str]:
    """What came of two processes of `rank_training.py`."""
    tokenizer.save_pretrained(out / "tokenizer")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tests" / "rank_training.py"), kind, str(out / "tokenizer"), str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.parametrize("kind", ["ddp", "fully_shard", "fsdp"])
def test_all_processes_score_together_and_train_on_as_if_they_had_not(
    kind: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    done = started(kind, tiny_tokenizer, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"losses-{rank}.json").read_text())
        with_, without = found["losses"]
        assert with_ == without
    ceval_suite.evaluate(
        str(tmp_path / "checkpoint"),
        jobs.TASKS,
        out=tmp_path / "runs",
        dtype="float32",
        **jobs.CHOSEN,
    )
    assert_same_records(tmp_path / "live", f"{kind}-step-1", tmp_path / "runs", "checkpoint")


def test_an_error_that_only_one_process_meets_ends_the_job_and_is_told(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    done = started("alone", tiny_tokenizer, tmp_path)
    assert done.returncode != 0
    assert "ValueError: met by one\nonly this process met this" in done.stderr


class Peers:
    """Asks once, and is back for the next question at once, or after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    def agreed(self) -> list[Request] | None:
        self.asked += 1
        if self.asked == 1:
            return []
        time.sleep(self.seconds)
        return None


@pytest.mark.parametrize(("seconds", "ends"), [(0, False), (2, True)])
def test_trouble_ends_a_process_only_if_the_first_does_not_meet_it_too(
    seconds: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(live.LiveBackend):
        def __init__(self) -> None:
            self._peers: Any = Peers(seconds)

        def answers(self, requests: Sequence[Request]) -> Iterator[Reply]:
            raise MemoryError("met here")

    ended: list[str] = []
    monkeypatch.setattr(live, "ALONE", 0.5)
    monkeypatch.setattr(live, "_end", ended.append)
    Failing().follow()
    time.sleep(1)
    assert ["met here" in text for text in ended] == [True] * ends
