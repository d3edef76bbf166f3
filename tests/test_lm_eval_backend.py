"""What a class of lm-evaluation-harness scores is recorded as it is, and nothing is cut unseen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import identify, open_backend
from ceval_suite.backends.hf import HFBackend
from ceval_suite.errors import ConfigError, ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.run import evaluate
from ceval_suite.schema import Request

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def spec(path: Path | str, **more: Any) -> ModelSpec:
    options = {"lm": "hf", "batch_size": 4, **more.pop("options", {})}
    keys = {"dtype": "float32", "device": "cpu", **more}
    return ModelSpec(backend="lm_eval", path=str(path), options=options, **keys)


def test_its_hf_class_equals_our_hf_within_1e_4(tiny_model: Path, tmp_path: Path) -> None:
    exam = prepare("sample-ceval", Selection(None, 2, None, None, 3, None, False))
    (theirs,) = evaluate("theirs", spec(tiny_model), [exam], tmp_path)
    ours = ModelSpec(path=str(tiny_model), dtype="float32")
    (mine,) = evaluate("ours", ours, [exam], tmp_path)
    found = {r.id: r for r in read_records(theirs / "records.jsonl")}
    expected = {r.id: r for r in read_records(mine / "records.jsonl")}
    assert found.keys() == expected.keys()
    assert len(found) == 9
    for name, record in found.items():
        assert record.logprobs == pytest.approx(expected[name].logprobs, abs=1e-4)
        assert record.prediction == expected[name].prediction
        assert record.prompt_tokens == expected[name].prompt_tokens
        assert record.prompt_sha256 == expected[name].prompt_sha256
    run = read_json(theirs / "run.json")
    assert run["engine"]["lm"] == "hf"
    assert run["engine"]["dtype"] == "float32"
    assert (
        run["identity"]["weights_sha256"]
        == read_json(mine / "run.json")["identity"]["weights_sha256"]
    )
    assert run["letters"][0]["one_token"] is True


def test_whole_options_are_scored_too(tiny_model: Path) -> None:
    request = Request(id="x", context="The answer is", continuations=(" water", " 中国的首都"))
    (reply,) = open_backend(spec(tiny_model)).ask([request])
    (expected,) = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32")).ask([request])
    assert reply.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_a_row_that_is_too_long_is_refused_not_cut_from_the_left(tiny_model: Path) -> None:
    backend = open_backend(spec(tiny_model, max_length=30))
    assert backend.max_length == 30
    with pytest.raises(PromptError, match="where the model reads 30"):
        list(backend.ask([Request(id="x", context="long " * 40, continuations=("A", "B"))]))


def test_another_class_or_argument_is_another_model(tiny_model: Path) -> None:
    one = identify(spec(tiny_model))
    assert one == identify(spec(tiny_model))
    assert one != identify(spec(tiny_model, options={"lm": "hf-auto"}))
    assert one != identify(spec(tiny_model, options={"arguments": {"add_bos_token": True}}))
    assert one != identify(spec(tiny_model, dtype="bfloat16"))


def test_a_class_without_tokenizer_is_scored_and_said_not_to_be_fitted() -> None:
    said: list[str] = []
    dummy = ModelSpec(backend="lm_eval", path="anything", options={"lm": "dummy"})
    backend = open_backend(dummy, said.append)
    assert any("not fitted" in line for line in said)
    (reply,) = backend.ask([Request(id="x", context="1+1=", continuations=("A", "B"))])
    assert len(reply.logprobs) == 2
    (found,) = backend.audit([Request(id="x", context="1+1=", continuations=("A", "B"))])
    assert found["continuations"]["A"] == {"text": "A"}
    with pytest.raises(ModelError, match="no tokenizer to count with"):
        backend.count_tokens(["a"])


def test_chat_without_a_template_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="--chat needs a chat template"):
        open_backend(spec(tiny_model)).wrap("1+1=?")


def test_an_unknown_class_names_the_nearest(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown lm 'hff': did you mean 'hf'\?"):
        open_backend(spec(tiny_model, options={"lm": "hff"}))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"options": {"arguments": {"pretrained": "/nowhere/at/all"}}}, "cannot load it"),
        ({"options": {"lm": "dummy"}}, "takes no dtype"),
    ],
)
def test_what_a_class_cannot_do_is_a_sentence(
    more: dict[str, Any], words: str, tiny_model: Path
) -> None:
    with pytest.raises(ModelError, match=words) as found:
        open_backend(spec(tiny_model, **more))
    assert str(found.value).endswith(".")
    assert "\n" not in str(found.value)


def test_keys_that_lm_eval_cannot_honour_are_refused() -> None:
    with pytest.raises(ValueError, match="adapters cannot be applied by backend lm_eval"):
        spec("m", adapters=[{"path": "a"}])
    assert issubclass(ConfigError, Exception)


@pytest.mark.real
@pytest.mark.smollm2
def test_its_hf_class_equals_ours_on_real_items_of_a_real_model(
    smollm2: Path, real_data: Path
) -> None:
    exam = prepare("cmmlu", Selection(None, 0, None, ["agronomy"], 4, real_data, False))
    asked = [exam.renderer(item.subject).render(item).request() for item in exam.scored()]
    theirs = {r.id: r for r in open_backend(spec(smollm2)).ask(asked)}
    ours = {r.id: r for r in open_backend(ModelSpec(path=str(smollm2), dtype="float32")).ask(asked)}
    for name, reply in ours.items():
        assert theirs[name].logprobs == pytest.approx(reply.logprobs, abs=1e-4)


@pytest.mark.real
@pytest.mark.smollm2
@pytest.mark.skipif(
    os.environ.get("CEVAL_SUITE_FULL") != "1", reason="takes minutes; CEVAL_SUITE_FULL=1 runs it"
)
def test_its_hf_class_equals_ours_on_five_shot_items_of_three_benchmarks(
    smollm2: Path, real_data: Path
) -> None:
    asked: list[Request] = []
    for task, subjects in {
        "mmlu": ["high_school_biology", "moral_disputes"],
        "cmmlu": ["agronomy", "chinese_history"],
        "ceval": ["law", "computer_network"],
    }.items():
        exam = prepare(task, Selection(None, 5, None, subjects, 10, real_data, False))
        asked += [exam.renderer(item.subject).render(item).request() for item in exam.scored()]
    assert len(asked) == 60
    ours = {r.id: r for r in open_backend(ModelSpec(path=str(smollm2), dtype="float32")).ask(asked)}
    worst: dict[str, float] = {}
    for theirs in open_backend(spec(smollm2)).ask(asked):
        mine = ours[theirs.id]
        apart = [abs(a - b) for a, b in zip(mine.logprobs, theirs.logprobs, strict=True)]
        task = theirs.id.split("/")[0]
        worst[task] = max(worst.get(task, 0.0), *apart)
        assert mine.num_tokens == theirs.num_tokens
    print(f"largest differences of a log-probability: {worst}")
    assert max(worst.values()) <= 1e-4
