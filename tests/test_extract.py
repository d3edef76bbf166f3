"""Answers are read off what a model wrote exactly as the official rules say, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import written_texts as written
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite import catalog
from ceval_suite.catalog import load_prompts
from ceval_suite.errors import ConfigError
from ceval_suite.extract import predict
from ceval_suite.schema import Item, Kind
from ceval_suite.specs import Rule, Subject, Template

TYPES = {"single": "single_choice", "multi": "multi_choice", "blanks": "multi_question_choice"}

Read = Callable[[str], list[str]]


def item(kind: Kind, labels: str = "ABCD", blanks: int = 1, texts: Sequence[str] = ()) -> Item:
    return Item(
        id="t/test/s/0",
        subject="s",
        question="q",
        labels=tuple(labels),
        choices=tuple(texts),
        kind=kind,
        answer=("A",) * blanks,
    )


def reads(
    task: str,
    protocol: str,
    kind: Kind,
    *,
    language: str = "zh",
    shots: int = 5,
    type: str = "",
    of: Kind | None = None,
    labels: str = "ABCD",
    blanks: int = 1,
    texts: Sequence[str] = (),
) -> Read:
    """What a protocol reads in a text that answers an item of a kind, in a file `of` a kind."""
    return partial(
        predict,
        item=item(kind, labels, blanks, texts),
        template=load_prompts(task)[protocol],
        subject=Subject(kind=of or kind, type=type),
        language=language,
        shots=shots,
    )


agieval = partial(reads, "agieval")
gaokao = partial(reads, "gaokao", shots=0)
one = partial(gaokao, kind="single", type="single_choice")
one_of = partial(gaokao, kind="single", of="blanks", type="multi_question_choice")
three = partial(gaokao, kind="blanks", type="multi_question_choice", blanks=3)
five = partial(gaokao, kind="blanks", type="five_out_of_seven", blanks=5, labels="ABCDEFG")
physics = partial(gaokao, kind="multi", type="multi_choice")

AGIEVAL = {
    "few-shot-en": (agieval("official-script", "single", language="en"), written.AGIEVAL_EN),
    "few-shot-zh": (agieval("official-script", "single"), written.AGIEVAL_ZH),
    "zero-shot": (agieval("official-script", "single", shots=0), written.AGIEVAL_ZERO),
    "zero-shot-cot": (
        agieval("official-zero-shot-cot", "single", shots=0),
        written.AGIEVAL_ZERO,
    ),
    "cot-en": (agieval("official-cot", "single", language="en"), written.AGIEVAL_COT_EN),
    "cot-zh": (agieval("official-cot", "single"), written.AGIEVAL_COT_ZH),
    "multi": (agieval("official-script", "multi"), written.AGIEVAL_MULTI),
    "multi-cot": (agieval("official-cot", "multi"), written.AGIEVAL_COT_MULTI),
    "cloze": (agieval("official-script", "cloze"), written.AGIEVAL_CLOZE),
    "cloze-zero-shot": (
        agieval("official-script", "cloze", shots=0),
        written.AGIEVAL_CLOZE_ZERO,
    ),
    "cloze-cot": (agieval("official-cot", "cloze"), written.AGIEVAL_COT_CLOZE),
    "full-width": (agieval("official-generate", "single"), written.AGIEVAL_WIDE),
    "full-width-multi": (agieval("official-generate", "multi"), written.AGIEVAL_WIDE_MULTI),
    "colossal": (agieval("colossal", "single", language="en"), written.COLOSSAL),
}
GAOKAO = {
    "single": (one("official-script"), written.GAOKAO_SINGLE),
    "single-full-width": (one("official-generate"), written.GAOKAO_SINGLE_WIDE),
    "one-of-several": (one_of("official-script"), written.GAOKAO_ONE_OF_SEVERAL),
    "three-script": (three("official-script"), written.GAOKAO_THREE_SCRIPT),
    "three": (three("official-generate"), written.GAOKAO_THREE),
    "five-script": (five("official-script"), written.GAOKAO_FIVE_SCRIPT),
    "five": (five("official-generate"), written.GAOKAO_FIVE),
    "physics-script": (physics("official-script"), written.GAOKAO_PHYSICS_SCRIPT),
    "physics": (physics("official-generate"), written.GAOKAO_PHYSICS),
}
CHINESE = {
    "ceval": (
        reads("ceval", "official-generate", "single", texts=written.OPTIONS),
        written.CEVAL_CHAT,
    ),
    "ceval-cot": (
        reads("ceval", "official-cot", "single", texts=written.OPTIONS),
        written.CEVAL_COT,
    ),
    "cmmlu": (reads("cmmlu", "official-generate", "single"), written.CMMLU),
    "cmmlu-cot": (reads("cmmlu", "official-cot", "single"), written.CMMLU),
}
TABLES = AGIEVAL | GAOKAO | CHINESE


def shown(prediction: Sequence[str]) -> str:
    return "".join(letter or "-" for letter in prediction)


@pytest.mark.parametrize("name", TABLES)
def test_what_models_write_is_read_as_the_official_rules_say(name: str) -> None:
    read, table = TABLES[name]
    wrong = [(text, shown(read(text)), is_) for text, is_ in table if shown(read(text)) != is_]
    assert wrong == []
    assert len({text for text, _ in table}) == len(table)


def test_each_family_has_at_least_150_cases() -> None:
    for family in (AGIEVAL, GAOKAO, CHINESE):
        assert len({(id(table), text) for _, table in family.values() for text, _ in table}) >= 150


# ------------------------------------------------------------------------------ whatever is written


def every() -> list[tuple[str, str, Kind, Read]]:
    """Every protocol that reads texts, for each kind, type, language and number of shots."""
    out: list[tuple[str, str, Kind, Read]] = []
    for task in ("agieval", "gaokao", "ceval", "cmmlu"):
        for name, template in load_prompts(task).items():
            for kind in template.extract:
                for language, shots in (("en", 5), ("zh", 5), ("zh", 0)):
                    for type in (TYPES[kind], "five_out_of_seven") if task == "gaokao" else ("",):
                        read = reads(
                            task,
                            name,
                            kind,
                            language=language,
                            shots=shots,
                            type=type,
                            blanks=3 if kind == "blanks" else 1,
                            texts=("一", "二", "三", "四"),
                        )
                        out.append((task, name, kind, read))
    return out


EVERY = every()
PIECES = [
    *"ABCDEFGXabＡＢ \n\r\t。.,：:$=\\{}()（）12是为选",
    *(
        "答案",
        "答案是",
        "所以答案是",
        "answer is ",
        "【答案】",
        "（1）",
        "（2）",
        "（3）",
        "\\boxed{",
    ),
    *("The answer is therefore", "正确", "当选", "不是", "一", "<eoa>", "让我们一步一步思考"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@settings(max_examples=100, deadline=None)
def test_a_prediction_is_made_of_the_items_labels_in_the_form_of_its_kind(text: str) -> None:
    for task, name, kind, read in EVERY:
        found = read(text)
        if kind == "cloze":
            assert len(found) <= 1
            assert all(found)
        elif kind == "blanks":
            assert len(found) in (0, 3)
            assert not found or any(found)
            assert all(letter in ("", *"ABCD") for letter in found)
        else:
            assert set(found) <= set("ABCD")
            if kind == "single":
                assert len(found) <= 1
            elif (task, name) != ("gaokao", "official-script"):
                assert found == sorted(set(found))
        assert read(text) == found


HARD = (
    *("A", " ", "\n", "1", "答案是", "所以答案是", "answer is ", "【答案】", "【答案】 ", "（1）"),
    *("：", "$", "9", "{", "\\boxed{", "Ａ", "1\n", "答案是x。", "A当", "选择", "答案为 "),
)


@pytest.mark.parametrize("piece", HARD)
def test_long_texts_are_read_in_linear_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    for task, name, kind, read in EVERY:
        begun = time.process_time()
        read(text + "x")
        # quadratic time would be minutes; what is linear takes some tenths of a second
        assert time.process_time() - begun < 5, (task, name, kind)


# ------------------------------------------------------------------------------ the keys of a rule


def template(rules: dict[str, list[dict[str, object]]], **more: object) -> Template:
    wording = {"source": "test", "question": "q", "answer": "a", "extract": rules}
    return Template.model_validate(wording | more)


def answer(text: str, *rules: dict[str, object], kind: Kind = "single", blanks: int = 1) -> str:
    made = template({kind: list(rules)})
    of = Subject(kind=kind, type="t")
    return shown(predict(text, item(kind, blanks=blanks), made, of, "zh", shots=0))


def test_the_first_rule_that_finds_something_counts() -> None:
    rules: list[dict[str, object]] = [{"find": "x([A-Z])"}, {"find": "[A-D]"}]
    assert answer("A xB", *rules) == "B"
    assert answer("A x", *rules) == "A"
    # what is found and is no label is no answer, and ends the search
    assert answer("A xE", *rules) == ""
    # unless only labels are to be found
    assert answer("A xE", {"find": "x([A-Z])", "labels": True}, rules[1]) == "A"


def test_a_rule_without_its_place_is_passed_over_and_one_with_it_is_the_last() -> None:
    rules: list[dict[str, object]] = [{"within": "<.*>", "find": "[A-D]"}, {"find": "[A-D]"}]
    assert answer("A <B>", *rules) == "B"
    assert answer("A B", *rules) == "A"
    assert answer("A <>", *rules) == ""


def test_rules_are_for_a_language_and_for_official_types() -> None:
    assert answer("A", {"find": "A", "language": "en"}) == ""
    assert answer("A", {"find": "A", "language": "zh"}) == "A"
    assert answer("A", {"find": "A", "types": ["other"]}) == ""
    assert answer("A", {"find": "A", "types": ["other", "t"]}) == "A"


def test_matches_are_the_first_the_last_or_as_many_as_wanted() -> None:
    def letters(which: str, count: str = "any") -> dict[str, object]:
        return {"find": "[A-D]", "which": which, "count": count}

    assert answer("ABC", letters("first")) == "A"
    assert answer("ABC", letters("last")) == "C"
    assert answer("ABC", letters("all"), kind="multi") == "ABC"
    assert answer("ABC", letters("all", "exact")) == ""
    assert answer("B", letters("all", "exact")) == "B"
    blanks = partial(answer, kind="blanks", blanks=2)
    assert [blanks(t, letters("all")) for t in ("", "A", "AB", "ABC")] == ["", "A-", "AB", "AB"]
    enough = [blanks(t, letters("all", "enough")) for t in ("A", "AB", "ABC")]
    assert enough == ["", "AB", "AB"]
    exact = [blanks(t, letters("all", "exact")) for t in ("A", "AB", "ABC")]
    assert exact == ["", "AB", ""]


def test_numbers_say_which_blank_a_letter_belongs_to() -> None:
    rule: dict[str, object] = {"find": r"(?P<number>\d)([A-Z])"}
    blanks = partial(answer, kind="blanks", blanks=3)
    assert blanks("3A 1B", rule) == "B-A"
    assert blanks("1A 1C", rule) == "C--"
    assert blanks("1A 4B", rule) == ""  # not numbers of the blanks
    assert blanks("0A", rule) == ""
    assert blanks("2X", rule) == ""


def test_letters_stay_as_written_only_where_the_order_matters() -> None:
    rule: dict[str, object] = {"find": "[A-D]", "which": "all"}
    assert answer("CAC", rule, kind="multi") == "AC"
    assert answer("CAC", rule | {"ordered": True}, kind="multi") == "CAC"


def test_a_file_of_one_answer_is_read_so_by_the_script_whatever_its_items_have() -> None:
    for protocol, found in (("official-script", "A"), ("official-generate", "AD")):
        assert shown(agieval(protocol, "multi", of="single")("答案是 AD")) == found


def test_templates_without_rules_for_a_kind_read_nothing() -> None:
    of = Subject()
    assert predict("A", item("single"), template({}), of, "zh", shots=0) == []
    assert predict("A", item("multi"), template({"single": [{}]}), of, "zh", shots=0) == []


def test_rules_without_shots_may_be_others() -> None:
    made = template(
        {"single": [{"find": "[A-D]"}]},
        zero_shot={"extract": {"single": [{"find": "[A-D]", "which": "last"}]}},
    )
    found = [predict("AB", item("single"), made, Subject(), None, shots=n) for n in (5, 1, 0)]
    assert found == [["A"], ["A"], ["B"]]


@pytest.mark.parametrize("key", ["find", "remove", "within"])
def test_a_bad_expression_is_named_with_its_file_and_key(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "own.yaml").write_text(
        "mine: {source: me, question: q, answer: a, "
        f"extract: {{single: [{{find: A}}, {{{key}: '[A'}}]}}}}\n"
    )
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    (problem,) = catalog.check()
    assert "own.yaml: mine: extract.single.1." + key in problem
    assert "'[A' is not a regular expression (unterminated character set" in problem
    with pytest.raises(ConfigError):
        load_prompts("own")


def test_one_of_several_expressions_that_is_bad_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\(B' is not a regular expression"):
        Rule.model_validate({"find": ["A", "(B"]})
    with pytest.raises(ValueError, match="Input should be"):
        Rule.model_validate({"reading": "box"})
