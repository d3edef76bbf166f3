"""Every kind of adapter that the installed peft has scores as by hand, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.errors import ModelError
from tests.test_adapters import (
    CONTEXTS,
    DTYPES,
    Workshop,
    by_hand,
    difference,
    hushed,
    lora,
    opened,
    proof,
    scored,
    settings,
)

with hushed():
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PROMPT = {"num_virtual_tokens": 5}
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"target_modules": ["q_proj"], "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"target_modules": ["q_proj"], "boft_block_size": 4},
    "C3A": {"target_modules": ["q_proj"], "block_size": 16},
    "CARTRIDGE": PROMPT,
    "CPT": {
        "cpt_token_ids": [5, 6, 7, 8],
        "cpt_mask": [1, 1, 1, 1],
        "cpt_tokens_type_mask": [1, 2, 3, 4],
    },
    "FOURIERFT": {"target_modules": ["q_proj"], "n_frequency": 50},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": {**PROMPT, "num_tasks": 2, "num_ranks": 1},
    "OFT": {"target_modules": ["q_proj"], "oft_block_size": 4, "r": 0},
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 32},
    "VBLORA": {"target_modules": ["q_proj"], "num_vectors": 8, "vector_length": 16, "topk": 2},
    "WAVEFT": {"target_modules": ["q_proj"], "n_frequency": 50},
}
"""What a kind has to be told; the others are put on one module and keep their own settings."""

REFUSED = {
    "MULTITASK_PROMPT_TUNING": "cannot be run on a prompt alone (task_ids",
    "POLY": "cannot be run on a prompt alone (task_ids",
    "SHADOW": "cannot be run on a prompt alone",
    "XLORA": "mixes adapters that lie elsewhere",
}
"""Kinds that want more than a prompt, and words of the sentence."""

PLAIN = {
    "CARTRIDGE": "puts 5 tokens",
    "CPT": "puts 4 tokens",
    "LILY": "the packed path differs",  # what is mixed depends on the whole row
    "PREFIX_TUNING": "puts 5 tokens",
    "PROMPT_TUNING": "puts 5 tokens",
    "P_TUNING": "puts 5 tokens",
}
"""Kinds that only the plain path is right for, and why."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("kinds"), tiny_tokenizer)


@pytest.fixture(scope="module")
def plain(shop: Workshop) -> list[list[float]]:
    return by_hand(shop.load(shop.base()), shop.tokenizer, CONTEXTS)


def made(kind: str, shop: Workshop) -> Path:
    """An adapter of this kind with random weights."""
    if kind == "XLORA":  # it is trained on other adapters: what it leaves names them
        folder = shop.adapter("under-xlora", shop.base(), lora())
        whole = shop.root / "xlora"
        whole.mkdir()
        (whole / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()
        )
        (whole / "adapter_config.json").write_text(json.dumps({"hidden_size": 64}))
        settings(whole, peft_type="XLORA", adapters={"0": str(folder)})
        return whole
    options = SETTINGS.get(kind, {"target_modules": ["q_proj"]})
    if kind == "TRAINABLE_TOKENS":
        seen = shop.tokenizer(CONTEXTS[0])["input_ids"]
        options = {"token_indices": sorted(set(seen))[:8]}
    with hushed():
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type="CAUSAL_LM", **options)
    return shop.adapter(kind, shop.base(), config, scale=0.3)


@pytest.mark.parametrize("kind", [one.value for one in PeftType])
def test_a_kind_of_peft_scores_as_by_hand_or_is_refused_by_name(
    kind: str, shop: Workshop, plain: list[list[float]]
) -> None:
    folder = made(kind, shop)
    if kind in REFUSED:
        with pytest.raises(ModelError) as caught:
            opened(shop.base(), [folder])
        said = str(caught.value)
        assert said.startswith(f"{folder}: {kind} {REFUSED[kind]}")
        assert said.endswith(".")
        assert said.count(". ") == 0
        assert "\n" not in said
        return
    oracle = by_hand(shop.load(shop.base(), [folder]), shop.tokenizer, CONTEXTS)
    assert difference(plain, oracle) > 100 * DTYPES["float32"]  # or else it could not tell
    backend = opened(shop.base(), [folder], dtype="float32")
    assert difference(scored(backend, CONTEXTS), oracle) <= DTYPES["float32"]
    assert proof(backend)[0]["kind"] == kind
    assert backend.path["attention"] == ("plain" if kind in PLAIN else "packed")
    assert PLAIN.get(kind, "") in backend.path.get("reason", "")
