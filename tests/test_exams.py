"""How rows become items, and items of several blanks their sub-questions: no file needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite.catalog import load_task
from ceval_suite.exams import agieval_item, gaokao_item, parts, split_options
from ceval_suite.schema import Item

STYLES = ["({})", "（{}）", "{}．", "{}.", "{}、", "{}:", "{}：", "{}。", "{} ", " {}．", "({}) "]
PLAIN = st.text("甲乙丙丁 xyz0123456789", min_size=1, max_size=12).map(lambda t: "z" + t)


@given(
    bodies=st.lists(PLAIN, min_size=2, max_size=7),
    style=st.sampled_from(STYLES),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_permutation_of_printed_letters_names_the_right_texts(
    bodies: list[str], style: str, random: Any
) -> None:
    letters = list("ABCDEFG"[: len(bodies)])
    random.shuffle(letters)
    options = tuple(style.format(a) + body for a, body in zip(letters, bodies, strict=True))
    labels, choices = split_options(options)
    assert labels == tuple(letters)
    assert [choice.strip() for choice in choices] == [body.strip() for body in bodies]


@given(st.lists(PLAIN, min_size=2, max_size=7))
@settings(max_examples=40, deadline=None)
def test_options_without_letters_are_labelled_by_position_and_kept(bodies: list[str]) -> None:
    assert split_options(tuple(bodies)) == (tuple("ABCDEFG"[: len(bodies)]), tuple(bodies))


@pytest.mark.parametrize(
    ("label", "answer", "kind"),
    [
        ("C", ("C",), "single"),
        ("A B D", ("A", "B", "D"), "multi"),
        (["B", "A"], ("A", "B"), "multi"),
        (["A", "。"], ("A",), "single"),
        ([], (), "single"),
        (None, (), "single"),
    ],
)
def test_agieval_labels_of_every_published_form_become_sorted_letters(
    label: Any, answer: tuple[str, ...], kind: str
) -> None:
    row = {"question": "?", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": label}
    item = agieval_item("x/test/y/0", "y", load_task("agieval").subjects["aqua-rat"], row)
    assert (item.answer, item.kind) == (answer, kind)


@pytest.mark.parametrize(
    ("label", "answer", "gold"),
    [
        (None, "$5$;$10$", ("$5$;$10$",)),
        ("", "7", ("7",)),
        ("8", "7", ("8",)),
        (None, None, ()),
        (None, "", ()),
        ("B", None, ("B",)),
    ],
)
def test_a_cloze_row_is_answered_by_its_label_or_else_its_answer(
    label: Any, answer: Any, gold: tuple[str, ...]
) -> None:
    row = {"question": "?", "options": None, "label": label, "answer": answer}
    item = agieval_item("x/test/y/0", "y", load_task("agieval").subjects["math"], row)
    assert (item.answer, item.kind, item.labels) == (gold, "cloze", ())
    assert item.record_ids() == ("x/test/y/0",)


def entry(subject: str, answer: list[str], **more: Any) -> Item:
    table = load_task("gaokao").subjects[subject]
    example = {"question": "36. A. a B. b\n", "answer": answer, **more}
    return gaokao_item("gaokao/test/x/3", "x", table, example)


READING = "2010-2022_English_Reading_Comp"


def test_sub_questions_know_their_place_and_the_answers_before_them() -> None:
    item = entry(READING, ["B", "A", "D"], score=2, year="2019", analysis="why")
    assert item.kind == "blanks"
    first, second, third = parts(item)
    assert [p.id for p in (first, second, third)] == [f"gaokao/test/x/3#{k}" for k in range(3)]
    assert [p.answer for p in (first, second, third)] == [("B",), ("A",), ("D",)]
    assert [p.part for p in (first, second, third)] == [1, 2, 3]
    assert [p.before for p in (first, second, third)] == [(), ("B",), ("B", "A")]
    for one in (first, second, third):
        assert (one.kind, one.parts, one.points, one.year) == ("single", 3, 2.0, "2019")
        assert (one.question, one.labels, one.cluster) == (item.question, tuple("ABCD"), item.id)
        assert one.record_ids() == (one.id,)


def test_sub_questions_of_a_passage_share_its_cluster() -> None:
    item = entry(READING, ["B", "A"])
    shared = Item(id="i", subject="x", question="?", labels=item.labels, answer=item.answer)
    (only,) = parts(shared)
    assert only is shared
    passage = Item(
        id="i", subject="x", question="?", answer=("A", "B"), kind="blanks", cluster="of-a-passage"
    )
    assert {part.cluster for part in parts(passage)} == {"of-a-passage"}


@given(st.lists(st.sampled_from("ABCDEFG"), min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_sub_questions_hold_all_of_the_answers_and_points_of_their_item(letters: list[str]) -> None:
    item = entry("2012-2022_English_Cloze_Test", letters, score=2)
    found = parts(item)
    assert [letter for part in found for letter in part.answer] == letters
    assert sum(part.points for part in found) == 2 * len(letters)
    assert tuple(part.id for part in found) == item.record_ids()
    assert all(part.before + part.answer == item.answer[: part.part] for part in found)


def test_one_answer_in_a_file_of_several_is_one_question_without_a_number() -> None:
    item = entry("2010-2022_Chinese_Lang_and_Usage_MCQs", ["C"])
    assert (item.kind, item.record_ids(), parts(item)) == ("single", ("gaokao/test/x/3",), [item])


def test_a_set_of_letters_is_one_question() -> None:
    item = entry("2010-2022_Physics_MCQs", ["CA"])
    assert (item.kind, item.answer, parts(item)) == ("multi", ("A", "C"), [item])


@pytest.mark.parametrize(
    ("subject", "answer"),
    [(READING, []), ("2010-2022_Biology_MCQs", []), ("2010-2022_Biology_MCQs", ["A", "B"])],
)
def test_a_question_without_its_number_of_answers_is_no_item(
    subject: str, answer: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"{len(answer)} answers to one question"):
        entry(subject, answer)
