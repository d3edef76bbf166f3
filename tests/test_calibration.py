"""Calibration, letter bias and flips say what the records say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import SquareTable
from typer.testing import CliRunner

from ceval_suite import bias, calibration, comparison, distributions, flips
from ceval_suite.cli import app
from ceval_suite.schema import Record
from tests.finished_runs import record, write

ABOUT = {"task": "ceval", "split": "val", "protocol": "official", "shots": 5}


def scored(id: str, gold: str, logits: dict[str, float], **more: Any) -> Record:
    """A record whose prediction is the likeliest letter."""
    total = math.log(sum(math.exp(v) for v in logits.values()))
    best = max(logits, key=lambda letter: logits[letter])
    fields: dict[str, Any] = {
        "logits": logits,
        "logprobs": {k: v - total - 0.1 for k, v in logits.items()},
        "choice_mass": 0.9,
    }
    return record(id, id.split("/")[2], gold, best, **{**fields, **more})


def made(n: int, seed: int, heat: float = 1.0, split: str = "val") -> list[Record]:
    """Items whose gold letters are drawn from the probabilities that logits over `heat` give."""
    rng = np.random.default_rng(seed)
    out: list[Record] = []
    for k in range(n):
        logits = rng.normal(0, 2, 4)
        p = np.exp(logits / heat)
        gold = "ABCD"[rng.choice(4, p=p / p.sum())]
        out.append(
            scored(f"ceval/{split}/law/{k}", gold, dict(zip("ABCD", logits.tolist(), strict=False)))
        )
    return out


def block(records: Sequence[Record], fit: Sequence[Record] = (), name: str = "") -> Any:
    learned = distributions.of(fit) if fit else None
    return calibration.block(distributions.of(records), learned, name)


def test_errors_and_scores_by_hand() -> None:
    records = made(200, seed=1, heat=2.0)
    found = block(records)
    p = np.array([[math.exp(r.logits[x]) for x in "ABCD"] for r in records])
    p /= p.sum(1, keepdims=True)
    gold = np.array([[x in r.answer for x in "ABCD"] for r in records])
    sure, right = p.max(1), np.array([r.correct for r in records], float)
    gaps = 0.0
    for k in range(15):
        inside = (sure >= k / 15) & (sure < (k + 1) / 15)
        gaps += abs((sure - right)[inside].sum()) / 200
        assert found["bins"][k]["n"] == inside.sum()
        if inside.any():
            assert found["bins"][k]["accuracy"] == pytest.approx(right[inside].mean())
        else:
            assert found["bins"][k]["accuracy"] is None
    assert found["ece"]["value"] == pytest.approx(gaps)
    assert found["ece"]["low"] <= gaps <= found["ece"]["high"]
    assert found["brier"]["value"] == pytest.approx(((p - gold) ** 2).sum(1).mean())
    assert found["nll"]["value"] == pytest.approx(-np.log(p[gold]).mean())
    assert found["confidence"] == pytest.approx(sure.mean())
    assert found["accuracy"]["value"] == right.mean()


def test_a_calibrated_model_shows_the_error_that_chance_alone_makes() -> None:
    values = [block(made(400, seed=k)) for k in range(12)]
    shown = np.mean([one["ece"]["value"] for one in values])
    assert shown == pytest.approx(np.mean([one["if_calibrated"] for one in values]), rel=0.15)


def test_the_interval_of_the_calibration_error_covers_a_real_one() -> None:
    rng = np.random.default_rng(3)
    heat = 2.5
    logits = rng.normal(0, 2, (200_000, 4))
    p, true = np.exp(logits), np.exp(logits / heat)
    p, true = p / p.sum(1, keepdims=True), true / true.sum(1, keepdims=True)
    off = p.max(1) - true[np.arange(len(p)), p.argmax(1)]
    place = (p.max(1) * 15).astype(int)
    truth = np.abs(np.bincount(place, off)).sum() / len(p)
    found = [block(made(300, seed=100 + k, heat=heat))["ece"] for k in range(100)]
    assert sum(one["low"] <= truth <= one["high"] for one in found) >= 89


def test_the_temperature_is_found_on_other_items() -> None:
    records, dev = made(1500, seed=5, heat=2.0), made(600, seed=6, heat=2.0, split="dev")
    halves, fitted = block(records)["temperature"], block(records, dev, "ceval dev")["temperature"]
    assert halves["fit"] == calibration.HALVES
    assert fitted["fit"] == "ceval dev"
    assert (len(halves["values"]), len(fitted["values"])) == (2, 1)
    for one in (halves, fitted):
        assert one["values"] == pytest.approx([2.0] * len(one["values"]), rel=0.15)
        assert one["ece"]["value"] < block(records)["ece"]["value"] / 2
        assert one["nll"]["value"] < block(records)["nll"]["value"]


def test_what_has_no_distribution_is_left_out_and_counted() -> None:
    records = made(20, seed=7)
    bounded = replace(records[0], id="ceval/val/law/90", bounded=["D"])
    string = replace(records[1], id="ceval/val/law/91", logits={}, logprobs={"A": -1, "AB$": -2.0})
    text = replace(records[2], id="ceval/val/law/92", logits={}, logprobs={}, text="A")
    blind = replace(records[3], id="ceval/val/law/93", answer=[], correct=None, score=None)
    found = block([*records, bounded, string, text, blind])
    assert found["n"] == 20
    assert found["left_out"] == {"bounded": 1, "strings": 1}
    assert found["ece"] == block(records)["ece"]
    assert bias.margins(distributions.of([*records, blind]))["n"] == 21
    assert block([text, bounded]) == {} == bias.block(distributions.of([blind]))


def test_numbers_do_not_depend_on_the_order_of_records() -> None:
    records = made(60, seed=8)
    one, other = (distributions.of(some) for some in (records, records[::-1]))
    assert calibration.block(one) == calibration.block(other)
    assert bias.block(one) == bias.block(other)


def test_letters_are_tested_as_stuart_and_maxwell_do() -> None:
    records = [
        scored(r.id, r.answer[0], r.logits | {"A": r.logits["A"] + 1.5}) for r in made(500, seed=9)
    ]
    found = bias.block(distributions.of(records))
    table = np.zeros((4, 4))
    for r in records:
        table["ABCD".index(r.prediction[0]), "ABCD".index(r.answer[0])] += 1
    expected = SquareTable(table, shift_zeros=False).homogeneity(method="stuart_maxwell")
    assert found["chi_square"] == pytest.approx(expected.statistic)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["degrees"] == 3
    assert found["labels"]["A"]["recall"] == pytest.approx(table[0, 0] / table[:, 0].sum())
    assert found["shuffled"] == pytest.approx(table.sum(1) @ table.sum(0) / 500**2)
    # a habit of A is taken off by the prior
    assert found["prior_corrected"]["value"] > found["accuracy"]["value"] + 0.02


def test_low_mass_and_margins() -> None:
    records = [
        scored("ceval/val/law/0", "A", {"A": 2.0, "B": 1.0}, choice_mass=0.4),
        scored("ceval/val/law/1", "A", {"A": 1.0, "B": 1.0}, choice_mass=0.5),
    ]
    assert bias.low_mass_rate(records) == 0.5
    assert bias.low_mass_rate([]) is None
    found = bias.margins(distributions.of(records))
    assert (found["n"], found["ties"]) == (2, 1)
    assert found["quantiles"]["0.5"] == pytest.approx(0.5)


# flips


def test_flips_divergence_and_margins_by_hand() -> None:
    def at(row: int, gold: str, **logits: float) -> Record:
        return scored(f"ceval/val/law/{row}", gold, logits)

    first = [
        at(0, "A", A=2, B=0),
        at(1, "A", A=2, B=0),
        at(2, "B", A=2, B=0),
        at(3, "B", A=1, B=0),
    ]
    second = [
        at(0, "A", A=1, B=0),
        at(1, "A", A=0, B=3),
        at(2, "B", A=0, B=1),
        at(3, "B", A=2, B=0),
    ]
    first.append(at(4, "C", A=2, B=0, C=1))
    second.append(at(4, "C", A=0, B=3, C=1))
    pairs = list(zip(first, second, strict=True))
    both = flips.both(pairs)
    assert list(flips.matrix(pairs).values()) == [1, 1, 1, 1, 1]
    found = flips.changes(pairs, both)
    assert [one.id[-1] for one in found] == ["1", "2", "0", "3", "4"]
    assert [one.margin for one in found] == pytest.approx([-5, 3, -1, -1, -1])
    alike = flips.likeness(pairs, both)
    assert alike.same.value == pytest.approx(2 / 5)
    total = 0.0
    for a, b in pairs:
        p, q = (np.array([math.exp(v) for v in r.logits.values()]) for r in (a, b))
        p, q = p / p.sum(), q / q.sum()
        total += (p * np.log(p / q)).sum()
    assert alike.divergence is not None
    assert alike.divergence.value == pytest.approx(total / 5)


def test_items_without_a_common_distribution_have_no_margin() -> None:
    one = made(3, seed=11)
    two = [replace(one[0], bounded=["A"]), replace(one[1], logits={}, logprobs={}), one[2]]
    pairs = list(zip(one, two, strict=True))
    both = flips.both(pairs)
    assert [c.margin for c in flips.changes(pairs, both)].count(None) == 2
    assert flips.likeness(pairs, both).left_out == 2


# the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        rng = np.random.default_rng(seed)
        some = [
            scored(r.id, r.answer[0], {k: v + rng.normal(0, 0.5) for k, v in r.logits.items()})
            for r in made(300, seed=20)
        ]
        write(out / name / "ceval-val-5shot-0", dict(ABOUT), some, model=name)
    write(out / "dev" / "d", {**ABOUT, "split": "dev"}, made(90, 21, 1, "dev"), model="a")
    return out


def spoken(*words: object) -> Any:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_several_runs_are_compared_with_the_first(runs: Path) -> None:
    tables = spoken("compare", *(runs / name for name in "abc"), "--json")
    titles = [table["title"] for table in tables]
    assert titles[0] == "b against a"
    assert titles.count("Flips") == 2
    first, second = (table for table in tables if "against" in table["title"])
    ps = [table["rows"][0]["p"]["value"] for table in (first, second)]
    adjusted = [table["rows"][0]["p (Holm)"]["value"] for table in (first, second)]
    assert min(adjusted) == pytest.approx(min(1, 2 * min(ps)))
    assert all(a >= p for a, p in zip(adjusted, ps, strict=True))


def test_scores_are_shown_with_and_without_excluded_items(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    items = "".join(f"  ceval/val/law/{k}: seen in training\n" for k in range(40))
    path.write_text(f"name: mine\ntitle: Mine\nsource: me\nitems:\n{items}", encoding="utf-8")
    table = spoken("compare", runs / "a", runs / "b", "--exclude", path, "--json")[0]
    sizes = [row["n"]["value"] for row in table["rows"] if "micro" in row["average"]]
    assert sizes == [300, 260]
    assert "without mine" in table["rows"][-1]["task"]


def test_calibration_of_runs_is_printed_and_refuses_a_fit_on_the_same_items(runs: Path) -> None:
    tables = spoken("calibration", runs / "a", "--fit", runs / "dev", "--json")
    assert [table["title"] for table in tables] == ["Calibration", "Reliability", "Letters"]
    assert any("fitted on ceval dev" in note for note in tables[0]["notes"])
    for run, fit, words in (("a", "a", "other items"), ("b", "dev", "same model")):
        found = CliRunner().invoke(app, ["calibration", str(runs / run), "--fit", str(runs / fit)])
        assert found.exit_code == 1
        assert words in str(found.exception or "") + found.output


def test_one_run_alone_is_not_compared(runs: Path) -> None:
    found = CliRunner().invoke(app, ["compare", str(runs / "a")])
    assert found.exit_code == 1


def test_a_difference_in_every_subject_has_holms_p(runs: Path) -> None:
    one, two = (comparison.runs(runs / name)[0] for name in "ab")
    (part,) = comparison.versus(one, two).subjects()
    assert (part.name, part.adjusted) == ("law", part.found.p)
