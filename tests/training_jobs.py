"""Small real training jobs: tiny Llamas with dropout, on the bundled exams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TASKS = ("sample-mmlu", "sample-cmmlu")
CHOSEN: dict[str, Any] = {"limit": 2, "shots": 1}


def model(tokenizer: Any, *, seed: int = 0, **shape: Any) -> Any:
    """A Llama of random weights, with dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes = {"max_position_embeddings": 4096} | sizes | shape
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    return LlamaForCausalLM(config)


def rows(tokenizer: Any, texts: Sequence[str], length: int = 64) -> list[dict[str, list[int]]]:
    """Texts as rows of tokens to train on."""
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]][: 64 * length]
    parts = [ids[at : at + length] for at in range(0, len(ids) - length, length)]
    return [{"input_ids": part, "labels": part} for part in parts]


def trainer(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[str],
    net: Any = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """A transformers Trainer for a few steps on the CPU."""
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "report_to": "none",
        "use_cpu": True,
        "seed": 7,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
    data = rows(tokenizer, texts)
    return Trainer(
        model=model(tokenizer) if net is None else net,
        args=TrainingArguments(output_dir=str(folder), **(settings | options)),
        train_dataset=data,
        eval_dataset=data[:2],
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def losses(job: Any) -> list[float]:
    """What the job logged at each step."""
    return [entry["loss"] for entry in job.state.log_history if "loss" in entry]
