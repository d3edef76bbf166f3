"""A process that fills a folder with LoRA checkpoints: some half-written, some finished late.

python tests/filling.py BASE DIR; prints a line for each thing it has done.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch


def adapter(base: str, step: int) -> Any:
    """A LoRA on the base, different at each step."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(step)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def save(base: str, folder: Path, step: int, *, sealed: bool = True) -> None:
    """A whole checkpoint, as a Trainer writes it."""
    adapter(base, step).save_pretrained(folder)
    if sealed:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def half(whole: Path, target: Path, share: float) -> None:
    """The first part of a checkpoint's weights, everything else whole."""
    target.mkdir()
    for file in whole.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target / file.name)
    content = (whole / "adapter_model.safetensors").read_bytes()
    part = content[: int(share * len(content))]
    (target / "adapter_model.safetensors").write_bytes(part)


def finish(whole: Path, target: Path) -> None:
    """The rest of the weights, as a writer appends it."""
    content = (whole / "adapter_model.safetensors").read_bytes()
    there = (target / "adapter_model.safetensors").stat().st_size
    with (target / "adapter_model.safetensors").open("ab") as stream:
        stream.write(content[there:])


def main() -> None:
    """Fill the folder."""
    base, place = sys.argv[1], Path(sys.argv[2])
    hidden = place.parent / "prepared"
    for step in (1, 2, 3, 4, 5):
        save(base, hidden / f"checkpoint-{step}", step, sealed=step != 4)
    place.mkdir(exist_ok=True)
    (place / "runs").mkdir()  # what loggers leave there
    half(hidden / "checkpoint-2", place / "checkpoint-2", 0.6)
    half(hidden / "checkpoint-5", place / "checkpoint-5", 0.3)  # and never finished
    shutil.copytree(hidden / "checkpoint-1", place / "checkpoint-1")
    print("1", flush=True)
    time.sleep(2)
    os.replace(hidden / "checkpoint-3", place / "checkpoint-3")
    time.sleep(2)
    finish(hidden / "checkpoint-2", place / "checkpoint-2")
    shutil.copytree(hidden / "checkpoint-4", place / "checkpoint-4")
    print("done", flush=True)


if __name__ == "__main__":
    main()
