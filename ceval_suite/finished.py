"""A finished run taken up again: its records, and the very items they answer."""

from __future__ import annotations

from pathlib import Path

from ceval_suite.catalog import load_task
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.records import BITS, read_json, read_records
from ceval_suite.schema import Item, Record


def run_in(folder: Path) -> Side:
    """The one run in a folder.

    Raises:
        RunError: no run folder, or an item stands in it twice.
    """
    if not (folder / "run.json").is_file() or BITS.fullmatch(folder.name):
        raise RunError(f"{folder} is no run folder; give one that 'ceval-suite run' has written.")
    records: dict[str, Record] = {}
    for record in read_records(folder / "records.jsonl"):
        if record.id in records:
            raise RunError(f"{folder}: item {record.id} stands twice; delete one line.")
        records[record.id] = record
    return Side(folder, read_json(folder / "run.json"), records)


def questions(side: Side, data: Path | None = None) -> Prepared:
    """What the run was asked, read again from the benchmark files.

    They are looked for in `data`, else where the run found them, else in the usual places.

    Raises:
        RunError: the files are not those of the run.
        UserError: they or the protocol cannot be found.
    """
    about = side.about
    subset = about.get("subset") or {}
    chosen = Selection(
        protocol=about.get("protocol"),
        shots=about.get("shots"),
        split=about.get("split"),
        subjects=about.get("subjects"),
        limit=about.get("limit"),
        data=data or data_of(side),
        circular=bool(about.get("circular")),
        items=subset.get("items"),
        seed=subset.get("seed", 0),
    )
    prepared = prepare(str(about["task"]), chosen)
    if prepared.data_sha256 != about.get("data", {}).get("sha256"):
        raise RunError(
            f"the benchmark files in {prepared.source} are not those that {side.path} was asked; "
            "give --data the folder that it was run on."
        )
    return prepared


def data_of(side: Side) -> Path | None:
    """The data folder that the run's benchmark files lie in, if they are still there."""
    place = Path(str(side.about.get("data", {}).get("source", "")))
    if not place.is_absolute() or not place.exists():
        return None
    folder = Path(load_task(str(side.about["task"])).source.folder).parts
    return Path(*place.parts[: -len(folder)]) if place.parts[-len(folder) :] == folder else place


def by_record(prepared: Prepared) -> dict[str, Item]:
    """Record id → the item it answers, in order; sub-questions name their whole item."""
    return {
        id: item
        for subject in prepared.subjects
        for item in prepared.items[subject]
        for id in item.record_ids()
    }
