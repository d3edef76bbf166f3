"""Lists of items that a score is also given without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ceval_suite import exclusions
from ceval_suite.errors import ConfigError
from ceval_suite.schema import Record

RECORD = Record(
    id="mmlu/test/law/0",
    subject="law",
    answer=["A"],
    prediction=["A"],
    correct=True,
    score=1.0,
    logits={},
    logprobs={},
    choice_mass=None,
    tie=False,
    text=None,
    shots=0,
    prompt_tokens=1,
    prompt_sha256="",
)

GOOD = """
name: mine
title: Seen in training
source: my corpus
items:
  mmlu/test/law/3: "the whole question stands in a.jsonl"
  gaokao/test/reading/5: "in b.jsonl"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "leaderboards" / "exclusions" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_is_found_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    assert "mine" in exclusions.names()
    assert exclusions.load("mine") == exclusions.load(str(path))
    assert exclusions.check() == []


def test_an_item_goes_with_all_of_its_sub_questions_and_no_other(tmp_path: Path) -> None:
    found = exclusions.load(str(write(tmp_path, GOOD)))
    ids = [
        "mmlu/test/law/3",
        "mmlu/test/law/33",
        "gaokao/test/reading/5#0",
        "gaokao/test/reading/5#1",
        "gaokao/test/reading/6#0",
    ]
    kept = exclusions.without([replace(RECORD, id=id) for id in ids], [found])
    assert [record.id for record in kept] == ["mmlu/test/law/33", "gaokao/test/reading/6#0"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("title:", "tittle:"), "unknown key 'tittle': did you mean 'title'?"),
        (GOOD.replace("law/3", "law"), "'mmlu/test/law' is no item id"),
        (GOOD.replace("reading/5", "reading/5#1"), "'gaokao/test/reading/5#1' is no item id"),
        (GOOD.replace("source: my corpus\n", ""), "source: Field required."),
        ("- a\n", "expected a mapping at the top"),
    ],
)
def test_a_wrong_list_is_one_clear_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        exclusions.load(str(path))
    assert sentence in str(error.value)
    assert "mine.yaml" in str(error.value)
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path))
    assert any(sentence in problem for problem in exclusions.check())


def test_an_unknown_list_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown exclusion list 'nothing'"):
        exclusions.load("nothing")
