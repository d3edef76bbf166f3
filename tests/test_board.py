"""A board never mixes protocols, never shows a number without n, and never a zero for nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import stats
from ceval_suite.errors import RunError
from ceval_suite.records import write_json
from ceval_suite.report import table
from ceval_suite.report.board import board, columns, read_summaries, subjects_table
from ceval_suite.schema import Cell, Table


def estimate(right: int, n: int) -> dict[str, Any]:
    found = stats.wilson(right, n)
    return {k: getattr(found, k) for k in ("value", "n", "stderr", "low", "high")}


def summary(
    model: str = "tiny",
    task: str = "ceval",
    *,
    right: int = 60,
    n: int = 100,
    sha: str = "a" * 64,
    **changes: Any,
) -> dict[str, Any]:
    """A finished run's summary.json."""
    micro = estimate(right, n) if n else {}
    return {
        "task": task,
        "model": model,
        "protocol": "official",
        "split": "val",
        "shots": 5,
        "limit": None,
        "chat": False,
        "protocol_sha256": sha,
        "complete": True,
        "n": n,
        "labels": True,
        "headline": "acc/macro",
        "missing": [],
        "metrics": {"acc/macro": micro, "acc/micro": micro},
        "categories": {"STEM": {"acc/macro": micro, "acc/micro": micro, "subjects": 1}},
        "groups": {"hard": {"acc/macro": micro, "acc/micro": micro, "subjects": 1}},
        "subjects": {"law": micro},
        "chance": 0.25,
        "chance_corrected": 0.0,
        "ties": 0,
        "unanswered": 0,
        "choice_mass": 0.9,
        "letters": {x: {"predicted": n // 4, "gold": n // 4} for x in "ABCD"},
        "shots_shown": {"5": n},
        "subjects_chosen": None,
        "subjects_scored": 52,
        "subjects_total": 52,
        "fewer_shots": 0,
        "not_scored": {},
        "tokens": {},
        "seconds": {},
        "engine": {},
    } | changes


UNLABELLED: dict[str, Any] = {
    "labels": False,
    "metrics": {},
    "categories": {},
    "groups": {},
    "subjects": {},
}


def texts(found: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in found.rows]


# cells


def test_a_cell_has_value_interval_and_n() -> None:
    found = board([summary(right=60, n=100)])
    assert found.columns == ("model", "ceval val, official, 5-shot")
    # Wilson for 60 of 100: 0.502 to 0.691
    assert texts(found) == [["tiny", "60.0 ±9.4 n=100"]]
    assert found.rows[0][1].value == 0.6


def test_models_are_rows_in_order_and_protocols_are_columns() -> None:
    found = board(
        [
            summary("b", right=50),
            summary("a", right=70),
            summary("a", "mmlu", right=80, sha="b" * 64, headline="acc/micro", split="test"),
        ]
    )
    assert found.columns == (
        "model",
        "ceval val, official, 5-shot",
        "mmlu test, official, 5-shot",
    )
    assert [[c.value for c in row] for row in found.rows] == [["a", 0.7, 0.8], ["b", 0.5, None]]
    assert texts(found)[1][2] == "– (not run)"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"complete": False}, "– (unfinished)"),
        (UNLABELLED, "– (no labels)"),
        ({"metrics": {}, "missing": ["law"]}, "– (no average)"),
        (UNLABELLED | {"n": 0}, "– (nothing scored)"),
    ],
)
def test_what_is_not_there_is_a_dash_with_its_reason_never_0(
    changes: dict[str, Any], shown: str
) -> None:
    found = board([summary(**changes)])
    assert found.rows[0][1] == Cell(text=shown, value=None)
    assert next(csv.reader(io.StringIO(table.to_csv(found).splitlines()[1])))[1] != "0"
    assert f"| tiny | {shown} |" in table.markdown(found)


def test_a_missing_subject_is_named() -> None:
    found = board([summary(metrics={}, missing=["law", "logic"])])
    assert any("tiny, ceval: no average" in n and "law, logic" in n for n in found.notes)


def test_zero_right_is_a_zero_with_its_interval() -> None:
    found = board([summary(right=0, n=50)])
    assert texts(found)[0][1].startswith("0.0 ±")
    assert found.rows[0][1].value == 0.0


# protocols never share a column


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "colossal"},
        {"shots": 0},
        {"split": "test"},
        {"limit": 10},
        {"chat": True},
        {"subjects_chosen": ["law", "logic"]},
        {},  # only the data or a wording changed
    ],
    ids=lambda changes: ", ".join(changes) or "data",
)
def test_two_protocols_of_one_task_never_share_a_column(changes: dict[str, Any]) -> None:
    one, other = summary("a"), summary("b", sha="b" * 64, **changes)
    found = board([one, other])
    assert len(found.columns) == len(set(found.columns)) == 3
    assert sorted(cell.text for row in found.rows for cell in row[1:]).count("– (not run)") == 2


def test_columns_that_read_alike_carry_their_fingerprint() -> None:
    found = columns([summary(sha="1" * 64), summary(sha="2" * 64)])
    assert found == {
        "1" * 64: "ceval val, official, 5-shot #11111111",
        "2" * 64: "ceval val, official, 5-shot #22222222",
    }


def test_a_column_says_what_departs_from_the_whole_benchmark() -> None:
    (title,) = columns(
        [summary(limit=10, chat=True, subjects_chosen=["law", "logic"], subjects_total=52)]
    ).values()
    assert title == "ceval val, official, 5-shot (chat, first 10 per subject, 2 of 52 subjects)"


@pytest.mark.parametrize("unfinished_first", [True, False])
def test_an_unfinished_run_of_some_subjects_keeps_the_columns_name(
    tmp_path: Path, unfinished_first: bool
) -> None:
    chosen = {"subjects_chosen": ["law", "logic"], "subjects_total": 52}
    names = ("a", "b") if unfinished_first else ("b", "a")
    unfinished(tmp_path / names[0] / "run", model=names[0], subjects=["law", "logic"])
    (tmp_path / names[1] / "run").mkdir(parents=True)
    write_json(tmp_path / names[1] / "run" / "run.json", {})
    write_json(tmp_path / names[1] / "run" / "summary.json", summary(names[1], **chosen))
    found = board(read_summaries(tmp_path))
    assert found.columns == ("model", "ceval val, official, 5-shot (2 of 52 subjects)")


def test_two_runs_of_one_model_and_protocol_are_refused() -> None:
    with pytest.raises(RunError, match="model 'tiny' has two runs of ceval val, official, 5-shot"):
        board([summary(), summary()])


# notes


def test_the_notes_name_the_average_and_the_other_beside_it() -> None:
    notes = board([summary()]).notes
    assert notes[0].startswith("percent ± half the 95 % interval")
    assert (
        "ceval val, official, 5-shot: acc/macro, the official average; beside it in summary.json: "
        "acc/micro" in notes
    )


def test_an_average_over_fewer_subjects_says_so() -> None:
    found = board([summary(subjects_scored=19, subjects_total=21)])
    assert "over 19 of 21 subjects" in " ".join(found.notes)
    assert "of 52 subjects" not in " ".join(board([summary()]).notes)


def test_items_that_are_not_scored_are_counted() -> None:
    found = board([summary(not_scored={"physics": {"multi": 64}, "math": {"cloze": 6}})])
    assert "70 items not scored by this method" in " ".join(found.notes)


def test_a_row_at_chance_level_says_so() -> None:
    found = board([summary("guesser", right=27), summary("knower", right=60)])
    assert texts(found) == [["guesser", "≈27.0 ±8.6 n=100"], ["knower", "60.0 ±9.4 n=100"]]
    (note,) = [n for n in found.notes if "at chance level" in n]
    assert "guesser" in note
    assert "knower" not in note
    assert not any("chance" in n for n in board([summary()]).notes)


def test_worse_than_chance_is_not_at_chance() -> None:
    assert texts(board([summary(right=5)]))[0][1].startswith("5.0")


# run folders


def unfinished(folder: Path, *, model: str = "tiny", sha: str = "a" * 64, **about: Any) -> None:
    folder.mkdir(parents=True)
    identity = {"model": model, "protocol_sha256": sha}
    content = {"task": "ceval", "protocol": "official", "split": "val", "shots": 5}
    write_json(folder / "run.json", {"identity": identity, **content, **about})


def test_unfinished_run_folders_are_shown_as_such(tmp_path: Path) -> None:
    unfinished(tmp_path / "tiny" / "ceval-val")
    found = board(read_summaries(tmp_path))
    assert found.columns == ("model", "ceval val, official, 5-shot")
    assert texts(found) == [["tiny", "– (unfinished)"]]


def test_a_folder_without_runs_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no runs; give the --out folder"):
        read_summaries(tmp_path)
    with pytest.raises(RunError, match="nowhere does not exist"):
        read_summaries(tmp_path / "nowhere")


# renderings

NASTY = 'a|b <script>alert("x")</script>\nsecond\rline \x1b[31mred\x1b[0m \\ \x9b2J'


def test_markdown_escapes_what_would_break_or_run() -> None:
    found = table.markdown(board([summary(NASTY)]))
    (row,) = [line for line in found.splitlines() if "alert" in line and line.startswith("|")]
    assert row.count("|") - row.count("\\|") == 3
    assert "<" not in row
    assert "&lt;script>" in row
    assert "\x1b" not in found
    assert "\x9b" not in found
    assert "\\\\" in row


def test_markdown_is_a_table_with_title_and_notes() -> None:
    found = table.markdown(board([summary()], "Leaderboard"))
    lines = found.splitlines()
    assert lines[0] == "## Leaderboard"
    assert lines[2] == "| model | ceval val, official, 5-shot |"
    assert lines[3] == "| --- | --: |"
    assert lines[4] == "| tiny | 60.0 ±9.4 n=100 |"
    assert lines[6].startswith("- percent ±")


def test_the_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    table.show(board([summary(NASTY)]))
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert "\x9b" not in found
    assert "\r" not in found
    assert "60.0 ±9.4 n=100" in found


def test_rich_markup_in_a_name_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    table.show(board([summary("[red]x[/red] [link=http://a]y[/link]")], "[bold]t"))
    found = capsys.readouterr().out
    assert "[red]x[/red] [link=http://a]y[/link]" in found
    assert found.startswith("[bold]t")


def test_a_pipe_never_gets_a_folded_or_cut_line(capsys: pytest.CaptureFixture[str]) -> None:
    many = [summary("m" * 60, f"task-{i}", sha=f"{i:064d}") for i in range(30)]
    table.show(board(many))
    lines = capsys.readouterr().out.splitlines()
    assert sum("m" * 60 in line for line in lines) == 1
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\n"])
def test_csv_never_holds_a_formula(start: str) -> None:
    name = f"{start}HYPERLINK(1)"
    found = table.to_csv(board([summary(name)]))
    rows = list(csv.reader(io.StringIO(found, newline="")))
    assert rows[1][0] == "'" + name


def test_csv_holds_no_control_character_that_breaks_its_rows() -> None:
    found = table.to_csv(board([summary("\r=1\x1b[31m\x00")]))
    rows = list(csv.reader(io.StringIO(found, newline="")))
    assert len(rows) == 2
    assert rows[1][0] == "�=1�[31m�"


def test_csv_has_raw_values_and_no_zero_for_nothing() -> None:
    found = board([summary("a"), summary("b", complete=False)])
    rows = list(csv.reader(io.StringIO(table.to_csv(found))))
    column = "ceval val, official, 5-shot"
    assert rows[0] == ["model", column, f"{column} (as printed)"]
    # no number without n and an interval
    assert rows[1] == ["a", "0.6", "60.0 ±9.4 n=100"]
    assert rows[2] == ["b", "", "– (unfinished)"]


def test_json_is_valid_and_keeps_texts_and_values() -> None:
    found = json.loads(table.to_json(board([summary(NASTY), summary("b", complete=False)])))
    assert list(found) == ["title", "columns", "rows", "notes"]
    column = found["columns"][1]
    by_model = {row["model"]: row[column] for row in found["rows"]}
    assert by_model[NASTY] == {"text": "60.0 ±9.4 n=100", "value": 0.6}
    assert by_model["b"] == {"text": "– (unfinished)", "value": None}


def test_counts_have_their_thousands_and_points_their_halves() -> None:
    assert table.number(14042).text == "14,042"
    assert table.number(9702.0).text == "9,702"
    assert table.number(1.5).text == "1.5"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(4.24, "4.2 s"), (59.96, "60.0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(value: float, shown: str) -> None:
    assert table.seconds(value) == shown


# one run in detail


def test_the_subjects_table_holds_every_average_category_group_and_subject() -> None:
    law = estimate(10, 40)
    found = subjects_table(summary(subjects={"law": law, "logic": estimate(50, 60)}))
    assert found.title == "tiny on ceval val, official, 5-shot"
    assert texts(found) == [
        ["average (official)", "acc/macro", "60.0 ±9.4", "100"],
        ["average", "acc/micro", "60.0 ±9.4", "100"],
        ["category", "STEM", "60.0 ±9.4", "100"],
        ["group", "hard", "60.0 ±9.4", "100"],
        ["subject", "law", table.estimate(stats.wilson(10, 40)).text, "40"],
        ["subject", "logic", table.estimate(stats.wilson(50, 60)).text, "60"],
    ]


def test_half_the_interval_is_half_its_width() -> None:
    found = stats.wilson(5, 10)
    assert table.estimate(found).text == f"50.0 ±{50 * (found.high - found.low):.1f}"


# how answers were had


def test_notes_say_what_could_be_read_by_which_method_and_who_disagrees() -> None:
    found = board(
        [
            summary(
                extraction={"n": 1200, "rate": 0.905, "unanswered": 114, "cut": 12},
                methods={"accuracy": {"exact": estimate(30, 60), "either": estimate(45, 60)}},
                opinions={
                    "sympy": {
                        "official": estimate(50, 100),
                        "opinion": estimate(55, 100),
                        "differ": estimate(7, 100),
                    }
                },
                unlabelled={"t/test/x/211": "no gold label in the published file"},
            )
        ]
    )
    who = "tiny on ceval val, official, 5-shot"
    read, ways, second, bare = [note for note in found.notes if note.startswith(who)]
    assert read == f"{who}: 90.5 % of 1,200 answers could be read, 114 unanswered, 12 texts cut"
    exact, either = (table.estimate(stats.wilson(k, 60)).text for k in (30, 45))
    assert ways == f"{who}, by method: exact {exact}, either {either}"
    assert second == f"{who}: sympy differs on 7.0 % of 100 (50.0 officially, 55.0 by sympy)"
    assert bare == f"{who}: 1 not scored, without a label (t/test/x/211)"


def test_a_plain_run_has_none_of_these_notes() -> None:
    assert not [note for note in board([summary()]).notes if note.startswith("tiny on")]


def test_the_table_of_subjects_shows_points_and_methods() -> None:
    rate = estimate(30, 64)
    found = subjects_table(
        summary(
            points={"physics": {"earned": 180, "possible": 384, "rate": rate}},
            methods={"accuracy": {"exact": estimate(30, 60)}},
        )
    )
    rows = [[cell.text for cell in row] for row in found.rows]
    assert ["points", "physics", table.estimate(stats.wilson(30, 64)).text, "64"] in rows
    assert ["method", "exact", table.estimate(stats.wilson(30, 60)).text, "60"] in rows
