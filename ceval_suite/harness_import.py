"""Results of lm-evaluation-harness as run folders of ours.

With samples there are records, and the protocol's fingerprint is that of our own `lm-eval` wording
exactly where every prompt and option is proved equal to what we would ask; else a fingerprint of
what was asked there, so that two imports of the same stand in one column, and never in another's.
Without samples there is a summary and nothing to pair.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ceval_suite import __version__, harness_files, harness_values, metrics, secrecy
from ceval_suite.catalog import load_task
from ceval_suite.errors import RunError, UserError
from ceval_suite.harness_files import Block, Row, number
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.prompt import Prompt
from ceval_suite.records import RunFolder, folder_name, safe_name, write_json
from ceval_suite.schema import Item, Record
from ceval_suite.specs import Task

IMPORTED = "lm-eval (imported)"
"""The protocol of results whose prompts are not proved to be ours."""

CLOSE = 1e-6
"""How far a mean of samples may lie from the one in the results."""


@dataclass(frozen=True)
class Imported:
    """Run folders, and what has to be said of them."""

    folders: list[Path] = field(default_factory=list[Path])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class _Asked:
    """What was asked: under which protocol, and the item of each (subject, doc_id)."""

    protocol: str
    fingerprint: str
    items: Mapping[tuple[str, int], Item]
    note: str
    prepared: Prepared | None = None


def imported(
    paths: Sequence[Path], out: Path, data: Path | None = None, model: str | None = None
) -> Imported:
    """Every task of ours in lm-eval's results files, as run folders below `out`.

    `model` names the model, in place of what the files say. What is there already is kept.

    Raises:
        RunError: nothing to import, a broken file, or samples that contradict their results.
    """
    found = Imported()
    strange: list[str] = []
    for path in harness_files.find(paths):
        blocks, names = harness_files.read(path)
        strange += names
        for block in blocks:
            _block(block, out, data, model or _name(block.model), found)
    if not found.folders:
        raise RunError(
            f"{', '.join(map(str, paths))}: no task that is known here ({_some(strange)}); mmlu, "
            "cmmlu, ceval-valid and agieval are, and the folders that 'export --as lm-eval-tasks' "
            "writes."
        )
    if strange:
        found.notes.append(f"not imported, no task of ours: {_some(strange)}")
    return found


def _some(names: Sequence[str]) -> str:
    some = list(dict.fromkeys(names))
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")


def _name(model: str) -> str:
    """A path's last part; a hub id as it is."""
    here = model.startswith(("/", ".", "~")) or "\\" in model
    return PurePath(model.replace("\\", "/")).name or model if here else model


def _block(block: Block, out: Path, data: Path | None, model: str, found: Imported) -> None:
    task = load_task(block.meant.task)
    told = f"{block.path.name}, {task.name}"
    written = [s for s in block.samples if not _scored(block.samples[s])]
    for subject in written:
        # what was written there is not judged again here
        del block.samples[subject], block.tasks[subject], block.names[subject]
    if written:
        found.notes.append(f"{told}: written answers are not imported ({', '.join(written)})")
    if not block.tasks and not block.groups:
        return
    shots = block.shots()
    if block.tasks and set(block.samples) == set(block.tasks):
        asked = _asked(block, task, shots, data)
        records = [
            _record(block, task, subject, row, asked, shots)
            for subject in (s for s in task.subjects if s in block.samples)
            for row in block.samples[subject]
        ]
        _agree(block, records)
        expected = {s: len(rows) for s, rows in block.samples.items()}
        content = metrics.summarize(task, records, expected)
    else:
        asked, records = _unseen(block, shots), []
        content = harness_values.values(block, task)
    about = _about(block, task, asked, shots)
    name = folder_name(task.name, block.meant.split, shots, asked.fingerprint)
    folder = out / safe_name(model) / name
    digest = hashlib.sha256(block.path.read_bytes()).hexdigest()
    who = {"protocol_sha256": asked.fingerprint, "model": model, "imported_sha256": digest}
    with RunFolder(folder, who, {"model": {"name": model}, **about}) as run:
        for record in records:
            if record.id not in run.done:
                run.append(record)
        if not records:
            run.update({})
    summary = _summary(block, task, model, asked, shots) | content
    write_json(folder / "summary.json", summary)
    found.folders.append(folder)
    found.notes.append(f"{told}: {asked.note}")


def _scored(rows: Sequence[Row]) -> bool:
    first = rows[0].get("filtered_resps")
    return (
        isinstance(first, list)
        and len(first) > 1
        and all(isinstance(r, list) and number(r[0] if r else None) is not None for r in first)
    )


# what was asked


def _asked(block: Block, task: Task, shots: int, data: Path | None) -> _Asked:
    said: list[Any] = sorted(
        [block.names[s], row["doc_id"], *_texts(block, s, row)]
        for s, rows in block.samples.items()
        for row in rows
    )
    text = json.dumps(["lm-eval", *said], ensure_ascii=False, separators=(",", ":"))
    own = hashlib.sha256(text.encode()).hexdigest()
    try:
        prepared = _prepared(block, task, shots, data)
        items, why = _proved(block, prepared)
    except UserError as error:
        return _Asked(IMPORTED, own, {}, f"prompts are not proved to be ours: {error}")
    if why:
        return _Asked(IMPORTED, own, items, f"prompts are not ours: {why}")
    note = "every prompt and option is proved equal to ours"
    cut = _perhaps_cut(block)
    if cut:
        note += f"; {cut:,} may be longer than the model's context, where lm-eval cuts on the left"
    return _Asked(block.meant.protocol, prepared.fingerprint, items, note, prepared)


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
    sha256, options = _texts(block, subject, row)
    some = [p for p in ours.get(sha256, ()) if options == list(p.continuations)]
    # of equal questions, the one that stands in the same row
    some.sort(key=lambda p: p.item.id.rpartition("/")[2] != str(row["doc_id"]))
    labels = some[0].item.labels if some else ()
    gold = [g for g in _gold(block, subject, row) if g < len(labels)]
    right = bool(some) and sorted(labels[g] for g in gold) == sorted(some[0].item.answer)
    return some[0].item if right else None


def _texts(block: Block, subject: str, row: Row) -> tuple[str, list[str]]:
    """The hash of a sample's prompt, and its continuations."""
    try:
        pairs = [row["arguments"][f"gen_args_{k}"] for k in range(len(row["filtered_resps"]))]
        context = str(pairs[0]["arg_0"])
        options = [str(pair["arg_1"]) for pair in pairs]
        if any(str(pair["arg_0"]) != context for pair in pairs):
            raise ValueError("options after different prompts")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _broken(block, subject, row, f"arguments ({error!r})") from error
    return hashlib.sha256(context.encode()).hexdigest(), options


def _perhaps_cut(block: Block) -> int:
    """Prompts that may have more tokens than the model reads: no token is less than a byte."""
    length = number(block.content.get("max_length"))
    rows = (row for some in block.samples.values() for row in some)
    contexts = (row["arguments"]["gen_args_0"]["arg_0"] for row in rows)
    return sum(len(c.encode()) + 1 > length for c in contexts) if length else 0


def _unseen(block: Block, shots: int) -> _Asked:
    keep = ("versions", "n-shot", "n-samples", "task_hashes")
    told = {
        key: {n: (block.content.get(key) or {}).get(n) for n in sorted(block.names.values())}
        for key in keep
    }
    said = ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
    asked = [asdict(block.meant), told, [block.content.get(k) for k in said], block.limit, shots]
    text = json.dumps(["lm-eval results", asked], sort_keys=True, default=str)
    return _Asked(
        IMPORTED,
        hashlib.sha256(text.encode()).hexdigest(),
        {},
        "results without samples: values and intervals only, nothing to test in pairs",
    )


# what was answered


def _record(block: Block, task: Task, subject: str, row: Row, asked: _Asked, shots: int) -> Record:
    values = [number(one[0]) for one in row["filtered_resps"]]
    known = [value for value in values if value is not None]
    item = asked.items.get((subject, row["doc_id"]))
    labels = item.labels if item else tuple(task.subjects[subject].labels)
    if len(known) != len(values) or len(values) > len(labels):
        raise _broken(block, subject, row, "filtered_resps")
    gold = [labels[g] for g in _gold(block, subject, row) if g < len(labels)]
    best = max(known)
    prediction = labels[known.index(best)]
    correct = prediction in gold
    told = number(row.get("acc"))
    if told is not None and told != float(correct):
        raise _broken(block, subject, row, f"acc is {told:g}, its log-probabilities say otherwise")
    mass = math.fsum(map(math.exp, known))
    return Record(
        id=item.id if item else f"{task.name}/{block.meant.split}/{subject}/{row['doc_id']}",
        subject=subject,
        answer=gold,
        prediction=[prediction],
        correct=correct,
        score=float(correct),
        logits={},
        logprobs=dict(zip(labels, known, strict=False)),
        choice_mass=mass,
        tie=known.count(best) > 1,
        text=None,
        shots=shots,
        prompt_tokens=0,  # not said there
        prompt_sha256=_texts(block, subject, row)[0],
        cluster=item.cluster if item else "",
    )


def _gold(block: Block, subject: str, row: Row) -> list[int]:
    """Places of the gold options: "2", "[1, 3]" or a letter."""
    text = str(row.get("target", "")).strip()
    letters = text.replace("(", "").replace(")", "")
    if letters and all(c in "ABCDEFGH" for c in letters):
        return ["ABCDEFGH".index(c) for c in letters]
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not text or not all(part.isdecimal() for part in parts):
        raise _broken(block, subject, row, f"target {text!r}")
    return [int(part) for part in parts]


def _broken(block: Block, subject: str, row: Row, what: str) -> RunError:
    return RunError(
        f"{block.path.parent}: sample {row['doc_id']} of {block.names[subject]}: {what}; this is "
        "not what lm-eval writes: export it again."
    )


def _agree(block: Block, records: Sequence[Record]) -> None:
    """Samples must be those that the results are of."""
    for subject, row in block.tasks.items():
        told, _ = harness_files.metric(row)
        mine = [record for record in records if record.subject == subject]
        value = sum(bool(record.correct) for record in mine) / len(mine)
        size = block.size(subject)
        if size not in (None, len(mine)) or (told is not None and abs(told - value) > CLOSE):
            raise RunError(
                f"{block.path}: {block.names[subject]} has acc {told} of {size} items, its samples "
                f"{value:.6f} of {len(mine)}; give files of one run."
            )


# run.json and summary.json


def _about(block: Block, task: Task, asked: _Asked, shots: int) -> dict[str, Any]:
    subjects = [s for s in task.subjects if s in block.tasks]
    base: dict[str, Any] = {
        "task": task.name,
        "protocol": asked.protocol,
        "split": block.meant.split,
        "shots": shots,
        "limit": block.limit,
        "chat": bool(block.content.get("chat_template")),
        "same_shots": [],
        "shots_held": {},
        "subjects": subjects if 0 < len(subjects) < len(task.subjects) else None,
        "data": {"sha256": "", "source": "lm-eval"},
        "methods": {},
        "note": "",
        "not_scored": {},
    }
    if asked.prepared is not None:
        base |= asked.prepared.about()
    config = block.content.get("config") or {}
    kept = ("model", "model_args", "model_dtype", "model_sha", "limit", "gen_kwargs")
    origin = {
        "from": "lm_eval",
        "version": block.content.get("lm_eval_version"),
        "file": block.path.name,
        "date": block.content.get("date"),
        "config": secrecy.shown({k: config.get(k) for k in kept}) if config else {},
        "groups": {name: dict(row) for name, row in block.groups.items()},
        "note": asked.note,
    }
    return {**base, "imported": origin, "ceval_suite": __version__}


def _summary(block: Block, task: Task, model: str, asked: _Asked, shots: int) -> dict[str, Any]:
    about = _about(block, task, asked, shots)
    asked_keys = ("split", "shots", "limit", "chat", "same_shots", "not_scored", "imported")
    return {
        "task": task.name,
        "model": model,
        "protocol": asked.protocol,
        "protocol_sha256": asked.fingerprint,
        "complete": True,
        **{key: about[key] for key in asked_keys},
        "subjects_chosen": about["subjects"],
        "subjects_scored": len(block.tasks) or len(task.subjects),
        "subjects_total": len(task.subjects),
        "fewer_shots": 0,
        "tokens": {},
        "seconds": {},
        "engine": {"attention": "lm_eval"},
    }
