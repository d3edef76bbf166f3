"""Attention of packed tokens: every kept key and value once, each token to its own path.

Registered with transformers as `ceval_packed`. A packed token attends to the kept head of its
path (it sees all of it) and to the packed tokens of its path. There are three ways, all exact:

`native`: a small kernel of our own in C; on CPUs, where it can be compiled.

`fused`: torch's kernels compute the head's part and, in blocks of rows of like length, the own
part; the two are merged by their log-sum-exps:
softmax over A ∪ B = σ(lse_A - lse_B)·out_A + σ(lse_B - lse_A)·out_B.

`tiled`: tiles of tokens against head and own part at once, by matrix products and a softmax in
float32, with a small mask. Soft-capping, attention sinks and windows shorter than the rows always
go this way; for all else the faster of two is taken, timed on a real pass, or the first, where
nothing may depend on time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from ceval_suite.backends import native, products
from ceval_suite.backends.layout import Asked, Call, Layout
from ceval_suite.backends.steps import Step
from ceval_suite.errors import ModelError

NAME = "ceval_packed"

LARGE = 1 << 17
"""Tokens of a pack times the kept tokens that they see, on which the two ways are timed."""

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


FAILURES = (
    NotPacked,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    ModelError,
)
"""What trying the packed path on a model that is not made for it may raise."""


_current: list[Layout | Step] = []


class using:
    """`with using(layout): model(...)` lays out the forward pass as `layout` says."""

    def __init__(self, layout: Layout | Step) -> None:
        self.layout = layout

    def __enter__(self) -> Layout | Step:
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
    window = options.get("sliding_window")
    cap, sinks = options.get("softcap"), options.get("s_aux")
    if isinstance(layout, Layout):
        layout.store.add(layer, key, value, layout.pack)
    kept = layout.store.kept.get(layer)
    if window is not None and layout.reach <= window:
        window = None
    if isinstance(layout, Step):
        asked = Asked(query, key, value, kept, scaling, window, cap, sinks)
        return layout.attend(layer, asked), None
    call = Call(query, key, value, kept, scaling, window, cap, sinks, layout=layout)
    if window is not None or cap is not None or sinks is not None:
        return tiled(call), None
    ways = _ways(query.device.type, query.dtype, query.shape[1], key.shape[1], query.shape[-1])
    if _forced:
        return {**_ALL, **ways.ways}[_forced[-1]](call), None
    if products.ruled():
        return ways.first(call), None
    if not ways.chosen and layout.size * layout.depth >= LARGE:
        ways.choose(call)
    out: torch.Tensor = ways(call)
    return out, None


_forced: list[str] = []


def ways_on(device: str, dtype: torch.dtype) -> list[str]:
    """Names of the ways that packed attention may take on a kind of device."""
    return list(_ways(device, dtype, 1, 1, 1).ways)


@contextmanager
def forced(way: str) -> Generator[None, None, None]:
    """Within it, attention is computed in one way."""
    _forced.append(way)
    try:
        yield
    finally:
        _forced.pop()


_found: dict[tuple[Any, ...], products.Fastest] = {}


def _ways(device: str, dtype: torch.dtype, *sizes: int) -> products.Fastest:
    """How attention of these head counts and widths is computed on a kind of device."""
    key = (device, dtype, *sizes)
    if key not in _found:
        names = ["fused"]
        if device == "cpu":
            compiled = dtype in native.DTYPES and native.kernel() is not None
            names = ["native" if compiled else "fused", "tiled"]
        _found[key] = products.Fastest({name: _ALL[name] for name in names})
    return _found[key]


def taken() -> list[str]:
    """Names of the ways that this process has settled on."""
    if products.ruled():
        return sorted({next(iter(ways.ways)) for ways in _found.values()})
    return sorted({ways.name for ways in _found.values() if ways.chosen})


def fused(call: Call) -> torch.Tensor:
    """Own paths in blocks and kept heads apart, by torch's kernels, merged: [1, T, H, D]."""
    query, layout = call.query, call.layout
    out, lse = _own(query, call.key, call.value, layout, call.scaling)
    if call.kept is None or not layout.depth:
        return out
    heads, width = call.key.shape[1], query.shape[-1]
    for first, last, depth in layout.pack.stems:
        # query heads of one group are laid one after the other along the length, so that kept keys
        # and values are read as they are and never repeated
        folded = query[:, :, first:last].reshape(1, heads, -1, width)
        k, v = (x[:, :, :depth] for x in call.kept)
        head, head_lse = attend(folded, k, v, causal=False, scaling=call.scaling)
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


def tiled(call: Call) -> torch.Tensor:
    """Tiles against kept and packed tokens: [1, T, H, D].

    On a CPU head by head, so that the scores stay in its cache; elsewhere all heads at once.
    """
    query, layout, cpu = call.query, call.layout, call.query.device.type == "cpu"
    heads, width = call.key.shape[1], query.shape[-1]
    groups = query.shape[1] // heads
    scale = call.scaling if call.scaling is not None else width**-0.5
    out = query.new_empty(1, layout.size, query.shape[1], call.value.shape[-1])
    parts = layout.tiles(call.window)
    extra = call.sinks is not None
    room = max(tile.depth - tile.start + len(tile.columns) for tile, *_ in parts) + extra
    # a narrow product would round the scores on a CPU, and shares it need not; a GPU takes both
    wide = torch.float32 if cpu else query.dtype
    # the query heads of a group stand side by side at each token: a tile is one run of memory
    queries = query.new_empty(heads, layout.size, groups, width, dtype=wide)
    queries.copy_(query[0].unflatten(0, (heads, groups)).transpose(1, 2)).mul_(scale)
    keys = query.new_zeros(heads, room, width, dtype=wide)
    values = query.new_zeros(heads, room, call.value.shape[-1])
    sides = ((keys, call.key[0]), (values, call.value[0]))
    some = [slice(h, h + 1) for h in range(heads)] if cpu else [slice(0, heads)]
    filled = (0, 0)
    for tile, columns, mask in parts:
        n, rows = tile.depth - tile.start, slice(tile.first, tile.last)
        end = n + len(tile.columns)
        if n and call.kept is not None:
            begun = min(n, filled[1]) if filled[0] == tile.start else 0
            for (all_, _), kept in zip(sides, call.kept, strict=True):
                all_[:, begun:n] = kept[0, :, tile.start + begun : tile.depth]
        filled = (tile.start, n)
        for all_, own in sides:
            all_[:, n:end] = own[:, columns]
        if extra:
            keys[:, end], values[:, end] = 0, 0
        for h in some:
            scores = _times(queries[h, rows].flatten(1, 2), keys[h, : end + extra].mT).float()
            if call.cap is not None:
                scores = torch.tanh(scores / call.cap) * call.cap
            by_head = scores.unflatten(1, (-1, groups))
            by_head[..., end - mask.shape[1] : end] += mask[:, None]
            if call.sinks is not None:
                by_head[..., end] = call.sinks.unflatten(0, (heads, groups))[h, None].float()
            shares = scores.softmax(-1).to(query.dtype)
            found = _times(shares, values[h, : end + extra]).unflatten(1, (-1, groups))
            out[0, rows].unflatten(1, (heads, groups))[:, h] = found.transpose(0, 1)
    return out


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [h, M, K] times b [h, K, N]; one head by the fastest kernel for products."""
    return products.linear(a[0], b[0].mT)[None] if len(a) == 1 else a @ b


_ALL: dict[str, Callable[[Call], torch.Tensor]] = {
    "native": native.attend,
    "fused": fused,
    "tiled": tiled,
}


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
