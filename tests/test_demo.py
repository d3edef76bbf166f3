"""The embedded default: the extended row is the base with more tokens, and less text per token."""

from __future__ import annotations

from pathlib import Path

import pytest

from ceval_suite import demo, sweep
from ceval_suite.prepare import Selection
from ceval_suite.records import read_json, read_records

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_the_extended_tokenizer_is_made_once_and_then_reused(out: Path) -> None:
    said: list[str] = []
    specs = demo.models(out, said.append)
    assert list(specs) == [demo.BASE, demo.EXTENDED]
    assert said
    made = (out / "tokenizer-zh" / "tokenizer.json").stat().st_mtime_ns
    said.clear()
    assert demo.models(out, said.append) == specs
    assert not said
    assert (out / "tokenizer-zh" / "tokenizer.json").stat().st_mtime_ns == made


def test_the_extended_row_reads_the_same_prompts_in_fewer_tokens(out: Path) -> None:
    specs = demo.models(out, lambda _: None)
    chosen = [Selection(shots=0, limit=1)]
    folders = sweep.run(specs, ["sample-ceval"], chosen, out, lambda _: None)
    base, extended = (read_json(folder / "run.json") for folder in folders)
    rows = extended["engine"]["grown"]
    assert rows["new_tokens"] >= demo.PIECES
    assert rows["unreachable"] == 0
    assert "grown" not in base["engine"]
    plain, fewer = ({r.id: r for r in read_records(f / "records.jsonl")} for f in folders)
    assert plain.keys() == fewer.keys()
    for id, record in plain.items():
        assert record.prompt_sha256 == fewer[id].prompt_sha256
        assert fewer[id].prompt_tokens < record.prompt_tokens
