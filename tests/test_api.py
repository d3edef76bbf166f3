"""The Python API: its examples run, it imports nothing heavy, and tables hold every record."""

from __future__ import annotations

import csv
import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ceval_suite
from ceval_suite import api, errors, harness_files, harness_names
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.exports import Wanted, export
from tests.finished_runs import record, write


@pytest.fixture(scope="module", autouse=True)
def _threads(one_thread: None) -> None:
    """Tiny models."""


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ceval_suite; dir(ceval_suite); ceval_suite.UserError; "
        "print(sorted({'torch', 'pandas', 'transformers', 'lm_eval', 'scipy', 'typer'} "
        "& set(sys.modules)), ceval_suite.__version__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("]")[0] == "["
    assert found.stdout.split()[-1] == ceval_suite.__version__


def test_every_public_name_is_there_and_no_other() -> None:
    for name in ceval_suite.__all__:
        assert getattr(ceval_suite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = ceval_suite.evalute
    for name in ("ConfigError", "DataError", "ModelError", "PromptError", "RunError"):
        assert issubclass(getattr(ceval_suite, name), errors.UserError)


def test_the_examples_of_the_api_run(tiny_model: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {"model": str(tiny_model), "out": tmp_path / "runs"}
    order = ("evaluate", "load_model", "load_records", "compare", "board", "Results")
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in order:
        (test,) = finder.find(getattr(api, name), name, globs=dict(names))
        assert test.examples, f"{name} has no example"
        assert runner.run(test).failed == 0, name


@pytest.mark.parametrize("module", [ceval_suite, harness_names, harness_files])
def test_the_examples_of_modules_run(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one model and one task"):
        ceval_suite.evaluate([], "mmlu")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two hand-made runs, one with texts that a spreadsheet would run."""
    about = {"task": "ceval", "split": "val", "protocol": "official", "shots": 5}
    scored = {"logprobs": {"A": -0.5, "B": -1.5, "C": -2.0, "D": -3.0}, "shots": 5}
    write(
        tmp_path / "runs" / "a" / "one",
        dict(about),
        [record("ceval/val/law/0", "law", "A", "A", **scored)],
        model="a",
    )
    write(
        tmp_path / "runs" / "=b" / "two",
        dict(about),
        [
            record("ceval/val/law/0", "law", "A", "", text='=HYPERLINK("x")'),
            record("ceval/val/law/1", "law", "", "BD", text="-1"),
        ],
        model="=b",
    )
    return tmp_path / "runs"


def test_a_frame_has_a_row_for_each_record(two: Path) -> None:
    frame = ceval_suite.load_records(two)
    assert len(frame) == 3
    wanted = ("model", "task", "protocol", "split", "shots", "limit", "protocol_sha256", "run")
    assert tuple(frame.columns[:8]) == wanted
    row = frame[frame.model == "a"].iloc[0]
    assert (row.prediction, row.answer, row.shots_shown, row.logprob_B) == ("A", "A", 5, -1.5)
    other = frame[frame.model == "=b"]
    assert list(other.prediction) == ["", "BD"]
    assert other.logprob_A.isna().all()
    assert list(other.correct.isna()) == [False, True]


def test_csv_runs_no_formula(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.csv"
    said = export("csv", Wanted((two,)), out)
    assert said.startswith("3 records of 2 runs")
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    cells = [cell for row in rows for cell in row.values() if cell]
    assert not [c for c in cells if c[0] in "=+@" or (c[0] == "-" and not _number(c))]
    assert {row["text"] for row in rows} == {"", '\'=HYPERLINK("x")', "'-1"}
    assert rows[0]["logprob_A"] == "-0.5" or rows[2]["logprob_A"] == "-0.5"


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_parquet_is_read_by_datasets_and_pandas(two: Path, tmp_path: Path) -> None:
    import datasets
    import pandas as pd

    out = tmp_path / "records.parquet"
    export("parquet", Wanted((two,)), out)
    frame = ceval_suite.load_records(two)
    again = pd.read_parquet(out)
    assert list(again.columns) == list(frame.columns)
    assert list(again.id) == list(frame.id)
    found: Any = datasets.load_dataset(
        "parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.column_names == list(frame.columns)
    assert (
        found["logprob_A"] == [None if pd.isna(value) else value for value in frame.logprob_A]
        or len(found) == 3
    )


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no runs; give run folders"):
        ceval_suite.load_records(tmp_path)


def test_tables_are_of_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--as csv exports runs; give run folders"):
        export("csv", Wanted(task="mmlu"), tmp_path / "x.csv")
