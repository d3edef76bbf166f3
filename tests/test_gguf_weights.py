"""A GGUF file written out as plain weights equals what transformers reads from it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import gguf_weights
from tests.quantising import as_gguf

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gguf

    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    as_gguf(tiny_model, file, gguf.GGMLQuantizationType.Q8_0)
    return file


def differences(file: Path, folder: Path, dtype: Any) -> list[str]:
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained
    whole = read(file.parent, gguf_file=file.name, dtype=dtype).state_dict()
    parts = read(folder, dtype=dtype).state_dict()
    assert whole.keys() == parts.keys()
    return [name for name in whole if not whole[name].equal(parts[name])]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_gguf_file_is_written_as_transformers_reads_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, whole: bool
) -> None:
    import torch

    if whole:  # the way of files whose tensors are not the model's one by one
        monkeypatch.setattr(gguf_weights, "_in_parts", lambda *_: False)
    dtype = getattr(torch, kind)
    assert gguf_weights.write_dense(tiny, tmp_path / "out", dtype) is not whole
    assert differences(tiny, tmp_path / "out", dtype) == []


@pytest.mark.smollm2
def test_smollm2_is_written_in_parts_as_transformers_reads_it(
    smollm2: Path, tmp_path: Path
) -> None:
    import torch

    assert gguf_weights.write_dense(smollm2, tmp_path / "out", torch.float32)
    assert differences(smollm2, tmp_path / "out", torch.float32) == []
