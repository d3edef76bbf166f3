"""`lm_eval --model ceval_suite` gives the numbers and texts of lm-eval's own `hf`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.errors import ModelError, PromptError

TOLERANCE = 1e-4
TEXTS = [
    "The capital of France is",
    "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n题目：",
    "Question: what is two and two?\nA. 3\nB. 4\nAnswer:",
    "ends in blanks   ",
]


@pytest.fixture(scope="module", autouse=True)
def _threads(one_thread: None) -> None:
    """Tiny models."""


def both(model: Path, **arguments: Any) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from ceval_suite.backends.harness import HarnessLM

    given = {"pretrained": str(model), "dtype": "float32", "device": "cpu", **arguments}
    return HFLM(**given, batch_size=1), HarnessLM(**given)


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> tuple[Any, Any]:
    return both(tiny_model, max_length=160)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, k) for k, one in enumerate(arguments)]


def test_loglikelihoods_are_those_of_hf(pair: tuple[Any, Any]) -> None:
    long = "一二三四五六七八九十 one two three " * 40  # cut on the left by both
    asked = [
        (text, more) for text in (*TEXTS, long, "") for more in (" A", " B", " 巴黎", "\n\nC D")
    ]
    theirs, ours = (lm.loglikelihood(instances("loglikelihood", asked)) for lm in pair)
    for (a, first), (b, second) in zip(theirs, ours, strict=True):
        assert a == pytest.approx(b, abs=TOLERANCE)
        assert first == second


def test_what_greedy_writing_gives_is_called_greedy(
    pair: tuple[Any, Any], tiny_tokenizer: Any
) -> None:
    every = [tiny_tokenizer.decode(k) for k in range(3, len(tiny_tokenizer))]
    words = [word for word in every if word.strip() and "\ufffd" not in word]
    pairs = [(text, word) for text in TEXTS[:3] for word in words]
    # of what merges wholly with the context, hf says (0.0, True)
    pairs = [p for p in pairs if pair[0]._encode_pair(*p)[1]]
    asked = instances("loglikelihood", pairs)
    theirs, ours = ([greedy for _, greedy in lm.loglikelihood(asked, True)] for lm in pair)
    assert any(theirs)
    assert ours == theirs


def test_rolling_loglikelihoods_are_those_of_hf(pair: tuple[Any, Any]) -> None:
    asked = [(text,) for text in (*TEXTS, "字母 and words " * 120)]
    theirs, ours = (lm.loglikelihood_rolling(instances("r", asked)) for lm in pair)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_texts_are_those_of_hf(pair: tuple[Any, Any]) -> None:
    settings = {"until": ["\n\n", "，"], "max_gen_toks": 24, "do_sample": False}
    asked = [(text, settings) for text in (*TEXTS, "one two three " * 70)]
    theirs, ours = (lm.generate_until(instances("generate_until", asked)) for lm in pair)
    assert ours == theirs
    assert any(ours)


def test_a_merged_border_is_scored_where_hf_calls_it_certain(
    pair: tuple[Any, Any], tiny_tokenizer: Any
) -> None:
    theirs, ours = pair
    words = [w for w in tiny_tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 3]
    cut = [("x " + word[:-1], word[-1]) for word in sorted(words)]
    merged = next(p for p in cut if not theirs._encode_pair(*p)[1])
    asked = instances("loglikelihood", [merged, (merged[0], "!")])
    assert theirs.loglikelihood(asked, True)[0] == (0.0, True)
    assert all(logprob < 0 for logprob, _ in ours.loglikelihood(asked))


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"temperature": 0.7}, {"repetition_penalty": 1.2}]
)
def test_what_is_not_greedy_is_refused(pair: tuple[Any, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="gen_kwargs"):
        pair[1].generate_until(instances("g", [("x", settings)]))


def test_a_continuation_of_nothing_is_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(PromptError, match="adds no token"):
        pair[1].loglikelihood(instances("l", [("x y", "")]))


def test_unknown_arguments_are_named(tiny_model: Path) -> None:
    from ceval_suite.backends.harness import HarnessLM

    with pytest.raises(ModelError, match="takes no 'load_in_4bit'; it takes pretrained"):
        HarnessLM(pretrained=str(tiny_model), load_in_4bit=True)


def test_the_command_passes_on_to_lm_eval(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"q": "One and one?", "gold": 1}\n{"q": "Two?", "gold": 0}\n'
    )
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny_exam\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: ['A', 'B']\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    found = subprocess.run(
        [
            *(sys.executable, "-m", "ceval_suite", "lm-eval", "--model", "ceval_suite"),
            *("--model_args", f"pretrained={tiny_model},dtype=float32", "--tasks", "tiny_exam"),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
            "--log_samples",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    assert found.returncode == 0, found.stderr
    assert "|tiny_exam|" in found.stdout.replace(" ", "")
    assert len(list((tmp_path / "out").rglob("results_*.json"))) == 1
    assert len(list((tmp_path / "out").rglob("samples_tiny_exam_*.jsonl"))) == 1


def test_the_class_is_an_entry_point() -> None:
    import tomllib

    content = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    points = tomllib.loads(content)["project"]["entry-points"]["lm_eval.models"]
    module, name = points["ceval_suite"].split(":")
    from importlib import import_module

    from lm_eval.api.model import LM

    assert issubclass(getattr(import_module(module), name), LM)


@pytest.mark.smollm2
def test_smollm2_scores_and_writes_as_in_hf(smollm2: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from ceval_suite.backends.harness import HarnessLM

    ours = HarnessLM(pretrained=str(smollm2), dtype="float32", device="cpu")
    scored = [(text, more) for text in TEXTS for more in (" A", " B", " Paris, of course", "甲")]
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = {
        "loglikelihood": instances("loglikelihood", scored),
        "loglikelihood_rolling": instances("loglikelihood_rolling", [(t,) for t in TEXTS]),
        "generate_until": instances("generate_until", [(t, settings) for t in TEXTS[:3]]),
    }
    mine = {verb: getattr(ours, verb)(some) for verb, some in asked.items()}
    model = ours.engine.model
    ours.engine.forward.use_plain()
    head = model.get_output_embeddings()
    model.set_output_embeddings(head.inner)  # their model is the plain one
    theirs = HFLM(pretrained=model, tokenizer=ours.tokenizer, batch_size=1)
    found = {verb: getattr(theirs, verb)(some, True) for verb, some in asked.items()}
    pairs = zip(found["loglikelihood"], mine["loglikelihood"], strict=True)
    for (a, first), (b, second) in pairs:
        assert a == pytest.approx(b, abs=TOLERANCE, rel=1e-5)  # a sum over several tokens
        assert first == second
    rolled = found["loglikelihood_rolling"]
    assert mine["loglikelihood_rolling"] == pytest.approx(rolled, abs=1e-3)
    assert mine["generate_until"] == found["generate_until"]
    assert mine["generate_until"][0] == " Paris."
