"""Tables about what there is: tasks, prompts, models, versions, data."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ceval_suite import __version__, catalog
from ceval_suite import boards as definitions
from ceval_suite.data import Reader
from ceval_suite.errors import UserError
from ceval_suite.files import data_roots, find_files
from ceval_suite.issues import KINDS, NORMALISATION, Issue
from ceval_suite.report import table
from ceval_suite.schema import Cell, Item, Table
from ceval_suite.specs import Task

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "datasets",
    "lm-eval",
    "pandas",
    "scipy",
    "gguf",
)

OPTIONAL = {
    "peft": "lora",
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "optimum-quanto": "quanto",
    "hqq": "hqq",
    "compressed-tensors": "compressed-tensors",
    "gptqmodel": "gptq",
    "vllm": "vllm",
}
"""Packages that some kinds of checkpoint need, and the extra that brings each."""


def tasks() -> Table:
    """All tasks."""
    rows: list[tuple[Cell, ...]] = []
    for name in catalog.task_names():
        task = catalog.load_task(name)
        rows.append(
            (
                table.text(name),
                table.text(task.title),
                table.text(task.language),
                table.number(len(task.subjects)),
                table.text(task.split),
                table.number(task.counts.get(task.split, 0)),
                table.number(task.shots),
                table.text(task.average),
                table.text(", ".join(catalog.load_prompts(task.prompt))),
            )
        )
    heads = (
        "task",
        "title",
        "language",
        "subjects",
        "split",
        "items",
        "shots",
        "average",
        "protocols",
    )
    return Table(title="Tasks", columns=heads, rows=tuple(rows), numeric=frozenset({3, 5, 6}))


def prompts() -> Table:
    """All protocols of all prompts files."""
    rows = [
        (
            table.text(name),
            table.text(protocol),
            table.text(", ".join(f"{kind}: {how}" for kind, how in found.methods.items())),
            table.text(found.source),
        )
        for name in sorted(catalog.yaml_files("prompts"))
        for protocol, found in catalog.load_prompts(name).items()
    ]
    return Table(
        title="Prompts", columns=("file", "protocol", "methods", "source"), rows=tuple(rows)
    )


def models() -> Table:
    """All registered models."""
    rows = [
        (table.text(name), table.text(spec.backend), table.text(spec.path), table.text(spec.note))
        for name, spec in catalog.model_specs().items()
    ]
    return Table(title="Models", columns=("model", "backend", "path", "note"), rows=tuple(rows))


def boards() -> Table:
    """Board definitions on the search path."""
    rows = [
        (table.text(name), table.text(board.title), table.text(str(definitions.place(name))))
        for name, board in ((name, definitions.load(name)) for name in definitions.names())
    ]
    return Table(title="Boards", columns=("board", "title", "file"), rows=tuple(rows))


def _version(package: str, remedy: str = "") -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed{remedy}"


def doctor(data: str | Path | None) -> Table:
    """Versions, devices, memory and where each task's data was found."""
    import torch

    rows: list[tuple[Cell, ...]] = [
        (table.text("ceval-suite"), table.text(__version__)),
        (table.text("python"), table.text(platform.python_version())),
        *((table.text(p), table.text(_version(p))) for p in PACKAGES),
        *(
            (table.text(p), table.text(_version(p, f" (pip install 'ceval-suite[{extra}]')")))
            for p, extra in OPTIONAL.items()
        ),
    ]
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join([f"cpu ({torch.get_num_threads()} threads)", *cuda])
    rows.append((table.text("devices"), table.text(devices)))
    cache = data_roots()[-1]
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    rows.append((table.text("cache"), table.text(f"{cache} ({table.gibibytes(free)} free)")))
    for name in catalog.task_names():
        try:
            place = str(find_files(catalog.load_task(name), data).place)
        except UserError:
            place = f"not found; run 'ceval-suite data fetch {name}'"
        rows.append((table.text(f"data: {name}"), table.text(place)))
    return Table(title="Doctor", columns=("what", "found"), rows=tuple(rows))


def verify(names: list[str], data: str | Path | None) -> tuple[Table, list[str]]:
    """Counts of every task and split beside the published ones, and what is wrong, in sentences."""
    rows: list[tuple[Cell, ...]] = []
    wrong: list[str] = []
    for name in names:
        task = catalog.load_task(name)
        try:
            files = find_files(task, data)
        except UserError as error:
            wrong.append(str(error))
            rows.append((table.text(name), *[table.missing()] * 7, table.text("not found")))
            continue
        for split in task.source.files:
            cells, problems = _split(task, Reader(task, files), split)
            rows.append(cells)
            wrong += problems
    return Table(
        title="Benchmark data",
        columns=(
            "task",
            "split",
            "subjects",
            "items",
            "published",
            "sub-questions",
            "points",
            "no label",
            "verdict",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(2, 8)),
    ), wrong


def _split(task: Task, reader: Reader, split: str) -> tuple[tuple[Cell, ...], list[str]]:
    problems: list[str] = []
    items: list[Item] = []
    subjects = 0
    for subject in task.subjects:
        try:
            items += reader.items(subject, split)
            subjects += 1
        except UserError as error:
            problems.append(str(error))
    blanks = sum(len(item.record_ids()) for item in items)
    points = sum(item.points * len(item.record_ids()) for item in items)
    expected = task.counts.get(split)
    main = split == task.split
    for what, found, published in (
        ("items", len(items), expected),
        ("sub-questions", blanks, task.sub_questions if main else None),
        ("points", points, task.points if main else None),
    ):
        if published is not None and found != published and not problems:
            problems.append(f"task '{task.name}', {split}: {found} {what}, published {published}.")
    unlabelled = sum(not item.answer for item in items)
    verdict = "ok" if not problems else f"{len(problems)} problems"
    cells = (
        table.text(task.name),
        table.text(split),
        table.number(subjects),
        table.number(len(items)),
        table.number(expected) if expected is not None else table.missing(),
        table.number(blanks),
        table.number(points) if task.points else table.missing(),
        table.number(unlabelled),
        table.text(verdict if split not in task.unlabelled else f"{verdict}, labels withheld"),
    )
    return cells, problems


def issues(found: Mapping[str, Sequence[Issue]], *, every: bool = False) -> Table:
    """How many items of each split have which issue; or every item with what it has."""
    if every:
        rows = [
            (table.text(one.item), table.text(one.kind), table.text(one.detail))
            for some in found.values()
            for one in some
        ]
        return Table(title="Issues", columns=("item", "issue", "detail"), rows=tuple(rows))
    counts = Counter(
        (name, one.item.split("/")[1], one.kind) for name, some in found.items() for one in some
    )
    return Table(
        title="Issues",
        columns=("task", "split", "issue", "items", "what it means"),
        rows=tuple(
            (
                *(table.text(part) for part in key),
                table.number(n),
                table.text(KINDS[key[2]]),
            )
            for key, n in counts.items()
        ),
        notes=(f"questions are compared after {NORMALISATION}",),
        numeric=frozenset({3}),
    )
