"""The exact prompts behind records, rebuilt from benchmark files and proved by their hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite import methods
from ceval_suite.errors import DataError, UserError
from ceval_suite.exams import parts
from ceval_suite.prepare import Prepared, Selection, prepare
from ceval_suite.prompt import Renderer
from ceval_suite.rebuilding import candidates
from ceval_suite.request import Prompt
from ceval_suite.schema import Item, Record


@dataclass(frozen=True)
class Shown:
    """A prompt as a page shows it: what a subject's prompts share, the rest, and the suite's lead.

    `lead` counts the characters at the end that are this suite's and not the protocol's.
    """

    head: str
    tail: str
    lead: int
    shots: int


@dataclass(frozen=True)
class Asked:
    """The different prompts that models were asked for one record, and which got which.

    `states` has for each model: `ok` (the record's hash proves the prompt), `chat` (the chat
    template is the model's own, and no run holds it), `second` (asked after a text that the model
    wrote), `none` (the record has no hash), `other` (the hash is another prompt's); None where
    there is no record.
    """

    variants: Sequence[Shown]
    which: Sequence[int | None]
    states: Sequence[str | None]


@dataclass(frozen=True)
class Source:
    """The items of a column by the ids of their records, ready to be rendered; or why not.

    `reason` is a word that the page explains: `without` (not wanted), `missing` (no files),
    `changed` (they are no longer what the run read), or empty.
    """

    reason: str
    chat: bool
    items: Mapping[str, Item]
    renderers: Mapping[str, Renderer]


def source(about: Mapping[str, Any], data: Path | None, *, texts: bool = True) -> Source:
    """Read the benchmark files that a run was made from, or find out why that cannot be."""
    if not texts:
        return Source("without", False, {}, {})
    prepared, reason = _prepared(about, data)
    if prepared is None:
        return Source(reason, False, {}, {})
    apart = prepared.template.methods.get("blanks") in ("chain", "forced")
    items: dict[str, Item] = {}
    for item in (item for s in prepared.subjects for item in prepared.items[s]):
        whole = [item] * len(item.record_ids())
        items.update(zip(item.record_ids(), parts(item) if apart else whole, strict=True))
    renderers = {s: prepared.renderer(s) for s in prepared.subjects}
    return Source("", prepared.chat, items, renderers)


def _prepared(about: Mapping[str, Any], data: Path | None) -> tuple[Prepared | None, str]:
    known = about.get("data") or {}
    place = str(known.get("source", ""))
    reason = "missing"
    # where the run's own files lay is tried last
    for folder in [data] if data else [None, *([Path(place).parent] if place else [])]:
        chosen = Selection(
            about.get("protocol"),
            about.get("shots"),
            about.get("split"),
            about.get("subjects"),
            about.get("limit"),
            folder,
            bool(about.get("chat")),
        )
        try:
            found = prepare(str(about["task"]), chosen)
        except DataError:
            continue
        except UserError:
            return None, "changed"
        if known.get("sha256") in (None, found.data_sha256):
            return found, ""
        reason = "changed"
    return None, reason


def asked(found: Source, id: str, sides: Sequence[Mapping[str, Record]]) -> Asked | None:
    """The prompts of one record of several models; None where there are no benchmark files."""
    item = found.items.get(id)
    if item is None:
        return None
    some: list[Shown] = []
    which: list[int | None] = []
    states: list[str | None] = []
    tried: dict[Any, tuple[Shown, str]] = {}
    for records in sides:
        record = records.get(id)
        if record is None:
            which.append(None)
            states.append(None)
            continue
        before = _before(item, records)
        key = (record.prompt_sha256, record.shots, before)
        if key not in tried:
            tried[key] = _proved(found, item, record, before)
        shown, state = tried[key]
        if shown not in some:
            some.append(shown)
        which.append(some.index(shown))
        states.append(state)
    return Asked(some, which, states)


def _before(item: Item, records: Mapping[str, Record]) -> tuple[str, ...] | None:
    """What a model answered to the sub-questions before one; None where that is not known."""
    if item.part < 2:
        return None
    stem = methods.item(item.id)
    earlier = [records.get(f"{stem}#{k}") for k in range(item.part - 1)]
    if None in earlier:
        return None
    return tuple("".join(record.prediction) for record in earlier if record)


def _proved(
    found: Source, item: Item, record: Record, before: Sequence[str] | None
) -> tuple[Shown, str]:
    first: Shown | None = None
    for renderer, shots in candidates(found.renderers[item.subject], item, record.shots):
        prompt = renderer.render(item, shots, before, answers=False)
        shown = _shown(renderer, shots, prompt)
        first = first or shown
        if prompt.sha256 == record.prompt_sha256:
            return shown, "ok"
        if not record.prompt_sha256:
            return shown, "none"
        if prompt.second:
            return shown, "second"
        if found.chat:
            return shown, "chat"
    assert first is not None, "there is always a first choice of shots"
    return first, "other"


def _shown(renderer: Renderer, shots: Sequence[Item], prompt: Prompt) -> Shown:
    head = renderer.head(shots)
    text = prompt.text + prompt.lead
    if not text.startswith(head):
        head = ""
    return Shown(head, text[len(head) :], len(prompt.lead), prompt.shots)
