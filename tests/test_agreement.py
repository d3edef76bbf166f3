"""Runs of other protocols agree or differ on the same items only, and every number says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ceval_suite import stats
from ceval_suite.agreement import across
from ceval_suite.cli import app
from ceval_suite.errors import RunError
from ceval_suite.report import agreement as report
from ceval_suite.schema import Record
from tests.finished_runs import record, write

GOLD = "ABCDABCDABCD"
LETTERS = "ABCDABCCAAAA"
OPTIONS = "ABDCABCDAABB"
WRITTEN = ["A", "B", "", "D", "A", "", "C", "C", "A", "A", "A", "AB"]


def records(predictions: Sequence[str], gold: Sequence[str] = GOLD, **more: Any) -> list[Record]:
    return [
        record(f"exam/test/law/{row}", "law", right, given, **more)
        for row, (right, given) in enumerate(zip(gold, predictions, strict=True))
    ]


def run(folder: Path, some: Sequence[Record], protocol: str = "official", **about: Any) -> Path:
    given: dict[str, Any] = {"task": "exam", "split": "test", "protocol": protocol, "shots": 0}
    return write(folder, given | {"protocol_sha256": protocol * 8} | about, some)


def cohen(one: Sequence[str], two: Sequence[str]) -> float:
    """Cohen's kappa off the table of both sides' answers."""
    kinds = sorted({*one, *two})
    table = np.zeros((len(kinds), len(kinds)))
    for a, b in zip(one, two, strict=True):
        table[kinds.index(a), kinds.index(b)] += 1 / len(one)
    chance = float(table.sum(0) @ table.sum(1))
    return (float(np.trace(table)) - chance) / (1 - chance)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """One model's answers by letters, by whole options and by writing."""
    return [
        run(tmp_path / "a", records(LETTERS)),
        run(tmp_path / "b", records(OPTIONS), "lm-eval"),
        run(tmp_path / "c", records(WRITTEN, text=""), "official-generate"),
    ]


def test_three_methods_two_by_two(three: list[Path]) -> None:
    found = across(three)
    assert (found.task, found.split, found.n) == ("exam", "test", 12)
    names = [column.name for column in found.columns]
    assert names == ["official", "lm-eval", "official-generate"]
    assert [column.unanswered for column in found.columns] == [0, 0, 2]
    by_name: Mapping[str, Sequence[str]] = dict(
        zip(names, (LETTERS, OPTIONS, WRITTEN), strict=True)
    )
    assert len(found.pairs) == 3
    for pair in found.pairs:
        one, two = (by_name[names[place]] for place in (pair.first, pair.second))
        right = [(a == g, b == g) for a, b, g in zip(one, two, GOLD, strict=True)]
        counts = pair.found
        assert counts.both == right.count((True, True))
        assert counts.first == right.count((True, False))
        assert counts.second == right.count((False, True))
        assert counts.neither == right.count((False, False))
        assert counts.same == sum(a == b for a, b in zip(one, two, strict=True))
        assert counts.kappa == pytest.approx(cohen(one, two))


def test_each_method_has_its_interval(three: list[Path]) -> None:
    for column, given in zip(across(three).columns, (LETTERS, OPTIONS, WRITTEN), strict=True):
        right = sum(a == g for a, g in zip(given, GOLD, strict=True))
        assert column.accuracy == stats.wilson(right, 12)


def test_items_that_one_lacks_or_nobody_can_judge_are_left_out(tmp_path: Path) -> None:
    one = run(tmp_path / "a", records(LETTERS))
    some = [r for r in records(OPTIONS) if not r.id.endswith(("/0", "/11"))]
    other = run(tmp_path / "b", some, "lm-eval")
    found = across([one, other])
    assert found.n == 10
    assert [column.left_out for column in found.columns] == [2, 0]
    notes = report.accuracy(found).notes
    assert "official: 2 items that another lacks are left out" in notes


def test_a_run_of_several_methods_counts_once_for_each(tmp_path: Path) -> None:
    some = [
        record(r.id, "law", r.answer, b, predictions={"exact": [*b], "first-token": [a]})
        for r, a, b in zip(records(LETTERS), LETTERS, WRITTEN, strict=True)
    ]
    found = across([run(tmp_path / "a", some, "colossal")])
    assert [c.name for c in found.columns] == ["colossal: exact", "colossal: first-token"]
    assert [c.unanswered for c in found.columns] == [2, 0]


def test_runs_of_one_protocol_are_told_apart_by_shots_or_model(tmp_path: Path) -> None:
    zero, five = (
        run(tmp_path / str(n), records(LETTERS), shots=n, protocol_sha256=str(n) * 64)
        for n in (0, 5)
    )
    assert [c.name for c in across([zero, five]).columns] == ["official 0-shot", "official 5-shot"]
    about = {"task": "exam", "split": "test", "protocol": "official", "shots": 0}
    other = write(tmp_path / "o", about, records(OPTIONS), model="other")
    assert [c.name for c in across([zero, other]).columns] == [
        "official scripted",
        "official other",
    ]


def test_sub_questions_keep_their_items_together(tmp_path: Path) -> None:
    def cloze(given: str) -> list[Record]:
        return [
            record(f"exam/test/cloze/{i // 4}#{i % 4}", "cloze", right, one)
            for i, (right, one) in enumerate(zip(GOLD, given, strict=True))
        ]

    folders = [run(tmp_path / "a", cloze(LETTERS)), run(tmp_path / "b", cloze(OPTIONS), "forced")]
    column = across(folders).columns[0]
    right = [float(a == g) for a, g in zip(LETTERS, GOLD, strict=True)]
    assert column.accuracy == stats.share(right, [str(i // 4) for i in range(12)])


def test_one_run_twice_is_refused(three: list[Path]) -> None:
    with pytest.raises(RunError, match="is given twice; give each run once"):
        across([three[0], three[1], three[0]])


def test_one_method_alone_is_refused(three: list[Path]) -> None:
    with pytest.raises(RunError, match="has one method only; give two runs of the same items"):
        across(three[:1])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"task": "other"}, "is of task exam and .* of other; methods agree or differ on the same"),
        ({"split": "val"}, "is of split test and .* of val; methods agree or differ on the same"),
    ],
)
def test_other_tasks_and_splits_are_refused(
    three: list[Path], tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    other = run(tmp_path / "d", records(LETTERS), "forced", **about)
    with pytest.raises(RunError, match=message):
        across([three[0], other])


def test_two_gold_labels_of_one_item_are_refused(three: list[Path], tmp_path: Path) -> None:
    other = run(tmp_path / "d", records(LETTERS, "DBCDABCDABCD"), "forced")
    with pytest.raises(RunError, match=r"item exam/test/law/0 has two gold labels in .* and .*/d"):
        across([three[0], other])


def test_no_common_item_is_refused(three: list[Path], tmp_path: Path) -> None:
    bare = [record(f"exam/test/law/{row}", "law", "", "A") for row in range(20, 23)]
    other = run(tmp_path / "d", bare, "forced")
    with pytest.raises(RunError, match="have no labelled item in common"):
        across([three[0], other])


def test_a_folder_without_runs_is_refused(three: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RunError, match="holds no runs of a task; give a run folder"):
        across([three[0], empty])


def test_agreement_on_the_command_line(three: list[Path]) -> None:
    command = ["agreement", *map(str, three)]
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    accuracy, matrix = json.loads(found.stdout)
    assert [row["method"] for row in accuracy["rows"]] == [
        "official",
        "lm-eval",
        "official-generate",
    ]
    assert matrix["rows"][0]["kappa"]["value"] == across(three).pairs[0].found.kappa
    text = CliRunner().invoke(app, command).stdout
    assert "Agreement of methods" in text
    assert "kappa: Cohen's" in text


def test_kappa_of_one_answer_only_is_a_dash_with_the_reason(tmp_path: Path) -> None:
    same = "A" * 12
    folders = [run(tmp_path / "a", records(same)), run(tmp_path / "b", records(same), "forced")]
    (row,) = report.matrix(across(folders)).rows
    assert (row[-1].text, row[-1].value) == ("– (one answer only)", None)
