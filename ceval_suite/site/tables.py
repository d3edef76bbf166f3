"""Tables beside the board: weights, tokenizers, quantised forms and bits per byte, where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ceval_suite.comparison import Side
from ceval_suite.report import bits, quantisation, table
from ceval_suite.schema import Cell, Table
from ceval_suite.site.collect import Collected, bare

_About = Mapping[str, Any]


def content(found: Table) -> dict[str, Any]:
    """A table as data: texts as they are to be printed, numbers to sort by."""
    return {
        "title": found.title,
        "columns": list(found.columns),
        "rows": [[[cell.text, cell.value] for cell in cells] for cells in found.rows],
        "numeric": sorted(found.numeric),
        "notes": list(found.notes),
    }


def facts(found: Collected, lengths: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Weights, tokenizers, bits per byte; `lengths` has mean prompt tokens by column and model."""
    out = [_weights(found), _tokenizers(found, lengths)]
    if found.bits:
        out.append(bits.bits(found.bits))
    return [one for one in out if one.rows]


def _engine(about: _About) -> _About:
    engine = about.get("engine")
    return engine if isinstance(engine, Mapping) else {}


def _number(value: Any) -> Cell:
    return table.number(value) if isinstance(value, int) else table.missing()


def _text(value: Any) -> Cell:
    return table.text(str(value)) if value else table.missing()


def how(about: _About) -> str:
    """How a model is quantised, in few words; empty where it is not, or a run does not say."""
    model = about.get("model")
    quant = model.get("quant") if isinstance(model, Mapping) else None
    if not isinstance(quant, Mapping):
        return ""
    return " ".join(str(value) for value in quant.values() if isinstance(value, (str, int)))


def _weights(found: Collected) -> Table:
    rows = [
        (
            table.text(model),
            _text(engine.get("architecture")),
            _number(engine.get("parameters")),
            _number(engine.get("bytes")),
            _text(engine.get("dtype")),
            _text(how(about)),
            _text(", ".join(bare(str(a)) for a in engine.get("adapters_applied") or ())),
        )
        for model, about in found.about.items()
        for engine in [_engine(about)]
        if engine.get("architecture")
    ]
    columns = ("model", "architecture", "parameters", "bytes", "dtype", "quantisation", "adapters")
    return Table(
        title="Models", columns=columns, rows=tuple(sorted(rows, key=_name)), numeric=_span(2, 4)
    )


def _span(begin: int, end: int) -> frozenset[int]:
    return frozenset(range(begin, end))


def _name(row: Sequence[Cell]) -> str:
    return row[0].text


def _tokenizers(found: Collected, lengths: Mapping[str, Mapping[str, float]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    titles = {column.key: column.title for column in found.columns}
    some = [key for key in titles if len(lengths.get(key, {})) > 0]
    for model, about in sorted(found.about.items()):
        print_ = str(about.get("identity", {}).get("tokenizer_sha256") or "")
        if not print_ and not any(model in lengths[key] for key in some):
            continue
        means = (lengths[key].get(model) for key in some)
        rows.append(
            (
                table.text(model),
                _text(print_[:8]),
                _number(_engine(about).get("vocabulary")),
                _number(_engine(about).get("embedding_rows")),
                *(table.missing() if n is None else table.number(round(n, 1)) for n in means),
            )
        )
    columns = ("model", "tokenizer", "vocabulary", "embedding rows", *(titles[k] for k in some))
    return Table(
        title="Tokenizers",
        columns=columns,
        rows=tuple(rows),
        notes=("In the columns of benchmarks: mean tokens of a prompt, shots included.",),
        numeric=_span(2, len(columns)),
    )


def quantised(sides: Mapping[str, Side], title: str) -> list[Table]:
    """Quantised forms beside the model that they were made of, on the items of one column."""
    by_path: dict[str, list[str]] = {}
    for name, side in sides.items():
        path = str((side.about.get("model") or {}).get("path", ""))
        by_path.setdefault(path, []).append(name)
    out: list[Table] = []
    for path, names in by_path.items():
        plain = [name for name in names if not how(sides[name].about)]
        others = [name for name in names if how(sides[name].about)]
        if not path or len(plain) != 1 or not others:
            continue
        weighed = [_side(name, sides[name]) for name in (plain[0], *others)]
        if all(side.size and side.records for side in weighed):
            made = quantisation.summary(weighed[0], weighed[1:])
            out.append(
                Table(
                    title=f"{made.title}: {title}",
                    columns=made.columns,
                    rows=made.rows,
                    notes=made.notes,
                    numeric=made.numeric,
                )
            )
    return out


def _side(name: str, side: Side) -> quantisation.Side:
    return quantisation.Side(
        name=name,
        records=list(side.records.values()),
        how=how(side.about),
        size=int(_engine(side.about).get("bytes") or 0),
    )
