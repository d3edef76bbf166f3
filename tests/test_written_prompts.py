"""Prompts that a model writes after, and letters in sequence, equal the official wordings."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracles
import pytest

from ceval_suite.catalog import load_prompts
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.request import Prompt
from ceval_suite.schema import Request

CAPS = "ABCDEFG"


def prepared(data: Path, task: str, protocol: str, shots: int | None = None) -> Prepared:
    return prepare(task, Selection(protocol, shots, data=data))


def rendered(found: Prepared) -> Iterator[Prompt]:
    for subject in found.subjects:
        yield from map(found.renderer(subject).render, found.items[subject])


def assert_equal(found: Prepared, expected: dict[str, str]) -> None:
    texts = {prompt.item.id: prompt.text for prompt in rendered(found)}
    assert texts.keys() == expected.keys()
    wrong = [id for id, text in texts.items() if text != expected[id]]
    assert not wrong, (len(wrong), texts[wrong[0]], expected[wrong[0]])
    # nothing of this suite's own stands between the prompt and what the model writes
    assert {(p.lead, p.continuations, p.method) for p in rendered(found)} == {("", (), "generate")}


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "protocol", "shots"),
    [
        ("agieval", "official-generate", None),
        ("agieval", "official-generate", 0),
        ("agieval", "official-script", None),
        ("agieval", "official-script", 0),
        ("gaokao", "official-generate", None),
        ("gaokao", "official-script", None),
        ("ceval", "official-generate", 5),
        ("ceval", "official-generate", 0),
        ("cmmlu", "official-generate", 5),
        ("cmmlu", "official-generate", 0),
    ],
)
def test_what_is_written_after_is_the_official_prompt_to_the_byte(
    task: str, protocol: str, shots: int | None, real_data: Path
) -> None:
    given = {} if shots is None else {"shots": shots}
    expected = dict(getattr(oracles, f"official_{task}")(real_data, **given))
    assert_equal(prepared(real_data, task, protocol, shots), expected)


# ------------------------------------------------------------------------------- chain of thought


def explanations(root: Path, task: str) -> list[str]:
    """Rows 2, 4, … of the sheet, as src/dataset_loader.py@9a11e1e reads them: by pandas."""
    import pandas as pd

    column = "sat-en" if task == "sat-en-without-passage" else task
    rows = pd.read_csv(
        root / "agieval" / "few_shot_prompts.csv",
        header=0,
        skiprows=lambda x: x not in (0, 2, 4, 6, 8, 10),
        keep_default_na=False,
    ).replace(r"\n\n", "\n", regex=True)
    return [text for text in rows[column] if text]


def agieval_cot(root: Path, task: str, records: list[dict[str, Any]]) -> Iterator[str]:
    """few-shot-CoT of src/dataset_loader.py@9a11e1e, completion form, `<END>` as the runner has."""
    exam = oracles._exam(task)
    told = "Explanation for Problem {}:   " if exam.words.number[0] == "P" else "问题 {}的解析:   "
    pairs = zip(oracles._agieval_demos(root, task), explanations(root, task), strict=True)
    demos = [
        f"{exam.official_block(demo, n)}{told.format(n)}{why}\n"
        f"{exam.words.verdict}{exam.gold(demo)}\n<END>\n"
        for n, (demo, why) in enumerate(pairs, 1)
    ]
    for record in records:
        yield f"{exam.words.header}\n{''.join(demos)}{exam.official_block(record, len(demos) + 1)}"


def agieval_thinking(task: str, record: dict[str, Any]) -> tuple[str, str]:
    """convert_zero_shot_CoT_stage1 and generate_second_stage_input of the same file."""
    exam = oracles._exam(task)
    english, words = exam.words.number[0] == "P", exam.words
    text = f"{record['passage'] or ''}{words.zero_question}{record['question']}"
    if exam.cloze:
        asked = "A: Let's think step by step." if english else "答案：让我们逐步思考："
        return f"{text}\n{asked}", "Therefore, the answer is" if english else "因此，答案是"
    text += f"{words.zero_options}{' '.join(record['options'])}\n"
    if english:
        return f"{text}Let's think step by step.", "Therefore, among A through E, the answer is"
    last = CAPS[len(record["options"]) - 1]
    return f"{text}从A到{last}, 我们应选择什么？让我们逐步思考：", "因此，从A到D, 我们应选择"


@pytest.mark.real
def test_shots_of_agievals_chain_of_thought_explain_their_answers(real_data: Path) -> None:
    expected = {
        f"agieval/test/{task}/{row}": text
        for task, records in oracles._agieval(real_data).items()
        for row, text in enumerate(agieval_cot(real_data, task, records))
    }
    assert_equal(prepared(real_data, "agieval", "official-cot"), expected)


@pytest.mark.real
@pytest.mark.parametrize("protocol", ["official-zero-shot-cot", "official-generate"])
def test_without_shots_there_is_a_second_stage_on_lines_of_its_own(
    protocol: str, real_data: Path
) -> None:
    found = prepared(real_data, "agieval", protocol, 0)
    records = oracles._agieval(real_data)
    first_stages = dict(oracles.official_agieval(real_data, shots=0))
    for prompt in rendered(found):
        task, row = prompt.item.id.split("/")[2:]
        context, suffix = agieval_thinking(task, records[task][int(row)])
        if protocol == "official-generate":
            context = first_stages[prompt.item.id]
        first, second = prompt.requests()
        assert first.context == context
        # "{context}\n{output}\n{suffix}"
        assert (second.after, second.joint, second.context) == (first.id, "\n", f"\n{suffix}")
        assert first.stop == second.stop == ("<END>",)
    for request in (found.renderer("math").render(found.items["math"][0])).requests():
        assert request.max_new_tokens == (2000 if protocol.endswith("cot") else 256)


def letter_items(root: Path, task: str, split: str, form: dict[str, str]) -> dict[str, str]:
    """Prompts of C-Eval's and CMMLU's chain of thought, question by question."""
    quizzes = oracles._quizzes(root, task, split)
    dev = oracles._quizzes(root, task, "dev")
    names = oracles.CEVAL_NAMES if task == "ceval" else oracles.CMMLU_NAMES

    def block(quiz: oracles.Quiz) -> str:
        options = "".join(f"\n{a}. {text}" for a, text in zip(CAPS, quiz.options, strict=False))
        return f"{form['lead']}{quiz.question}{options}"

    out: dict[str, str] = {}
    for stem, some in quizzes.items():
        said = [""] * 5
        if task == "ceval":
            with (root / "ceval" / "dev" / f"{stem}_dev.csv").open(newline="") as stream:
                said = [row["explanation"] for row in csv.DictReader(stream)]
        head = form["header"].format(names[stem]) + "".join(
            f"{block(quiz)}{form['shot'].format(answer=quiz.gold, why=why)}"
            for quiz, why in zip(dev[stem], said, strict=True)
        )
        for row, quiz in enumerate(some):
            out[f"{task}/{split}/{stem}/{row}"] = f"{head}{block(quiz)}{form['query']}"
    return out


@pytest.mark.real
def test_chains_of_thought_of_ceval_explain_and_begin_the_first_step(real_data: Path) -> None:
    # code/evaluator_series/evaluators/llama.py@802229f format_example(cot=True), Chinese names
    form = {
        "header": "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n",
        "lead": "",
        "shot": "\n答案：让我们一步一步思考，\n{why}\n所以答案是{answer}。\n\n",
        "query": "\n答案：让我们一步一步思考，\n1.",
    }
    expected = letter_items(real_data, "ceval", "val", form)
    assert_equal(prepared(real_data, "ceval", "official-cot"), expected)


@pytest.mark.real
def test_chains_of_thought_of_cmmlu_are_asked_for_and_not_shown(real_data: Path) -> None:
    # src/mp_utils.py@154f1c3: gen_prompt(cot=True) formats its shots without cot
    form = {
        "header": "以下是关于{}的单项选择题，请分析并选出正确答案。\n\n",
        "lead": "题目：",
        "shot": "\n答案是：{answer}\n\n",
        "query": "\n逐步分析并给出答案选项。",
    }
    expected = letter_items(real_data, "cmmlu", "test", form)
    assert_equal(prepared(real_data, "cmmlu", "official-cot"), expected)


# --------------------------------------------------------------- several letters, one after another


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "shots", "subject", "lead", "two", "end"),
    [
        ("agieval", None, "jec-qa-kd", "答案是", " ['A', 'B'", "]"),
        ("agieval", None, "gaokao-physics", "答案是", " ['A', 'B'", "]"),
        ("agieval", 0, "jec-qa-ca", "", "AB", "\n"),
        ("gaokao", None, "2010-2022_Physics_MCQs", "【答案】", " AB", " <eoa>"),
    ],
)
def test_letters_in_sequence_are_written_and_closed_as_the_prompt_shows(
    task: str, shots: int | None, subject: str, lead: str, two: str, end: str, real_data: Path
) -> None:
    found = prepared(real_data, task, "official", shots)
    prompt = found.renderer(subject).render(found.items[subject][0])
    assert (prompt.method, prompt.lead) == ("sequence", lead)
    assert len(prompt.continuations) == 2 * 15
    open_ended, closed = prompt.continuations[:15], prompt.continuations[15:]
    assert open_ended[1] == two
    assert closed == tuple(text + end for text in open_ended)
    # every string goes on from a shorter one, so that a letter is what comes next
    longer = {text for text in open_ended for t in open_ended if text != t and text.startswith(t)}
    begins = {*open_ended} - longer
    assert begins == {text.replace("A", letter) for text in open_ended[:1] for letter in "ABCD"}
    shown = [shot for shot in found.shown[subject] if "[" in shot.answer_text]
    if subject == "jec-qa-kd":
        assert len(shown) == 5
        for shot in shown:
            written = " [" + ", ".join(f"'{letter}'" for letter in shot.answer) + "]"
            assert prompt.lead + written in prompt.text
            assert written in closed


NUMBERED = "（1）【答案】 {} <eoa>\n（2）【答案】 {} <eoa>\n（3）【答案】"
CHAINS = {
    "2010-2022_Geography_MCQs": (0, NUMBERED),
    "2010-2022_English_Reading_Comp": (0, NUMBERED),
    "2010-2022_Chinese_Lang_and_Usage_MCQs": (None, NUMBERED.replace("】", "】:")),
    "2012-2022_English_Cloze_Test": (0, "【答案】 {} {}"),
}


@pytest.mark.real
@pytest.mark.parametrize("subject", CHAINS)
def test_sub_questions_are_asked_in_the_numbered_form_that_the_prompt_wants(
    subject: str, real_data: Path
) -> None:
    question = dict(oracles.official_gaokao(real_data))
    asked = prepared(real_data, "gaokao", "teacher-forced")
    third = next(i for i in asked.scored() if i.subject == subject and i.part == 3)
    prompt = asked.renderer(subject).render(third)
    parent = third.id.split("#")[0]
    assert len(third.before) == 2
    form = CHAINS[subject][1].format(*third.before)
    assert prompt.text == question[parent] + form
    assert (prompt.lead, prompt.continuations[0]) == ("", " A")
    # by itself the chain joins on to what was answered before
    chained = prepared(real_data, "gaokao", "official")
    (request,) = chained.renderer(subject).render(third).requests()
    assert request.after == f"{parent}#1"
    assert request.context == form.rpartition(third.before[1])[2]
    first = next(i for i in chained.scored() if i.subject == subject and i.part == 1)
    text = chained.renderer(subject).render(first).text
    assert text == question[first.id.split("#")[0]] + form.split(" " + third.before[0])[0]


@pytest.mark.real
def test_the_one_answer_of_a_file_of_several_follows_the_tag_of_its_own_example(
    real_data: Path,
) -> None:
    subject = "2010-2022_Chinese_Lang_and_Usage_MCQs"
    found = prepared(real_data, "gaokao", "official")
    item = next(item for item in found.items[subject] if item.kind == "single")
    prompt = found.renderer(subject).render(item)
    assert (prompt.lead, prompt.method) == ("【答案】:", "letters")
    assert f"例如：{prompt.lead}{prompt.continuations[0]} <eoa>" in prompt.text


# ------------------------------------------------------------------------------------ ColossalEval


@pytest.mark.real
def test_colossal_reads_letters_by_its_two_token_rule_where_it_scores_them(real_data: Path) -> None:
    rule = ("Answer: ", "答案：")
    for task in ("mmlu", "cmmlu", "agieval", "gaokao"):
        found = prepared(real_data, task, "colossal")
        prompt = next(rendered(found))
        (request,) = prompt.requests()
        assert request.read_as == rule
        writes = task == "agieval"
        assert (prompt.method, request.max_new_tokens) == (
            ("either", 32) if writes else ("letters", 0)
        )
    # it has no number of its own for C-Eval
    assert next(rendered(prepared(real_data, "ceval", "colossal"))).request().read_as == ()


def test_scripts_are_marked_and_differ_from_the_rest_in_how_they_read_only() -> None:
    for task in ("agieval", "gaokao"):
        plain, script = (load_prompts(task)[f"official-{name}"] for name in ("generate", "script"))
        assert (plain.script, script.script) == (False, True)
        assert plain.parts(5) == script.parts(5)
        assert plain.parts(0) == script.parts(0)
        assert plain.methods == script.methods
        assert plain.extract != script.extract


def test_requests_of_one_stage_are_one(sample_request: Request) -> None:
    assert sample_request.after == ""
    assert sample_request.max_new_tokens == 512


@pytest.fixture
def sample_request() -> Request:
    found = prepare("sample-ceval", Selection("official-generate"))
    (request,) = next(rendered(found)).requests()
    return request
