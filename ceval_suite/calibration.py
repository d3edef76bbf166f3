"""How far a model's confidence can be trusted: calibration error, Brier score, temperature.

All from records. Confidence is the probability of the likeliest letter among the item's letters,
and an item is right when that letter is (which is the prediction, unless a protocol decides by
something else than probability).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ceval_suite import distributions
from ceval_suite.bootstrap import SEED
from ceval_suite.distributions import Distributions, Floats
from ceval_suite.schema import Estimate

BINS = 15
"""Of equal width, as in Guo et al. 2017 (arXiv:1706.04599)."""

DRAWS = 500
"""Resamples of the interval of the calibration error."""

HALVES = "two halves"
"""Where no other run is given: each half of the items is judged by the temperature of the other."""


def block(every: Distributions, fit: Distributions | None = None, name: str = "") -> dict[str, Any]:
    """Calibration over the labelled records that have a distribution; {} where none has.

    `ece` is the expected calibration error. It is never below 0 and so too large on average in few
    items; `if_calibrated` is what a perfectly calibrated model of these confidences would show.
    `nll` and `brier` are means of the negative log-probability of the gold letter and of the
    squared distance from it; several right letters count as one outcome. `temperature` is fitted
    on other records than those it is judged on: on `fit`, named `name`, or on halves.
    """
    found = every.labelled()
    if not found.records:
        return {}
    confidence = np.exp(found.logs).max(1)
    out: dict[str, Any] = {
        "n": len(found.records),
        "left_out": dict(every.left_out),
        "confidence": float(confidence.mean()),
        "accuracy": asdict(found.share(found.right)),
        **_scores(found),
        "bins": _bins(confidence, found.right),
    }
    temperature = _temperature(found, fit and fit.labelled(), name)
    return out | ({"temperature": temperature} if temperature else {})


def _scores(found: Distributions) -> dict[str, Any]:
    confidence = np.exp(found.logs).max(1)
    floor = _place(confidence)
    variance = np.bincount(floor, confidence * (1 - confidence), BINS)
    return {
        "ece": asdict(_ece(found)),
        "if_calibrated": float(np.sqrt(2 / np.pi * variance).sum() / len(confidence)),
        "brier": _told(found.mean(_brier(found))),
        "nll": _told(found.mean(_nll(found.logs, found.gold))),
    }


def _told(found: Estimate) -> dict[str, Any]:
    """As a mapping; of a single cluster there is no interval, and `low` and `high` are null."""
    return {k: v if np.isfinite(v) else None for k, v in asdict(found).items()}


def _place(confidence: Floats) -> NDArray[np.int64]:
    """The bin of each confidence; a border belongs to the bin above it, and 1 to the last."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _nll(logs: Floats, gold: NDArray[np.bool_]) -> Floats:
    return -np.log(np.maximum(np.where(gold, np.exp(logs), 0.0).sum(1), np.finfo(float).tiny))


def _brier(found: Distributions) -> Floats:
    p = np.exp(found.logs)
    wrong = np.where(found.gold, 0.0, p)
    return (wrong**2).sum(1) + (1 - np.where(found.gold, p, 0.0).sum(1)) ** 2


def _bins(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The reliability curve; an empty bin has neither confidence nor accuracy."""
    place = _place(confidence)
    count = np.bincount(place, minlength=BINS)
    sure = np.bincount(place, confidence, BINS)
    good = np.bincount(place, right.astype(np.float64), BINS)
    return [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "n": n,
            "confidence": float(sure[k] / n) if n else None,
            "accuracy": float(good[k] / n) if n else None,
        }
        for k, n in enumerate(count.tolist())
    ]


def _gaps(place: NDArray[np.int64], over: Floats) -> float:
    """Σ over bins of |Σ confidence − accuracy|, in items."""
    return float(np.abs(np.bincount(place, over, BINS)).sum())


def _ece(found: Distributions) -> Estimate:
    """The calibration error with a basic bootstrap interval over clusters.

    A resample adds to the error what the sample itself added; turning the resamples round at the
    value takes this off both ends.
    """
    confidence = np.exp(found.logs).max(1)
    place, over = _place(confidence), confidence - found.right
    n = len(over)
    value = _gaps(place, over) / n
    names = {name: k for k, name in enumerate(dict.fromkeys(found.clusters))}
    index = np.array([names[name] for name in found.clusters])
    draw = np.random.default_rng(SEED)
    errors = np.empty(DRAWS)
    step = max(1, 2**21 // n)  # resamples held at once
    for at in range(0, DRAWS, step):
        some = min(step, DRAWS - at)
        shift = len(names) * np.arange(some)[:, None]
        drawn = draw.integers(len(names), size=(some, len(names))) + shift
        often = np.bincount(drawn.ravel(), minlength=some * len(names)).reshape(some, -1)[:, index]
        bins = (place + BINS * np.arange(some)[:, None]).ravel()
        gaps = np.bincount(bins, (often * over).ravel(), some * BINS).reshape(some, BINS)
        errors[at : at + some] = np.abs(gaps).sum(1) / often.sum(1)
    low, high = (2 * value - np.quantile(errors, [0.975, 0.025])).tolist()
    error = float(errors.std(ddof=1)) if len(names) > 1 else 0.0
    low, high = max(0.0, min(low, value)), min(1.0, max(high, value))
    return Estimate(value=value, n=n, stderr=error, low=low, high=high)


def _temperature(found: Distributions, fit: Distributions | None, name: str) -> dict[str, Any]:
    """The scores after the logits are divided by a temperature that minimises `nll` elsewhere."""
    if fit is not None and fit.records:
        values = [temperature(fit)]
        logs = distributions.normalised(found.logs / values[0])
    else:
        half = distributions.halves(found, SEED)
        if half is None:
            return {}
        values = [temperature(found.chosen(rows)) for rows in (~half, half)]
        by_row = np.where(half, *values)[:, None]
        logs = distributions.normalised(found.logs / by_row)
    return {"fit": name or HALVES, "values": values, **_scores(replace(found, logs=logs))}


def temperature(found: Distributions) -> float:
    """What to divide logits by so that gold letters are as likely as can be, from 1/20 to 20."""
    from scipy.optimize import minimize_scalar  # a second of imports that most reports do without

    def loss(log: float) -> float:
        logs = distributions.normalised(found.logs / np.exp(log))
        return float(_nll(logs, found.gold).mean())

    end = float(np.log(20))
    best: Any = minimize_scalar(loss, bounds=(-end, end), method="bounded")
    return float(np.exp(best.x))
