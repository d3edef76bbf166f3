"""A run scores each item once, keeps what it has, and says what it could not do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.errors import ConfigError, DataError, ModelError, PromptError, RunError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records, write_json
from ceval_suite.report.board import board
from ceval_suite.run import Watch, evaluate
from ceval_suite.schema import Record, Reply, Request

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")


class Scripted:
    """A backend that answers by a hash of the question, last item first; one token a character."""

    def __init__(
        self,
        *,
        max_length: int = 10**9,
        dtype: str = "float32",
        fail_after: int | None = None,
        skip: Sequence[str] = (),
    ) -> None:
        self.max_length = max_length
        self.dtype = dtype
        self.fail_after = fail_after
        self.skip = skip
        self.asked: list[Request] = []

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [len(text) for text in texts]

    def wrap(self, user: str) -> str:
        return f"<user>{user}</user><assistant>"

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return [{"id": request.id, "one_token": True} for request in requests]

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for n, request in enumerate(reversed(requests)):
            if n == self.fail_after:
                raise ModelError("out of memory on one row; use a smaller dtype.")
            self.asked.append(request)
            if request.id in self.skip:
                continue
            digest = hashlib.sha256(request.id.encode()).digest()
            logits = tuple(float(b) for b in digest[: len(request.continuations)])
            yield Reply(
                id=request.id,
                logits=logits,
                logprobs=tuple(x - 256 for x in logits),
                num_tokens=len(request.context),
                choice_mass=0.5,
            )

    def describe(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "tokens": {"total": len(self.asked)}, "path": {}}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a backend in place of the real one; without one, opening any is an error."""

    def put(backend: Scripted | None) -> Any:
        def opener(_spec: ModelSpec, _say: Any) -> Scripted:
            if backend is None:
                raise AssertionError("the model was loaded")
            return backend

        monkeypatch.setattr("ceval_suite.run.open_backend", opener)
        return backend

    return put


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Something with weights and a tokenizer to tell apart; only scripted backends load it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


def sample(name: str = "sample-mmlu", **selection: Any) -> Prepared:
    return prepare(name, Selection(**selection))


def records_in(folder: Path) -> list[Record]:
    return list(read_records(folder / "records.jsonl"))


def summary_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "summary.json")


def same(one: Record, other: Record) -> None:
    """Equal but for rounding: batches differ between a whole run and a resumed one."""
    left, right = asdict(one), asdict(other)
    for key in ("logits", "logprobs"):
        assert left.pop(key) == pytest.approx(right.pop(key), abs=1e-5)
    assert left.pop("choice_mass") == pytest.approx(right.pop("choice_mass"), abs=1e-6)
    assert left == right


# a real run


@pytest.fixture(scope="module")
def whole(
    one_thread: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The five bundled exams, scored by the tiny model: task → run folder."""
    tasks = [sample(name) for name in SAMPLES]
    out = tmp_path_factory.mktemp("runs")
    folders = evaluate("tiny", ModelSpec(path=str(tiny_model)), tasks, out)
    return dict(zip(SAMPLES, folders, strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_run_scores_every_item_once(whole: dict[str, Path], name: str) -> None:
    prepared = sample(name)
    found = records_in(whole[name])
    assert Counter(r.id for r in found) == Counter(i.id for i in prepared.scored())
    asked = {i.id: i for i in prepared.scored()}
    for record in found:
        labels, kind = sorted(asked[record.id].labels), asked[record.id].kind
        assert record.prompt_tokens > 0
        assert record.shots == len(prepared.shown[record.subject])
        assert (record.text is None) == (kind != "cloze")
        if kind == "cloze":
            assert (record.logprobs, record.choice_mass) == ({}, None)
            continue
        assert record.correct == (record.prediction == record.answer)
        assert 0 < record.choice_mass < 1
        if kind == "multi":
            strings = [key for key in record.logprobs if key.isalpha()]
            assert len(strings) == 2 ** len(labels) - 1 == len(record.logprobs) / 2
            assert "".join(record.prediction) in strings
            continue
        assert list(record.logprobs) == labels
        # of seven letters one may be two tokens, then there are no logits
        assert list(record.logits) == labels or (record.logits == {} and len(labels) == 7)
        scores = record.logits or record.logprobs
        assert record.prediction == [max(scores, key=scores.__getitem__)]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_folder_and_its_files_follow_the_contract(whole: dict[str, Path], name: str) -> None:
    folder = whole[name]
    prepared = sample(name)
    assert folder.parent.name == "tiny"
    assert re.fullmatch(rf"{name}-\w+-{prepared.shots}shot-[0-9a-f]{{8}}", folder.name)
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "run.json",
        "records.jsonl",
        "summary.json",
    }
    run, summary = read_json(folder / "run.json"), summary_of(folder)
    assert run["identity"]["protocol_sha256"] == prepared.fingerprint
    assert set(run["seconds"]) == {"scoring", "rest"}
    assert run["engine"]["dtype"] == "float32"
    assert run["engine"]["versions"]["torch"]
    assert run["data"]["sha256"] == prepared.data_sha256
    assert run["letters"][0]["one_token"] is True
    for key in ("task", "model", "protocol", "split", "n", "headline", "metrics", "categories"):
        assert key in summary
    assert set(summary["subjects"]) == set(prepared.subjects)
    assert summary["complete"] is True
    assert summary["labels"] is True
    assert set(summary["metrics"][summary["headline"]]) == {"value", "n", "stderr", "low", "high"}
    assert summary["n"] == len(prepared.scored())


def test_the_headline_is_the_benchmarks_own(whole: dict[str, Path]) -> None:
    found = {name: summary_of(folder)["headline"] for name, folder in whole.items()}
    assert found == {
        "sample-mmlu": "acc/micro",
        "sample-cmmlu": "acc/macro",
        "sample-ceval": "acc/macro",
        "sample-agieval": "acc/macro",
        "sample-gaokao": "points",
    }


def test_tokens_of_a_run_are_its_own_not_those_of_the_runs_before_it(
    whole: dict[str, Path],
) -> None:
    for folder in whole.values():
        # rows merge only when equal, and the sample's prompts all differ
        assert summary_of(folder)["tokens"]["total"] == sum(
            r.prompt_tokens for r in records_in(folder)
        ), folder.name


def test_a_second_run_reuses_everything_without_loading_the_model(
    whole: dict[str, Path], tiny_model: Path, use: Any
) -> None:
    use(None)
    before = {f: (f / "records.jsonl").read_bytes() for f in whole.values()}
    said: list[str] = []
    out = next(iter(whole.values())).parents[1]
    folders = evaluate(
        "tiny",
        ModelSpec(path=str(tiny_model)),
        [sample(name) for name in SAMPLES],
        out,
        Watch(say=said.append),
    )
    assert folders == list(whole.values())
    assert {f: (f / "records.jsonl").read_bytes() for f in folders} == before
    assert len([line for line in said if "reused" in line]) == len(SAMPLES)


@pytest.mark.parametrize("kept", [0, 1, 37, 99])
def test_resuming_scores_only_what_is_left(
    whole: dict[str, Path], tiny_model: Path, tmp_path: Path, kept: int
) -> None:
    folder = tmp_path / "tiny" / whole["sample-mmlu"].name
    shutil.copytree(whole["sample-mmlu"], folder)
    (folder / "summary.json").unlink()
    content = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    torn = content[kept][: len(content[kept]) // 2]
    (folder / "records.jsonl").write_bytes(b"".join(content[:kept]) + torn)
    started: list[tuple[str, int, int]] = []
    stepped: list[tuple[str, str]] = []
    watch = Watch(
        start=lambda name, total, done: started.append((name, total, done)),
        step=lambda name, record: stepped.append((name, record.id)),
    )
    (again,) = evaluate("tiny", ModelSpec(path=str(tiny_model)), [sample()], tmp_path, watch)
    assert again == folder
    assert started == [("sample-mmlu", 100, kept)]
    assert len(set(stepped)) == len(stepped) == 100 - kept
    assert {name for name, _ in stepped} == {"sample-mmlu"}
    assert (folder / "records.jsonl").read_bytes().startswith(b"".join(content[:kept]))
    expected = {r.id: r for r in records_in(whole["sample-mmlu"])}
    found = records_in(folder)
    assert len(found) == len(expected)
    for record in found:
        same(record, expected.pop(record.id))
    after, before = summary_of(folder), summary_of(whole["sample-mmlu"])
    assert after["metrics"] == before["metrics"]
    assert after["subjects"] == before["subjects"]


# scripted runs


def test_replies_may_come_in_any_order(checkpoint: Path, tmp_path: Path, use: Any) -> None:
    backend = use(Scripted())
    prepared = sample()
    (folder,) = evaluate("m", ModelSpec(path=str(checkpoint)), [prepared], tmp_path / "out")
    ids = [item.id for item in prepared.scored()]
    assert [r.id for r in records_in(folder)] == ids[::-1]
    assert sorted(r.id for r in backend.asked) == sorted(ids)
    assert summary_of(folder)["n"] == len(ids)


@pytest.fixture
def finished(checkpoint: Path, tmp_path: Path, use: Any) -> tuple[ModelSpec, Path]:
    """A whole scripted run of the first sample below `out`: the model and its run folder."""
    spec = ModelSpec(path=str(checkpoint))
    use(Scripted())
    (folder,) = evaluate("m", spec, [sample()], tmp_path / "out")
    return spec, folder


def test_a_run_that_only_lacks_its_summary_is_finished_without_the_model(
    finished: tuple[ModelSpec, Path], tmp_path: Path, use: Any
) -> None:
    # killed between the last record and summary.json
    spec, folder = finished
    before = summary_of(folder), read_json(folder / "run.json")
    (folder / "summary.json").unlink()
    use(None)
    evaluate("m", spec, [sample()], tmp_path / "out")
    assert summary_of(folder) == before[0]
    assert read_json(folder / "run.json")["letters"] == before[1]["letters"] != []


def test_a_line_taken_out_by_hand_is_scored_again(
    finished: tuple[ModelSpec, Path], tmp_path: Path, use: Any
) -> None:
    # the records are the truth: a summary must not stand for items that are not there
    spec, folder = finished
    content = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(content[:10] + content[11:]))
    backend = use(Scripted())
    evaluate("m", spec, [sample()], tmp_path / "out")
    assert [r.id for r in backend.asked] == [json.loads(content[10])["id"]]
    assert len(records_in(folder)) == len(content)


def test_what_changes_the_question_changes_the_folder() -> None:
    names = [
        sample(**selection).folder
        for selection in (
            {},
            {"limit": 3},
            {"limit": 4},
            {"shots": 0},
            {"shots": 3},
            {"protocol": "colossal"},
            {"protocol": "lm-eval"},
            {"subjects": ["world_geography"]},
            {"subjects": ["world_geography", "english_usage"]},
            {"chat": True},
        )
    ]
    assert len(set(names)) == len(names)
    assert len({name.rsplit("-", 1)[1] for name in names}) == len(names)


def test_the_order_of_subjects_on_the_command_line_changes_nothing() -> None:
    one = sample(subjects=["world_geography", "english_usage"])
    other = sample(subjects=["english_usage", "world_geography"])
    assert one.folder == other.folder
    assert sample(subjects=list(one.task.subjects)).folder == sample().folder


@pytest.mark.real
def test_one_changed_character_of_the_data_is_another_folder(
    real_data: Path, tmp_path: Path
) -> None:
    for split in ("dev", "val"):
        name = f"{split}/law_{split}.csv"
        (tmp_path / "ceval" / split).mkdir(parents=True)
        shutil.copy(real_data / "ceval" / name, tmp_path / "ceval" / name)
    published = sample("ceval", data=real_data, subjects=["law"])
    copied = sample("ceval", data=tmp_path, subjects=["law"])
    assert copied.folder == published.folder
    path = tmp_path / "ceval/val/law_val.csv"
    path.write_bytes(path.read_bytes().replace("。".encode(), "．".encode(), 1))
    assert sample("ceval", data=tmp_path, subjects=["law"]).folder != published.folder


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_is_never_reused_for_another_checkpoint(
    checkpoint: Path, tmp_path: Path, use: Any, file: str
) -> None:
    spec = ModelSpec(path=str(checkpoint))
    use(Scripted())
    (folder,) = evaluate("m", spec, [sample()], tmp_path / "out")
    before = (folder / "records.jsonl").read_bytes()
    content = bytearray((checkpoint / file).read_bytes())
    content[-1] ^= 1
    (checkpoint / file).write_bytes(content)
    what = "tokenizer_sha256" if file == "tokenizer.json" else "weights_sha256"
    with pytest.raises(RunError, match=f"holds records of another {what}"):
        evaluate("m", spec, [sample()], tmp_path / "out")
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_real_weight_changed_by_one_step_is_another_checkpoint(
    whole: dict[str, Path], tiny_model: Path, tmp_path: Path, use: Any
) -> None:
    from safetensors.torch import load_file, save_file

    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"][0] += 2**-20
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    use(Scripted())
    with pytest.raises(RunError, match="holds records of another weights_sha256"):
        evaluate(
            "tiny",
            ModelSpec(path=str(changed)),
            [sample()],
            whole["sample-mmlu"].parents[1],
        )


def test_records_of_another_dtype_are_refused(checkpoint: Path, tmp_path: Path, use: Any) -> None:
    # `auto` is float32 on one machine and bfloat16 on another
    use(Scripted(dtype="bfloat16", fail_after=5))
    spec = ModelSpec(path=str(checkpoint))
    with pytest.raises(ModelError):
        evaluate("m", spec, [sample()], tmp_path / "out")
    use(Scripted(dtype="float32"))
    with pytest.raises(RunError, match=r"computed in bfloat16, .* give --dtype bfloat16"):
        evaluate("m", spec, [sample()], tmp_path / "out")


def test_an_item_of_another_run_in_the_records_is_refused(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    use(Scripted())
    spec = ModelSpec(path=str(checkpoint))
    (folder,) = evaluate("m", spec, [sample()], tmp_path / "out")
    (folder / "summary.json").unlink()
    line = (folder / "records.jsonl").read_text().splitlines()[0]
    stray = json.loads(line) | {"id": "sample-mmlu/test/alchemy/0"}
    with (folder / "records.jsonl").open("a") as stream:
        stream.write(json.dumps(stray) + "\n")
    with pytest.raises(RunError, match="sample-mmlu/test/alchemy/0 does not belong to this run"):
        evaluate("m", spec, [sample()], tmp_path / "out")


def test_a_backend_that_fails_in_the_middle_keeps_what_was_finished(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    spec = ModelSpec(path=str(checkpoint))
    stopped: list[bool] = []
    use(Scripted(fail_after=30))
    with pytest.raises(ModelError, match="out of memory"):
        evaluate("m", spec, [sample()], tmp_path / "out", Watch(stop=lambda: stopped.append(True)))
    folder = tmp_path / "out" / "m" / sample().folder
    assert len(records_in(folder)) == 30
    assert not (folder / "summary.json").exists()
    assert stopped == [True]
    assert read_json(folder / "run.json")["seconds"]["scoring"] >= 0
    backend = use(Scripted())
    evaluate("m", spec, [sample()], tmp_path / "out")
    assert len(backend.asked) == 70
    assert len({r.id for r in records_in(folder)}) == len(records_in(folder)) == 100
    assert summary_of(folder)["complete"] is True


def test_an_item_without_a_reply_leaves_no_average_and_its_subjects_name(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    skipped = "sample-mmlu/test/world_geography/7"
    spec = ModelSpec(path=str(checkpoint))
    use(Scripted(skip=[skipped]))
    (folder,) = evaluate("m", spec, [sample()], tmp_path / "out")
    found = summary_of(folder)
    assert found["complete"] is False
    assert found["missing"] == ["world_geography"]
    assert found["metrics"] == {}
    backend = use(Scripted())
    evaluate("m", spec, [sample()], tmp_path / "out")
    assert [r.id for r in backend.asked] == [skipped]
    assert summary_of(folder)["complete"] is True
    # killed after that last record: the summary of before must not stand
    write_json(folder / "summary.json", found)
    evaluate("m", spec, [sample()], tmp_path / "out")
    assert summary_of(folder)["complete"] is True


# what is not scored, not labelled or not allowed


@pytest.mark.real
def test_items_that_a_wording_cannot_answer_are_named_never_dropped(
    real_data: Path, checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    prepared = sample("agieval", protocol="lm-eval", data=real_data)
    total = prepared.task.counts["test"]
    backend = use(Scripted())
    said: list[str] = []
    (folder,) = evaluate(
        "m", ModelSpec(path=str(checkpoint)), [prepared], tmp_path, Watch(say=said.append)
    )
    run, summary = read_json(folder / "run.json"), summary_of(folder)
    assert run["not_scored"] == summary["not_scored"]
    found: Counter[str] = Counter()
    for of_subject in summary["not_scored"].values():
        found.update(of_subject)
    assert found == {"cloze": 1118}
    assert summary["n"] == total - found.total() == 7151
    assert len(backend.asked) == summary["n"]
    assert summary["complete"] is True
    (line,) = [line for line in said if "not scored by this method" in line]
    assert f"{found.total()} items" in line
    for subject, of_subject in summary["not_scored"].items():
        for kind, n in of_subject.items():
            assert f"{subject} {n} {kind}" in line
    notes = " ".join(board([summary]).notes)
    assert f"{found.total()} items not scored by this method" in notes
    left_out = set(prepared.task.subjects) - set(summary["subjects"])
    assert f"over {summary['subjects_scored']} of {summary['subjects_total']} subjects" in notes
    assert summary["subjects_scored"] == len(prepared.task.subjects) - len(left_out)


@pytest.mark.real
def test_a_split_without_labels_gives_predictions_and_never_a_zero(
    real_data: Path, checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    use(Scripted())
    prepared = sample("ceval", data=real_data, split="test", limit=2)
    (folder,) = evaluate("m", ModelSpec(path=str(checkpoint)), [prepared], tmp_path)
    found = records_in(folder)
    assert len(found) == 104
    for record in found:
        assert record.answer == []
        assert record.correct is None
        assert record.score is None
        assert record.prediction[0] in "ABCD"
    summary = summary_of(folder)
    assert summary["labels"] is False
    assert summary["complete"] is True
    assert summary["metrics"] == summary["subjects"] == summary["categories"] == {}
    assert "chance_corrected" not in summary
    shown = board([summary]).rows[0][1]
    assert (shown.text, shown.value) == ("– (no labels)", None)


def test_the_split_that_holds_the_shots_is_never_scored() -> None:
    with pytest.raises(DataError, match=r"split 'dev' holds the shots .* score val instead"):
        sample("sample-ceval", split="dev")


@pytest.mark.real
def test_a_folder_with_only_dev_is_refused(real_data: Path, tmp_path: Path) -> None:
    shutil.copytree(real_data / "ceval" / "dev", tmp_path / "ceval" / "dev")
    with pytest.raises(DataError, match=r"_val\.csv is missing \(only dev is there, which is nev"):
        sample("ceval", data=tmp_path)


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"subjects": ["world_geograph"]}, "unknown subject .* did you mean 'world_geography'"),
        ({"protocol": "oficial"}, "unknown protocol .* did you mean 'official'"),
        ({"split": "tset"}, "unknown split .* did you mean 'test'"),
        ({"shots": 6}, "everyday_science has 5 shots, 6 were asked for"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(
    selection: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        sample(**selection)


def test_shots_that_a_protocol_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'official' is 0-shot; drop --shots 5"):
        sample("sample-gaokao", shots=5)


# fitting


def test_whole_shots_are_dropped_until_the_prompt_fits_and_counted(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    prepared = sample()
    lengths = sorted(len(prepared.renderer(i.subject).render(i).text) for i in prepared.scored())
    limit = lengths[len(lengths) // 2]
    backend = use(Scripted(max_length=limit))
    said: list[str] = []
    (folder,) = evaluate(
        "m", ModelSpec(path=str(checkpoint)), [prepared], tmp_path, Watch(say=said.append)
    )
    found = records_in(folder)
    fewer = [r for r in found if r.shots < 5]
    assert 0 < len(fewer) < len(found)
    assert max(r.prompt_tokens for r in found) < limit
    texts = {r.id: r.context for r in backend.asked}
    for record in fewer:
        item = next(i for i in prepared.items[record.subject] if i.id == record.id)
        full = prepared.renderer(record.subject).render(item).text
        shown = prepared.renderer(record.subject).render(
            item, prepared.shown[record.subject][: record.shots]
        )
        assert texts[record.id] == shown.text  # whole shots, the last ones first
        assert full.endswith(shown.text[-len(item.question) :])
        one_more = prepared.renderer(record.subject).render(
            item, prepared.shown[record.subject][: record.shots + 1]
        )
        assert len(one_more.text) >= limit  # and never one too many
    summary = summary_of(folder)
    assert summary["fewer_shots"] == len(fewer)
    assert summary["shots_shown"] == dict(sorted(Counter(str(r.shots) for r in found).items()))
    (line,) = [line for line in said if "fewer shots" in line]
    assert line.startswith(f"sample-mmlu: {len(fewer)} of 100 prompts show fewer shots")


def test_a_question_that_does_not_fit_alone_is_a_sentence_and_nothing_is_scored(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    backend = use(Scripted(max_length=40))
    spec = ModelSpec(path=str(checkpoint))
    with pytest.raises(PromptError, match=r"sample-mmlu/test/\S+: \d+ tokens even without shots"):
        evaluate("m", spec, [sample()], tmp_path / "out")
    assert backend.asked == []
    assert list((tmp_path / "out").rglob("summary.json")) == []
    assert all(p.read_bytes() == b"" for p in (tmp_path / "out").rglob("records.jsonl"))
    use(Scripted())  # a longer context makes it good, in the same folder
    longer = spec.model_copy(update={"max_length": 10**6})
    (folder,) = evaluate("m", longer, [sample()], tmp_path / "out")
    assert summary_of(folder)["n"] == 100


def test_a_real_tokenizers_small_context_drops_shots_too(tiny_model: Path, tmp_path: Path) -> None:
    prepared = sample(subjects=["world_geography"])
    spec = ModelSpec(path=str(tiny_model), max_length=160)
    (folder,) = evaluate("tiny", spec, [prepared], tmp_path)
    found = records_in(folder)
    assert {r.shots for r in found} <= {0, 1, 2, 3, 4}
    assert max(r.prompt_tokens for r in found) < 160
    assert summary_of(folder)["fewer_shots"] == len(found) == 20


# chat


def test_chat_wraps_the_question_and_leaves_the_cue_to_the_assistant(
    checkpoint: Path, tmp_path: Path, use: Any
) -> None:
    backend = use(Scripted())
    (folder,) = evaluate(
        "m", ModelSpec(path=str(checkpoint)), [sample(chat=True)], tmp_path / "out"
    )
    for request in backend.asked:
        assert request.template_tokens is True
        assert request.context.startswith("<user>The following are multiple choice questions")
        assert request.context.endswith("</user><assistant>Answer:")
    assert summary_of(folder)["chat"] is True


def test_chat_without_a_template_is_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--chat needs a chat template"):
        evaluate("tiny", ModelSpec(path=str(tiny_model)), [sample(chat=True)], tmp_path)
