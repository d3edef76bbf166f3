"""Tasks of one call share what they have in common; limits and checks change no record."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ceval_suite import backends, sweep
from ceval_suite.backends.crew import Crew
from ceval_suite.errors import ConfigError, ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.run import Watch, evaluate
from ceval_suite.schema import Record
from ceval_suite.sweep import selections
from tests.hands import ThreadHands, by_unit

pytestmark = pytest.mark.usefixtures("one_thread")

SAME = 2e-5
"""What the order of float32 sums may change between two ways of packing the same rows."""

SMALLEST = 32
"""Tokens at once when memory just suffices."""


def sample(name: str = "sample-mmlu", **selection: Any) -> Prepared:
    return prepare(name, Selection(**selection))


def records_in(folder: Path) -> dict[str, Record]:
    return {record.id: record for record in read_records(folder / "records.jsonl")}


def about(folder: Path) -> dict[str, Any]:
    return read_json(folder / "run.json")


def computed(folders: Sequence[Path]) -> int:
    return sum(about(folder)["tokens"]["computed"] for folder in folders)


def same(found: Path, expected: Path, tolerance: float = SAME) -> None:
    """The records of two runs but for rounding, in any order."""
    left, right = records_in(found), records_in(expected)
    assert set(left) == set(right)
    assert len(left) > 0
    for id, record in left.items():
        one, other = asdict(record), asdict(right[id])
        for key in ("logits", "logprobs", "choice_mass"):
            assert one.pop(key) == pytest.approx(other.pop(key), abs=tolerance), id
        assert one == other


def prefixes(folders: Sequence[Path], tasks: Sequence[Prepared], tokenizer: Any) -> int:
    """Different heads of all prompts in tokens: the least that any order can compute."""
    root: dict[int, Any] = {}
    number = 0
    for folder, prepared in zip(folders, tasks, strict=True):
        for item in prepared.scored():
            text = prepared.renderer(item.subject).render(item).request().context
            ids = tokenizer(text).input_ids
            assert len(ids) == records_in(folder)[item.id].prompt_tokens
            place = root
            for token in ids:
                number += token not in place
                place = place.setdefault(token, {})
    return number


@pytest.fixture
def spec(tiny_model: Path) -> ModelSpec:
    return ModelSpec(path=str(tiny_model))


# several tasks in one call


def test_two_tasks_in_one_call_get_the_records_of_two_calls(
    spec: ModelSpec, tmp_path: Path
) -> None:
    tasks = [sample("sample-mmlu"), sample("sample-ceval")]
    apart = [evaluate("m", spec, [task], tmp_path / "apart")[0] for task in tasks]
    started: list[str] = []
    stepped: list[tuple[str, str]] = []
    watch = Watch(
        start=lambda name, _total, _done: started.append(name),
        step=lambda name, record: stepped.append((name, record.id)),
    )
    found = evaluate("m", spec, tasks, tmp_path / "together", watch)
    for one, other, task in zip(found, apart, tasks, strict=True):
        assert one.name == other.name
        same(one, other)
        summaries = [read_json(folder / "summary.json") for folder in (one, other)]
        for key in ("n", "complete", "metrics", "subjects", "letters", "ties"):
            assert summaries[0][key] == summaries[1][key]
        ids = {item.id for item in task.scored()}
        assert {id for name, id in stepped if name == task.task.name} == ids
    assert started == ["sample-mmlu", "sample-ceval"]
    assert len(stepped) == len(set(stepped)) == sum(len(task.scored()) for task in tasks)


def test_a_sweep_over_shots_computes_every_shared_head_once(
    spec: ModelSpec, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tasks = [sample(shots=shots) for shots in (0, 2, 5)]
    apart = [evaluate("m", spec, [task], tmp_path / "apart")[0] for task in tasks]
    found = evaluate("m", spec, tasks, tmp_path / "together")
    assert len({folder.name for folder in found}) == 3
    for one, other, shots in zip(found, apart, (0, 2, 5), strict=True):
        assert one.name == other.name
        assert {record.shots for record in records_in(one).values()} == {shots}
        same(one, other)
    for folder, task in zip(apart, tasks, strict=True):
        assert computed([folder]) == prefixes([folder], [task], tiny_tokenizer)
    assert computed(found) == prefixes(found, tasks, tiny_tokenizer) < computed(apart)
    # the share of each run adds up to what the model was given
    for folder in found:
        engine = about(folder)["engine"]["tokens"]
        assert engine["computed"] == computed(found)
        assert engine["total"] == sum(about(one)["tokens"]["total"] for one in found)
        assert about(folder)["tokens"]["total"] == sum(
            record.prompt_tokens for record in records_in(folder).values()
        )
        assert 0 < computed([folder]) <= about(folder)["tokens"]["total"]
        assert about(folder)["seconds"]["scoring"] > 0


def test_a_sweep_that_was_cut_off_scores_only_what_is_left_of_each_run(
    spec: ModelSpec, tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    tasks = [sample(shots=shots) for shots in (0, 2)]
    whole = evaluate("m", spec, tasks, tmp_path / "whole")
    seen: list[str] = []

    def step(name: str, _: Record) -> None:
        seen.append(name)
        if len(seen) == 90:
            raise Enough

    with pytest.raises(Enough):
        evaluate("m", spec, tasks, tmp_path / "cut", Watch(step=step))
    assert set(seen) == {"sample-mmlu official 0-shot", "sample-mmlu official 2-shot"}
    started: dict[str, tuple[int, int]] = {}
    again: list[str] = []
    watch = Watch(
        start=lambda name, total, done: started.update({name: (total, done)}),
        step=lambda name, _: again.append(name),
    )
    found = evaluate("m", spec, tasks, tmp_path / "cut", watch)
    assert started == {name: (100, seen.count(name)) for name in set(seen)}
    assert {name: again.count(name) for name in set(seen)} == {
        name: 100 - seen.count(name) for name in set(seen)
    }
    for one, other in zip(found, whole, strict=True):
        same(one, other)


def test_the_same_task_twice_in_one_call_is_scored_once(spec: ModelSpec, tmp_path: Path) -> None:
    stepped: list[str] = []
    watch = Watch(step=lambda _, record: stepped.append(record.id))
    folders = evaluate("m", spec, [sample(limit=2), sample(limit=2)], tmp_path, watch)
    assert len(folders) == 1
    assert len(stepped) == len(set(stepped)) == 10
    # and reused once when it is finished
    assert evaluate("m", spec, [sample(limit=2), sample(limit=2)], tmp_path, watch) == folders
    assert len(stepped) == 10


def test_selections_are_protocols_times_shots() -> None:
    base = Selection(limit=3, chat=True)
    assert selections(base, [], []) == [base]
    found = selections(base, ["official", "colossal"], ["0", "5"])
    assert [(one.protocol, one.shots) for one in found] == [
        ("official", 0),
        ("official", 5),
        ("colossal", 0),
        ("colossal", 5),
    ]
    assert {(one.limit, one.chat) for one in found} == {(3, True)}
    with pytest.raises(ConfigError, match=r"--shots: '²' is not a number of shots; give 5, or 0,5"):
        selections(base, [], ["0", "²"])


# memory


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", 1000),
        ("1000B", 1000),
        ("3K", 3000),
        ("512MB", 512_000_000),
        ("512 MB", 512_000_000),
        ("8GB", 8_000_000_000),
        ("8G", 8_000_000_000),
        ("1.5GiB", 1_610_612_736),
        ("2KiB", 2048),
        ("1TB", 10**12),
        (None, None),
    ],
)
def test_memory_is_read_as_people_write_it(text: str | None, number: int | None) -> None:
    assert ModelSpec(path="x", memory=text).memory_bytes == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8PB", "8gb", "1.GB", "1.5.2GB", "8GB free"])
def test_memory_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="memory"):
        ModelSpec(path="x", memory=text)


def test_too_little_memory_says_how_much_is_needed_and_that_much_suffices(
    spec: ModelSpec, tmp_path: Path
) -> None:
    (expected,) = evaluate("m", spec, [sample()], tmp_path / "plenty")

    def under(memory: int) -> Path:
        limited = spec.model_copy(update={"memory": str(memory)})
        (folder,) = evaluate("m", limited, [sample()], tmp_path / str(memory))
        return folder

    with pytest.raises(ModelError, match=r"--memory: .* give at least [\d,]+\.$") as refused:
        under(1)
    needed = int(re.findall(r"[\d,]+", str(refused.value))[-1].replace(",", ""))
    weights = (Path(spec.path) / "model.safetensors").stat().st_size
    assert weights < needed < 20 * weights
    with pytest.raises(ModelError, match="give at least"):
        under(needed - 1)
    found = under(needed)
    same(found, expected)
    assert about(found)["engine"]["pack_tokens"] == SMALLEST
    assert about(found)["engine"]["path"]["attention"] == "packed"
    assert about(found)["tokens"] == about(expected)["tokens"]


# the plain path, asked for


def test_the_plain_engine_gives_the_same_predictions_and_says_so(
    spec: ModelSpec, tmp_path: Path
) -> None:
    (expected,) = evaluate("m", spec, [sample()], tmp_path / "auto")
    plain = spec.model_copy(update={"engine": "plain"})
    (found,) = evaluate("m", plain, [sample()], tmp_path / "plain")
    same(found, expected, 1e-4)
    assert about(expected)["engine"]["path"]["attention"] == "packed"
    assert about(found)["engine"]["path"] == {"attention": "plain", "reason": "asked for"}
    assert about(found)["model"]["engine"] == "plain"
    # one row at a time, nothing shared
    assert about(found)["tokens"]["computed"] == about(found)["tokens"]["total"]
    assert about(expected)["tokens"]["computed"] < about(found)["tokens"]["total"]


# verify


@pytest.fixture(scope="module")
def rough(tiny_llama: Callable[..., Path]) -> Path:
    """A model of so many layers that rounding them to bfloat16 changes some predictions."""
    return tiny_llama(
        "rough", 0, hidden_size=64, intermediate_size=128, num_hidden_layers=24,
        initializer_range=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def narrow(
    one_thread: None, rough: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelSpec, Path]:
    """A run in bfloat16: its model and its folder; tests work on a copy."""
    spec = ModelSpec(path=str(rough), dtype="bfloat16")
    (folder,) = evaluate("m", spec, [sample()], tmp_path_factory.mktemp("narrow"))
    return spec, folder


@pytest.fixture
def verified(
    narrow: tuple[ModelSpec, Path], tmp_path: Path
) -> Callable[[int], tuple[Path, list[str], list[str]]]:
    """Verify a finished run: its folder, what was said, and the ids that were scored for it."""
    import shutil

    spec, before = narrow

    def verify(count: int) -> tuple[Path, list[str], list[str]]:
        shutil.copytree(before, tmp_path / "m" / before.name, dirs_exist_ok=True)
        said: list[str] = []
        scored: list[str] = []
        watch = Watch(
            say=said.append,
            start=lambda name, _total, _done: scored.append(name),
            step=lambda _, record: scored.append(record.id),
        )
        (folder,) = evaluate("m", spec, [sample()], tmp_path, watch, verify=count)
        return folder, said, scored

    return verify


@pytest.fixture(scope="module")
def float32(one_thread: None, rough: Path, tiny_tokenizer: Any) -> dict[str, dict[str, float]]:
    """Log-probabilities of the letters of every item, by transformers alone in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(rough, dtype=torch.float32).eval()
    prepared = sample()
    out: dict[str, dict[str, float]] = {}
    for item in prepared.scored():
        request = prepared.renderer(item.subject).render(item).request()
        ids = tiny_tokenizer(request.context).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        out[item.id] = {}
        for label, continuation in zip(item.labels, request.continuations, strict=True):
            *context, letter = tiny_tokenizer(request.context + continuation).input_ids
            assert context == ids
            out[item.id][label] = logprobs[letter].item()
    return out


def flips(folder: Path, judge: dict[str, dict[str, float]], ids: Sequence[str]) -> list[str]:
    found = records_in(folder)
    return sorted(
        id for id in ids if found[id].prediction != [max(judge[id], key=judge[id].__getitem__)]
    )


@pytest.mark.parametrize("count", [1, 30, 100, 1000])
def test_verified_items_are_compared_with_the_model_in_float32(
    count: int, verified: Any, narrow: Any, float32: dict[str, dict[str, float]]
) -> None:
    folder, said, scored = verified(count)
    found = about(folder)["verified"]
    ids = [item.id for item in sample().scored()]
    number = min(count, len(ids))
    chosen = random.Random(found["seed"]).sample(ids, number)
    expected = flips(folder, float32, chosen)
    if number == len(ids):
        assert expected  # a model on which rounding changes nothing would prove nothing
    assert found["items"] == number
    assert found["flips"] == expected
    assert found["against"] == "plain path, float32"
    records = records_in(folder)
    worst = max(
        abs(records[id].logprobs[label] - value)
        for id in chosen
        for label, value in float32[id].items()
    )
    assert found["largest_difference"] == pytest.approx(worst, abs=1e-4)
    rate = found["rate"]
    assert rate["value"] == pytest.approx(len(expected) / number)
    assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert rate["low"] < rate["high"]
    (line,) = [line for line in said if "differ" in line]
    assert line.startswith(f"sample-mmlu: {len(expected)} of {number} predictions differ")
    # the records stand as they were: nothing is scored into them again
    assert scored == []
    assert not [line for line in said if line.startswith("loading")]
    before = narrow[1]
    content = (folder / "records.jsonl").read_bytes()
    assert content == (before / "records.jsonl").read_bytes()
    assert about(folder)["tokens"] == about(before)["tokens"]
    assert about(folder)["engine"] == about(before)["engine"]
    assert read_json(folder / "summary.json") == read_json(before / "summary.json")


def test_a_fresh_run_is_verified_right_away(
    one_thread: None, tiny_model: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="bfloat16")
    (before,) = evaluate("m", spec, [sample()], tmp_path / "before")
    (folder,) = evaluate("m", spec, [sample()], tmp_path, verify=20)
    same(folder, before)
    assert about(folder)["verified"]["items"] == 20
    assert about(folder)["engine"]["dtype"] == "bfloat16"
    assert read_json(folder / "summary.json")["complete"] is True
    # and what was found stays when the run is used again
    kept = about(folder)["verified"]
    evaluate("m", spec, [sample()], tmp_path)
    assert about(folder)["verified"] == kept


def test_a_float32_run_flips_nowhere(spec: ModelSpec, tmp_path: Path) -> None:
    tasks = [sample(limit=6), sample("sample-ceval", limit=6)]
    for folder in evaluate("m", spec, tasks, tmp_path, verify=25):
        found = about(folder)["verified"]
        assert found["items"] == min(25, len(records_in(folder)))
        assert found["flips"] == []
        assert 0 < found["largest_difference"] < 1e-4


# on the command line


def test_the_command_line_takes_lists_memory_engine_and_verify(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import signal
    import sys

    from ceval_suite import cli

    before = signal.getsignal(signal.SIGTERM)

    def call(*args: object) -> tuple[int, str, str]:
        base = ["run", "--model", tiny_model, "--tasks", "sample-mmlu", "--limit", 3]
        argv = ["ceval-suite", *map(str, [*base, "--out", tmp_path / "runs", *args])]
        monkeypatch.setattr(sys, "argv", argv)
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    try:
        code, out, err = call("--memory", "1KB")
        assert (code, out) == (1, "")
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert re.fullmatch(r"error: --memory: [^.]* give at least [\d,]+\.", line)
        assert "Traceback" not in err

        several = ("--shots", "0,2", "--protocol", "official,colossal", "--json")
        code, out, err = call(*several, "--verify", 4, "--engine", "plain", "--memory", "1GB")
        assert code == 0, err
        folders = sorted((tmp_path / "runs").glob("*/*/summary.json"))
        found = {(s["protocol"], s["shots"]): s for s in map(read_json, folders)}
        assert set(found) == {(p, k) for p in ("official", "colossal") for k in (0, 2)}
        assert len(json.loads(out)["columns"]) == 1 + len(found)
        assert all(summary["engine"]["attention"] == "plain" for summary in found.values())
        for protocol, shots in found:
            assert f"sample-mmlu {protocol} {shots}-shot: 15/15 items" in err
        assert len([line for line in err.splitlines() if " of 4 predictions differ" in line]) == 4

        code, again, err = call(*several)
        assert (code, again) == (0, out)
        assert err.count("reused") == 4
        assert "loading" not in err
    finally:
        signal.signal(signal.SIGTERM, before)


def test_of_several_models_that_fail_by_workers_each_says_why(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crew(workers: int, *, patience: float, coming: int, **_: Any) -> Crew:
        hands = ThreadHands(by_unit, backends.identify)
        return Crew(hands, workers, backends.identify, patience=patience, coming=coming)

    monkeypatch.setattr(sweep, "open_crew", crew)
    specs = {name: ModelSpec(path=str(tmp_path / name)) for name in ("away", "gone", "lost")}
    specs["here"] = ModelSpec(path=str(tiny_model))
    lines: list[str] = []
    out = tmp_path / "runs"
    with pytest.raises(UserError, match="away"):
        sweep.run(specs, ["sample-mmlu"], [Selection()], out, lines.append, staff=sweep.Staff(2))
    failed = [line for line in lines if str(tmp_path) in line]
    assert [line.split(": ")[0] for line in failed] == ["gone", "lost"]
    assert all(f"/{name}" in line for name, line in zip(("gone", "lost"), failed, strict=True))
    assert len(list(out.glob("here/*/summary.json"))) == 1


def test_what_is_said_of_workers_is_refused_where_there_are_none() -> None:
    assert sweep.staff(1, None) is None
    assert sweep.staff(2, None) == sweep.Staff(2, patience=sweep.SILENT)
    assert sweep.staff(1, "auto", 0.5, 60) == sweep.Staff(1, "auto", 0.5, 60)
    with pytest.raises(ConfigError, match=r"--gpus-per-worker is .* give --workers 2, or --ray"):
        sweep.staff(1, None, 2)
    with pytest.raises(ConfigError, match=r"--worker-timeout is .* give --workers 2, or --ray"):
        sweep.staff(1, None, None, 60)
