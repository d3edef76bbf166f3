"""What shows that an extended checkpoint is its base and more: bytes, rows, ids and answers.

Everything is read back from disk. Models are loaded one after the other, in the dtype that they
are stored in, so that their weights stay mapped files; the base's answers wait in a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ceval_suite.backends import adapter_proof, checkpoint, growing, loading, mapped
from ceval_suite.backends.adapter_proof import TEXT
from ceval_suite.backends.rewriting import Rows, contents
from ceval_suite.backends.row_init import Average, Plan
from ceval_suite.backends.tokenizers import load_tokenizer
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec

PROMPTS = (
    TEXT,
    "The mitochondrion is found in nearly every cell of plants and animals. Its main task is to",
    "Question: A train covers 180 km in 2 hours and 30 minutes. What is its mean speed?\nAnswer:",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n",
    "题目：下列各组数中，互为相反数的是\nA. 2和-2\nB. 2和0.5\nC. -2和-0.5\nD. 0和1\n答案是：",
    "In 1905 he published four papers; the third, on moving bodies, said that nothing is faster.",
)
"""Texts put to base and result where no others are given."""

LONGEST = 2048
"""Tokens of a text that are looked at."""

SAMPLE = 256
"""New rows that are computed again."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""How far logits may lie apart, as a share of the largest: a matrix of more rows may be multiplied
in another order, and half precision rounds that to one place or the next."""


@dataclass(frozen=True)
class Sides:
    """The base as read and the folder written, as specs that need nothing else, and the dtype
    that all floating tensors were given (None where each kept its own)."""

    base: ModelSpec
    result: ModelSpec
    dtype: torch.dtype | None

    @property
    def places(self) -> tuple[Path, Path]:
        """Their directories."""
        return Path(self.base.path), Path(self.result.path)


def tokens(spec: ModelSpec, *vocabularies: Mapping[int, growing.Token]) -> Any:
    """The written tokenizer, which gives every id the token that was meant.

    Raises:
        ModelError: it does not.
    """
    tokenizer = load_tokenizer(spec)
    found = growing.vocabulary(tokenizer)
    for meant in vocabularies:
        at = growing.first_difference(meant, found)
        if at is not None:
            raise ModelError(
                f"{spec.path}: the tokenizer as written has {found.get(at)!r} at id {at} where "
                f"{meant[at]!r} was meant, and was not kept; report this."
            )
    return tokenizer


def weights(sides: Sides, names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Every tensor read back: old rows and all other tensors as they were, new rows finite.

    Raises:
        ModelError: a tensor that is not what was meant to be written.
    """
    before, after = (checkpoint.tensors(place) for place in sides.places)
    if set(before) != set(after):
        (name, *_) = sorted(set(before) ^ set(after))
        raise ModelError(f"{name}: in one of base and result alone; report this.")
    finite = 0
    for name in sorted(before):
        if name in names:
            pair = (_kept(Rows(side[name]), plan, sides.dtype) for side in (before, after))
            finite = _made(name, Rows(after[name]), plan)
        else:
            pair = contents(before[name], sides.dtype), contents(after[name])
        for one, other in zip_longest(*pair):
            if one is None or other is None or not torch.equal(_bytes(one), _bytes(other)):
                raise ModelError(
                    f"{name}: does not read back as it stands in the base, and the checkpoint was "
                    "not kept; report this."
                )
    return {
        "tensors_unchanged": len(before) - len(names),
        "old_rows_unchanged": plan.before - len(_taken(plan)),
        "new_rows_finite": finite,
    }


def _taken(plan: Plan) -> list[int]:
    """Rows of padding that new tokens took over."""
    return [i for i in plan.new if i < plan.before]


def _kept(rows: Rows, plan: Plan, dtype: torch.dtype | None) -> Iterator[torch.Tensor]:
    """The rows that stay, in the dtype that was written."""
    kept = torch.ones(plan.before, dtype=torch.bool)
    kept[torch.tensor(_taken(plan), dtype=torch.long)] = False
    step = max(1, 2**18 // max(1, rows.width))
    for first in range(0, plan.before, step):
        last = min(first + step, plan.before)
        block = rows.between(first, last)[kept[first:last]]
        yield block if dtype is None else block.to(dtype)


def _made(name: str, rows: Rows, plan: Plan) -> int:
    """How many rows were made, all of finite numbers."""
    made = [*_taken(plan), *range(plan.before, plan.after)]
    for first in range(0, len(made), rows.step):
        some = made[first : first + rows.step]
        finite = rows.at(some).isfinite().all(1)
        if not bool(finite.all()):
            at = some[int((~finite).nonzero()[0, 0])]
            raise ModelError(
                f"{name}: the new row {at} is not finite, and the checkpoint was not kept; the "
                "base's own rows are broken, or --dtype is too narrow."
            )
    return len(made)


def _bytes(block: torch.Tensor) -> torch.Tensor:
    return block.contiguous().reshape(-1).view(torch.uint8)


def sample(
    sides: Sides, names: Mapping[str, Average], plan: Plan, base: Any, tokenizer: Any, **how: bool
) -> dict[str, Any]:
    """Rows computed again, from the tokenizers and files as they lie there, in float64.

    Raises:
        ModelError: one of them is another.
    """
    some = plan.new[:: -(-len(plan.new) // SAMPLE)]
    unknown = growing.unknown(base)
    found = growing.pieces(base, tokenizer, some, **how)
    before, after = (checkpoint.tensors(place) for place in sides.places)
    largest = 0.0
    for name, average in names.items():
        old, new = Rows(before[name]), Rows(after[name]).at(some)
        # rounding to the stored type, and a sum of float32 in another order
        near = torch.finfo(new.dtype).eps + 1e-5
        for i, pieces, row in zip(some, found, new.double(), strict=True):
            known = [p for p in pieces if p < plan.before and p != unknown]
            parts = old.at(known).double() if known else average.row[None]
            meant = parts.mean(0)
            scale = 1.0
            if plan.init == "norm-matched" and len(meant) > 1 and meant.any():
                scale = average.norm / float(meant.norm())
            meant = meant * scale
            away = float((row - meant).abs().max())
            largest = max(largest, away)
            if not away <= near * scale * float(parts.abs().max()):
                raise ModelError(
                    f"{name}: row {i} lies {away:.2g} from the mean of {known} computed again, and "
                    "the checkpoint was not kept; report this."
                )
    return {"rows_computed_again": len(some), "largest_difference": largest}


@dataclass(frozen=True)
class Text:
    """What is put to both models: the base's ids, and whether the result's tokenizer agrees."""

    ids: Sequence[int]
    alike: bool


def tokenised(base: Any, tokenizer: Any, texts: Sequence[str]) -> list[Text]:
    """Texts, or those built in where there are none, as old ids."""
    both = ((_ids(base, text), _ids(tokenizer, text)) for text in texts or PROMPTS)
    return [Text(ids, ids == again) for ids, again in both if ids]


def answers(sides: Sides, plan: Plan, texts: Sequence[Text]) -> dict[str, Any]:
    """The logits that base and result give to the same old ids after the same old ids.

    Raises:
        ModelError: they differ by more than rounding, or the result has another number of rows.
    """
    given = [text.ids for text in texts]
    said = _Compared()
    old = torch.tensor(plan.old)  # not what was padding
    with tempfile.TemporaryFile(dir=sides.places[1].parent) as wait:
        states: list[bytes] = []
        for state, logits in _asked(sides.base, given, plan.before):
            states.append(state)
            wait.write(logits.numpy().tobytes())
        wait.seek(0)
        asked = _asked(sides.result, given, plan.after)
        for state, (other, logits) in zip(states, asked, strict=True):
            kept = torch.frombuffer(bytearray(wait.read(4 * plan.before)), dtype=torch.float32)
            said.take(kept[old], logits[old], state == other)
    tolerance = TOLERANCE[getattr(torch, sides.base.dtype)]
    if not said.relative <= tolerance:
        raise ModelError(
            f"{sides.base.path}: logits of old ids moved by {said.largest:.2g}, "
            f"{said.relative:.1g} of the largest where {tolerance:g} is rounding, and the "
            "checkpoint was not kept; report this."
        )
    return {
        "prompts": len(texts),
        "tokens": sum(len(some) for some in given),
        "prompts_that_resegment": sum(not text.alike for text in texts),
        "dtype": sides.base.dtype,
        "hidden_states_identical": said.states,
        "logits_identical": said.identical,
        "largest_difference": said.largest,
        "tolerance": f"{tolerance:g} of the largest logit",
    }


@dataclass
class _Compared:
    """How far two models' logits of old ids lie apart: prompts alike to the last bit, and else."""

    states: int = 0
    identical: int = 0
    largest: float = 0.0
    relative: float = 0.0

    def take(self, one: torch.Tensor, other: torch.Tensor, state: bool) -> None:
        self.states += state
        self.identical += torch.equal(one, other)
        away = float((one - other).abs().max())
        share = away / max(float(one.abs().max()), 1e-12)
        # not max(), which passes over what is not a number
        self.largest = away if not away <= self.largest else self.largest
        self.relative = share if not share <= self.relative else self.relative


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text)["input_ids"]]


def release() -> None:
    """Give freed memory back to the system; glibc keeps it for itself otherwise."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not on every system
        ctypes.CDLL(None).malloc_trim(0)


@torch.no_grad()
def _asked(
    spec: ModelSpec, given: Sequence[Sequence[int]], rows: int
) -> Iterator[tuple[bytes, torch.Tensor]]:
    """For each text a digest of all its hidden states, and the logits [V] after its last token."""
    loaded = loading.load(spec)
    model, longest = loaded.model, min(LONGEST, loaded.max_length)
    found = int(loaded.about["embedding_rows"])
    del loaded  # the tokenizer has done its part
    release()
    mapped.let_go_after_use(model)
    state = hashlib.blake2b()
    head = model.get_output_embeddings()

    def only_last(_: Any, given: tuple[Any, ...]) -> Any:
        if not given:
            return None
        state.update(_bytes(given[0]).numpy().data)
        return (given[0][:, -1:], *given[1:])

    if head is not None:
        head.register_forward_pre_hook(only_last)
    for ids in given:
        state = hashlib.blake2b()
        logits = adapter_proof.logits(model, torch.tensor([ids[:longest]]))[-1]
        if (len(logits), found) != (rows, rows):
            raise ModelError(
                f"{spec.path}: {len(logits)} logits and {found} rows where {rows} of both were "
                "meant, and the checkpoint was not kept; report this."
            )
        yield state.digest(), logits
    del model, head  # before the other side is loaded
    release()
