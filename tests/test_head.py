"""The head in blocks and in float32 says what the model itself would say over all its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ceval_suite.backends.head import BLOCK, Float32Head, Post, post_processing

WIDTH = 24
IDS = torch.tensor([[1, 7, 3, 250, 9, 4]])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def linear(vocabulary: int, dtype: torch.dtype, *, bias: bool) -> torch.nn.Linear:
    torch.manual_seed(0)
    made = torch.nn.Linear(WIDTH, vocabulary, bias=bias)
    torch.nn.init.normal_(made.weight)
    if bias:
        torch.nn.init.normal_(made.bias, std=3.0)
    return made.to(dtype).requires_grad_(False)


def exactly(inner: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """All logits in float64, from the weights as they are stored."""
    logits = hidden.double() @ inner.weight.double().T
    return logits if inner.bias is None else logits + inner.bias.double()


POSTS: dict[str, Post] = {
    "as they are": lambda z: z,
    "scaled": lambda z: z * 0.0625,
    "capped": lambda z: torch.tanh(z / 30) * 30,
}


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("vocabulary", [5, 1000, BLOCK, BLOCK + 1, 2 * BLOCK + 777])
def test_scores_in_blocks_equal_the_log_softmax_of_all_logits(
    vocabulary: int, dtype: torch.dtype, bias: bool, post: str
) -> None:
    inner = linear(vocabulary, dtype, bias=bias)
    ends = {0, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, vocabulary - 1, 3}
    tokens = torch.tensor(sorted(end for end in ends if end < vocabulary))
    hidden = torch.randn(len(tokens), WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    head = Float32Head(inner)
    head.greedy = True
    logit, logprob, first = head.score(hidden, torch.arange(len(hidden)), tokens, POSTS[post])
    assert logit.dtype == logprob.dtype == torch.float32
    expected = POSTS[post](exactly(inner, hidden))
    rows = torch.arange(len(tokens))
    torch.testing.assert_close(logit.double(), expected[rows, tokens], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logprob.double(), expected.log_softmax(-1)[rows, tokens], rtol=1e-5, atol=1e-5
    )
    # the largest of all is told over the blocks, and only when it is asked for
    assert first.tolist() == (expected[rows, tokens] == expected.amax(-1)).tolist()
    best = expected.argmax(-1)
    assert head.score(hidden, rows, best, POSTS[post])[2].all()
    head.greedy = False
    assert not head.score(hidden, rows, best, POSTS[post])[2].any()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    inner = linear(BLOCK + 9, torch.float32, bias=True)
    hidden = 1e4 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = exactly(inner, hidden).log_softmax(-1)
    tokens = expected.argmax(-1)
    logprob = (
        Float32Head(inner).score(hidden, torch.arange(len(hidden)), tokens, lambda z: z)[1].double()
    )
    torch.testing.assert_close(logprob, expected.amax(-1), rtol=1e-5, atol=1e-2)
    least = expected.argmin(-1)
    logprob = (
        Float32Head(inner).score(hidden, torch.arange(len(hidden)), least, lambda z: z)[1].double()
    )
    torch.testing.assert_close(logprob, expected.amin(-1), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_all_logits_are_float32_whatever_the_weights(dtype: torch.dtype, bias: bool) -> None:
    inner = linear(BLOCK + 33, dtype, bias=bias)
    hidden = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = Float32Head(inner)(hidden)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, BLOCK + 33)
    torch.testing.assert_close(found.double(), exactly(inner, hidden), rtol=1e-5, atol=1e-5)


def test_letters_that_tie_in_bfloat16_are_told_apart() -> None:
    inner = linear(2, torch.bfloat16, bias=False)
    inner.weight[0], inner.weight[1] = 1.0, 1.0
    inner.weight[1, 0] = 1.0078125  # the next bfloat16
    hidden = torch.ones(1, WIDTH, dtype=torch.bfloat16)
    tied = inner(hidden)[0]
    assert tied[0] == tied[1]
    head = Float32Head(inner)
    some = [
        head.score(hidden, torch.tensor([0]), torch.tensor([k]), lambda z: z)[0].item()
        for k in (0, 1)
    ]
    assert some == [24.0, 24.0078125]


# what a model does to its logits


SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# model → config class, its options, what its post-processing makes of 10.0
MODELS: dict[str, tuple[str, dict[str, Any], float]] = {
    "Llama": ("LlamaConfig", {}, 10.0),
    "Gemma (tied)": ("GemmaConfig", {"head_dim": 8}, 10.0),
    "Cohere": ("CohereConfig", {}, 0.625),
    "Cohere, another scale": ("CohereConfig", {"logit_scale": 3.5}, 35.0),
    "Granite": ("GraniteConfig", {"logits_scaling": 8.0}, 1.25),
    "Gemma2": ("Gemma2Config", {"head_dim": 8}, 9.6453),
    "Gemma2, a low cap": (
        "Gemma2Config",
        {"head_dim": 8, "final_logit_softcapping": 4.0},
        3.9464,
    ),
    "Gemma2, no cap": ("Gemma2Config", {"head_dim": 8, "final_logit_softcapping": None}, 10.0),
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SMALL, **options})
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def wrapped(model: Any) -> Float32Head:
    head = Float32Head(model.get_output_embeddings())
    model.set_output_embeddings(head)
    return head


def processing(model: Any, head: Float32Head) -> Post | None:
    return post_processing(head, lambda: model(input_ids=IDS[:, :1], use_cache=False).logits)


def collected(model: Any, head: Float32Head) -> torch.Tensor:
    """What the head is given for each token of IDS."""
    head.collecting = True
    model(input_ids=IDS, use_cache=False)
    head.collecting = False
    assert head.hidden is not None
    return head.hidden[0]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_does_to_its_logits_is_recognised(name: str) -> None:
    model = tiny(name)
    expected = model(input_ids=IDS, use_cache=False).logits[0].float()
    head = wrapped(model)
    post = processing(model, head)
    assert post is not None
    assert post(torch.tensor([10.0])).item() == pytest.approx(MODELS[name][2], abs=1e-4)
    assert head.sample is None
    # and with it, hidden states scored apart give the model's own logits
    hidden = collected(model, head)
    torch.testing.assert_close(post(head(hidden)), expected, rtol=1e-5, atol=1e-5)
    tokens = IDS[0]
    logit, logprob, _ = head.score(hidden, torch.arange(len(hidden)), tokens, post)
    rows = torch.arange(len(tokens))
    torch.testing.assert_close(logit, expected[rows, tokens], rtol=1e-5, atol=1e-5)
    log_softmax = expected.log_softmax(-1)[rows, tokens]
    torch.testing.assert_close(logprob, log_softmax, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.01  # logits that are all alike would prove nothing


@pytest.mark.parametrize("name", ["Llama", "Cohere", "Granite", "Gemma2"])
def test_it_is_recognised_in_bfloat16_too(name: str) -> None:
    model = tiny(name, torch.bfloat16)
    head = wrapped(model)
    expected = model(input_ids=IDS, use_cache=False).logits[0]
    assert expected.dtype == torch.float32
    post = processing(model, head)
    assert post is not None
    assert post(torch.tensor([10.0])).item() == pytest.approx(MODELS[name][2], abs=1e-4)
    found = post(head(collected(model, head)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def masked(logits: torch.Tensor) -> torch.Tensor:
    """As Chameleon forbids its image tokens."""
    logits = logits.clone()
    logits[..., 17] = torch.finfo(logits.dtype).min
    return logits


OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a constant added": lambda z: z + 1,
    "a small constant added": lambda z: z + 1e-3,
    "cut off": lambda z: z.clamp(-50, 50),
    "cut off below": lambda z: z.clamp(min=-10),
    "turned round": lambda z: z.abs(),
    "another curve": lambda z: torch.asinh(z),
    "a cap with another shape": lambda z: 30 * torch.atan(z / 30),
    "a cap and a constant": lambda z: 30 * torch.tanh(z / 30) + 0.5,
    "one entry masked": masked,
    "normalised": lambda z: z.log_softmax(-1),
    "centred": lambda z: z - z.mean(-1, keepdim=True),
    "an entry left out": lambda z: z[..., :-1],
    "rounded to bfloat16": lambda z: z.bfloat16().float(),
    "not a number": lambda z: z * float("nan"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_anything_else_is_left_to_the_model(what: str) -> None:
    import transformers

    class Other(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **options: Any) -> Any:
            found = super().forward(*args, **options)
            found.logits = OTHERS[what](found.logits)
            return found

    torch.manual_seed(0)
    model = Other(transformers.LlamaConfig(**SMALL)).eval()
    head = wrapped(model)
    assert processing(model, head) is None
    assert head.sample is None


def test_a_forward_pass_that_fails_leaves_the_head_as_it_was() -> None:
    head = Float32Head(linear(40, torch.float32, bias=False))

    def fails() -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        post_processing(head, fails)
    assert head.sample is None
    assert head(torch.zeros(1, WIDTH)).shape == (1, 40)
