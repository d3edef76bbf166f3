"""Labels given later score a run in a new folder, only if they are the labels of its very items."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ceval_suite import stats
from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.errors import DataError, RunError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records, write_json
from ceval_suite.relabel import score
from ceval_suite.report.board import board, read_summaries
from ceval_suite.schema import Record
from tests.finished_runs import record, write

LAW = 221
MARXISM = 179


def gold(row: int) -> str:
    return "ABCD"[row % 4]


def predicted(row: int) -> str:
    return gold(row) if row % 3 else "A"


def unlabelled(counts: Mapping[str, int]) -> list[Record]:
    return [
        record(f"ceval/test/{subject}/{row}", subject, "", predicted(row))
        for subject, count in counts.items()
        for row in range(count)
    ]


def finished(folder: Path, records: Sequence[Record], **about: Any) -> Path:
    given: dict[str, Any] = {"task": "ceval", "split": "test", "protocol": "official", "shots": 5}
    run = write(folder, given | {"protocol_sha256": "a" * 64} | about, records)
    summary = {
        "task": "ceval",
        "model": "scripted",
        "protocol": "official",
        "split": "test",
        "shots": 5,
        "limit": None,
        "chat": False,
        "protocol_sha256": "a" * 64,
        "complete": True,
        "labels": False,
        "n": len(records),
        "headline": "acc/macro",
        "metrics": {},
        "subjects_chosen": None,
        "subjects_scored": 2,
        "subjects_total": 52,
        "not_scored": {},
    }
    write_json(run / "summary.json", summary)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on two subjects of C-Eval's test split."""
    records = unlabelled({"marxism": MARXISM, "law": LAW})
    return finished(tmp_path / "runs" / "scripted" / "ceval-test-5shot-aaaaaaaa", records)


def as_json(path: Path, change: Mapping[str, Any] | None = None) -> Path:
    content: dict[str, Any] = {
        subject: {str(row): gold(row) for row in range(count)}
        for subject, count in {"law": LAW, "marxism": MARXISM}.items()
    }
    content |= change or {}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")
    return path


HEADER = ["id", "question", "A", "B", "C", "D", "answer"]


def as_csv(path: Path, count: int, *, header: Sequence[str] = HEADER, label: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row in range(count):
            cells = [str(row), f"问题{row}____。", "甲", "乙", "丙", "丁", gold(row)]
            if label and row == 3:
                cells[-1] = label
            writer.writerow(cells[: len(header)])


def folder_of_csv(root: Path, pattern: str = "test/{}_test.csv") -> Path:
    as_csv(root / pattern.format("law"), LAW)
    as_csv(root / pattern.format("marxism"), MARXISM)
    return root


def test_a_run_is_scored_in_a_new_folder_and_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    new = score(run, as_json(tmp_path / "labels.json"))
    assert new.parent == run.parent
    assert new != run
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    found = list(read_records(new / "records.jsonl"))
    assert [r.id for r in found] == [r.id for r in read_records(run / "records.jsonl")]
    for one in found:
        row = int(one.id.rpartition("/")[2])
        assert one.answer == [gold(row)]
        assert one.correct == (predicted(row) == gold(row))
        assert one.score == float(one.correct)
    summary = read_json(new / "summary.json")
    right = {s: sum(predicted(r) == gold(r) for r in range(n)) / n for s, n in COUNTS.items()}
    assert summary["labels"] is True
    assert summary["missing"] == []
    assert summary["metrics"]["acc/macro"]["value"] == pytest.approx(sum(right.values()) / 2)
    assert summary["subjects"]["law"]["low"] == stats.wilson(right["law"] * LAW, LAW).low
    assert list(summary["subjects"]) == ["marxism", "law"]
    about = read_json(new / "run.json")
    assert about["labels_from"]["place"].endswith("labels.json")
    assert about["labels_from"]["run"] == str(run)
    assert about["identity"]["protocol_sha256"] == summary["protocol_sha256"] != "a" * 64


COUNTS = {"law": LAW, "marxism": MARXISM}


@pytest.mark.parametrize("pattern", ["test/{}_test.csv", "{}_test.csv", "ceval/test/{}_test.csv"])
def test_csv_files_say_the_same_as_json(run: Path, tmp_path: Path, pattern: str) -> None:
    one = score(run, as_json(tmp_path / "labels.json"), tmp_path / "one")
    two = score(run, folder_of_csv(tmp_path / "csv", pattern), tmp_path / "two")
    assert one.name == two.name  # a fingerprint of the labels, whatever they came in
    assert (one / "records.jsonl").read_bytes() == (two / "records.jsonl").read_bytes()


def test_one_csv_file_scores_a_run_of_one_subject(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", unlabelled({"law": LAW}))
    as_csv(tmp_path / "csv" / "law_test.csv", LAW)
    as_csv(tmp_path / "csv" / "laws_test.csv", LAW)  # not asked for, not looked at
    new = score(run, tmp_path / "csv" / "law_test.csv")
    assert read_json(new / "summary.json")["n"] == LAW


def test_a_limited_run_takes_the_labels_of_its_items(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", unlabelled({"law": 5}), limit=5)
    new = score(run, as_json(tmp_path / "labels.json"))
    assert [r.answer for r in read_records(new / "records.jsonl")] == [[x] for x in "ABCDA"]


def test_the_board_shows_scored_and_unscored_apart(run: Path, tmp_path: Path) -> None:
    score(run, as_json(tmp_path / "labels.json"))
    found = board(read_summaries(run.parents[1]))
    assert found.columns == (
        "model",
        "ceval test, official, 5-shot",
        "ceval test, official, 5-shot (labels of labels.json)",
    )
    assert found.rows[0][1].text == "– (no labels)"
    assert found.rows[0][2].text.endswith("n=400")


def test_score_on_the_command_line(run: Path, tmp_path: Path) -> None:
    labels, out = as_json(tmp_path / "labels.json"), tmp_path / "out"
    command = ["score", str(run), "--labels", str(labels), "--out", str(out), "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["rows"][0]["model"] == "scripted"
    (new,) = out.iterdir()
    assert found.stderr.strip() == f"records: {new}"


def test_it_is_never_scored_over_an_older_score(run: Path, tmp_path: Path) -> None:
    labels = as_json(tmp_path / "labels.json")
    new = score(run, labels)
    with pytest.raises(RunError, match=f"{new.name} is there already; delete it, or give another"):
        score(run, labels)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", unlabelled({"law": 5}))
    summary = read_json(run / "summary.json")
    write_json(run / "summary.json", summary | {"complete": False})
    with pytest.raises(RunError, match="is unfinished; finish it with the command that started it"):
        score(run, as_json(tmp_path / "labels.json"))
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="is unfinished"):
        score(run, as_json(tmp_path / "labels.json"))


def test_a_run_with_labels_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [record("ceval/test/law/0", "law", "A", "A")])
    with pytest.raises(RunError, match="has gold labels of its own; it is scored already"):
        score(run, as_json(tmp_path / "labels.json"))


LETTERS = {str(row): gold(row) for row in range(LAW)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": None}, "no labels for subject law; add them"),
        ({"laws": LETTERS}, "unknown subject 'laws': did you mean 'law'"),
        (
            {"law": {k: v for k, v in LETTERS.items() if k != "7"}},
            "subject law has 220 labels, not",
        ),
        ({"law": LETTERS | {"221": "A"}}, "has 222 labels, not one for each of the rows 0 to 220"),
        ({"law": LETTERS | {"7": "E"}}, "subject law, row 7: label 'E' is none of A, B, C, D"),
        ({"law": LETTERS | {"7": ["A"]}}, "row 7: label '\\['A'\\]' is none of A, B, C, D"),
        ({"law": "A" * LAW}, r"labels are \{subject: \{row: letter\}\}, this is not"),
    ],
)
def test_labels_that_are_not_the_runs_are_refused(
    run: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(run, as_json(tmp_path / "labels.json", change))
    assert len(list(run.parent.iterdir())) == 1


def test_a_file_that_is_no_json_or_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "labels.json"
    broken.write_text("{")
    with pytest.raises(DataError, match=r"labels\.json: not readable as JSON \(.*\); give another"):
        score(run, broken)
    with pytest.raises(DataError, match=r"--labels .*nowhere does not exist"):
        score(run, tmp_path / "nowhere")
    other = tmp_path / "labels.xlsx"
    other.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"neither a folder of csv files, nor a \.csv or \.json"):
        score(run, other)


def test_a_folder_without_the_subjects_files_says_which(run: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    with pytest.raises(DataError, match=r"holds no marxism_test\.csv; give the labelled test"):
        score(run, tmp_path / "csv")
    as_csv(tmp_path / "csv" / "marxism_test.csv", MARXISM)
    with pytest.raises(DataError, match=r"law_test\.csv is missing"):
        score(run, tmp_path / "csv")


def test_a_csv_file_of_an_unknown_subject_is_refused(run: Path, tmp_path: Path) -> None:
    folder = folder_of_csv(tmp_path / "csv")
    as_csv(folder / "test" / "laws_test.csv", LAW)
    with pytest.raises(DataError, match=r"laws_test\.csv: unknown subject 'laws': did you mean"):
        score(run, folder)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (LAW - 1, {}, "220 items where the published file has 221"),
        (LAW, {"header": HEADER[:-1]}, "column answer is missing"),
        (LAW, {"label": "E"}, "row 3: label 'E' is none of A, B, C, D"),
        (LAW, {"label": " "}, "row 3 has no label"),
    ],
)
def test_csv_files_are_counted_and_every_row_has_a_letter(
    run: Path, tmp_path: Path, count: int, options: dict[str, Any], message: str
) -> None:
    folder = folder_of_csv(tmp_path / "csv")
    as_csv(folder / "test" / "law_test.csv", count, **options)
    with pytest.raises(DataError, match=message):
        score(run, folder)


def test_records_of_another_run_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [record("ceval/val/law/0", "law", "", "A")])
    with pytest.raises(RunError, match="item ceval/val/law/0 does not belong to this run"):
        score(run, as_json(tmp_path / "labels.json"))


@pytest.mark.real
def test_labels_beside_other_questions_are_refused_where_the_files_are_there(
    real_data: Path, tmp_path: Path
) -> None:
    prepared = prepare("ceval", Selection(split="test", subjects=["law"], data=real_data))
    records = [record(i.id, "law", "", "A") for i in prepared.items["law"]]
    run = finished(tmp_path / "run", records, **prepared.about())
    rows = [
        [i.id.rpartition("/")[2], i.question, *i.choices, gold(n)]
        for n, i in enumerate(prepared.items["law"])
    ]

    def published(path: Path, order: Sequence[list[str]]) -> Path:
        path.parent.mkdir()
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([HEADER, *order])
        return path

    new = score(run, published(tmp_path / "right" / "law_test.csv", rows))
    share = sum(gold(n) == "A" for n in range(LAW)) / LAW
    found = read_json(new / "summary.json")["metrics"]["acc/micro"]["value"]
    assert found == pytest.approx(share)
    with pytest.raises(DataError, match="ceval/test/law/0 stand beside another question; give lab"):
        score(run, published(tmp_path / "wrong" / "law_test.csv", rows[::-1]), tmp_path / "out")


def test_the_counts_are_those_of_the_table() -> None:
    table = load_task("ceval").subjects
    assert (table["law"].counts["test"], table["marxism"].counts["test"]) == (LAW, MARXISM)
