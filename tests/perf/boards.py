"""A board of many models from summaries alone: seconds and memory, printed, never asserted.

`python tests/perf/boards.py --models 1000` writes synthetic summaries of the five benchmarks in
their published sizes into a folder and times `ceval-suite board` on it, whole process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ceval_suite import catalog, metrics, outcomes, stats
from ceval_suite.schema import Record

TASKS = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")


def records(name: str) -> list[Record]:
    """One run's records, right or wrong at random, with their sub-questions."""
    draw = random.Random(name)
    task = catalog.load_task(name)
    out: list[Record] = []
    for subject, row in task.subjects.items():
        n = row.counts.get(task.split, 0)
        per = max(1, round((row.sub_questions or n) / n)) if n else 1
        for at in range(n):
            for k in range(per):
                right = draw.random() < 0.6
                part = f"#{k}" if per > 1 else ""
                out.append(
                    Record(
                        id=f"{name}/{task.split}/{subject}/{at}{part}",
                        subject=subject,
                        answer=["A"],
                        prediction=["A" if right else "B"],
                        correct=right,
                        score=float(right),
                        logits={},
                        logprobs=dict.fromkeys("ABCD", -1.0),
                        choice_mass=0.9,
                        tie=False,
                        text=None,
                        shots=5,
                        prompt_tokens=700,
                        prompt_sha256="",
                    )
                )
    return out


def summary(base: dict[str, Any], codes: np.ndarray, model: str) -> dict[str, Any]:
    """The summary of a model that answered so: what the board reads is recomputed."""
    one = json.loads(json.dumps(base))
    at = 0
    shares = []
    for subject, n in one["outcomes"]["subjects"].items():
        right = int(codes[at : at + n].sum())
        at += n
        found = stats.wilson(right, n)
        shares.append(found)
        one["subjects"][subject] = asdict(found)
    micro = asdict(stats.wilson(int(codes.sum()), len(codes)))
    macro = asdict(stats.weighted(shares, [1.0] * len(shares)))
    for headline in one["metrics"]:
        one["metrics"][headline] = macro if headline == "acc/macro" else micro
    one["outcomes"]["codes"] = outcomes._pack(codes.tobytes())
    return one | {"model": model}


def write(folder: Path, models: int) -> None:
    """Summaries of all models on all tasks, each in its run folder."""
    rng = np.random.default_rng(1)
    skills = rng.normal(0.5, 0.8, models)
    for name in TASKS:
        task = catalog.load_task(name)
        some = records(name)
        expected = dict.fromkeys({r.subject for r in some}, 0)
        base: dict[str, Any] = {
            "task": name,
            "protocol": task.protocol,
            "split": task.split,
            "shots": 0 if name == "gaokao" else task.shots,
            "limit": None,
            "chat": False,
            "same_shots": [],
            "protocol_sha256": f"{TASKS.index(name):064d}",
            "date": "2026-11-28",
            "complete": True,
            **metrics.summarize(task, some, expected),
            "subjects_chosen": None,
            "subjects_scored": len(task.subjects),
            "subjects_total": len(task.subjects),
            "fewer_shots": 0,
            "not_scored": {},
            "tokens": {"total": 1, "computed": 1, "written": 0},
            "seconds": {"scoring": 1.0, "rest": 1.0},
            "engine": {},
        }
        hard = rng.normal(size=len(some))
        for at, skill in enumerate(skills):
            codes = (rng.random(len(some)) < 1 / (1 + np.exp(hard - skill))).astype("u1")
            run = folder / f"model-{at:04d}" / f"{name}-{task.split}-0"
            run.mkdir(parents=True)
            text = json.dumps(summary(base, codes, f"model-{at:04d}"), ensure_ascii=False, indent=1)
            (run / "summary.json").write_text(text, encoding="utf-8")
            (run / "run.json").write_text("{}", encoding="utf-8")


def main(
    models: Annotated[int, typer.Option(help="How many models.")] = 1000,
    runs: Annotated[Path | None, typer.Option(help="Where the summaries are, or go.")] = None,
    board: Annotated[str, typer.Option(help="The board to print.")] = "all",
) -> None:
    """Time the board on the command line."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = runs or Path(scratch) / "runs"
        if not folder.is_dir():
            write(folder, models)
        size = sum(p.stat().st_size for p in folder.rglob("summary.json"))
        print(f"{models} models × {len(TASKS)} benchmarks, {size / 2**20:.0f} MiB of summaries\n")
        # an installed package has its byte code
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        print("| command | wall s | CPU s | peak GiB |\n|---|--:|--:|--:|")
        for what in ([board, "--runs", str(folder)], ["--runs", str(folder)]):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begun = time.perf_counter()
            command = [sys.executable, "-m", "ceval_suite", "board", *what, "--format", "csv"]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env)
            wall = time.perf_counter() - begun
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            assert out.stdout.count(b"\n") > models
            name = "board " + (what[0] if what[0] == board else "--runs")
            print(f"| {name} | {wall:.1f} | {cpu:.1f} | {after.ru_maxrss / 2**20:.2f} |")


if __name__ == "__main__":
    typer.run(main)
