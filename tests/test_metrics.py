"""Averages are the benchmarks' own, and nothing unlabelled or missing is ever counted as wrong."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import methods, metrics, stats
from ceval_suite.catalog import load_task
from ceval_suite.metrics import Part
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Estimate, Record
from ceval_suite.specs import Task
from tests.finished_runs import record


def verdict(
    id: str,
    right: bool | None,
    *,
    gold: str = "A",
    labels: str = "ABCD",
    tie: bool = False,
    mass: float = 0.5,
    shots: int = 5,
) -> Record:
    """A record whose prediction is the gold letter, or the next one; None: no gold label."""
    wrong = labels[(labels.index(gold[0]) + 1) % len(labels)]
    return Record(
        id=id,
        subject=id.split("/")[2],
        answer=[] if right is None else list(gold),
        prediction=[wrong] if right is False else [gold[0]],
        correct=right,
        score=None if right is None else float(right),
        logits={},
        logprobs=dict.fromkeys(labels, -1.0),
        choice_mass=mass,
        tie=tie,
        text=None,
        shots=shots,
        prompt_tokens=10,
        prompt_sha256="",
    )


def records_of(right: Mapping[str, Sequence[bool | None]], task: str = "exam") -> list[Record]:
    return [
        verdict(f"{task}/test/{subject}/{row}", verdicts[row])
        for subject, verdicts in right.items()
        for row in range(len(verdicts))
    ]


def exam(average: str, points: Mapping[str, float], **more: Any) -> Task:
    """A task with the given subjects and points."""
    return Task.model_validate(
        {
            "name": "exam",
            "version": 1,
            "title": "Exam",
            "language": "en",
            "source": {"layout": "csv", "folder": "exam", "files": {"test": "{subject}.csv"}},
            "prompt": "mmlu",
            "shots": 0,
            "split": "test",
            "average": average,
            "license": "",
            "homepage": "",
            "citation": "",
            "subjects": {name: {"points": p} for name, p in points.items()},
            **more,
        }
    )


def summary(task: Task, records: Sequence[Record], expected: Mapping[str, int]) -> dict[str, Any]:
    return metrics.summarize(task, records, expected)


def full(task: Task, split: str, seed: int) -> list[Record]:
    """Random verdicts on every item of a published split."""
    rng = random.Random(seed)
    return [
        verdict(f"{task.name}/{split}/{subject}/{row}", rng.random() < 0.2 + 0.6 * share)
        for subject, table in task.subjects.items()
        for share in [rng.random()]
        for row in range(table.counts[split])
    ]


def counts(task: Task, split: str) -> dict[str, int]:
    return {name: subject.counts[split] for name, subject in task.subjects.items()}


@pytest.mark.parametrize("name", ["mmlu", "cmmlu", "ceval", "agieval"])
def test_averages_equal_the_official_scripts_rules(name: str) -> None:
    task = load_task(name)
    records = full(task, task.split, seed=len(name))
    found = summary(task, records, counts(task, task.split))
    verdicts = {r.id: bool(r.correct) for r in records}
    headline = "acc/micro" if name == "mmlu" else "acc/macro"
    assert found["headline"] == headline
    assert found["missing"] == []
    rule = oracles.average_rules[name]
    assert found["metrics"][headline]["value"] == pytest.approx(rule(verdicts), abs=1e-12)
    assert found["metrics"]["acc/micro"]["value"] == pytest.approx(oracles.mmlu_micro(verdicts))
    assert found["metrics"]["acc/macro"]["value"] == pytest.approx(
        oracles.macro_over_subjects(verdicts)
    )
    assert found["metrics"][headline]["n"] == found["n"] == len(records)
    assert list(found["metrics"]) == [headline, *({"acc/micro", "acc/macro"} - {headline})]
    for kind in ("categories", "groups"):
        sets: Mapping[str, Sequence[str]] = getattr(task, kind)
        assert set(found[kind]) == set(sets)
        for group, members in sets.items():
            assert found[kind][group]["subjects"] == len(members)
            assert found[kind][group][headline]["value"] == pytest.approx(
                rule(verdicts, set(members)), abs=1e-12
            )


def test_mmlu_categories_are_the_official_ones() -> None:
    task = load_task("mmlu")
    assert {k: set(v) for k, v in task.categories.items()} == {
        k: set(v) for k, v in oracles.MMLU_CATEGORIES.items()
    }


def test_points_by_hand() -> None:
    # 3 of 4 right at 6 points and 1 of 2 right at 1.5 points: (18 + 1.5) / (24 + 3)
    task = exam("points", {"biology": 6, "cloze": 1.5})
    records = records_of({"biology": [True, True, True, False], "cloze": [True, False]})
    found = summary(task, records, {"biology": 4, "cloze": 2})
    assert found["metrics"]["points"]["value"] == pytest.approx(19.5 / 27)
    assert found["metrics"]["acc/micro"]["value"] == pytest.approx(4 / 6)
    assert found["metrics"]["acc/macro"]["value"] == pytest.approx((0.75 + 0.5) / 2)


def test_micro_and_macro_by_hand() -> None:
    task = exam("macro", {"big": 1, "small": 1})
    records = records_of({"big": [True] * 9 + [False], "small": [False, True]})
    found = summary(task, records, {"big": 10, "small": 2})
    assert found["headline"] == "acc/macro"
    assert found["metrics"]["acc/macro"]["value"] == pytest.approx(0.7)
    assert found["metrics"]["acc/micro"]["value"] == pytest.approx(10 / 12)
    assert found["subjects"]["big"]["value"] == 0.9
    assert found["subjects"]["small"]["n"] == 2


def part(found: Estimate) -> Part:
    """A subject whose items all stand alone and earn all or nothing."""
    return Part(found, found)


def shares(task: Task, split: str, by_category: Mapping[str, float]) -> dict[str, Part]:
    """Subjects that all score their category's published value, with their published sizes."""
    return {
        subject: part(
            Estimate(
                value=by_category[table.category], n=table.counts[split], stderr=0.1, low=0, high=1
            )
        )
        for subject, table in task.subjects.items()
    }


PUBLISHED = [
    # MMLU, GPT-3 few-shot: printed as 43.9, so the paper's average is micro
    (
        "mmlu",
        "test",
        {
            "humanities": 40.8,
            "social sciences": 50.4,
            "STEM": 36.7,
            "other (business, health, misc.)": 48.8,
        },
        "micro",
        43.87,
    ),
    # CMMLU, GPT-4 five-shot: printed as 70.95, so macro over 67 subjects
    (
        "cmmlu",
        "test",
        {"STEM": 65.23, "Humanities": 72.11, "Social Science": 72.06, "Other": 74.79},
        "macro",
        70.95,
    ),
    # C-Eval, GPT-4 five-shot: printed as 68.7, macro over 52 subjects (micro would be 68.94)
    (
        "ceval",
        "test",
        {"STEM": 67.1, "Social Science": 77.6, "Humanities": 64.5, "Other": 67.8},
        "macro",
        68.72,
    ),
    (
        "ceval",
        "test",
        {"STEM": 67.1, "Social Science": 77.6, "Humanities": 64.5, "Other": 67.8},
        "micro",
        68.94,
    ),
]


@pytest.mark.parametrize(("name", "split", "by_category", "rule", "printed"), PUBLISHED)
def test_published_totals_follow_from_published_categories_by_our_rules(
    name: str, split: str, by_category: dict[str, float], rule: str, printed: float
) -> None:
    task = load_task(name)
    assert set(by_category) == set(task.categories)
    parts = shares(task, split, {k: v / 100 for k, v in by_category.items()})
    assert round(100 * metrics.average(rule, parts, task).value, 2) == printed


def test_mmlus_published_total_is_not_the_macro_average() -> None:
    task = load_task("mmlu")
    by_category = {k: v / 100 for k, v in PUBLISHED[0][2].items()}
    macro = metrics.average("macro", shares(task, "test", by_category), task).value
    assert round(100 * macro, 1) == 43.5


def test_a_missing_subject_leaves_no_average_and_its_name() -> None:
    task = exam("macro", {"law": 1, "logic": 1}, groups={"both": ["law", "logic"]})
    records = records_of({"law": [True, False]})
    found = summary(task, records, {"law": 2, "logic": 3})
    assert found["missing"] == ["logic"]
    assert found["metrics"] == {}
    assert found["categories"] == found["groups"] == {}
    assert "chance" not in found
    assert found["subjects"]["law"]["n"] == 2


def test_a_subject_that_lacks_one_record_is_missing() -> None:
    task = exam("micro", {"law": 1})
    found = summary(task, records_of({"law": [True, True]}), {"law": 3})
    assert (found["missing"], found["metrics"]) == (["law"], {})


def test_unlabelled_items_are_excluded_never_wrong() -> None:
    task = exam("micro", {"law": 1})
    found = summary(task, records_of({"law": [True, None, None, False]}), {"law": 4})
    assert found["n"] == 4
    assert found["metrics"]["acc/micro"]["value"] == 0.5
    assert found["metrics"]["acc/micro"]["n"] == 2


def test_without_any_label_there_are_no_metrics_and_no_zero() -> None:
    task = exam("macro", {"law": 1, "logic": 1})
    records = records_of({"law": [None, None], "logic": [None]})
    found = summary(task, records, {"law": 2, "logic": 1})
    assert found["labels"] is False
    assert found["n"] == 3
    assert found["metrics"] == found["subjects"] == found["categories"] == {}
    assert found["missing"] == []
    assert found["letters"]["A"] == {"predicted": 3, "gold": 0}


def test_a_subject_without_any_label_beside_labelled_ones_leaves_no_average() -> None:
    # an average over the other subjects would be another number under the same name
    task = exam("macro", {"law": 1, "logic": 1})
    found = summary(
        task, records_of({"law": [True, False], "logic": [None]}), {"law": 2, "logic": 1}
    )
    assert found["labels"] is True
    assert found["missing"] == ["logic"]
    assert found["metrics"] == {}


def test_chance_is_one_in_four_one_in_five_or_their_mix() -> None:
    four = [verdict(f"t/test/law/{i}", True) for i in range(6)]
    five = [verdict(f"t/test/aqua/{i}", True, labels="ABCDE") for i in range(2)]
    task = exam("micro", {"law": 1, "aqua": 1})
    assert metrics.chance(four, task) == 0.25
    assert metrics.chance(five, task) == pytest.approx(0.2)
    assert metrics.chance(four + five, task) == pytest.approx((6 / 4 + 2 / 5) / 8)
    assert metrics.chance([], task) == 0.0


def test_chance_counts_every_letter_that_the_lenient_rule_accepts() -> None:
    task = exam("micro", {"law": 1})
    assert metrics.chance([verdict("t/test/law/0", True, gold="BD")], task) == 0.5


def test_chance_corrected_accuracy() -> None:
    task = exam("micro", {"law": 1})
    found = summary(task, records_of({"law": [True, False]}), {"law": 2})
    assert found["chance"] == 0.25
    assert found["chance_corrected"] == pytest.approx((0.5 - 0.25) / 0.75)
    at_chance = summary(task, records_of({"law": [True, False, False, False]}), {"law": 4})
    assert at_chance["chance_corrected"] == 0.0


def test_ties_letters_mass_and_shots_are_counted() -> None:
    task = exam("micro", {"law": 1})
    records = [
        verdict("t/test/law/0", True, gold="A", tie=True, mass=0.9),
        verdict("t/test/law/1", False, gold="B", mass=0.7, shots=3),
        verdict("t/test/law/2", False, gold="B", mass=0.5),
        verdict("t/test/law/3", None, gold="D", mass=0.3),
    ]
    found = summary(task, records, {"law": 4})
    assert found["ties"] == 1
    assert found["unanswered"] == 0
    assert found["choice_mass"] == pytest.approx(0.6)
    assert found["letters"] == {
        "A": {"predicted": 1, "gold": 1},
        "B": {"predicted": 0, "gold": 2},
        "C": {"predicted": 2, "gold": 0},
        "D": {"predicted": 1, "gold": 0},
    }
    assert found["shots_shown"] == {"3": 1, "5": 3}


def test_no_records_is_no_metrics() -> None:
    found = summary(exam("micro", {"law": 1}), [], {"law": 2})
    assert (found["n"], found["labels"], found["metrics"]) == (0, False, {})
    assert found["choice_mass"] is None
    assert found["missing"] == ["law"]


def test_the_intervals_are_wilsons_for_items_and_the_macro_rule_for_subjects() -> None:
    task = exam("macro", {"law": 1, "logic": 1})
    records = records_of({"law": [True] * 30 + [False] * 10, "logic": [True, False] * 10})
    found = summary(task, records, {"law": 40, "logic": 20})
    micro, macro = found["metrics"]["acc/micro"], found["metrics"]["acc/macro"]
    wilson = stats.wilson(40, 60)
    assert (micro["low"], micro["high"]) == (wilson.low, wilson.high)
    errors = [found["subjects"][s]["stderr"] for s in ("law", "logic")]
    assert macro["stderr"] == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(SIZES, st.integers(30, 60))
def test_macro_over_subjects_of_one_size_is_micro(right: list[int], n: int) -> None:
    parts = [part(stats.wilson(r, n)) for r in right]
    assert metrics.macro(parts).value == pytest.approx(metrics.micro(parts).value, abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(30, 90)), min_size=1, max_size=12),
    st.sampled_from([0.5, 1, 1.5, 4, 6]),
)
def test_points_with_one_weight_are_micro(sizes: list[tuple[int, int]], points: float) -> None:
    parts = {f"s{i}": part(stats.wilson(r, n)) for i, (r, n) in enumerate(sizes)}
    task = exam("points", dict.fromkeys(parts, points))
    assert metrics.points(parts, task).value == pytest.approx(
        metrics.micro(list(parts.values())).value, abs=1e-12
    )


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6))
def test_averages_lie_between_the_worst_and_the_best_subject(verdicts: list[list[bool]]) -> None:
    rows = {f"s{i}": v for i, v in enumerate(verdicts)}
    task = exam("points", {s: 1.0 + i for i, s in enumerate(rows)})
    found = summary(task, records_of(rows), {s: len(v) for s, v in rows.items()})
    values = [e["value"] for e in found["subjects"].values()]
    for one in found["metrics"].values():
        assert min(values) - 1e-12 <= one["value"] <= max(values) + 1e-12
        assert 0 <= one["low"] <= one["value"] + 1e-12
        assert one["value"] - 1e-12 <= one["high"] <= 1


# points with partial credit, and items with several sub-questions


def sub_questions(subject: str, verdicts: Sequence[Sequence[bool]]) -> list[Record]:
    """Records of items that have several sub-questions each."""
    return [
        verdict(f"exam/test/{subject}/{row}#{k}", right)
        for row, some in enumerate(verdicts)
        for k, right in enumerate(some)
    ]


def test_partial_credit_earns_points_and_no_accuracy() -> None:
    task = exam("points", {"physics": 6, "biology": 6})
    records = records_of({"physics": [True, False, False], "biology": [True, True, False]})
    records[1] = replace(records[1], score=0.5)
    found = summary(task, records, {"physics": 3, "biology": 3})
    assert found["metrics"]["points"]["value"] == pytest.approx((6 + 3 + 12) / 36)
    assert found["metrics"]["acc/micro"]["value"] == pytest.approx(3 / 6)
    assert found["subjects"]["physics"]["value"] == pytest.approx(1 / 3)
    assert found["points"]["physics"]["earned"] == 9
    assert found["points"]["physics"]["possible"] == 18
    assert found["points"]["physics"]["rate"]["value"] == 0.5
    # the subject with partial credit has the interval of its scores, the other one Wilson's
    assert found["points"]["biology"]["rate"]["low"] == stats.wilson(2, 3).low
    scores = stats.share([1.0, 0.5, 0.0], list("abc"))
    assert found["points"]["physics"]["rate"]["low"] == scores.low
    error = (scores.stderr**2 + stats.wilson(2, 3).stderr ** 2) ** 0.5 / 2
    assert found["metrics"]["points"]["stderr"] == pytest.approx(error)


def test_items_that_share_a_passage_have_an_interval_over_passages() -> None:
    task = exam("micro", {"law": 1})
    alone = records_of({"law": [True] * 6 + [False] * 6})
    shared = [replace(r, cluster=f"passage {i // 3}") for i, r in enumerate(alone)]
    one, two = (summary(task, rs, {"law": 12})["metrics"]["acc/micro"] for rs in (alone, shared))
    assert one == asdict(stats.wilson(6, 12))
    clusters = [f"passage {i // 3}" for i in range(12)]
    assert two == asdict(stats.share([1.0] * 6 + [0.0] * 6, clusters))
    assert two["value"] == one["value"]
    assert two["high"] - two["low"] > 1.3 * (one["high"] - one["low"])


def test_points_are_told_by_subject_only_where_the_benchmark_counts_points() -> None:
    assert "points" not in summary(exam("micro", {"law": 1}), records_of({"law": [True]}), {})


@pytest.mark.real
def test_all_9702_points_of_gaokao_are_the_official_rate(real_data: Path) -> None:
    prepared = prepare("gaokao", Selection(data=real_data))
    rng = random.Random(2944)
    records: list[Record] = []
    shares: dict[str, list[float]] = {}
    for subject in prepared.subjects:
        for item in prepared.items[subject]:
            for id in item.record_ids():
                right = rng.random() < 0.4
                half = item.kind == "multi" and not right and rng.random() < 0.5
                one = replace(verdict(id, right, gold=item.answer[0], labels="ABCDEFG"))
                one = replace(one, score=0.5) if half else one
                records.append(one)
                shares.setdefault(item.id, []).append(methods.score(one))
    expected = Counter(record.subject for record in records)
    found = summary(prepared.task, records, expected)
    earned, possible = oracles.gaokao_points(real_data, shares)
    assert possible == 9702
    assert len(records) == found["metrics"]["points"]["n"] == 2944
    assert found["metrics"]["points"]["value"] == pytest.approx(earned / possible, abs=1e-12)
    assert sum(p["earned"] for p in found["points"].values()) == earned
    assert sum(p["possible"] for p in found["points"].values()) == 9702
    micro = sum(bool(r.correct) for r in records) / 2944
    assert found["metrics"]["acc/micro"]["value"] == pytest.approx(micro, abs=1e-12)


def test_sub_questions_of_an_item_belong_together() -> None:
    task = exam("micro", {"cloze": 1.5})
    records = sub_questions("cloze", [[True] * 20] * 5 + [[False] * 20] * 5)
    found = summary(task, records, {"cloze": 200})
    one = found["subjects"]["cloze"]
    assert (one["value"], one["n"]) == (0.5, 200)
    assert one["stderr"] == pytest.approx((10 / 9 * 0.25 / 10) ** 0.5)  # as ten items, not 200
    assert found["metrics"]["acc/micro"] == one


def test_items_with_one_sub_question_each_are_plain() -> None:
    task = exam("micro", {"cloze": 1})
    records = sub_questions("cloze", [[True], [False], [True]])
    found = summary(task, records, {"cloze": 3})
    assert found["subjects"]["cloze"]["low"] == stats.wilson(2, 3).low


def test_the_micro_interval_of_plain_and_clustered_subjects_adds_their_variances() -> None:
    task = exam("micro", {"law": 1, "cloze": 1})
    records = records_of({"law": [True] * 20 + [False] * 20})
    records += sub_questions("cloze", [[True] * 10, [False] * 10, [True] * 10, [False] * 10])
    found = summary(task, records, {"law": 40, "cloze": 40})
    law, cloze = (found["subjects"][s]["stderr"] for s in ("law", "cloze"))
    micro = found["metrics"]["acc/micro"]
    assert micro["value"] == 0.5
    assert micro["stderr"] == pytest.approx((law**2 + cloze**2) ** 0.5 / 2)
    assert cloze > 3 * law


def test_chance_of_letters_sets_and_free_text() -> None:
    subjects = {
        "single": {"labels": "ABCDE"},
        "sets": {"kind": "multi"},
        "seven": {"kind": "blanks", "labels": "ABCDEFG"},
        "text": {"kind": "cloze", "labels": ""},
    }
    task = exam("micro", {}, subjects=subjects)
    written = {"logprobs": dict[str, float](), "text": ""}
    cases = [
        (verdict("e/test/single/0", True), 1 / 4),  # as many as were scored
        (replace(verdict("e/test/single/0", True), **written), 1 / 5),
        (replace(verdict("e/test/single/0", True, gold="AB"), **written), 1 / 31),
        (replace(verdict("e/test/sets/0", True, gold="AB"), **written), 1 / 15),
        (replace(verdict("e/test/sets/0", True), **written), 1 / 15),
        (replace(verdict("e/test/seven/0#2", True), **written), 1 / 7),
        (replace(verdict("e/test/text/0", True), **written), 0.0),
    ]
    strings = dict.fromkeys(["A", "AB", "ABC", "AC", "B", "BC", "C"], -1.0)
    sequence = replace(verdict("e/test/sets/0", True, gold="AB"), logprobs=strings)
    for one, expected in [*cases, (sequence, 1 / 7)]:
        assert metrics.chance([one], task) == pytest.approx(expected)


def test_letters_are_counted_for_written_answers_too() -> None:
    task = exam("micro", {"law": 1})
    records = [
        replace(verdict("e/test/law/0", True, gold="AB"), logprobs={}, prediction=["A", "B"]),
        replace(verdict("e/test/law/1", False, gold="C"), logprobs={}, prediction=[]),
    ]
    found = summary(task, records, {"law": 2})
    assert found["letters"]["B"] == {"predicted": 1, "gold": 1}
    assert found["letters"]["C"] == {"predicted": 0, "gold": 1}
    assert found["choice_mass"] == 0.5


def test_rows_without_a_label_are_named_with_the_reason() -> None:
    task = exam("micro", {"law": 1})
    found = summary(task, records_of({"law": [True, None, False]}), {"law": 3})
    assert found["unlabelled"] == {"exam/test/law/1": "no gold label in the published file"}
    none = summary(task, records_of({"law": [None, None]}), {"law": 2})
    assert "unlabelled" not in none  # `labels` says that no row has one


@pytest.mark.real
def test_every_row_of_agieval_is_scored_or_named(real_data: Path) -> None:
    prepared = prepare("agieval", Selection(data=real_data))
    rng = random.Random(8269)
    records = [
        record(id, item.subject, item.answer, rng.choice(item.labels) if item.labels else "1")
        for some in prepared.items.values()
        for item in some
        for id in item.record_ids()
    ]
    found = summary(prepared.task, records, Counter(r.subject for r in records))
    assert found["n"] == 8269
    assert found["unlabelled"] == {
        "agieval/test/jec-qa-kd/211": "no gold label in the published file"
    }
    assert sum(e["n"] for e in found["subjects"].values()) + 1 == 8269
    assert len(found["subjects"]) == 21
    assert found["metrics"]["acc/micro"]["n"] == 8268


def test_a_summary_follows_from_the_records_bit_for_bit() -> None:
    task = exam("points", {"cloze": 1.5, "law": 4})
    rng = random.Random(3)
    records = sub_questions("cloze", [[rng.random() < 0.5 for _ in range(7)] for _ in range(9)])
    records += records_of({"law": [rng.random() < 0.5 for _ in range(31)]})
    expected = {"cloze": 63, "law": 31}
    once = json.dumps(summary(task, records, expected))
    read = [Record(**json.loads(json.dumps(asdict(record)))) for record in records]
    assert json.dumps(summary(task, read, expected)) == once
