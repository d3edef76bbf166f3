"""A run folder survives a kill at any byte and never takes records of another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import records
from ceval_suite.errors import RunError
from ceval_suite.records import (
    RunFolder,
    find_runs,
    folder_name,
    read_json,
    read_records,
    safe_name,
    write_json,
)
from ceval_suite.schema import Record

IDENTITY = {
    "protocol_sha256": "a" * 64,
    "model": "tiny",
    "weights_sha256": "b" * 64,
    "tokenizer_sha256": "c" * 64,
    "dtype": "auto",
    "max_length": None,
}

ONE = Record(
    id="cmmlu/test/law/0",
    subject="law",
    answer=["C"],
    prediction=["C"],
    correct=True,
    score=1.0,
    logits={"A": 0.5, "B": -1.25, "C": 3.0, "D": 0.1},
    logprobs={"A": -3.5, "B": -5.25, "C": -1.0, "D": -3.9},
    choice_mass=0.93,
    tie=False,
    text=None,
    shots=5,
    prompt_tokens=731,
    prompt_sha256="d" * 64,
)


def row(number: int, **changes: Any) -> Record:
    return replace(ONE, id=f"cmmlu/test/law/{number}", **changes)


def folder(path: Path, **identity: Any) -> RunFolder:
    return RunFolder(path, IDENTITY | identity, {"task": "cmmlu"})


def filled(path: Path, count: int = 3) -> Path:
    """A run folder with some records; returns its records file."""
    with folder(path) as run:
        for number in range(count):
            run.append(row(number))
    return path / "records.jsonl"


# the contract of records.jsonl


def test_a_line_has_the_keys_of_the_contract_in_their_order(tmp_path: Path) -> None:
    line = filled(tmp_path / "run", 1).read_text(encoding="utf-8")
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    found = json.loads(line)
    assert list(found) == [
        "id",
        "subject",
        "answer",
        "prediction",
        "correct",
        "score",
        "logits",
        "logprobs",
        "choice_mass",
        "tie",
        "text",
        "shots",
        "prompt_tokens",
        "prompt_sha256",
    ]
    empty = {
        "bounded": [],
        "cut": False,
        "predictions": {},
        "opinions": {},
        "cluster": "",
        "turns": [],
    }
    assert found | empty == asdict(row(0))
    assert list(found["logits"]) == ["A", "B", "C", "D"]


def test_chinese_is_written_as_it_is(tmp_path: Path) -> None:
    with folder(tmp_path / "run") as run:
        run.append(row(0, subject="法理学"))
    assert "法理学".encode() in (tmp_path / "run" / "records.jsonl").read_bytes()


def test_a_line_break_inside_a_value_does_not_break_the_line(tmp_path: Path) -> None:
    odd = row(0, subject="a\nb\r\u2028c\x00")
    with folder(tmp_path / "run") as run:
        run.append(odd)
    assert list(read_records(tmp_path / "run" / "records.jsonl")) == [odd]


def test_records_come_back_equal(tmp_path: Path) -> None:
    written = [row(0), row(1, correct=None, score=None, answer=[]), row(2, logits={}, text="答案")]
    with folder(tmp_path / "run") as run:
        for record in written:
            run.append(record)
    assert list(read_records(tmp_path / "run" / "records.jsonl")) == written


def test_each_record_is_visible_to_another_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "records.jsonl"
    with folder(tmp_path / "run") as run:
        assert list(read_records(path)) == []
        for number in range(5):
            run.append(row(number))
            assert [r.id for r in read_records(path)] == [row(n).id for n in range(number + 1)]


def test_reopening_remembers_what_is_done_and_appends_after_it(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 2)
    before = path.read_bytes()
    with folder(tmp_path / "run") as run:
        assert list(run.done) == [row(0).id, row(1).id]
        run.append(row(2))
        assert set(run.done) == {row(n).id for n in range(3)}
    assert path.read_bytes().startswith(before)
    assert len(list(read_records(path))) == 3


def test_no_records_file_is_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "records.jsonl")) == []


# kills and broken files


def test_a_last_line_torn_at_any_byte_is_cut_off_on_reopening(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 3)
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(content)):
        path.write_bytes(content[:cut])
        assert [r.id for r in read_records(path)] == [row(0).id, row(1).id]
        with folder(tmp_path / "run") as run:
            assert list(run.done) == [row(0).id, row(1).id]
            run.append(row(2))
        assert path.read_bytes() == content, f"cut at byte {cut - start} of the last line"


def test_a_first_line_torn_at_any_byte_leaves_an_empty_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 1)
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with folder(tmp_path / "run") as run:
            assert run.done == {}
        assert path.read_bytes() == b""


def test_a_tear_inside_a_character_is_repaired(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 1)
    with path.open("ab") as stream:
        stream.write('{"id":"法'.encode()[:-1])
    with folder(tmp_path / "run") as run:
        assert list(run.done) == [row(0).id]
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize(
    "broken",
    ["", "{", '{"id": "x"}', "[1, 2]", "null", '"text"', "\x00\x00"],
    ids=["empty", "cut", "keys missing", "list", "null", "string", "nul"],
)
def test_a_broken_middle_line_is_refused_with_its_number(tmp_path: Path, broken: str) -> None:
    path = filled(tmp_path / "run", 3)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], broken, lines[2]]) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"records\.jsonl: line 2 is broken .* remove that line"):
        folder(tmp_path / "run").__enter__()


def test_an_item_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 2)
    first = path.read_bytes().split(b"\n")[0]
    with path.open("ab") as stream:
        stream.write(first + b"\n")
    with pytest.raises(RunError, match=r"item cmmlu/test/law/0 stands twice"):
        folder(tmp_path / "run").__enter__()


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    path = filled(tmp_path / "run", 1)
    content = path.read_bytes()
    path.write_bytes(content * 2)
    with pytest.raises(RunError, match="twice"):
        folder(tmp_path / "run").__enter__()
    path.write_bytes(content)
    with folder(tmp_path / "run") as run:
        assert len(run.done) == 1


# whose records they are


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol_sha256", "e" * 64),
        ("model", "other"),
        ("weights_sha256", "e" * 64),
        ("tokenizer_sha256", "e" * 64),
        ("dtype", "bfloat16"),
        ("max_length", 2048),
        ("adapter_sha256", "e" * 64),
    ],
)
def test_records_of_another_run_are_refused_with_a_sentence(
    tmp_path: Path, key: str, value: Any
) -> None:
    path = filled(tmp_path / "run")
    before = path.read_bytes(), (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunError) as caught:
        folder(tmp_path / "run", **{key: value}).__enter__()
    sentence = str(caught.value)
    assert f"holds records of another {key}" in sentence
    assert str(value)[:16] in sentence
    assert sentence.endswith("use another --out, or delete the folder.")
    assert "\n" not in sentence
    assert (path.read_bytes(), (tmp_path / "run" / "run.json").read_bytes()) == before


def test_a_concern_that_only_one_of_two_runs_has_makes_them_different(tmp_path: Path) -> None:
    filled(tmp_path / "plain")
    with pytest.raises(RunError, match="another quant "):
        folder(tmp_path / "plain", quant="int8").__enter__()
    with folder(tmp_path / "int8", quant="int8") as run:
        run.append(row(0))
    with pytest.raises(RunError, match="another quant "):
        folder(tmp_path / "int8").__enter__()


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    run = tmp_path / "run" / "run.json"
    write_json(run, read_json(run) | {"format": records.FORMAT + 1})
    with pytest.raises(RunError, match="has format 2, this is 1"):
        folder(tmp_path / "run").__enter__()


def test_a_run_that_failed_before_its_first_record_binds_nobody(tmp_path: Path) -> None:
    filled(tmp_path / "run", 0)
    (tmp_path / "run" / "records.jsonl").write_text('{"id":"cmm')
    with folder(tmp_path / "run", max_length=2048) as run:
        assert run.done == {}
    assert read_json(tmp_path / "run" / "run.json")["identity"]["max_length"] == 2048


def test_records_without_a_run_json_belong_to_nobody(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunError, match=r"no run\.json beside it"):
        folder(tmp_path / "run").__enter__()


def test_a_folder_killed_before_run_json_was_written_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").touch()
    (tmp_path / "run" / ".run.json.partial").write_text('{"for')
    with folder(tmp_path / "run") as run:
        run.append(row(0))
    assert read_json(tmp_path / "run" / "run.json")["identity"] == IDENTITY


HOLDER = """
import sys
from pathlib import Path
from ceval_suite.records import RunFolder
with RunFolder(Path(sys.argv[1]), {}, {}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run folder until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_folder_that_another_process_writes_is_refused(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"is being written by another run \(pid \d+ of .*\); wait"):
        RunFolder(tmp_path / "run", {}, {}).__enter__()
    holder.communicate("")
    assert holder.returncode == 0
    with RunFolder(tmp_path / "run", {}, {}):
        pass


def test_the_lock_of_a_killed_process_does_not_stay(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path / "run", {}, {}) as run:
        run.append(row(0))


# run.json and summary.json


def test_run_json_holds_format_identity_and_what_is_known(tmp_path: Path) -> None:
    with folder(tmp_path / "run") as run:
        run.append(row(0))
        run.update({"seconds": {"scoring": 1.5}})
    found = read_json(tmp_path / "run" / "run.json")
    assert found == {
        "format": records.FORMAT,
        "identity": IDENTITY,
        "task": "cmmlu",
        "seconds": {"scoring": 1.5},
    }
    with folder(tmp_path / "run") as run:
        assert run.about["seconds"] == {"scoring": 1.5}  # what an earlier run knew is kept


def test_json_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    contents = [{"letter": letter, "filler": [letter] * 20_000} for letter in "ab"]
    write_json(path, contents[0])
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            found = json.loads(path.read_text(encoding="utf-8"))
            assert set(found["filler"]) == {found["letter"]}
            seen.append(found["letter"])

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_json(path, contents[turn % 2])
    stop.set()
    reader.join()
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": True}

    def killed(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(
        RunError, match=r"run\.json: cannot be written \(no space left\); make room"
    ):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"], ids=["empty", "cut", "list", "bytes"])
def test_a_broken_json_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"run\.json: not .*; put a copy of it back, or delete"):
        read_json(path)


# a field that only some lines have


def test_labels_that_are_only_bounded_are_named_and_other_lines_stay_as_they_were(
    tmp_path: Path,
) -> None:
    with folder(tmp_path / "run") as run:
        run.append(row(0))
        run.append(row(1, bounded=["A", "D"]))
    first, second = map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    assert "bounded" not in first
    assert second == {**first, "id": second["id"], "bounded": ["A", "D"]}
    assert [record.bounded for record in read_records(tmp_path / "run" / "records.jsonl")] == [
        [],
        ["A", "D"],
    ]


# names


def test_the_folder_name_says_task_split_shots_and_fingerprint() -> None:
    assert folder_name("ceval", "val", 5, "0123456789abcdef") == "ceval-val-5shot-01234567"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen3-0.6B", "Qwen_Qwen3-0.6B"),
        ("../x", "x"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "model"),
        (".", "model"),
        ("", "model"),
        ("/", "model"),
        ("C:\\models\\a", "C_models_a"),
        ("a:b", "a_b"),
        ("模型-七", "模型-七"),
        ("a b\tc\nd\x00e", "a_b_c_d_e"),
        ("<script>|*?", "script"),
        (".hidden", "hidden"),
    ],
)
def test_odd_model_names_become_one_harmless_folder(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@given(st.text(max_size=40))
def test_no_name_leaves_its_folder(name: str) -> None:
    made = safe_name(name)
    assert made not in ("", ".", "..")
    assert not set(made) & set('/\\:\0\n\t*?"<>|')
    assert not made.startswith(".")
    assert safe_name(made) == made
    assert (Path("/out") / made).parent == Path("/out")


def test_names_that_fall_together_are_told_apart_by_the_folders_identity(tmp_path: Path) -> None:
    assert safe_name("a/b") == safe_name("a:b")
    filled(tmp_path / "run")
    with pytest.raises(RunError, match="another model"):
        folder(tmp_path / "run", model="ti/ny").__enter__()


def test_find_runs_lists_run_folders_in_name_order(tmp_path: Path) -> None:
    for name in ("b/two", "a/one", "a/three"):
        filled(tmp_path / name, 1)
    (tmp_path / "a" / "not-a-run").mkdir()
    assert list(find_runs(tmp_path)) == [tmp_path / n for n in ("a/one", "a/three", "b/two")]
