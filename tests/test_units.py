"""Units: what is computed together follows from the requests alone, and so do the bits."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite.backends import open_backend, units
from ceval_suite.backends.hf import HFBackend
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.run import evaluate
from ceval_suite.schema import Request

SAMPLES = (("sample-mmlu", None), ("sample-gaokao", 2))

texts = st.text(st.sampled_from("ab题 \n"), max_size=12)
shots = st.sampled_from(["", "x" * 100, "水" * 70, "x" * 100 + "y" * 30000])


@st.composite
def asked(draw: st.DrawFn) -> list[Request]:
    """Requests of a task: shots and a question, some written, some following others."""
    out: list[Request] = []
    for number in range(draw(st.integers(0, 40))):
        after = draw(st.sampled_from(["", *(r.id for r in out[-3:])])) if number % 3 else ""
        kind = draw(st.sampled_from(["scored", "written"]))
        what: dict[str, Any] = {"continuations": ("A", "B")}
        if kind == "written":
            what = {"max_new_tokens": 5}
        out.append(Request(id=str(number), context=draw(shots) + draw(texts), after=after, **what))
    return out


@given(asked(), st.randoms())
@settings(max_examples=200, deadline=None)
def test_units_hold_each_request_once_chains_whole_whatever_the_order(
    requests: list[Request], rng: random.Random
) -> None:
    found = units.units(requests)
    assert sorted(r.id for unit in found for r in unit) == sorted(r.id for r in requests)
    place = {r.id: number for number, unit in enumerate(found) for r in unit}
    assert all(place[r.id] == place[r.after] for r in requests if r.after)
    mixed = list(requests)
    rng.shuffle(mixed)
    as_sets = [{r.id for r in unit} for unit in found]
    assert [{r.id for r in unit} for unit in units.units(mixed)] == as_sets
    # named units stay what they are, whichever of them are asked
    names = units.named(requests, "task")
    some = {r.unit for r in names if rng.random() < 0.5}
    left = [r for r in names if r.unit in some]
    kept = [ids for ids in as_sets if {r.unit for r in names if r.id in ids} <= some]
    assert sorted(map(sorted, kept)) == sorted(
        sorted(r.id for r in unit) for unit in units.units(left)
    )


def test_a_unit_shares_its_shots_and_has_its_share_of_the_work() -> None:
    shots = {subject: f"{subject} " * 400 for subject in ("history", "law", "physics")}
    requests = [
        Request(id=f"{subject}/{k}", context=f"{text}Question {k}: " + "?" * 400)
        for subject, text in shots.items()
        for k in range(1000 if subject == "law" else 20)
    ]
    found = units.units(requests)
    subjects = [{r.id.split("/")[0] for r in unit} for unit in found]
    # the large subject is cut into about equal parts, and shares no unit with the small ones
    assert all(len(names) == 1 for names in subjects)
    law = [len(unit) for unit, names in zip(found, subjects, strict=True) if names == {"law"}]
    assert sum(law) == 1000
    assert max(law) - min(law) <= 0.05 * max(law)
    assert max(law) * 410 <= 1.1 * units.WORK
    written = [replace(r, max_new_tokens=9) for r in requests]
    assert max(map(len, units.units(written))) <= units.WRITTEN


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Lines of all records, by task and id."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("*/*/records.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["id"] not in found
            found[row["id"]] = row
    return found


def test_two_runs_of_the_reproducible_engine_are_equal_bit_for_bit(
    tiny_model: Path, tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # units small enough that there are several to a task
    monkeypatch.setattr(units, "WORK", 4000)
    spec = ModelSpec(path=str(tiny_model), engine="reproducible", dtype="float32")
    tasks = [prepare(name, Selection(limit=limit)) for name, limit in SAMPLES]
    torch.set_num_threads(2)
    evaluate("m", spec, tasks, tmp_path / "whole")
    whole = records(tmp_path / "whole")
    torch.set_num_threads(1)
    for task in reversed(tasks):  # one by one, in another order, by another number of threads
        evaluate("m", spec, [task], tmp_path / "apart")
    assert records(tmp_path / "apart") == whole
    # a run that lost some records at random
    rng = random.Random(1)
    evaluate("m", spec, tasks, tmp_path / "again")
    for path in (tmp_path / "again").glob("*/*/records.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if rng.random() < 0.7), encoding="utf-8")
    assert len(records(tmp_path / "again")) < len(whole)
    evaluate("m", spec, tasks, tmp_path / "again")
    assert records(tmp_path / "again") == whole


def test_the_reproducible_engine_answers_as_the_usual_one_and_says_so(tiny_model: Path) -> None:
    usual = open_backend(ModelSpec(path=str(tiny_model), dtype="float32"))
    spec = ModelSpec(path=str(tiny_model), dtype="float32", engine="reproducible")
    same = open_backend(spec)
    requests = [
        Request(id=f"{k}", context=f"{k} is a number. " * k, continuations=("A", "B"))
        for k in range(1, 40)
    ] + [Request(id=f"w{k}", context=f"{k} und {k}", max_new_tokens=6) for k in range(5)]
    before = {r.id: r for r in usual.ask(requests)}
    after = {r.id: r for r in same.ask(requests)}
    assert before.keys() == after.keys()
    for id, reply in before.items():
        assert after[id].logprobs == pytest.approx(reply.logprobs, abs=1e-4)
        assert after[id].text == reply.text
    assert same.describe()["path"]["attention"] == "packed"
    assert same.describe()["path"]["writing"] == "packed"


def test_what_was_asked_before_changes_no_bit(tiny_model: Path) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="float32", engine="reproducible")
    requests = [
        Request(id=f"{k}", context=f"{k} is a number. " * k, continuations=("A", "B"))
        for k in range(1, 60)
    ] + [Request(id=f"w{k}", context=f"{k} und {k}", max_new_tokens=6) for k in range(5)]
    named = units.named(requests, "t")
    fresh = {r.id: r for r in open_backend(spec).ask(named)}
    used = open_backend(spec)
    assert isinstance(used, HFBackend)
    list(used.ask([Request(id="long", context="long " * 3000, continuations=("A",))]))
    found: dict[str, Any] = {}
    for name in sorted({r.unit for r in named}, reverse=True):  # unit by unit, the last one first
        found |= {r.id: r for r in used.ask([r for r in named if r.unit == name])}
    assert found == fresh
