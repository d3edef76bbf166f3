"""Round trips with lm-evaluation-harness: our export in its tools, its results on our boards."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ceval_suite import harness_folder, harness_import, harness_names
from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.comparison import pair, versus
from ceval_suite.errors import ConfigError, RunError
from ceval_suite.exports import Wanted, export
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records, write_json
from ceval_suite.report import board
from ceval_suite.run import evaluate
from tests.finished_runs import record, write


@pytest.fixture(scope="module", autouse=True)
def _threads(one_thread: None) -> None:
    """Tiny models."""


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a tiny model on a bundled exam."""
    out = tmp_path_factory.mktemp("runs")
    prepared = prepare("sample-mmlu", Selection(shots=1, limit=4))
    (folder,) = evaluate("tiny", ModelSpec(path=str(tiny_model), dtype="float32"), [prepared], out)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    said = export("lm-eval", Wanted((run,)), out)
    assert "samples" not in said, said
    return out


def results_of(folder: Path) -> Path:
    (found,) = folder.rglob("results_*.json")
    return found


# export


def test_lm_evals_own_tools_read_our_export(run: Path, exported: Path) -> None:
    from lm_eval.utils import (
        get_latest_filename,
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
    )

    names = [str(path) for path in exported.rglob("*") if path.is_file()]
    assert len(get_results_filenames(names)) == 1
    assert get_latest_filename(get_results_filenames(names)) == str(results_of(exported))
    content = json.loads(results_of(exported).read_text("utf-8"))
    assert len(get_sample_results_filenames(names)) == len(content["configs"])
    summary = read_json(run / "summary.json")
    assert set(values_in(make_table(content))) >= {
        round(one["value"], 4) for one in summary["subjects"].values()
    }
    whole = summary["metrics"][summary["headline"]]["value"]
    assert values_in(make_table(content, "groups"))[0] == round(whole, 4)


def values_in(table: str) -> list[float]:
    """The values of lm-eval's table, which drops zeros at the end."""
    rows = [line.split("|") for line in table.splitlines()[2:]]
    return [float(row[7]) for row in rows if len(row) > 7]


def test_our_samples_are_a_dataset_with_the_columns_of_lm_eval(
    exported: Path, tmp_path: Path
) -> None:
    import datasets

    paths = sorted(map(str, exported.rglob("samples_*.jsonl")))
    found: Any = datasets.load_dataset(
        "json", data_files=paths, split="train", cache_dir=str(tmp_path)
    )
    wanted = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter"}
    wanted |= {"metrics", "doc_hash", "prompt_hash", "target_hash", "acc"}
    assert wanted == set(found.column_names)


def test_samples_hold_the_prompt_and_what_the_model_said(run: Path, exported: Path) -> None:
    from lm_eval.utils import hash_string

    records = {r.id: r for r in read_records(run / "records.jsonl")}
    content = json.loads(results_of(exported).read_text("utf-8"))
    seen = 0
    for path in exported.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        name = path.name.removeprefix("samples_").rpartition("_")[0]
        hashes = "".join(r["doc_hash"] + r["prompt_hash"] + r["target_hash"] for r in rows)
        assert content["task_hashes"][name] == hash_string(hashes)
        for row in rows:
            one = records[row["doc"]["id"]]
            prompt = row["arguments"]["gen_args_0"]["arg_0"]
            assert hash_string(prompt) == row["prompt_hash"] == one.prompt_sha256
            values = [float(logprob) for logprob, _ in row["filtered_resps"]]
            assert values == list(one.logprobs.values())
            assert "ABCD"[values.index(max(values))] == one.prediction[0]
            assert "ABCD"[int(row["target"])] == one.answer[0]
            assert row["acc"] == float(bool(one.correct))
            seen += 1
    assert seen == len(records)


def test_errors_are_those_of_lm_eval(run: Path, exported: Path) -> None:
    from lm_eval.api.metrics import mean_stderr, pooled_sample_stderr

    content = json.loads(results_of(exported).read_text("utf-8"))
    errors, sizes = [], []
    for name in content["configs"]:
        (path,) = exported.rglob(f"samples_{name}_*.jsonl")
        values = [json.loads(line)["acc"] for line in path.read_text("utf-8").splitlines()]
        row = content["results"][name]
        assert row["acc_stderr,none"] == pytest.approx(mean_stderr(values))
        errors.append(row["acc_stderr,none"])
        sizes.append(len(values))
    whole = content["results"]["ceval_suite_sample-mmlu"]
    assert whole["acc_stderr,none"] == pytest.approx(pooled_sample_stderr(errors, sizes))


def test_without_the_files_there_are_results_and_no_samples(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    about = read_json(moved / "run.json")
    write_json(moved / "run.json", about | {"data": {"sha256": "another", "source": "elsewhere"}})
    said = export("lm-eval", Wanted((moved,)), tmp_path / "out")
    assert "results only, no samples" in said
    assert not list((tmp_path / "out").rglob("samples_*"))
    assert results_of(tmp_path / "out").is_file()


def test_an_unlabelled_run_is_no_lm_eval_result(tmp_path: Path) -> None:
    about = {"task": "ceval", "split": "test", "protocol": "official", "shots": 5}
    run = write(tmp_path / "run", about, [record("ceval/test/law/0", "law", "", "A")])
    with pytest.raises(RunError, match="has no labelled item"):
        export("lm-eval", Wanted((run,)), tmp_path / "out")


# import


def test_what_we_export_comes_back_as_it_was(run: Path, exported: Path, tmp_path: Path) -> None:
    found = harness_import.imported([exported], tmp_path)
    (folder,) = found.folders
    assert any("proved equal" in note for note in found.notes), found.notes
    ours, theirs = (read_json(f / "summary.json") for f in (run, folder))
    assert theirs["protocol_sha256"] == ours["protocol_sha256"]
    assert theirs["metrics"] == ours["metrics"]
    assert theirs["subjects"] == ours["subjects"]
    first, second = (board.board([s | {"model": "m"}]) for s in (ours, theirs))
    assert first.rows == second.rows
    assert first.columns == second.columns
    kept = ("id", "subject", "answer", "prediction", "correct", "logprobs", "prompt_sha256")
    a, b = (
        {r.id: [getattr(r, name) for name in kept] for r in read_records(f / "records.jsonl")}
        for f in (run, folder)
    )
    assert a == b


def test_an_import_is_compared_with_a_run_item_by_item(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    (folder,) = harness_import.imported([exported], tmp_path, model="theirs").folders
    ((one, two),), _ = pair(run, folder)
    found = versus(one, two)
    assert (found.fixed, found.broke, found.alone) == (0, 0, (0, 0))


def test_a_second_import_changes_nothing(exported: Path, tmp_path: Path) -> None:
    (folder,) = harness_import.imported([exported], tmp_path).folders
    before = (folder / "records.jsonl").read_bytes()
    assert harness_import.imported([exported], tmp_path).folders == [folder]
    assert (folder / "records.jsonl").read_bytes() == before


def changed(exported: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the export whose every sample went through `change`."""
    Path(shutil.copytree(exported, to))
    for path in to.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return to


def test_other_prompts_get_a_column_of_their_own(run: Path, exported: Path, tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        for one in row["arguments"].values():
            one["arg_0"] = "Answer this. " + one["arg_0"]

    other = changed(exported, tmp_path / "other", change)
    (folder,) = harness_import.imported([other], tmp_path / "runs").folders
    summary = read_json(folder / "summary.json")
    ours = read_json(run / "summary.json")
    assert summary["protocol_sha256"] != ours["protocol_sha256"]
    assert summary["protocol"] == "lm-eval (imported)"
    assert summary["metrics"] == ours["metrics"]
    assert len(board.board([ours, summary]).columns) == 3
    again = harness_import.imported([other], tmp_path / "again", model="another").folders[0]
    assert read_json(again / "summary.json")["protocol_sha256"] == summary["protocol_sha256"]


def test_another_gold_answer_is_another_question(exported: Path, tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        values = [float(value) for value, _ in row["filtered_resps"]]
        best = values.index(max(values))
        if row["acc"] == 0.0:  # wrong stays wrong, by another letter
            row["target"] = str(next(k for k in range(4) if k not in (best, int(row["target"]))))

    other = changed(exported, tmp_path / "other", change)
    (folder,) = harness_import.imported([other], tmp_path / "runs").folders
    assert read_json(folder / "summary.json")["protocol"] == "lm-eval (imported)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(acc=1.0 - row["acc"]), r"acc is \d, its log-probabilities say"),
        (lambda row: row.update(target="?"), r"target '\?'; this is not what lm-eval writes"),
        (lambda row: row.pop("arguments"), r"arguments \(KeyError"),
        (lambda row: row.pop("doc_id"), "has no doc_id; this is no samples file"),
    ],
)
def test_samples_that_contradict_themselves_are_refused(
    exported: Path, tmp_path: Path, change: Any, message: str
) -> None:
    other = changed(exported, tmp_path / "other", change)
    with pytest.raises(RunError, match=message):
        harness_import.imported([other], tmp_path / "runs")


def test_samples_of_another_run_are_refused(exported: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    path = next(other.rglob("samples_*.jsonl"))
    path.write_text("".join(path.read_text("utf-8").splitlines(True)[:-1]), "utf-8")
    with pytest.raises(RunError, match=r"give files of one run"):
        harness_import.imported([other], tmp_path / "runs")


def test_results_without_samples_give_the_same_board_row(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    alone = tmp_path / results_of(exported).name
    shutil.copy(results_of(exported), alone)
    (folder,) = harness_import.imported([alone], tmp_path / "runs").folders
    summary, ours = (read_json(f / "summary.json") for f in (folder, run))
    assert summary["metrics"] == ours["metrics"]
    assert summary["imported"]["note"].startswith("results without samples")
    assert summary["protocol_sha256"] != ours["protocol_sha256"]
    assert board.board([summary]).rows[0][1].text.endswith(f"n={ours['n']}")
    with pytest.raises(RunError, match="different protocols"):
        pair(folder, run)


OLD: dict[str, Any] = {
    "results": {
        "cmmlu": {"acc,none": 0.25, "acc_stderr,none": 0.1, "alias": "cmmlu"},
        "cmmlu_agronomy": {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": " - agronomy"},
        "cmmlu_anatomy": {"acc,none": 0.125, "acc_stderr,none": 0.05, "alias": " "},
        "hellaswag": {"acc,none": 0.3},
    },
    "n-shot": {"cmmlu_agronomy": 5, "cmmlu_anatomy": 5},
    "config": {"model": "hf", "model_args": "pretrained=org/model,dtype=float16", "limit": None},
    "start_time": 1.0,
}


def imported(content: Any, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(content), "utf-8")
    found = harness_import.imported([path], folder / "runs")
    return read_json(found.folders[0] / "summary.json"), found


def test_old_results_are_read(tmp_path: Path) -> None:
    summary, found = imported(OLD, tmp_path)
    assert summary["model"] == "org/model"
    assert summary["shots"] == 5
    assert summary["metrics"]["acc/macro"]["value"] == pytest.approx(0.3125)
    counts = load_task("cmmlu").subjects
    n = counts["agronomy"].counts["test"] + counts["anatomy"].counts["test"]
    assert summary["n"] == n
    assert any("hellaswag" in note for note in found.notes)


def test_a_group_alone_gives_its_average_over_items(tmp_path: Path) -> None:
    content = OLD | {"results": {"cmmlu": {"acc,none": 0.25, "acc_stderr,none": 0.004}}}
    summary, _ = imported(content, tmp_path)
    assert summary["headline"] == "acc/micro"
    assert summary["metrics"]["acc/micro"]["value"] == 0.25
    assert list(summary["metrics"]) == ["acc/micro"]


def test_a_missing_value_is_named_and_never_zero(tmp_path: Path) -> None:
    rows = OLD["results"] | {"cmmlu_anatomy": {"acc,none": "N/A", "acc_stderr,none": "N/A"}}
    summary, _ = imported(OLD | {"results": rows}, tmp_path)
    assert summary["missing"] == ["anatomy"]
    assert summary["metrics"] == {}
    assert "–" in board.board([summary]).rows[0][1].text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a results file of lm-eval"),
        ({"results": 3}, "not a results file of lm-eval"),
        ({"results": {"hellaswag": {"acc,none": 0.3}}}, r"no task that is known here \(hellaswag"),
        (
            {"results": {"mmlu_anatomy": {"acc,none": 1.5}}},
            "has acc 1.5; a share lies between 0 and 1",
        ),
        (
            {"results": {"mmlu_anatomy": {"acc,none": 0.1234}}, "config": {"limit": 0.5}},
            "says neither of how many items",
        ),
        (
            {
                "results": {"mmlu_anatomy": {}, "mmlu_astronomy": {}},
                "n-shot": {"mmlu_anatomy": 5, "mmlu_astronomy": 0},
            },
            "have 0 and 5 shots",
        ),
    ],
)
def test_what_is_no_result_is_one_sentence(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(RunError, match=message) as error:
        imported(content, tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results_x.json"
    path.write_text("{", "utf-8")
    with pytest.raises(RunError, match="not readable as JSON"):
        harness_import.imported([path], tmp_path)
    samples = tmp_path / "samples_x.jsonl"
    samples.write_text("", "utf-8")
    with pytest.raises(RunError, match=r"no results_….json there"):
        harness_import.imported([samples], tmp_path)


# names


def test_lm_evals_names_are_found_for_every_subject() -> None:
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks"
    folders = ("mmlu/default", "cmmlu", "ceval", "agieval")
    texts = [p.read_text("utf-8") for f in folders for p in (tasks / f).glob("*.yaml")]
    known = {name for text in texts for name in re.findall(r'^"?task"?: *"?([\w-]+)', text, re.M)}
    for (name, split), group in harness_names.THEIRS.items():
        task = load_task(name)
        assert harness_names.group_name(task, "lm-eval", split) == group
        for subject in task.subjects:
            theirs = harness_names.task_name(group, subject)
            assert theirs in known
            found = harness_names.meant(theirs)
            assert found is not None
            assert (found.task, found.subject, found.split) == (name, subject, split)


# tasks


def test_our_task_folder_gives_the_same_predictions_in_lm_eval(
    run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    out = tmp_path / "tasks"
    chosen = Selection(shots=1, limit=4)
    said = export("lm-eval-tasks", Wanted(task="sample-mmlu", chosen=chosen), out)
    assert "--tasks ceval_suite_sample-mmlu" in said
    lm = HFLM(pretrained=str(tiny_model), dtype="float32", device="cpu", batch_size=1)
    manager = TaskManager(include_path=str(out), include_defaults=False)
    found: Any = simple_evaluate(
        lm, tasks=["ceval_suite_sample-mmlu"], task_manager=manager, bootstrap_iters=0
    )
    records = {r.id: r for r in read_records(run / "records.jsonl")}
    seen = 0
    for rows in found["samples"].values():
        for row in rows:
            one = records[row["doc"]["id"]]
            assert row["prompt_hash"] == one.prompt_sha256
            values = [pair[0] for pair in row["filtered_resps"]]
            assert values == pytest.approx(list(one.logprobs.values()), abs=1e-4)
            assert row["doc"]["labels"][values.index(max(values))] == one.prediction[0]
            seen += 1
    assert seen == len(records)
    summary = read_json(run / "summary.json")
    got = found["results"]["ceval_suite_sample-mmlu"]["acc,none"]
    assert got == pytest.approx(summary["metrics"][summary["headline"]]["value"])
    # and what lm-eval itself writes of it comes back as the run that we made
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=m", None, None, False)
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    back = harness_import.imported([tmp_path / "theirs"], tmp_path / "runs")
    again = read_json(back.folders[0] / "summary.json")
    assert not any("not imported" in note for note in back.notes), back.notes
    for key in ("protocol", "protocol_sha256", "metrics", "subjects", "shots", "limit"):
        assert again[key] == summary[key], key


def test_a_runs_own_prompts_can_be_the_tasks(run: Path, tmp_path: Path) -> None:
    export("lm-eval-tasks", Wanted((run,)), tmp_path / "tasks")
    hashes = {r.id: r.prompt_sha256 for r in read_records(run / "records.jsonl")}
    from lm_eval.utils import hash_string

    docs = [
        json.loads(line)
        for path in (tmp_path / "tasks" / "docs").glob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    assert {doc["id"]: hash_string(doc["prompt"]) for doc in docs} == hashes


@pytest.mark.parametrize(
    ("task", "chosen", "message"),
    [
        ("sample-mmlu", Selection(protocol="colossal"), "reads letters by token ids"),
        ("sample-mmlu", Selection(protocol="whole-option-byte"), "best byte score"),
    ],
)
def test_what_lm_eval_cannot_score_is_refused(
    task: str, chosen: Selection, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        harness_folder.of_task(task, chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_import_on_the_command_line(exported: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(
        app, ["import", str(exported), "--out", str(tmp_path), "--model", "them"]
    )
    assert found.exit_code == 0, found.output
    assert "them" in found.stdout
    assert "proved equal to ours" in found.stderr
