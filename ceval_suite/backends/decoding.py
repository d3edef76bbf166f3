"""Greedy writing: contexts computed once, then a token a step for many rows at once.

Contexts are taken in the order of the prefix tree. Those that stand together form a group: what all
of them share is kept once, each row keeps the rest of its own. Groups follow each other without
forgetting what they share. One path for models that can be packed, found right by trying; the
others write one row at a time by transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ceval_suite.backends import drafts as plan
from ceval_suite.backends import writing
from ceval_suite.backends.attention import FAILURES
from ceval_suite.backends.base import NotFinite
from ceval_suite.backends.batching import common
from ceval_suite.backends.drafts import D, Draft, Pen, Writing
from ceval_suite.backends.forward import Forward
from ceval_suite.backends.steps import Catching, Step, Tails
from ceval_suite.backends.validity import TOLERANCE
from ceval_suite.errors import NotNow, no_memory

ROWS = {"cpu": 48, "cuda": 256}
"""Rows that are written together at most, by kind of device."""

BYTES = 2 << 30
"""Keys and values of rows' own tails held at once on a CPU, at most."""

SHARE = 0.4
"""The share of a GPU's free memory that they may take."""

TRIED = 6
"""Tokens that are written by steps and read by the plain path, to see that steps are right."""

HALF = 64
"""Tokens from either end of a context that make a row to try them on."""


class Decoder:
    """Writes rows by the packed path."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.steps = 0
        self._rows = ROWS.get(forward.device.type, ROWS["cpu"])

    def write(self, drafts: Sequence[D]) -> Iterator[D]:
        """Write all drafts; each is given back as it comes to its end.

        Raises:
            ModelError: logits that are not finite, or no memory for a single row.
        """
        ordered = plan.in_order(drafts)
        if self.forward.settled:
            self._rows = ROWS.get(self.forward.device.type, ROWS["cpu"])
        self.forward.use_packed()
        store = Catching(max(len(draft.tokens) for draft in ordered))
        kept = ordered[0].tokens[:0]
        given: set[int] = set()
        first = 0
        while first < len(ordered):
            room = max(len(d.tokens) + d.most for d in ordered[first : first + self._rows])
            size = self._fitting(room)
            start, end = plan.groups(ordered[first : first + 2 * size], size)[0]
            some = ordered[first + start : first + end]
            try:
                for draft in self._group(some, store, kept):
                    given.add(id(draft))
                    yield draft
            except (MemoryError, RuntimeError) as error:
                if not no_memory(error):
                    raise
                if len(some) == 1:
                    raise NotNow(
                        f"out of memory on writing one row of {len(some[0].tokens)} tokens; use a "
                        "smaller dtype or another device."
                    ) from None
                self._rows = len(some) // 2
                self.forward.say(
                    f"out of memory: {self._rows} rows are written at once from now on"
                )
                store.kept.clear()
                kept = kept[:0]
                # those that have been given back stay where they are
                ordered = ordered[:first] + [d for d in ordered[first:] if id(d) not in given]
                for draft in ordered[first:]:
                    draft.restart()
                continue
            kept = some[0].tokens[: store.stem]
            first += end

    def _fitting(self, room: int) -> int:
        """How many rows of so many tokens may be kept at once."""
        device = self.forward.device
        free = BYTES
        if device.type == "cuda" and not (self.forward.in_step or self.forward.settled):
            free = int(SHARE * torch.cuda.mem_get_info(device)[0])
        if self.forward.memory is not None:
            free = min(free, self.forward.memory // 8)
        row = max(1, self.forward.bytes_kept() * room)
        return max(1, min(self._rows, free // row))

    def _group(self, some: Sequence[D], store: Catching, kept: np.ndarray[Any, Any]) -> Iterator[D]:
        self.forward.use_packed()
        store.stem = plan.stem(some)
        have = common(kept, some[0].tokens[: store.stem])
        room = max(len(d.tokens) + d.most for d in some) - store.stem
        store.tails = Tails(list(range(len(some))), room)
        nodes = plan.planned(some, have, self.forward.sizes.longest)
        written = [len(draft.tokens) - store.stem for draft in some]
        ended: set[int] = set()
        for pack, logits in self.forward.passes(nodes, store):
            rows = [some[read.slot[0]] for read in pack.reads]
            for read, said in zip(pack.reads, _said(logits, rows), strict=False):
                if some[read.slot[0]].take(said):
                    ended.add(read.slot[0])
        slots = store.tails.slots
        for slot in range(len(slots) - 1, -1, -1):
            if slots[slot] in ended:
                yield some[slots[slot]]
                store.tails.drop(slot)
        while slots:
            step = Step(store, [written[row] for row in slots], self.forward.device)
            logits = self.forward.step(step, [some[row].ids[-1] for row in slots])
            self.steps += 1
            told = _said(logits, [some[row] for row in slots])
            for slot, said in reversed(list(enumerate(told))):
                row = slots[slot]
                written[row] += 1
                if some[row].take(said):
                    yield some[row]
                    store.tails.drop(slot)

    def check(self, drafts: Sequence[Draft], pen: Pen, crossed: Sequence[int] = ()) -> str:
        """Write a few tokens by steps and read them by the plain path; what is wrong, or nothing.

        Rows are both ends of a context, and what is left of that when its own end is cut off, so
        that they share a stem and have tails of their own. Attention windows, chunks and scalings
        of positions set in at the lengths `crossed`: there rows are tried that pass them.
        """
        longest = max((draft.tokens for draft in drafts), key=len)
        short = longest
        if len(longest) > 2 * HALF:
            short = np.concatenate([longest[:HALF], longest[-HALF:]])
        rows = [short, *(np.resize(longest, max(1, n - TRIED // 2)) for n in crossed)]
        return next(filter(None, (self._wrong(row, pen) for row in rows)), "")

    def _wrong(self, longest: np.ndarray[Any, Any], pen: Pen) -> str:
        ends = {len(longest), max(1, len(longest) - HALF // 2), max(1, len(longest) - HALF // 3)}
        tried = [Writing(pen, longest[:end], TRIED) for end in sorted(ends)]
        before = self.forward.computed
        try:
            list(self.write(tried))
            worst = _below_best(self.forward, tried)
        except FAILURES as error:
            return " ".join(str(error).split())[:200] or type(error).__name__
        finally:
            self.forward.computed, self.steps = before, 0
        if not worst <= TOLERANCE.get(self.forward.dtype, 0.5):
            return f"steps choose a token whose logit is {worst:.2g} below the best"
        return ""


def _below_best(forward: Forward, drafts: Sequence[Writing]) -> float:
    """How far the logit of what was written is below the best one, by the plain path, at most."""
    worst = 0.0
    for draft in drafts:
        row = np.concatenate([draft.tokens, np.asarray(draft.ids[:-1], np.int32)])
        logits = forward.plainly(row, range(len(draft.tokens) - 1, len(row)))
        chosen = torch.tensor(draft.ids, device=logits.device)[:, None]
        worst = max(worst, float((logits.max(-1).values - logits.gather(1, chosen)[:, 0]).max()))
    return worst


@dataclass(frozen=True)
class _Said:
    """One row of logits [V], and the likeliest token."""

    row: torch.Tensor
    best: int

    def of(self, tokens: Sequence[int]) -> list[tuple[float, float]]:
        """Logit and natural log-probability of each token."""
        found = self.row[torch.tensor(tokens, device=self.row.device)]
        return list(zip(found.tolist(), (found - self.row.logsumexp(-1)).tolist(), strict=True))


def _said(logits: torch.Tensor, drafts: Sequence[Any]) -> list[_Said]:
    """Each row of logits [A, V], which are those of `drafts`.

    Raises:
        NotFinite: not a finite number.
    """
    best = logits.max(-1)
    finite = torch.isfinite(best.values).tolist()
    if not all(finite[: len(drafts)]):
        raise NotFinite(drafts[finite.index(False)])
    return [_Said(row, token) for row, token in zip(logits, best.indices.tolist(), strict=True)]


def one_by_one(
    forward: Forward, drafts: Sequence[Writing], pen: Pen, pad: int
) -> Iterator[Writing]:
    """Write by transformers' own `generate`, one row at a time; no scores are taken.

    Its cache is used where a few tokens that it gives are those of the model without one.
    """
    forward.use_plain()
    tried = Writing(pen.endless(), max((d.tokens for d in drafts), key=len), TRIED)
    _generated(forward.model, tried, pad, cached=True)
    cached = _below_best(forward, [tried]) <= TOLERANCE.get(forward.dtype, 0.5)
    for draft in drafts:
        forward.use_plain()
        _generated(forward.model, draft, pad, cached=cached)
        forward.computed += len(draft.tokens) + len(draft.ids)
        yield draft


def _generated(model: Any, draft: Writing, pad: int, *, cached: bool) -> None:
    from transformers import GenerationConfig

    def ended(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        # the same pen decides as on the packed path
        return torch.tensor([draft.add(int(ids[0, -1]))], device=ids.device)

    ids = torch.as_tensor(draft.tokens, dtype=torch.long, device=model.device)[None]
    config = GenerationConfig(
        max_new_tokens=draft.most,
        do_sample=False,
        use_cache=cached,
        pad_token_id=pad,
        eos_token_id=sorted(draft.pen.ends) or None,
    )
    with writing.settings(model, config):
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=[ended],
            logits_processor=[writing.Finite([draft])],
        )
