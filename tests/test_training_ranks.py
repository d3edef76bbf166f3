"""A model that several processes train is scored in their midst, under DDP and both FSDPs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ceval_suite
from tests import training_jobs as jobs
from tests.test_training import assert_same_records

pytestmark = pytest.mark.xdist_group("processes")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["ddp", "fully_shard", "fsdp"])
def test_all_processes_score_together_and_train_on_as_if_they_had_not(
    kind: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tests" / "rank_training.py"), kind]
    command += [str(tmp_path / "tokenizer"), str(tmp_path)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=400, check=False
    )
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
