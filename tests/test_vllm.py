"""vLLM is asked for one generated token a prompt; the plan is tested without vLLM."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite.backends import open_backend
from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.stepwise import Prompt, gather, plan, portions
from ceval_suite.backends.tokens import Encoded, Encoder
from ceval_suite.backends.vllm import lora_rank
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import Adapter, ModelSpec
from ceval_suite.schema import Reply, Request

HAS_VLLM = importlib.util.find_spec("vllm") is not None

tokens = st.integers(0, 5)
encodings = st.builds(
    lambda head, tails: Encoded(np.asarray(head, np.int32), tuple(map(tuple, tails))),
    st.lists(tokens, min_size=1, max_size=5),
    st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=4),
)


def value(ids: tuple[int, ...], token: int) -> float:
    """A made-up log-probability of a token after others: the same for the same question only."""
    return -1.0 - (hash((ids, token)) % 997) / 100


def requests(count: int) -> list[Request]:
    return [Request(id=str(k), context="c", continuations=("A",)) for k in range(count)]


@given(st.lists(encodings, min_size=1, max_size=6))
def test_every_continuation_gets_the_sum_of_its_own_tokens(encoded: list[Encoded]) -> None:
    prompts = plan(encoded)
    answers = [{token: value(p.ids, token) for token in p.wanted} for p in prompts]
    replies = gather(requests(len(encoded)), encoded, prompts, answers)
    for one, reply in zip(encoded, replies, strict=True):
        head = tuple(map(int, one.head))
        for tail, logprob in zip(one.tails, reply.logprobs, strict=True):
            total = sum(value(head + tail[:k], token) for k, token in enumerate(tail))
            assert logprob == pytest.approx(total)
        assert reply.num_tokens == len(head)


@given(st.lists(encodings, min_size=1, max_size=6))
def test_no_prompt_is_asked_twice_and_neighbours_share_heads(encoded: list[Encoded]) -> None:
    ids = [prompt.ids for prompt in plan(encoded)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


@given(st.lists(encodings, min_size=1, max_size=6), st.integers(1, 4))
def test_no_request_names_more_tokens_than_vllm_takes(encoded: list[Encoded], size: int) -> None:
    prompts = plan(encoded)
    asked = portions(prompts, size)
    assert all(0 < len(tokens) <= size for _, tokens in asked)
    for index, prompt in enumerate(prompts):
        named = [token for k, tokens in asked if k == index for token in tokens]
        assert named == list(prompt.wanted)


def test_four_letters_are_one_prompt_with_four_wanted_tokens(tiny_tokenizer: Any) -> None:
    asked = [Request(id="x", context="1+1=?\n答案：", continuations=("A", "B", "C", "D"))]
    encoded = Encoder(tiny_tokenizer).encode(asked)
    (prompt,) = plan(encoded)
    assert prompt.ids == tuple(tiny_tokenizer("1+1=?\n答案：")["input_ids"])
    assert list(prompt.wanted) == [tiny_tokenizer.convert_tokens_to_ids(x) for x in "ABCD"]


def test_planned_prompts_answered_by_the_model_give_what_hf_gives(tiny_model: Path) -> None:
    backend = HFBackend(ModelSpec(path=str(tiny_model), dtype="float32"))
    asked = [
        Request(id="a", context="1+1=?\n答案：", continuations=("A", "B", "C", "D")),
        Request(id="b", context="The answer is", continuations=(" water and", " 中国的首都")),
    ]
    encoded = backend.encoder.encode(asked)
    prompts = plan(encoded)
    answers: list[dict[int, float]] = []
    for prompt in prompts:
        with torch.inference_mode():
            last = backend.model(torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
        answers.append({token: float(last[token]) for token in prompt.wanted})
    expected = {reply.id: reply for reply in backend.ask(asked)}
    for reply in gather(asked, encoded, prompts, answers):
        assert reply.logprobs == pytest.approx(expected[reply.id].logprobs, abs=1e-4)
        assert reply.choice_mass == pytest.approx(expected[reply.id].choice_mass, rel=1e-3)


@pytest.mark.parametrize("bad", [{}, {7: math.nan}, {7: -math.inf}, {7: 0.5}])
def test_a_token_without_a_log_probability_is_an_error(bad: dict[int, float]) -> None:
    one = Encoded(np.asarray([1], np.int32), ((7,),))
    with pytest.raises(ModelError, match="log-probability of token 7"):
        gather(requests(1), [one], [Prompt((1,), {7: ((0, 0),)})], [bad])


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"peft_type": "LORA", "r": 8}, 8),
        ({"peft_type": "LORA", "r": 9}, 16),
        ({"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 100}}, 128),
    ],
)
def test_the_largest_rank_of_an_adapter_is_made_room_for(
    config: dict[str, Any], rank: int, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert lora_rank(tmp_path) == rank


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"peft_type": "LORA", "r": 1024}', "takes 512 at most"),
        ('{"peft_type": "PREFIX_TUNING"}', "LoRA adapters only"),
        ("[]", "no readable adapter_config"),
        ("{", "no readable adapter_config"),
        ('{"peft_type": "LORA"}', "no readable adapter_config"),
    ],
)
def test_an_adapter_that_vllm_cannot_take_is_a_sentence(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        lora_rank(tmp_path)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_one_sentence_names_the_pip_line(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'ceval-suite\[vllm\]'") as found:
        open_backend(ModelSpec(backend="vllm", path=str(tiny_model)))
    assert str(found.value).count(". ") == 0
    assert "\n" not in str(found.value)


def test_keys_that_vllm_cannot_honour_are_refused() -> None:
    with pytest.raises(ValueError, match="quant cannot be applied by backend vllm"):
        ModelSpec(backend="vllm", path="m", quant={"method": "torchao"})


needs_vllm = pytest.mark.skipif(
    not HAS_VLLM or not torch.cuda.is_available(), reason="vLLM is not installed, or has no GPU"
)

ASKED = [
    Request(id="a", context="1+1=?\n答案：", continuations=("A", "B", "C", "D")),
    Request(id="b", context="The answer is", continuations=(" water and", " 中国的首都")),
]
CLOSE = 0.05
"""What float16 and other kernels may move a log-probability of a model this small."""


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., Path]) -> Path:
    """Heads as wide as vLLM's kernels take them, and weights of a size that float16 keeps."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    return tiny_llama("vllm-llama", seed=4, initializer_range=0.05, **shape)


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes answers by far more than rounding does."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(6)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(base, config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("lora")
    tuned.save_pretrained(folder)
    return folder


def far(one: dict[str, Reply], other: dict[str, Reply]) -> float:
    pairs = [(a, b) for k in one for a, b in zip(one[k].logprobs, other[k].logprobs, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def by_hf(path: Path, *adapters: Path) -> dict[str, Reply]:
    spec = ModelSpec(
        path=str(path),
        dtype="float32",
        device="cpu",
        adapters=[Adapter(path=str(adapter)) for adapter in adapters],
    )
    return {reply.id: reply for reply in HFBackend(spec).ask(ASKED)}


def test_the_adapter_of_the_gpu_test_changes_what_hf_answers(model: Path, lora: Path) -> None:
    assert far(by_hf(model), by_hf(model, lora)) > 10 * CLOSE


@needs_vllm
@pytest.mark.parametrize("with_lora", [False, True], ids=["base", "LoRA"])
@pytest.mark.parametrize("max_logprobs", [64, 1], ids=["at once", "one by one"])
def test_vllm_gives_the_log_probabilities_of_hf(
    model: Path, lora: Path, with_lora: bool, max_logprobs: int
) -> None:
    adapters = [lora] if with_lora else []
    spec = ModelSpec(
        backend="vllm",
        path=str(model),
        dtype="float16",
        max_length=512,
        adapters=[Adapter(path=str(adapter)) for adapter in adapters],
        options={
            "gpu_memory_utilization": 0.2,
            "enforce_eager": True,
            "max_logprobs": max_logprobs,
        },
    )
    backend = open_backend(spec)
    found = {reply.id: reply for reply in backend.ask(ASKED)}
    assert far(found, by_hf(model, *adapters)) < CLOSE
    assert backend.describe()["adapters"] == [str(adapter) for adapter in adapters]


@needs_vllm
def test_vllm_scores_smollm2_as_hf_does(tmp_path: Path, smollm2: Path) -> None:
    # vLLM reads the checkpoint that the GGUF file unpacks to
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": smollm2.name}
    read: Any = AutoModelForCausalLM.from_pretrained
    read(smollm2.parent, dtype=torch.float16, **source).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(smollm2.parent, **source).save_pretrained(tmp_path)
    spec = ModelSpec(
        backend="vllm",
        path=str(tmp_path),
        dtype="float16",
        max_length=512,
        options={"gpu_memory_utilization": 0.3, "enforce_eager": True},
    )
    found = {reply.id: reply for reply in open_backend(spec).ask(ASKED)}
    assert far(found, by_hf(tmp_path)) < 2 * CLOSE
