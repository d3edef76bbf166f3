"""Summaries of runs → a leaderboard Table, models × protocols; protocols never share a column."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.errors import RunError
from ceval_suite.records import find_runs, read_json
from ceval_suite.report import table
from ceval_suite.schema import Cell, Estimate, Table

Summary = Mapping[str, Any]

PERCENT = "percent ± half the 95 % interval; each column is one protocol"

ONE_LETTER = 0.8
"""Share of answers on one letter from which the board says so."""


PARTS = frozenset(("subjects", "categories", "groups", "points", "calibration", "bias", "margins"))
"""The parts of a summary that only tables of one run show: most of what is in it."""


def read_summaries(folder: Path, leave: Collection[str] = ()) -> list[Summary]:
    """The summaries of all finished runs below `folder`, without the parts named in `leave`.

    Raises:
        RunError: the folder is not there or holds no run.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist; give the --out folder of a run.")
    runs = list(find_runs(folder))
    if not runs:
        raise RunError(f"{folder} holds no runs; give the --out folder of a run.")
    collecting = gc.isenabled()
    gc.disable()  # thousands of summaries hold no cycles; looking for some takes as long as reading
    try:
        return [_summary(run, leave) | {"folder": str(run)} for run in runs]
    finally:
        gc.freeze()  # nor are they looked through later
        if collecting:
            gc.enable()


def _summary(run: Path, leave: Collection[str]) -> dict[str, Any]:
    """What a run came to; of one that has not ended, what it was asked."""
    if (run / "summary.json").is_file():
        return read_json(run / "summary.json", leave)
    about = read_json(run / "run.json")
    who = about.get("identity", {})
    return {
        **asked({"task": run.name, **about}),
        "model": who.get("model", run.parent.name),
        "protocol_sha256": who.get("protocol_sha256", ""),
        "complete": False,
    }


def asked(about: Mapping[str, Any]) -> Summary:
    """What run.json says was asked, by the keys of summary.json."""
    return {
        "task": about["task"],
        "protocol": about.get("protocol", "?"),
        "split": about.get("split", ""),
        "shots": about.get("shots", 0),
        "limit": about.get("limit"),
        "subset": about.get("subset"),
        "chat": about.get("chat", False),
        "circular": about.get("circular", False),
        "same_shots": about.get("same_shots"),
        "subjects_chosen": about.get("subjects"),
    }


def label(summary: Summary) -> str:
    """What a column holds, short: task, wording, shots, and whatever departs from the usual."""
    extra: list[str] = ["chat"] if summary.get("chat") else []
    if summary.get("circular"):
        extra.append("circular")
    if summary.get("same_shots"):
        extra.append(f"same shots for {', '.join(summary['same_shots'])}")
    if summary.get("limit") is not None:
        extra.append(f"first {summary['limit']} per subject")
    subset = summary.get("subset")
    if subset:
        seed = f" by seed {subset['seed']}" if subset["seed"] else ""
        extra.append(f"{subset['items']:,} of {subset['of']:,} items{seed}")
    if summary.get("labels_from"):
        extra.append(f"labels of {summary['labels_from']}")
    chosen = summary.get("subjects_chosen")
    if chosen:
        total = summary.get("subjects_total")  # an unfinished run does not say
        extra.append(f"{len(chosen)}{f' of {total}' if total else ''} subjects")
    departs = f" ({', '.join(extra)})" if extra else ""
    return (
        f"{summary['task']} {summary['split']}, {summary['protocol']}, "
        f"{summary['shots']}-shot{departs}"
    )


def columns(summaries: Iterable[Summary]) -> dict[str, str]:
    """Protocol fingerprint → column title; titles that would be equal get the fingerprint."""
    finished_last = sorted(summaries, key=lambda s: bool(s.get("complete")))
    labels = {s["protocol_sha256"]: label(s) for s in finished_last}
    titles = list(labels.values())
    return {
        key: f"{label} #{key[:8]}" if titles.count(label) > 1 else label
        for key, label in sorted(labels.items(), key=lambda pair: pair[1])
    }


def cell(summary: Summary) -> Cell:
    """The headline of one run with its interval and n; a dash and the reason if there is none."""
    if not summary.get("complete"):
        return table.missing("(unfinished)")
    if not summary["n"]:
        return table.missing("(nothing scored)")
    if not summary.get("labels"):
        return table.missing("(no labels)")
    headline = summary["metrics"].get(summary["headline"])
    if headline is None:
        return table.missing("(no average)")
    found = Estimate(**headline)
    shown = table.estimate(found)
    mark = "≈" if at_chance(summary) else ""
    return Cell(text=f"{mark}{shown.text} n={found.n}", value=shown.value)


def at_chance(summary: Summary) -> bool:
    """Whether guessing lies inside the interval of the accuracy over all items."""
    micro = summary["metrics"].get("acc/micro")
    return micro is not None and micro["low"] <= summary["chance"] <= micro["high"]


def board(summaries: Sequence[Summary], title: str = "Leaderboard") -> Table:
    """Models × protocols.

    Raises:
        RunError: one model has two runs in one column.
    """
    heads = columns(summaries)
    models = sorted({str(s["model"]) for s in summaries})
    cells: dict[tuple[str, str], Summary] = {}
    for summary in summaries:
        key = (str(summary["model"]), str(summary["protocol_sha256"]))
        if key in cells:
            raise RunError(f"model '{key[0]}' has two runs of {label(summary)}; remove one.")
        cells[key] = summary
    rows = tuple(
        (
            table.text(model),
            *(
                cell(cells[model, key]) if (model, key) in cells else table.missing("(not run)")
                for key in heads
            ),
        )
        for model in models
    )
    return Table(
        title=title,
        columns=("model", *heads.values()),
        rows=rows,
        notes=tuple(notes(summaries, heads)),
        numeric=frozenset(range(1, len(heads) + 1)),
    )


def notes(summaries: Sequence[Summary], heads: Mapping[str, str]) -> Iterable[str]:
    """What each column holds, and the remarks on its runs."""
    yield PERCENT
    seen: set[str] = set()
    for summary in summaries:
        key = str(summary["protocol_sha256"])
        if key in seen or not summary.get("complete") or not summary.get("labels"):
            continue
        seen.add(key)
        headline = str(summary["headline"])
        other = [m for m in summary["metrics"] if m != headline]
        text = f"{heads[key]}: {headline}, the official average"
        if other:
            text += f"; beside it in summary.json: {', '.join(other)}"
        scored, total = summary["subjects_scored"], summary["subjects_total"]
        if scored < total:
            text += f"; over {scored} of {total} subjects"
        not_scored = sum(n for kinds in summary["not_scored"].values() for n in kinds.values())
        if not_scored:
            text += f"; {not_scored} items not scored by this method (several letters or free text)"
        yield text
    yield from remarks(summaries)


def remarks(summaries: Sequence[Summary]) -> Iterable[str]:
    """What a reader must know of single runs: chance level, one letter, how answers were had."""
    lost = sorted({str(s["model"]) for s in summaries if s.get("complete") and _chance(s)})
    if lost:
        yield f"≈ at chance level: guessing lies inside the interval ({', '.join(lost)})"
    yield from _whole(summaries)
    yield from _one_letter(summaries)
    yield from _answers(summaries)
    for summary in summaries:
        if summary.get("missing"):
            names = ", ".join(summary["missing"][:5])
            yield f"{summary['model']}, {summary['task']}: no average, records missing for {names}"


def _whole(summaries: Sequence[Summary]) -> Iterable[str]:
    """What runs of a subset say of the whole benchmark."""
    for summary in summaries:
        found = (summary.get("whole") or {}).get(str(summary.get("headline")))
        if summary.get("complete") and found:
            shown = table.estimate(Estimate(**found)).text
            yield (
                f"{summary['model']} on {label(summary)}: estimated by subject; a run of all "
                f"{summary['subset']['of']:,} items would come to {shown}"
            )


def _one_letter(summaries: Sequence[Summary]) -> Iterable[str]:
    """Models that answer one letter nearly always: their accuracy is that letter's gold share."""
    for summary in summaries:
        letters = summary.get("letters") or {}
        total = sum(counts["predicted"] for counts in letters.values())
        for letter, counts in letters.items():
            if total and counts["predicted"] >= ONE_LETTER * total:
                share = table.percent(counts["predicted"] / total)
                yield f"{summary['model']} answers {letter} on {share} % of {summary['task']}"


def _answers(summaries: Sequence[Summary]) -> Iterable[str]:
    """How answers were had, where that is more than the likeliest letter."""
    for summary in summaries:
        who = f"{summary['model']} on {label(summary)}"
        read = summary.get("extraction")
        if read:
            cut = f", {read['cut']:,} texts cut" if read["cut"] else ""
            yield (
                f"{who}: {table.percent(read['rate'])} % of {read['n']:,} answers could be read, "
                f"{read['unanswered']:,} unanswered{cut}"
            )
        ways = (summary.get("methods") or {}).get("accuracy") or {}
        if ways:
            shown = (f"{name} {table.estimate(Estimate(**e)).text}" for name, e in ways.items())
            yield f"{who}, by method: {', '.join(shown)}"
        for name, found in (summary.get("opinions") or {}).items():
            differ, ours, theirs = (
                table.percent(found[key]["value"]) for key in ("differ", "official", "opinion")
            )
            yield (
                f"{who}: {name} differs on {differ} % of {found['differ']['n']:,} ({ours} "
                f"officially, {theirs} by {name})"
            )
        bare = list(summary.get("unlabelled") or ())
        if bare:
            more = " …" if len(bare) > 3 else ""
            yield f"{who}: {len(bare):,} not scored, without a label ({', '.join(bare[:3])}{more})"


def _chance(summary: Summary) -> bool:
    return bool(summary.get("labels")) and bool(summary["metrics"]) and at_chance(summary)


def subjects_table(summary: Summary) -> Table:
    """Every average, category, group and subject of one run, rates of points and methods."""
    rows: list[tuple[Cell, ...]] = []

    def add(kind: str, name: str, found: Mapping[str, Any]) -> None:
        one = Estimate(**{k: found[k] for k in ("value", "n", "stderr", "low", "high")})
        rows.append((table.text(kind), table.text(name), table.estimate(one), table.number(one.n)))

    for name, found in summary["metrics"].items():
        add("average" + (" (official)" if name == summary["headline"] else ""), name, found)
    for kinds, kind in (("categories", "category"), ("groups", "group")):
        for name, found in summary[kinds].items():
            add(kind, name, found[summary["headline"]])
    for name, found in summary["subjects"].items():
        add("subject", name, found)
    for name, found in (summary.get("points") or {}).items():
        add("points", name, found["rate"])
    for name, found in ((summary.get("methods") or {}).get("accuracy") or {}).items():
        add("method", name, found)
    return Table(
        title=f"{summary['model']} on {label(summary)}",
        columns=("", "name", "accuracy", "n"),
        rows=tuple(rows),
        numeric=frozenset({2, 3}),
    )
