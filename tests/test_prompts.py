"""Every prompt equals, byte for byte, what independent builders and lm-eval itself write."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite import catalog, preview
from ceval_suite.catalog import load_task, load_template
from ceval_suite.errors import ConfigError, PromptError
from ceval_suite.files import find_files
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.prompt import Renderer
from ceval_suite.protocol import fingerprint
from ceval_suite.request import Prompt
from ceval_suite.schema import Item
from ceval_suite.specs import Task, Template

FIVE = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")


@cache
def prepared(
    data: Path, task: str, protocol: str, shots: int | None = None, split: str | None = None
) -> Prepared:
    return prepare(task, Selection(protocol, shots, split, data=data))


def rendered(found: Prepared) -> Iterator[Prompt]:
    for subject in found.subjects:
        renderer = found.renderer(subject)
        yield from map(renderer.render, found.items[subject])


def by_id(pairs: Any) -> dict[str, str]:
    """Pairs as a mapping; an id that comes twice is an error."""
    out: dict[str, str] = {}
    for id, text in pairs:
        assert id not in out, f"{id} twice"
        out[id] = text
    return out


def assert_equal(found: dict[str, str], expected: dict[str, str]) -> None:
    """All equal; the message shows the first difference, not thousands of prompts."""
    assert found.keys() == expected.keys()
    wrong = [id for id, text in found.items() if text != expected[id]]
    assert not wrong, (len(wrong), wrong[0], found[wrong[0]], expected[wrong[0]])


# ----------------------------------------------------------------- official and colossal, all items

# the official wordings with the benchmark's own shots are compared through the preview, below
CASES = [
    *(("mmlu", "official", {"shots": k}) for k in (0, 3)),
    *(("cmmlu", "official", {"shots": k}) for k in (0, 3)),
    *(("ceval", "official", {"shots": k}) for k in (0, 3)),
    *(("agieval", "official", {"shots": k}) for k in (0, 2)),
    *(("mmlu", "colossal", {"shots": k}) for k in (5, 0, 3)),
    *(("cmmlu", "colossal", {"shots": k}) for k in (5, 0, 3)),
    *(("ceval", "colossal", {"shots": k}) for k in (5, 0, 3)),
    *(("agieval", "colossal", kw) for kw in ({}, {"shots": 0}, {"shots": 2})),
    ("gaokao", "colossal", {}),
    ("mmlu", "official", {"split": "val"}),
    ("ceval", "official", {"split": "test"}),
]


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "protocol", "kw"),
    CASES,
    ids=["-".join([t, p, *(f"{k}={v}" for k, v in kw.items())]) for t, p, kw in CASES],
)
def test_every_prompt_equals_the_independent_builder(
    task: str, protocol: str, kw: dict[str, Any], real_data: Path
) -> None:
    found = prepared(real_data, task, protocol, kw.get("shots"), kw.get("split"))
    expected = by_id(getattr(oracles, f"{protocol}_{task}")(real_data, **kw))
    if protocol == "colossal" and found.template.subjects is not None:
        # its leaderboard covers eleven of AGIEval's files and seven of GAOKAO-Bench's
        assert len(found.subjects) == {"agieval": 11, "gaokao": 7}[task]
        expected = {id: t for id, t in expected.items() if id.split("/")[2] in found.subjects}
        assert len(expected) == {"agieval": 3337, "gaokao": 1418}[task]
    assert_equal(by_id((p.item.id, p.text) for p in rendered(found)), expected)


@pytest.mark.real
@pytest.mark.parametrize("task", FIVE)
def test_preview_lines_hold_every_item_once_with_the_four_keys(task: str, real_data: Path) -> None:
    found = prepared(real_data, task, "official")
    rows = [json.loads(line) for line in preview.lines(found)]
    assert {tuple(row) for row in rows} == {("id", "prompt", "labels", "answer")}
    expected = by_id(getattr(oracles, f"official_{task}")(real_data))
    assert_equal(by_id((row["id"], row["prompt"]) for row in rows), expected)
    items = {item.id: item for group in found.items.values() for item in group}
    assert all(tuple(row["labels"]) == items[row["id"]].labels for row in rows)
    assert all(tuple(row["answer"]) == items[row["id"]].answer for row in rows)


@pytest.mark.real
def test_shots_of_the_lawyer_exam_are_printed_as_python_lists(real_data: Path) -> None:
    found = prepared(real_data, "agieval", "official")
    for subject, printed in {
        "jec-qa-kd": ["['C']", "['A', 'B', 'C']", "['C']", "['D']", "['A', 'B', 'C', 'D']"],
        "jec-qa-ca": ["['A', 'D']", "['B', 'D']", "['C']", "['B']", "['A']"],
        "gaokao-physics": ["D", "D", "['B', 'C']", "D", "['A', 'D']"],
    }.items():
        text = found.renderer(subject).render(found.items[subject][0]).text
        answers = [line.removeprefix("答案是 ") for line in text.split("\n") if "答案是 " in line]
        assert answers == printed


@pytest.mark.real
def test_shots_are_the_first_of_the_file_and_never_more_than_it_has(real_data: Path) -> None:
    five, three = (prepared(real_data, "ceval", "official", n) for n in (5, 3))
    assert {s: shots[:3] for s, shots in five.shown.items()} == three.shown
    assert {len(shots) for shots in five.shown.values()} == {5}
    agieval = prepared(real_data, "agieval", "official")
    assert {len(shots) for shots in agieval.shown.values()} == {3, 4, 5}
    with pytest.raises(ConfigError, match="has 5 shots, 6 were asked for"):
        prepare("ceval", Selection(shots=6, data=real_data))


# ------------------------------------------------------------------------------- lm-eval's own code


@cache
def harness(folder: str, name: str) -> Any:
    """The loaded YAML of one of the installed harness's tasks."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / folder / f"{name}.yaml"
    return load_yaml(path, resolve_func=True)


def harness_prompts(
    config: dict[str, Any], docs: dict[str, list[dict[str, Any]]], split: str, *shots: int
) -> list[tuple[str, list[str]]]:
    """Context and continuations of each document, from lm-eval's ConfigurableTask itself.

    For every number of shots in turn.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    held = {name: Dataset.from_list(rows) for name, rows in docs.items()}
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: held})
    out: list[tuple[str, list[str]]] = []
    for number, doc in itertools.product(shots, held[split]):
        context = task.fewshot_context(doc, number)
        found = task.construct_requests(doc, context, metadata=("x", 0, 1))
        assert {request.args[0] for request in found} == {context}
        out.append((context, [request.args[1] for request in found]))
    return out


def mmlu_doc(quiz: oracles.Quiz) -> dict[str, Any]:
    answer = "ABCD".index(str(quiz.gold))
    return {"question": quiz.question, "choices": list(quiz.options), "answer": answer}


def lettered_doc(question: str, answer: str) -> Callable[[oracles.Quiz], dict[str, Any]]:
    def doc(quiz: oracles.Quiz) -> dict[str, Any]:
        return {
            question: quiz.question,
            **dict(zip("ABCD", quiz.options, strict=True)),
            answer: quiz.gold,
        }

    return doc


def some_rows(length: int) -> list[int]:
    return sorted({0, length // 2, length - 1})


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "folder", "name", "split", "doc"),
    [
        ("mmlu", "mmlu/default", "mmlu_{}", "test", mmlu_doc),
        ("cmmlu", "cmmlu", "cmmlu_{}", "test", lettered_doc("Question", "Answer")),
        ("ceval", "ceval", "ceval-valid_{}", "val", lettered_doc("question", "answer")),
    ],
    ids=["mmlu", "cmmlu", "ceval"],
)
def test_lm_eval_wording_equals_the_harness_in_every_subject(
    task: str,
    folder: str,
    name: str,
    split: str,
    doc: Callable[[oracles.Quiz], dict[str, Any]],
    real_data: Path,
) -> None:
    five, none = (prepared(real_data, task, "lm-eval", shots) for shots in (5, 0))
    quizzes = oracles._quizzes(real_data, task, split)
    dev = oracles._quizzes(real_data, task, "dev")
    assert five.subjects == list(load_task(task).subjects)
    for subject in five.subjects:
        rows = some_rows(len(quizzes[subject]))
        docs = {
            split: [doc(quizzes[subject][row]) for row in rows],
            "dev": [doc(quiz) for quiz in dev[subject]],
        }
        expected = harness_prompts(harness(folder, name.format(subject)), docs, split, 5, 0)
        ours = [
            found.renderer(subject).render(found.items[subject][row])
            for found in (five, none)
            for row in rows
        ]
        assert [(p.text + p.lead, list(p.continuations)) for p in ours] == expected


@pytest.mark.real
def test_lm_eval_wording_of_agieval_scores_whole_options_of_the_zero_shot_query(
    real_data: Path,
) -> None:
    found = prepared(real_data, "agieval", "lm-eval")
    queries = by_id(oracles.official_agieval(real_data, shots=0))
    published = oracles._agieval(real_data)
    scored = [s for s in found.subjects if load_task("agieval").subjects[s].kind != "cloze"]
    assert len(scored) == 19
    for subject in scored:
        rows = some_rows(len(published[subject]))
        docs = [
            {
                "query": queries[f"agieval/test/{subject}/{row}"],
                "choices": published[subject][row]["options"],
                "gold": [0],
            }
            for row in rows
        ]
        expected = harness_prompts(harness("agieval", subject), {"test": docs}, "test", 0)
        renderer = found.renderer(subject)
        ours = [renderer.render(found.items[subject][row]) for row in rows]
        assert [(p.text + p.lead, list(p.continuations)) for p in ours] == expected
    # and the query of every item that is scored
    wrong = [p.item.id for p in rendered(found) if p.continuations and p.text != queries[p.item.id]]
    assert wrong == []


# -------------------------------------------------------------------------- leads and continuations


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "protocol", "shots", "subject", "lead", "continuations"),
    [
        ("mmlu", "official", 5, "anatomy", "", " A, B, C, D"),
        ("mmlu", "colossal", 5, "anatomy", "", "A,B,C,D"),
        ("cmmlu", "official", 5, "agronomy", "", "A,B,C,D"),
        ("ceval", "lm-eval", 5, "law", "", " A, B, C, D"),
        ("agieval", "official", None, "lsat-ar", "The answer is therefore", " A, B, C, D, E"),
        ("agieval", "official", None, "gaokao-history", "答案是", " A, B, C, D"),
        ("agieval", "official", 0, "aqua-rat", "", " A, B, C, D, E"),
        ("agieval", "official", 0, "gaokao-history", "", "A,B,C,D"),
        ("gaokao", "official", None, "2010-2022_Biology_MCQs", "【答案】:", " A, B, C, D"),
        ("gaokao", "colossal", None, "2010-2022_Biology_MCQs", "", "A,B,C,D"),
    ],
)
def test_the_letter_follows_the_way_the_shots_show_it(
    task: str,
    protocol: str,
    shots: int | None,
    subject: str,
    lead: str,
    continuations: str,
    real_data: Path,
) -> None:
    found = prepared(real_data, task, protocol, shots)
    prompt = found.renderer(subject).render(found.items[subject][0])
    assert prompt.lead == lead
    assert prompt.continuations == tuple(continuations.split(","))
    for shot in found.shown[subject]:
        letter = dict(zip(shot.labels, prompt.continuations, strict=False))[shot.answer[0]]
        # what a shot prints before its answer is what stands before the letter to be scored
        before = (prompt.text + prompt.lead)[-4:]
        assert before + letter in prompt.text or shot.kind != "single"


@pytest.mark.real
def test_permuted_options_are_scored_by_their_printed_letters(real_data: Path) -> None:
    found = prepared(real_data, "agieval", "official")
    item = found.items["logiqa-en"][108]
    prompt = found.renderer("logiqa-en").render(item)
    assert item.labels == ("A", "C", "B", "D")
    assert prompt.continuations == (" A", " C", " B", " D")


@pytest.mark.real
def test_items_whose_answer_is_written_have_a_prompt_and_no_continuations(
    real_data: Path,
) -> None:
    for task in ("agieval", "gaokao"):
        found = prepared(real_data, task, "official")
        for prompt in rendered(found):
            assert prompt.text
            written = found.template.methods[prompt.item.kind] == "generate"
            assert bool(prompt.continuations) != written


@pytest.mark.real
def test_preview_for_people_shows_prompt_lead_continuations_and_answer(real_data: Path) -> None:
    found = prepared(real_data, "agieval", "official")
    item = found.items["aqua-rat"][29]
    text = preview.text(found, "aqua-rat", 29)
    assert found.renderer("aqua-rat").render(item).text in text
    for expected in ("agieval/test/aqua-rat/29", "official", "5-shot", "'The answer is therefore'"):
        assert expected in text
    assert "continuations: ' A', ' B', ' C', ' D', ' E'" in text
    assert "answer: A\n" in text
    options = prepared(real_data, "agieval", "lm-eval")
    assert "not scored by this method: kind cloze" in preview.text(options, "math", 0)
    assert "(no label)" in preview.text(found, "jec-qa-kd", 211)
    with pytest.raises(ConfigError, match="rows 0 to 253; there is no row 254"):
        preview.text(found, "aqua-rat", 254)


# ------------------------------------------------------------------------ fitting: whole shots only

ITEM = Item(
    id="t/test/s/0",
    subject="s",
    question="the question itself",
    options=("one", "two"),
    choices=("one", "two"),
    labels=("A", "B"),
    answer=("A",),
    answer_text="A",
)


def shot(number: int, length: int) -> Item:
    return replace(ITEM, id=f"t/dev/s/{number}", question=str(number) * length)


def renderer(fit: str, shots: Sequence[Item], lead: str = "") -> Renderer:
    content = load_task("sample-mmlu").model_dump() | {"subjects": {"s": {"title": "fitting"}}}
    content |= {"counts": {}, "groups": {}}
    template = Template.model_validate(
        {
            "source": "test",
            "header": "About {{ subject.title }}.\n\n",
            "question": "Q: {{ item.question }}\nA. {{ choices[0][1] }}\nB. {{ choices[1][1] }}",
            "cue": "\nAnswer:",
            "lead": lead,
            "answer": " {{ label }}",
            "join": "\n\n",
            "fit": fit,
        }
    )
    return Renderer(Task.model_validate(content), template, "s", shots)


BARE = "Q: the question itself\nA. one\nB. two\nAnswer:"


def kept(prompt: Prompt) -> str:
    """The numbers of the shots that a prompt shows, in order."""
    questions = [block.split("\n")[0] for block in prompt.text.split("Q: ")[1:-1]]
    assert len(questions) == prompt.shots
    return "".join(question[0] for question in questions)


@pytest.mark.parametrize("lead", ["", "【答案】:"])
def test_the_last_shots_go_first_and_one_token_stays_free_for_the_letter(lead: str) -> None:
    shots = [shot(n, 30 + 5 * n) for n in range(5)]
    render = renderer("drop_last", shots, lead)
    sizes = {k: len(render.render(ITEM, shots[:k]).text + lead) for k in range(6)}
    for k in range(6):
        exact = render.fit(ITEM, len, sizes[k] + 1)
        assert kept(exact) == "01234"[:k]
        if k:
            assert kept(render.fit(ITEM, len, sizes[k])) == "01234"[: k - 1]
    assert render.fit(ITEM, len, sizes[0] + 1).text == "About fitting.\n\n" + BARE


def test_all_shots_of_the_longest_length_go_at_once_and_the_header_last() -> None:
    shots = [shot(0, 40), shot(1, 60), shot(2, 50), shot(3, 60), shot(4, 40)]
    render = renderer("drop_longest", shots)

    def room(numbers: str) -> int:
        return len(render.render(ITEM, [shots[int(n)] for n in numbers]).text) + 1

    steps = ["01234", "024", "04", ""]
    for numbers, after in itertools.pairwise(steps):
        assert kept(render.fit(ITEM, len, room(numbers))) == numbers
        assert kept(render.fit(ITEM, len, room(numbers) - 1)) == after
    headed = render.fit(ITEM, len, room(""))
    assert headed.text == "About fitting.\n\n" + BARE
    bare = render.fit(ITEM, len, room("") - 1)
    assert (bare.text, bare.shots) == (BARE, 0)
    assert render.fit(ITEM, len, len(BARE) + 1).text == BARE


@pytest.mark.parametrize(
    ("fit", "least"), [("drop_last", len("About fitting.\n\n" + BARE)), ("drop_longest", len(BARE))]
)
def test_a_question_that_does_not_fit_is_an_error_and_never_cut(fit: str, least: int) -> None:
    render = renderer(fit, [shot(0, 10)])
    assert render.fit(ITEM, len, least + 1).text.endswith(BARE)
    with pytest.raises(PromptError) as caught:
        render.fit(ITEM, len, least)
    text = str(caught.value)
    assert text.startswith("t/test/s/0: ")
    assert f"where the model reads {least}" in text
    assert "longer context" in text


@given(
    lengths=st.lists(st.integers(1, 60), max_size=5),
    limit=st.integers(1, 700),
    fit=st.sampled_from(["drop_last", "drop_longest"]),
)
@settings(max_examples=80, deadline=None)
def test_whatever_the_limit_the_question_is_whole_and_shots_keep_their_order(
    lengths: list[int], limit: int, fit: str
) -> None:
    shots = [shot(n, length) for n, length in enumerate(lengths)]
    try:
        prompt = renderer(fit, shots).fit(ITEM, len, limit)
    except PromptError:
        # only when the question would not fit by itself
        alone = len(BARE) + (len("About fitting.\n\n") if fit == "drop_last" else 0)
        assert alone + 1 > limit
        return
    assert len(prompt.text) < limit
    assert prompt.text.endswith(BARE)
    numbers = kept(prompt)
    assert list(numbers) == sorted(numbers)
    if fit == "drop_last":
        assert numbers == "01234"[: prompt.shots]


@pytest.mark.real
def test_fitting_real_prompts_keeps_as_many_first_shots_as_go_in(real_data: Path) -> None:
    subject = "high_school_european_history"

    def count(text: str) -> int:
        return len(text) // 4

    found = prepared(real_data, "mmlu", "official")
    by_shots = [
        by_id(i for i in oracles.official_mmlu(real_data, shots=k) if f"/{subject}/" in i[0])
        for k in range(6)
    ]
    render = found.renderer(subject)
    seen: set[int] = set()
    for item in found.items[subject][::8]:
        prompt = render.fit(item, count, 2048)
        most = max(k for k in range(6) if count(by_shots[k][item.id]) <= 2047)
        assert (prompt.shots, prompt.text) == (most, by_shots[most][item.id])
        seen.add(prompt.shots)
    assert len(seen) > 1
    assert max(seen) < 5


@pytest.mark.real
def test_fitting_cmmlu_follows_its_own_rule(real_data: Path) -> None:
    found = prepared(real_data, "cmmlu", "official")
    subject = "chinese_civil_service_exam"
    render, items = found.renderer(subject), found.items[subject]
    shots, row = found.shown[subject], items[0]
    sizes = [len(render.render(row, [s]).text) - len(render.render(row, []).text) for s in shots]
    header = len("以下是关于中国公务员考试的单项选择题，请直接给出正确答案的选项。\n\n")
    seen: set[tuple[int, ...] | None] = set()
    for limit in range(100, 1500, 50):
        for item in items[::40]:
            # src/mp_utils.py gen_prompt, with characters for tokens and one of them for the letter
            query = len(render.render(item, []).text) - header
            expected: list[int] | None = list(range(len(shots)))
            if header + query > limit - 1:
                expected = None
            while expected and sum(sizes[n] for n in expected) > limit - 1 - header - query:
                longest = max(sizes[n] for n in expected)
                expected = [n for n in expected if sizes[n] != longest]
            if query > limit - 1:
                with pytest.raises(PromptError):
                    render.fit(item, len, limit)
                continue
            prompt = render.fit(item, len, limit)
            seen.add(expected if expected is None else tuple(expected))
            if expected is None:
                assert prompt.text.startswith("题目：")
            else:
                assert prompt.text == render.render(item, [shots[n] for n in expected]).text
    assert {None, (), tuple(range(5))} < seen


# ------------------------------------------------------------------------------------ chat wrapping


def in_chat(user: str) -> str:
    return f"<|user|>{user}<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("task", "protocol", "shots", "cue"),
    [
        ("sample-mmlu", "official", 5, "Answer:"),
        ("sample-mmlu", "colossal", 5, "Answer: "),
        ("sample-cmmlu", "official", 2, "答案是："),
        ("sample-ceval", "official", 0, "答案："),
        ("sample-agieval", "official", 0, "A: Among A through D, the answer is"),
        ("sample-agieval", "official", 3, "The answer is therefore"),
        ("sample-gaokao", "official", None, "【答案】:"),
    ],
)
def test_the_cue_opens_the_assistants_turn(
    task: str, protocol: str, shots: int | None, cue: str
) -> None:
    found = prepare(task, Selection(protocol, shots, chat=True))
    subject = found.subjects[0]
    item = found.items[subject][0]
    plain = found.renderer(subject).render(item)
    prompt = found.renderer(subject, in_chat).render(item)
    request = prompt.request()
    user, assistant = request.context.removeprefix("<|user|>").split("<|end|><|assistant|>")
    assert assistant == cue
    whole = plain.text + plain.lead
    assert whole.startswith(user)
    assert whole[len(user) :].strip() == cue.strip()
    assert request.template_tokens
    assert not plain.request().template_tokens
    assert request.continuations == plain.continuations
    assert prompt.sha256 != plain.sha256


def test_a_chat_prompt_is_fitted_with_its_wrapping_counted() -> None:
    shots = [shot(n, 30) for n in range(5)]
    plain = renderer("drop_last", shots)
    chat = Renderer(plain.task, plain.template, "s", shots, in_chat)
    limit = len(plain.render(ITEM).text) + 1
    assert plain.fit(ITEM, len, limit).shots == 5
    wrapped = chat.fit(ITEM, len, limit)
    assert wrapped.shots == 4
    assert len(wrapped.text) < limit


# ---------------------------------------------------------------------------------- the fingerprint


def of(task: Task, template: Template, **changes: Any) -> str:
    given: dict[str, Any] = {
        "data_sha256": "0" * 64,
        "split": "test",
        "subjects": list(task.subjects),
        "limit": None,
        "shots": 5,
        "chat": False,
    }
    return fingerprint(task, template, **(given | changes))


@pytest.fixture
def question() -> tuple[Task, Template]:
    task = load_task("sample-mmlu")
    return task, load_template(task, "official")[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"data_sha256": "1" * 64},
        {"split": "dev"},
        {"subjects": ["english_usage"]},
        {"limit": 3},
        {"shots": 4},
        {"chat": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_fingerprint_changes_with_what_is_asked(
    changes: dict[str, Any], question: tuple[Task, Template]
) -> None:
    assert of(*question, **changes) != of(*question)


@pytest.mark.parametrize(
    "changes",
    [
        {"header": "x"},
        {"question": "{{ item.question }}"},
        {"cue": "\nAnswer: "},
        {"lead": "so"},
        {"answer": "{{ label }}"},
        {"join": "\n"},
        {"zero_shot": {"header": "x"}},
        {"methods": {"single": "generate"}},
        {"methods": {"single": "letters", "multi": "sequence"}},
        {"end": "."},
        {"second": "so"},
        {"max_new_tokens": 9},
        {"stop": ["."]},
        {"extract": {"single": [{"find": "[A-D]"}]}},
        {"read_as": ["Answer: "]},
        {"script": True},
        {"match": "any"},
        {"fit": "drop_longest"},
        {"subjects": ["english_usage"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_fingerprint_changes_with_the_wording(
    changes: dict[str, Any], question: tuple[Task, Template]
) -> None:
    task, template = question
    changed = Template.model_validate(template.model_dump() | changes)
    assert of(task, changed) != of(task, template)


@pytest.mark.parametrize("key", ["note", "source"])
def test_the_fingerprint_does_not_change_with_prose_about_the_wording(
    key: str, question: tuple[Task, Template]
) -> None:
    task, template = question
    assert of(task, template.model_copy(update={key: "other words"})) == of(task, template)


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("title", "another name", False),
        ("language", "zh", False),
        ("labels", "ABCDE", False),
        ("kind", "multi", False),
        ("without_passage", True, False),
        ("shots_from", "arithmetic_and_algebra", False),
        ("subcategory", "grammar", True),
        ("points", 7.0, True),
        ("counts", {}, True),
    ],
)
def test_the_fingerprint_knows_what_of_the_subject_table_is_asked(
    key: str, value: Any, same: bool, question: tuple[Task, Template]
) -> None:
    task, template = question
    row = task.subjects["english_usage"].model_copy(update={key: value})
    changed = task.model_copy(update={"subjects": task.subjects | {"english_usage": row}})
    assert (of(changed, template) == of(task, template)) == same


def test_the_fingerprint_knows_the_order_of_the_columns_and_the_version(
    question: tuple[Task, Template],
) -> None:
    task, template = question
    assert task.source.columns is not None
    columns = task.source.columns.model_copy(update={"choices": [2, 1, 3, 4]})
    source = task.source.model_copy(update={"columns": columns})
    assert of(task.model_copy(update={"source": source}), template) != of(task, template)
    assert of(task.model_copy(update={"version": 2}), template) != of(task, template)
    assert of(task.model_copy(update={"license": "other", "notes": ["x"]}), template) == of(
        task, template
    )


def test_one_changed_byte_of_the_data_changes_the_fingerprint_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = catalog.data_root() / "tasks"
    (tmp_path / "tasks").mkdir()
    shutil.copy(shipped / "sample-mmlu.yaml", tmp_path / "tasks")
    shutil.copytree(shipped / "sample" / "mmlu", tmp_path / "tasks" / "sample" / "mmlu")
    before = prepare("sample-mmlu", Selection())
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    assert find_files(load_task("sample-mmlu")).place.is_relative_to(tmp_path)
    assert prepare("sample-mmlu", Selection()).fingerprint == before.fingerprint
    for split in ("dev", "test"):
        path = tmp_path / "tasks" / "sample" / "mmlu" / split / f"english_usage_{split}.csv"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"e", b"E", 1))
        assert prepare("sample-mmlu", Selection()).fingerprint != before.fingerprint
        path.write_bytes(content)
    assert prepare("sample-mmlu", Selection()).fingerprint == before.fingerprint
    assert prepare("sample-mmlu", Selection(limit=20)).fingerprint != before.fingerprint
    assert prepare("sample-mmlu", Selection(subjects=["english_usage"])).folder != before.folder


@pytest.mark.real
def test_every_protocol_of_every_benchmark_has_a_fingerprint_of_its_own(real_data: Path) -> None:
    found = [
        prepared(real_data, task, protocol).fingerprint
        for task in FIVE
        for protocol in catalog.load_prompts(task)
    ]
    assert len(set(found)) == len(found) == 37
    assert all(len(f) == 64 and int(f, 16) for f in found)
