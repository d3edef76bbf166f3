"""Items scored again by the plain path in float32: what a narrow dtype or the engine changed."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from typing import Any

from ceval_suite.answer import Judge
from ceval_suite.asking import Call
from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Say
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared
from ceval_suite.records import RunFolder
from ceval_suite.schema import Estimate, Item
from ceval_suite.stats import wilson

SEED = 20261122


def check_again(
    runs: Sequence[tuple[Prepared, RunFolder]], count: int, spec: ModelSpec, say: Say
) -> None:
    """Score `count` finished items of each run again and note in run.json how many flip.

    The items are drawn without replacement with a fixed seed. Only the plain path in float32
    answers here: one row at a time, through the model as transformers writes it.
    """
    gc.collect()  # the model that was just used must not stand beside this one
    plain = spec.model_copy(update={"dtype": "float32", "engine": "plain", "memory": None})
    say("verifying by the plain path in float32")
    backend = open_backend(plain, say)
    for prepared, run in runs:
        # a sub-question depends on the answers before it, so that it is asked after those given
        done = [item for item in prepared.scored() if item.record_ids()[0] in run.done]
        draw = random.Random(SEED)  # noqa: S311 - a sample, not a secret
        chosen = draw.sample(done, min(count, len(done)))
        given = {item.id: _before(item, run) for item in chosen if item.part > 1}
        call = Call()
        judge = Judge(prepared.task, prepared.template)
        call.add(judge, render(prepared, chosen, backend, given), prepared.folder)
        flips: list[str] = []
        worst = 0.0
        for answer in call.answers(backend):
            turned: list[str] = []
            for again in answer.records:
                before = run.done[again.id]
                off = (abs(again.logprobs[k] - v) for k, v in before.logprobs.items())
                worst = max(worst, *off, 0.0)
                if again.prediction != before.prediction:
                    turned.append(again.id)
            flips += turned[:1]  # items are counted, whatever their number of sub-questions
        if not chosen:
            continue
        rate = wilson(len(flips), len(chosen))
        run.update({"verified": _about(rate, flips, worst)})
        say(
            f"{prepared.task.name}: {len(flips)} of {rate.n} predictions differ from the plain "
            f"path in float32 ({_percent(rate.value)}, 95 % interval {_percent(rate.low)} to "
            f"{_percent(rate.high)}), largest difference of a log-probability {worst:.2g}"
        )


def _before(item: Item, run: RunFolder) -> list[str]:
    stem = item.id.rpartition("#")[0]
    return ["".join(run.done[f"{stem}#{k}"].prediction) for k in range(item.part - 1)]


def _about(rate: Estimate, flips: list[str], worst: float) -> dict[str, Any]:
    return {
        "items": rate.n,
        "flips": sorted(flips),
        "rate": {"value": rate.value, "low": rate.low, "high": rate.high},
        "largest_difference": worst,
        "against": "plain path, float32",
        "seed": SEED,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
