"""What lm-evaluation-harness asked: whether it is what our `lm-eval` wording asks, item by item.

Proved is what has the hash of our prompt, our options after it and our gold answer. Where one is
not, the fingerprint is of what was asked there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ceval_suite.errors import RunError, UserError
from ceval_suite.harness_files import Block, Row, number
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.prompt import Prompt
from ceval_suite.schema import Item
from ceval_suite.specs import Task

IMPORTED = "lm-eval (imported)"
"""The protocol of results whose prompts are not proved to be ours."""


@dataclass(frozen=True)
class Asked:
    """What was asked: under which protocol, and the item of each (subject, doc_id)."""

    protocol: str
    fingerprint: str
    items: Mapping[tuple[str, int], Item]
    note: str
    prepared: Prepared | None = None


def asked_of(block: Block, task: Task, shots: int, data: Path | None) -> Asked:
    """What the samples of a block were asked; the benchmark's files prove whether it is ours."""
    said: list[Any] = sorted(
        [block.names[s], row["doc_id"], *texts(block, s, row)]
        for s, rows in block.samples.items()
        for row in rows
    )
    text = json.dumps(["lm-eval", *said], ensure_ascii=False, separators=(",", ":"))
    own = hashlib.sha256(text.encode()).hexdigest()
    try:
        prepared = _prepared(block, task, shots, data)
        items, why = _proved(block, prepared)
    except UserError as error:
        return Asked(IMPORTED, own, {}, f"prompts are not proved to be ours: {error}")
    if why:
        return Asked(IMPORTED, own, items, f"prompts are not ours: {why}")
    note = "every prompt and option is proved equal to ours"
    cut = _perhaps_cut(block)
    if cut:
        note += f"; {cut:,} may be longer than the model's context, where lm-eval cuts on the left"
    return Asked(block.meant.protocol, prepared.fingerprint, items, note, prepared)


def _prepared(block: Block, task: Task, shots: int, data: Path | None) -> Prepared:
    limit = block.limit
    whole = number(limit)
    return prepare(
        task.name,
        Selection(
            protocol=block.meant.protocol,
            shots=shots,
            split=block.meant.split,
            subjects=[s for s in task.subjects if s in block.samples],
            limit=int(whole) if whole and whole == int(whole) else None,
            data=data,
        ),
    )


def _proved(block: Block, prepared: Prepared) -> tuple[dict[tuple[str, int], Item], str]:
    """The item of each sample whose prompt, options and gold answer are ours; and why not all."""
    items: dict[tuple[str, int], Item] = {}
    why = ""
    wanted = {item.id for item in prepared.scored() if item.answer}
    for subject, rows in block.samples.items():
        renderer = prepared.renderer(subject)
        ours: dict[str, list[Prompt]] = {}
        for item in prepared.items[subject]:
            prompt = renderer.render(item)
            ours.setdefault(prompt.sha256, []).append(prompt)
        for row in rows:
            found = _same(block, subject, row, ours)
            if found is None:
                why = why or f"{block.names[subject]} {row['doc_id']} asks something else"
                continue
            items[subject, row["doc_id"]] = found
            wanted.discard(found.id)
    if wanted and not why:
        why = f"{len(wanted):,} of our items were not asked there ({min(wanted)} …)"
    return items, why


def _same(block: Block, subject: str, row: Row, ours: Mapping[str, list[Prompt]]) -> Item | None:
    sha256, options = texts(block, subject, row)
    some = [p for p in ours.get(sha256, ()) if options == list(p.continuations)]
    # of equal questions, the one that stands in the same row
    some.sort(key=lambda p: p.item.id.rpartition("/")[2] != str(row["doc_id"]))
    labels = some[0].item.labels if some else ()
    places = [g for g in gold(block, subject, row) if g < len(labels)]
    right = bool(some) and sorted(labels[g] for g in places) == sorted(some[0].item.answer)
    return some[0].item if right else None


def texts(block: Block, subject: str, row: Row) -> tuple[str, list[str]]:
    """The hash of a sample's prompt, and its continuations."""
    try:
        pairs = [row["arguments"][f"gen_args_{k}"] for k in range(len(row["filtered_resps"]))]
        context = str(pairs[0]["arg_0"])
        options = [str(pair["arg_1"]) for pair in pairs]
        if any(str(pair["arg_0"]) != context for pair in pairs):
            raise ValueError("options after different prompts")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise broken(block, subject, row, f"arguments ({error!r})") from error
    return hashlib.sha256(context.encode()).hexdigest(), options


def _perhaps_cut(block: Block) -> int:
    """Prompts that may have more tokens than the model reads: no token is less than a byte."""
    length = number(block.content.get("max_length"))
    rows = (row for some in block.samples.values() for row in some)
    contexts = (row["arguments"]["gen_args_0"]["arg_0"] for row in rows)
    return sum(len(c.encode()) + 1 > length for c in contexts) if length else 0


def unseen(block: Block, shots: int) -> Asked:
    """What results without samples were asked, as far as they say."""
    keep = ("versions", "n-shot", "n-samples", "task_hashes")
    told = {
        key: {n: (block.content.get(key) or {}).get(n) for n in sorted(block.names.values())}
        for key in keep
    }
    said = ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
    asked = [asdict(block.meant), told, [block.content.get(k) for k in said], block.limit, shots]
    text = json.dumps(["lm-eval results", asked], sort_keys=True, default=str)
    return Asked(
        IMPORTED,
        hashlib.sha256(text.encode()).hexdigest(),
        {},
        "results without samples: values and intervals only, nothing to test in pairs",
    )


def gold(block: Block, subject: str, row: Row) -> list[int]:
    """Places of the gold options: "2", "[1, 3]" or a letter."""
    text = str(row.get("target", "")).strip()
    letters = text.replace("(", "").replace(")", "")
    if letters and all(c in "ABCDEFGH" for c in letters):
        return ["ABCDEFGH".index(c) for c in letters]
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not text or not all(part.isdecimal() for part in parts):
        raise broken(block, subject, row, f"target {text!r}")
    return [int(part) for part in parts]


def broken(block: Block, subject: str, row: Row, what: str) -> RunError:
    """The error of a sample that lm-eval would not have written so."""
    return RunError(
        f"{block.path.parent}: sample {row['doc_id']} of {block.names[subject]}: {what}; this is "
        "not what lm-eval writes: export it again."
    )
