"""Where benchmark files may lie, and what a user is told when they are not as published.

The exams are the small bundled ones, laid out as each benchmark publishes its own.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ceval_suite import catalog, files
from ceval_suite.catalog import load_task
from ceval_suite.data import Reader
from ceval_suite.errors import DataError
from ceval_suite.files import Files, find_files
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Item
from ceval_suite.specs import Task

SAMPLE = Path(__file__).parents[1] / "tasks" / "sample"
TASKS = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")
AGAIN = "fetch the benchmark again"


@pytest.fixture(autouse=True)
def _no_other_places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Nothing of the user's own data or cache is looked at."""
    monkeypatch.delenv("CEVAL_SUITE_DATA", raising=False)
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path_factory.mktemp("cache")))


def mini(name: str) -> Task:
    """The shipped task with the subjects of the bundled exam in its layout."""
    sample = load_task(f"sample-{name}")
    update = {"subjects": sample.subjects, "counts": sample.counts, "groups": {}}
    return load_task(name).model_copy(update=update | {"sub_questions": None, "points": None})


def published(name: str) -> dict[str, bytes]:
    """Path under the benchmark's folder → bytes, of the bundled exam."""
    folder = SAMPLE / load_task(name).source.folder
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def lay_out(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def under(prefix: str, content: dict[str, bytes]) -> dict[str, bytes]:
    return {prefix + name: data for name, data in content.items()}


def everything(task: Task, found: Files) -> list[Item]:
    """All items and shots of a task, without the task's name in their ids."""
    reader = Reader(task, found)
    splits = [s for s in task.source.files if s in task.counts]
    items = [i for s in task.subjects for p in splits for i in reader.items(s, p)]
    items += [shot for s in task.subjects for shot in reader.shots(s)]
    return [replace(i, id=i.id.split("/", 1)[1]) for i in items]


def bundled(name: str) -> list[Item]:
    task = load_task(f"sample-{name}")
    return everything(task, find_files(task))


def message(act: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# ------------------------------------------------------------------------------ places and layouts


@pytest.mark.parametrize("name", TASKS)
def test_an_unpacked_folder_under_the_data_root_is_found(name: str, tmp_path: Path) -> None:
    task = mini(name)
    lay_out(tmp_path / task.source.folder, published(name))
    found = find_files(task, tmp_path)
    assert found.place == tmp_path / task.source.folder
    assert everything(task, found) == bundled(name)


@pytest.mark.parametrize("name", TASKS)
def test_the_data_root_may_be_the_benchmarks_own_folder(name: str, tmp_path: Path) -> None:
    task = mini(name)
    lay_out(tmp_path / "anything", published(name))
    found = find_files(task, tmp_path / "anything")
    assert everything(task, found) == bundled(name)


JUNK = {"README.md": b"text", "data/.DS_Store": b"\0\1", "notes/dev.csv": b"no,such,table\n"}


def archives() -> dict[str, tuple[str, Callable[[], dict[str, bytes]]]]:
    """File name → task and members, as each archive is published."""

    def gaokao_result() -> dict[str, bytes]:
        return {"GAOKAO-Bench-main/Results/gpt-4/x_2010-2022_Biology_MCQs.json": b"{}"}

    def old_gaokao() -> dict[str, bytes]:
        return {
            f"GAOKAO-Bench-5f7/data/Multiple-choice_Questions/{Path(n).name}": data
            for n, data in published("gaokao").items()
        }

    def macos(content: dict[str, bytes]) -> dict[str, bytes]:
        junk = {f"__MACOSX/{Path(n).parent}/._{Path(n).name}": b"\0\5\x16\7" for n in content} | {
            f"__MACOSX/{n}": b"\0\5\x16\7" for n in content
        }
        return content | junk | {".DS_Store": b"\0\0\0\1Bud1"}

    return {
        "data.tar": ("mmlu", lambda: under("data/", published("mmlu")) | {"data/README.txt": b"x"}),
        "data.tgz": ("mmlu", lambda: under("./data/", published("mmlu"))),
        "ceval-exam.zip": ("ceval", lambda: published("ceval")),
        "cmmlu_v1_0_1.zip": ("cmmlu", lambda: macos(published("cmmlu"))),
        "CMMLU-master.zip": (
            "cmmlu",
            lambda: (
                under("CMMLU-master/data/", published("cmmlu"))
                | under("__MACOSX/", dict.fromkeys(published("cmmlu"), b"\0\5\x16\7"))
                | JUNK
            ),
        ),
        "AGIEval-main.zip": (
            "agieval",
            lambda: (
                under("AGIEval-main/data/", published("agieval"))
                | {
                    "AGIEval-main/data/v1_1/logic-games.jsonl": b"{}",
                    "AGIEval-main/README.md": b"x",
                }
            ),
        ),
        "GAOKAO-Bench-main.zip": (
            "gaokao",
            lambda: under("GAOKAO-Bench-main/Data/", published("gaokao")) | gaokao_result(),
        ),
        "GAOKAO-Bench-5f7.zip": ("gaokao", old_gaokao),
    }


@pytest.mark.parametrize(
    ("archive", "where"),
    [
        (archive, where)
        for archive in archives()
        for where in ("in its folder", "beside the folders", "itself")
        # nothing in the name data.tgz says whose it is
        if (archive, where) != ("data.tgz", "beside the folders")
    ],
)
def test_every_published_archive_is_read_without_unpacking(
    archive: str, where: str, tmp_path: Path
) -> None:
    name, content = archives()[archive]
    task = mini(name)
    folder = tmp_path / task.source.folder if where == "in its folder" else tmp_path
    path = pack(folder / archive, content())
    found = find_files(task, path if where == "itself" else tmp_path)
    assert found.place == path
    assert everything(task, found) == bundled(name)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_an_unpacked_folder_is_preferred_to_an_archive_beside_it(tmp_path: Path) -> None:
    task = mini("cmmlu")
    lay_out(tmp_path / "cmmlu", published("cmmlu"))
    pack(tmp_path / "cmmlu" / "cmmlu_v1_0_1.zip", published("cmmlu"))
    assert find_files(task, tmp_path).place == tmp_path / "cmmlu"


def test_archives_of_other_benchmarks_in_the_root_are_passed_over(tmp_path: Path) -> None:
    pack(tmp_path / "cmmlu_v1_0_1.zip", published("cmmlu"))
    path = pack(tmp_path / "data.tar", under("data/", published("mmlu")))
    assert find_files(mini("mmlu"), tmp_path).place == path


def test_another_benchmarks_folder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    # MMLU and C-Eval share seven names such as dev/high_school_physics_dev.csv
    shared = ("dev/high_school_physics_dev.csv", "val/high_school_physics_val.csv")
    lay_out(tmp_path / "mmlu", dict.fromkeys(shared, b"q,a,b,c,d,A\n"))
    assert find_files(load_task("mmlu"), tmp_path).place == tmp_path / "mmlu"
    text = message(lambda: find_files(load_task("ceval"), tmp_path))
    assert "no benchmark files under" in text


def test_places_are_searched_in_order_and_named_when_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = mini("cmmlu")
    monkeypatch.setenv("CEVAL_SUITE_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path / "cache"))
    text = message(lambda: find_files(task))
    assert str(tmp_path / "env" / "cmmlu") in text
    assert str(tmp_path / "cache" / "data" / "cmmlu") in text
    assert "ceval-suite data fetch cmmlu" in text

    lay_out(tmp_path / "cache" / "data" / "cmmlu", published("cmmlu"))
    assert find_files(task).place == tmp_path / "cache" / "data" / "cmmlu"
    lay_out(tmp_path / "env" / "cmmlu", published("cmmlu"))
    assert find_files(task).place == tmp_path / "env" / "cmmlu"
    # a folder given by name is the only one searched
    (tmp_path / "empty").mkdir()
    assert "env" not in message(lambda: find_files(task, tmp_path / "empty"))
    assert "does not exist" in message(lambda: find_files(task, tmp_path / "absent"))


# ----------------------------------------------------------------------------------- bad archives


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("archive", ["cmmlu_v1_0_1.zip", "cmmlu.tar"])
def test_members_that_point_outside_are_never_written(archive: str, tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "data"
    evil = ("../evil.csv", "../../dev/evil.csv", "dev/../../../evil.csv", f"{tmp_path}/evil.csv")
    content = published("cmmlu") | dict.fromkeys(evil, b"evil")
    pack(home / "cmmlu" / archive, content)
    before = tree(tmp_path)
    found = find_files(mini("cmmlu"), home)
    assert everything(mini("cmmlu"), found) == bundled("cmmlu")
    assert tree(tmp_path) == before


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(b"secret")
    content = published("cmmlu")
    name = "dev/chinese_language.csv"
    del content[name]
    path = pack(tmp_path / "data" / "cmmlu" / "cmmlu.tar", content)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.csv")
        archive.addfile(link)
    task = mini("cmmlu")
    found = find_files(task, tmp_path / "data")
    assert f"{name} is missing" in message(
        lambda: Reader(task, found).items("chinese_language", "dev")
    )


@pytest.mark.parametrize(
    ("archive", "spoil"),
    [
        ("ceval-exam.zip", lambda data: b"<html>not found</html>"),
        ("ceval-exam.zip", lambda data: data[: len(data) // 2]),
        ("ceval-exam.zip", lambda data: b""),
        ("ceval.tar", lambda data: b"\x1f\x8bgarbage"),
        ("ceval.tgz", lambda data: data[: len(data) // 2]),
    ],
    ids=["an error page", "half a zip", "empty", "garbage", "half a tgz"],
)
def test_a_broken_archive_is_named_with_the_remedy(
    archive: str, spoil: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = pack(tmp_path / "ceval" / archive, published("ceval"))
    path.write_bytes(spoil(path.read_bytes()))
    text = message(lambda: find_files(mini("ceval"), tmp_path))
    assert str(path) in text
    assert "delete it and fetch it again" in text


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_named_when_it_is_read(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "ceval" / "ceval-exam.zip"
    path.parent.mkdir()
    member = "val/computing_val.csv"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in published("ceval").items():
            archive.writestr(name, data)
        start = archive.getinfo(member).header_offset + 30 + len(member)
    raw = bytearray(path.read_bytes())
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    task = mini("ceval")
    reader = Reader(task, find_files(task, tmp_path))
    text = message(lambda: reader.items("computing", "val"))
    assert f"{path}/{member}" in text
    assert AGAIN in text
    assert reader.items("natural_science", "val")


def test_an_encrypted_archive_is_a_sentence(tmp_path: Path) -> None:
    path = pack(tmp_path / "ceval" / "ceval-exam.zip", published("ceval"))
    raw = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = raw.find(signature)
        while at >= 0:
            raw[at + flags] |= 1
            at = raw.find(signature, at + 4)
    path.write_bytes(raw)
    task = mini("ceval")
    text = message(lambda: Reader(task, find_files(task, tmp_path)).items("computing", "val"))
    assert "encrypted" in text


@pytest.mark.parametrize("archive", ["ceval-exam.zip", "ceval.tar"])
def test_a_member_larger_than_any_benchmark_file_is_refused(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "ceval" / archive, published("ceval"))
    monkeypatch.setattr(files, "MAX_MEMBER", 10)
    task = mini("ceval")
    found = find_files(task, tmp_path)
    text = message(lambda: Reader(task, found).items("computing", "val"))
    assert "val/computing_val.csv" in text


# ------------------------------------------------------------------------------ bad benchmark files


def spoiled(
    name: str, path: str, spoil: Callable[[bytes], bytes], tmp_path: Path
) -> tuple[Task, Files]:
    content = published(name)
    assert spoil(content[path]) != content[path]
    content[path] = spoil(content[path])
    task = mini(name)
    lay_out(tmp_path / task.source.folder, content)
    return task, find_files(task, tmp_path)


def in_rows(change: Callable[[list[list[str]]], None]) -> Callable[[bytes], bytes]:
    """A csv file with its parsed rows changed."""

    def spoil(data: bytes) -> bytes:
        rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
        change(rows)
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().encode()

    return spoil


def cell(row: int, column: int, value: str) -> Callable[[bytes], bytes]:
    def change(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return in_rows(change)


def drop_column(column: int) -> Callable[[bytes], bytes]:
    def change(rows: list[list[str]]) -> None:
        for row in rows:
            del row[column]

    return in_rows(change)


def extra_comma(row: int) -> Callable[[bytes], bytes]:
    return in_rows(lambda rows: rows[row].append("x"))


def in_line(number: int, change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        lines = data.decode().split("\n")
        lines[number] = change(lines[number])
        return "\n".join(lines).encode()

    return spoil


def with_key(key: str, value: object) -> Callable[[str], str]:
    return lambda line: json.dumps(json.loads(line) | {key: value}, ensure_ascii=False)


def without_key(key: str) -> Callable[[str], str]:
    return lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != key})


def in_example(row: int, **changes: object) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        content = json.loads(data)
        example = content["example"][row] | changes
        content["example"][row] = {k: v for k, v in example.items() if v is not None}
        return json.dumps(content, ensure_ascii=False).encode()

    return spoil


CMMLU, CEVAL = "test/chinese_language.csv", "val/computing_val.csv"
MMLU, AGIEVAL = "test/english_usage_test.csv", "v1/zh-reading.jsonl"
GAOKAO = "Objective_Questions/Sample_Biology_MCQs.json"

BAD_FILES = {
    "a named column is missing": ("cmmlu", CMMLU, drop_column(5), "column D is missing"),
    "the label column is missing": ("ceval", CEVAL, drop_column(6), "column answer is missing"),
    "a column without a name is missing": ("mmlu", MMLU, drop_column(5), "column number 6"),
    "the first csv row is a stranger": ("mmlu", MMLU, lambda d: b"x,y\n" + d, "column number 6"),
    "a row has one column more": ("cmmlu", CMMLU, extra_comma(4), "row 3 has 8 columns"),
    "a row has one column less": (
        "mmlu",
        MMLU,
        in_rows(lambda r: r[7].pop()),
        "row 7 has 5 columns",
    ),
    "a quote is never closed": (
        "cmmlu",
        CMMLU,
        in_line(6, lambda line: line.replace(",", ',"', 1)),
        "row 5 has",
    ),
    "a csv label is no option": ("ceval", CEVAL, cell(3, 6, "E"), "row 2: label 'E'"),
    "a csv label is lower case": ("mmlu", MMLU, cell(3, 5, "a"), "row 3: label 'a'"),
    "a csv label is empty": ("cmmlu", CMMLU, cell(9, 6, " "), "row 8 has no label"),
    "a csv file is empty": ("mmlu", MMLU, lambda d: b"", "the file is empty"),
    "a csv file is not UTF-8": (
        "cmmlu",
        CMMLU,
        lambda d: d.decode().encode("gb18030"),
        "not UTF-8",
    ),
    "a jsonl file is not UTF-8": ("agieval", AGIEVAL, lambda d: b"\xff" + d, "not UTF-8"),
    "a json file is not UTF-8": (
        "gaokao",
        GAOKAO,
        lambda d: d[:99] + b"\xff" + d[99:],
        "not UTF-8",
    ),
    "a json line is cut": ("agieval", AGIEVAL, in_line(4, lambda s: s[:40]), "line 5 is not"),
    "a json line is no row": ("agieval", AGIEVAL, in_line(4, lambda s: "[1, 2]"), "line 5 is not"),
    "a jsonl row has no question": (
        "agieval",
        AGIEVAL,
        in_line(2, without_key("question")),
        "line 3",
    ),
    "a jsonl label is no option": (
        "agieval",
        AGIEVAL,
        in_line(7, with_key("label", "E")),
        "line 8: label 'E' is none of A, B, C, D",
    ),
    "a jsonl label is no letter": (
        "agieval",
        AGIEVAL,
        in_line(7, with_key("label", "7")),
        "line 8",
    ),
    "a jsonl label is a letter too far": (
        "agieval",
        AGIEVAL,
        in_line(7, with_key("label", ["A", "H"])),
        "line 8",
    ),
    "a jsonl label is a number": ("agieval", AGIEVAL, in_line(7, with_key("label", 2)), "line 8"),
    "a json file is cut": ("gaokao", GAOKAO, lambda d: d[:500], "item 0 cannot be read"),
    "a json file has no examples": ("gaokao", GAOKAO, lambda d: b'{"keywords": ""}', "'example'"),
    "an example has no question": ("gaokao", GAOKAO, in_example(5, question=None), "item 5"),
    "an example has no answer": ("gaokao", GAOKAO, in_example(6, answer=None), "item 6"),
    "an example's answer is no option": (
        "gaokao",
        GAOKAO,
        in_example(7, answer=["E"]),
        "item 7: label 'E' is none of A, B, C, D",
    ),
    "a single question has two answers": (
        "gaokao",
        GAOKAO,
        in_example(8, answer=["A", "B"]),
        "item 8",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_broken_file_is_named_with_its_row_or_column_and_the_remedy(
    case: str, tmp_path: Path
) -> None:
    name, path, spoil, expected = BAD_FILES[case]
    task, found = spoiled(name, path, spoil, tmp_path)
    text = message(lambda: everything(task, found))
    assert str(tmp_path / task.source.folder / path) in text
    assert expected in text
    assert AGAIN in text


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda d: d.replace(b"zh-reading", b"zh-writing", 1), "no column 'zh-reading'"),
        (cell(1, 3, "{'question': "), "column 'zh-reading', shot 1"),
        (cell(3, 3, "{'label': 'A', 'options': ['(A)1']}"), "column 'zh-reading', shot 2"),
        (cell(1, 3, "__import__('os').getcwd()"), "column 'zh-reading', shot 1"),
    ],
    ids=["column missing", "cell cut", "cell without question", "cell with code"],
)
def test_a_broken_shot_is_named_with_its_column(
    spoil: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    task, found = spoiled("agieval", "few_shot_prompts.csv", spoil, tmp_path)
    text = message(lambda: everything(task, found))
    assert str(tmp_path / "agieval" / "few_shot_prompts.csv") in text
    assert expected in text
    assert AGAIN in text


def test_a_shot_without_explanation_is_still_a_shot(tmp_path: Path) -> None:
    task, found = spoiled("agieval", "few_shot_prompts.csv", cell(2, 3, ""), tmp_path)
    whole = [i.question for i in bundled("agieval") if i.id.startswith("shots/zh-reading/")]
    shots = Reader(task, found).shots("zh-reading")
    assert [shot.question for shot in shots] == whole
    assert [bool(shot.explanation) for shot in shots] == [False] + [True] * (len(whole) - 1)


@pytest.mark.parametrize(
    ("name", "path", "spoil"),
    [
        ("mmlu", MMLU, in_rows(lambda rows: rows.pop())),
        ("cmmlu", CMMLU, in_rows(lambda rows: rows.append(rows[-1]))),
        ("agieval", AGIEVAL, lambda data: data.split(b"\n", 1)[1]),
        (
            "gaokao",
            GAOKAO,
            lambda d: json.dumps({"example": json.loads(d)["example"][1:]}).encode(),
        ),
    ],
)
def test_a_wrong_number_of_items_stops_and_names_both_numbers(
    name: str, path: str, spoil: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    task, found = spoiled(name, path, spoil, tmp_path)
    text = message(lambda: everything(task, found))
    assert str(tmp_path / task.source.folder / path) in text
    assert re.search(r": (19|21) items where the published file has 20", text)
    assert AGAIN in text


@pytest.mark.parametrize(
    ("name", "path"), [("mmlu", MMLU), ("agieval", AGIEVAL), ("gaokao", GAOKAO)]
)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(
    name: str, path: str, tmp_path: Path
) -> None:
    task = mini(name)
    content = published(name)
    del content[path]
    lay_out(tmp_path / task.source.folder, content)
    found = find_files(task, tmp_path)
    text = message(lambda: everything(task, found))
    assert f"{tmp_path / task.source.folder / path} is missing" in text
    assert f"ceval-suite data fetch {name}" in text


@pytest.fixture
def mini_ceval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """C-Eval with the bundled exam's subjects, as a task of the user's own folder."""
    content = mini("ceval").model_dump(mode="json") | {"name": "mini-ceval"}
    (tmp_path / "own" / "tasks").mkdir(parents=True)
    text = yaml.safe_dump(content, allow_unicode=True)
    (tmp_path / "own" / "tasks" / "mini-ceval.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "own"))
    catalog.load_task.cache_clear()
    yield "mini-ceval"
    catalog.load_task.cache_clear()


def test_only_dev_present_is_refused_and_never_scored(mini_ceval: str, tmp_path: Path) -> None:
    dev = {n: data for n, data in published("ceval").items() if n.startswith("dev/")}
    lay_out(tmp_path / "data" / "ceval", dev)
    text = message(lambda: prepare(mini_ceval, Selection(data=tmp_path / "data")))
    assert "_val.csv is missing (only dev is there, which is never scored instead)" in text
    assert "ceval-suite data fetch" in text
    # nor when it is asked for by name, as long as its items stand in the prompt
    text = message(lambda: prepare(mini_ceval, Selection(data=tmp_path / "data", split="dev")))
    assert "holds the shots themselves" in text


def test_a_missing_dev_split_stops_few_shot_runs_but_not_zero_shot(
    mini_ceval: str, tmp_path: Path
) -> None:
    val = {n: data for n, data in published("ceval").items() if n.startswith("val/")}
    lay_out(tmp_path / "data" / "ceval", val)
    text = message(lambda: prepare(mini_ceval, Selection(data=tmp_path / "data")))
    assert "_dev.csv is missing (only val is there" in text
    prepared = prepare(mini_ceval, Selection(data=tmp_path / "data", shots=0))
    assert len(prepared.scored()) == 60


def test_a_split_without_labels_is_read_as_unlabelled_and_only_there(
    mini_ceval: str, tmp_path: Path
) -> None:
    bare = {
        n.replace("val", "test"): drop_column(6)(data)
        for n, data in published("ceval").items()
        if n.startswith("val/")
    }
    lay_out(tmp_path / "data" / "ceval", published("ceval") | bare)
    prepared = prepare(mini_ceval, Selection(data=tmp_path / "data", split="test"))
    items = [i for group in prepared.items.values() for i in group]
    assert len(items) == 60
    assert {i.answer for i in items} == {()}
    assert {i.labels for i in items} == {tuple("ABCD")}


# ------------------------------------------------------------------------- unusual but sound files


def test_a_byte_order_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    for name, path in (("cmmlu", CMMLU), ("agieval", AGIEVAL), ("gaokao", GAOKAO)):
        task, found = spoiled(name, path, lambda data: b"\xef\xbb\xbf" + data, tmp_path / name)
        assert everything(task, found) == bundled(name)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_line_separators_inside_a_json_text_do_not_split_its_line(
    separator: str, tmp_path: Path
) -> None:
    def spoil(line: str) -> str:
        text = json.dumps(json.loads(line) | {"question": "甲MARK乙"}, ensure_ascii=False)
        escaped = separator if separator >= "\x80" else f"\\u{ord(separator):04x}"
        return text.replace("MARK", escaped)

    task, found = spoiled("agieval", AGIEVAL, in_line(3, spoil), tmp_path)
    items = Reader(task, found).items("zh-reading", "test")
    assert len(items) == 20
    assert items[3].question == f"甲{separator}乙"


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    for name, path in (("cmmlu", CMMLU), ("mmlu", MMLU), ("agieval", AGIEVAL)):
        task, found = spoiled(name, path, lambda d: d.replace(b"\n", b"\r\n"), tmp_path / name)
        assert everything(task, found) == bundled(name)


def test_files_read_from_an_archive_and_a_folder_have_one_hash(tmp_path: Path) -> None:
    task = mini("ceval")
    lay_out(tmp_path / "folder" / "ceval", published("ceval"))
    pack(tmp_path / "zip" / "ceval" / "ceval-exam.zip", published("ceval"))
    readers = [Reader(task, find_files(task, tmp_path / kind)) for kind in ("folder", "zip")]
    for reader in readers:
        reader.items("computing", "val")
    assert readers[0].sha256 == readers[1].sha256
    shutil.rmtree(tmp_path / "folder")
