"""What a model does to letters whatever the question: habits, and how close its choices are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import chdtrc

from ceval_suite import distributions
from ceval_suite.bootstrap import SEED
from ceval_suite.distributions import Distributions, Floats
from ceval_suite.schema import Record

LOW_MASS = 0.5
"""Below this probability of all letters together, the model would rather say something else."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def block(every: Distributions) -> dict[str, Any]:
    """Letter bias over the labelled records that have a distribution; {} where none has.

    `labels` has for each letter how often it was the likeliest one and how often the gold one, and
    the share of its gold items that were found. `chi_square` and `p` test whether a letter is
    predicted as often as it is gold, on the same items: Stuart's (1955) and Maxwell's (1970) test,
    here over clusters. `prior_corrected` is the accuracy when each letter's probability is divided
    by its mean over the other half of the items with these letters (Batch Calibration, Zhou et al.
    2024, arXiv:2309.17249). `shuffled` is the accuracy to expect of these predictions were the gold
    letters dealt out anew among items with the same letters.
    """
    found = every.labelled()
    if not found.records:
        return {}
    top = _top(found.logs)
    square, degrees = _marginal(found, top)
    out: dict[str, Any] = {
        "n": len(found.records),
        "left_out": dict(every.left_out),
        "labels": _letters(found, top),
        "chi_square": square,
        "degrees": degrees,
        "p": float(chdtrc(degrees, square)) if degrees else 1.0,
        "accuracy": asdict(found.share(found.right)),
        "shuffled": _shuffled(found, top),
    }
    half = distributions.halves(found, SEED)
    if half is not None:
        logs = distributions.crossed(found, half, _corrected)
        hits = (found.gold & _top(logs)).sum(1).astype(np.float64)
        out["prior_corrected"] = asdict(found.share(hits))
    return out


def _top(logs: Floats) -> distributions.Flags:
    marks = np.zeros(logs.shape, np.bool_)
    marks[np.arange(len(logs)), logs.argmax(1)] = True
    return marks


def _letters(found: Distributions, top: distributions.Flags) -> dict[str, Any]:
    predicted, gold = top.sum(0).tolist(), found.gold.sum(0).tolist()
    both = (top & found.gold).sum(0).tolist()
    return {
        letter: {
            "predicted": predicted[k],
            "gold": gold[k],
            "recall": both[k] / gold[k] if gold[k] else None,
        }
        for k, letter in enumerate(found.letters)
    }


def _marginal(found: Distributions, top: distributions.Flags) -> tuple[float, int]:
    """The statistic of marginal homogeneity and its degrees of freedom.

    Where several letters are right the gold one counts in parts.
    """
    gold = found.gold / found.gold.sum(1, keepdims=True)
    off = top - gold
    names = {name: k for k, name in enumerate(dict.fromkeys(found.clusters))}
    sums = np.zeros((len(names), off.shape[1]))
    np.add.at(sums, [names[name] for name in found.clusters], off)
    total, spread = sums.sum(0), sums.T @ sums
    degrees = int(np.linalg.matrix_rank(spread))
    return float(total @ np.linalg.pinv(spread, hermitian=True) @ total), degrees


def _shuffled(found: Distributions, top: distributions.Flags) -> float:
    kinds, right = found.kinds(), 0.0
    for kind in np.unique(kinds):
        rows = kinds == kind
        right += float(top[rows].sum(0) @ found.gold[rows].sum(0)) / int(rows.sum())
    return right / len(kinds)


def _corrected(found: Distributions, other: Distributions) -> Floats:
    """Log-probabilities less the log of each letter's mean probability in other items.

    Letters that no other item has are left as they are.
    """
    out = found.logs.copy()
    for row in np.unique(found.there, axis=0):
        mine = (found.there == row).all(1)
        theirs = (other.there == row).all(1)
        if theirs.any():
            with np.errstate(divide="ignore"):
                prior = np.log(np.exp(other.logs[theirs]).mean(0))
            out[np.ix_(mine, row)] -= prior[row]
    return out


def margins(found: Distributions) -> dict[str, Any]:
    """How far the likeliest letter is ahead of the second, in nats; {} where none was scored.

    Over all records that have a distribution, with or without a gold label; `ties` of them have
    two likeliest letters.
    """
    found = found.chosen(found.there.sum(1) > 1)
    if not found.records:
        return {}
    ahead = margin(found)
    values = np.quantile(ahead, QUANTILES).tolist()
    return {
        "n": len(found.records),
        "mean": float(ahead.mean()),
        "quantiles": {str(q): value for q, value in zip(QUANTILES, values, strict=True)},
        "ties": int((ahead == 0).sum()),
    }


def margin(found: Distributions) -> Floats:
    """The log-probability of the likeliest letter less that of the second, for each row."""
    two = np.sort(found.logs, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def low_mass_rate(records: Sequence[Record]) -> float | None:
    """The share of scored records whose letters together are unlikely; None: none was scored."""
    masses = [r.choice_mass for r in records if r.choice_mass is not None]
    return sum(mass < LOW_MASS for mass in masses) / len(masses) if masses else None
