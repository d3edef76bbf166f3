"""A budget picks the items that fit, says so, and never picks others the second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ceval_suite import budget, metrics, sweep
from ceval_suite.backends import counting, open_backend
from ceval_suite.backends.tally import of_rows, tally
from ceval_suite.budget import Cost, most, seconds_of
from ceval_suite.catalog import load_task
from ceval_suite.errors import ConfigError
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import read_json, read_records
from ceval_suite.schema import Estimate

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ["sample-cmmlu", "sample-mmlu"]


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10min", 600), ("90s", 90), ("1h30min", 5400), ("2 h", 7200), ("0.5h", 1800), ("5m", 300)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "min", "10 parsecs", "-5min", "0s", "1e9s min"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget: "):
        seconds_of(text)


costs = st.builds(
    lambda sizes, head, tail, rate, each: Cost(
        {f"s{k}": n for k, n in enumerate(sizes)},
        {f"s{k}": head for k in range(len(sizes))},
        {f"s{k}": tail for k in range(len(sizes))},
        rate,
        each,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.floats(0, 500),
    st.floats(1, 200),
    st.floats(1e-4, 1e-2),
    st.floats(0, 0.1),
)


@given(st.lists(costs, min_size=1, max_size=3), st.floats(0, 100))
def test_what_is_chosen_fits_and_about_the_next_number_would_not(
    some: list[Cost], seconds: float
) -> None:
    found = most(some, seconds)
    largest = max(cost.items for cost in some)
    if found:
        assert sum(cost.seconds(found) for cost in some) <= seconds
    if found < largest:
        more = min(largest, found + max(1, found // 10 + 1))
        assert sum(cost.seconds(more) for cost in some) > seconds


def test_the_tally_counts_what_the_engine_computes(tiny_model: Path) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="float32")
    prepared = prepare("sample-ceval", Selection())
    counter = counting.Counter("tiny", spec)
    requests = [p.request() for p in render(prepared, prepared.scored(), counter)]
    found = tally(counter.encoder, requests)
    replies = list(open_backend(spec).ask(requests))
    assert found.total == sum(reply.num_tokens for reply in replies)
    assert found.distinct == sum(reply.new_tokens for reply in replies)
    assert found.longest == max(reply.num_tokens for reply in replies)
    assert of_rows([]).distinct == 0


def test_a_probe_foretells_the_tokens_of_any_number_of_items(tiny_model: Path) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="float32")
    prepared = prepare("sample-ceval", Selection())
    backend = open_backend(spec)
    (cost,) = budget.probe(backend, [prepared], 0.01)
    assert cost.per_token > 0
    assert cost.per_item == 0
    for count in (12, 30, cost.items):
        some = prepare("sample-ceval", Selection(items=count))
        requests = [p.request() for p in render(some, some.scored(), backend)]
        found = tally(counting.Counter("tiny", spec).encoder, requests)
        assert cost.tokens(count) == pytest.approx(found.distinct, rel=0.1)


def test_what_is_written_costs_by_the_item(tiny_model: Path) -> None:
    backend = open_backend(ModelSpec(path=str(tiny_model), dtype="float32"))
    prepared = prepare("sample-gaokao", Selection())
    (cost,) = budget.probe(backend, [prepared], 0.01)
    assert (cost.per_item > 0) != (cost.per_token > 0)


def test_what_cannot_be_scored_takes_no_time(tiny_model: Path, tmp_path: Path) -> None:
    chosen = Selection(protocol="lm-eval", subjects=["en-mathcloze"])
    none = prepare("sample-agieval", chosen)
    assert not none.scored()
    spec = ModelSpec(path=str(tiny_model), dtype="float32")
    found = budget.probe(open_backend(spec), [none, prepare("sample-ceval", Selection())], 0.01)
    assert [cost.subjects for cost in found] == [0, 3]
    assert found[0].seconds(100) == 0
    (folder,) = sweep.run({"tiny": spec}, ["sample-agieval"], [chosen], tmp_path, quiet, budget=60)
    assert read_json(folder / "summary.json")["n"] == 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes this machine so many times slower in the eyes of a probe."""
    real = budget.probe

    def make(factor: float) -> None:
        def probe(backend: Any, tasks: Sequence[Prepared], *rest: Any) -> list[Cost]:
            found = real(backend, tasks, *rest)
            # so much for an item, whatever this machine does meanwhile
            return [replace(cost, per_token=0.0, per_item=factor) for cost in found]

        monkeypatch.setattr(budget, "probe", probe)

    return make


def test_the_second_start_asks_the_same_items_however_fast_the_machine_is(
    tiny_model: Path, tmp_path: Path, slow: Callable[[float], None]
) -> None:
    specs = {"tiny": ModelSpec(path=str(tiny_model), dtype="float32")}
    told: list[str] = []
    slow(10.0)
    first = sweep.run(specs, TASKS, [Selection()], tmp_path, told.append, budget=600)
    abouts = [read_json(folder / "run.json") for folder in first]
    chosen = abouts[0]["budget"]["items"]
    assert 20 <= chosen < 30  # two tasks share 600 s at 10 s an item
    for about in abouts:
        assert about["subset"]["items"] == chosen
        assert sum(about["expected"].values()) == chosen
    assert any(f"budget: {chosen} of 60 items of sample-cmmlu" in line for line in told)
    slow(1.0)
    told.clear()
    again = sweep.run(specs, TASKS, [Selection()], tmp_path, told.append, budget=600)
    assert again == first
    assert any("as chosen in" in line for line in told)
    # other tasks, another time or another seed are another choice, and it is told
    other = sweep.run(specs, TASKS[:1], [Selection()], tmp_path, told.append, budget=20)
    assert other[0] not in first
    assert any(line.startswith("budget: 1") and "of 60 items" in line for line in told)


def test_a_choice_of_everything_is_kept_as_well(
    tiny_model: Path, tmp_path: Path, slow: Callable[[float], None]
) -> None:
    specs = {"tiny": ModelSpec(path=str(tiny_model), dtype="float32")}
    slow(0.01)
    (first,) = sweep.run(specs, TASKS[:1], [Selection()], tmp_path, quiet, budget=600)
    about = read_json(first / "run.json")
    assert about["subset"] is None
    assert about["budget"]["items"] == 60
    slow(100.0)
    assert sweep.run(specs, TASKS[:1], [Selection()], tmp_path, quiet, budget=600) == [first]


def test_too_little_time_for_every_subject_is_told_with_how_much_it_takes(
    tiny_model: Path, tmp_path: Path, slow: Callable[[float], None]
) -> None:
    specs = {"tiny": ModelSpec(path=str(tiny_model), dtype="float32")}
    slow(1000.0)
    with pytest.raises(ConfigError, match=r"one item of each of the \d+ subjects .* about \d+ min"):
        sweep.run(specs, TASKS, [Selection()], tmp_path, quiet, budget=600)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chosen", [Selection(limit=1), Selection(items=5)])
def test_a_budget_chooses_alone(chosen: Selection, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drop --items and --limit"):
        budget.settle({}, TASKS, [chosen], tmp_path, 60, quiet)


def test_most_subsets_of_a_real_run_hold_the_score_of_the_whole(
    tiny_model: Path, tmp_path: Path
) -> None:
    specs = {"tiny": ModelSpec(path=str(tiny_model), dtype="float32")}
    task = load_task("sample-cmmlu")
    (folder,) = sweep.run(specs, [task.name], [Selection()], tmp_path, quiet)
    whole = {r.id: r for r in read_records(folder / "records.jsonl")}
    true = read_json(folder / "summary.json")["metrics"]["acc/macro"]["value"]
    hits = 0
    for seed in range(40):
        some = prepare(task.name, Selection(items=30, seed=seed))
        assert some.subset is not None
        records = [whole[id] for item in some.scored() for id in item.record_ids()]
        found = metrics.summarize(
            task, records, some.about()["expected"], some.subset.sizes
        )["whole"]["acc/macro"]  # fmt: skip
        hits += Estimate(**found).low <= true <= Estimate(**found).high
    assert hits >= 35
    # a run of a subset has the very records of the whole
    (part,) = sweep.run(specs, [task.name], [Selection(items=30)], tmp_path, quiet)
    for record in read_records(part / "records.jsonl"):
        assert record.prompt_sha256 == whole[record.id].prompt_sha256
        assert record.logits == pytest.approx(whole[record.id].logits, abs=1e-4)
