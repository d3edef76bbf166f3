"""Whole papers, sat by models whose answers are known: every real file, every way of answering.

What a run should make of the answers is worked out here from the published files alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import oracles
import papers
import pytest
from papers import Question
from scripted import Said, Scripted

from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.run import evaluate
from ceval_suite.schema import Record

pytestmark = pytest.mark.real

UNLABELLED = {"agieval/test/jec-qa-kd/211"}
"""Rows whose published label is empty: they are asked, and never judged."""

# what the official script itself can never count as right, by its own reading

ONE_LETTER_READ = {
    f"agieval/test/gaokao-mathqa/{row}" for row in (148, 149, 245, 246, 247, 285, 286)
}
"""Several letters in a file of which the official script reads one."""

SITTINGS: dict[tuple[str, str, int], int | None] = {
    # task, protocol, shots → questions of each subject
    ("mmlu", "official", 5): 6,
    ("mmlu", "colossal", 5): 3,
    ("mmlu", "lm-eval", 5): 3,
    ("cmmlu", "official", 5): 6,
    ("cmmlu", "official-generate", 5): 6,
    ("cmmlu", "official-cot", 5): 3,
    ("cmmlu", "colossal", 5): 3,
    ("cmmlu", "lm-eval", 5): 3,
    ("ceval", "official", 5): 6,
    ("ceval", "official-generate", 5): 6,
    ("ceval", "official-cot", 5): 3,
    ("ceval", "colossal", 5): 3,
    ("ceval", "lm-eval", 5): 3,
    ("agieval", "official", 5): 20,
    ("agieval", "official", 0): None,
    ("agieval", "official-generate", 5): 20,
    ("agieval", "official-generate", 0): None,
    ("agieval", "official-script", 5): 20,
    ("agieval", "official-script", 0): None,
    ("agieval", "official-cot", 5): None,
    ("agieval", "official-zero-shot-cot", 0): None,
    ("agieval", "colossal", 5): 20,
    ("agieval", "lm-eval", 0): 20,
    ("gaokao", "official", 0): None,
    ("gaokao", "teacher-forced", 0): None,
    ("gaokao", "official-generate", 0): None,
    ("gaokao", "official-script", 0): None,
    ("gaokao", "colossal", 0): None,
}
WHOLE = [key for key, limit in SITTINGS.items() if limit is None]
SPLITS = {"mmlu": "test", "cmmlu": "test", "ceval": "val", "agieval": "test", "gaokao": "test"}


class Sitting:
    """One task under one protocol, prepared once and sat by many models."""

    def __init__(
        self, root: Path, task: str, protocol: str, shots: int, asked: Mapping[str, Question]
    ) -> None:
        self.protocol, self.shots = protocol, shots
        limit = SITTINGS[task, protocol, shots]
        chosen = Selection(protocol=protocol, shots=shots, data=root, limit=limit)
        self.prepared: Prepared = prepare(task, chosen)
        covered = set(self.prepared.subjects)
        self.questions = [
            q
            for q in asked.values()
            if q.subject in covered and (limit is None or int(q.id.rpartition("/")[2]) < limit)
        ]

    def sit(self, table: Mapping[str, Said], checkpoint: Path, out: Path) -> Sat:
        """Every question put to a model with this table."""
        model = Scripted(table)
        spec = ModelSpec(path=str(checkpoint))
        (folder,) = evaluate("m", spec, [self.prepared], out, opener=lambda _spec, _say: model)
        return Sat(folder, {r.id: r for r in read_records(folder / "records.jsonl")})

    def table(self, answer: Callable[[Question], tuple[str, ...]]) -> dict[str, Said]:
        return {q.id: papers.said(q, answer(q), self.protocol, self.shots) for q in self.questions}


class Sat:
    """What came of a sitting."""

    def __init__(self, folder: Path, records: dict[str, Record]) -> None:
        self.records = records
        self.summary = read_json(folder / "summary.json")

    def headline(self) -> float:
        return self.summary["metrics"][self.summary["headline"]]["value"]

    def points(self, questions: list[Question]) -> float:
        worth = {id: q.points for q in questions for id in q.ids}
        return sum(worth[r.id] * (r.score or 0.0) for r in self.records.values())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something with weights to tell apart; no scripted model loads it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def sitting(real_data: Path) -> Callable[..., Sitting]:
    asked: dict[str, dict[str, Question]] = {}
    made: dict[tuple[str, str, int], Sitting] = {}

    def of(task: str, protocol: str, shots: int) -> Sitting:
        if task not in asked:
            found = papers.questions(real_data, task, SPLITS[task])
            asked[task] = {question.id: question for question in found}
        key = (task, protocol, shots)
        if key not in made:
            made[key] = Sitting(real_data, *key, asked[task])
        return made[key]

    return of


def lost(question: Question, protocol: str, shots: int) -> bool:
    """Whether the official reading spoils even the right answer."""
    if protocol == "official-script":
        if question.id in ONE_LETTER_READ:
            return True
    return False


@pytest.mark.parametrize(("task", "protocol", "shots"), SITTINGS)
def test_a_model_that_knows_everything_is_right_everywhere(
    task: str, protocol: str, shots: int, sitting: Any, checkpoint: Path, tmp_path: Path
) -> None:
    paper: Sitting = sitting(task, protocol, shots)
    sat = paper.sit(paper.table(papers.right), checkpoint, tmp_path)
    print(task, protocol, shots, len(paper.questions), len(sat.records))
    wrong = {id: (r.answer, r.prediction, r.text) for id, r in sat.records.items() if r.correct is False}
    print(len(wrong), dict(list(wrong.items())[:10]))
    print(sat.summary.get("not_scored"))
