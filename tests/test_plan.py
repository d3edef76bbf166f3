"""A plan says what a run then does: the same items and tokens, its memory, no side effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ceval_suite import plan, sweep
from ceval_suite.backends.hf import HFBackend
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection
from ceval_suite.records import read_json
from ceval_suite.report import plan as report

pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(_: str) -> None:
    pass


@pytest.fixture
def specs(tiny_model: Path) -> dict[str, ModelSpec]:
    return {"tiny": ModelSpec(path=str(tiny_model), dtype="float32", device="cpu")}


@pytest.mark.parametrize(
    ("task", "chosen"),
    [
        ("sample-cmmlu", Selection()),
        ("sample-mmlu", Selection(shots=0, items=20)),
        ("sample-ceval", Selection()),
    ],
)
def test_the_plan_counts_the_tokens_that_the_run_computes(
    specs: dict[str, ModelSpec], tmp_path: Path, task: str, chosen: Selection
) -> None:
    (found,) = plan.plans(specs, [task], [chosen], tmp_path, quiet)
    (step,) = found.steps
    assert not list(tmp_path.iterdir())
    assert step.tokens is not None
    (folder,) = sweep.run(specs, [task], [chosen], tmp_path, quiet)
    assert step.folder == folder
    about = read_json(folder / "run.json")
    assert step.items == sum(about["expected"].values())
    assert step.tokens.distinct == about["tokens"]["computed"]
    assert step.tokens.total == about["tokens"]["total"]


def test_the_plan_of_a_model_that_ran_before_has_its_speed_and_what_is_left(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    (before,) = plan.plans(specs, ["sample-cmmlu"], [Selection()], tmp_path, quiet)
    assert (before.source, before.steps[0].seconds) == ("", None)
    (folder,) = sweep.run(specs, ["sample-cmmlu"], [Selection(items=20)], tmp_path, quiet)
    about = read_json(folder / "run.json")
    rate = about["seconds"]["scoring"] / about["tokens"]["computed"]
    (after,) = plan.plans(specs, ["sample-cmmlu"], [Selection()], tmp_path, quiet)
    (step,) = after.steps
    assert after.source == "earlier runs"
    assert step.finished == 0
    assert step.tokens is not None
    assert step.seconds == pytest.approx(rate * step.tokens.distinct)
    (done,) = plan.plans(specs, ["sample-cmmlu"], [Selection(items=20)], tmp_path, quiet)
    assert (done.steps[0].finished, done.steps[0].seconds) == (20, 0.0)


def test_the_memory_of_weights_and_kept_tokens_is_that_of_the_loaded_model(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    (found,) = plan.plans(specs, ["sample-cmmlu"], [Selection()], tmp_path, quiet)
    backend = HFBackend(specs["tiny"])
    weights = sum(p.numel() * p.element_size() for p in backend.model.parameters())
    assert found.memory is not None
    assert found.memory.weights == weights
    assert found.steps[0].tokens is not None
    longest = found.steps[0].tokens.longest
    assert found.memory.kept == longest * backend.forward.bytes_kept()
    narrow = {"tiny": specs["tiny"].model_copy(update={"dtype": "bfloat16"})}
    (half,) = plan.plans(narrow, ["sample-cmmlu"], [Selection()], tmp_path, quiet)
    assert half.memory is not None
    assert half.memory.weights == weights // 2


def test_a_probe_loads_the_model_and_measures(
    specs: dict[str, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PROBE", 0.01)
    (found,) = plan.plans(
        specs, ["sample-cmmlu", "sample-mmlu"], [Selection()], tmp_path, quiet, measure=True
    )
    assert found.source == "probe"
    assert all(step.seconds for step in found.steps)
    assert not list(tmp_path.iterdir())


def test_what_another_program_counts_is_a_dash_and_never_a_number(tmp_path: Path) -> None:
    specs = {"far": ModelSpec(backend="server", path="m", url="http://127.0.0.1:9/v1")}
    (found,) = plan.plans(specs, ["sample-cmmlu"], [Selection()], tmp_path, quiet)
    assert found.steps[0].tokens is None
    work, memory = report.plan([found])
    row = dict(zip(work.columns, work.rows[0], strict=True))
    assert [row[k].text for k in ("tokens", "distinct", "longest", "time")] == ["–"] * 4
    assert row["items"].value == 60
    assert {cell.text for cell in memory.rows[0][1:]} == {"–"}


def test_chat_without_a_template_is_told_before_anything_is_loaded(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="chat template"):
        plan.plans(specs, ["sample-cmmlu"], [Selection(chat=True)], tmp_path, quiet)


def test_the_command_prints_tables_or_json_and_writes_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = ["run", "--model", str(tiny_model), "--tasks", "sample-cmmlu,sample-mmlu"]
    run += ["--out", str(tmp_path / "out"), "--dry-run"]
    done = CliRunner().invoke(app, run, catch_exceptions=False)
    assert done.exit_code == 0
    assert "sample-cmmlu test, official, 5-shot" in done.stdout
    assert "GiB" in done.stdout
    found = json.loads(CliRunner().invoke(app, [*run, "--json"], catch_exceptions=False).stdout)
    assert [table["title"] for table in found] == ["Plan", "Memory"]
    assert [row["task"] for row in found[0]["rows"]][-1] == "all"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="add --probe"):
        CliRunner().invoke(app, [*run, "--budget", "1min"], catch_exceptions=False)
