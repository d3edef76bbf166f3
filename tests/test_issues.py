"""Bad and repeated items are found in the files; the list that ships is what the check finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ceval_suite import catalog, exclusions, issues
from ceval_suite.data import Reader
from ceval_suite.files import find_files
from ceval_suite.schema import Item

REAL = ("agieval", "ceval", "cmmlu", "gaokao", "mmlu")


@pytest.mark.real
def test_the_shipped_list_is_what_the_check_finds(real_data: Path) -> None:
    found = [i for name in REAL for i in issues.find(catalog.load_task(name), real_data)]
    shipped = exclusions.load("known-issues")
    assert shipped.items == issues.reasons(found)
    path = catalog.yaml_files(exclusions.FOLDER)["known-issues"]
    written = path.read_text(encoding="utf-8")
    assert written == issues.as_yaml("known-issues", found, REAL)


def test_the_shipped_list_names_what_was_found_by_hand() -> None:
    items = exclusions.load("known-issues").items
    for item, word in {
        "mmlu/test/college_medicine/152": "shot: also mmlu/dev/clinical_knowledge/0",
        "agieval/test/gaokao-chemistry/140": "shot: also agieval/shots/gaokao-chemistry/4",
        "ceval/val/college_economics/5": "conflict",
        "ceval/val/college_economics/54": "conflict",
        "agieval/test/sat-en/101": "conflict",
        "agieval/test/jec-qa-kd/211": "label: none",
        "agieval/test/gaokao-chemistry/74": "options",
        "mmlu/val/miscellaneous/9": "A and B equal, one of them gold",
        "gaokao/test/2010-2022_Chemistry_MCQs/8": "image: a link to a picture",
        "cmmlu/test/anatomy/100": "duplicate: same as cmmlu/test/anatomy/79",
        "mmlu/test/college_physics/97": "duplicate",
    }.items():
        assert word in items[item], item


def test_the_shipped_list_holds_ids_and_reasons_and_no_text_of_questions() -> None:
    items = exclusions.load("known-issues").items
    assert len(items) > 300
    for reason in items.values():
        for part in reason.split("; "):
            assert part.split(":")[0] in issues.KINDS
            assert part.isascii()


@pytest.mark.parametrize("name", [n for n in catalog.task_names() if n.startswith("sample-")])
def test_the_bundled_exams_have_no_issues(name: str) -> None:
    assert issues.find(catalog.load_task(name)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("高 二", "高二"),
        ("Ａ＋Ｂ", "A+B"),
        ("21. （ 6分）下列", "下列"),
        ("⽹⾯", "网面"),
        ("组成为（   ）", "组成为"),
        ("is ____", "is"),
        ("a\u200bb", "ab"),
    ],
)
def test_spellings_of_one_question_are_equal(one: str, other: str) -> None:
    assert issues.normalised(one) == issues.normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [("x+1", "x-1"), ("1.5 g", "15 g"), ("2.5 is", "is"), ("p(x)", "px")]
)
def test_other_questions_stay_apart(one: str, other: str) -> None:
    assert issues.normalised(one) != issues.normalised(other)


def mmlu_like(folder: Path, dev: list[str], test: list[str]) -> str:
    """A task of one subject over csv rows, on the search path."""
    task = yaml.safe_load(Path("tasks/sample-mmlu.yaml").read_text(encoding="utf-8"))
    subject = next(iter(task["subjects"]))
    counts = {"dev": len(dev), "test": len(test)}
    task |= {"name": "issues-mmlu", "subjects": {subject: {"counts": counts}}, "counts": counts}
    task["source"] = {**task["source"], "bundled": False, "folder": "issues-mmlu"}
    task.pop("groups", None)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "issues-mmlu.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    for split, rows in (("dev", dev), ("test", test)):
        path = folder / "issues-mmlu" / task["source"]["files"][split].format(subject=subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return f"issues-mmlu/test/{subject}"


def test_every_kind_of_issue_is_found_in_a_file_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    dev = [f"shot {n},1,2,3,4,A" for n in range(5)]
    test = [
        "plain,1,2,3,4,A",
        "sh ot 3,1,2,3,4,B",
        "twice,1,2,3,4,C",
        "twice ,1,2,3,4,C",
        "torn,1,2,3,4,A",
        "torn,1,2,3,4,B",
        "equal,1,1,3,4,A",
        "empty,1,2,,4,A",
        "what is shown in the figure,1,2,3,4,A",
        "twice,1,2,3,5,C",
    ]
    stem = mmlu_like(tmp_path, dev, test)
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    found = issues.reasons(issues.find(catalog.load_task("issues-mmlu"), tmp_path))
    catalog.load_task.cache_clear()
    assert found == {
        f"{stem}/1": f"shot: also {stem.replace('/test/', '/dev/')}/3",
        f"{stem}/3": f"duplicate: same as {stem}/2",
        f"{stem}/4": f"conflict: other gold label than {stem}/5",
        f"{stem}/5": f"conflict: other gold label than {stem}/4",
        f"{stem}/6": "options: A and B equal, one of them gold",
        f"{stem}/7": "options: C empty",
        f"{stem}/8": "image: refers to a figure",
    }


@pytest.mark.real
def test_word_for_word_copies_are_among_what_is_found(real_data: Path) -> None:
    # the plain comparison of data.py, as an oracle
    from ceval_suite.data import duplicates

    task = catalog.load_task("mmlu")
    reader = Reader(task, find_files(task, real_data))
    items: list[Item] = [i for s in task.subjects for i in reader.items(s, "test")]
    copies = {id for ids in duplicates(items).values() for id in ids[1:]}
    found = {i.item for i in issues.find(task, real_data) if i.kind in ("duplicate", "conflict")}
    assert copies <= found
    assert len(copies) == 105
