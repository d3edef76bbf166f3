"""Workers against one process, and 64 sleeping ones: prints tables and decides no test.

`python tests/perf/workers.py two` and `python tests/perf/workers.py sleeping`; both use the code of
`run --workers`, the first with Ray on this machine, the second with threads that sleep.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ceval_suite import sweep
from ceval_suite.backends import units
from ceval_suite.backends.crew import Crew
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection
from ceval_suite.records import read_json
from ceval_suite.schema import Request
from ceval_suite.sweep import Staff
from tests.hands import ThreadHands, Told

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def two(
    model: Annotated[str, typer.Option(help="Registered name or path.")] = "smollm2-135m",
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = "mmlu",
    limit: Annotated[int, typer.Option(help="Items per subject.")] = 5,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Items of real tasks by one process, and by workers that have its cores between them."""
    specs = sweep.models([model], {"dtype": "float32"})
    data = os.environ.get("CEVAL_SUITE_DATA")
    chosen = [Selection(limit=limit, data=Path(data) if data else None)]
    print(f"{model}, {tasks}, {limit} items per subject, {os.cpu_count()} cores")
    print(f"{'':32} {'whole s':>8} {'scoring s':>10}")
    for name, staff in (("one process", None), (f"{workers} workers", Staff(workers))):
        with tempfile.TemporaryDirectory() as out:
            begun = time.perf_counter()
            folders = sweep.run(
                specs, tasks.split(","), chosen, Path(out), lambda _: None, staff=staff
            )
            took = time.perf_counter() - begun
            scoring = sum(read_json(f / "run.json")["seconds"]["scoring"] for f in folders)
            print(f"{name:32} {took:8.1f} {scoring:10.1f}", flush=True)


@dataclass
class Sleeper(Told):
    """A backend whose answers take the time that their ids say."""

    slept: list[float] = field(default_factory=list[float])

    def sleep(self, request: Request) -> None:
        """Take a request's time."""
        seconds = float(request.id.split("/")[1])
        time.sleep(seconds)
        self.slept.append(seconds)


@app.command()
def sleeping(workers: int = 64, each: int = 60, mean: float = 0.4) -> None:
    """Units of uneven length by threads that sleep: how busy a crew keeps its workers."""
    draw = random.Random(8)
    work = [draw.lognormvariate(0, 0.7) * (4 if k % 97 < 12 else 1) for k in range(workers * each)]
    scale = mean / (sum(work) / len(work))
    requests: list[Request] = []
    for number, seconds in enumerate(work):
        # what a unit seems to cost is right but for a factor of up to 1.5
        context = "x" * int(1000 * seconds * draw.uniform(1 / 1.5, 1.5))
        name = f"{number}/{seconds * scale:.4f}"
        requests.append(Request(id=name, context=context, continuations=("A",), unit=name))
    backend = Sleeper()
    backend.before = backend.sleep
    hands = ThreadHands(lambda *_: backend)
    with Crew(hands, workers, lambda _: {}, patience=600) as crew:
        found = crew.open(ModelSpec(path="sleeper"), lambda _: None)
        time.sleep(1)  # until all have opened it
        begun = time.perf_counter()
        count = len(list(found.ask(requests)))
        took = time.perf_counter() - begun
    assert count == len(requests)
    longest = max(work) * scale
    busy = sum(backend.slept) / (took * workers)
    print(
        f"{workers} workers, {count} units of {min(work) * scale:.2f} to {longest:.1f} s: "
        f"{took:.1f} s, {busy:.1%} busy ({len({u.unit for u in requests})} units, "
        f"{sum(map(units.cost, ([r] for r in requests))) / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    app()
