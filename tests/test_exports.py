"""What others read holds every answer and nothing made up; what cannot be told is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, DataError, RunError
from ceval_suite.exports import FOLDERS, FORMATS, TABLES, Wanted, export
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Record
from ceval_suite.specs import Task
from tests.finished_runs import answered, gold, record, write

# C-Eval's submission

Change = Callable[[list[Record]], list[Record]]


@pytest.fixture(scope="module")
def ceval() -> Task:
    return load_task("ceval")


def letter(subject: str, row: int) -> str:
    return "ABCD"[(len(subject) + row) % 4]


def whole(task: Task) -> list[Record]:
    """An answer to every item of the test split; rows last first, as a run may write them."""
    return [
        record(f"ceval/test/{name}/{row}", name, "", letter(name, row))
        for name, subject in reversed(task.subjects.items())
        for row in reversed(range(subject.counts["test"]))
    ]


def submit(folder: Path, records: list[Record], **about: Any) -> dict[str, Any]:
    given = {"task": "ceval", "split": "test", "protocol": "official", "shots": 5, "limit": None}
    run = write(folder / "run", given | about, records)
    out = folder / "out" / "submission.json"
    export("ceval-submission", Wanted((run,)), out)
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def shape(submission: Any) -> None:
    """The site's schema: {"<handle>": {"0": "A", …}}, rows from 0 on without a gap."""
    assert isinstance(submission, dict)
    for rows in submission.values():
        assert list(rows) == [str(row) for row in range(len(rows))]
        assert set(rows.values()) <= set("ABCD")


@pytest.mark.real
def test_a_submission_has_the_published_examples_structure(
    ceval: Task, real_data: Path, tmp_path: Path
) -> None:
    example = json.loads((real_data / "ceval" / "submission_example.json").read_text("utf-8"))
    found = submit(tmp_path, whole(ceval))
    shape(example)
    shape(found)
    assert set(found) == set(example)
    handles = json.loads((real_data / "ceval" / "subject_mapping.json").read_text("utf-8"))
    assert set(found) == set(handles)


def test_a_submission_has_12342_answers_in_the_order_of_the_table(
    ceval: Task, tmp_path: Path
) -> None:
    found = submit(tmp_path, whole(ceval))
    assert list(found) == list(ceval.subjects)
    assert sum(map(len, found.values())) == 12342
    assert len(found) == 52
    for name, rows in found.items():
        assert len(rows) == ceval.subjects[name].counts["test"]
        assert rows == {str(row): letter(name, row) for row in range(len(rows))}


@pytest.mark.real
def test_a_submission_has_a_row_for_every_row_of_the_published_files(
    ceval: Task, real_data: Path, tmp_path: Path
) -> None:
    found = submit(tmp_path, whole(ceval))
    prepared = prepare("ceval", Selection(split="test", shots=0, data=real_data))
    for subject, items in prepared.items.items():
        assert list(found[subject]) == [item.id.rpartition("/")[2] for item in items]


def without(part: str) -> Change:
    return lambda records: [r for r in records if part not in r.id]


def answering(id: str, prediction: str) -> Change:
    def change(records: list[Record]) -> list[Record]:
        subject = id.split("/")[2]
        return [record(id, subject, "", prediction) if r.id == id else r for r in records]

    return change


def adding(id: str) -> Change:
    return lambda records: [*records, record(id, id.split("/")[2], "", "A")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("/law/"), r"subject law lacks 221 of 221 answers \(rows 0, 1, 2 …\); finish the"),
        (without("/test/law/220"), r"subject law lacks 1 of 221 answers \(rows 220\); finish"),
        (answering("ceval/test/law/7", ""), r"1 items are unanswered \(ceval/test/law/7\); the si"),
        (answering("ceval/test/law/7", "AB"), "law/7 is answered by 'AB', which is not one of A, "),
        (answering("ceval/test/law/7", "E"), "law/7 is answered by 'E', which is not one of A, B"),
        (adding("ceval/test/laws/0"), "unknown subject 'laws': did you mean 'law'"),
        (adding("ceval/test/law/221"), "has 222 answers where the test split has 221 items"),
        (adding("ceval/val/law/0"), "item ceval/val/law/0 does not belong to this run; delete it"),
        (adding("ceval/test/law/x"), "item ceval/test/law/x does not belong to this run"),
    ],
)
def test_what_is_no_whole_submission_is_refused(
    ceval: Task, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        submit(tmp_path, change(whole(ceval)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"split": "val"}, "is a run of ceval val; a submission needs one of ceval with --split t"),
        ({"task": "cmmlu"}, "is a run of cmmlu test; a submission needs one of ceval with --spli"),
        ({"limit": 5}, "has only the first 5 items of each subject; a submission needs all: run"),
    ],
)
def test_a_run_of_something_else_is_no_submission(
    ceval: Task, tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        submit(tmp_path, whole(ceval), **about)


def test_a_submission_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--as ceval-submission exports a run; give a run folder"):
        export("ceval-submission", Wanted(task="ceval"), tmp_path / "x.json")


def test_an_item_that_stands_twice_is_refused(ceval: Task, tmp_path: Path) -> None:
    some = whole(ceval)
    with pytest.raises(RunError, match=r"item ceval/test/.* stands twice; delete one line"):
        submit(tmp_path, [*some, some[0]])


# any format


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown export format 'ceval-submision': did you mean"):
        export("ceval-submision", Wanted(task="ceval"), tmp_path / "x")


@pytest.mark.parametrize("wanted", [Wanted(), Wanted((Path("run"),), "gaokao")])
def test_a_run_or_a_task_is_exported_not_both(wanted: Wanted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a run folder or --task NAME, one of the two"):
        export("open-questions", wanted, tmp_path / "x")


def test_no_file_is_written_over(tmp_path: Path) -> None:
    there = tmp_path / "x.json"
    there.write_text("mine")
    with pytest.raises(RunError, match=r"x\.json is there already; give another --output, or"):
        export("open-questions", Wanted(task="gaokao"), there)
    assert there.read_text() == "mine"


def test_export_on_the_command_line(ceval: Task, tmp_path: Path) -> None:
    about = {"task": "ceval", "split": "test", "protocol": "official", "shots": 5}
    run = write(tmp_path / "run", about, whole(ceval))
    out = tmp_path / "out.json"
    found = CliRunner().invoke(
        app, ["export", str(run), "--as", "ceval-submission", "-o", str(out)]
    )
    assert found.exit_code == 0, found.output
    assert found.stderr.strip() == f"wrote {out}: 12,342 answers to 52 subjects"
    assert found.stdout == ""
    assert out.read_text("utf-8").startswith('{\n    "computer_network": {\n        "0": "')


def test_the_help_names_every_format() -> None:
    found = CliRunner().invoke(app, ["export", "--help"], terminal_width=200)
    for name in (*FORMATS, *TABLES, *FOLDERS):
        assert name in found.stdout


# open questions

FILL_IN: dict[str, Any] = {
    "keywords": "2010-2022_Math_I_Fill-in-the-Blank",
    "example": [
        {
            "year": "2010",
            "category": "（新课标）",
            "question": "13. 近似值为\n",
            "standard_answer": "$1/2$\n",
            "analysis": "解: 故答案为一半.\n",
            "index": 0,
            "score": 5,
        },
        {
            "year": "2011",
            "category": "（新课标）",
            "question": "14. 方程为\n",
            "standard_answer": "$x=1$\n",
            "analysis": "",
            "index": 1,
            "score": 4,
        },
    ],
}
PHYSICS = {"keywords": "2010-2022_Physics", "example": [FILL_IN["example"][0] | {"score": 18}]}


def benchmark(root: Path, files: dict[str, Any]) -> Path:
    """A GAOKAO-Bench folder with one objective file and these others."""
    exam = {"example": [{"year": "2010", "question": "A. 1 B. 2", "answer": ["A"], "score": 6}]}
    objective = {"Objective_Questions/2010-2022_Biology_MCQs.json": exam}
    for name, content in (objective | files).items():
        path = root / "gaokao-bench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
    return root


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_open_questions_are_exported_with_reference_answers_and_no_score(tmp_path: Path) -> None:
    root = benchmark(
        tmp_path,
        {
            "Subjective_Questions/2010-2022_Math_I_Fill-in-the-Blank.json": FILL_IN,
            "Subjective_Questions/2010-2022_Physics_Open-ended_Questions.json": PHYSICS,
            # a model's results that lie in the same folder of the repository
            "Subjective_Questions/gemini-pro_2010-2022_Physics.json": PHYSICS,
            "Subjective_Questions/2010-results/2010-2022_Physics.json": PHYSICS,
        },
    )
    out = tmp_path / "open.jsonl"
    said = export("open-questions", Wanted(task="gaokao", data=root), out)
    assert said == "3 open questions; none of them is scored"
    found = lines(out)
    assert [line["id"] for line in found] == [
        "gaokao/open/2010-2022_Math_I_Fill-in-the-Blank/0",
        "gaokao/open/2010-2022_Math_I_Fill-in-the-Blank/1",
        "gaokao/open/2010-2022_Physics_Open-ended_Questions/0",
    ]
    assert found[1] == {
        "id": "gaokao/open/2010-2022_Math_I_Fill-in-the-Blank/1",
        "file": "2010-2022_Math_I_Fill-in-the-Blank",
        "year": "2011",
        "category": "（新课标）",
        "question": "14. 方程为\n",
        "reference": "$x=1$\n",
        "analysis": "",
        "points": 4,
        "text": None,
    }
    assert not any("score" in line or "correct" in line for line in found)


def test_the_older_folders_are_read_too(tmp_path: Path) -> None:
    root = benchmark(
        tmp_path,
        {
            "Open-ended_Questions/2010-2022_Physics_Open-ended_Questions.json": PHYSICS,
            "Fill-in-the-blank_Questions/2010-2022_Math_I_Fill-in-the-Blank.json": FILL_IN,
        },
    )
    out = tmp_path / "open.jsonl"
    export("open-questions", Wanted(task="gaokao", data=root), out)
    assert {line["file"] for line in lines(out)} == {
        "2010-2022_Math_I_Fill-in-the-Blank",
        "2010-2022_Physics_Open-ended_Questions",
    }


def test_a_models_texts_stand_beside_the_questions(tmp_path: Path) -> None:
    name = "2010-2022_Math_I_Fill-in-the-Blank"
    root = benchmark(tmp_path, {f"Subjective_Questions/{name}.json": FILL_IN})
    some = [record(f"gaokao/open/{name}/1", name, "", "", text="x 等于 1")]
    about = {"task": "gaokao", "split": "test", "data": {"source": str(root / "gaokao-bench")}}
    run = write(tmp_path / "run", about, some)
    out = tmp_path / "open.jsonl"
    said = export("open-questions", Wanted((run,)), out)
    assert said == "2 open questions, 1 with the model's text; none of them is scored"
    assert [line["text"] for line in lines(out)] == [None, "x 等于 1"]


@pytest.mark.real
def test_where_the_files_are_missing_it_says_so(real_data: Path, tmp_path: Path) -> None:
    run = answered(
        prepare("gaokao", Selection(subjects=["2010-2022_Physics_MCQs"], data=real_data)),
        tmp_path,
        gold,
    )
    message = r"gaokao-bench/ has no open questions \(no Subjective_Questions or Open-ended_Quest"
    for wanted in (Wanted((run,)), Wanted(task="gaokao", data=real_data)):
        with pytest.raises(DataError, match=message) as error:
            export("open-questions", wanted, tmp_path / "open.jsonl")
        assert "run 'ceval-suite data fetch gaokao' or give --data the whole" in str(error.value)


def test_a_task_without_open_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task 'mmlu' has no open questions; gaokao has"):
        export("open-questions", Wanted(task="mmlu"), tmp_path / "x")


@pytest.mark.parametrize(
    "broken", ["[]", "{", '{"example": [{"question": "?"}]}', '{"example": 1}']
)
def test_a_broken_file_of_open_questions_is_named(tmp_path: Path, broken: str) -> None:
    root = benchmark(tmp_path, {"Subjective_Questions/2010-2022_Physics.json": broken})
    with pytest.raises(DataError, match=r"2010-2022_Physics\.json: not a file of open questions"):
        export("open-questions", Wanted(task="gaokao", data=root), tmp_path / "x")
