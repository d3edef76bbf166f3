"""Files that lm-evaluation-harness has written: read, checked, and cut up by our tasks.

Written by 0.4.0 to 0.4.13 and after: rows may lack `name` and `sample_len`, hold "N/A" or blanks;
`n-samples`, `higher_is_better` and `task_hashes` are newer than the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ceval_suite import harness_names
from ceval_suite.errors import RunError
from ceval_suite.harness_names import Meant
from ceval_suite.untrusted import from_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Everything in one results file about one task of ours under one wording and split.

    `tasks` maps a subject to its row in the file and `names` to lm-eval's name for it; `group` is
    the row of the whole group, empty where there is none. `samples` has a subject's rows, by
    `doc_id`, where a samples file was found.
    """

    path: Path
    meant: Meant
    content: Mapping[str, Any]
    names: dict[str, str] = field(default_factory=dict[str, str])
    tasks: dict[str, Row] = field(default_factory=dict[str, Row])
    samples: dict[str, list[Row]] = field(default_factory=dict[str, "list[Row]"])
    groups: dict[str, Row] = field(default_factory=dict[str, Row])

    @property
    def model(self) -> str:
        """The model's name, as the file gives it."""
        config = _mapping(self.content.get("config"))
        name = self.content.get("model_name") or _pretrained(config.get("model_args"))
        return str(name or config.get("model") or "model")

    @property
    def limit(self) -> Any:
        """Items of each task that were asked, or their share; None for all."""
        asked = _mapping(self.content.get("config")).get("limit")
        return asked if asked is not None else self._ours("limit")

    def _ours(self, key: str) -> Any:
        """What a task that 'export --as lm-eval-tasks' wrote says: its prompts hold the shots."""
        configs = _mapping(self.content.get("configs"))
        for name in self.names.values():
            if name.startswith(harness_names.PREFIX):
                return _mapping(_mapping(configs.get(name)).get("metadata")).get(key)
        return None

    def shots(self) -> int:
        """Shots of all subjects.

        Raises:
            RunError: they differ.
        """
        ours = number(self._ours("shots"))
        if ours is not None:
            return int(ours)
        found = _mapping(self.content.get("n-shot"))
        configs = _mapping(self.content.get("configs"))
        counts = {
            name: number(found.get(name, _mapping(configs.get(name)).get("num_fewshot")))
            for name in self.names.values()
        }
        some = {int(count or 0) for count in counts.values()}
        if len(some) > 1:
            raise RunError(
                f"{self.path}: subjects of {self.meant.task} have {_listed(some)} shots; give "
                "results of one number of shots."
            )
        return next(iter(some), 0)

    def size(self, subject: str) -> int | None:
        """How many items of a subject were asked, where the file says so."""
        name = self.names[subject]
        asked = _mapping(_mapping(self.content.get("n-samples")).get(name)).get("effective")
        found = number(asked) or number(self.tasks[subject].get("sample_len"))
        return int(found) if found else None


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _pretrained(arguments: Any) -> str | None:
    """The checkpoint in `model_args`: a mapping, or a string of keys and values."""
    if isinstance(arguments, str):
        pairs = (part.split("=", 1) for part in arguments.split(",") if "=" in part)
        arguments = {key.strip(): value for key, value in pairs}
    found = _mapping(arguments)
    keys = ("peft", "delta", "pretrained", "model", "path", "engine")
    return next((str(found[key]) for key in keys if key in found), None)


def number(value: Any) -> float | None:
    """A number, or None for "N/A", a blank and whatever else is none.

    >>> number("N/A"), number("0.25"), number(3)
    (None, 0.25, 3.0)
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def metric(row: Row, name: str = "acc") -> tuple[float | None, float | None]:
    """A metric of a row and its standard error; older files have no filter in the key."""
    for end in (",none", ""):
        if name + end in row:
            return number(row[name + end]), number(row.get(f"{name}_stderr{end}"))
    return None, None


def find(paths: Sequence[Path]) -> list[Path]:
    """The results files among and below some paths.

    Raises:
        RunError: a path that is not there, or nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.rglob("results*.json"))
        elif path.suffix == ".json":
            found.append(path)
        elif not path.exists():
            raise RunError(f"{path} does not exist; give lm-eval's results file or its folder.")
        elif path.suffix != ".jsonl":
            raise RunError(f"{path} is no results file of lm-eval; give its results_….json.")
    if not found:
        raise RunError(
            f"{', '.join(map(str, paths))}: no results_….json there; samples alone do not say "
            "which model they are of: give lm-eval's --output_path."
        )
    return list(dict.fromkeys(found))


def read(path: Path) -> tuple[list[Block], list[str]]:
    """The blocks of one results file, and the names in it that are no tasks of ours.

    Raises:
        RunError: no such file, or broken.
    """
    try:
        content: Any = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON ({error}); export it again.") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
        raise RunError(
            f"{path}: not a results file of lm-eval (no mapping 'results'); give results_….json."
        )
    blocks: dict[tuple[str, str, str], Block] = {}
    strange: list[str] = []
    groups = {**results, **_mapping(content.get("groups"))}
    for name, row in groups.items():
        meant = harness_names.meant(str(name))
        if meant is None:
            strange += [] if harness_names.is_part(str(name)) else [str(name)]
            continue
        key = (meant.task, meant.protocol, meant.split)
        whole = Meant(*key)
        block = blocks.setdefault(key, Block(path, whole, content))
        if meant.subject is None:
            block.groups[name] = _mapping(row)
        elif name in results:
            block.tasks[meant.subject] = row
            block.names[meant.subject] = name
            sampled = _samples(path, name)
            if sampled is not None:
                block.samples[meant.subject] = sampled
    return list(blocks.values()), strange


def _samples(path: Path, name: str) -> list[Row] | None:
    """The rows of a task's samples file beside a results file, sorted; None without one."""
    stamp = path.stem.partition("_")[2]
    beside = path.parent / f"samples_{name}_{stamp}.jsonl"
    if not stamp or not beside.is_file():
        return None
    rows: dict[int, Row] = {}
    for number_, row in _lines(beside):
        where = f"{beside}: line {number_}"
        if not isinstance(row.get("doc_id"), int):
            raise RunError(f"{where} has no doc_id; this is no samples file of lm-eval.")
        if row.get("filter", "none") != "none":
            continue
        if row["doc_id"] in rows:
            raise RunError(f"{where}: doc_id {row['doc_id']} stands twice; delete one line.")
        rows[row["doc_id"]] = row
    return [rows[key] for key in sorted(rows)] or None


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable ({error}); copy it again.") from error
    for count, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = from_json(line)
        except ValueError as error:
            raise RunError(f"{path}: line {count} is broken ({error}); copy it again.") from error
        if not isinstance(row, dict):
            raise RunError(f"{path}: line {count} is no JSON object; copy it again.")
        yield count, row
