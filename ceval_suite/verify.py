"""Items scored again by the plain path in float32: what a narrow dtype or the engine changed."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from typing import Any

from ceval_suite.answer import record as judge
from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Say
from ceval_suite.fitting import render
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Prepared
from ceval_suite.records import RunFolder
from ceval_suite.schema import Estimate
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
        done = [item for item in prepared.scored() if item.id in run.done]
        draw = random.Random(SEED)  # noqa: S311 - a sample, not a secret
        chosen = draw.sample(done, min(count, len(done)))
        prompts = {prompt.item.id: prompt for prompt in render(prepared, chosen, backend)}
        flips: list[str] = []
        worst = 0.0
        for reply in backend.ask([prompt.request() for prompt in prompts.values()]):
            again = judge(prompts[reply.id], reply, prepared.template.match)
            before = run.done[reply.id]
            worst = max(worst, *(abs(again.logprobs[k] - v) for k, v in before.logprobs.items()))
            if again.prediction != before.prediction:
                flips.append(reply.id)
        if not chosen:
            continue
        rate = wilson(len(flips), len(chosen))
        run.update({"verified": _about(rate, flips, worst)})
        say(
            f"{prepared.task.name}: {len(flips)} of {rate.n} predictions differ from the plain "
            f"path in float32 ({_percent(rate.value)}, 95 % interval {_percent(rate.low)} to "
            f"{_percent(rate.high)}), largest difference of a log-probability {worst:.2g}"
        )


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
