"""What tests of loading share: changed configurations, refusals, tokens to extend by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.backends import loading
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec

NEW = ["法律", "工程学", "zxqv", "<note>"]
"""Tokens that the tiny tokenizer is extended by."""


def refused(path: Path | str, **options: Any) -> str:
    """The sentence with which a spec is refused."""
    with pytest.raises(ModelError) as caught:
        loading.load(ModelSpec(path=str(path), device="cpu", **options))
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert said.count(". ") == 0, "one sentence"
    return said


def settings(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Change a JSON file of a checkpoint."""
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
