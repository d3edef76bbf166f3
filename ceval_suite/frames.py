"""Records of runs as tables of columns: pandas, CSV, Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ceval_suite import finished
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.records import find_runs
from ceval_suite.schema import Record
from ceval_suite.untrusted import FORMULA

if TYPE_CHECKING:
    import pandas as pd

RUN = ("model", "task", "protocol", "split", "shots", "limit", "protocol_sha256", "run")
"""Columns that say which run a record is of; `shots` are those that were asked for."""

SPREAD = ("logits", "logprobs")
"""Fields that become a column a letter: `logprob_A`, `logit_A`."""

AS_JSON = ("predictions", "opinions")
"""Fields that stay one column each, as JSON: who is in them differs from run to run."""


def folders(places: Sequence[Path]) -> list[Path]:
    """Run folders among and below some places.

    Raises:
        RunError: a place without a run.
    """
    found: list[Path] = []
    for place in places:
        below = [place] if (place / "run.json").is_file() else list(find_runs(place))
        if not below:
            raise RunError(f"{place} holds no runs; give run folders, or the --out of a run.")
        found += below
    return list(dict.fromkeys(found))


def load_records(*places: str | Path) -> pd.DataFrame:
    """All records of the runs in and below some folders, one row each.

    Columns are the run's (`model`, `task`, `protocol`, `split`, `shots`, `limit`,
    `protocol_sha256`, `run`) and then a record's own; `shots` of a record is `shots_shown`. Letters
    are strings (`"BD"`; empty: no answer), log-probabilities and logits have a column for each
    letter (`logprob_A`, `logit_A`) and are missing where an item has no such choice. What an
    ascending string of letters has for its log-probabilities stays in the records.

    Raises:
        RunError: a folder without a run, or a broken one.
    """
    import pandas as pd

    rows = [row for folder in folders([*map(Path, places)]) for row in _rows(folder)]
    columns = list(RUN)
    for name in _names():
        columns += _spread(name, rows) if name in SPREAD else [name]
    frame = pd.DataFrame(rows, columns=columns)
    for name in ("correct",):
        frame[name] = frame[name].astype("boolean")
    return frame


def _names() -> list[str]:
    return ["shots_shown" if f.name == "shots" else f.name for f in fields(Record)]


def _spread(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    start = f"{name.removesuffix('s')}_"
    return sorted({key for row in rows for key in row if key.startswith(start)})


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    side = finished.run_in(folder)
    run = _run(side)
    for record in side.records.values():
        row: dict[str, Any] = dict(run)
        for one in fields(Record):
            value = getattr(record, one.name)
            if one.name in SPREAD:
                start = one.name.removesuffix("s")
                row |= {f"{start}_{k}": v for k, v in value.items() if len(k) == 1}
            elif one.name in AS_JSON:
                row[one.name] = json.dumps(value, ensure_ascii=False) if value else ""
            elif isinstance(value, list):
                row[one.name] = "".join(map(str, value))
            else:
                row["shots_shown" if one.name == "shots" else one.name] = value
        yield row


def _run(side: Side) -> dict[str, Any]:
    asked = ("task", "protocol", "split", "shots", "limit")
    return {
        "model": side.model,
        **{key: side.about.get(key) for key in asked},
        "protocol_sha256": side.protocol,
        "run": side.path.name,
    }


def write_csv(places: Sequence[Path], out: Path) -> str:
    """All records as one CSV file; no cell of text begins as a spreadsheet's formula does."""
    frame = load_records(*places)
    for name in frame.columns:
        if frame[name].dtype == object or str(frame[name].dtype) in ("str", "string"):
            frame[name] = frame[name].map(_safe)
    frame.to_csv(out, index=False, lineterminator="\n")
    return _said(frame)


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def write_parquet(places: Sequence[Path], out: Path) -> str:
    """All records as one Parquet file, which `datasets` and pandas read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = load_records(*places)
    for name in frame.columns:
        if frame[name].isna().all():  # a column without values has a type all the same
            frame[name] = frame[name].astype("string" if name == "text" else "float64")
    table: Any = pa.Table.from_pandas(frame, preserve_index=False)
    writer: Any = pq
    writer.write_table(table, out)
    return _said(frame)


def _said(frame: pd.DataFrame) -> str:
    runs = frame[["model", "run"]].drop_duplicates()
    return f"{len(frame):,} records of {len(runs)} runs, {len(frame.columns)} columns"
