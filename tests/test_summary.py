"""The record is the truth: every number comes again from the records, without model or data."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ceval_suite import summary
from ceval_suite.errors import RunError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, write_json
from ceval_suite.run import evaluate

SAMPLES = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    tasks = [prepare(name, Selection(limit=6)) for name in SAMPLES]
    tasks.append(prepare("sample-mmlu", Selection(protocol="lm-eval", limit=3, shots=0)))
    out = tmp_path_factory.mktemp("runs")
    return evaluate("tiny", ModelSpec(path=str(tiny_model)), tasks, out)


def copied(runs: list[Path], to: Path) -> list[Path]:
    return [Path(shutil.copytree(run, to / "tiny" / run.name)) for run in runs]


def test_every_number_comes_again_bit_for_bit_whatever_the_order_of_the_records(
    runs: list[Path], tmp_path: Path
) -> None:
    for run in copied(runs, tmp_path):
        before = (run / "summary.json").read_bytes()
        lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        random.Random(6).shuffle(lines)
        (run / "records.jsonl").write_text("".join(lines), encoding="utf-8")
        (run / "summary.json").unlink()
        (found,) = summary.again([run], write=True)
        assert found.before is None
        assert (run / "summary.json").read_bytes() == before


def test_neither_the_model_nor_the_benchmark_files_are_needed(
    runs: list[Path], tmp_path: Path
) -> None:
    copied(runs, tmp_path)
    for run in (tmp_path / "tiny").iterdir():
        about = read_json(run / "run.json")
        about["model"]["path"] = "/nowhere"
        about["data"]["source"] = "/nowhere"
        write_json(run / "run.json", about)
    # an empty folder of data; torch cannot even be imported
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "ceval_suite", "rescore", "tiny", "--check", "--json"],
        cwd=tmp_path,
        env={**os.environ, "CEVAL_SUITE_DATA": str(tmp_path / "none"), "PYTHONPATH": _here()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)[0]["rows"]
    assert len(rows) == len(runs)
    assert {row["different"] for row in rows} == {"nothing"}


def _here() -> str:
    return os.pathsep.join([".", str(Path(__file__).parents[1])])


def test_a_changed_number_is_named_and_the_check_fails(runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs, tmp_path)[0]
    content = read_json(run / "summary.json")
    right = content["metrics"]["acc/micro"]["value"]
    content["metrics"]["acc/micro"]["value"] += 1e-15
    write_json(run / "summary.json", content)
    (found,) = summary.again([run], write=False)
    assert found.changed == ["metrics"]
    assert read_json(run / "summary.json") == content
    summary.again([run], write=True)
    assert read_json(run / "summary.json")["metrics"]["acc/micro"]["value"] == right


def test_an_unfinished_run_has_an_unfinished_summary(runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs, tmp_path)[0]
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:-2]), encoding="utf-8")
    (found,) = summary.again([run], write=False)
    assert not found.now["complete"]
    assert found.now["metrics"] == {}
    assert len(found.now["missing"]) == 1


def test_a_finished_run_of_before_needs_no_count_and_an_unfinished_one_says_so(
    runs: list[Path], tmp_path: Path
) -> None:
    run = copied(runs, tmp_path)[0]
    about = read_json(run / "run.json")
    del about["expected"]
    write_json(run / "run.json", about)
    (found,) = summary.again([run], write=False)
    assert found.changed == []
    write_json(run / "summary.json", {**read_json(run / "summary.json"), "complete": False})
    with pytest.raises(RunError, match="run the command that wrote it again"):
        summary.again([run], write=False)


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no runs"):
        summary.again([tmp_path], write=False)


def test_what_was_imported_without_records_keeps_what_it_said(
    runs: list[Path], tmp_path: Path
) -> None:
    run = copied(runs, tmp_path)[0]
    about = read_json(run / "run.json")
    write_json(run / "run.json", {**about, "imported": {"from": "lm_eval"}})
    content = read_json(run / "summary.json") | {"imported": {"from": "lm_eval"}}
    write_json(run / "summary.json", content)
    (found,) = summary.again([run], write=True)
    assert found.changed == []  # with records, its numbers come from them
    (run / "records.jsonl").unlink()
    (found,) = summary.again([run], write=True)
    assert found.changed == []
    assert read_json(run / "summary.json") == content
