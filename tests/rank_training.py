"""Started by torchrun: a few steps of training in several processes, scored in their midst.

python -m torch.distributed.run … tests/rank_training.py KIND TOKENIZER OUT, KIND one of ddp, fsdp,
fully_shard; all processes print their losses with and without the scoring. Where KIND is alone, the
second process meets an error that the first does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from ceval_suite import DataError, ModelError, score_live
from ceval_suite.backends import live
from tests import training_jobs as jobs


def wrapped(kind: str, model: Any) -> Any:
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def whole(kind: str, model: Any) -> dict[str, Any]:
    if kind == "ddp":
        return dict(model.module.state_dict())
    if kind == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            named = model.module.named_parameters()
            return {name.replace("_fsdp_wrapped_module.", ""): w.clone() for name, w in named}
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(state_dict.get_model_state_dict(model, options=options))


def train(kind: str, tokenizer: Any, out: Path, *, scored: bool) -> list[float]:
    rank = dist.get_rank()
    model = wrapped(kind, jobs.model(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(100 + rank)  # dropout of its own in every process
    losses: list[float] = []
    state: dict[str, Any] = {}
    model.train()
    for step in range(4):
        ids = torch.randint(5, 2000, (2, 40))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if step == 1 and scored:
            # between the gradients and their use: nothing of either may be lost
            found = score_live(
                model, tokenizer, jobs.TASKS, step=step, out=out / "live", name=kind, **jobs.CHOSEN
            )
            everywhere = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, found.values())
            assert everywhere[0] == everywhere[-1]
            assert found.values()
            state = {name: w.detach().clone() for name, w in whole(kind, model).items()}
            trouble(model, tokenizer, out)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if state and rank == 0:
        plain = jobs.model(tokenizer)
        plain.load_state_dict(state)
        plain.save_pretrained(out / "checkpoint")
        tokenizer.save_pretrained(out / "checkpoint")
    return losses


def trouble(model: Any, tokenizer: Any, out: Path) -> None:
    """What goes wrong in the first process is raised in all of them, and none is left waiting."""
    with pytest.raises(DataError, match="nowhere"):
        score_live(model, tokenizer, "mmlu", out=out / "runs", data="nowhere", limit=1)
    with pytest.raises(ModelError, match="tokenizer"):
        score_live(model, None, "sample-mmlu")


def alone(tokenizer: Any) -> None:
    """Under fully_shard, a pass ends in the second process, in its midst."""
    model = wrapped("fully_shard", jobs.model(tokenizer))

    def fail(*_: Any) -> None:
        raise ValueError("met by one")

    if dist.get_rank() == 1:
        model.model.layers[0].mlp.register_forward_pre_hook(fail)
    live.ALONE = 1.0
    score_live(model, tokenizer, "sample-mmlu", shots=0, limit=1)


def main() -> None:
    kind, place, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(place)
    if kind == "alone":
        alone(tokenizer)
        return
    found = [train(kind, tokenizer, out, scored=scored) for scored in (True, False)]
    line = json.dumps({"rank": dist.get_rank(), "losses": found})
    (out / f"losses-{dist.get_rank()}.json").write_text(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
