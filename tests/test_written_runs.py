"""Whole runs of every kind of item: whoever is asked, the records are those of backend hf."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import transport
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.run import evaluate
from ceval_suite.schema import Record
from tests import vllm_like
from tests.serving import Engine, serving

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

BLANKS = ["Sample_Chinese_Lang_and_Usage_MCQs", "Sample_English_Cloze_Test"]
EXAMS = {
    "sets and cloze": ("sample-agieval", ["zh-reading", "zh-general", "en-mathcloze"]),
    "blanks": ("sample-gaokao", [*BLANKS, "Sample_Physics_MCQs"]),
}
SAME = ("text", "cut", "prediction", "score", "correct", "prompt_sha256", "prompt_tokens", "shots")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model)


def exam(name: str) -> Prepared:
    task, subjects = EXAMS[name]
    return prepare(task, Selection(None, 0, None, subjects, 1, None, False))


@pytest.fixture(scope="module")
def truth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    """The records of backend hf."""
    out: dict[str, list[Record]] = {}
    for name in EXAMS:
        folder = tmp_path_factory.mktemp("hf")
        spec = ModelSpec(path=str(tiny_model), dtype="float32")
        (run,) = evaluate("tiny", spec, [exam(name)], folder)
        out[name] = list(read_records(run / "records.jsonl"))
    return out


def check(run: Path, truth: list[Record]) -> None:
    found = {record.id: record for record in read_records(run / "records.jsonl")}
    assert len(found) == len(truth)
    for expected in truth:
        record = found[expected.id]
        for key in SAME:
            assert getattr(record, key) == getattr(expected, key), (record.id, key)
        assert record.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert read_json(run / "summary.json")["complete"]


@pytest.mark.parametrize("name", EXAMS)
@pytest.mark.parametrize("who", ["server", "server with tokenizer", "vllm", "lm_eval"])
def test_a_run_gives_the_records_of_hf(
    who: str,
    name: str,
    engine: Engine,
    tiny_model: Path,
    tmp_path: Path,
    truth: dict[str, list[Record]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", vllm_like.module(engine, length=8192))
    with serving(engine) as served:
        spec = {
            "server": ModelSpec(backend="server", path="tiny", url=served.url),
            "server with tokenizer": ModelSpec(
                backend="server", path="tiny", url=served.url, tokenizer=str(tiny_model)
            ),
            "vllm": ModelSpec(backend="vllm", path=str(tiny_model)),
            "lm_eval": ModelSpec(
                backend="lm_eval",
                path=str(tiny_model),
                dtype="float32",
                device="cpu",
                options={"lm": "hf", "batch_size": 4},
            ),
        }[who]
        (run,) = evaluate("tiny", spec, [exam(name)], tmp_path)
    check(run, truth[name])
    assert any(record.text for record in truth["sets and cloze"])
    assert sum("#" in record.id for record in truth["blanks"]) > len(BLANKS)


def test_a_server_that_dies_within_a_chain_is_gone_on_with(
    engine: Engine,
    tmp_path: Path,
    truth: dict[str, list[Record]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "BACKOFF", 0.01)
    with serving(engine) as served:
        options = {"retries": 0, "concurrency": 1, "top_logprobs": 5000}
        spec = ModelSpec(backend="server", path="tiny", url=served.url, options=options)

        def behave(_n: int, _path: str, body: dict[str, Any]) -> Any:
            # the third sub-question is asked after two answers, and echoed with its own
            answers = r"(?: [A-G]){3}$" if body.get("echo") else r"(?: [A-G]){2}$"
            third = re.search("【答案】" + answers, str(body["prompt"]))
            return (503, {}, {}) if third else None

        served.behave = behave
        with pytest.raises(ModelError):
            evaluate("tiny", spec, [exam("blanks")], tmp_path)
        (path,) = tmp_path.rglob("records.jsonl")
        kept = {record.id for record in read_records(path)}
        assert "sample-gaokao/test/Sample_English_Cloze_Test/0#1" in kept
        assert "sample-gaokao/test/Sample_English_Cloze_Test/0#2" not in kept
        served.behave = lambda _n, _path, _body: None
        (run,) = evaluate("tiny", spec, [exam("blanks")], tmp_path)
    check(run, truth["blanks"])
