"""Forward passes: rows alone through the model as transformers writes it, or packed.

Two paths, one answer. Which one is valid for a model is decided by trying both on real rows,
never by a list of names.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from ceval_suite import stopping
from ceval_suite.backends import attention, placement, products
from ceval_suite.backends.base import Say
from ceval_suite.backends.batching import (
    CUT,
    Node,
    Pack,
    Read,
    Row,
    Score,
    Tokens,
    halve,
    pack,
    trie,
)
from ceval_suite.backends.head import Float32Head, LastMLP, Post, Waiting, post_processing, scores
from ceval_suite.backends.layout import Layout, Store
from ceval_suite.backends.lending import OWN, Lent
from ceval_suite.backends.sizes import SMALLEST, Sizes, no_room, one_row, tokens_in
from ceval_suite.backends.steps import Step
from ceval_suite.errors import ModelError, NotNow, no_memory

LOGITS = 2**27
"""Logits held at once where the head runs inside the model: rows of more reads take more passes,
and packs of such rows are smaller."""


class Forward:
    """Runs rows through one model."""

    def __init__(self, model: Any, say: Say, memory: int | None = None, lent: Lent = OWN) -> None:
        """`memory` caps weights, kept keys and values, and the work on a pack, in bytes."""
        self.model = model
        self.memory = memory
        self.say = say
        self.device = placement.input_device(model)
        self.dtype = lent.dtype or placement.dtype(model)
        self.computed = 0
        self.sizes = Sizes(self.device.type)
        self._kept_bytes = 0
        self.in_step = self.settled = False
        self._cached_lengths = [
            (module, name)
            for module in model.modules()
            for name in vars(module)
            if name.endswith("max_seq_len_cached")
        ]
        self._plain = str(getattr(model.config, "_attn_implementation", "eager"))
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        inner = model.get_output_embeddings()
        self._width = LOGITS // (int(getattr(inner, "out_features", 0)) or 2**16)
        self._head: Float32Head | None = None
        self._post: Post | None = None
        self._last = LastMLP.of(model)
        if lent.whole and products.plain(inner) and placement.in_one_piece(inner.weight):
            self._head = Float32Head(inner).eval()
            model.set_output_embeddings(self._head)
        # where memory is capped, nothing is held twice; nor are weights that training changes
        room = products.PACKED if memory is None and lent is OWN else 0
        apart = model if lent.whole else torch.nn.Identity()
        self._linears = products.Linears(apart, apart=inner, room=room)
        attention.register()
        if lent is OWN:
            products.keep_memory()

    def give_back(self) -> None:
        """Take out of the model what was put into it."""
        if self._head is not None:
            self.model.set_output_embeddings(self._head.inner)
        self._last.give_back()
        self._use(self._plain)

    def keep_in_step(self) -> None:
        """Decide nothing by time or by what fits here: other processes make the same passes."""
        self.in_step = True
        self.sizes.fix(self.sizes.now)

    def settle(self) -> None:
        """Decide nothing by time, so that the same rows always give the same numbers."""
        self.settled = True
        self.sizes.settle()

    @contextmanager
    def _fast(self) -> Generator[None, None, None]:
        with products.by_rule(self.settled), self._linears.fast():
            yield

    def look_for_largest(self) -> None:
        """From now on every score says whether no token has a larger logit."""
        if self._head is not None:
            self._head.greedy = True

    def kernels(self) -> dict[str, Any]:
        """What computes products and attention on the packed path, as far as it is settled."""
        kind = self.device.type
        with products.by_rule(self.settled):
            return {
                "products": products.kernel(kind, self.dtype).name,
                "copied_weights": self._linears.copied,
                "attention": attention.taken(),
            }

    # the plain path: one row, the model's own attention, the head inside the model

    def plain(self, rows: Sequence[Row]) -> Iterator[Score]:
        """Score rows one at a time, longest first."""
        self._use(self._plain)
        for row in rows:
            row.new = len(row.tokens)
        for row in sorted(rows, key=lambda row: -len(row.tokens)):
            stopping.point()
            self.computed += len(row.tokens)
            ids = torch.as_tensor(row.tokens, dtype=torch.long, device=self.device)[None]
            for at in range(0, len(row.reads), self._width):
                some = row.reads[at : at + self._width]
                with one_row(len(row.tokens)):
                    logits = self._logits(ids, [read.position for read in some])
                    scored = list(scores(some, logits))
                yield from scored

    def _logits(self, ids: torch.Tensor, at: Sequence[int], **inputs: Any) -> torch.Tensor:
        """Logits [len(at), V] in float32 at the positions `at` of ids [1, T]."""
        distinct = sorted(set(at))
        index = torch.tensor(distinct, device=self.device)
        self._forget_lengths()
        if self._keeps:
            inputs["logits_to_keep"] = index
        logits = self.model(input_ids=ids, use_cache=False, **inputs).logits[0]
        if not self._keeps:
            logits = logits[index]
        place = {position: i for i, position in enumerate(distinct)}
        return logits.float()[torch.tensor([place[p] for p in at], device=self.device)]

    def _forget_lengths(self) -> None:
        # dynamic NTK keeps the frequencies of the longest row it has seen, and every shorter row
        # would be scored with those
        for module, name in self._cached_lengths:
            setattr(module, name, 0)

    def _use(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    # the packed path: each token of the trie once

    def packed(self, rows: Sequence[Row], *, cut: int = CUT) -> Iterator[Score]:
        """Score rows together; sets `new` of each row."""
        if not rows:
            return
        self.use_packed()
        waiting = None
        if self._head:
            waiting = Waiting(self._head, self._post_processing(), settled=self.settled)
        collect = waiting is not None and waiting.post is not None
        most = self._width if not collect and any(len(r.reads) > SMALLEST for r in rows) else None
        nodes = trie(rows, min(self.sizes.longest, most or self.sizes.longest))
        store = Store(max(len(row.tokens) for row in rows))
        for some, result in self.passes(nodes, store, collect=collect, most=most, cut=cut):
            if waiting is None or waiting.post is None:
                yield from scores(some.reads, result) if some.reads else ()
            else:
                place = {at: row for row, at in enumerate(sorted(set(some.at)))}
                yield from waiting.add(some.reads, [place[at] for at in some.at], result)
            if stopping.asked():
                break
        if waiting is not None:
            yield from waiting.flush()
        stopping.point()

    def use_packed(self) -> None:
        """Have the model attend as packed passes need it.

        Raises:
            NotPacked: it has an attention of its own.
        """
        self._use(attention.NAME)
        if self.model.config._attn_implementation != attention.NAME:
            raise attention.NotPacked("the model's attention is its own and cannot be replaced")

    def use_plain(self) -> None:
        """Have the model attend as transformers writes it."""
        self._use(self._plain)

    def step(self, step: Step, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [A, V] after one more token of each of A rows."""
        stopping.point()
        self.use_packed()  # between two steps the model may have been used for something else
        ids = torch.tensor(tokens, device=self.device)[None]
        inputs = {"position_ids": step.positions[None], "attention_mask": None}
        with attention.using(step), self._fast():
            logits = self._logits(ids, range(len(tokens)), **inputs)
        self.computed += len(tokens)
        return logits

    def plainly(self, tokens: Tokens, at: Sequence[int]) -> torch.Tensor:
        """Logits [len(at), V] at places of one row, by the model's own attention."""
        self._use(self._plain)
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self.device)[None]
        return self._logits(ids, at)

    def bytes_kept(self) -> int:
        """Bytes that the keys and values of one token take."""
        if not self._kept_bytes:
            self._learn_kept_bytes()
        return self._kept_bytes

    def passes(
        self,
        nodes: list[Node],
        store: Store,
        *,
        collect: bool = False,
        most: int | None = None,
        cut: int = CUT,
    ) -> Iterator[tuple[Pack, torch.Tensor]]:
        """Run the nodes of a trie pass by pass, in smaller ones where memory runs out.

        Yields each pass with the hidden states at its distinct places read, in order, if these are
        collected; else with the logits [reads, V] of its reads, or one row of them without reads.
        """
        first = 0
        while first < len(nodes):
            some = pack(nodes, first, min(self.sizes.now, most or self.sizes.now), cut)
            store.expect(nodes, some)
            result = self._try(some, store, collect)
            if result is None:
                size = len(some.tokens)
                if size <= SMALLEST:
                    raise no_room(size)
                if self.in_step:
                    raise NotNow(
                        f"out of memory on {size} tokens at once; give --memory, or start more "
                        "processes."
                    )
                if some.last - first == 1:
                    nodes = halve(nodes, first)
                torch.cuda.empty_cache()
                self.sizes.fix(size // 2)
                self.say(f"out of memory on {size} tokens at once: {size // 2} from now on")
                continue
            first = some.last
            self._kept_bytes = max(self._kept_bytes, store.bytes_per_token)
            self.computed += len(some.tokens)
            yield some, result

    def fit(self, longest: int) -> None:
        """Make packs small enough for `memory`, beside weights and `longest` kept tokens.

        What a token needs while it is worked on is estimated from the widest layers, generously.

        Raises:
            ModelError: not even a short pack fits.
        """
        if self.memory is not None:
            head = self._head.inner if self._head else None
            self.sizes.cap(tokens_in(self.memory, self.model, head, longest, self.bytes_kept()))

    def _learn_kept_bytes(self) -> None:
        """Keep one token, to see what it takes."""
        before = self.computed
        rows = [Row(np.array([0, last], np.int32), [Read(1, 0, (-last, 0))]) for last in (1, 2)]
        with suppress(*attention.FAILURES):  # then nothing is ever kept
            list(self.packed(rows, cut=1))
        self.computed = before

    def _try(self, some: Pack, store: Store, collect: bool) -> torch.Tensor | None:
        """One pass: hidden states at the distinct places read, in order, or logits of the reads.

        None when memory ran out.
        """
        try:
            with self.sizes.timing(some), attention.using(self._layout(some, store)) as layout:
                positions = torch.as_tensor(some.positions, device=self.device)[None]
                ids = torch.as_tensor(some.tokens, dtype=torch.long, device=self.device)[None]
                inputs = {"position_ids": positions, "attention_mask": None}
                with self._fast():
                    if collect:
                        result = self._hidden(ids, sorted(set(some.at)) or [0], **inputs)
                    else:
                        result = self._logits(ids, some.at or [0], **inputs)
                layout.store.commit()
                return result
        except attention.NotPacked as error:
            raise ModelError(
                f"rows like these cannot be packed ({error}); add --engine plain."
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not no_memory(error):
                raise
            # acted on by the caller, when this traceback no longer keeps the pass's tensors alive
            return None

    def _layout(self, some: Pack, store: Store) -> Layout:
        return Layout(some, store, self.device)

    def _hidden(self, ids: torch.Tensor, at: Sequence[int], **inputs: Any) -> torch.Tensor:
        """What the head is given [len(at), H] at the positions `at` of ids [1, T]."""
        head = self._head
        assert head is not None
        self._forget_lengths()
        index = torch.tensor(at, device=self.device)
        if self._keeps:
            inputs["logits_to_keep"] = index
        head.collecting = True
        try:
            with self._last.only(index, ids.shape[1]):
                self.model(input_ids=ids, use_cache=False, **inputs)
        finally:
            head.collecting = False
        hidden, head.hidden = head.hidden, None
        assert hidden is not None
        return hidden[0] if self._keeps else hidden[0].index_select(0, index.to(hidden.device))

    def _post_processing(self) -> Post | None:
        """What the model does to its logits after the head; found once."""
        if self._post is None and self._head is not None:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            implementation = self.model.config._attn_implementation
            self._use(self._plain)
            self._post = post_processing(
                self._head, lambda: self.model(input_ids=ids, use_cache=False).logits
            )
            self._use(implementation)
        return self._post
