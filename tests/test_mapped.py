"""Pages of mapped weights are let go after use, and nothing that is computed changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ceval_suite.backends import adapter_proof, loading, mapped
from ceval_suite.model_spec import ModelSpec

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not mapped.MAPS.exists(), reason="the system does not say what is mapped"),
]


def resident_files() -> int:
    """Bytes of mapped files that count as memory of this process."""
    found = re.search(r"RssFile:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def wide(tiny_llama: Callable[..., Path]) -> Path:
    """40 MB of weights."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2}
    return tiny_llama("wide-llama", seed=3, **shape)


def test_logits_stay_the_same_and_the_pages_are_gone(wide: Path) -> None:
    import torch

    model = loading.load(ModelSpec(path=str(wide), dtype="float32", device="cpu")).model
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before = adapter_proof.logits(model, ids)
        held = resident_files()
        concerned = mapped.let_go_after_use(model)
        after = adapter_proof.logits(model, ids)
        left = resident_files()
        again = adapter_proof.logits(model, ids)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # all but the pages that two tensors share
    assert 0.95 * weights < concerned <= weights
    assert before.equal(after)
    assert before.equal(again)
    assert held - left > weights / 2


def test_weights_that_lie_in_no_file_are_left_alone(wide: Path) -> None:
    import torch

    model = loading.load(ModelSpec(path=str(wide), dtype="float32", device="cpu")).model
    for weight in model.parameters():
        weight.data = weight.data.clone()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before = adapter_proof.logits(model, ids)
        assert mapped.let_go_after_use(model) == 0
        assert before.equal(adapter_proof.logits(model, ids))
