"""A subset stands for the whole: drawn by subject, nested, weighted, and never taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import comparison, finished, gate, metrics, papers, stratified, summary
from ceval_suite.catalog import load_task
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.report import board
from ceval_suite.schema import Item
from ceval_suite.stats import wilson
from ceval_suite.subset import draw, shares
from tests.finished_runs import answered, gold, guessing

FIVE = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")


def sizes(task: str) -> dict[str, int]:
    table = load_task(task)
    return {s: row.counts[table.split] for s, row in table.subjects.items()}


def items(counts: Mapping[str, int]) -> dict[str, list[Item]]:
    return {
        s: [Item(id=f"t/test/{s}/{k}", subject=s, question="?") for k in range(n)]
        for s, n in counts.items()
    }


# the draw


@pytest.mark.parametrize("task", FIVE)
@pytest.mark.parametrize("count", [500, 2000])
def test_every_subject_gives_its_share_and_one_item_at_least(task: str, count: int) -> None:
    counts = sizes(task)
    total = sum(counts.values())
    found = shares(counts, count)
    assert sum(found.values()) == min(count, total)
    assert min(found.values()) >= 1
    for subject, n in counts.items():
        share = min(count, total) * n / total
        # who is lifted to one item takes at most a few seats from the others
        assert found[subject] == pytest.approx(share, abs=1.5) or found[subject] == 1


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 400), st.integers(0, 3))
def test_a_smaller_subset_is_a_part_of_a_larger_one(
    counts: list[int], count: int, seed: int
) -> None:
    whole = items({f"s{k}": n for k, n in enumerate(counts)})
    small, large = draw(whole, count, seed), draw(whole, count + 1, seed)
    total = sum(counts)
    for subject, some in whole.items():
        ids = [item.id for item in some]
        chosen = [item.id for item in small[subject]]
        assert set(chosen) <= {item.id for item in large[subject]} <= set(ids)
        assert chosen == sorted(chosen, key=ids.index)
    assert sum(map(len, small.values())) == min(count, total)
    if 0 < total <= count:
        assert small == whole


def test_seeds_draw_differently_and_every_item_alike() -> None:
    whole = items({"a": 30, "b": 10})
    often = dict.fromkeys((i.id for some in whole.values() for i in some), 0)
    for seed in range(600):
        for some in draw(whole, 10, seed).values():
            for item in some:
                often[item.id] += 1
    # each in a quarter of the draws: 150 ± 4.5 standard errors
    assert min(often.values()) > 102
    assert max(often.values()) < 198


# the estimate


def answers(rng: np.random.Generator, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Right and wrong answers to a whole benchmark, with easy and hard subjects."""
    return {s: rng.random(n) < rng.beta(4, 3) for s, n in counts.items()}


@pytest.mark.parametrize(("task", "count"), [("mmlu", 100), ("mmlu", 1000), ("ceval", 200)])
def test_the_score_of_the_whole_lies_in_the_interval_95_times_in_100(task: str, count: int) -> None:
    rng = np.random.default_rng(8)
    counts = sizes(task)
    right = {s: int(some.sum()) for s, some in answers(rng, counts).items()}
    found = shares(counts, count)
    draws = 800
    seen = {
        s: rng.hypergeometric(k, counts[s] - k, found[s], size=draws).tolist()
        for s, k in right.items()
    }
    truth = {
        "micro": sum(right.values()) / sum(counts.values()),
        "macro": float(np.mean([k / counts[s] for s, k in right.items()])),
    }
    hits = dict.fromkeys(truth, 0)
    values: dict[str, list[float]] = {rule: [] for rule in truth}
    for k in range(draws):
        each = {s: wilson(some[k], found[s]) for s, some in seen.items()}
        parts = {s: metrics.Part(one, one) for s, one in each.items()}
        for rule, true in truth.items():
            whole = metrics.average(rule, parts, load_task(task), counts, whole=True)
            usual = metrics.average(rule, parts, load_task(task), counts)
            assert whole.value == usual.value
            assert usual.low < whole.low <= whole.high < usual.high
            hits[rule] += whole.low <= true <= whole.high
            values[rule].append(whole.value)
    for rule, true in truth.items():
        assert 0.93 <= hits[rule] / draws <= 0.98
        assert np.mean(values[rule]) == pytest.approx(
            true, abs=4 * np.std(values[rule]) / draws**0.5
        )


def test_of_everything_the_estimate_is_the_score_and_the_interval_a_point() -> None:
    parts = [wilson(3, 4), wilson(1, 2)]
    found = stratified.average(parts, [4, 2], [4, 2])
    assert (found.value, found.low, found.high) == (pytest.approx(4 / 6),) * 3


def test_subjects_weigh_as_in_the_whole_not_as_they_were_drawn() -> None:
    task = load_task("mmlu")
    parts = {"astronomy": wilson(1, 1), "virology": wilson(0, 1)}
    found = metrics.average(
        "micro", {s: metrics.Part(one, one) for s, one in parts.items()}, task,
        {"astronomy": 300, "virology": 100},
    )  # fmt: skip
    assert found.value == pytest.approx(0.75)


# runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Forty items of an exam, answered."""
    return answered(prepare("sample-cmmlu", Selection(items=20)), tmp_path, guessing(1))


def test_a_subset_is_a_protocol_of_its_own_with_a_folder_of_its_own() -> None:
    whole = prepare("sample-cmmlu", Selection())
    every = sum(map(len, whole.items.values()))
    some = prepare("sample-cmmlu", Selection(items=20))
    prints = {
        one.fingerprint
        for one in (
            whole,
            some,
            prepare("sample-cmmlu", Selection(items=21)),
            prepare("sample-cmmlu", Selection(items=20, seed=1)),
        )
    }
    assert len(prints) == 4
    assert some.folder != whole.folder
    # all items are no subset, whatever the seed
    for count in (every, every + 1):
        same = prepare("sample-cmmlu", Selection(items=count, seed=5))
        assert same.fingerprint == whole.fingerprint
        assert same.about()["subset"] is None


def test_items_and_limit_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--items and --limit exclude each other"):
        prepare("sample-cmmlu", Selection(items=5, limit=2))


def test_sub_questions_of_one_item_stay_together() -> None:
    whole = prepare("sample-gaokao", Selection())
    some = prepare("sample-gaokao", Selection(items=8))
    assert some.subset is not None
    assert sum(map(len, some.items.values())) == 8
    chosen = {item.id.partition("#")[0] for item in some.scored()}
    for item in whole.scored():
        stem = item.id.partition("#")[0]
        assert (stem in chosen) == (item.id in {one.id for one in some.scored()})


def test_only_items_that_the_method_scores_are_drawn() -> None:
    whole = prepare("sample-agieval", Selection())
    some = prepare("sample-agieval", Selection(items=10))
    assert some.subset is not None
    assert some.subset.of == len(whole.scored())
    assert len(some.scored()) == 10
    assert some.not_scored == whole.not_scored


def test_a_board_names_the_subset_and_what_the_whole_would_come_to(run: Path) -> None:
    about = read_json(run / "run.json")
    found = summary.of_run(about, about["identity"], read_records(run / "records.jsonl"))
    assert found["subset"] == {"items": 20, "of": 60, "seed": 0}
    table = board.board([found])
    (column,) = table.columns[1:]
    assert column.endswith("(20 of 60 items)")
    assert any("a run of all 60 items would come to" in note for note in table.notes)
    seeded = {**found, "subset": {**found["subset"], "seed": 3}}
    assert board.label(seeded).endswith("(20 of 60 items by seed 3)")


def test_a_finished_subset_is_taken_up_with_its_very_items(run: Path) -> None:
    side = finished.run_in(run)
    prepared = finished.questions(side)
    assert {id for item in prepared.scored() for id in item.record_ids()} == set(side.records)
    assert prepared.fingerprint == side.protocol


def test_a_subset_and_the_whole_are_told_apart_in_words(run: Path, tmp_path: Path) -> None:
    whole = answered(prepare("sample-cmmlu", Selection()), tmp_path / "whole", gold)
    with pytest.raises(RunError, match=r"subset of 20 items, seed 0, and None|None and of 20"):
        comparison.pair(run, whole)


def test_a_comparison_and_a_gate_weigh_subjects_as_the_whole_does(tmp_path: Path) -> None:
    chosen = Selection(items=20)
    prepared = prepare("sample-mmlu", chosen)
    assert prepared.subset is not None
    sides = [answered(prepared, tmp_path / str(k), guessing(k)) for k in (1, 2)]
    summaries = []
    for side in sides:
        about = read_json(side / "run.json")
        summaries.append(
            summary.of_run(about, about["identity"], read_records(side / "records.jsonl"))
        )
    ((one, two),), _ = comparison.pair(*sides)
    found = comparison.versus(one, two)
    for name, (first, second, change) in found.averages.items():
        values = [s["metrics"][name]["value"] for s in summaries]
        assert [first.value, second.value] == pytest.approx(values)
        assert change.value == pytest.approx(values[1] - values[0])
    line = gate.judge(sides[1], sides[0]).lines[0]
    official = summaries[0]["headline"]
    assert line.baseline.value == pytest.approx(summaries[0]["metrics"][official]["value"])
    assert line.finding.evidence.change == pytest.approx(line.candidate.value - line.baseline.value)


def test_marks_of_a_paper_need_all_items(tmp_path: Path) -> None:
    task = load_task("gaokao")
    assert task.paper is not None
    sheets = {name: papers.Sheet(name, 1, 1.0, rate=wilson(1, 2)) for name in task.subjects}
    marks, _ = papers.converted(task.paper, sheets, "only a subset of the items")
    assert all(one.exact is None for one in marks)
