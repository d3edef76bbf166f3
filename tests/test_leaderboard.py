"""A named board: what was measured with tests and ranks, what others printed, never mixed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ceval_suite import arrange, boards, catalog, exclusions, metrics, standings
from ceval_suite.boards import Board, Column
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.records import write_json
from ceval_suite.report import leaderboard, table
from ceval_suite.report.board import columns, read_summaries
from ceval_suite.schema import Cell, Record, Table
from tests.test_cli import Cli, call, named_tiny  # noqa: F401 (fixtures)
from tests.test_outcomes import record

TASK = "sample-mmlu"


def answers(share: float, task: str = TASK, seed: int = 0) -> list[Record]:
    """Records of a sample exam, each item as likely right as `share` says."""
    found = catalog.load_task(task)
    rng = np.random.default_rng(sum(task.encode()) + seed)
    out: list[Record] = []
    for subject in found.subjects:
        for n in range(200):
            id = f"{task}/{found.split}/{subject}/{n}"
            out.append(record(id, subject, float(rng.random() < share)))
    return out


def summary(
    model: str, share: float, task: str = TASK, *, sha: str = "a" * 64, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A finished run's summary, made from records as a run makes it."""
    found = catalog.load_task(task)
    some = answers(share, task, seed)
    expected = dict.fromkeys(found.subjects, 0)
    return {
        "task": task,
        "model": model,
        "protocol": "official",
        "split": found.split,
        "shots": found.shots,
        "limit": None,
        "chat": False,
        "same_shots": [],
        "protocol_sha256": sha,
        "date": "2026-11-28",
        "complete": True,
        **metrics.summarize(found, some, expected),
        "subjects_chosen": None,
        "subjects_scored": len(found.subjects),
        "subjects_total": len(found.subjects),
        "not_scored": {},
    } | more


def board(**content: Any) -> Board:
    base = {"title": "T", "columns": {"M": {"task": TASK}}}
    return Board.model_validate(base | content)


def filled(
    definition: Board, summaries: list[dict[str, Any]], lists: Any = (), language: str | None = None
) -> Table:
    return leaderboard.render(
        arrange.named(definition, summaries, lists, language), definition.title, definition
    )


def column(found: Table, name: str) -> dict[str, Cell]:
    at = found.columns.index(name)
    return {str(row[0].value): row[at] for row in found.rows}


# tests and ranks


def test_the_best_is_bold_only_when_better_than_every_other() -> None:
    three = [summary("a", 0.9, seed=1), summary("b", 0.6, seed=2), summary("c", 0.5, seed=3)]
    found = column(filled(board(), three), "M")
    assert (found["a"].best, found["a"].tied) == (True, False)
    assert not any(found[m].best or found[m].tied for m in "bc")


def test_those_that_cannot_be_told_from_the_best_are_underlined_with_it() -> None:
    three = [summary("a", 0.80, seed=1), summary("b", 0.81, seed=2), summary("c", 0.3, seed=3)]
    found = column(filled(board(), three), "M")
    assert [found[m].tied for m in "abc"] == [True, True, False]
    assert not any(cell.best for cell in found.values())
    ranks = column(filled(board(), three), "M rank")
    assert [ranks[m].text for m in "abc"] == ["1–2", "1–2", "3"]


def test_one_model_is_neither_best_nor_ranked() -> None:
    found = filled(board(), [summary("a", 0.9)])
    assert found.columns == ("model", "M")
    assert not column(found, "M")["a"].best


def test_a_model_with_other_items_is_shown_and_not_tested_and_said_to_be() -> None:
    some = answers(0.9)[1:]
    other = metrics.summarize(catalog.load_task(TASK), some, {})
    three = [summary("a", 0.9, seed=1), summary("b", 0.5, seed=2), summary("c", 0.9) | other]
    found = filled(board(), three)
    assert column(found, "M")["c"].value is not None
    assert column(found, "M rank")["c"].text == "– (not tested)"
    assert not column(found, "M")["c"].tied
    assert any("c not tested: other items than the rest" in note for note in found.notes)


def test_a_summary_without_outcomes_is_tested_from_the_records_beside_it(tmp_path: Path) -> None:
    from dataclasses import asdict

    for model, share in (("a", 0.9), ("b", 0.4)):
        folder = tmp_path / model / "run"
        folder.mkdir(parents=True)
        old = summary(model, share, seed=len(model))
        del old["outcomes"]
        write_json(folder / "run.json", {})
        write_json(folder / "summary.json", old)
        lines = [json.dumps(asdict(r)) + "\n" for r in answers(share, seed=len(model))]
        (folder / "records.jsonl").write_text("".join(lines))
    found = filled(board(), [dict(s) for s in read_summaries(tmp_path)])
    assert column(found, "M")["a"].best
    shutil.rmtree(tmp_path / "b")
    for path in tmp_path.rglob("records.jsonl"):
        path.unlink()
    assert "M rank" not in filled(board(), [dict(s) for s in read_summaries(tmp_path)]).columns


def test_what_others_printed_is_in_no_test() -> None:
    two = [summary("a", 0.20, seed=1), summary("b", 0.9, seed=2)]
    one = board(
        columns={"M": {"task": TASK, "reported": "mmlu"}}, published=[{"table": "colossal-7b"}]
    )
    found = filled(one, two)
    assert column(found, "M")["b"].best
    assert column(found, "M rank")["b"].text == "1"
    printed = [row for row in found.rows if row[0].reported]
    assert len(printed) == 18
    assert all(cell.reported and not cell.best and not cell.tied for row in printed for cell in row)
    assert column(found, "source")["a"].text == "measured"


# columns


def test_runs_of_two_protocols_never_share_a_named_column() -> None:
    found = filled(board(), [summary("a", 0.9), summary("b", 0.5, sha="b" * 64)])
    assert found.columns == ("model", "M #aaaaaaaa", "M #bbbbbbbb")


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 5},
        {"protocol": "colossal"},
        {"shots": 0},
        {"chat": True},
        {"split": "dev"},
        {"subjects_chosen": ["x"]},
        {"same_shots": ["a", "b"]},
    ],
    ids=str,
)
def test_a_run_that_fits_no_column_is_counted_not_shown(changes: dict[str, Any]) -> None:
    found = filled(board(), [summary("a", 0.9), summary("b", 0.5, sha="b" * 64, **changes)])
    assert column(found, "M")["b"].text == "– (not run)"
    assert any(note.startswith("1 runs fit no column") for note in found.notes)


def test_the_same_model_twice_is_refused() -> None:
    with pytest.raises(RunError, match="model 'a' has two runs of M; remove one"):
        filled(board(), [summary("a", 0.9), summary("a", 0.5)])


def test_a_mean_needs_all_of_its_columns_and_is_tested_over_all_items() -> None:
    two = board(
        columns={"M": {"task": TASK}, "C": {"task": "sample-ceval"}, "mean": {"mean": ["M", "C"]}}
    )
    runs = [
        summary("a", 0.9, seed=1),
        summary("a", 0.7, "sample-ceval", sha="b" * 64, seed=1),
        summary("b", 0.5, seed=2),
        summary("b", 0.6, "sample-ceval", sha="b" * 64, seed=2),
        summary("c", 0.5, seed=3),
    ]
    found = filled(two, runs)
    of = {name: column(found, name) for name in ("M", "C", "mean")}
    for model in "ab":
        both = [of["M"][model].value, of["C"][model].value]
        assert of["mean"][model].value == pytest.approx(np.mean(both))
    assert of["mean"]["c"].text == "– (lacks C)"
    assert of["mean"]["a"].best
    assert column(found, "mean rank")["b"].text == "2"


def test_a_group_is_the_average_over_its_subjects_alone() -> None:
    task = catalog.load_task(TASK)
    subject = next(iter(task.subjects))
    one = board(columns={"S": {"task": TASK, "subjects": [subject]}})
    run = summary("a", 0.6)
    found = filled(one, [run])
    assert column(found, "S")["a"].value == pytest.approx(run["subjects"][subject]["value"])


def test_a_language_keeps_its_benchmarks_and_narrows_mixed_ones() -> None:
    all_ = boards.load("all")
    found = arrange.named(all_, [], language="zh")
    titles = [p.title for p in found.places if p.column.task]
    assert titles == ["CMMLU", "C-Eval", "AGIEval, zh subjects", "GAOKAO"]
    with pytest.raises(ConfigError, match="unknown language 'fr'"):
        arrange.named(all_, [], language="fr")


def test_only_listed_models_are_shown_under_their_names() -> None:
    one = board(
        models={"a*": {"name": "Alpha", "backbone": "base", "tokens": "1T"}}, only_listed=True
    )
    one = one.model_copy(update={"columns": {"B": Column(show="backbone"), **one.columns}})
    found = filled(one, [summary("a1", 0.9), summary("zz", 0.5)])
    assert [row[0].text for row in found.rows] == ["Alpha"]
    assert found.rows[0][1].text == "base"


def test_the_models_own_number_stands_in_parentheses_with_its_source() -> None:
    one = board(models={"a": {"reported": {"M": {"value": 70.1, "source": "its card"}}}})
    found = filled(one, [summary("a", 0.9), summary("b", 0.5)])
    assert re.fullmatch(r"\d+\.\d ±\d\.\d \(70\.1\)", column(found, "M")["a"].text)
    assert "(a, M): its card" in found.notes


def test_notes_say_protocol_average_n_and_date() -> None:
    (note,) = [n for n in filled(board(), [summary("a", 0.9)]).notes if n.startswith("M: ")]
    n = f"{200 * len(catalog.load_task(TASK).subjects):,}"
    assert f"{TASK} test, official, 5-shot #aaaaaaaa, micro average, n={n}" in note
    assert note.endswith("run on 2026-11-28")


# exclusions


def test_scores_are_given_with_and_without_a_list(tmp_path: Path) -> None:
    run = summary("a", 0.5, seed=4)
    wrong = [r.id for r in answers(0.5, seed=4) if not r.correct]
    path = tmp_path / "mine.yaml"
    content = {"name": "mine", "title": "Hard ones", "source": "a test"}
    path.write_text(yaml.safe_dump(content | {"items": dict.fromkeys(wrong, "wrong")}))
    found = filled(board(), [run, summary("b", 0.4, seed=5)], [exclusions.load(str(path))])
    cells = column(found, "M")
    assert cells["a"].value == pytest.approx(run["metrics"]["acc/micro"]["value"])
    assert cells["a without mine"].value == 1.0
    assert cells["a without mine"].best
    assert any(f"{len(wrong):,} of M" in note and "Hard ones" in note for note in found.notes)


def test_a_score_without_a_list_is_that_of_the_records_left() -> None:
    lists = exclusions.load("known-issues")
    task = catalog.load_task("ceval")
    some = [
        record(f"ceval/val/{s}/{n}", s, float(n % 3 > 0))
        for s, row in task.subjects.items()
        for n in range(row.counts["val"])
    ]
    whole = {"complete": True, "model": "a", "task": "ceval", "protocol_sha256": "a"}
    whole |= metrics.summarize(task, some, {})
    found = standings.standing("C", {"a": whole}, None, [lists])
    left = exclusions.without(some, [lists])
    expected = metrics.macro(list(metrics.parts_of(left).values()))
    assert found.entries["a"].value == expected
    assert found.left_out == len(some) - len(left) > 0


# published tables


def published_rows(name: str) -> dict[str, boards.PublishedRow]:
    return dict(boards.load_published(name).rows)


def test_the_printed_tables_are_whole_and_to_the_digit() -> None:
    seven, thirteen = published_rows("colossal-7b"), published_rows("colossal-13b")
    assert (len(seven), len(thirteen)) == (18, 12)
    assert seven["Baichuan2-7B-Base"].values["mmlu"] == "46.97 (54.16)"
    assert seven["InternLM-7B"].values["cmmlu"] == "52.00 (-)"
    assert seven["Colossal-LLaMA-2-7b-base"].tokens == "0.0085T"
    assert seven["Baichuan2-13B-Base (v1)"].values["gaokao"] == "58.25"
    assert thirteen["Qwen-14B"].values == {
        "mmlu": "66.51",
        "cmmlu": "71.08",
        "gsm": "61.33",
        "agieval": "66.62",
        "gaokao": "80.82",
        "ceval": "72.1",
    }
    sums = {
        n: sum(float(v.split()[0]) for r in rows.values() for v in r.values.values())
        for n, rows in (("7", seven), ("13", thirteen))
    }
    assert sums["7"] == pytest.approx(3747.95, abs=0.005)
    assert sums["13"] == pytest.approx(3231.56, abs=0.005)


@pytest.mark.parametrize("name", ["colossal-7b", "colossal-13b", "tokenizers", "zh", "en", "all"])
def test_every_shipped_board_is_printed_without_any_run(call: Cli, name: str) -> None:  # noqa: F811
    found = call("board", name)
    assert (found.code, found.err) == (0, "")
    assert "printed" in found.out


def test_a_printed_number_keeps_the_models_own_in_parentheses(call: Cli) -> None:  # noqa: F811
    found = call("board", "colossal-13b", "--format", "md").out
    assert "| *50.54 (51.60)* | *55.52 (55.30)* | *25.78* |" in found
    assert "| *60.51 (62.05)* | *59.46 (–)* | *51.4* |" in found
    assert "*– (not printed)*" in found
    assert "MMLU of Colossal-LLaMA, 13B: 5-shot, first-token logits" in found


def test_the_tokenizer_board_has_every_printed_tokenizer() -> None:
    found = leaderboard.tokenizers(boards.load("tokenizers"))
    whole = sum(len(t.tokenizers) for t in catalog.published_tokenizers().values())
    assert len(found.rows) == whole == 20
    assert all(cell.reported for row in found.rows for cell in row)


# definitions


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"titel": "x"}, "unknown key 'titel': did you mean 'title'?"),
        ({"columns": {"M": {"taks": "mmlu"}}}, "taks"),
        ({"columns": {"M": {"task": "mmul"}}}, "unknown task 'mmul': did you mean 'mmlu'?"),
        ({"columns": {"M": {"task": "mmlu", "protocol": "offical"}}}, "did you mean 'official'?"),
        ({"columns": {"M": {"task": "mmlu", "group": "STEN"}}}, "did you mean 'STEM'?"),
        ({"columns": {"M": {"task": "mmlu", "show": "tokens"}}}, "give one of task, mean, show"),
        ({"columns": {"M": {"show": "tokens", "shots": 5}}}, "shots needs a task"),
        ({"columns": {"M": {"task": "mmlu"}, "x": {"mean": ["N"]}}}, "unknown column 'N'"),
        ({"sort": "N"}, "unknown column 'N'"),
        ({"published": [{"table": "colosal-7b"}]}, "did you mean 'colossal-7b'?"),
        ({"published": [{"table": "colossal-7b", "rows": ["Qwen-7b"]}]}, "did you mean 'Qwen-7B'?"),
        ({"exclude": ["known-isues"]}, "did you mean 'known-issues'?"),
        ({"tokenizers": ["news-commentary"]}, "give either columns or tokenizers"),
        ({"models": {"a": {"reported": {"N": {"value": 1, "source": "x"}}}}}, "unknown column 'N'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_names_what_is_wrong_with_a_board(
    call: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: dict[str, Any],
    said: str,
) -> None:
    folder = tmp_path / "mine" / "leaderboards"
    folder.mkdir(parents=True)
    base = {"title": "T", "columns": {"M": {"task": "mmlu"}}}
    (folder / "bad.yaml").write_text(yaml.safe_dump(base | content))
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "mine"))
    found = call("check")
    assert found.code == 1
    assert said in found.out
    assert str(folder / "bad.yaml") in found.out
    assert call("board", "bad").code == 1


def test_an_unknown_board_or_format_is_a_sentence(call: Cli) -> None:  # noqa: F811
    assert "did you mean 'colossal-7b'?" in call("board", "colossal-7").err
    assert "unknown format 'xls'" in call("board", "all", "--format", "xls").err


# written files


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    """Two models' runs of a sample exam on disk."""
    for model, share in (("a", 0.9), ("b", 0.4)):
        folder = tmp_path / "two" / model / "run"
        folder.mkdir(parents=True)
        write_json(folder / "run.json", {})
        write_json(folder / "summary.json", summary(model, share, seed=len(model)))
    return tmp_path / "two"


def test_check_passes_after_write_and_fails_when_a_run_changes(call: Cli, two_runs: Path) -> None:  # noqa: F811
    args = ("board", "--runs", two_runs)
    assert call(*args, "--check").code == 3
    assert call(*args, "--write").err.count("wrote ") == len(table.FORMS)
    assert call(*args, "--check").code == 0
    write_json(two_runs / "b" / "run" / "summary.json", summary("b", 0.7, seed=9))
    found = call(*args, "--check")
    assert found.code == 3
    assert "board.md is not what the runs say; write it again with --write." in found.err


def test_a_named_board_is_written_beside_its_file(
    call: Cli,  # noqa: F811
    two_runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "mine" / "leaderboards"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(
        yaml.safe_dump({"title": "S", "columns": {"M": {"task": TASK}}})
    )
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "mine"))
    assert call("board", "small", "--runs", two_runs, "--write").code == 0
    there = sorted(path.name for path in (folder / "generated").iterdir())
    assert there == [f"small.{end}" for end in sorted(table.FORMS)]
    assert call("board", "small", "--runs", two_runs, "--check").code == 0
    assert call("board", "small", "--check").code == 3


def test_a_board_of_runs_has_tests_ranks_and_n(call: Cli, two_runs: Path) -> None:  # noqa: F811
    found = json.loads(call("board", "--runs", two_runs, "--json").out)
    name = next(c for c in found["columns"] if c.startswith(TASK))
    first, second = found["rows"]
    assert first[name]["best"] is True
    assert "best" not in second[name]
    assert re.search(r" n=\d+$", first[name]["text"])
    assert second[f"{name} rank"] == {"text": "2", "value": 2}
    assert "run on 2026-11-28" in found["notes"]


def test_runs_of_several_folders_stand_in_one_board(call: Cli, two_runs: Path) -> None:  # noqa: F811
    found = call("board", "--runs", two_runs / "a", "--runs", two_runs / "b", "--json")
    assert [row["model"] for row in json.loads(found.out)["rows"]] == ["a", "b"]


def test_correlations_of_columns_are_printed(call: Cli, tmp_path: Path) -> None:  # noqa: F811
    for at, model in enumerate("abcd"):
        for task, sha in ((TASK, "a" * 64), ("sample-ceval", "b" * 64)):
            folder = tmp_path / "runs" / model / task
            folder.mkdir(parents=True)
            write_json(folder / "run.json", {})
            made = summary(model, 0.3 + 0.15 * at, task, sha=sha, seed=at)
            write_json(folder / "summary.json", made)
    (row,) = json.loads(call("board", "--runs", tmp_path / "runs", "--correlations", "--json").out)[
        "rows"
    ]
    assert row["models"]["value"] == 4
    assert row["Kendall τ-b"]["value"] == 1


# renderings

NASTY = r'&%$#_{}~^\ <b>"x"</b> | *a* `b` [c](d) 中文'


def marked() -> Table:
    return Table(
        title=NASTY,
        columns=("model", NASTY),
        rows=(
            (table.text(NASTY), Cell(text="1.0 ±0.1", value=0.01, best=True)),
            (table.text("b"), Cell(text="0.9 ±0.1", value=0.009, tied=True)),
            (table.text("c"), Cell(text="0.8", value=0.008, reported=True)),
            (table.text("[d]"), table.missing("(not run)")),
        ),
        notes=(NASTY,),
        numeric=frozenset({1}),
    )


def test_markdown_marks_best_tied_and_reported() -> None:
    found = table.markdown(marked())
    for part in ("**1.0 ±0.1**", "<u>0.9 ±0.1</u>", "*0.8*", "– (not run)"):
        assert f"| {part} |" in found


def test_csv_has_a_column_of_marks() -> None:
    rows = list(csv.reader(io.StringIO(table.to_csv(marked()))))
    assert rows[0][-1] == f"{NASTY} (mark)"
    assert [row[-1] for row in rows[1:]] == ["best", "tied", "", ""]


def untexed(text: str) -> str:
    """LaTeX back to what it prints."""
    for name, sign in (
        *(("textbackslash", "\\"), ("textasciitilde", "~"), ("textasciicircum", "^")),
        *(("textless", "<"), ("textgreater", ">"), ("textbar", "|"), ("textquotedbl", '"')),
    ):
        text = text.replace(f"\\{name}{{}}", f"\0{ord(sign):04d}")
    text = re.sub(r"\\([&%$#_{}])", r"\1", text)
    return re.sub("\0(\\d{4})", lambda m: chr(int(m[1])), text)


def test_latex_is_whole_and_prints_every_sign() -> None:
    found = table.latex(marked())
    lines = found.splitlines()
    assert lines[1] == r"\begin{table}"
    assert lines[-1] == r"\end{table}"
    for rule in ("toprule", "midrule", "bottomrule"):
        assert lines.count(f"\\{rule}") == 1
    # braces balance outside escapes, and every row has one separator for two columns
    bare = re.sub(r"\\[{}]", "", found)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    rows = [line for line in lines if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1] * 5
    assert untexed(lines[3].removeprefix(r"\caption{").removesuffix("}")) == NASTY
    assert r"\textbf{1.0 $\pm$0.1}" in found
    assert r"\underline{0.9 $\pm$0.1}" in found
    assert r"\textit{0.8}" in found
    assert "{[d]} & -- (not run)" in found


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    import subprocess

    body = table.latex(marked()).replace("中文", "")
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        + body
        + "\\end{document}\n"
    )
    subprocess.run(
        ["pdflatex", "-interaction=batchmode", "-halt-on-error", "t"], cwd=tmp_path, check=True
    )


class Page(HTMLParser):
    """Tags and texts of a page; what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_html_is_a_whole_page_of_its_own_and_text_stays_text() -> None:
    found = table.to_html(marked())
    page = Page()
    page.feed(found)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "b" not in names
    assert names.count("table") == names.count("caption") == 1
    assert not any({"src", "href"} & set(attrs) for _, attrs in page.tags)
    assert "url(" not in found
    assert page.texts.count(NASTY) == 5  # title, caption, head, row, note
    scopes = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert scopes == ["col", "col", "row", "row", "row", "row"]
    for part in ("<strong>1.0 ±0.1</strong>", "<u>0.9 ±0.1</u>", "<em>0.8</em>"):
        assert part in found


def test_json_flags_best_tied_and_reported() -> None:
    rows = json.loads(table.to_json(marked()))["rows"]
    cells = [row[NASTY] for row in rows]
    assert [cell.get("best") for cell in cells] == [True, None, None, None]
    assert [cell.get("tied") for cell in cells] == [None, True, None, None]
    assert [cell.get("reported") for cell in cells] == [None, None, True, None]


def test_the_terminal_shows_marks_as_styles(capsys: pytest.CaptureFixture[str]) -> None:
    table.show(marked())
    assert "1.0 ±0.1" in capsys.readouterr().out


def test_titles_of_runs_are_those_of_the_plain_board() -> None:
    runs = [summary("a", 0.9), summary("b", 0.5)]
    found = leaderboard.render(arrange.of_runs(runs, columns(runs)), "L", None, columns(runs))
    assert found.columns[1] == f"{TASK} test, official, 5-shot"
