"""Curves of training jobs: read from run folders, printed, and drawn in the site."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ceval_suite import curves, summary
from ceval_suite.prepare import Selection, prepare
from ceval_suite.report import curve as report
from ceval_suite.report import table
from ceval_suite.site.write import Wanted, build
from tests.site_runs import scripted


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    prepared = prepare("sample-mmlu", Selection(shots=0))
    for step, skill in ((100, 0.2), (200, 1.0), (300, 2.5)):
        scripted(prepared, tmp_path, f"sft-step-{step}", skill, series="sft", step=step)
    scripted(prepared, tmp_path, "base", 0.5)
    return tmp_path


def test_checkpoints_of_a_job_are_a_curve_in_the_order_of_steps(runs: Path) -> None:
    (found,) = curves.of(curves.find([runs]))
    assert (found.series, found.task) == ("sft", "sample-mmlu")
    assert [point.step for point in found.points] == [100, 200, 300]
    values = [point.averages["acc/micro"].value for point in found.points]
    assert values == sorted(values)
    assert found.best is found.points[2]
    shown = report.curve(found)
    assert [row[0].value for row in shown.rows] == [100, 200, 300]
    assert "*" in shown.rows[2][2].text
    assert "chosen without a test" in table.markdown(shown)


def test_the_plot_holds_every_point_within_its_interval(runs: Path) -> None:
    (found,) = curves.of(curves.find([runs]))
    drawn = report.plot(found).split("\n")
    assert "\n".join(drawn).count("●") == 3
    heights = {}
    for row, text in enumerate(drawn[: report.HEIGHT]):
        for column, cell in enumerate(text[8:]):
            if cell == "●":
                heights[column] = row
    rows = [heights[column] for column in sorted(heights)]
    assert rows == sorted(rows, reverse=True)  # better stands higher
    (first, *_) = found.points
    lonely = curves.Curve(found.series, found.summary, found.headline, (first,))
    assert report.plot(lonely) == ""


def test_of_two_runs_at_one_step_the_later_one_counts(runs: Path) -> None:
    prepared = prepare("sample-mmlu", Selection(shots=0))
    again = scripted(prepared, runs, "sft-step-200-0a1b2c3d", 3.0, series="sft", step=200)
    later = (again / "summary.json").stat().st_mtime + 10
    os.utime(again / "summary.json", (later, later))
    (found,) = curves.of(curves.find([runs]))
    assert [point.model for point in found.points][1] == "sft-step-200-0a1b2c3d"
    assert len(found.points) == 3


def test_rescoring_keeps_the_step(runs: Path) -> None:
    assert all("step" not in one.changed for one in summary.again([runs], write=True))
    assert len(curves.find([runs], "sft")) == 3
    assert curves.find([runs], "other") == []


def test_the_site_has_a_view_of_training_jobs_where_there_are_any(
    runs: Path, tmp_path: Path
) -> None:
    site = build([runs], tmp_path / "site", Wanted(), print).parent
    text = (site / "data" / "curves.js").read_text(encoding="utf-8")
    (chart,) = json.loads(text.removeprefix('CS.data("curves",').removesuffix(");\n"))
    (job,) = chart["series"]
    (found,) = curves.of(curves.find([runs]))
    expected = [point.averages["acc/micro"] for point in found.points]
    assert job["name"] == "sft"
    assert job["points"] == [
        [step, one.value, one.low, one.high, one.n]
        for step, one in zip((100, 200, 300), expected, strict=True)
    ]
    assert '"curves":1' in (site / "data" / "site.js").read_text(encoding="utf-8")
