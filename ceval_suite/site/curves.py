"""Training jobs in a site: the checkpoints of each job on each protocol."""

from __future__ import annotations

from typing import Any

from ceval_suite.curves import Curve, of
from ceval_suite.report import board
from ceval_suite.site.collect import Collected


def content(found: Collected) -> list[dict[str, Any]]:
    """What the page draws: one chart a protocol, one line a job, points [step, value, …]."""
    runs = [
        (run.summary, run.path)
        for column in found.columns
        for run in column.runs.values()
        if run.summary.get("complete")
    ]
    charts: dict[str, list[Curve]] = {}
    for curve in of(runs):
        charts.setdefault(str(curve.summary["protocol_sha256"]), []).append(curve)
    return [_chart(some) for some in charts.values()]


def _chart(some: list[Curve]) -> dict[str, Any]:
    return {
        "title": board.label(some[0].summary),
        "average": some[0].headline,
        "series": [
            {
                "name": curve.series,
                "points": [
                    [point.step, one.value, one.low, one.high, one.n]
                    for point in curve.points
                    if (one := point.averages.get(curve.headline)) is not None
                ],
            }
            for curve in some
        ],
    }
