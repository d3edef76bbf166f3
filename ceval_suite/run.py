"""The conductor: catalog → data → prompt → backend → answer → records → summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite import __version__, metrics
from ceval_suite.answer import record as judge
from ceval_suite.backends import open_backend
from ceval_suite.backends.base import Backend, Say
from ceval_suite.backends.sources import identity, resolve
from ceval_suite.errors import RunError
from ceval_suite.prepare import Prepared
from ceval_suite.prompt import Prompt
from ceval_suite.records import RunFolder, read_json, safe_name, write_json
from ceval_suite.schema import Item, Record
from ceval_suite.specs import ModelSpec

COUNT_CHUNK = 2048


def render(prepared: Prepared, items: Sequence[Item], backend: Backend) -> list[Prompt]:
    """Prompts of the items, fitted into the backend's context by the benchmark's own rule.

    Raises:
        PromptError: one does not fit even without shots.
    """
    wrap = backend.wrap if prepared.chat else None
    renderers = {s: prepared.renderer(s, wrap) for s in prepared.subjects}
    prompts = [renderers[item.subject].render(item) for item in items]
    out: list[Prompt] = []

    def count(text: str) -> int:
        return backend.count_tokens([text], template_tokens=prepared.chat)[0]

    for start in range(0, len(prompts), COUNT_CHUNK):
        chunk = prompts[start : start + COUNT_CHUNK]
        texts = [p.text + p.lead for p in chunk]
        lengths = backend.count_tokens(texts, template_tokens=prepared.chat)
        for prompt, length in zip(chunk, lengths, strict=True):
            if length >= backend.max_length:
                fitted = renderers[prompt.item.subject]
                prompt = fitted.fit(prompt.item, count, backend.max_length)
            out.append(prompt)
    return out


@dataclass
class Watch:
    """What a person sees while a run goes on; every field may be replaced."""

    say: Say = lambda _: None
    start: Callable[[str, int, int], None] = lambda _name, _total, _done: None
    step: Callable[[Record], None] = lambda _: None
    stop: Callable[[], None] = lambda: None


def evaluate(
    model: str,
    spec: ModelSpec,
    tasks: Sequence[Prepared],
    out: Path,
    watch: Watch | None = None,
) -> list[Path]:
    """Score one model on the prepared tasks; finished records are reused, never repeated.

    The model is loaded only when something is left to score.

    Returns:
        The run folders, in the order of `tasks`.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    watch = watch or Watch()
    weights = identity(spec, resolve(spec))
    backend: Backend | None = None
    folders: list[Path] = []
    for prepared in tasks:
        folder = out / safe_name(model) / prepared.folder
        folders.append(folder)
        about = {"model": {"name": model, **spec.model_dump(exclude_defaults=True)}}
        about |= prepared.about() | {"ceval_suite": __version__}
        who = {"protocol_sha256": prepared.fingerprint, "model": model, **weights}
        # another model's folder is refused here, before anything heavy is loaded
        with RunFolder(folder, who, about) as run:
            left = _left(prepared, run)
            if not left and _summarized(folder):
                watch.say(f"{prepared.task.name}: reused {folder}")
                continue
            _say_not_scored(prepared, watch)
            if left:
                if backend is None:
                    watch.say(f"loading {model}")
                    backend = open_backend(spec, watch.say)
                _score(prepared, left, run, backend, watch)
            write_json(folder / "summary.json", summary(prepared, model, run))
    return folders


def _summarized(folder: Path) -> bool:
    path = folder / "summary.json"
    return path.is_file() and bool(read_json(path).get("complete"))


def _left(prepared: Prepared, run: RunFolder) -> list[Item]:
    items = prepared.scored()
    strays = set(run.done) - {item.id for item in items}
    if strays:
        raise RunError(f"{run.path}: item {min(strays)} does not belong to this run; delete it.")
    return [item for item in items if item.id not in run.done]


def _score(
    prepared: Prepared, left: Sequence[Item], run: RunFolder, backend: Backend, watch: Watch
) -> None:
    begun = time.perf_counter()
    _same_numerics(run, backend)
    prompts = render(prepared, left, backend)
    by_id = {prompt.item.id: prompt for prompt in prompts}
    _say_fitting(prepared, prompts, watch)
    letters = backend.audit([p.request() for p in prompts[:1]])
    engine = backend.describe()
    run.update({"engine": engine, "letters": letters})
    watch.start(prepared.task.name, len(run.done) + len(left), len(run.done))
    scoring = time.perf_counter()
    try:
        for reply in backend.ask([p.request() for p in prompts]):
            record = judge(by_id[reply.id], reply, prepared.template.match)
            run.append(record)
            watch.step(record)
    finally:
        watch.stop()
        spent = {"scoring": time.perf_counter() - scoring, "rest": scoring - begun}
        after = backend.describe()
        # the backend counts over all its runs, a resumed run over all its starts
        tokens = {
            k: n - engine.get("tokens", {}).get(k, 0) for k, n in after.get("tokens", {}).items()
        }
        run.update(
            {
                "engine": after,
                "tokens": _sum(run.about.get("tokens", {}), tokens),
                "seconds": _sum(run.about.get("seconds", {}), spent),
            }
        )


def _sum(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {key: before.get(key, 0) + value for key, value in now.items()}


def _same_numerics(run: RunFolder, backend: Backend) -> None:
    before = run.about.get("engine", {}).get("dtype")
    now = backend.describe().get("dtype")
    if run.done and before not in (None, now):
        raise RunError(
            f"{run.path} holds records computed in {before}, this run computes in {now}; give "
            f"--dtype {before} or another --out."
        )


def _say_fitting(prepared: Prepared, prompts: Sequence[Prompt], watch: Watch) -> None:
    full = {s: len(shots) for s, shots in prepared.shown.items()}
    fewer = sum(p.shots < full[p.item.subject] for p in prompts)
    if fewer:
        watch.say(
            f"{prepared.task.name}: {fewer} of {len(prompts)} prompts show fewer shots to fit the "
            "context (whole shots only; the count of each is in summary.json)"
        )


def _say_not_scored(prepared: Prepared, watch: Watch) -> None:
    if prepared.not_scored:
        total = sum(n for kinds in prepared.not_scored.values() for n in kinds.values())
        watch.say(
            f"{prepared.task.name}: {total} items are not scored by this method "
            f"({describe_not_scored(prepared.not_scored)})"
        )


def describe_not_scored(not_scored: dict[str, dict[str, int]]) -> str:
    """`subject 64 multi, …` for people."""
    return ", ".join(
        f"{subject} {n} {kind}"
        for subject, kinds in not_scored.items()
        for kind, n in kinds.items()
    )


def summary(prepared: Prepared, model: str, run: RunFolder) -> dict[str, Any]:
    """The content of summary.json, from the records alone and the prepared task."""
    items = prepared.scored()
    expected = Counter(item.subject for item in items)
    ordered = [run.done[item.id] for item in items if item.id in run.done]
    found = metrics.summarize(prepared.task, ordered, expected)
    chosen = prepared.about()
    return {
        "task": prepared.task.name,
        "model": model,
        "protocol": prepared.protocol,
        "split": prepared.split,
        "shots": prepared.shots,
        "limit": prepared.limit,
        "chat": prepared.chat,
        "protocol_sha256": prepared.fingerprint,
        "complete": len(ordered) == len(items),
        **found,
        "subjects_chosen": chosen["subjects"],
        "subjects_scored": len(expected),
        "subjects_total": len(prepared.task.subjects),
        "fewer_shots": sum(r.shots < len(prepared.shown[r.subject]) for r in ordered),
        "not_scored": prepared.not_scored,
        "tokens": run.about.get("tokens", {}),
        "seconds": run.about.get("seconds", {}),
        "engine": run.about.get("engine", {}).get("path", {}),
    }
