"""Comparisons say what the records say: paired, tested, on common items, of one protocol."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, chi2
from typer.testing import CliRunner

from ceval_suite import bootstrap, comparison, finished, sweep
from ceval_suite.bits import Corpus, measure
from ceval_suite.catalog import load_task
from ceval_suite.cli import app
from ceval_suite.errors import ConfigError, ModelError, PromptError, RunError
from ceval_suite.fitting import Joint, same_shots
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_json, read_records, write_json
from ceval_suite.report import board
from ceval_suite.report import compare as report
from ceval_suite.schema import Estimate, Record, Text
from ceval_suite.stats import Pairs, difference, mcnemar, weighted_difference
from tests.finished_runs import record as made_by_hand
from tests.finished_runs import write

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ["sample-mmlu", "sample-cmmlu", "sample-gaokao"]


def quiet(_: str) -> None:
    pass


# statistics


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_equals_scipys_exact_binomial_test(fixed: int, broke: int) -> None:
    expected = binomtest(fixed, fixed + broke, 0.5).pvalue if fixed + broke else 1.0
    assert mcnemar(fixed, broke) == pytest.approx(float(expected), rel=1e-9)
    assert mcnemar(fixed, broke) == mcnemar(broke, fixed)


def score_squared(n: int, fixed: int, broke: int, delta: float) -> float:
    """The score statistic of `delta`, the nuisance found by maximising the likelihood."""

    def loss(q: float) -> float:
        same = 1 - 2 * q - delta
        if q < 0 or q + delta < 0 or same < 0:
            return math.inf
        parts = ((fixed, q + delta), (broke, q), (n - fixed - broke, same))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    q = min((float(found.x), low, high), key=loss)
    variance = n * (2 * q + delta - delta**2)
    return (fixed - broke - n * delta) ** 2 / variance


@pytest.mark.parametrize(
    ("n", "fixed", "broke"),
    [(44, 0, 1), (30, 1, 9), (100, 12, 5), (1346, 40, 61), (20, 0, 0), (25, 10, 10)],
)
def test_tangos_interval_ends_where_its_score_test_rejects(n: int, fixed: int, broke: int) -> None:
    found = difference(n, fixed, broke)
    for end in (found.low, found.high):
        assert score_squared(n, fixed, broke, end) == pytest.approx(chi2.ppf(0.95, 1), rel=1e-3)


@given(st.integers(1, 500), st.data())
def test_a_difference_lies_in_its_interval_and_turns_with_the_sides(
    n: int, data: st.DataObject
) -> None:
    fixed = data.draw(st.integers(0, n))
    broke = data.draw(st.integers(0, n - fixed))
    one, other = difference(n, fixed, broke), difference(n, broke, fixed)
    assert one.value == (fixed - broke) / n
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.low < one.high
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    single = weighted_difference([Pairs(n, fixed, broke)], [3.0])
    assert single.value == pytest.approx(one.value)
    if n > 20 and fixed + broke > 2:  # one stratum differs by the unbiased variance alone
        assert single.high - single.low == pytest.approx(one.high - one.low, rel=0.06)


@cache
def interval(n: int, fixed: int, broke: int) -> tuple[float, float]:
    found = difference(n, fixed, broke)
    return found.low, found.high


@pytest.mark.parametrize(
    ("n", "fixed", "broke"), [(100, 0.08, 0.05), (1346, 0.05, 0.04), (1346, 0.01, 0.01)]
)
def test_paired_intervals_cover_in_95_percent_of_draws(n: int, fixed: float, broke: float) -> None:
    rng = np.random.default_rng(1)
    draws = rng.multinomial(n, [fixed, broke, 1 - fixed - broke], size=2000).tolist()
    ends = [interval(n, f, b) for f, b, _ in draws]
    hits = sum(low <= fixed - broke <= high for low, high in ends)
    assert 0.935 <= hits / 2000 <= 0.965


@pytest.mark.parametrize(
    ("subjects", "smallest", "largest", "share"),
    [(52, 15, 40, 0.05), (52, 15, 40, 0.01), (8, 10, 30, 0.1), (20, 5, 200, 0.08)],
)
def test_macro_intervals_cover_in_95_percent_of_draws(
    subjects: int, smallest: int, largest: int, share: float
) -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(smallest, largest, size=subjects)
    fixed, broke = rng.beta(2, 2 / share - 2, size=(2, subjects))
    hits = 0
    for _ in range(2000):
        counts = rng.multinomial(sizes, np.stack([fixed, broke, 1 - fixed - broke], 1)).tolist()
        strata = [Pairs(int(n), f, b) for n, (f, b, _) in zip(sizes, counts, strict=True)]
        found = weighted_difference(strata, [1.0] * subjects)
        hits += found.low <= (fixed - broke).mean() <= found.high
    assert 0.935 <= hits / 2000 <= 0.965, hits / 2000


def test_intervals_of_rates_cover_in_95_percent_of_draws() -> None:
    rng = np.random.default_rng(3)
    hits, draws, rate = 0, 1000, 1.25
    for k in range(draws):
        sizes = rng.lognormal(4, 0.6, size=120)
        bits = sizes * (rate + 0.3 * rng.standard_normal(120))
        found = bootstrap.ratio(bits.tolist(), sizes.tolist(), seed=k, draws=500)
        hits += found.low <= rate <= found.high
    assert 0.93 <= hits / draws <= 0.97


def test_a_bootstrap_is_repeatable_and_needs_two_texts() -> None:
    one = bootstrap.ratio([3.0, 5.0, 9.0], [2.0, 2.0, 4.0])
    assert one == bootstrap.ratio([3.0, 5.0, 9.0], [2.0, 2.0, 4.0])
    assert one.value == 17 / 8
    assert (one.low, one.high) == (1.5, 2.5)
    with pytest.raises(ValueError, match="two texts"):
        bootstrap.ratio([3.0], [2.0])


# two models with tokenizers of their own, and a third that shares one


def small_tokenizer(texts: Sequence[str]) -> Any:
    """Bytes and a few merges: about twice the tokens of the tiny tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def specs(
    tiny_llama: Callable[..., Path],
    tiny_model: Path,
    sample_texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, ModelSpec]:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"initializer_range": 0.3}
    twin = tiny_llama("twin", seed=11, **shape)
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_llama("other", seed=12, **shape), other)
    for path in other.iterdir():  # its own tokenizer, in a vocabulary that is larger than need be
        if "token" in path.name and path.suffix == ".json":
            path.unlink()
    small_tokenizer(sample_texts[:1]).save_pretrained(other)
    return {
        "tiny": ModelSpec(path=str(tiny_model)),
        "twin": ModelSpec(path=str(twin)),
        "other": ModelSpec(path=str(other)),
    }


@pytest.fixture(scope="module")
def out(specs: dict[str, ModelSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three models on three tasks; read-only."""
    folder = tmp_path_factory.mktemp("runs")
    sweep.run(specs, TASKS, [Selection(limit=6)], folder, quiet)
    return folder


def run_of(out: Path, model: str, task: str) -> Path:
    (found,) = (out / model).glob(f"{task}-*")
    return found


def answers(out: Path, model: str, task: str) -> dict[str, Record]:
    return {r.id: r for r in read_records(run_of(out, model, task) / "records.jsonl")}


def by_task(out: Path, one: str, other: str) -> dict[str, comparison.Versus]:
    pairs, _ = comparison.pair(out / one, out / other)
    return {str(a.about["task"]): comparison.versus(a, b) for a, b in pairs}


@pytest.mark.parametrize("task", TASKS)
def test_differences_are_those_counted_by_hand(out: Path, task: str) -> None:
    a, b = answers(out, "tiny", task), answers(out, "other", task)
    found = by_task(out, "tiny", "other")[task]
    assert found.n == found.labelled == len(a) == len(b)
    assert found.alone == (0, 0)
    assert found.fixed == sum(b[i].correct is True and a[i].correct is False for i in a)
    assert found.broke == sum(a[i].correct is True and b[i].correct is False for i in a)
    assert found.fixed
    assert found.broke
    items = {i.partition("#")[0] for i in a}
    assert found.clustered == (len(items) < len(a)) == (task == "sample-gaokao")
    change = found.averages["acc/micro"][2]
    if found.clustered:  # over the clusters of every subject, as its interval
        width = (change.high - change.low) / 2 / 1.959964
        assert found.p == pytest.approx(math.erfc(abs(change.value) / width / math.sqrt(2)), 1e-4)
        assert found.exact is None
    else:
        square = (found.fixed - found.broke) ** 2 / (found.fixed + found.broke)
        assert found.p == pytest.approx(chi2.sf(square, 1))
        exact = binomtest(found.fixed, found.fixed + found.broke).pvalue
        assert found.exact == pytest.approx(float(exact))
    assert (found.p < 0.05) == (not change.low <= 0 <= change.high)

    def right(side: dict[str, Record], weight: Callable[[Record], float]) -> float:
        points = weight is weights["points"]
        top = sum(weight(r) * float((r.score if points else r.correct) or 0) for r in side.values())
        return top / sum(map(weight, side.values()))

    sizes = {s: sum(r.subject == s for r in a.values()) for s in {r.subject for r in a.values()}}
    table = load_task(task)
    weights: dict[str, Callable[[Record], float]] = {
        "acc/micro": lambda _: 1.0,
        "acc/macro": lambda r: 1 / sizes[r.subject],
        "points": lambda r: table.subjects[r.subject].points,
    }
    official = {"micro": "acc/micro", "macro": "acc/macro", "points": "points"}[table.average]
    assert next(iter(found.averages)) == official
    for name, (one, two, change) in found.averages.items():
        assert one.value == pytest.approx(right(a, weights[name]))
        assert two.value == pytest.approx(right(b, weights[name]))
        assert change.value == pytest.approx(two.value - one.value)
        assert change.low < change.value < change.high
        assert change.n == found.n
    summary = read_json(run_of(out, "other", task) / "summary.json")["metrics"]
    for name, (_, two, _) in found.averages.items():
        assert two == Estimate(**summary[name])


def test_a_comparison_turned_round_has_the_opposite_difference(out: Path) -> None:
    forth, back = by_task(out, "tiny", "other"), by_task(out, "other", "tiny")
    for task in TASKS:
        one, other = forth[task], back[task]
        assert (one.fixed, one.broke, one.p) == (other.broke, other.fixed, other.p)
        for name in one.averages:
            assert one.averages[name][2].value == pytest.approx(-other.averages[name][2].value)


def test_prompts_are_summed_from_the_records_and_tokenizers_told_apart(out: Path) -> None:
    by_name = by_task(out, "tiny", "other")
    assert set(by_name) == set(TASKS)
    for task, versus in by_name.items():
        for budget, model in zip(versus.budgets, ("tiny", "other"), strict=True):
            records = answers(out, model, task).values()
            assert budget.prompt_tokens == sum(r.prompt_tokens for r in records)
            assert budget.longest == max(r.prompt_tokens for r in records)
            assert budget.shots == sum(r.shots for r in records)
            assert budget.fewer == 0
        assert versus.budgets[0].prompt_tokens < versus.budgets[1].prompt_tokens
    assert "the tokenizers differ" in report.prompts(list(by_name.values())).notes
    same = list(by_task(out, "tiny", "twin").values())
    assert [versus.same_tokenizer for versus in same] == [True] * 3
    assert "the tokenizers are equal" in report.prompts(same).notes


def test_a_run_that_names_no_tokenizer_is_said_so(out: Path, tmp_path: Path) -> None:
    task = run_of(out, "tiny", "sample-mmlu")
    shutil.copytree(task, tmp_path / "served" / task.name)
    run = read_json(tmp_path / "served" / task.name / "run.json")
    del run["identity"]["tokenizer_sha256"]
    write_json(tmp_path / "served" / task.name / "run.json", run)
    ((one, two),) = comparison.pair(tmp_path / "served", out / "twin")[0]
    found = comparison.versus(one, two)
    assert found.same_tokenizer is None
    assert any("does not say which tokenizer" in note for note in report.prompts([found]).notes)


def test_an_incomplete_run_is_compared_on_common_items_and_said(out: Path, tmp_path: Path) -> None:
    whole = run_of(out, "tiny", "sample-mmlu")
    folder = tmp_path / "tiny" / whole.name
    shutil.copytree(whole, folder)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:-5]) + lines[-5][:20])
    (folder / "summary.json").unlink()
    pairs, alone = comparison.pair(folder, run_of(out, "other", "sample-mmlu"))
    assert alone == []
    found = comparison.versus(*pairs[0])
    assert (found.n, found.alone) == (len(lines) - 5, (0, 5))
    notes = report.accuracy([found]).notes
    assert any("5 items that only other has finished are left out" in note for note in notes)


def test_runs_without_gold_labels_show_their_prompts_and_no_accuracy(
    out: Path, tmp_path: Path
) -> None:
    for name in ("tiny", "other"):
        whole = run_of(out, name, "sample-mmlu")
        shutil.copytree(whole, tmp_path / name / whole.name)
        path = tmp_path / name / whole.name / "records.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"answer": [], "correct": None, "score": None} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy, likeness, prompts = report.compare(tmp_path / "tiny", tmp_path / "other")
    assert likeness.title == "Agreement"
    (row,) = accuracy.rows
    assert len(row) == len(accuracy.columns)
    assert [cell.value for cell in row[2:]] == [0, *[None] * 10]
    assert "no labels" in row[3].text
    assert len(prompts.rows) == 2


# what is not compared


def test_runs_of_different_protocols_are_refused_in_one_sentence(
    out: Path, specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    (zero,) = sweep.run(
        {"other": specs["other"]}, TASKS[:1], [Selection(shots=0, limit=6)], tmp_path, quiet
    )
    with pytest.raises(RunError) as caught:
        report.compare(run_of(out, "tiny", TASKS[0]), zero)
    assert "of different protocols (shots 5 and 0)" in str(caught.value)
    assert str(caught.value).count(". ") == 0
    with pytest.raises(RunError, match="have no task in common"):
        report.compare(run_of(out, "tiny", TASKS[1]), zero)
    # beside runs that do match, the odd one is named and left out
    both = tmp_path / "both"
    shutil.copytree(out / "other", both)
    shutil.copytree(zero, both / zero.name)
    accuracy = report.compare(out / "tiny", both)[0]
    assert len({row[0].text for row in accuracy.rows}) == 3
    assert any("0-shot" in n and "only other has this protocol" in n for n in accuracy.notes)


def test_folders_without_runs_of_one_model_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        report.compare(tmp_path / "none", out / "tiny")
    with pytest.raises(RunError, match="holds no runs"):
        report.compare(tmp_path, out / "tiny")
    with pytest.raises(RunError, match=r"runs of 3 models \(other, tiny, twin\)"):
        report.compare(out, out / "tiny")


def test_records_with_other_gold_labels_are_refused(out: Path, tmp_path: Path) -> None:
    whole = run_of(out, "tiny", "sample-mmlu")
    folder = tmp_path / "tiny" / whole.name
    shutil.copytree(whole, folder)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    rows[3]["answer"] = ["D"] if rows[3]["answer"] != ["D"] else ["A"]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match=f"item {rows[3]['id']} has two gold labels"):
        report.compare(folder, run_of(out, "other", "sample-mmlu"))


def test_two_runs_of_the_same_model_are_told_apart_by_place(out: Path) -> None:
    tables = report.compare(out / "tiny", out / "tiny")
    assert {"tiny (first)", "tiny (second)"} <= set(tables[0].columns)
    assert all(row[5].value == 0 for row in tables[0].rows)


# the same shots for both


def shots_of(folder: Path) -> dict[str, tuple[int, str]]:
    records = read_records(folder / "records.jsonl")
    return {record.id: (record.shots, record.prompt_sha256) for record in records}


@pytest.mark.parametrize("task", ["sample-mmlu", "sample-cmmlu"])  # drop the last, the longest
def test_the_same_shots_are_shown_to_both_models(
    specs: dict[str, ModelSpec], tmp_path: Path, task: str
) -> None:
    pair = {
        "tiny": specs["tiny"].model_copy(update={"max_length": 260}),
        "other": specs["other"].model_copy(update={"max_length": 700}),
    }
    chosen = [Selection(limit=4)]
    ordinary = sweep.run(pair, [task], chosen, tmp_path, quiet)
    same = sweep.run(pair, [task], chosen, tmp_path, quiet, same=True)
    assert len({*ordinary, *same}) == 4
    separate, together = [[shots_of(f) for f in folders] for folders in (ordinary, same)]
    assert separate[0] != separate[1]
    assert together[0] == together[1]
    for item, (shots, _) in together[0].items():
        # as many as the stricter of the two took by itself, where shots go one by one
        least = min(side[item][0] for side in separate)
        assert shots == least if task == "sample-mmlu" else shots <= least
    assert len({shots for shots, _ in together[0].values()}) > 1
    for folder in same:
        run = read_json(folder / "run.json")
        assert run["same_shots"] == ["other", "tiny"]
        assert all(r.prompt_tokens < 700 for r in read_records(folder / "records.jsonl"))
    protocols = [read_json(f / "run.json")["identity"]["protocol_sha256"] for f in same]
    assert protocols[0] == protocols[1]
    plain = report.compare(*ordinary)[-1]
    assert any("show different numbers of shots" in note for note in plain.notes)
    fair = report.compare(*same)
    assert not any("different numbers" in note for note in fair[-1].notes)
    assert "same shots" in fair[0].rows[0][0].text
    with pytest.raises(RunError, match=r"same_shots none and other, tiny"):
        report.compare(ordinary[0], same[1])
    columns = board.board(board.read_summaries(tmp_path)).columns
    assert sum("same shots for other, tiny" in column for column in columns) == 1
    # a finished run is reused by its plan
    before = [(f / "records.jsonl").read_bytes() for f in same]
    assert sweep.run(pair, [task], chosen, tmp_path, quiet, same=True) == same
    assert [(f / "records.jsonl").read_bytes() for f in same] == before


class Words:
    """A context of so many words."""

    def __init__(self, limit: int, each: int = 1) -> None:
        self.max_length = limit
        self.each = each

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [self.each * len(text.split()) for text in texts]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 50))
def test_what_fits_the_joint_context_fits_each(one: int, other: int, each: int, words: int) -> None:
    contexts = {"a": Words(one), "b": Words(other, each)}
    joint = Joint(contexts)
    (found,) = joint.count_tokens(["w " * words])
    fits = words <= one and words * each <= other
    assert (found <= joint.max_length) == fits


def test_the_model_that_an_item_does_not_fit_is_named() -> None:
    prepared = prepare("sample-mmlu", Selection(limit=1))
    with pytest.raises(PromptError, match=r"model 'narrow': .* where the model reads 10;"):
        same_shots(prepared, {"wide": Words(5), "narrow": Words(10, 50)} | {"wide": Words(9999)})


def test_same_shots_need_two_models_of_hf_without_chat(
    specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    def attempt(chosen: dict[str, ModelSpec], **more: Any) -> None:
        sweep.run(chosen, TASKS[:1], [Selection(**more)], tmp_path, quiet, same=True)

    with pytest.raises(ConfigError, match="give --model twice"):
        attempt({"tiny": specs["tiny"]})
    with pytest.raises(ConfigError, match="cannot go with --chat"):
        attempt(specs, chat=True)
    served = ModelSpec(backend="server", path="m", url="http://127.0.0.1:1/v1")
    with pytest.raises(ModelError, match="model 'served' is of backend server"):
        attempt({"tiny": specs["tiny"], "served": served})


# bits per byte beside accuracies


def test_bits_of_both_sides_are_compared_text_by_text(
    out: Path, specs: dict[str, ModelSpec], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(out, runs)
    rows = [("en", "Water boils at 100 degrees."), ("zh", "水在一百度沸腾。"), ("en", "Ice melts.")]
    corpora = [
        Corpus(g, [Text(id=t, group=g, language=la, cluster=t, text=t) for la, t in some])
        for g, some in (("first", rows), ("second", [("en", "Steam rises.")]))
    ]
    for name in ("tiny", "other"):
        measure(name, specs[name], corpora, runs, quiet)
    found = comparison.texts(runs / "tiny", runs / "other")
    by_group = {(one.group, one.language): one for one in found}
    assert set(by_group) == {("first", "en, zh"), ("second", "en"), ("", "en"), ("", "zh")}
    one = by_group["first", "en, zh"]
    values = [side["bits_per_byte"]["value"] for side in (one.first, one.second)]
    assert one.difference["value"] == pytest.approx(values[1] - values[0])
    assert one.difference["low"] < one.difference["value"] < one.difference["high"]
    assert by_group["", "en"].n == 3
    tables = report.compare(runs / "tiny", runs / "other")
    titles = ["other against tiny", "Flips", "Agreement", "Prompts", "Bits per byte"]
    assert [t.title for t in tables] == titles
    assert tables[4].rows[1][7].text == "– (one text)"
    # a folder that has only one side's bits shows none
    assert len(report.compare(runs / "tiny", runs / "twin")) == 4


def test_compare_prints_tables_or_json(out: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(app, ["compare", str(out / "tiny"), str(out / "other"), "--json"])
    assert found.exit_code == 0, found.output
    tables = json.loads(found.stdout)
    titles = ["other against tiny", "Flips", "Agreement", "Categories", "Subjects", "Items"]
    assert [table["title"] for table in tables] == [*titles, "Prompts"]
    assert len(tables[0]["rows"]) == 7  # micro and macro of each, and GAOKAO's points
    micro = [row for row in tables[0]["rows"] if "micro" in row["average"]]
    assert all(isinstance(row["p"]["value"], float) for row in micro)
    text = runner.invoke(app, ["compare", str(out / "tiny"), str(out / "other")]).stdout
    assert "fixed" in text
    assert "the tokenizers differ" in text


def test_compare_with_a_text_measures_both_sides_first(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(out, runs)
    (tmp_path / "news.txt").write_text("One is odd.\n二是偶数。\n", encoding="utf-8")
    sides = [str(run_of(runs, name, "sample-mmlu")) for name in ("tiny", "other")]
    options = ["--text", f"zh={tmp_path / 'news.txt'}", "--lines", "--json"]
    found = CliRunner().invoke(app, ["compare", *sides, *options])
    assert found.exit_code == 0, found.output
    bits = json.loads(found.stdout)[-1]
    assert bits["title"] == "Bits per byte"
    assert (bits["rows"][0]["texts"], bits["rows"][0]["n"]["value"]) == ("news.txt", 2)
    assert len(list((runs / "tiny").glob("bits-*"))) == 1


# items with several sub-questions, and partial credit


def gaokao_side(folder: Path, subjects: dict[str, Sequence[Sequence[float]]]) -> comparison.Side:
    """A run on files of GAOKAO-Bench: the score of every sub-question of every item."""
    records = [
        made_by_hand(
            f"gaokao/test/{subject}/{row}" + (f"#{k}" if len(scores) > 1 else ""),
            subject,
            "A",
            "A" if score == 1 else "B",
            score=score,
        )
        for subject, items in subjects.items()
        for row, scores in enumerate(items)
        for k, score in enumerate(scores)
    ]
    about = {"task": "gaokao", "split": "test", "protocol": "official", "shots": 0}
    return finished.run_in(write(folder, about, records))


CLOZE, PHYSICS = "2012-2022_English_Cloze_Test", "2010-2022_Physics_MCQs"


def test_differences_of_points_count_partial_credit_and_whole_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cloze = [[float(x) for x in rng.random(5) < p] for p in rng.random(26)]
    better = [[max(a, float(rng.random() < 0.3)) for a in some] for some in cloze]
    physics = [[float(x)] for x in rng.choice([0, 0.5, 1], 64)]
    half = [[min(1.0, s + float(rng.choice([0, 0.5])))] for (s,) in physics]
    one = gaokao_side(tmp_path / "a", {PHYSICS: physics, CLOZE: cloze})
    two = gaokao_side(tmp_path / "b", {PHYSICS: half, CLOZE: better})
    found = comparison.versus(one, two)
    assert found.clustered
    assert list(found.averages) == ["points", "acc/micro", "acc/macro"]
    first, second, change = found.averages["points"]

    def rate(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
        return (6 * np.sum(some) + 2 * np.sum(others)) / (6 * 64 + 2 * 130)

    assert first.value == pytest.approx(rate(physics, cloze))
    assert second.value == pytest.approx(rate(half, better))
    assert change.value == pytest.approx(second.value - first.value)
    # by hand: the files are independent, items in them too, sub-questions are not
    gain = np.array(better) - np.array(cloze)
    sums = (gain - gain.mean()).sum(1)
    clusters = 26 / 25 * (sums**2).sum() / 130**2
    alone = 130 / 129 * ((gain - gain.mean()) ** 2).sum() / 130**2
    gain = np.array(half) - np.array(physics)
    single = 64 / 63 * ((gain - gain.mean()) ** 2).sum() / 64**2
    weights = np.array([6 * 64, 2 * 130]) / (6 * 64 + 2 * 130)
    error = math.sqrt(weights**2 @ [single, max(clusters, alone)])
    assert change.stderr == pytest.approx(error)
    assert 0 <= found.p <= 1
    (row, *_) = report.accuracy([found]).rows
    assert row[1].text == "points (official)"
    assert any("cluster-robust" in note for note in report.accuracy([found]).notes)


def test_clustered_p_is_about_uniform_where_nothing_differs(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    small = 0
    for draw in range(60):
        rates = rng.random(26)  # of each item, the same for both sides
        sides = [
            gaokao_side(
                tmp_path / f"{draw}{k}",
                {CLOZE: [[float(rng.random() < p)] * 5 for p in rates]},
            )
            for k in range(2)
        ]
        small += comparison.versus(*sides).p < 0.1
    assert small <= 14  # McNemar's, blind to items, has about half of them below 0.1


def test_partial_credit_alone_leaves_accuracies_as_they_were(tmp_path: Path) -> None:
    one = gaokao_side(tmp_path / "a", {PHYSICS: [[0.5], [0.0], [1.0], [0.0]]})
    two = gaokao_side(tmp_path / "b", {PHYSICS: [[1.0], [0.5], [1.0], [0.0]]})
    found = comparison.versus(one, two)
    assert not found.clustered
    assert found.averages["acc/micro"][2] == difference(4, 1, 0)
    assert found.exact == mcnemar(1, 0)
    assert found.averages["points"][2].value == pytest.approx(0.25)
