"""What every item came to survives packing, to the bit, and damage is a sentence."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ceval_suite import catalog, metrics, outcomes, standings
from ceval_suite.errors import RunError
from ceval_suite.schema import Record


def record(id: str, subject: str, score: float | None, cluster: str = "") -> Record:
    right = None if score is None else score == 1
    return Record(
        id=id,
        subject=subject,
        answer=["A"] if score is not None else [],
        prediction=["A"] if right else ["B"],
        correct=right,
        score=score,
        logits={},
        logprobs=dict.fromkeys("ABCD", 0.0),
        choice_mass=1.0,
        tie=False,
        text=None,
        shots=0,
        prompt_tokens=1,
        prompt_sha256="",
        cluster=cluster,
    )


def records(task: str, seed: int, *, parts: bool = False) -> list[Record]:
    """Answers to a task of the size that is published, some of them without a label."""
    draw = random.Random(seed)
    found = catalog.load_task(task)
    out: list[Record] = []
    for subject, row in found.subjects.items():
        stem = f"{task}/{found.split}/{subject}"
        for n in range(row.counts.get(found.split, 20)):
            ids = (
                [f"{stem}/{n}#{k}" for k in range(draw.randint(1, 4))] if parts else [f"{stem}/{n}"]
            )
            shared = f"passage {n // 3}" if draw.random() < 0.2 else ""
            for id in ids:
                score = (
                    draw.choice([0.0, 1.0, 0.5, 1 / 3, 1.0])
                    if parts
                    else float(draw.random() < 0.6)
                )
                out.append(record(id, subject, None if draw.random() < 0.01 else score, shared))
    return out


@pytest.mark.parametrize(
    ("task", "parts"), [("ceval", False), ("gaokao", True), ("sample-agieval", True)]
)
def test_all_averages_come_out_of_the_block_to_the_bit(task: str, parts: bool) -> None:
    found = catalog.load_task(task)
    some = records(task, 1, parts=parts)
    block = json.loads(json.dumps(outcomes.outcomes(found, some)))
    from_records = metrics.parts_of(some)
    from_block = standings.parts_of(outcomes.read(block))
    for rule in ("micro", "macro", "points"):
        assert metrics.average(rule, from_block, found) == metrics.average(
            rule, from_records, found
        )


@pytest.mark.parametrize("parts", [False, True])
def test_ids_and_scores_come_back_in_order(parts: bool) -> None:
    task = catalog.load_task("sample-gaokao")
    some = records("sample-gaokao", 2, parts=parts)
    shuffled = some.copy()
    random.Random(3).shuffle(shuffled)
    found = outcomes.read(outcomes.outcomes(task, shuffled))
    judged = [r for r in some if r.correct is not None]
    assert found.ids() == [r.id for r in judged]
    assert found.score.tolist() == [r.score for r in judged]
    assert found.right.tolist() == [float(bool(r.correct)) for r in judged]
    assert outcomes.outcomes(task, shuffled) == outcomes.outcomes(task, some)


def test_foreign_ids_come_back_as_well() -> None:
    task = catalog.load_task("sample-mmlu")
    subject = next(iter(task.subjects))
    some = [record(f"odd id {n}/é", subject, float(n % 2)) for n in range(7)]
    assert sorted(outcomes.read(outcomes.outcomes(task, some)).ids()) == [r.id for r in some]


def test_rows_that_were_left_out_and_leading_rows_come_back() -> None:
    task = catalog.load_task("sample-mmlu")
    subject = next(iter(task.subjects))
    ids = [f"sample-mmlu/test/{subject}/{n}" for n in (3, 4, 9, 11)]
    found = outcomes.read(outcomes.outcomes(task, [record(id, subject, 1.0) for id in ids]))
    assert found.ids() == ids


def test_without_a_label_there_is_no_block() -> None:
    task = catalog.load_task("sample-mmlu")
    assert outcomes.outcomes(task, [record("a/b/c/0", "c", None)]) == {}


def test_a_full_benchmark_takes_some_kilobytes() -> None:
    task = catalog.load_task("mmlu")
    block = outcomes.outcomes(task, records("mmlu", 4))
    block.pop("clusters")
    assert len(json.dumps(block)) < 8_000


def test_other_items_have_another_hash() -> None:
    task = catalog.load_task("ceval")
    some = records("ceval", 5)
    one, other = outcomes.outcomes(task, some), outcomes.outcomes(task, some[1:])
    assert one["ids_sha256"] != other["ids_sha256"]
    keep = outcomes.read(one).right > -1
    keep[0] = False
    assert outcomes.read(one).only(keep).ids_sha256 == outcomes.read(other).ids_sha256


DAMAGE: dict[str, Any] = {
    "format": 99,
    "codes": "%%%",
    "subjects": {"law": 3},
    "values": [],
    "clusters": "eJxjYGBgAAAABAAB",
    "ids_sha256": ...,
}


@pytest.mark.parametrize("key", DAMAGE)
def test_a_damaged_block_is_a_sentence(key: str) -> None:
    task = catalog.load_task("ceval")
    block = dict(outcomes.outcomes(task, records("ceval", 6)))
    block |= {key: DAMAGE[key]}
    if DAMAGE[key] is ...:
        del block[key]
    with pytest.raises(
        RunError, match=r"x/summary.json: its block of outcomes is broken .* rescore"
    ):
        outcomes.read(block, "x/summary.json")
