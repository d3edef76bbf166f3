"""A model scored while it trains: the same numbers as its checkpoint, and not a trace left."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ceval_suite
from ceval_suite import (
    ConfigError,
    DataError,
    EvaluationCallback,
    ModelError,
    loggers,
    score_live,
)
from ceval_suite.backends import forward
from ceval_suite.errors import RunError
from ceval_suite.records import read_json, read_records
from tests import training_jobs as jobs

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # the Trainer's own warnings about pinned memory and the like
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def one(folder: Path, model: str, task: str) -> dict[str, Any]:
    """The records of a model's run, by id."""
    (run,) = (folder / model).glob(f"{task}-*")
    return {record.id: record for record in read_records(run / "records.jsonl")}


def assert_same_records(first: Path, one_: str, second: Path, other: str) -> None:
    for task in jobs.TASKS:
        a, b = one(first, one_, task), one(second, other, task)
        assert a
        assert a.keys() == b.keys()
        for id, record in a.items():
            assert record.prediction == b[id].prediction, id
            assert record.prompt_sha256 == b[id].prompt_sha256
            values = [record.logprobs[label] for label in record.logprobs]
            assert values == pytest.approx([b[id].logprobs[k] for k in record.logprobs], abs=2e-5)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sample_texts: list[str]
) -> tuple[Path, Any, Any]:
    """One training with the callback and the same without: folder and both Trainers."""
    folder = tmp_path_factory.mktemp("training")
    callback = EvaluationCallback(
        jobs.TASKS, every=2, out=folder / "live", name="tiny", say=print, **jobs.CHOSEN
    )
    with_ = jobs.trainer(folder / "with", tiny_tokenizer, sample_texts, callbacks=[callback])
    with_.train()
    without = jobs.trainer(folder / "without", tiny_tokenizer, sample_texts)
    without.train()
    return folder, with_, without


def test_losses_and_weights_are_the_same_bit_for_bit_with_the_callback(
    trained: tuple[Path, Any, Any],
) -> None:
    _, with_, without = trained
    assert len(jobs.losses(with_)) == 6
    assert jobs.losses(with_) == jobs.losses(without)
    norms = [[e["grad_norm"] for e in t.state.log_history if "grad_norm" in e] for t in trained[1:]]
    assert norms[0] == norms[1]
    for (name, a), b in zip(
        with_.model.named_parameters(), without.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert with_.model.training


def test_its_records_equal_those_of_a_run_on_the_saved_checkpoint(
    trained: tuple[Path, Any, Any],
) -> None:
    folder, with_, _ = trained
    for step in (2, 4, 6):
        checkpoint = folder / "with" / f"checkpoint-{step}"
        out = folder / f"separate-{step}"
        ceval_suite.evaluate(str(checkpoint), jobs.TASKS, out=out, dtype="float32", **jobs.CHOSEN)
        live = f"tiny-step-{step}"
        assert_same_records(folder / "live", live, out, f"checkpoint-{step}")
        (run,) = (folder / "live" / live).glob("sample-mmlu-*")
        (other,) = (out / f"checkpoint-{step}").glob("sample-mmlu-*")
        found, separate = (read_json(p / "summary.json") for p in (run, other))
        assert found["metrics"] == separate["metrics"]
        assert (found["series"], found["step"]) == ("tiny", step)
        assert read_json(run / "run.json")["engine"]["path"]["attention"] == "packed"
        logged = next(
            e
            for e in with_.state.log_history
            if e["step"] == step and "ceval/sample-mmlu/acc/micro" in e
        )
        micro = separate["metrics"]["acc/micro"]
        assert logged["ceval/sample-mmlu/acc/micro"] == micro["value"]
        assert logged["ceval/sample-mmlu/acc/micro_low"] == micro["low"]
        assert logged["ceval/sample-mmlu/acc/micro_high"] == micro["high"]


def picture(model: Any) -> list[tuple[Any, ...]]:
    """Everything a module holds, by identity or value, and its gradients."""
    out: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                out.append((name, key, [(k, id(v)) for k, v in value.items()]))
            elif isinstance(value, bool | int | float | str | None):
                out.append((name, key, value))
            else:
                out.append((name, key, id(value)))
        if hasattr(module, "config"):
            out.append((name, "config", copy.deepcopy(module.config.to_dict())))
            out.append((name, "attention", module.config._attn_implementation))
    for name, weight in model.named_parameters():
        grad = None if weight.grad is None else (id(weight.grad), weight.grad.clone())
        out.append((name, weight.requires_grad, id(weight), weight._version, grad))
    return out


def same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            if isinstance(x, tuple):
                assert x[0] == y[0], a[0]
                assert torch.equal(x[1], y[1]), a[0]
            else:
                assert x == y, (a[:2], x, y)


def llama(tokenizer: Any) -> Any:
    return jobs.model(tokenizer)


def tied(tokenizer: Any) -> Any:
    return jobs.model(tokenizer, tie_word_embeddings=True)


def stretched(tokenizer: Any) -> Any:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return jobs.model(tokenizer, rope_parameters=rope, max_position_embeddings=512)


def checkpointed(tokenizer: Any) -> Any:
    model = jobs.model(tokenizer)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model


def eager(tokenizer: Any) -> Any:
    model = jobs.model(tokenizer)
    model.set_attn_implementation("eager")
    model.config.use_cache = True
    return model


def gpt2(tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=4096)
    return GPT2LMHeadModel(config)


def lora(tokenizer: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(jobs.model(tokenizer), config)


@pytest.mark.parametrize("make", [llama, tied, stretched, checkpointed, eager, gpt2, lora])
def test_everything_of_a_model_is_afterwards_as_it_was(
    make: Callable[[Any], Any], tiny_tokenizer: Any
) -> None:
    model = make(tiny_tokenizer)
    model.train()
    ids = torch.arange(40)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    # a mixed state: one part in evaluation mode, one frozen
    parts = list(model.modules())
    parts[-1].training = False
    next(model.parameters()).requires_grad_(False)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = picture(model)
    score_live(model, tiny_tokenizer, "sample-mmlu", limit=1, shots=0)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    same(before, picture(model))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    assert torch.is_grad_enabled()
    # and trains on: what the passes kept is fit for gradients
    model(input_ids=ids, labels=ids).loss.backward()


def test_all_is_restored_when_scoring_fails(tiny_tokenizer: Any) -> None:
    model = jobs.model(tiny_tokenizer)
    model.train()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    before = picture(model)
    with pytest.raises(ModelError, match="not finite"):
        score_live(model, tiny_tokenizer, "sample-mmlu", limit=1, shots=0)
    same(before, picture(model))


def test_nothing_is_held_afterwards(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    real = forward.Forward.__init__

    def noted(self: Any, *args: Any) -> None:
        real(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(forward.Forward, "__init__", noted)
    model = jobs.model(tiny_tokenizer)
    score_live(model, tiny_tokenizer, "sample-mmlu", limit=1, shots=0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None
    assert gone() is None


def test_mixed_precision_scores_in_the_dtype_of_the_weights(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    callback = EvaluationCallback(
        jobs.TASKS, on="save", out=tmp_path / "live", name="tiny", **jobs.CHOSEN
    )
    options = {"bf16": True, "max_steps": 2, "gradient_checkpointing": True}
    job = jobs.trainer(
        tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback], **options
    )
    job.train()
    plain = jobs.trainer(tmp_path / "plain", tiny_tokenizer, sample_texts, **options)
    plain.train()
    assert jobs.losses(job) == jobs.losses(plain)
    ceval_suite.evaluate(
        str(tmp_path / "job" / "checkpoint-2"),
        jobs.TASKS,
        out=tmp_path / "runs",
        dtype="float32",
        **jobs.CHOSEN,
    )
    assert_same_records(tmp_path / "live", "tiny-step-2", tmp_path / "runs", "checkpoint-2")


def test_the_trainer_can_choose_its_best_checkpoint_by_a_benchmark(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    callback = EvaluationCallback("sample-mmlu", limit=2, shots=0)
    job = jobs.trainer(
        tmp_path,
        tiny_tokenizer,
        sample_texts,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="ceval/sample-mmlu/acc/micro",
        load_best_model_at_end=True,
    )
    callback.attach(job)
    job.train()
    values = [
        e["ceval/sample-mmlu/acc/micro"]
        for e in job.state.log_history
        if "ceval/sample-mmlu/acc/micro" in e
    ]
    assert len(values) == 3
    assert job.state.best_metric == max(values)


def test_a_rule_ends_the_training_and_a_resumed_one_remembers(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    said: list[str] = []

    def callback() -> EvaluationCallback:
        return EvaluationCallback(
            "sample-mmlu",
            every=2,
            limit=2,
            out=tmp_path / "live",
            name="tiny",
            stop_when="sample-mmlu <= 100 for 2",
            say=said.append,
        )

    job = jobs.trainer(tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback()])
    job.train()
    assert job.state.global_step == 4
    assert [line for line in said if "training stops" in line] == [
        line for line in said if "at step 4" in line
    ]
    # the checkpoint of step 2 and its run are enough: one more step makes two in a row
    again = jobs.trainer(tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback()])
    again.train(resume_from_checkpoint=str(tmp_path / "job" / "checkpoint-2"))
    assert again.state.global_step == 4


def test_another_state_at_the_same_step_never_mixes_with_the_first(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    options: dict[str, Any] = {"limit": 1, "shots": 0, "step": 5, "out": tmp_path, "name": "tiny"}
    first = score_live(jobs.model(tiny_tokenizer), tiny_tokenizer, "sample-mmlu", **options)
    again = score_live(jobs.model(tiny_tokenizer), tiny_tokenizer, "sample-mmlu", **options)
    other = score_live(jobs.model(tiny_tokenizer, seed=1), tiny_tokenizer, "sample-mmlu", **options)
    assert first.folders == again.folders
    assert other.folders != first.folders
    assert other.summaries[0]["step"] == 5


def test_what_cannot_be_scored_is_one_sentence(tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = jobs.model(tiny_tokenizer)
    with pytest.raises(ModelError, match="no transformers model"):
        score_live(torch.nn.Linear(2, 2), tiny_tokenizer, "sample-mmlu")
    with pytest.raises(ModelError, match="tokenizer"):
        score_live(model, None, "sample-mmlu")
    with pytest.raises(ConfigError, match="subjets"):
        score_live(model, tiny_tokenizer, "sample-mmlu", subjets=["law"])
    with pytest.raises(ConfigError, match="sample-mlu"):
        score_live(model, tiny_tokenizer, "sample-mlu")
    small = copy.deepcopy(tiny_tokenizer)
    small.add_tokens(["<one more>"])
    with pytest.raises(ModelError, match="2000 rows"):
        score_live(model, small, "sample-mmlu")
    next(model.parameters()).ds_status = "NOT_AVAILABLE"  # as ZeRO-3 marks its weights
    with pytest.raises(ModelError, match=r"ZeRO-3.*watch"):
        score_live(model, tiny_tokenizer, "sample-mmlu")


def test_wrong_choices_are_said_before_the_first_step(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    with pytest.raises(ConfigError, match="every=5"):
        EvaluationCallback("mmlu", every=5, on="save")
    with pytest.raises(ConfigError, match="needs every"):
        EvaluationCallback("mmlu", on="step")
    with pytest.raises(ConfigError, match="cannot be read"):
        EvaluationCallback("mmlu", stop_when="mmlu drops")
    with pytest.raises(ConfigError, match="out="):
        EvaluationCallback("mmlu", stop_when="mmlu < best with 95%")
    for callback, error in (
        (EvaluationCallback("sample-mlu", every=1), ConfigError),
        (EvaluationCallback("mmlu", every=1, data=tmp_path), DataError),
    ):
        job = jobs.trainer(tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback])
        with pytest.raises(error):
            job.train()
        assert job.state.global_step == 0


def test_a_scoring_that_fails_does_not_end_the_training_unless_asked_to(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    said: list[str] = []
    options: dict[str, Any] = {"every": 2, "limit": 1, "out": blocked / "runs"}
    callback = EvaluationCallback("sample-mmlu", say=said.append, **options)
    job = jobs.trainer(tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback])
    job.train()
    assert job.state.global_step == 6
    assert [line.split(":")[0] for line in said] == ["step 2", "step 4", "step 6"]
    strict = EvaluationCallback("sample-mmlu", on_error="raise", **options)
    job = jobs.trainer(tmp_path / "job2", tiny_tokenizer, sample_texts, callbacks=[strict])
    with pytest.raises(RunError, match="cannot be made"):
        job.train()
    assert job.model.training


def test_an_evaluation_without_a_training_has_the_name_of_the_folder_and_one_voice(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str]
) -> None:
    callback = EvaluationCallback("sample-mmlu", limit=1, shots=0, out=tmp_path / "live")
    job = jobs.trainer(tmp_path / "sft", tiny_tokenizer, sample_texts, callbacks=[callback])
    found = job.evaluate()
    assert "eval_ceval/sample-mmlu/acc/micro" in found
    assert [path.name for path in (tmp_path / "live").iterdir()] == ["sft-step-0"]
    # a second evaluation is scored again: the weights may be other ones at the same step
    with torch.no_grad():
        job.model.lm_head.weight.mul_(-1)
    job.evaluate()
    names = sorted(path.name for path in (tmp_path / "live").iterdir())
    assert len(names) == 2
    assert names[1].startswith("sft-step-0-")
    # processes that are not the first say nothing
    said: list[str] = []
    quiet = EvaluationCallback("sample-mmlu", limit=1, say=said.append)
    state: Any = SimpleNamespace(is_world_process_zero=False, global_step=0)
    args: Any = SimpleNamespace(output_dir=str(tmp_path / "sft"))
    quiet.on_evaluate(args, state, None, model=job.model, metrics={})  # without a tokenizer
    assert said == []
    assert quiet.scorer.name == "sft"


def test_several_data_sets_are_one_scoring(
    tmp_path: Path, tiny_tokenizer: Any, sample_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = EvaluationCallback("sample-mmlu", limit=1, shots=0, out=tmp_path / "live")
    scored: list[int] = []
    real = callback.scorer.score

    def score(model: Any, tokenizer: Any, step: int | None = None) -> Any:
        scored.append(step or 0)
        return real(model, tokenizer, step)

    monkeypatch.setattr(callback.scorer, "score", score)
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    job = jobs.trainer(
        tmp_path / "job", tiny_tokenizer, sample_texts, callbacks=[callback], **options
    )
    job.eval_dataset = {"a": job.eval_dataset, "b": job.eval_dataset}
    job.train()
    assert scored == [2, 4]
    key = "ceval/sample-mmlu/acc/micro"
    assert [entry["step"] for entry in job.state.log_history if key in entry] == [2, 4]
    found = job.evaluate()
    assert scored == [2, 4, 4]
    assert {"eval_a_loss", "eval_b_loss", f"eval_{key}"} <= found.keys()


def is_ours(values: dict[str, Any]) -> bool:
    return any(key.startswith("ceval/") for key in values)


@pytest.mark.parametrize("where", ["opening", "logging", "closing", "the Trainer"])
def test_a_logger_that_fails_does_not_end_the_training_unless_asked_to(
    where: str,
    tmp_path: Path,
    tiny_tokenizer: Any,
    sample_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[int] = []

    def fail(*_: Any) -> None:
        raise ConnectionError("https://me:word@host is down")

    def made(_client: Any, _folder: str, _project: str) -> Any:
        if where == "opening":
            fail()
        return (fail if where == "logging" else lambda *_: None), (
            fail if where == "closing" else lambda: None
        )

    def good(_client: Any, _folder: str, _project: str) -> Any:
        return (lambda _values, step: logged.append(step)), lambda: None

    # any package stands for a client; the one that fails comes before the one that does not
    monkeypatch.setitem(loggers.CLIENTS, "mlflow", (("json",), made))
    monkeypatch.setitem(loggers.CLIENTS, "trackio", (("json",), good))

    def run(**options: Any) -> tuple[Any, list[str]]:
        said: list[str] = []
        callback = EvaluationCallback(
            "sample-mmlu", every=1, limit=1, shots=0, say=said.append, **options
        )
        given: dict[str, Any] = {"callbacks": [] if where == "the Trainer" else [callback]}
        given |= {"max_steps": 2, "save_strategy": "no"}
        job = jobs.trainer(tmp_path / "job", tiny_tokenizer, sample_texts, **given)
        job.args.report_to = ["mlflow", "trackio"]
        if where == "the Trainer":
            callback.attach(job)
            real = job.log
            monkeypatch.setattr(
                job, "log", lambda values, *more: fail() if is_ours(values) else real(values, *more)
            )
        job.train()
        return job, said

    job, said = run()
    assert job.state.global_step == 2
    assert said
    assert all(line.startswith("not logged to ") for line in said)
    assert not any("word" in line for line in said)
    assert logged == ([] if where == "the Trainer" else [1, 2])
    with pytest.raises(ConnectionError):
        run(on_error="raise")
