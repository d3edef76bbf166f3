"""What is said about methods, extraction and other judges follows from the records alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import methods, metrics, stats
from ceval_suite.catalog import load_task
from ceval_suite.methods import Agreement, Answer
from ceval_suite.schema import Record
from tests.finished_runs import record


def answers(predictions: Sequence[str], gold: str) -> dict[str, Answer]:
    return {
        str(i): Answer(tuple(p), p == g, str(i))
        for i, (p, g) in enumerate(zip(predictions, gold, strict=True))
    }


def test_agreement_by_hand() -> None:
    #         both  only one  only two  both wrong, alike  both wrong  both silent
    gold = "ABCDAB"
    one = answers(["A", "B", "A", "A", "B", ""], gold)
    two = answers(["A", "C", "C", "A", "C", ""], gold)
    found = methods.agreement(one, two)
    # chance: A 3 and 2, B 2 and 0, C 0 and 3, silent 1 and 1 → (6 + 0 + 0 + 1) / 36
    kappa = (3 / 6 - 7 / 36) / (1 - 7 / 36)
    assert found == Agreement(
        n=6,
        both=1,
        first=1,
        second=1,
        neither=3,
        same=3,
        silent=1,
        kappa=pytest.approx(kappa, abs=1e-12),
    )


def test_only_common_items_count() -> None:
    one = answers(["A", "B", "C"], "ABC")
    two = {"1": Answer(("B",), True, "1"), "9": Answer(("A",), True, "9")}
    assert methods.agreement(one, two).n == 1


@pytest.mark.parametrize("alike", [["A", "A", "A"], []])
def test_kappa_is_undefined_where_chance_alone_would_always_agree(alike: list[str]) -> None:
    same = answers(alike, "ABC"[: len(alike)])
    assert methods.agreement(same, same).kappa is None


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCD")), min_size=2))
def test_kappa_is_one_for_equals_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    one = answers([a for a, _ in pairs], "A" * len(pairs))
    two = answers([b for _, b in pairs], "A" * len(pairs))
    found, turned = methods.agreement(one, two), methods.agreement(two, one)
    assert found.kappa == turned.kappa
    assert (found.first, found.second) == (turned.second, turned.first)
    assert found.both + found.first + found.second + found.neither == len(pairs)
    if found.kappa is not None:
        assert -1 - 1e-12 <= found.kappa <= 1
    itself = methods.agreement(one, one)
    assert itself.kappa in (None, 1.0)


def test_kappa_of_random_answers_is_about_zero() -> None:
    rng = random.Random(1960)
    draws = [["".join(rng.choice("ABCD")) for _ in range(5000)] for _ in range(2)]
    one, two = (answers(draw, "A" * 5000) for draw in draws)
    assert methods.agreement(one, two).kappa == pytest.approx(0, abs=0.03)


def either(id: str, gold: str, exact: str, first: str) -> Record:
    """A record of ColossalEval's combined metric: extraction, and the first token beside it."""
    right = gold in (exact, first)
    return record(
        f"exam/test/law/{id}",
        "law",
        [gold],
        exact or first,
        correct=right,
        score=float(right),
        logprobs=dict.fromkeys("ABCD", -1.0),
        text=exact,
        predictions={"exact": [*exact], "first-token": [first]},
    )


COMBINED = [
    either("0", "A", "A", "A"),
    either("1", "B", "B", "C"),
    either("2", "C", "", "C"),
    either("3", "D", "A", "B"),
]


def test_methods_have_an_accuracy_each_and_either_is_any_of_them() -> None:
    found = methods.block(COMBINED)
    assert list(found["accuracy"]) == ["exact", "first-token", "either"]
    values = {name: one["value"] for name, one in found["accuracy"].items()}
    assert values == {"exact": 0.5, "first-token": 0.5, "either": 0.75}
    wilson = stats.wilson(3, 4)
    assert found["accuracy"]["either"]["low"] == wilson.low
    assert found["unanswered"] == {"exact": 1, "first-token": 0}
    (pair,) = found["agreement"]
    assert pair["methods"] == ["exact", "first-token"]
    assert [pair[k] for k in ("n", "both", "first", "second", "neither", "same")] == [
        4,
        1,
        1,
        1,
        1,
        1,
    ]


def test_either_equals_the_records_own_verdict() -> None:
    found = methods.block(COMBINED)
    assert found["accuracy"]["either"]["value"] == sum(bool(r.correct) for r in COMBINED) / 4


def test_a_set_of_letters_is_right_in_any_order() -> None:
    one = record("e/test/law/0", "law", "AB", "BA", predictions={"exact": ["B", "A"]})
    assert methods.of_records([one])["exact"][one.id].right


def test_one_method_has_no_either_and_unlabelled_records_no_verdict() -> None:
    one = record("e/test/law/0", "law", "A", "A", predictions={"exact": ["A"]})
    bare = record("e/test/law/1", "law", "", "A", predictions={"exact": ["A"]})
    found = methods.block([one, bare])
    assert list(found["accuracy"]) == ["exact"]
    assert found["accuracy"]["exact"]["n"] == 1
    assert methods.block([bare]) == methods.block([]) == {}


def written(id: str, prediction: str, text: str | None, **more: Any) -> Record:
    return record(f"exam/test/law/{id}", "law", "A", prediction, text=text, **more)


def test_extraction_counts_answers_and_texts_apart() -> None:
    some = [
        written("0", "A", "答案是A"),
        written("1", "", "不知道", cut=True),
        written("2#0", "A", "（1）A（2）", cut=True),
        written("2#1", "", "（1）A（2）", cut=True),
        written("3", "B", None),  # scored by letters, nothing was written
    ]
    assert methods.extraction(some) == {
        "n": 4,
        "extracted": 2,
        "unanswered": 2,
        "rate": 0.5,
        "texts": 3,
        "cut": 2,
        "cut_rate": pytest.approx(2 / 3),
    }
    assert methods.extraction(some[-1:]) == {}


def test_sub_questions_share_a_text_that_stands_in_one_record_only() -> None:
    some = [written("0#0", "A", "A B"), written("0#1", "B", None)]
    assert [methods.extraction(some)[k] for k in ("n", "extracted", "texts")] == [2, 2, 1]


def test_what_letters_answered_is_not_extracted() -> None:
    # `either` answers by the first token where nothing could be read off the text
    assert methods.extraction(COMBINED)["extracted"] == 3


def test_opinions_name_both_accuracies_and_the_items_that_differ() -> None:
    some = [
        record("m/test/math/0", "math", ["2"], "2", opinions={"sympy": True}),
        record("m/test/math/1", "math", ["3"], "4", opinions={"sympy": True}),
        record("m/test/math/2", "math", ["5"], "6", opinions={"sympy": False}),
        record("m/test/math/3", "math", ["7"], "7"),
        record("m/test/law/0", "law", ["A"], "B"),  # a subject that sympy never judges
    ]
    (name, found), *others = methods.opinions(some).items()
    assert (name, others) == ("sympy", [])
    assert found["official"]["value"] == 0.5
    assert found["opinion"]["value"] == 0.75
    assert found["differ"]["value"] == 0.25
    assert found["silent"] == 1
    assert found["items"] == ["m/test/math/1"]
    assert methods.opinions(some[3:]) == {}


def test_a_summary_has_these_blocks_only_where_they_apply() -> None:
    task = load_task("sample-gaokao")
    subject = next(iter(task.subjects))
    plain = [record(f"sample-gaokao/test/{subject}/0", subject, "A", "A")]
    blocks = {"unlabelled", "extraction", "methods", "opinions"}
    found = metrics.summarize(task, plain, {subject: 1})
    assert not blocks & set(found)
    more = [
        record(
            f"sample-gaokao/test/{subject}/1",
            subject,
            "A",
            "B",
            text="B",
            predictions={"exact": ["B"], "first-token": ["A"]},
            opinions={"sympy": False},
        ),
        record(f"sample-gaokao/test/{subject}/2", subject, "", "B"),
    ]
    found = metrics.summarize(task, plain + more, {subject: 3})
    assert blocks <= set(found)
    assert found["unlabelled"] == {more[1].id: "no gold label in the published file"}
    assert json.loads(json.dumps(found)) == found
