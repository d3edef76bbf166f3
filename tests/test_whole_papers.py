"""Whole papers, sat by models whose answers are known: every real file, every way of answering.

What a run should make of the answers is worked out here from the published files alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracles
import papers
import pytest
from misshapen import Way, cases
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

EQUATIONS = {
    *(f"agieval/test/gaokao-mathcloze/{row}" for row in (10, 29, 39, 73, 87)),
    *(f"agieval/test/math/{row}" for row in (3, 36, 968)),
}
"""Answers that are equations, of which the official script reads what follows the last =, without
shots."""

GENERATE = ("official-generate", "official-script")

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
LETTERS = [key for key in SITTINGS if key[:2] != ("agieval", "lm-eval")]
"""Where a set of letters is right or wrong as a whole."""
WRITTEN = [
    *(key for key in SITTINGS if key[0] == "agieval" and key[1].startswith("official-")),
    *(("gaokao", name, 0) for name in GENERATE),
]
FEW = 24
"""Questions of each AGIEval file that suffice for a model that does not know everything."""
SPLITS = {"mmlu": "test", "cmmlu": "test", "ceval": "val", "agieval": "test", "gaokao": "test"}


class Sitting:
    """One task under one protocol, read once and sat by many models."""

    def __init__(self, prepared: Prepared, asked: Mapping[str, Question]) -> None:
        self.prepared = prepared
        self.protocol, self.shots = prepared.protocol, prepared.shots
        answered = set(prepared.template.methods)
        self.questions = [
            asked[item.id]
            for items in prepared.items.values()
            for item in items
            if asked[item.id].kind in answered or self.protocol != "lm-eval"
        ]

    def fewer(self, asked: Mapping[str, Question]) -> Sitting:
        """The same with the first questions of each file of AGIEval."""
        if self.prepared.task.name != "agieval":
            return self
        items = {subject: items[:FEW] for subject, items in self.prepared.items.items()}
        return Sitting(replace(self.prepared, items=items, limit=FEW), asked)

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

    def scores(self) -> dict[str, float | None]:
        """What each record says; that it is right where it has all of the points."""
        for record in self.records.values():
            assert record.correct == (None if record.score is None else record.score == 1)
        return {id: record.score for id, record in self.records.items()}

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

    def of(task: str, protocol: str, shots: int, *, fewer: bool = False) -> Sitting:
        if task not in asked:
            found = papers.questions(real_data, task, SPLITS[task])
            asked[task] = {question.id: question for question in found}
        key = (task, protocol, shots)
        if key not in made:
            limit = SITTINGS[key]
            chosen = Selection(protocol=protocol, shots=shots, data=real_data, limit=limit)
            made[key] = Sitting(prepare(task, chosen), asked[task])
        return made[key].fewer(asked[task]) if fewer else made[key]

    return of


def lost(question: Question, protocol: str, shots: int) -> bool:
    """Whether the official reading spoils even the right answer."""
    if question.kind == "cloze" and (shots == 0 or protocol == "official-zero-shot-cot"):
        return _cut_at_its_equals_sign(question.gold[0])
    return protocol == "official-script" and question.id in ONE_LETTER_READ


def _cut_at_its_equals_sign(text: str) -> bool:
    """Without shots only what follows the last = is read; `y=2x` is the same as `2x`."""
    left = re.sub(r"[\s$]", "", text.split("=")[0])
    return text.count("=") > 1 or ("=" in text and len(left) > 2)


def expected(paper: Sitting, score: Callable[[Question, int], float]) -> dict[str, float | None]:
    """The score of every record: `score` of a question and the number of its answer."""
    return {
        id: score(question, k) if question.gold else None
        for question in paper.questions
        for k, id in enumerate(question.ids)
    }


def headline(paper: Sitting, scores: Mapping[str, float | None], root: Path) -> float:
    """The official average of these scores."""
    known = {id: score for id, score in scores.items() if score is not None}
    task = paper.prepared.task.name
    if task == "gaokao":
        shares: defaultdict[str, list[float]] = defaultdict(list)
        for id, score in known.items():
            shares[id.partition("#")[0]].append(score)
        earned, possible = oracles.gaokao_points(root, shares)
        return earned / possible
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for id, score in known.items():
        groups[id.split("/")[2] if task != "mmlu" else ""].append(score)
    means = [sum(group) / len(group) for group in groups.values()]
    return sum(means) / len(means)


@pytest.mark.parametrize(("task", "protocol", "shots"), SITTINGS)
def test_a_model_that_knows_everything_is_right_everywhere(
    task: str,
    protocol: str,
    shots: int,
    sitting: Any,
    checkpoint: Path,
    real_data: Path,
    tmp_path: Path,
) -> None:
    paper: Sitting = sitting(task, protocol, shots)
    sat = paper.sit(paper.table(papers.right), checkpoint, tmp_path)
    wanted = expected(paper, lambda question, _: float(not lost(question, protocol, shots)))
    assert sat.scores() == wanted
    assert sat.summary["unanswered"] == 0
    assert sat.summary["complete"] is True
    assert sat.headline() == pytest.approx(headline(paper, wanted, real_data))
    # what is not right is known by name
    spoilt = {id for id, score in wanted.items() if score == 0}
    unjudged = {id for id, score in wanted.items() if score is None}
    assert spoilt or sat.headline() == pytest.approx(1.0)
    if SITTINGS[task, protocol, shots] is None and protocol != "colossal":
        assert sat.summary["not_scored"] == {}
        assert len(wanted) == {"agieval": 8269, "gaokao": 2944}[task]
        assert unjudged == (UNLABELLED if task == "agieval" else set())
        assert spoilt == {
            *(EQUATIONS if task == "agieval" and shots == 0 else ()),
            *(ONE_LETTER_READ if (task, protocol) == ("agieval", "official-script") else ()),
        }
        assert task == "agieval" or sat.points(paper.questions) == 9702


@pytest.mark.parametrize(("task", "protocol", "shots"), SITTINGS)
def test_a_model_that_says_nothing_is_unanswered_everywhere(
    task: str, protocol: str, shots: int, sitting: Any, checkpoint: Path, tmp_path: Path
) -> None:
    paper: Sitting = sitting(task, protocol, shots, fewer=True)
    sat = paper.sit({}, checkpoint, tmp_path)
    wanted = expected(paper, lambda *_: 0.0)
    assert sat.scores() == wanted
    assert not any(record.prediction for record in sat.records.values())
    assert sat.summary["unanswered"] == len(wanted)
    assert sat.headline() == 0


@pytest.mark.parametrize(("task", "protocol", "shots"), LETTERS)
def test_a_guesser_is_right_as_often_as_chance_has_it_in_every_file(
    task: str, protocol: str, shots: int, sitting: Any, checkpoint: Path, tmp_path: Path
) -> None:
    paper: Sitting = sitting(task, protocol, shots, fewer=True)
    sat = paper.sit(paper.table(papers.guesser(seed=20)), checkpoint, tmp_path)
    mean: Counter[str] = Counter()
    variance: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for question in paper.questions:
        for gold, id in zip(question.gold, question.ids, strict=False):
            found[question.subject] += sat.records[id].score or 0.0
            if question.kind == "cloze" or lost(question, protocol, shots):
                continue
            scores = [question.score(given, gold) for given in question.sets()]
            chance = sum(scores) / len(scores)
            mean[question.subject] += chance
            variance[question.subject] += sum(s * s for s in scores) / len(scores) - chance**2
    assert mean.keys() | set(papers.FREE) >= set(paper.prepared.subjects)
    for subject in paper.prepared.subjects:
        assert abs(found[subject] - mean[subject]) <= 4 * math.sqrt(variance[subject]), subject


@pytest.mark.parametrize(("task", "protocol", "shots"), LETTERS)
def test_a_model_that_always_says_a_earns_what_a_is_worth(
    task: str,
    protocol: str,
    shots: int,
    sitting: Any,
    checkpoint: Path,
    real_data: Path,
    tmp_path: Path,
) -> None:
    paper: Sitting = sitting(task, protocol, shots, fewer=True)
    sat = paper.sit(paper.table(papers.constant), checkpoint, tmp_path)
    wanted = expected(paper, lambda question, k: question.score("A", question.gold[k]))
    assert sat.scores() == wanted
    assert sat.headline() == pytest.approx(headline(paper, wanted, real_data))
    halves = sum(score == 0.5 for score in wanted.values())
    assert halves == (10 if task == "gaokao" and protocol != "colossal" else 0)


@pytest.mark.parametrize(("task", "protocol", "shots"), WRITTEN)
def test_answers_that_break_the_form_count_as_the_official_rules_have_it(
    task: str,
    protocol: str,
    shots: int,
    sitting: Any,
    checkpoint: Path,
    real_data: Path,
    tmp_path: Path,
) -> None:
    paper: Sitting = sitting(task, protocol, shots, fewer=True)
    way = Way(protocol, shots)
    table: dict[str, Said] = {}
    wanted: dict[str, float | None] = {}
    tried: defaultdict[str, set[str]] = defaultdict(set)
    turn: Counter[str] = Counter()
    for question in paper.questions:
        possible = cases(question, way)
        form = f"{question.form} {question.kind} of {len(possible)}"
        name, case = possible[turn[form] % len(possible)]
        turn[form] += 1
        tried[form].add(name)
        table[question.id] = Said((), "", case.written, finished=case.finished)
        scores = [0.0 if lost(question, protocol, shots) else score for score in case.scores]
        wanted |= zip(question.ids, scores if question.gold else [None], strict=True)
    cut = {id for q in paper.questions if not table[q.id].finished for id in q.ids}
    sat = paper.sit(table, checkpoint, tmp_path)
    assert sat.scores() == wanted
    assert {id for id, record in sat.records.items() if record.cut} == cut
    assert sat.headline() == pytest.approx(headline(paper, wanted, real_data))
    assert 0.1 < sat.headline() < 0.9
    for form, names in tried.items():
        count = int(form.rpartition(" ")[2])
        assert len(names) == min(count, turn[form]), f"{form}: {names}"
