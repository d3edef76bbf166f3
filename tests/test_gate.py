"""A gate fails what fell, passes what did not, as often as it says, and never passes in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from typer.testing import CliRunner

from ceval_suite import gate, inferiority, power, stats
from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.inferiority import Evidence, Mode, Single
from ceval_suite.outcomes import Outcomes
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, write_json
from ceval_suite.report import gate as report
from ceval_suite.schema import Item
from tests.finished_runs import Answers, answered, gold, nothing

TASKS = ("mmlu", "cmmlu")


# simulations, on the real sizes of subjects


@cache
def sizes(task: str) -> dict[str, int]:
    table = load_task(task)
    return {s: row.counts[table.split] for s, row in table.subjects.items()}


def outcomes(right: np.ndarray, subjects: Mapping[str, int]) -> Outcomes:
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    return Outcomes("x", subjects, right.astype("u1"), values, None, {})


def draw(
    rng: np.random.Generator, task: str, discordance: float, drop: float
) -> tuple[Evidence, float]:
    """Two runs of a whole benchmark: a candidate that is truly worse by `drop`."""
    subjects = sizes(task)
    fixed, broke = (discordance - drop) / 2, (discordance + drop) / 2
    chance = rng.random(sum(subjects.values()))
    flipped = chance < discordance
    before = np.where(flipped, chance < broke, chance < 0.6 + 0.4 * discordance)
    after = before ^ flipped
    assert fixed >= 0
    return inferiority.evidence(
        load_task(task), outcomes(before, subjects), outcomes(after, subjects)
    ), drop


def failing(
    draws: int,
    *,
    drop: float,
    margin: float = 0.0,
    mode: Mode = "inferiority",
    discordance: Sequence[float] = (0.1, 0.14),
    seed: int = 1,
) -> tuple[float, float]:
    """How often the gate fails over MMLU and CMMLU, and how often it says that it will."""
    rng = np.random.default_rng(seed)
    fails, announced = 0, 0.0
    for _ in range(draws):
        cases = [
            (draw(rng, task, share, drop)[0], margin)
            for task, share in zip(TASKS, discordance, strict=True)
        ]
        fails += any(one.failed for one in inferiority.decide(cases, mode))
        announced += inferiority.fails_any(cases, drop, mode, 0.05)
    return fails / draws, announced / draws


@pytest.mark.parametrize(("draws", "discordance"), [(2500, (0.1, 0.14)), (1200, (0.02, 0.3))])
def test_without_a_true_difference_it_fails_five_times_in_a_hundred(
    draws: int, discordance: tuple[float, float]
) -> None:
    found, announced = failing(draws, drop=0.0, discordance=discordance)
    assert 0.035 <= found <= 0.06
    assert announced == pytest.approx(0.05, abs=0.005)


def test_a_drop_that_is_allowed_fails_no_more_often_than_five_times_in_a_hundred() -> None:
    found, _ = failing(1500, drop=0.01, margin=0.01)
    assert 0.035 <= found <= 0.06


def test_two_points_on_the_whole_of_mmlu_and_cmmlu_are_caught_as_announced() -> None:
    found, announced = failing(200, drop=0.02)
    assert announced > 0.999
    assert found > 0.99
    found, announced = failing(1200, drop=0.02, margin=0.015)
    assert 0.5 < announced < 0.9  # where the announcement could be wrong
    assert found == pytest.approx(announced, abs=0.03)


def test_half_a_point_is_caught_as_announced() -> None:
    found, announced = failing(1200, drop=0.005)
    assert 0.5 < announced < 0.9
    assert found == pytest.approx(announced, abs=0.03)


def test_what_fell_by_the_margin_is_not_proven_to_have_held_but_in_five_of_a_hundred() -> None:
    # one benchmark fell by its margin, the other not at all
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(1200):
        cases = [
            (draw(rng, task, 0.1, d)[0], 0.01) for task, d in zip(TASKS, (0.01, 0), strict=True)
        ]
        passed += not any(one.failed for one in inferiority.decide(cases, "non-inferiority"))
    assert passed / 1200 <= 0.06


@pytest.mark.parametrize(("n", "discordance"), [(44, 0.2), (20, 0.1), (120, 0.05)])
def test_on_a_few_items_no_more_equal_models_fail_than_it_says(n: int, discordance: float) -> None:
    rng = np.random.default_rng(4)
    counts = rng.multinomial(n, [discordance / 2, discordance / 2, 1 - discordance], size=3000)
    cases = [Single(n, n, fixed, broke) for fixed, broke, _ in counts.tolist()]
    fails = sum(inferiority.decide([(one, 0.0)])[0].failed for one in cases)
    assert fails / 3000 <= 0.055


@pytest.mark.parametrize(("n", "margin"), [(52, 0.05), (44, 0.1), (300, 0.01)])
def test_a_few_items_prove_no_holding_more_often_than_it_says(n: int, margin: float) -> None:
    rng = np.random.default_rng(5)
    for more in (0.0, 0.02, 0.1):  # of which as many are fixed
        counts = rng.multinomial(n, [more, more + margin, 1 - 2 * more - margin], size=3000)
        cases = [Single(n, n, fixed, broke) for fixed, broke, _ in counts.tolist()]
        proven = sum(one.held(margin) <= 0.05 for one in cases)
        assert proven / 3000 <= 0.062


def test_items_that_share_a_passage_count_together() -> None:
    # a passage that is misread costs all of its questions: as single items they would prove a drop
    rng = np.random.default_rng(6)
    task = load_task("agieval")
    subjects = {"lsat-rc": 270, "gaokao-english": 300, "sat-en": 200}
    cluster = np.repeat(np.arange(154), 5)
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    fails = singly = 0
    for number in range(2500):
        shift = np.repeat(rng.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=154), 5)
        before = rng.random(770) < 0.5
        after = np.where(shift == 0, before, shift > 0)
        sides = [
            Outcomes("x", subjects, right.astype("u1"), values, cluster, {})
            for right in (before, after)
        ]
        fails += inferiority.decide([(inferiority.evidence(task, *sides), 0.0)])[0].failed
        if number < 800:
            alone = [outcomes(side.right, subjects) for side in sides]
            singly += inferiority.decide([(inferiority.evidence(task, *alone), 0.0)])[0].failed
    assert fails / 2500 <= 0.06
    assert singly / 800 > 0.12


# the tests by themselves


@given(st.integers(0, 300), st.integers(0, 300))
def test_without_a_margin_it_is_mcnemars_one_sided_test(fixed: int, broke: int) -> None:
    one = Single(1000, 1000, fixed, broke)
    two_sided = stats.score_p(fixed, broke)
    if fixed + broke >= inferiority.FEW:
        p = two_sided / 2 if broke >= fixed else 1 - two_sided / 2
        assert one.fell(0.0) == pytest.approx(p)
    elif fixed + broke:
        exact = binomtest(broke, fixed + broke, alternative="greater").pvalue
        assert one.fell(0.0) >= float(exact) * (1 - 1e-9)
    else:
        assert one.fell(0.0) == 1.0


@given(st.integers(25, 400), st.integers(0, 400), st.floats(0.001, 0.3))
def test_the_interval_leaves_out_just_what_a_test_rejects(
    fixed: int, broke: int, alpha: float
) -> None:
    one = Single(1000, 1000, fixed, broke)
    low, high = one.interval(alpha)
    assert low <= one.change <= high
    if -1 < low < 0:
        assert one.held(-low) == pytest.approx(alpha, rel=1e-4)
    if -1 < high < 0:
        assert one.fell(-high) == pytest.approx(alpha, rel=1e-4)


@given(st.floats(0.02, 0.5), st.integers(500, 20000))
def test_the_announced_drop_is_that_of_the_sample_size_formula(share: float, n: int) -> None:
    one = Single(n, n, share * n / 2, share * n / 2)
    found = inferiority.detectable(one, 0.0, "inferiority", 0.025)
    assert found == pytest.approx(power.detectable(n, share, alpha=0.05), rel=1e-6)


def test_a_larger_margin_never_fails_what_a_smaller_one_passes() -> None:
    one = Single(2000, 2000, 60, 110)
    ps = [one.fell(margin) for margin in (0.0, 0.005, 0.01, 0.02, 0.05)]
    assert ps == sorted(ps)
    proofs = [one.held(margin) for margin in (0.01, 0.02, 0.05)]
    assert proofs == sorted(proofs, reverse=True)
    for margin in (0.01, 0.02):
        assert one.fell(margin) + one.held(margin) == pytest.approx(1)


# run folders


def less(every: int) -> Answers:
    """Everything right but each so-manieth question."""
    count = 0

    def answers(item: Item) -> list[str]:
        nonlocal count
        count += 1
        return nothing(item) if count % every == 0 else gold(item)

    return answers


Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes a model's runs of two sample exams."""

    def make(name: str, answers: Answers, tasks: Sequence[str] = ("mmlu", "cmmlu")) -> Path:
        for task in tasks:
            answered(prepare(f"sample-{task}", Selection()), tmp_path / name, answers)
        return tmp_path / name / "scripted"

    return make


def run(*arguments: str | Path) -> tuple[int, str]:
    """The exit code and all that is printed, of the program itself."""
    done = subprocess.run(
        [sys.executable, "-m", "ceval_suite", "gate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_exit_codes_are_0_passed_3_failed_1_no_verdict(made: Made, tmp_path: Path) -> None:
    good, bad, twin = made("good", gold), made("bad", less(3)), made("twin", gold)
    code, shown = run(twin, good)
    assert (code, shown.splitlines()[0]) == (0, "Gate passed: scripted against scripted")
    code, shown = run(bad, good)
    assert (code, shown.splitlines()[0]) == (3, "Gate failed: scripted against scripted")
    code, shown = run(bad, tmp_path / "nowhere")
    assert code == 1
    assert len(shown.splitlines()) == 1


def test_the_json_says_the_verdict_and_every_number(made: Made) -> None:
    good, bad = made("good", gold), made("bad", less(3))
    done = CliRunner().invoke(app, ["gate", str(bad), str(good), "--json"])
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert found["verdict"] == "failed"
    assert len(found["failed"]) == 2
    row = found["table"]["rows"][0]
    assert row["change"]["value"] == pytest.approx(
        row["candidate"]["value"] - row["baseline"]["value"]
    )


def test_margins_are_by_task_and_points(made: Made) -> None:
    good, bad = made("good", gold), made("bad", less(3))
    judged = gate.judge(bad, good, gate.rules("inferiority", 0.05, ["1", "sample-mmlu=60"]))
    failed = {str(line.about["task"]): line.finding for line in judged.lines}
    assert failed["sample-cmmlu"].margin == 0.01
    assert failed["sample-cmmlu"].failed
    assert failed["sample-mmlu"].margin == pytest.approx(0.6)
    assert not failed["sample-mmlu"].failed


def test_equal_runs_of_a_few_items_do_not_prove_that_nothing_was_lost(made: Made) -> None:
    good, twin = made("good", gold), made("twin", gold)
    rules = gate.rules("non-inferiority", 0.05, ["1"])
    assert len(gate.judge(twin, good, rules).failed) == 2
    rules = gate.rules("non-inferiority", 0.05, ["20"])
    assert not gate.judge(twin, good, rules).failed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--margin", "x"], "--margin: 'x' is no allowed drop"),
        (["--margin", "nan"], "--margin: 'nan' is no allowed drop"),
        (["--margin", "-1"], "--margin: '-1' is no allowed drop"),
        (["--margin", "mmul=1"], "unknown task 'mmul': did you mean 'mmlu'"),
        (["--margin", "ceval=1"], "--margin names 'ceval', of which there are no runs"),
        (["--alpha", "0.7"], "--alpha: 0.7 is no level"),
        (["--mode", "superiority"], "unknown mode 'superiority'"),
        (["--mode", "non-inferiority"], "needs a --margin above 0"),
        (["--tasks", "ceval"], "has a run of ceval"),
        (["--exclude", "nothing"], "unknown exclusion list"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(
    made: Made, options: list[str], sentence: str
) -> None:
    good = made("good", gold)
    with pytest.raises((ConfigError, RunError), match=sentence.replace("(", r"\(")):
        CliRunner().invoke(app, ["gate", str(good), str(good), *options], catch_exceptions=False)


def test_a_benchmark_of_one_side_is_an_error(made: Made) -> None:
    good, part = made("good", gold), made("part", gold, ["mmlu"])
    for sides in ((part, good), (good, part)):
        with pytest.raises(RunError, match=r"sample-cmmlu.* has no run of the same protocol"):
            gate.judge(*sides)
    rules = gate.rules("inferiority", 0.05, [], ["sample-mmlu"])
    assert len(gate.judge(part, good, rules).lines) == 1


def test_a_benchmark_under_two_protocols_is_an_error(made: Made, tmp_path: Path) -> None:
    good, other = made("good", gold), made("other", gold, ["mmlu"])
    answered(prepare("sample-cmmlu", Selection(shots=0)), tmp_path / "other", gold)
    with pytest.raises(RunError, match=r"same protocol to be compared with \(shots 5 and 0\)"):
        gate.judge(other, good)


def test_an_unfinished_run_is_an_error(made: Made) -> None:
    good, half = made("good", gold), made("half", gold)
    (records,) = half.glob("sample-mmlu-*/records.jsonl")
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:-2]))
    for sides in ((half, good), (good, half)):
        with pytest.raises(RunError, match=r"is unfinished \(2 records are missing\)"):
            gate.judge(*sides)


def test_two_runs_of_one_protocol_on_one_side_are_an_error(made: Made) -> None:
    good = made("good", gold)
    (one,) = good.glob("sample-mmlu-*")
    shutil.copytree(one, good / "copy")
    with pytest.raises(RunError, match="are two runs of one protocol"):
        gate.judge(good, made("twin", gold))


def test_other_gold_labels_are_an_error(made: Made) -> None:
    good, other = made("good", gold), made("other", gold)
    (records,) = other.glob("sample-mmlu-*/records.jsonl")
    first, *rest = records.read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["answer"] = ["A"] if row["answer"] != ["A"] else ["B"]
    records.write_text(json.dumps(row) + "\n" + "".join(rest))
    with pytest.raises(RunError, match="has two gold labels"):
        gate.judge(other, good)


def test_runs_without_gold_labels_are_an_error(made: Made) -> None:
    sides = made("good", gold), made("other", gold)
    for side in sides:
        for records in side.glob("*/records.jsonl"):
            rows = [json.loads(line) for line in records.read_text().splitlines()]
            bare = ({**row, "correct": None, "score": None} for row in rows)
            records.write_text("".join(json.dumps(row) + "\n" for row in bare))
    with pytest.raises(RunError, match="it has no gold labels"):
        gate.judge(*sides)


def test_items_of_a_list_are_left_out(made: Made, tmp_path: Path) -> None:
    good, bad = made("good", gold), made("bad", less(2))
    wrong = [
        row["id"]
        for path in bad.glob("*/records.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
        if not row["correct"]
    ]
    listing = tmp_path / "bad.yaml"
    items = dict.fromkeys(wrong, "broken")
    listing.write_text(
        json.dumps({"name": "bad", "title": "Bad", "source": "here", "items": items})
    )
    assert gate.judge(bad, good).failed
    judged = gate.judge(bad, good, gate.rules("inferiority", 0.05, [], [], [str(listing)]))
    assert not judged.failed
    assert "without the items of bad: Bad" in report.gate(judged).notes


# what continuous integration reads


def test_the_comment_begins_with_the_verdict_and_nothing_in_it_is_markup(
    made: Made, tmp_path: Path
) -> None:
    good, bad = made("good", gold), made("bad", less(3))
    evil = "`x` @everyone ![p](http://x) <img src=x> | **b**\x1b[2J\nline"
    for path in bad.glob("*/run.json"):
        about = read_json(path)
        about["identity"]["model"] = evil
        write_json(path, about)
    file = tmp_path / "out" / "gate.md"
    done = CliRunner().invoke(app, ["gate", str(bad), str(good), "--markdown", str(file)])
    assert done.exit_code == 3
    written = file.read_text()
    first = written.splitlines()[0]
    assert first.startswith("❌ **Gate failed**: `'x' @everyone")
    assert first.endswith("against `scripted`, 2 of 2 benchmarks failed.")
    outside = "".join(first.split("`")[::2])  # what no code span holds
    assert not set("@<[!|") & set(outside)
    assert "\x1b" not in written
    assert written.count("\n- `sample-") == 2


Name = st.text(st.characters(codec=None), max_size=40)


@given(Name, Name)
def test_junit_is_well_formed_whatever_names_are(model: str, protocol: str) -> None:
    one = Single(100, 100, 0, 40)
    (found,) = inferiority.decide([(one, 0.0)])
    about = {"task": "mmlu", "protocol": protocol, "split": "test", "shots": 5}
    value = stats.wilson(50, 100)
    line = gate.Line(about, "acc/micro", value, value, found)
    verdict = gate.Verdict(model, model, gate.Rules(), [line, line], 1.0, 0.05)
    content = report.to_junit(verdict)
    root = ElementTree.fromstring(content.encode())
    shaped(root)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "2", "0")
    fine = replace(verdict, lines=[replace(line, finding=replace(found, failed=False))])
    root = ElementTree.fromstring(report.to_junit(fine).encode())
    shaped(root)
    assert (root.get("tests"), root.get("failures")) == ("1", "0")


SHAPE = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time"},
        ["properties", "testcase"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"name", "classname", "time"}, ["error", "failure"]),
    "failure": ({"message", "type"}, []),
    "error": ({"message", "type"}, []),
}
"""Elements of the readers' common schema (Jenkins' junit-10, Surefire's 3): attributes, children
in order."""


def shaped(element: ElementTree.Element) -> None:
    """An element and all below are of the shape."""
    attributes, children = SHAPE[element.tag]
    assert set(element.attrib) == attributes
    places = [children.index(child.tag) for child in element]
    assert places == sorted(places)
    for name in ("tests", "failures", "errors"):
        if name in attributes:
            tag = {"tests": "testcase", "failures": "failure", "errors": "error"}[name]
            assert element.get(name) == str(len(list(element.iter(tag))))
    for child in element:
        shaped(child)


def test_without_a_verdict_the_files_say_why_and_hold_no_earlier_one(
    made: Made, tmp_path: Path
) -> None:
    good, part = made("good", gold), made("part", gold, ["mmlu"])
    files = [tmp_path / "gate.xml", tmp_path / "gate.md"]
    options = ["--junit", str(files[0]), "--markdown", str(files[1])]
    assert CliRunner().invoke(app, ["gate", str(good), str(good), *options]).exit_code == 0
    assert files[1].read_text().startswith("✅ **Gate passed**")
    assert CliRunner().invoke(app, ["gate", str(part), str(good), *options]).exit_code == 1
    root = ElementTree.fromstring(files[0].read_bytes())
    shaped(root)
    assert root.get("errors") == "1"
    assert files[1].read_text().startswith("⚠️ **Gate without a verdict**")
    assert "no run of the same protocol" in files[1].read_text()
