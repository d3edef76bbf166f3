"""Attention of packed tails: the shared head's keys and values once, each tail to itself.

Registered with transformers as `ceval_packed`. Queries attend to the stem (no mask: every token
sees all of it) and to their own tail (causal), and the two softmax parts are merged by their
log-sum-exps, which is exact:  softmax over A ∪ B = σ(lse_A - lse_B)·out_A + σ(lse_B - lse_A)·out_B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ceval_suite.backends.batching import Segment

NAME = "ceval_packed"


class NotPacked(Exception):
    """This model asks for an attention that packing does not compute; take the plain path."""


@dataclass
class Pack:
    """Layout of one forward pass: where each packed token stands in its own tail.

    `row`, `column` [T] place token t in a padded [n, longest] grid, used for attention only.
    `stem` maps a layer to keys and values [1, kv heads, P, width] of the tokens above; `own`
    receives this pass's keys and values when `keep` is set.
    """

    row: torch.Tensor
    column: torch.Tensor
    n: int
    longest: int
    positions: int
    stem: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[int, tuple[torch.Tensor, torch.Tensor]]
    )
    keep: bool = False
    own: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[int, tuple[torch.Tensor, torch.Tensor]]
    )


def layout(
    segments: Sequence[Segment],
    kv: dict[int, tuple[torch.Tensor, torch.Tensor]],
    device: torch.device,
) -> Pack:
    """`segments` one after the other in a pass, below the stem with keys and values `kv`."""
    lengths = torch.tensor([len(s.tokens) for s in segments], device=device)
    row = torch.repeat_interleave(torch.arange(len(segments), device=device), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    column = torch.arange(int(lengths.sum()), device=device) - starts[row]
    return Pack(
        row=row,
        column=column,
        n=len(segments),
        longest=int(lengths.max()),
        positions=max(s.start + len(s.tokens) for s in segments),
        stem=kv,
    )


_current: list[Pack] = []


class using:
    """`with using(pack): model(...)` lays out the forward pass as `pack` says."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def __enter__(self) -> Pack:
        _current.append(self.pack)
        return self.pack

    def __exit__(self, *_: object) -> None:
        _current.pop()


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
        NotPacked: soft-capping, attention sinks, biases or a window shorter than the rows.
    """
    del attention_mask, dropout
    pack = _current[-1]
    window = options.get("sliding_window")
    if window is not None and pack.positions > window:
        raise NotPacked(f"rows of {pack.positions} tokens exceed the attention window of {window}")
    for option in ("softcap", "s_aux", "position_bias", "head_mask"):
        if options.get(option) is not None:
            raise NotPacked(f"attention uses {option}")
    if query.shape[0] != 1:
        raise NotPacked("the model reshapes the batch before attention")
    layer = int(module.layer_idx)
    if pack.keep:
        pack.own[layer] = (key, value)
    out, lse = _tails(query, key, value, pack, scaling)
    if layer in pack.stem:
        out = _merge(out, lse, *_stem(query, *pack.stem[layer], scaling))
    return out.transpose(1, 2).contiguous(), None


def _stem(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    # query heads of one group are laid one after the other along the length, so that the stem's
    # keys and values are read as they are and never repeated
    _, heads, length, width = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(1, key.shape[1], groups * length, width)
    out, lse = attend(folded, key, value, causal=False, scaling=scaling)
    return out.reshape(1, heads, length, value.shape[-1]), lse.reshape(1, heads, length)


def _tails(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = query.shape[1] // key.shape[1]
    grids: list[torch.Tensor] = []
    for x in (query, key, value):
        grid = x.new_zeros(pack.n, x.shape[1], pack.longest, x.shape[3])
        grid[pack.row, :, pack.column] = x[0].transpose(0, 1)
        grids.append(grid)
    q, k, v = grids
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out, lse = attend(q, k, v, causal=True, scaling=scaling)
    flat = out[pack.row, :, pack.column].transpose(0, 1)[None]
    return flat, lse[pack.row, :, pack.column].transpose(0, 1)[None]


def _merge(
    a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor
) -> torch.Tensor:
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

    On CPUs torch's own fused kernel, which returns both; elsewhere the products themselves, with
    the softmax in float32.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(query, key, value, 0.0, causal, scale=scaling)
        return out, lse
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
