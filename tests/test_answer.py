"""A reply becomes a prediction: argmax, ties said aloud, letters in label order."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite.answer import record
from ceval_suite.prompt import Prompt
from ceval_suite.schema import Item, Kind, Record, Reply


def judged(
    scores: tuple[float, ...],
    *,
    labels: str = "ABCD",
    answer: str = "C",
    kind: Kind = "single",
    match: str = "equal",
    logits: bool = True,
) -> Record:
    item = Item(
        id="law/test/law/0",
        subject="law",
        question="?",
        labels=tuple(labels),
        answer=tuple(answer),
        kind=kind,
    )
    prompt = Prompt(
        item=item,
        text="Q?\n答案：",
        lead=" ",
        continuations=tuple(f" {x}" for x in labels),
        shots=3,
    )
    reply = Reply(
        id=item.id,
        logprobs=tuple(s - 10 for s in scores) if logits else scores,
        logits=scores if logits else (),
        num_tokens=17,
        choice_mass=0.25,
    )
    return record(prompt, reply, match)


def test_the_highest_logit_is_the_prediction() -> None:
    found = judged((1.0, 2.0, 3.5, 3.0))
    assert found == Record(
        id="law/test/law/0",
        subject="law",
        answer=["C"],
        prediction=["C"],
        correct=True,
        score=1.0,
        logits={"A": 1.0, "B": 2.0, "C": 3.5, "D": 3.0},
        logprobs={"A": -9.0, "B": -8.0, "C": -6.5, "D": -7.0},
        choice_mass=0.25,
        tie=False,
        text=None,
        shots=3,
        prompt_tokens=17,
        prompt_sha256=hashlib.sha256("Q?\n答案： ".encode()).hexdigest(),
    )


def test_a_wrong_letter_scores_nothing() -> None:
    found = judged((9.0, 2.0, 3.0, 3.0))
    assert (found.prediction, found.correct, found.score, found.tie) == (["A"], False, 0.0, False)


@pytest.mark.parametrize(
    ("scores", "first"),
    [((2, 2, 1, 0), "A"), ((0, 2, 1, 2), "B"), ((0, 1, 2, 2), "C"), ((5, 5, 5, 5), "A")],
)
def test_an_exact_tie_is_flagged_and_goes_to_the_first_letter(
    scores: tuple[float, ...], first: str
) -> None:
    found = judged(scores)
    assert found.tie is True
    assert found.prediction == [first]


def test_a_tie_below_the_best_is_no_tie() -> None:
    assert judged((1.0, 1.0, 3.0, 1.0)).tie is False


def test_a_difference_of_one_float32_step_is_no_tie() -> None:
    found = judged((1.0, 1.0 + 2**-23, 0.0, 0.0))
    assert found.tie is False
    assert found.prediction == ["B"]


def test_permuted_labels_keep_their_own_scores() -> None:
    # LogiQA prints A, C, B, D in 19 rows of each language
    found = judged((1.0, 7.0, 3.0, 4.0), labels="ACBD", answer="C")
    assert found.prediction == ["C"]
    assert found.correct is True
    assert list(found.logits.items()) == [("A", 1.0), ("B", 3.0), ("C", 7.0), ("D", 4.0)]


def test_a_tie_among_permuted_labels_goes_by_letter_not_by_print() -> None:
    found = judged((1.0, 7.0, 7.0, 4.0), labels="ACBD")
    assert found.prediction == ["B"]
    assert found.tie is True


@pytest.mark.parametrize("best", range(5))
def test_five_labels(best: int) -> None:
    scores = tuple(float(i == best) for i in range(5))
    found = judged(scores, labels="ABCDE", answer="E")
    assert found.prediction == ["ABCDE"[best]]
    assert found.correct is (best == 4)
    assert list(found.logits) == list("ABCDE")


def test_logprobs_decide_when_a_continuation_is_not_one_token() -> None:
    found = judged((-4.0, -2.0, -8.0, -3.0), logits=False, answer="B")
    assert found.prediction == ["B"]
    assert found.correct is True
    assert found.logits == {}
    assert found.logprobs == {"A": -4.0, "B": -2.0, "C": -8.0, "D": -3.0}


def test_raw_logits_decide_where_rounded_logprobs_would_tie() -> None:
    item = Item(id="t/s/x/0", subject="x", question="", labels=("A", "B", "C", "D"), answer=("B",))
    prompt = Prompt(item=item, text="", lead="", continuations=("A", "B", "C", "D"), shots=0)
    reply = Reply(id=item.id, logprobs=(-1.0,) * 4, logits=(1.0, 1.0 + 2**-23, 0.5, 0.0))
    found = record(prompt, reply, "equal")
    assert (found.prediction, found.tie) == (["B"], False)


def test_match_any_accepts_each_gold_letter_and_equal_none_of_several() -> None:
    # lm-eval counts an AGIEval item with several answers as right when the best option is any
    scores = (0.0, 5.0, 1.0, 2.0)
    assert judged(scores, answer="BD", kind="multi", match="any").correct is True
    assert judged(scores, answer="AD", kind="multi", match="any").correct is False
    assert judged(scores, answer="BD", kind="multi", match="equal").correct is False


def test_without_a_gold_label_there_is_a_prediction_and_no_verdict() -> None:
    found = judged((0.0, 5.0, 1.0, 2.0), answer="")
    assert (found.answer, found.prediction) == ([], ["B"])
    assert found.correct is None
    assert found.score is None


LOGIT = st.floats(-50, 50, width=32)


@given(st.lists(LOGIT, min_size=2, max_size=7), st.randoms())
def test_the_order_of_print_never_changes_the_verdict(scores: list[float], random: object) -> None:
    labels = "ABCDEFG"[: len(scores)]
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = judged(tuple(scores), labels=labels, answer="A")
    shuffled = judged(
        tuple(scores[i] for i in order), labels="".join(labels[i] for i in order), answer="A"
    )
    assert straight == shuffled
    assert straight.tie == (scores.count(max(scores)) > 1)
    assert straight.logits[straight.prediction[0]] == max(scores)
