"""The very prompts of a finished run, rendered again and proved by their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from ceval_suite import finished
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.prepare import Prepared
from ceval_suite.prompt import Prompt, Renderer
from ceval_suite.schema import Item, Record


def prompts(side: Side, data: Path | None = None) -> tuple[Prepared, dict[str, Prompt]]:
    """The task as it was asked, and the prompt of each record that could be proved, by its id.

    Whole shots may have been dropped: which ones, the hash of the prompt says. What only the model
    knows (a chat template, a first answer that a second question goes on from) cannot be rebuilt;
    the records of such prompts are left out.

    Raises:
        RunError: the files are not those of the run, or a record is of no item in them.
        UserError: the files are not to be found.
    """
    prepared = finished.questions(side, data)
    items = {id: item for item in prepared.scored() for id in item.record_ids()}
    renderers: dict[str, Renderer] = {}
    out: dict[str, Prompt] = {}
    for id, record in side.records.items():
        if id not in items:
            raise RunError(f"{side.path}: item {id} does not belong to this run; delete it.")
        item = items[id]
        if item.subject not in renderers:
            renderers[item.subject] = prepared.renderer(item.subject)
        found = _proved(renderers[item.subject], item, record, _before(side, item))
        if found is not None:
            out[id] = found
    return prepared, out


def _before(side: Side, item: Item) -> list[str]:
    """What the model answered to the sub-questions before this one."""
    stem = item.id.rpartition("#")[0]
    records = [side.records.get(f"{stem}#{k}") for k in range(item.part - 1)]
    return ["".join(r.prediction) if r is not None else "" for r in records]


def _proved(renderer: Renderer, item: Item, record: Record, before: Sequence[str]) -> Prompt | None:
    for one in candidates(renderer, item, record.shots):
        prompt = one[0].render(item, one[1], before if item.part else None)
        texts = (prompt.text + prompt.lead, prompt.text)
        if any(hashlib.sha256(t.encode()).hexdigest() == record.prompt_sha256 for t in texts):
            return prompt
    return None


def candidates(
    renderer: Renderer, item: Item, shots: int
) -> Iterator[tuple[Renderer, Sequence[Item]]]:
    """Renderers and the `shots` items that a fitting rule can have left, the usual ones first."""
    shown = list(renderer.shots)
    if shots <= len(shown):
        yield renderer, shown[:shots]
    for some in combinations(shown, shots) if shots < len(shown) else ():
        if list(some) != shown[:shots]:
            yield renderer, some
    if renderer.template.fit == "drop_longest" and not shots:  # at last the header goes as well
        template = renderer.template.model_copy(update={"header": "", "zero_shot": None})
        yield replace(renderer, template=template, shots=(), _heads={}, _row={}), ()
