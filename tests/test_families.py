"""The architecture table: which path each model family takes, and that its scores are right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite.backends import attention, open_backend
from ceval_suite.backends.hf import HFBackend
from ceval_suite.model_spec import ModelSpec
from ceval_suite.schema import Request

TOLERANCE = 1e-4

WINDOW = 48
"""Attention windows and chunks, and where position scalings set in: far below the rows' length."""

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
MIXED = ["sliding_attention", "full_attention"]
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 8.0,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 1e4,
}
HEADS: dict[str, Any] = {**SMALL, "head_dim": 8}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GATES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LLAMA4: dict[str, Any] = {
    **HEADS,
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 64,
    "num_local_experts": 4,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
# family → config class, its options, the path it should take, a word of the reason
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "Llama": ("LlamaConfig", SMALL, "packed", ""),
    "InternLM2, Baichuan (as Llama)": (
        "LlamaConfig",
        {**SMALL, "attention_bias": True, "mlp_bias": True},
        "packed",
        "",
    ),
    "Llama 4": (
        "Llama4TextConfig",
        {**LLAMA4, "attention_chunk_size": WINDOW},
        "plain",
        "differs by",
    ),
    "Llama 4, rows within a chunk": ("Llama4TextConfig", LLAMA4, "packed", ""),
    "Qwen2": ("Qwen2Config", SMALL, "packed", ""),
    "Qwen3": ("Qwen3Config", HEADS, "packed", ""),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**HEADS, **EXPERTS, "num_experts": 4}, "packed", ""),
    "Qwen3-Next": (
        "Qwen3NextConfig",
        {**HEADS, **GATES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        "plain",
        "differs by",
    ),
    "Qwen3.5": ("Qwen3_5TextConfig", {**HEADS, **GATES}, "plain", "differs by"),
    "Mistral": ("MistralConfig", {**SMALL, "sliding_window": WINDOW}, "packed", ""),
    "Mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}, "packed", ""),
    "Gemma 2": (
        "Gemma2Config",
        {**HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
        "packed",
        "",
    ),
    "Gemma 3": (
        "Gemma3TextConfig",
        {
            **HEADS,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 8,
        },
        "packed",
        "",
    ),
    "Phi-3": ("Phi3Config", {**SMALL, "sliding_window": WINDOW}, "packed", ""),
    "Phi-3 longrope": (
        "Phi3Config",
        {**SMALL, "rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
        "plain",
        "differs by",
    ),
    "GLM": ("GlmConfig", HEADS, "packed", ""),
    "GLM-4": ("Glm4Config", HEADS, "packed", ""),
    "DeepSeek-V2": (
        "DeepseekV2Config",
        {**SMALL, **LATENT, **EXPERTS, "n_shared_experts": 1},
        "packed",
        "",
    ),
    "DeepSeek-V3": (
        "DeepseekV3Config",
        {**SMALL, **LATENT, **EXPERTS, "rope_parameters": YARN},
        "packed",
        "",
    ),
    "DeepSeek-V3.2": (
        "DeepseekV32Config",
        {
            **SMALL,
            **LATENT,
            **EXPERTS,
            "index_topk": WINDOW,
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
        "plain",
        "",
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "rope_parameters": YARN,
        },
        "packed",
        "",
    ),
    "Cohere": ("CohereConfig", {**SMALL, "logit_scale": 0.25}, "packed", ""),
    "Granite": (
        "GraniteConfig",
        {
            **SMALL,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
        },
        "packed",
        "",
    ),
    "Granite 4 (hybrid)": (
        "GraniteMoeHybridConfig",
        {
            **SMALL,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        },
        "plain",
        "differs by",
    ),
    "OLMo 2": ("Olmo2Config", SMALL, "packed", ""),
    "OLMo 3": (
        "Olmo3Config",
        {**SMALL, "sliding_window": WINDOW, "layer_types": MIXED},
        "packed",
        "",
    ),
    "Cohere 2": (
        "Cohere2Config",
        {**SMALL, "sliding_window": WINDOW, "layer_types": MIXED, "logit_scale": 0.25},
        "packed",
        "",
    ),
    "GLM-4.5": ("Glm4MoeConfig", {**HEADS, **EXPERTS}, "packed", ""),
    "ERNIE 4.5": ("Ernie4_5Config", HEADS, "packed", ""),
    "Hunyuan": ("HunYuanDenseV1Config", HEADS, "packed", ""),
    "MiniCPM3": ("MiniCPM3Config", {**SMALL, **LATENT}, "packed", ""),
    "MiniMax-M2": (
        "MiniMaxM2Config",
        {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
        "packed",
        "",
    ),
    "InternLM3": ("InternLM3Config", SMALL, "packed", ""),
    "Seed-OSS": ("SeedOssConfig", HEADS, "packed", ""),
    "SmolLM3": ("SmolLM3Config", SMALL, "packed", ""),
    "EXAONE 4": (
        "Exaone4Config",
        {**SMALL, "sliding_window": WINDOW, "layer_types": MIXED},
        "packed",
        "",
    ),
    "Nemotron": ("NemotronConfig", SMALL, "packed", ""),
    "Gemma": ("GemmaConfig", HEADS, "packed", ""),
    "Phi": ("PhiConfig", SMALL, "packed", ""),
    "StarCoder 2": ("Starcoder2Config", {**SMALL, "sliding_window": WINDOW}, "packed", ""),
    "StarCoder": ("GPTBigCodeConfig", GPT, "packed", ""),
    "StableLM": ("StableLmConfig", {**SMALL, "qk_layernorm": True}, "packed", ""),
    "GPT-2": ("GPT2Config", GPT, "packed", ""),
    "GPT-NeoX": ("GPTNeoXConfig", SMALL, "packed", ""),
    "OPT": (
        "OPTConfig",
        {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
        "packed",
        "",
    ),
    "CodeGen": ("CodeGenConfig", {**GPT, "rotary_dim": 4}, "plain", "its own"),
    "GPT-J": ("GPTJConfig", {**GPT, "rotary_dim": 4}, "plain", "its own"),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        "plain",
        "its own",
    ),
    "XGLM": (
        "XGLMConfig",
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "init_std": 0.3},
        "plain",
        "its own",
    ),
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "plain", "its own"),
    "Falcon": ("FalconConfig", SMALL, "plain", "its own"),
    "Falcon ALiBi": ("FalconConfig", {**SMALL, "alibi": True}, "plain", "its own"),
    "MPT": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "plain", "its own"),
    "Mamba": (
        "MambaConfig",
        {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        "plain",
        "differs by",
    ),
    "Mamba 2": (
        "Mamba2Config",
        {
            "hidden_size": 32,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "num_hidden_layers": 2,
            "n_groups": 1,
        },
        "plain",
        "differs by",
    ),
    "Falcon-H1": (
        "FalconH1Config",
        {
            **HEADS,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        },
        "plain",
        "differs by",
    ),
    "LFM2": (
        "Lfm2Config",
        {**SMALL, "layer_types": ["conv", "full_attention"]},
        "plain",
        "differs by",
    ),
    "RWKV": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2}, "plain", "its own"),
}
# transformers' eager Falcon adds its ALiBi bias twice (in the mask and in the layer), its sdpa once
REFERENCE = {"Falcon ALiBi": "sdpa"}


@dataclass
class Result:
    """What became of a family: the path taken, and how far the scores are off."""

    path: dict[str, Any]
    said: list[str]
    worst: float
    distinct: int
    longest: int
    texts: list[str | None]
    wanted_texts: list[str]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def requests(sample_texts: list[str]) -> list[Request]:
    """Questions below shared shots, some longer than every window; long continuations as well."""
    text = " ".join(sample_texts[0].split())
    out = [
        Request(
            id=f"q{i}",
            context=f"{text[:520]}\n{text[700 + 90 * i :][: 60 + 40 * i]}\nAnswer:",
            continuations=(" A", " B", " C", " D"),
        )
        for i in range(4)
    ]
    return [
        *out,
        # words never join a colon, wherever the text is cut
        Request(
            id="long", context=f"{text[1500:2200]}:", continuations=("A", "because", "Beijing 北京")
        ),
        Request(id="short", context="Is", continuations=(" A", " B")),
    ]


@torch.no_grad()
def by_hand(
    folder: Any, requests: list[Request], implementation: str
) -> tuple[dict[str, list[float]], int]:
    """Summed logprobs by an independently loaded model, one forward pass a row."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read: Any = AutoModelForCausalLM.from_pretrained
    model = read(folder, dtype=torch.float32, attn_implementation=implementation).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    out: dict[str, list[float]] = {}
    longest = 0
    for request in requests:
        context = tokenizer(request.context).input_ids
        out[request.id] = []
        for continuation in request.continuations:
            whole = tokenizer(request.context + continuation).input_ids
            assert whole[: len(context)] == context
            logits = model(torch.tensor([whole[:-1]]), use_cache=False).logits[0]
            scores = logits.double().log_softmax(-1)
            at = range(len(context) - 1, len(whole) - 1)
            out[request.id].append(sum(float(scores[i, whole[i + 1]]) for i in at))
            longest = max(longest, len(whole) - 1)
    return out, longest


WRITTEN = 6
"""Tokens that every family writes after each of a few contexts."""


@torch.no_grad()
def written_by_hand(folder: Any, requests: list[Request], implementation: str) -> list[str]:
    """Greedy texts by an independently loaded model, a whole forward pass for every token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read: Any = AutoModelForCausalLM.from_pretrained
    model = read(folder, dtype=torch.float32, attn_implementation=implementation).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    out: list[str] = []
    for request in requests:
        ids = tokenizer(request.context).input_ids
        written: list[int] = []
        while len(written) < WRITTEN:
            logits = model(torch.tensor([ids + written]), use_cache=False).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == 1:  # the end
                break
        text = [i for i in written if i != 1]
        out.append(tokenizer.decode(text, skip_special_tokens=True))
    return out


def saved(folder: Path, tokenizer: Any, kind: str, options: dict[str, Any]) -> Path:
    """A random checkpoint of a config class, with the tiny tokenizer."""
    import transformers

    # a few rows more than the tokenizer has entries, as padded vocabularies do
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer) + 8,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **options,
    )
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found() -> dict[str, Result]:
    """The results so far."""
    return {}


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Any,
    requests: list[Request],
    found: dict[str, Result],
) -> Callable[[str], Result]:
    """Each family's result; its model is made and opened once."""
    import transformers

    def measure(family: str) -> Result:
        kind, options, _, _ = FAMILIES[family]
        if not hasattr(transformers, kind):
            pytest.skip(f"transformers {transformers.__version__} has no {kind}")
        folder = saved(tmp_path_factory.mktemp("model"), tiny_tokenizer, kind, options)
        wanted, longest = by_hand(folder, requests, REFERENCE.get(family, "eager"))
        said: list[str] = []
        backend = open_backend(ModelSpec(path=str(folder), device="cpu"), said.append)
        assert isinstance(backend, HFBackend)
        replies = {reply.id: reply.logprobs for reply in backend.ask(requests)}
        off = [
            abs(ours - theirs)
            for request in requests
            for ours, theirs in zip(replies[request.id], wanted[request.id], strict=True)
        ]
        distinct = {round(logprobs[0], 3) for logprobs in replies.values()}
        worst = float(torch.tensor(off).max())  # keeps a NaN
        asked = [
            Request(id=request.id, context=request.context, max_new_tokens=WRITTEN)
            for request in requests[1:4]
        ]
        texts = {reply.id: reply.text for reply in backend.ask(asked)}
        by_itself = written_by_hand(folder, asked, REFERENCE.get(family, "eager"))
        path = backend.describe()["path"]
        return Result(
            path, said, worst, len(distinct), longest, [texts[r.id] for r in asked], by_itself
        )

    def get(family: str) -> Result:
        if family not in found:
            found[family] = measure(family)
        return found[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_right_and_the_path_is_the_expected_one(
    family: str, measured: Callable[[str], Result]
) -> None:
    _, _, path, reason = FAMILIES[family]
    result = measured(family)
    assert result.longest > max(200, 4 * WINDOW)
    assert result.worst <= TOLERANCE, result
    # scores depend on the context, or all of this would prove little
    assert result.distinct >= 5, result
    assert result.path["attention"] == path, result
    if path == "packed":
        assert result.said == []
    else:
        assert reason in result.path["reason"]
        assert result.said == [f"plain path: {result.path['reason']}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_the_model_writes_by_itself(
    family: str, measured: Callable[[str], Result]
) -> None:
    result = measured(family)
    assert result.texts == result.wanted_texts, result.path
    packed = result.path["attention"] == "packed"
    assert result.path["writing"] == ("packed" if packed else "one row at a time")


def test_the_table_is_printed(measured: Callable[[str], Result], found: dict[str, Result]) -> None:
    # seen with `-s`; a worker of several has the results of its own share only
    several = "PYTEST_XDIST_WORKER" in os.environ
    families = [family for family in FAMILIES if family in found or not (found or several)]
    lines = ["family | config class | path | largest difference", "--- | --- | --- | ---:"]
    for family in families:
        result = measured(family)
        path = result.path["attention"]
        assert path == FAMILIES[family][2]
        lines.append(f"{family} | {FAMILIES[family][0]} | {path} | {result.worst:.1e}")
    print("\n\n" + "\n".join(lines))


def test_dynamic_ntk_scores_every_row_with_its_own_frequencies(
    tmp_path: Path, tiny_tokenizer: Any, requests: list[Request]
) -> None:
    # transformers keeps those of the longest row so far; a new model for every row has none to keep
    options = {**SMALL, "max_position_embeddings": 64}
    options["rope_parameters"] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    folder = saved(tmp_path, tiny_tokenizer, "LlamaConfig", options)
    backend = open_backend(ModelSpec(path=str(folder), device="cpu", max_length=512))
    replies = {reply.id: reply.logprobs for reply in backend.ask(requests)}
    for request in requests:
        for place, continuation in enumerate(request.continuations):
            one = Request(id="x", context=request.context, continuations=(continuation,))
            wanted, _ = by_hand(folder, [one], "eager")
            assert replies[request.id][place] == pytest.approx(wanted["x"][0], abs=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["RwkvConfig", "MambaConfig"])
def test_a_leak_between_rows_is_found_where_rounding_hides_it(
    kind: str, dtype: str, tmp_path: Path, tiny_tokenizer: Any, requests: list[Request]
) -> None:
    options = {"hidden_size": 32, "num_hidden_layers": 2}
    folder = saved(tmp_path, tiny_tokenizer, kind, options)
    backend: Any = open_backend(ModelSpec(path=str(folder), device="cpu", dtype=dtype))
    replies = list(backend.ask(requests))
    assert len(replies) == len(requests)
    assert backend.describe()["path"]["attention"] == "plain"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
        ("MT5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
        (
            "BartConfig",
            {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
        ),
    ],
)
def test_an_encoder_and_a_decoder_score_as_lm_eval_scores_them(
    kind: str,
    options: dict[str, Any],
    tmp_path: Path,
    tiny_tokenizer: Any,
    requests: list[Request],
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = saved(tmp_path, tiny_tokenizer, kind, {**options, "decoder_start_token_id": 0})
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # a closing token after the context, as T5 has it
    closing = tokenizer.convert_ids_to_tokens(1)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {closing}", special_tokens=[(closing, 1)]
    )
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Is").input_ids[-1] == 1
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    judge = HFLM(pretrained=model, tokenizer=tokenizer, backend="seq2seq", batch_size=1)
    asked = [
        Instance("loglikelihood", {}, (request.context, continuation), 0)
        for request in requests
        for continuation in request.continuations
    ]
    wanted = iter(judge.loglikelihood(asked, disable_tqdm=True))
    backend: Any = open_backend(ModelSpec(path=str(folder), device="cpu", max_length=512))
    replies = {reply.id: reply.logprobs for reply in backend.ask(requests)}
    for request in requests:
        for ours in replies[request.id]:
            assert ours == pytest.approx(next(wanted)[0], abs=TOLERANCE)
    path = backend.describe()["path"]
    assert path == {"attention": "plain", "reason": "encoder and decoder"}


def test_an_attention_that_asks_for_more_than_is_understood_is_not_packed() -> None:
    layout: Any = object()
    attention._current.append(layout)
    try:
        with pytest.raises(attention.NotPacked, match="attention uses block_indices"):
            attention.packed_attention(*[None] * 4, block_indices=torch.zeros(1))  # type: ignore
    finally:
        attention._current.pop()
