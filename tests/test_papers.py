"""Exam papers: points and marks are the official scripts', and what is not scored is never a 0."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.papers import Sheet, converted, papers
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_records
from ceval_suite.report import papers as report
from ceval_suite.schema import Estimate, Item, Record
from ceval_suite.specs import Paper, Task
from tests.finished_runs import answered, gold, guessing, nothing

# facts of Bench/OBJ_score_evaluation.py and Bench/merge_OBJ_SUB_score.py @c214b47c, not our table
SUBJECTS = {
    "English": [
        "2010-2013_English_MCQs",
        "2010-2022_English_Fill_in_Blanks",
        "2012-2022_English_Cloze_Test",
        "2010-2022_English_Reading_Comp",
    ],
    "Mathematics": ["2010-2022_Math_I_MCQs", "2010-2022_Math_II_MCQs"],
    "Chinese": ["2010-2022_Chinese_Modern_Lit", "2010-2022_Chinese_Lang_and_Usage_MCQs"],
    "Physics": ["2010-2022_Physics_MCQs"],
    "Chemistry": ["2010-2022_Chemistry_MCQs"],
    "Biology": ["2010-2022_Biology_MCQs"],
    "History": ["2010-2022_History_MCQs"],
    "Geography": ["2010-2022_Geography_MCQs"],
    "Politics": ["2010-2022_Political_Science_MCQs"],
}
OBJECTIVE = {  # full marks, objective share
    "Chinese": (150, 0.3),
    "English": (150, 0.7),
    "Science-Math": (150, 0.4),
    "Liberal-Arts-Math": (150, 0.4),
    "Physics": (110, 0.4),
    "Chemistry": (100, 0.5),
    "Biology": (90, 0.3),
    "Politics": (100, 0.5),
    "History": (100, 0.5),
    "Geography": (100, 0.4),
}
TOTALS = {
    "文科": ["Chinese", "English", "Liberal-Arts-Math", "Politics", "History", "Geography"],
    "理科": ["Chinese", "English", "Science-Math", "Physics", "Chemistry", "Biology"],
}


class Official:
    """The official scripts' numbers for a set of answers, computed from the published files."""

    def __init__(self, root: Path, given: Mapping[str, Sequence[str]], year: str | None) -> None:
        self.points: dict[str, tuple[float, float, int]] = {}
        for stem in (stem for stems in SUBJECTS.values() for stem in stems):
            path = root / "gaokao-bench" / "Objective_Questions" / f"{stem}.json"
            earned = possible = 0.0
            questions = 0
            for row, example in enumerate(json.loads(path.read_text("utf-8"))["example"]):
                if year not in (None, example["year"]):
                    continue
                for answer, right in zip(
                    given[f"gaokao/test/{stem}/{row}"], example["answer"], strict=True
                ):
                    possible += example["score"]
                    questions += 1
                    if answer == right:
                        earned += example["score"]
                    elif "Physics" in stem and answer and set(answer) <= set(right):
                        earned += 3
            self.points[stem] = (earned, possible, questions)
        self.rates = {s: self.rate(stems) for s, stems in SUBJECTS.items()}

    def rate(self, stems: Sequence[str]) -> float | None:
        """Three digits, as the script prints it; None where it would divide nothing by nothing."""
        earned = sum(self.points[s][0] for s in stems)
        possible = sum(self.points[s][1] for s in stems)
        return round(earned / possible, 3) if possible else None

    def marks(self, name: str) -> float | None:
        maths = {"Science-Math": "2010-2022_Math_I_MCQs"}
        maths["Liberal-Arts-Math"] = "2010-2022_Math_II_MCQs"
        rate = self.rate([maths[name]]) if name in maths else self.rates[name]
        full, part = OBJECTIVE[name]
        return None if rate is None else round(full * part * rate, 3)


def given(records: Sequence[Record]) -> dict[str, list[str]]:
    out: defaultdict[str, list[str]] = defaultdict(list)
    for one in records:
        out[one.id.partition("#")[0]].append("".join(one.prediction))
    return dict(out)


@pytest.fixture(scope="module")
def whole(real_data: Path) -> Prepared:
    return prepare("gaokao", Selection(data=real_data))


@pytest.fixture(scope="module")
def run(whole: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that guesses on the whole of GAOKAO-Bench, partial answers of Physics among them."""
    return answered(whole, tmp_path_factory.mktemp("runs"), guessing(750))


def official(run: Path, root: Path, year: str | None = None) -> Official:
    return Official(root, given(list(read_records(run / "records.jsonl"))), year)


@pytest.mark.real
@pytest.mark.parametrize("year", [None, "2010", "2014", "2022"])
def test_points_rates_and_marks_are_the_official_scripts(
    run: Path, real_data: Path, year: str | None
) -> None:
    found, expected = papers(run, year).report, official(run, real_data, year)
    for sheet in found.files:
        earned, possible, questions = expected.points[sheet.name]
        assert (sheet.possible, sheet.questions) == (possible, questions)
        if questions:
            assert sheet.earned == earned
            assert sheet.rounded == expected.rate([sheet.name])
        else:
            assert (sheet.rate, sheet.reason) == (None, "no questions")
    for sheet in found.subjects:
        assert sheet.rounded == expected.rates[sheet.name]
    assert found.whole.rounded == expected.rate(list(expected.points))
    for one in found.marks:
        assert one.official == expected.marks(one.name)
        assert one.most == pytest.approx(OBJECTIVE[one.name][0] * OBJECTIVE[one.name][1])
        assert one.total == OBJECTIVE[one.name][0]
    for total in found.totals:
        parts = [expected.marks(name) for name in TOTALS[total.name]]
        if None in parts:
            assert (total.exact, total.official) == (None, None)
            assert total.reason == "Geography: no questions"
        else:
            assert total.official == round(sum(p for p in parts if p is not None), 1)


@pytest.mark.real
def test_exact_marks_are_unrounded_and_lie_in_their_interval(run: Path) -> None:
    found = papers(run).report
    rates = {s.name: s.earned / s.possible for s in (*found.files, *found.subjects)}
    science = 0.0
    for one in found.marks:
        assert one.exact is not None
        assert one.exact.low < one.exact.value < one.exact.high <= one.most
        name = {"Science-Math": "2010-2022_Math_I_MCQs"}.get(one.name, one.name)
        if one.name in TOTALS["理科"]:
            science += one.most * rates[name]
    liberal, exact = (total.exact for total in found.totals)
    assert liberal is not None
    assert exact is not None
    assert exact.value == pytest.approx(science)
    assert [total.most for total in found.totals] == [pytest.approx(350), pytest.approx(331)]
    errors = [m.exact.stderr for m in found.marks if m.exact and m.name in TOTALS["理科"]]
    assert exact.stderr == pytest.approx(sum(e * e for e in errors) ** 0.5)


@pytest.mark.real
def test_years_add_up_to_the_whole(run: Path) -> None:
    found = papers(run)
    assert [one.year for one in found.years] == [str(year) for year in range(2010, 2023)]
    assert sum(one.whole.possible for one in found.years) == found.report.whole.possible == 9702
    assert sum(one.whole.questions for one in found.years) == 2944
    assert sum(one.whole.earned for one in found.years) == found.report.whole.earned


@pytest.mark.real
@pytest.mark.parametrize(("answers", "marks"), [(gold, [350, 331]), (nothing, [0, 0])])
def test_perfect_and_empty_papers(
    whole: Prepared, tmp_path: Path, answers: Any, marks: list[float]
) -> None:
    found = papers(answered(whole, tmp_path, answers)).report
    assert found.whole.earned == (9702 if marks[0] else 0)
    assert [total.official for total in found.totals] == marks
    assert [t.exact.value for t in found.totals if t.exact] == pytest.approx(marks)


def one_letter(item: Item) -> list[str]:
    """The first right letter and no other: all of it for one answer, half of it for several."""
    return [answer[:1] for answer in gold(item)]


@pytest.mark.real
def test_one_right_letter_of_several_earns_half_the_points(whole: Prepared, tmp_path: Path) -> None:
    found = papers(answered(whole, tmp_path, one_letter)).report
    (physics,) = (sheet for sheet in found.subjects if sheet.name == "Physics")
    # 41 questions have one right letter, 23 have more
    assert (physics.earned, physics.possible) == (41 * 6 + 23 * 3, 384)
    assert found.whole.earned == 9702 - 23 * 3
    assert physics.rate is not None
    assert physics.rate.low < physics.rate.value < physics.rate.high < 1


@pytest.mark.real
def test_a_file_that_lacks_records_leaves_no_total_but_its_name(
    whole: Prepared, tmp_path: Path
) -> None:
    def kept(record: Record) -> bool:
        return "Physics_MCQs/6" not in record.id

    folder = answered(whole, tmp_path, gold, keep=kept)
    found = papers(folder).report
    (physics,) = (sheet for sheet in found.files if "Physics" in sheet.name)
    assert (physics.rate, physics.reason) == (None, "5 of 64 questions not scored")
    assert found.whole.rate is None
    liberal, science = found.totals
    assert liberal.official == 350
    assert science.exact is None
    assert science.reason.startswith("Physics: 2010-2022_Physics_MCQs: 5 of 64 questions not")
    points, marks, _ = report.tables(folder)
    cells = {row[1].text: row[5] for row in points.rows}
    assert cells["2010-2022_Physics_MCQs"].text == "– (5 of 64 questions not scored)"
    assert cells["2010-2022_Physics_MCQs"].value is None
    assert marks.rows[-1][1].text.startswith("– (Physics: ")


@pytest.mark.real
def test_files_that_a_run_leaves_out_are_named(real_data: Path, tmp_path: Path) -> None:
    chosen = ["2010-2022_Biology_MCQs", "2010-2022_Physics_MCQs"]
    prepared = prepare("gaokao", Selection(subjects=chosen, data=real_data))
    found = papers(answered(prepared, tmp_path, gold)).report
    reasons = {sheet.name: sheet.reason for sheet in found.files}
    assert reasons.pop(chosen[0]) == reasons.pop(chosen[1]) == ""
    assert set(reasons.values()) == {"not in this run"}
    scored = {m.name: m.official for m in found.marks if m.exact}
    assert scored == {"Physics": 44, "Biology": 27}
    assert found.totals[1].reason.endswith("not in this run and 1 more")


@pytest.mark.real
def test_a_limited_run_has_rates_with_n_but_no_marks(real_data: Path, tmp_path: Path) -> None:
    prepared = prepare("gaokao", Selection(limit=2, data=real_data))
    found = papers(answered(prepared, tmp_path, gold)).report
    assert all(sheet.rate is not None for sheet in found.files)
    assert {one.reason for one in found.marks} == {"only the first 2 items of each file"}
    assert all(total.exact is None for total in found.totals)


@pytest.mark.real
def test_the_tables_show_no_whole_exam_and_say_why(run: Path) -> None:
    points, marks, years = report.tables(run)
    assert [row[0].text for row in points.rows].count("file") == 14
    for row in marks.rows:
        assert row[4].text == "– (not scored)"
        assert row[5].value is None
        assert row[5].text.startswith("– (of ")
    assert any("open questions are not scored" in note for note in marks.notes)
    assert years.columns[-2:] == ("文科 of 350", "理科 of 331")
    assert years.rows[0][6].text == "– (Geography: no questions)"  # 2010


@pytest.mark.real
def test_papers_on_the_command_line(run: Path) -> None:
    found = CliRunner().invoke(app, ["papers", str(run), "--year", "2021", "--json"])
    assert found.exit_code == 0, found.output
    points, marks, years = json.loads(found.stdout)
    assert "2021" in points["title"]
    assert len(marks["rows"]) == 12
    assert [row["year"] for row in years["rows"]] == ["2021"]


@pytest.mark.real
def test_a_year_that_no_exam_has_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="unknown year '2023': did you mean '2022'") as error:
        papers(run, "2023")
    assert "Known: 2010, 2011" in str(error.value)


@pytest.mark.real
def test_other_files_than_the_runs_are_refused(run: Path, real_data: Path, tmp_path: Path) -> None:
    changed = tmp_path / "gaokao-bench"
    for path in (real_data / "gaokao-bench").rglob("*.json"):
        copy = changed / path.relative_to(real_data / "gaokao-bench")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RunError, match=r"are not those that .* was asked; give --data the folder"):
        papers(run, data=tmp_path)


def test_a_task_without_papers_is_refused(tmp_path: Path) -> None:
    folder = answered(prepare("sample-mmlu", Selection()), tmp_path, gold)
    with pytest.raises(RunError, match="task 'sample-mmlu', which has no exam papers"):
        papers(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder; give one that 'ceval-suite run'"):
        papers(tmp_path)


# the published example: Results/merge_score.json @c214b47c, GPT-4-0314
PUBLISHED = {  # scoring rate of the objective questions → Objective_score
    "English": (0.931, 97.755),
    "Science-Math": (0.537, 32.22),
    "Liberal-Arts-Math": (0.633, 37.98),
    "Chinese": (0.539, 24.255),
    "Physics": (0.555, 24.42),
    "Chemistry": (0.444, 22.2),
    "Biology": (0.807, 21.789),
    "History": (0.756, 37.8),
    "Geography": (0.8, 32.0),
    "Politics": (0.759, 37.95),
}


def rates(paper: Paper) -> Iterator[tuple[str, Sheet]]:
    for name, part in paper.subjects.items():
        rate = PUBLISHED[name][0]
        estimate = Estimate(value=rate, n=1000, stderr=0.01, low=rate - 0.02, high=rate + 0.02)
        for file in part.files:
            yield file, Sheet(file, 1000, 1000.0, 1000 * rate, estimate)


def test_marks_equal_the_published_example() -> None:
    paper = load_task("gaokao").paper
    assert paper is not None
    marks, totals = converted(paper, dict(rates(paper)))
    assert {m.name: m.official for m in marks} == {n: m for n, (_, m) in PUBLISHED.items()}
    assert [total.official for total in totals] == [267.7, 222.6]
    assert [total.total for total in totals] == [750, 750]


def task_with(**paper: Any) -> dict[str, Any]:
    return load_task("gaokao").model_dump() | {"paper": {"source": "", **paper}}


@pytest.mark.parametrize(
    ("paper", "message"),
    [
        (
            {"subjects": {"Art": {"total": 100, "objective": 0.5, "files": ["2010_Art"]}}},
            "paper 'Art' names unknown subjects: 2010_Art",
        ),
        (
            {
                "subjects": {
                    "Physics": {"total": 9, "objective": 1, "files": ["2010-2022_Physics_MCQs"]}
                },
                "totals": {"理科": ["Physics", "Art"]},
            },
            "total '理科' names unknown subjects: Art",
        ),
        (
            {"subjects": {"A": {"total": 9, "objective": 1.5, "files": ["x"]}}},
            "less than or equal to 1",
        ),
        ({"subjects": {"A": {"total": 9, "objective": 1, "file": "x"}}}, "Extra inputs"),
    ],
)
def test_a_table_of_papers_is_checked(paper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task.model_validate(task_with(**paper))


def test_every_official_file_counts_in_exactly_one_paper() -> None:
    task = load_task("gaokao")
    assert task.paper is not None
    files = [file for part in task.paper.subjects.values() for file in part.files]
    assert sorted(files) == sorted(task.subjects)
    assert {k: set(v) for k, v in task.categories.items()} == {
        k: set(v) for k, v in SUBJECTS.items()
    }
    assert task.paper.totals == TOTALS
