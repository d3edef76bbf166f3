"""Calibration and letter bias of runs, from their records, as Tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ceval_suite import bias, comparison, distributions
from ceval_suite import calibration as confidence
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.report import table
from ceval_suite.schema import Cell, Table

Found = Sequence[tuple[Side, Mapping[str, Any], Mapping[str, Any]]]
"""Runs with their calibration and their letter bias, both empty where nothing was scored."""


def calibration(folders: Sequence[Path], fit: Path | None = None) -> list[Table]:
    """All tables of the runs in some folders; the temperature is fitted on the run in `fit`.

    Raises:
        RunError: no run, or `fit` is of another model or shares items with a run.
    """
    sides = [side for folder in folders for side in comparison.runs(folder)]
    if not sides:
        raise RunError(f"{folders[0]} holds no runs of a task; give a run folder.")
    judge = _judge(fit, sides) if fit is not None else None
    every = [(side, distributions.of(list(side.records.values()))) for side in sides]
    learned = distributions.of(list(judge.records.values())) if judge else None
    if judge and learned is not None and not learned.labelled().records:
        raise RunError(f"{judge.path} has no labelled items with scored letters to fit on.")
    name = _task(judge) if judge else ""
    found = [(side, confidence.block(one, learned, name), bias.block(one)) for side, one in every]
    if not any(one for _, one, _ in found):
        raise RunError(
            f"{sides[0].path} has no labelled items whose letters were scored by probability; "
            "calibration needs some."
        )
    return [overall(found), bins(found), letters(found)]


def _judge(fit: Path, sides: Sequence[Side]) -> Side:
    found = comparison.runs(fit)
    if len(found) != 1:
        raise RunError(f"--fit {fit} holds {len(found)} runs; give the folder of one.")
    (judge,) = found
    for side in sides:
        if side.model != judge.model:
            raise RunError(
                f"--fit {fit} is of model {judge.model} and {side.path} of {side.model}; give a "
                "run of the same model."
            )
        if side.records.keys() & judge.records.keys():
            raise RunError(
                f"--fit {fit} has items of {side.path}; a temperature is judged on other items "
                "than it was fitted on: give a run on another split."
            )
    return judge


def _task(side: Side) -> str:
    return f"{side.about.get('task')} {side.about.get('split')}"


def overall(found: Found) -> Table:
    """One row a run: errors before and after the temperature, accuracy as it is and corrected."""
    columns = ("model", "task", "n", "confidence", "accuracy", "ECE", "if calibrated", "Brier")
    columns += ("NLL", "temperature", "ECE after", "NLL after", "prior-corrected", "shuffled")
    columns += ("letters p", "left out")
    return Table(
        title="Calibration",
        columns=columns,
        rows=tuple(_overall(*one) for one in found),
        notes=tuple(_notes(found)),
        numeric=frozenset(range(2, len(columns))),
    )


def _share(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return table.missing()
    half = 100 * (found["high"] - found["low"]) / 2
    return Cell(text=f"{table.percent(found['value'])} ±{half:.1f}", value=found["value"])


def _overall(side: Side, one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[Cell, ...]:
    start = (table.text(side.model), table.text(_task(side)))
    if not one:
        return (*start, table.number(0), table.missing("(not scored)"), *[table.missing()] * 12)
    after = one.get("temperature")
    fitted = [table.missing("(one item)")] * 3
    if after:
        value = sum(after["values"]) / len(after["values"])
        fitted = [
            Cell(text=f"{value:.3f}", value=value),
            table.measured(after["ece"]),
            table.measured(after["nll"]),
        ]
    return (
        *start,
        table.number(one["n"]),
        Cell(text=table.percent(one["confidence"]), value=one["confidence"]),
        _share(one["accuracy"]),
        table.measured(one["ece"]),
        Cell(text=f"{one['if_calibrated']:.3f}", value=one["if_calibrated"]),
        table.measured(one["brier"]),
        table.measured(one["nll"]),
        *fitted,
        _share(two.get("prior_corrected")),
        Cell(text=table.percent(two["shuffled"]), value=two["shuffled"]),
        table.probability(two["p"]),
        table.number(sum(one["left_out"].values())),
    )


def _notes(found: Found) -> Iterable[str]:
    yield (
        f"ECE: expected calibration error of the likeliest letter in {confidence.BINS} bins of "
        "equal width; it is never below 0, and a perfectly calibrated model would show 'if "
        "calibrated' with so many items; ±: half of 95 % intervals over items or passages"
    )
    yield "Brier and NLL: over the item's letters; less is better"
    for fit in dict.fromkeys(
        one["temperature"]["fit"] for _, one, _ in found if "temperature" in one
    ):
        if fit == confidence.HALVES:
            yield (
                "temperature: each half of the items is judged with that of the other half (two-"
                "fold cross-fit by item); the mean of both is shown"
            )
        else:
            yield f"temperature: fitted on {fit}"
    yield (
        "prior-corrected: accuracy when each letter's probability is divided by its mean over the "
        "other half of the items (Batch Calibration, arXiv:2309.17249); shuffled: accuracy to "
        "expect of these predictions if gold letters were dealt out anew"
    )
    yield "letters p: is each letter predicted as often as it is gold? (Stuart-Maxwell test)"
    if any(sum(one["left_out"].values()) for _, one, _ in found if one):
        yield (
            "left out: items without a distribution over letters (a server returned only bounds, "
            "or sets of letters were scored)"
        )


def bins(found: Found) -> Table:
    """The reliability curve: one row for each run and bin that is not empty."""
    columns = ("model", "task", "from", "to", "n", "confidence", "accuracy", "gap")
    rows = tuple(
        (
            table.text(side.model),
            table.text(_task(side)),
            *(Cell(text=table.percent(one[end]), value=one[end]) for end in ("low", "high")),
            table.number(one["n"]),
            *(Cell(text=table.percent(one[k]), value=one[k]) for k in ("confidence", "accuracy")),
            Cell(
                text=table.points(one["accuracy"] - one["confidence"]),
                value=one["accuracy"] - one["confidence"],
            ),
        )
        for side, block, _ in found
        for one in block.get("bins", ())
        if one["n"]
    )
    return Table(
        title="Reliability",
        columns=columns,
        rows=rows,
        notes=("gap: accuracy less confidence, in points; below 0 the model is too sure",),
        numeric=frozenset(range(2, len(columns))),
    )


def letters(found: Found) -> Table:
    """One row for each run and letter: how often predicted, how often gold, how often found."""
    columns = ("model", "task", "letter", "predicted", "gold", "recall")
    rows = tuple(
        (
            table.text(side.model),
            table.text(_task(side)),
            table.text(letter),
            table.number(one["predicted"]),
            table.number(one["gold"]),
            table.missing("(never gold)")
            if one["recall"] is None
            else Cell(text=table.percent(one["recall"]), value=one["recall"]),
        )
        for side, _, block in found
        for letter, one in block.get("labels", {}).items()
    )
    return Table(
        title="Letters",
        columns=columns,
        rows=rows,
        notes=("predicted: the likeliest letter; recall: share of its gold items that were found",),
        numeric=frozenset(range(3, len(columns))),
    )
