"""The engine's numbers equal a plain forward pass, whichever way it took and whatever happened."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite.backends import attention, head, hf, layout, native, open_backend, products
from ceval_suite.backends.base import Backend
from ceval_suite.backends.batching import planned_tokens, trie
from ceval_suite.backends.head import Float32Head
from ceval_suite.backends.hf import HFBackend
from ceval_suite.backends.tiles import tiles
from ceval_suite.errors import ModelError, PromptError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Reply, Request

TOLERANCE = 1e-4
SAME = 2e-5
"""What the order of float32 sums may change between two ways of packing the same rows."""

LETTERS = (" A", " B", " C", " D")
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 8.0,
    "original_max_position_embeddings": 128,
}
# name → config class, its options, the path it should take and a word of the reason
ZOO: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("LlamaConfig", SMALL, "packed", ""),
    "llama-tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True}, "packed", ""),
    "qwen2": ("Qwen2Config", SMALL, "packed", ""),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "packed", ""),
    "gemma2": ("Gemma2Config", {**SMALL, "head_dim": 8}, "packed", ""),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": 64}, "packed", ""),
    "phi3": (
        "Phi3Config",
        {**SMALL, "rope_scaling": LONGROPE, "original_max_position_embeddings": 128},
        "plain",
        "differs by",
    ),
    "mamba": (
        "MambaConfig",
        {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        "plain",
        "differs by",
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "plain", "its own"),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # models this small spend their time waiting for the other threads
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Callable[[str], Path]:
    import transformers

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            kind, options, _, _ = ZOO[name]
            # a few rows more than the tokenizer has entries, as padded vocabularies do
            config = getattr(transformers, kind)(
                vocab_size=len(tiny_tokenizer) + 8,
                initializer_range=0.3,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
                **options,
            )
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
            tiny_tokenizer.save_pretrained(made[name])
        return made[name]

    return get


@pytest.fixture
def opened(checkpoint: Callable[[str], Path]) -> Callable[..., HFBackend]:
    def get(name: str = "llama", say: Any = lambda _: None, **spec: Any) -> HFBackend:
        backend = open_backend(ModelSpec(path=str(checkpoint(name)), device="cpu", **spec), say)
        assert isinstance(backend, HFBackend)
        return backend

    return get


@pytest.fixture(scope="module")
def requests(sample_texts: list[str]) -> list[Request]:
    """Shots, passages and questions that share heads at three levels; some long continuations."""
    text = " ".join(sample_texts[0].split())
    shots, passage = text[:400], text[400:600]
    out = [
        Request(
            id=f"q{i}",
            context=f"{shots}{passage * (i % 2)}\n{text[700 + 90 * i :][: 40 + 9 * i]}\nAnswer:",
            continuations=LETTERS[: 4 - i % 2],
        )
        for i in range(8)
    ]
    out += [
        Request(
            id=f"o{i}",
            context=f"{text[1500 + 70 * i :][:90]}\n答案：",
            continuations=("A", "because of the rain", "Beijing 北京", "because of"),
        )
        for i in range(3)
    ]
    return [*out, Request(id="short", context="Is", continuations=(" A", " B"))]


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, request: Request) -> tuple[list[float], list[float]]:
    """Summed logprobs and first logits of each continuation, one plain forward pass a row."""
    context = tokenizer(request.context).input_ids
    sums, firsts = [], []
    for continuation in request.continuations:
        whole = tokenizer(request.context + continuation).input_ids
        assert whole[: len(context)] == context
        logits = model(torch.tensor([whole[:-1]]), use_cache=False).logits[0].float()
        scores = logits.log_softmax(-1)
        at = range(len(context) - 1, len(whole) - 1)
        sums.append(sum(float(scores[i, whole[i + 1]]) for i in at))
        firsts.append(float(logits[at[0], whole[at[0] + 1]]))
    return sums, firsts


@pytest.fixture(scope="module")
def expected(
    checkpoint: Callable[[str], Path], requests: list[Request]
) -> Callable[[str], dict[str, tuple[list[float], list[float]]]]:
    """What an independently loaded model says, in eager attention."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made: dict[str, dict[str, tuple[list[float], list[float]]]] = {}

    def get(name: str) -> dict[str, tuple[list[float], list[float]]]:
        if name not in made:
            folder = checkpoint(name)
            eager = {} if name == "mamba" else {"attn_implementation": "eager"}
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **eager)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            made[name] = {r.id: by_hand(model.eval(), tokenizer, r) for r in requests}
        return made[name]

    return get


def ask(backend: Backend, requests: Sequence[Request]) -> dict[str, Reply]:
    replies = list(backend.ask(requests))
    assert sorted(r.id for r in replies) == sorted(r.id for r in requests)
    return {reply.id: reply for reply in replies}


def close(a: Sequence[float], b: Sequence[float], within: float = TOLERANCE) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= within for x, y in zip(a, b, strict=True))


def same(a: dict[str, Reply], b: dict[str, Reply], within: float = SAME) -> None:
    assert set(a) == set(b)
    for key in a:
        assert close(a[key].logprobs, b[key].logprobs, within), key
        assert close(a[key].logits, b[key].logits, within), key
        assert a[key].num_tokens == b[key].num_tokens


# the numbers


@pytest.mark.parametrize("name", ZOO)
def test_scores_equal_a_plain_forward_pass_whichever_path_is_taken(
    name: str, opened: Any, requests: list[Request], expected: Any
) -> None:
    said: list[str] = []
    backend = opened(name, said.append)
    replies = ask(backend, requests)
    for request in requests:
        sums, firsts = expected(name)[request.id]
        reply = replies[request.id]
        assert close(reply.logprobs, sums), (request.id, reply.logprobs, sums)
        assert reply.num_tokens == len(backend.loaded.tokenizer(request.context).input_ids)
        assert reply.choice_mass == pytest.approx(sum(map(math.exp, sums)), rel=1e-4)
        if request.id.startswith("o"):
            assert reply.logits == ()
        else:
            assert close(reply.logits, firsts, 1e-3), (reply.logits, firsts)
    # scores depend on the context, or all of this would prove little
    assert len({round(reply.logprobs[0], 3) for reply in replies.values()}) > 8

    _, _, path, reason = ZOO[name]
    found = backend.describe()["path"]
    assert found["attention"] == path, found
    if path == "packed":
        assert found["worst_difference"] <= found["tolerance"] == 1e-3
        assert said == []
    else:
        assert reason in found["reason"]
        assert said == [f"plain path: {found['reason']}"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "phi3", "mamba"])
def test_a_first_request_that_is_short_and_alone_decides_nothing_for_later_ones(
    name: str, opened: Any, requests: list[Request], expected: Any
) -> None:
    # a window or a position scaling shows only on long rows, a lost stem only on several
    backend = opened(name)
    ask(backend, requests[-1:])
    replies = ask(backend, requests)
    for request in requests:
        assert close(replies[request.id].logprobs, expected(name)[request.id][0]), request.id
    assert backend.path["attention"] == ZOO[name][2]


def test_the_path_is_checked_again_only_for_longer_rows(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    checks: list[int] = []
    real = hf.check

    def check(forward: Any, todo: Any, length: int) -> dict[str, Any]:
        checks.append(length)
        return real(forward, todo, length)

    monkeypatch.setattr(hf, "check", check)
    for some in (requests[-1:], requests, requests[:3], requests):
        ask(backend, some)
    assert checks == sorted(set(checks))
    assert len(checks) == 2


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_reply_does_not_depend_on_order_or_company(
    name: str, opened: Any, requests: list[Request]
) -> None:
    together = ask(opened(name), requests)
    mixed = list(requests)
    random.Random(1).shuffle(mixed)
    backend = opened(name)
    same(ask(backend, mixed), together)
    same({k: v for r in requests for k, v in ask(backend, [r]).items()}, together)
    same({k: v for i in (0, 1) for k, v in ask(backend, requests[i::2]).items()}, together)


@pytest.mark.parametrize("budget", [1, 7, 64, 10**6])
def test_a_reply_does_not_depend_on_the_pack_size(
    budget: int, opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ask(opened(), requests)
    backend = opened()
    backend.forward.sizes.fix(budget)
    same(ask(backend, requests), usual)
    assert backend.path["attention"] == "packed"


def test_shared_heads_are_computed_once(opened: Any, requests: list[Request]) -> None:
    backend = opened()
    replies = ask(backend, requests)
    tokens = backend.describe()["tokens"]
    encoded = backend.encoder.encode(requests)
    todo = hf.rows(encoded, backend.max_length, requests)
    # the rows that the check ran are not counted
    assert tokens["total"] == sum(len(row.tokens) for row in todo)
    assert tokens["computed"] == planned_tokens(trie(todo, 512))
    assert tokens["computed"] < 0.6 * tokens["total"]
    assert sum(r.num_tokens for r in replies.values()) <= tokens["total"]
    ask(backend, requests)
    assert backend.describe()["tokens"]["computed"] == 2 * tokens["computed"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_under_a_memory_cap_no_weights_are_held_twice(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "packing_pays", lambda _: True)
    free, capped = opened(), opened(memory="2GB")
    usual = ask(free, requests)
    same(ask(capped, requests), usual)
    assert free.describe()["kernels"]["copied_weights"] > 0
    assert capped.describe()["kernels"]["copied_weights"] == 0


def test_the_plain_path_computes_every_row(opened: Any, requests: list[Request]) -> None:
    backend = opened("mamba")
    ask(backend, requests)
    assert backend.describe()["tokens"]["computed"] == backend.describe()["tokens"]["total"] > 0


def test_equal_questions_are_computed_once_and_both_answered(opened: Any) -> None:
    backend = opened()
    twins = [
        Request(id=i, context="Which one is it?\nAnswer:", continuations=c)
        for i, c in [("x", LETTERS), ("y", LETTERS), ("z", LETTERS[::-1])]
    ]
    replies = ask(backend, twins)
    assert replies["x"].logits == replies["y"].logits == replies["z"].logits[::-1]
    assert backend.describe()["tokens"]["computed"] == replies["x"].num_tokens


def test_letters_cost_no_row_of_their_own(opened: Any) -> None:
    backend = opened()
    ask(backend, [Request(id="x", context="Which one is it?\nAnswer:", continuations=LETTERS)])
    assert (
        backend.describe()["tokens"]["total"]
        == backend.count_tokens(["Which one is it?\nAnswer:"])[0]
    )


def test_the_end_of_the_last_layer_runs_only_where_something_is_read(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    usual = ask(backend, requests)
    seen = {"first": 0, "last": 0}
    for name, place in (("first", 0), ("last", -1)):
        mlp = backend.model.model.layers[place].mlp

        def count(_: Any, inputs: Any, name: str = name) -> None:
            seen[name] += inputs[0].shape[1]

        # the gate is what both the whole and the narrowed forward go through
        mlp.gate_proj.register_forward_pre_hook(count)
    before = backend.describe()["tokens"]["computed"]
    same(ask(backend, requests), usual)
    computed = backend.describe()["tokens"]["computed"] - before
    assert seen["first"] == computed
    reads = {(r.id, i) for r in requests for i, _ in enumerate(r.continuations)}
    assert 0 < seen["last"] < computed / 4
    assert seen["last"] < 4 * len(reads)


def test_nothing_asked_is_nothing_answered(opened: Any) -> None:
    backend = opened()
    assert list(backend.ask([])) == []
    assert backend.describe()["path"] == {"attention": "unchecked"}


def test_an_abandoned_call_leaves_nothing_behind(opened: Any, requests: list[Request]) -> None:
    backend = opened()
    usual = ask(backend, requests)
    replies = backend.ask(requests)
    next(replies)
    replies.close()
    assert not attention._current
    same(ask(backend, requests), usual)


def test_no_gradients_no_dropout_and_no_inference_mode_for_the_caller(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    assert not backend.model.training
    assert not any(module.training for module in backend.model.modules())
    seen: list[bool] = []
    real = backend.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.is_inference_mode_enabled())
        return real(*args, **kwargs)

    monkeypatch.setattr(backend.model, "forward", watched)
    for _ in backend.ask(requests):
        assert not torch.is_inference_mode_enabled()
    assert seen
    assert all(seen)
    assert all(p.grad is None for p in backend.model.parameters())


def test_what_answers_is_described(opened: Any, checkpoint: Any) -> None:
    about = opened().describe()
    assert about["name_or_path"] == str(checkpoint("llama"))
    assert about["architecture"] == "LlamaForCausalLM"
    assert (about["dtype"], about["device"], about["max_length"]) == ("float32", "cpu", 2048)
    assert len(about["weights_sha256"]) == len(about["tokenizer_sha256"]) == 64
    assert about["unused_tensors"] == 0
    assert about["embedding_rows"] == about["vocabulary"] + 8


# float32 at the head


def test_the_head_of_a_bfloat16_model_is_float32(
    opened: Any, checkpoint: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    backend = opened(dtype="bfloat16")
    assert backend.describe()["dtype"] == "bfloat16"
    monkeypatch.setattr(backend, "path", {"attention": "plain", "reason": "for this test"})
    letters = [r for r in requests if not r.id.startswith("o")]
    replies = ask(backend, letters)
    judge: Any = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.bfloat16)
    tokenizer = backend.loaded.tokenizer
    for request in letters:
        ids = torch.tensor([tokenizer(request.context).input_ids])
        ends = [tokenizer(request.context + c).input_ids[-1] for c in request.continuations]
        with torch.no_grad():
            hidden = judge.model(ids).last_hidden_state[0, -1]
        assert hidden.dtype == judge.lm_head.weight.dtype == torch.bfloat16
        logits = hidden.float() @ judge.lm_head.weight.detach().float().T
        assert close(replies[request.id].logits, logits[ends].tolist(), 1e-5)
        assert close(replies[request.id].logprobs, logits.log_softmax(-1)[ends].tolist(), 1e-5)


def test_letters_that_tie_at_a_bfloat16_head_do_not_tie_here(
    opened: Any, checkpoint: Any, sample_texts: list[str]
) -> None:
    from transformers import AutoModelForCausalLM

    text = sample_texts[0]
    backend = opened(dtype="bfloat16")
    tokenizer = backend.loaded.tokenizer
    every = tokenizer([f"Answer: {chr(i)}" for i in range(ord("A"), ord("z"))]).input_ids
    border = len(tokenizer("Answer:").input_ids)
    ends = [ids[-1] for ids in every if len(ids) == border + 1][:26]
    alphabet = tuple(tokenizer.decode([i]) for i in ends)
    assert len(alphabet) > 16
    many = [
        Request(id=str(i), context=text[60 * i :][:60] + "\nAnswer:", continuations=alphabet)
        for i in range(120)
    ]
    ours = ask(backend, many)
    judge: Any = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.bfloat16)
    ties = 0
    for request in many:
        ids = torch.tensor([tokenizer(request.context).input_ids])
        with torch.no_grad():
            theirs = judge(ids).logits[0, -1, ends].tolist()
        ties += len(set(theirs)) < len(alphabet)
    # products of two bfloat16 are short numbers, so that a sum of 32 of them may still meet another
    still = sum(len(set(reply.logits)) < len(alphabet) for reply in ours.values())
    assert ties > 10
    assert still < ties / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_computes_blocks_of_the_vocabulary_alike(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "BLOCK", 7)
    torch.manual_seed(0)
    inner = torch.nn.Linear(5, 30, bias=bias, dtype=dtype)
    hidden = torch.randn(2, 3, 5).to(dtype)
    found = Float32Head(inner)(hidden)
    offset: Any = inner.bias if bias else 0
    wanted = hidden.double() @ inner.weight.double().T + (offset.double() if bias else 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_tied_head_stays_tied(opened: Any) -> None:
    model = opened("llama-tied").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# trouble


def interfere(
    backend: HFBackend, monkeypatch: pytest.MonkeyPatch, strikes: Callable[[int, bool], bool]
) -> list[int]:
    """Makes forward passes run out of memory; `strikes` sees their tokens and whether packed."""
    sizes: list[int] = []
    real = backend.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        tokens = kwargs["input_ids"].shape[1]
        if strikes(tokens, kwargs.get("position_ids") is not None):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(tokens)
        return real(*args, **kwargs)

    monkeypatch.setattr(backend.model, "forward", forward)
    return sizes


def test_running_out_of_memory_once_halves_the_packs_for_good(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    backend = opened("llama", said.append)
    usual = ask(backend, requests)
    struck: list[int] = []

    def strikes(tokens: int, packed: bool) -> bool:
        if packed and not struck and len(attention._current[-1].pack.tokens) > 60:
            struck.append(tokens)
            return True
        return False

    sizes = interfere(backend, monkeypatch, strikes)
    same(ask(backend, requests), usual)
    assert len(struck) == 1
    assert len(said) == 1
    assert "out of memory" in said[0]
    assert str(struck[0] // 2) in said[0]
    assert backend.forward.sizes.now == struck[0] // 2
    # and the next call starts from there
    del sizes[:]
    same(ask(backend, requests), usual)
    longest = max(len(r.tokens) for r in hf.rows(backend.encoder.encode(requests), 2048, requests))
    assert max(sizes) <= max(backend.forward.sizes.now, longest)


def test_packs_shrink_until_they_fit(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [
        Request(id=str(i), context=f"{i} {'word ' * (i + 3)}\nAnswer:", continuations=LETTERS)
        for i in range(30)
    ]
    backend = opened()
    usual = ask(backend, letters)
    longest = max(reply.num_tokens for reply in usual.values())
    sizes = interfere(backend, monkeypatch, lambda tokens, _: tokens > longest)
    same(ask(backend, letters), usual)
    assert max(sizes) <= longest
    assert any(size > 5 for size in sizes)


def test_one_row_that_does_not_fit_is_named_by_its_length(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("llama", 20), ("mamba", 40)):
        backend = opened(name)
        ask(backend, requests)
        interfere(backend, monkeypatch, lambda tokens, _, most=most: tokens > most)
        replies: list[Reply] = []
        with pytest.raises(ModelError, match=r"out of memory on one row of \d+ tokens; use"):
            replies.extend(backend.ask(requests))


def test_no_memory_for_the_packed_check_takes_the_plain_path(
    opened: Any, requests: list[Request], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    interfere(backend, monkeypatch, lambda _, packed: packed)
    replies = ask(backend, requests)
    assert backend.path["attention"] == "plain"
    assert "out of memory" in backend.path["reason"]
    for request in requests:
        assert close(replies[request.id].logprobs, expected("llama")[request.id][0])


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_broken_weights_name_the_item_and_the_remedy(
    name: str, opened: Any, requests: list[Request]
) -> None:
    backend = opened(name)
    norm = backend.model.transformer.ln_f if name == "bloom" else backend.model.model.norm
    with torch.no_grad():
        norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"^(q\d|o\d|short): .*not finite.*--dtype float32"):
        list(backend.ask(requests))


def test_one_infinite_logit_is_not_overlooked(opened: Any, requests: list[Request]) -> None:
    backend = opened()
    with torch.no_grad():
        backend.model.get_input_embeddings().weight[3] = float("inf")  # a token in few rows
    bad = Request(id="bad", context=backend.loaded.tokenizer.decode([3, 3]), continuations=LETTERS)
    with pytest.raises(ModelError, match="bad: "):
        list(backend.ask([*requests[:2], bad]))


def test_a_row_longer_than_the_model_reads_is_an_error_before_anything_runs(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ask(opened(), requests)
    longest = max(usual.values(), key=lambda reply: reply.num_tokens)
    fitting = opened(max_length=longest.num_tokens + 1)
    same(ask(fitting, requests), usual)
    tight = opened(max_length=longest.num_tokens)
    sizes = interfere(tight, monkeypatch, lambda *_: False)
    said = f"{longest.num_tokens + 1} tokens where the model reads {longest.num_tokens}"
    with pytest.raises(PromptError, match=rf"^{longest.id}: {said}"):
        list(tight.ask(requests))
    assert sizes == []


# the check


def wrong(a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor) -> Any:
    return a


def nan(a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor) -> Any:
    return torch.full_like(a, float("nan"))


merge = attention._merge


def nan_in_one_tail(*parts: torch.Tensor) -> Any:
    out = merge(*parts).clone()
    out[-1] = float("nan")
    return out


def broken(*_: Any) -> Any:
    raise RuntimeError("a kernel\n  that is not there")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as it is where no kernel can be compiled."""
    ways = products.Fastest({"fused": attention.fused, "tiled": attention.tiled})
    monkeypatch.setattr(attention, "_ways", lambda *_: ways)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (wrong, "differs by"),
        (nan, "differs by nan"),
        (nan_in_one_tail, "differs by nan"),
        (broken, "a kernel that is not there"),
    ],
)
def test_a_packed_path_that_is_wrong_is_not_taken(
    fault: Any,
    reason: str,
    opened: Any,
    requests: list[Request],
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_merge", fault)
    said: list[str] = []
    backend = opened("llama", said.append)
    replies = ask(backend, requests)
    assert backend.describe()["path"]["attention"] == "plain"
    assert reason in backend.path["reason"]
    assert len(said) == 1
    for request in requests:
        assert close(replies[request.id].logprobs, expected("llama")[request.id][0])
    assert backend.describe()["tokens"]["computed"] == backend.describe()["tokens"]["total"]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("only", [0, -1])
def test_one_question_is_enough_to_find_a_wrong_path(
    only: int, opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_merge", wrong)
    long = [Request(id="x", context=requests[0].context, continuations=LETTERS)]
    backend = opened()
    ask(backend, long)
    assert backend.path["attention"] == "plain"


# attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_attend_give_softmax_attention_and_its_log_sum_exp(
    causal: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    length, keys = 5, 5 if causal else 9
    q = torch.randn(2, 3, length, 8).to(dtype)
    k, v = torch.randn(2, 3, keys, 8).to(dtype), torch.randn(2, 3, keys, 8).to(dtype)
    scores = q.double() @ k.double().transpose(-1, -2) * 0.3
    if causal:
        scores = scores.masked_fill(torch.ones(length, keys).triu(1).bool(), float("-inf"))
    wanted, lse = scores.softmax(-1) @ v.double(), scores.logsumexp(-1)
    wide = torch.cat([v, v], -1)  # unequal widths take the products themselves, as GPUs do
    within = 1e-5 if dtype == torch.float32 else 0.03
    for values, want in [(v, wanted), (wide, torch.cat([wanted, wanted], -1))]:
        out, found = attention.attend(q, k, values, causal=causal, scaling=0.3)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), want, atol=within, rtol=within)
        torch.testing.assert_close(found.double(), lse, atol=within, rtol=within)


def test_two_parts_merge_into_the_whole_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4) for n in (3, 10, 10))
    parts = [
        attention.attend(q, k[:, :, some], v[:, :, some], causal=False, scaling=None)
        for some in (slice(0, 6), slice(6, 10))
    ]
    whole, _ = attention.attend(q, k, v, causal=False, scaling=None)
    torch.testing.assert_close(attention._merge(*parts[0], *parts[1]), whole)


@pytest.mark.parametrize("size", [3, 192])
@pytest.mark.parametrize("way", ["native", "fused", "tiled"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "phi3"])
def test_each_way_of_packed_attention_gives_the_scores_of_a_plain_pass(
    name: str,
    way: str,
    size: int,
    opened: Any,
    requests: list[Request],
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "native" and native.kernel() is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(layout, "tiles", partial(tiles, size=size))
    backend = opened(name)
    with attention.forced(way):
        replies = ask(backend, requests)
    for request in requests:
        assert close(replies[request.id].logprobs, expected(name)[request.id][0]), request.id


def test_the_check_at_load_tries_both_ways(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = native.kernel() is not None
    assert attention.ways_on("cpu", torch.float32) == ["native" if compiled else "fused", "tiled"]
    assert attention.ways_on("cpu", torch.float16) == ["fused", "tiled"]
    assert attention.ways_on("cuda", torch.bfloat16) == ["fused"]

    def shifted(call: Any) -> torch.Tensor:
        return fused(call) * 1.5

    fused = attention.fused
    ways = products.Fastest({"fused": fused, "tiled": shifted})
    monkeypatch.setattr(attention, "_ways", lambda *_: ways)
    backend = opened()
    ask(backend, requests)
    assert backend.path["attention"] == "plain"
    assert "differs by" in backend.path["reason"]


def test_the_faster_way_is_taken_from_the_first_large_pass_on(
    opened: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(call: Any) -> torch.Tensor:
        time.sleep(0.01)
        return attention.fused(call)

    ways = products.Fastest({"slow": slow, "tiled": attention.tiled})
    monkeypatch.setattr(attention, "_ways", lambda *_: ways)
    monkeypatch.setattr(attention, "LARGE", 1000)
    backend = opened()
    usual = ask(backend, requests)
    assert ways.chosen
    assert ways.name == "tiled"
    same(ask(backend, requests), usual)
