"""A reply becomes a prediction: argmax, ties said aloud, letters in label order."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite.answer import END, Judge
from ceval_suite.catalog import load_task
from ceval_suite.request import BARE, FIRST, TEXT, Prompt, strings
from ceval_suite.schema import Item, Kind, Record, Reply
from ceval_suite.specs import Rule, Template


def judge(task: str = "ceval", **template: Any) -> Judge:
    return Judge(load_task(task), Template(source="test", question="", answer="", **template))


def record(prompt: Prompt, *replies: Reply, by: Judge | None = None) -> Record:
    (found,) = records(prompt, *replies, by=by)
    return found


def records(prompt: Prompt, *replies: Reply, by: Judge | None = None) -> list[Record]:
    return (by or judge()).records(prompt, {r.id: r for r in replies}, prompt.sha256)


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
    return record(prompt, reply, by=judge(match=match))


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
    item = Item(
        id="t/s/x/0", subject="law", question="", labels=("A", "B", "C", "D"), answer=("B",)
    )
    prompt = Prompt(item=item, text="", lead="", continuations=("A", "B", "C", "D"), shots=0)
    reply = Reply(id=item.id, logprobs=(-1.0,) * 4, logits=(1.0, 1.0 + 2**-23, 0.5, 0.0))
    found = record(prompt, reply)
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


PHYSICS = "2010-2022_Physics_MCQs"


def question(kind: Kind, answer: tuple[str, ...], labels: str = "ABCD", **more: Any) -> Item:
    given = {"id": "t/s/x/0", "subject": "law", "question": "?", **more}
    return Item(kind=kind, answer=answer, labels=tuple(labels), **given)


def asked(item: Item, method: Any, **more: Any) -> Prompt:
    given = {"text": "Q", "lead": "", "continuations": (), "shots": 0, **more}
    return Prompt(item=item, method=method, **given)


def spread(chances: dict[str, float]) -> tuple[float, ...]:
    """Log-probabilities of all strings of letters, with and without an end, from chances of steps.

    `chances` has that of each next letter after a string (`A` + `B` under `AB`) and of its end
    (`AB$`); what is not named has almost none.
    """
    names = strings("ABCD")

    def whole(name: str) -> float:
        return sum(math.log(chances.get(name[: k + 1], 1e-6)) for k in range(len(name)))

    return (*map(whole, names), *(whole(n) + math.log(chances.get(n + END, 1e-6)) for n in names))


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ({"A": 0.6, "C": 0.3, "A$": 0.9}, "A"),
        ({"A": 0.6, "AC": 0.5, "A$": 0.4, "AC$": 0.7, "ACD": 0.2}, "AC"),
        ({"B": 0.9, "BC": 0.8, "BCD": 0.7, "BCD$": 0.5}, "BCD"),
        # the likelier whole string starts with the less likely letter: greedy does not look ahead
        ({"A": 0.5, "A$": 0.3, "AB": 0.35, "AB$": 0.9, "D": 0.4, "D$": 1.0}, "AB"),
    ],
)
def test_letters_follow_one_another_until_the_end_is_likelier(
    chances: dict[str, float], expected: str
) -> None:
    prompt = asked(question("multi", ("A", "C")), "sequence", continuations=("",) * 30)
    found = record(prompt, Reply(id="t/s/x/0", logprobs=spread(chances)))
    assert found.prediction == [*expected]
    assert found.correct is (expected == "AC")
    assert len(found.logprobs) == 30
    assert found.logprobs["AC" + END] < found.logprobs["AC"]


@pytest.mark.parametrize(
    ("text", "script", "score"),
    [
        ("【解析】… 【答案】 BD <eoa>", False, 1.0),
        ("【解析】… 【答案】 DB <eoa>", False, 1.0),
        ("【解析】… 【答案】 DB <eoa>", True, 0.5),
        ("【解析】… 【答案】 B <eoa>", False, 0.5),
        ("【解析】… 【答案】 BCD <eoa>", False, 0.0),
        ("【解析】… 【答案】 BCD <eoa>", True, 0.0),
        ("", False, 0.0),
        ("", True, 0.0),
    ],
)
def test_some_right_letters_and_no_wrong_one_earn_half(
    text: str, script: bool, score: float
) -> None:
    rule = {"remove": r"\s+", "within": "【答案】.*", "find": "[A-D]", "which": "all"}
    rules = {"multi": [Rule(**rule, ordered=script)]}  # type: ignore[arg-type]
    by = judge("gaokao", methods={"multi": "generate"}, extract=rules, script=script)
    item = question("multi", ("B", "D"), subject=PHYSICS)
    found = record(asked(item, "generate"), Reply(id=item.id, text=text), by=by)
    assert found.score == score
    assert found.correct is (score == 1.0)
    assert found.text == text
    assert found.choice_mass is None
    # no other benchmark gives points for some of the letters
    by = judge("ceval", methods={"multi": "generate"}, extract=rules, script=script)
    other = question("multi", ("B", "D"))
    found = record(asked(other, "generate"), Reply(id=other.id, text=text), by=by)
    assert found.score == float(score == 1.0)


def test_each_blank_has_a_record_of_its_own() -> None:
    rules = {"blanks": [Rule(find="[A-D]", which="all")]}
    by = judge("gaokao", methods={"blanks": "generate"}, extract=rules)
    item = question("blanks", ("A", "C", "B"), subject="2010-2022_English_Reading_Comp")
    reply = Reply(id=item.id, text="A D", finished=False)
    first, second, third = records(asked(item, "generate"), reply, by=by)
    assert [r.id for r in (first, second, third)] == ["t/s/x/0#0", "t/s/x/0#1", "t/s/x/0#2"]
    assert [r.prediction for r in (first, second, third)] == [["A"], ["D"], []]
    assert [r.answer for r in (first, second, third)] == [["A"], ["C"], ["B"]]
    assert [r.correct for r in (first, second, third)] == [True, False, False]
    assert all(r.cut and r.text == "A D" for r in (first, second, third))


def test_free_answers_are_compared_by_the_official_rule_with_a_second_opinion() -> None:
    rules = {"cloze": [Rule(past=["The answer is therefore"])]}
    by = judge("agieval", methods={"cloze": "generate"}, extract=rules)
    item = question("cloze", ("\\frac{1}{2}",), labels="", subject="math")
    for text, correct, second in (("1/2", True, True), ("2/4", False, True), ("3", False, False)):
        reply = Reply(id=item.id, text=f"The answer is therefore {text}")
        found = record(asked(item, "generate"), reply, by=by)
        assert found.prediction == [text]
        assert found.correct is correct
        assert found.opinions == {"sympy": second}


def test_either_is_right_when_one_of_the_two_is() -> None:
    by = judge(methods={"single": "either"}, extract={"single": [Rule(find="[A-D]")]})
    item = question("single", ("C",))
    for text, best, correct in (("C", "A", True), ("A", "C", True), ("B", "A", False)):
        logits = tuple(float(label == best) for label in "ABCD")
        prompt = asked(item, "either", continuations=tuple("ABCD"))
        reply = Reply(id=item.id, logprobs=logits, logits=logits, text=text)
        found = record(prompt, reply, by=by)
        assert found.predictions == {"exact": [text], "first-token": [best]}
        assert found.correct is correct
        # the same, asked as two requests because a lead stands before the letter
        text_only = Reply(id=item.id + TEXT, text=text)
        letters = Reply(id=item.id, logprobs=logits, logits=logits)
        assert record(prompt, letters, text_only, by=by) == found


@pytest.mark.parametrize(
    ("normalise", "expected"), [("none", "A"), ("token", "B"), ("byte", "C"), ("pmi", "D")]
)
def test_whole_options_are_compared_as_the_protocol_says(normalise: Any, expected: str) -> None:
    by = judge(methods={"single": "continuation"}, normalise=normalise)
    item = question("single", ("B",))
    options = (" 2", " ab cd", " a long option of many bytes", " x")
    logprobs = (-3.0, -4.0, -9.0, -5.0)
    reply = Reply(id=item.id, logprobs=logprobs, lengths=(1, 4, 6, 1))
    bare = Reply(id=item.id + BARE, logprobs=(-3.5, -4.5, -9.5, -8.0))
    prompt = asked(item, "continuation", continuations=options, bare="A:")
    found = record(prompt, reply, bare, by=by)
    assert found.prediction == [expected]
    assert found.logprobs["B"] == -4.0


def test_an_answer_after_a_second_question_keeps_both_texts() -> None:
    rules = {"single": [Rule(find="[A-D]")]}
    by = judge(methods={"single": "generate"}, extract=rules)
    prompt = asked(question("single", ("D",)), "generate", second="\nSo, the answer is")
    first = Reply(id="t/s/x/0" + FIRST, text="A is wrong.")
    found = record(prompt, first, Reply(id="t/s/x/0", text=" D"), by=by)
    assert found.prediction == ["D"]
    assert found.text == "A is wrong.\nSo, the answer is D"


def test_what_has_no_gold_label_is_neither_right_nor_wrong() -> None:
    by = judge(methods={"multi": "generate"}, extract={"multi": [Rule(find="[A-D]", which="all")]})
    item = question("multi", ())
    found = record(asked(item, "generate"), Reply(id=item.id, text="AB"), by=by)
    assert (found.prediction, found.correct, found.score) == (["A", "B"], None, None)


def test_options_of_the_same_text_are_asked_once_and_tie() -> None:
    by = judge(methods={"single": "continuation"}, normalise="token")
    item = question("single", ("C",))
    prompt = asked(item, "continuation", continuations=(" one", " two", " one", " three"))
    assert prompt.request().continuations == (" one", " two", " three")
    reply = Reply(id=item.id, logprobs=(-2.0, -4.0, -9.0), lengths=(1, 1, 3))
    found = record(prompt, reply, by=by)
    assert found.prediction == ["A"]
    assert found.tie is True
    assert found.logprobs == {"A": -2.0, "B": -4.0, "C": -2.0, "D": -9.0}


def test_a_record_says_which_passage_it_shares_and_nothing_where_its_item_stands_alone() -> None:
    def of(id: str, cluster: str) -> str:
        item = Item(id=id, subject="law", question="?", labels=("A", "B"), answer=("A",))
        prompt = Prompt(
            item=replace(item, cluster=cluster),
            text="Q?",
            lead="",
            continuations=("A", "B"),
            shots=0,
        )
        return record(prompt, Reply(id=id, logprobs=(-1.0, -2.0), logits=(2.0, 1.0))).cluster

    assert of("x/test/law/0", "") == ""
    assert of("x/test/law/0", "5f3a") == "5f3a"
    assert of("x/test/law/0#1", "x/test/law/0") == ""
    assert of("x/test/law/0#1", "5f3a") == "5f3a"
