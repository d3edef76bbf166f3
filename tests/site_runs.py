"""Runs of made-up models over real prepared tasks, with the prompts' own hashes, for sites."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any

from ceval_suite.prepare import Prepared
from ceval_suite.prompt import Renderer
from ceval_suite.records import RunFolder, safe_name, write_json
from ceval_suite.schema import Item, Record
from ceval_suite.summary import of_run


def drawn(item: Item, id: str, rng: random.Random, skill: float, shared: random.Random) -> Record:
    """A record as a model of this skill might leave it; items are hard or easy for all models."""
    k = int(id.partition("#")[2] or 0)
    gold = [item.answer[k]] if item.kind == "blanks" and item.answer else list(item.answer)
    ease = shared.gauss(0, 1.2)
    raw = {label: rng.gauss(0, 1.0) for label in item.labels}
    for label in gold:
        if label in raw:
            raw[label] += skill + ease
    total = math.log(sum(math.exp(v) for v in raw.values()) + 0.2) if raw else 0.0
    logprobs = {label: round(value - total, 6) for label, value in raw.items()}
    prediction: list[str] = []
    if raw and rng.random() > 0.01:
        best = sorted(raw, key=lambda label: -raw[label])
        prediction = sorted(best[: max(1, len(gold))] if item.kind == "multi" else best[:1])
    correct = (prediction == gold) if gold else None
    return Record(
        id=id,
        subject=item.subject,
        answer=gold,
        prediction=prediction,
        correct=correct,
        score=None if correct is None else float(correct),
        logits={},
        logprobs=logprobs,
        choice_mass=math.exp(-0.2) if raw else None,
        tie=False,
        text=None if item.labels else "I would say 42.",
        shots=0,
        prompt_tokens=100,
        prompt_sha256="",
    )


def scripted(
    prepared: Prepared, out: Path, model: str, skill: float, seed: int = 0, **about: Any
) -> Path:
    """A finished run folder of a made-up model, its prompts' hashes those of the real prompts."""
    rng = random.Random(f"{model}{seed}")
    folder = out / safe_name(model) / prepared.folder
    facts = prepared.about() | {"model": {"name": model, "path": f"org/{model}"}, **about}
    who = {
        "protocol_sha256": prepared.fingerprint,
        "model": model,
        "tokenizer_sha256": hashlib.sha256(model[:4].encode()).hexdigest(),
    }
    renderers: dict[str, Renderer] = {s: prepared.renderer(s) for s in prepared.subjects}
    lines: list[Record] = []
    for item in prepared.scored():
        prompt = renderers[item.subject].render(item)
        asked = {"prompt_sha256": prompt.sha256, "shots": prompt.shots}
        asked["prompt_tokens"] = len(prompt.text) // 3
        for id in item.record_ids():
            one = drawn(item, id, rng, skill, random.Random(id))
            lines.append(Record(**{f: getattr(one, f) for f in one.__slots__} | asked))
    with RunFolder(folder, who, facts) as run:
        run.update({"engine": {"dtype": "float32", "architecture": "LlamaForCausalLM"}})
        for record in lines:
            run.append(record)
        write_json(folder / "summary.json", of_run(run.about, run.identity, run.done.values()))
    return folder
