"""What every item of a run came to, small enough for summary.json: paired tests need no records.

The block under `outcomes` holds the labelled records in order (subject as in the task, then row,
then sub-question): a hash of their ids, how many each subject has, and one code per record. A board
over a thousand models reads some kilobytes a run instead of its records.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ceval_suite import methods
from ceval_suite.errors import RunError
from ceval_suite.schema import Record
from ceval_suite.specs import Task

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]

FORMAT = 1

_ROW = re.compile(r"(?P<stem>.+)/(?P<row>0|[1-9]\d*)(?:#(?P<part>0|[1-9]\d*))?")


@dataclass(frozen=True)
class Outcomes:
    """The labelled records of one run, in order, as arrays.

    `codes` are rows of `values`: whether the answer was correct, and the share of its points that
    it earned. `subjects` counts the records of each subject and `cluster` numbers what belongs
    together; None where every record stands alone. `numbers` are the packed ids, unpacked only
    when somebody asks for them (`ids`).
    """

    ids_sha256: str
    subjects: Mapping[str, int]
    codes: NDArray[np.unsignedinteger[Any]]
    values: Floats
    cluster: Codes | None
    numbers: Mapping[str, Any]

    @property
    def n(self) -> int:
        """How many records there are."""
        return len(self.codes)

    @property
    def right(self) -> Floats:
        """1 where the answer was correct, else 0."""
        return self.values[self.codes, 0]

    @property
    def score(self) -> Floats:
        """The share of its points that each record earned."""
        return self.values[self.codes, 1]

    @property
    def subject(self) -> Codes:
        """The number of each record's subject."""
        return np.repeat(np.arange(len(self.subjects)), list(self.subjects.values()))

    def ids(self) -> list[str]:
        """The ids of the records."""
        return _ids(self.numbers, self.subjects)

    def only(self, keep: NDArray[np.bool_]) -> Outcomes:
        """The records that are kept; their hash says that they are not all."""
        counts = np.bincount(self.subject[keep], minlength=len(self.subjects)).tolist()
        named = {s: int(n) for s, n in zip(self.subjects, counts, strict=True) if n}
        ids = [id for id, kept in zip(self.ids(), keep.tolist(), strict=True) if kept]
        return replace(
            self,
            ids_sha256=_sha256(ids),
            subjects=named,
            codes=self.codes[keep],
            values=self.values,
            cluster=None if self.cluster is None else self.cluster[keep],
            numbers={"names": _pack("\n".join(ids).encode())},
        )

    def like(self, other: Outcomes, keep: NDArray[np.bool_]) -> Outcomes:
        """The records that are kept, where `other` has worked out which these are."""
        return replace(
            other,
            codes=self.codes[keep],
            values=self.values,
            cluster=None if self.cluster is None else self.cluster[keep],
        )


def outcomes(task: Task, records: Iterable[Record]) -> dict[str, Any]:
    """The block of summary.json; {} where no record has a gold label."""
    judged = in_order(task, (record for record in records if record.correct is not None))
    if not judged:
        return {}
    ids = [record.id for record in judged]
    pairs = [(int(bool(r.correct)), methods.score(r)) for r in judged]
    values = sorted(set(pairs))
    code = {pair: at for at, pair in enumerate(values)}
    small = len(values) <= 256
    out: dict[str, Any] = {
        "format": FORMAT,
        "ids_sha256": _sha256(ids),
        "subjects": dict(Counter(record.subject for record in judged)),
        "values": [list(pair) for pair in values],
        "codes": _pack(np.array([code[p] for p in pairs], "u1" if small else "<u4").tobytes()),
        **_numbers(judged),
    }
    clusters = [methods.cluster(record) for record in judged]
    number = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    if len(number) < len(judged):
        out["clusters"] = _pack(np.array([number[c] for c in clusters], "<u4").tobytes())
    return out


def in_order(task: Task, records: Iterable[Record]) -> list[Record]:
    """Records as published: subjects as in the task, then rows, then sub-questions."""
    place = {subject: at for at, subject in enumerate(task.subjects)}

    def key(record: Record) -> tuple[int, str, int, int, str]:
        found = _ROW.fullmatch(record.id)
        row = int(found["row"]) if found else -1
        part = int(found["part"] or 0) if found else -1
        return place.get(record.subject, len(place)), record.subject, row, part, record.id

    return sorted(records, key=key)


def read(block: Mapping[str, Any], where: str = "summary.json") -> Outcomes:
    """The block of a summary as arrays.

    Raises:
        RunError: the block is damaged or of a format that is not known.
    """
    try:
        if block["format"] != FORMAT:
            raise ValueError(f"format {block['format']}, this is {FORMAT}")
        values = np.asarray(block["values"], np.float64).reshape(-1, 2)
        wide = np.dtype("u1" if len(values) <= 256 else "<u4")
        codes = np.frombuffer(_unpack(block["codes"]), wide)
        cluster = None
        if "clusters" in block:
            cluster = np.frombuffer(_unpack(block["clusters"]), "<u4").astype(np.int64)
        subjects = {str(s): int(n) for s, n in block["subjects"].items()}
        lengths = {len(codes), sum(subjects.values())} | (
            {len(codes) if cluster is None else len(cluster)}
        )
        if len(lengths) > 1:
            raise ValueError("counts that do not agree")
        if len(codes) and int(codes.max()) >= len(values):
            raise ValueError("a code without a value")
        return Outcomes(
            ids_sha256=str(block["ids_sha256"]),
            subjects=subjects,
            codes=codes,
            values=values,
            cluster=cluster,
            numbers={k: block[k] for k in ("stem", "rows", "parts", "names") if k in block},
        )
    except (KeyError, ValueError, TypeError, IndexError, zlib.error) as error:
        raise RunError(
            f"{where}: its block of outcomes is broken ({error}); write it anew from the records "
            "with 'ceval-suite rescore' and the run's folder."
        ) from error


def _sha256(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))


def _numbers(judged: Sequence[Record]) -> dict[str, str]:
    """The ids as numbers where they are `<stem>/<subject>/<row>[#k]`, else by name."""
    found = [_ROW.fullmatch(record.id) for record in judged]
    stems = {
        f["stem"].removesuffix(f"/{r.subject}") if f and f["stem"].endswith(f"/{r.subject}") else ""
        for f, r in zip(found, judged, strict=True)
    }
    if len(stems) != 1 or "" in stems:
        return {"names": _pack("\n".join(record.id for record in judged).encode())}
    rows = np.array([int(f["row"]) for f in found if f], np.int64)
    # rows follow one another: as steps they are nearly all 1, and nothing on disk
    out = {"stem": stems.pop(), "rows": _pack(np.diff(rows, prepend=0).astype("<i4").tobytes())}
    parts = [int(f["part"]) if f["part"] else -1 for f in found if f]
    if any(part >= 0 for part in parts):
        out["parts"] = _pack(np.array(parts, "<i2").tobytes())
    return out


def _ids(numbers: Mapping[str, Any], subjects: Mapping[str, int]) -> list[str]:
    if "names" in numbers:
        return _unpack(numbers["names"]).decode().split("\n")
    rows = np.frombuffer(_unpack(numbers["rows"]), "<i4").cumsum().tolist()
    parts = [-1] * len(rows)
    if "parts" in numbers:
        parts = np.frombuffer(_unpack(numbers["parts"]), "<i2").tolist()
    names = [s for s, n in subjects.items() for _ in range(n)]
    return [
        f"{numbers['stem']}/{name}/{row}" + (f"#{part}" if part >= 0 else "")
        for name, row, part in zip(names, rows, parts, strict=True)
    ]
