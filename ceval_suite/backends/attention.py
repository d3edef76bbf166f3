"""Attention of packed tokens: every kept key and value once, each token to its own path.

Registered with transformers as `ceval_packed`. A packed token attends to the kept head of its
path (no mask: it sees all of it) and to the packed tokens of its path (causal, in blocks of rows
of like length); the two softmax parts are merged by their log-sum-exps, which is exact:
softmax over A ∪ B = σ(lse_A - lse_B)·out_A + σ(lse_B - lse_A)·out_B.
Soft-capping, attention sinks and windows shorter than the rows are computed with a mask instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ceval_suite.backends.batching import Pack

NAME = "ceval_packed"

KV = tuple[torch.Tensor, torch.Tensor]
"""Keys [1, kv heads, N, key width] and values [1, kv heads, N, value width]."""


_UNDERSTOOD = {
    "sliding_window",
    "softcap",
    "s_aux",
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "past_key_values",
    "cache_position",
    "position_embeddings",
    "logits_to_keep",
}
"""What models pass to an attention that is either computed here or says nothing about it."""


class NotPacked(Exception):
    """This model asks for an attention that packing does not compute; take the plain path."""


@dataclass
class Store:
    """Keys and values of the path that is still open, per layer, at their positions in it.

    What a pass adds waits in `fresh` until the whole pass has succeeded, so that a pass that ran
    out of memory half-way can be repeated in smaller pieces.
    """

    longest: int
    kept: dict[int, KV] = field(default_factory=dict[int, KV])
    fresh: dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]] = field(
        default_factory=dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]]
    )

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor, pack: Pack) -> None:
        """Note the keys and values [1, Hk, T, D] of a pass that later ones need."""
        self.fresh[layer] = [
            (at, key[:, :, first:last].clone(), value[:, :, first:last].clone())
            for first, last, at in pack.keep
        ]

    def commit(self) -> None:
        """The pass succeeded: put what it added in its place."""
        for layer, parts in self.fresh.items():
            for at, key, value in parts:
                if layer not in self.kept:
                    self.kept[layer] = (self._room(key), self._room(value))
                for room, part in zip(self.kept[layer], (key, value), strict=True):
                    room[:, :, at : at + part.shape[2]] = part
        self.fresh.clear()

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one kept token takes over all layers."""
        return sum(
            room[:, :, 0].numel() * room.element_size() for kv in self.kept.values() for room in kv
        )

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(*like.shape[:2], self.longest, like.shape[3])


class Layout:
    """One forward pass on a device: where each packed token stands, and what it sees."""

    def __init__(self, pack: Pack, store: Store, device: torch.device) -> None:
        self.pack = pack
        self.store = store
        self.device = device
        self.size = len(pack.tokens)
        self.reach = int(pack.positions.max()) + 1
        self.depth = max((depth for *_, depth in pack.stems), default=0)
        self.blocks = [
            (torch.as_tensor(b.index.ravel(), device=device), *b.index.shape) for b in pack.blocks
        ]
        take = np.empty(self.size, np.int64)
        offset = 0
        for block in pack.blocks:
            take[block.token] = offset + block.row * block.index.shape[1] + block.column
            offset += block.index.size
        # one row in its own order needs no gathering
        rows = sum(len(block.index) for block in pack.blocks)
        self.straight = rows == 1 and bool((take == np.arange(self.size)).all())
        self.take = torch.as_tensor(take, device=device)
        self._masks: dict[int, torch.Tensor] = {}

    def mask(self, window: int | None) -> tuple[torch.Tensor, int]:
        """Hidden places [T, kept + T] for the kept tokens from the returned position on."""
        span = window or self.reach
        first = max(0, int(self.pack.positions.min()) - span + 1)
        first = min(first, self.depth)
        if span not in self._masks:
            seen = np.zeros((self.size, self.depth - first + self.size), bool)
            for begin, end, depth in self.pack.stems:
                seen[begin:end, : max(0, depth - first)] = True
            for block in self.pack.blocks:
                own = np.arange(block.index.shape[1]) <= block.column[:, None]
                where = np.broadcast_to(block.token[:, None], own.shape)[own]
                seen[where, self.depth - first + block.index[block.row][own]] = True
            at = np.concatenate([np.arange(first, self.depth), self.pack.positions])
            seen &= self.pack.positions[:, None] - at[None] < span
            self._masks[span] = torch.as_tensor(~seen, device=self.device)
        return self._masks[span], first


_current: list[Layout] = []


class using:
    """`with using(layout): model(...)` lays out the forward pass as `layout` says."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __enter__(self) -> Layout:
        _current.append(self.layout)
        return self.layout

    def __exit__(self, *_: object) -> None:
        _current.pop()
        self.layout.store.fresh.clear()


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, Hk, T, D] of packed tokens → [1, T, H, D].

    Raises:
        NotPacked: a bias, sparse blocks or anything else that is not understood here, or a model
            that reshapes the batch.
    """
    del attention_mask, dropout
    layout = _current[-1]
    for option, given in options.items():
        if given is not None and option not in _UNDERSTOOD:
            raise NotPacked(f"attention uses {option}")
    if query.shape[0] != 1 or query.shape[2] != layout.size:
        raise NotPacked("the model reshapes the batch before attention")
    layer = int(module.layer_idx)
    if layout.pack.keep:
        layout.store.add(layer, key, value, layout.pack)
    kept = layout.store.kept.get(layer)
    window = options.get("sliding_window")
    if window is not None and layout.reach <= window:
        window = None
    cap, sinks = options.get("softcap"), options.get("s_aux")
    if window is None and cap is None and sinks is None:
        return _merged(query, key, value, kept, layout, scaling), None
    return _masked(query, key, value, kept, layout, scaling, window, cap, sinks), None


def _merged(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: KV | None,
    layout: Layout,
    scaling: float | None,
) -> torch.Tensor:
    """Own paths in blocks and kept heads apart, merged: [1, T, H, D]."""
    out, lse = _own(query, key, value, layout, scaling)
    if kept is None or not layout.depth:
        return out
    heads, width = key.shape[1], query.shape[-1]
    for first, last, depth in layout.pack.stems:
        # query heads of one group are laid one after the other along the length, so that kept keys
        # and values are read as they are and never repeated
        folded = query[:, :, first:last].reshape(1, heads, -1, width)
        k, v = (x[:, :, :depth] for x in kept)
        head, head_lse = attend(folded, k, v, causal=False, scaling=scaling)
        head = head.reshape(query.shape[1], last - first, -1).transpose(0, 1)
        head_lse = head_lse.reshape(query.shape[1], last - first).transpose(0, 1)
        part = out[0, first:last]
        part.copy_(_merge(part, lse[0, first:last], head, head_lse))
    return out


def _own(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention among the packed tokens: [1, T, H, D] and log-sum-exp [1, T, H]."""
    groups = query.shape[1] // key.shape[1]
    if layout.straight:
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
        out, lse = attend(query, k, v, causal=True, scaling=scaling)
        return out.transpose(1, 2), lse.transpose(1, 2)
    flat = [x[0].transpose(0, 1) for x in (query, key, value)]
    outs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for index, n, length in layout.blocks:
        q, k, v = (x.index_select(0, index).unflatten(0, (n, length)).transpose(1, 2) for x in flat)
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out, lse = attend(q, k, v, causal=True, scaling=scaling)
        outs.append(out.transpose(1, 2).flatten(0, 1))
        sums.append(lse.transpose(1, 2).flatten(0, 1))
    out = torch.cat(outs).index_select(0, layout.take)
    return out[None], torch.cat(sums).index_select(0, layout.take)[None]


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: KV | None,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """All packed tokens against kept and packed ones under a mask: [1, T, H, D]."""
    hidden, first = layout.mask(window)
    if kept is not None and layout.depth > first:
        key, value = (
            torch.cat([x[:, :, first : layout.depth], own], 2)
            for x, own in zip(kept, (key, value), strict=True)
        )
    groups = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = query.new_empty(1, layout.size, query.shape[1], value.shape[-1])
    for head in range(key.shape[1]):  # one at a time keeps the scores small
        some = slice(head * groups, (head + 1) * groups)
        scores = (query[0, some] @ key[0, head].T).float() * scale
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            sink = sinks[some].float()[:, None, None].expand(groups, layout.size, 1)
            scores = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            scores = scores.softmax(-1)
        out[0, :, some] = (scores.to(value.dtype) @ value[0, head]).transpose(0, 1)
    return out


def _merge(
    a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor
) -> torch.Tensor:
    """Two parts of one softmax attention [..., D] by their log-sum-exps [...]."""
    weight = torch.sigmoid((lse_a - lse_b).float())[..., None]
    return torch.lerp(b.float(), a.float(), weight).to(a.dtype)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention [n, H, L, D] with equal heads, and its log-sum-exp [n, H, L].

    torch's own fused kernels, which return both, where they take the sizes; else the products
    themselves, with the softmax in float32.
    """
    same = query.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and same:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(query, key, value, 0.0, causal, scale=scaling)
        return out, lse
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type == "cuda" and same and half and query.shape[-1] % 8 == 0:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, *_ = kernel(query, key, value, 0.0, causal, scale=scaling)
        return out, lse[..., : query.shape[2]]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def register() -> None:
    """Make `ceval_packed` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
