"""Runs → a static site in a folder: one page, its parts, and its data as scripts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jinja2

from ceval_suite import __version__
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.exclusions import Exclusions
from ceval_suite.report import board
from ceval_suite.site import chunks, curves, pairs, tables
from ceval_suite.site import column as columns
from ceval_suite.site.collect import Collected, Column, collect, family, summarised
from ceval_suite.site.prompts import source
from ceval_suite.standings import Standing, by_model, standing

STATIC = Path(__file__).parent / "static"
MARK = "ceval-suite-site.json"
"""A folder with this file is a site of ours and may be written over."""

SCRIPTS = (
    "core.js",
    "format.js",
    "table.js",
    "charts.js",
    "board.js",
    "subjects.js",
    "calibration.js",
    "tables.js",
    "items.js",
    "item.js",
    "compare.js",
    "training.js",
    "app.js",
)
"""The page's own scripts, in the order in which they need each other."""

ESTIMATES = ("categories", "groups")

LARGE = 2**24
"""Bytes of records from which columns are written by several processes."""

MOST_WORKERS = 8
"""Processes at once; each holds the records of one column."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a site is to hold."""

    title: str = ""
    data: Path | None = None
    exclude: Sequence[Exclusions] = ()
    texts: bool = True


@dataclass(frozen=True)
class _Part:
    """What the overview needs of one column that is written."""

    column: dict[str, Any]
    pairs: list[dict[str, Any]]
    lengths: dict[str, float]
    tables: list[dict[str, Any]]
    said: str


@dataclass
class _Made:
    """What the overview needs of the columns that are written."""

    columns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    pairs: dict[str, Any] = field(default_factory=dict[str, Any])
    tables: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    lengths: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])


def build(folders: Sequence[Path], out: Path, wanted: Wanted, say: Say) -> Path:
    """Write the site; an older one in its place is replaced at the end, in one step.

    Returns:
        The page to open.

    Raises:
        RunError: no runs, or `out` holds something else.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there and is no site of ours; give another -o.")
    found = collect(folders)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(found, partial, wanted, say)
        if out.exists():
            old = out.with_name(f".{out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
            os.replace(partial, out)
            shutil.rmtree(old)
        else:
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out / "index.html"


def _write(found: Collected, folder: Path, wanted: Wanted, say: Say) -> None:
    made = _Made()
    for part in _columns(found.columns, folder, wanted):
        made.columns.append(part.column)
        made.pairs[part.column["key"]] = part.pairs
        made.lengths[part.column["key"]] = part.lengths
        made.tables += part.tables
        say(part.said)
    made.tables += [tables.content(one) for one in tables.facts(found, made.lengths)]
    title = wanted.title or "ceval-suite"
    overview = {
        "title": title,
        "version": __version__,
        "built": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "models": [
            {"name": name, "family": family(name, found.about[name])} for name in found.models
        ],
        "columns": made.columns,
        "exclusions": [
            {"name": one.name, "title": one.title, "items": len(one.items)}
            for one in wanted.exclude
        ],
        "tables": len(made.tables),
        "curves": len(drawn := curves.content(found)),
    }
    chunks.write(folder, "curves", drawn)
    chunks.write(folder, "site", overview)
    chunks.write(folder, "pairs", made.pairs)
    chunks.write(folder, "tables", made.tables)
    words = json.loads((STATIC / "words.json").read_text(encoding="utf-8"))
    chunks.write(folder, "words", words)
    _page(folder, title)


def _columns(some: Sequence[Column], folder: Path, wanted: Wanted) -> Iterator[_Part]:
    """Write all columns, in order; large ones beside one another, as many as there are cores."""
    size = sum(
        (run.path / "records.jsonl").stat().st_size
        for column in some
        for run in column.runs.values()
        if (run.path / "records.jsonl").is_file()
    )
    workers = min(os.cpu_count() or 1, len(some), MOST_WORKERS)
    if workers < 2 or size < LARGE:
        yield from (_column(folder, column, wanted) for column in some)
        return
    # the largest first, so that none of them is alone at the end
    order = sorted(some, key=lambda column: -len(column.runs) * _items(column))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {c.key: pool.submit(_column, folder, c, wanted) for c in order}
        yield from (waiting[column.key].result() for column in some)


def _items(column: Column) -> int:
    return max(int(run.summary.get("n", 0)) for run in column.runs.values())


def _column(folder: Path, column: Column, wanted: Wanted) -> _Part:
    sides = {model: run.side(wanted.exclude) for model, run in column.runs.items()}
    summaries = {
        model: summarised(run, sides[model], column.task) if wanted.exclude else run.summary
        for model, run in column.runs.items()
    }
    values = {m: s["metrics"][s["headline"]]["value"] for m, s in summaries.items() if _whole(s)}
    found = source(column.about, wanted.data, texts=wanted.texts)
    counted = columns.write(folder, column, list(sides.values()), found)
    compared = pairs.compared(sides, values)
    chunks.write(folder, f"c/{column.key}/summary", _details(column, summaries))
    proof = f"; {counted.proved:,} of {counted.shown:,} prompts proved" if counted.shown else ""
    why = {
        "": "",
        "without": "; without prompts, as asked",
        "missing": f"; no prompts: benchmark files not found (data fetch {column.task.name})",
        "changed": "; no prompts: the benchmark files are not those of the run",
    }
    return _Part(
        column=_overview(column, summaries)
        | {"items": counted.items, "chunks": counted.chunks, "reason": found.reason},
        pairs=[{"models": list(names), **content} for names, content in compared.items()],
        lengths=_lengths(sides),
        tables=[tables.content(t) for t in tables.quantised(sides, column.title)],
        said=f"{column.title}: {len(sides)} models, {counted.items:,} items{proof}"
        + why[found.reason],
    )


def _whole(summary: Mapping[str, Any]) -> bool:
    return bool(summary.get("complete")) and summary.get("headline") in summary.get("metrics", {})


def _lengths(sides: Mapping[str, Side]) -> dict[str, float]:
    return {
        model: sum(r.prompt_tokens for r in side.records.values()) / len(side.records)
        for model, side in sides.items()
        if side.records
    }


def _overview(column: Column, summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A column of the board, with what paired tests say of the best and of ranks."""
    task, about = column.task, column.about
    placed = [{**s, "folder": str(column.runs[model].path)} for model, s in summaries.items()]
    found = standing(column.title, by_model(placed, column.title))
    return {
        "key": column.key,
        "title": column.title,
        "task": task.name,
        "name": task.title,
        "language": task.language,
        "split": about.get("split", ""),
        "protocol": about.get("protocol", ""),
        "shots": about.get("shots", 0),
        "chat": bool(about.get("chat")),
        "limit": about.get("limit"),
        "average": task.average,
        "sha": str(about["identity"].get("protocol_sha256", "")),
        "note": str(about.get("note") or ""),
        "license": task.license,
        "homepage": task.homepage,
        "subjects": [
            [name, subject.title, subject.category, subject.language or ""]
            for name, subject in task.subjects.items()
        ],
        "categories": {name: list(some) for name, some in task.categories.items()},
        "groups": task.groups,
        "cells": {model: _cell(s) | _mark(found, model) for model, s in summaries.items()},
    }


def _mark(found: Standing, model: str) -> dict[str, Any]:
    """Which ranks a model may have, and whether it is the best or cannot be told from it."""
    ranks, at = found.ranks, found.tested.get(model)
    if ranks is None or at is None:
        return {}
    return {"rank": [ranks.low[at], ranks.high[at]], "mark": ranks.mark(at)}


def _cell(summary: Mapping[str, Any]) -> dict[str, Any]:
    """One cell of the board, or the word for why it has no number."""
    if not summary.get("complete"):
        return {"reason": "unfinished"}
    if not summary["n"]:
        return {"reason": "nothing"}
    if not summary.get("labels"):
        return {"reason": "labels"}
    headline = str(summary["headline"])
    if headline not in summary["metrics"]:
        return {"reason": "average"}
    return {
        "headline": headline,
        "metrics": {name: chunks.estimate(one) for name, one in summary["metrics"].items()},
        "parts": {
            name: chunks.estimate(one[headline])
            for kind in ESTIMATES
            for name, one in summary[kind].items()
        },
        "chance": board.at_chance(summary),
        "unanswered": summary.get("unanswered", 0),
    }


def _details(column: Column, summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the views of one column need of its summaries."""
    kept = ("calibration", "bias", "letters", "choice_mass", "ties", "unanswered", "chance")
    return {
        model: {
            "subjects": {s: chunks.estimate(one) for s, one in summary["subjects"].items()}
            if "subjects" in summary
            else {},
            **{
                name: chunks.finite(summary[name]) for name in kept if summary.get(name) is not None
            },
        }
        for model, summary in summaries.items()
    }


def _page(folder: Path, title: str) -> None:
    assets = folder / "assets"
    shutil.copytree(STATIC, assets, ignore=shutil.ignore_patterns("*.html", "words.json"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(STATIC)
    )
    page = environment.get_template("index.html").render(title=title, scripts=SCRIPTS)
    (folder / "index.html").write_text(page, encoding="utf-8")
    mark = {"ceval_suite": __version__, "page": hashlib.sha256(page.encode()).hexdigest()}
    (folder / MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
