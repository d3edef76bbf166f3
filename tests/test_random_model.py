"""A model that knows nothing scores at chance: on every benchmark as a whole, end to end.

The model is one Llama layer of random weights. Its scale is such that attention settles on tokens
of the question, so that predictions vary by item; at the usual scale (0.02) the last token alone
decides, every item gets the same letter, and accuracy is that letter's share of the gold labels,
which is not chance (always-D is right on 26.9 % of MMLU). The shape is one whose letters vary; the
seed is a plain constant, fixed before any of its scores was seen.

Zero-shot throughout: shots change what is asked of a real model, not what a random one can know,
and they cost most of the tokens. Guessing is worth something known where one letter is asked for;
the other kinds are scored all the same. GAOKAO, C-Eval and AGIEval run whole; MMLU and CMMLU with
three items a subject, and whole with CEVAL_SUITE_FULL=1.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ceval_suite import metrics
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_records
from ceval_suite.run import evaluate
from ceval_suite.schema import Item

FULL = os.environ.get("CEVAL_SUITE_FULL") == "1"
# task → items scored when it runs whole, and whether it always does
WHOLE = {
    "gaokao": (2944, True),
    "ceval": (1346, True),
    "agieval": (8269, True),
    "mmlu": (14042, FULL),
    "cmmlu": (11582, FULL),
}

# decided before any accuracy was seen
SEED = 20261122

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def guesser(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(
        "guesser",
        seed=SEED,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        head_dim=8,
        initializer_range=0.5,
    )


def one_letter(prepared: Prepared) -> list[Item]:
    """Items and sub-questions that one letter answers."""
    return [item for item in prepared.scored() if item.kind == "single"]


def chance(prepared: Prepared) -> tuple[float, float]:
    """Micro and macro accuracy that guessing is worth: one over the number of options."""
    shares: dict[str, list[float]] = defaultdict(list)
    for item in one_letter(prepared):
        assert len(item.answer) == 1
        shares[item.subject].append(1 / len(item.labels))
    every = [share for subject in shares.values() for share in subject]
    means = [sum(subject) / len(subject) for subject in shares.values()]
    return sum(every) / len(every), sum(means) / len(means)


@pytest.mark.parametrize("task", WHOLE)
def test_a_random_model_lands_at_chance(
    task: str, guesser: Path, tmp_path: Path, real_data: Path
) -> None:
    number, whole = WHOLE[task]
    limit = None if whole else 3
    prepared = prepare(task, Selection("official", shots=0, limit=limit, data=real_data))
    (folder,) = evaluate("guesser", ModelSpec(path=str(guesser)), [prepared], tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]

    assert summary["complete"] is True
    assert summary["protocol"] == "official"
    assert summary["n"] == len(records) == (number if whole else len(prepared.scored()))
    assert summary["engine"]["attention"] == "packed"
    assert summary["ties"] == 0
    ids = {item.id for item in one_letter(prepared)}
    parts = metrics.parts_of(r for r in read_records(folder / "records.jsonl") if r.id in ids)
    records = [record for record in records if record["id"] in ids]
    predicted = Counter(record["prediction"][0] for record in records)
    gold = Counter(record["answer"][0] for record in records)
    micro, macro = chance(prepared)
    print(
        f"{task}: n {summary['n']}, predicted {dict(sorted(predicted.items()))}, "
        f"gold {dict(sorted(gold.items()))}"
    )
    for rule, expected in (("micro", micro), ("macro", macro)):
        found = metrics.average(rule, parts, prepared.task)
        errors = (found.value - expected) / found.stderr
        print(f"  {rule} {found.value:.4f}, chance {expected:.4f}, {errors:+.2f} stderr")
        assert abs(errors) <= 4
    if len(ids) == summary["n"]:
        assert summary["chance"] == pytest.approx(micro)

    # a single letter for all would be a test of the gold labels, not of the way to the score
    usual = Counter(max(c.values()) for c in by_subject(records).values())
    share = sum(count * n for count, n in usual.items()) / len(records)
    assert len(predicted) >= 4
    assert share < 0.75


def by_subject(records: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        out[record["subject"]][record["prediction"][0]] += 1
    return out
