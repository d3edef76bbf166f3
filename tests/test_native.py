"""The kernel in C: built once, exact on whatever a pack holds, and never needed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ceval_suite.backends import attention, native
from ceval_suite.backends.batching import Pack, Read, Row, pack, trie
from ceval_suite.backends.layout import Call, Layout, Store

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def packs(seed: int, cut: int) -> list[Pack]:
    """Packs of random rows that share heads at several depths, some longer than a panel of keys."""
    chance = random.Random(seed)
    heads: list[list[int]] = [[]]
    for _ in range(5):
        more = [chance.randrange(9) for _ in range(chance.choice([1, 5, 70, 130]))]
        heads.append([*chance.choice(heads), *more])
    rows: list[Row] = []
    for k in range(12):
        own = [chance.randrange(9) for _ in range(chance.choice([1, 2, 7, 40, 90]))]
        tokens = np.asarray([*chance.choice(heads), *own], np.int32)
        rows.append(Row(tokens, [Read(len(tokens) - 1, 0, (k, 0))]))
    nodes = trie(rows, 1024)
    out = [pack(nodes, 0, 200, cut)]
    while out[-1].last < len(nodes):
        out.append(pack(nodes, out[-1].last, 200, cut))
    return out


@needs_compiler
def test_where_there_is_a_compiler_there_is_a_kernel() -> None:
    assert native.kernel() is not None


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "value_width"),
    [
        (9, 3, 64, 64),
        (4, 4, 80, 80),
        (8, 1, 128, 128),
        (2, 1, 24, 40),
        (3, 3, 9, 7),
        (1, 1, 256, 4),
    ],
)
@pytest.mark.parametrize(("seed", "cut"), [(0, 1), (1, 64), (2, 1 << 30)])
def test_it_computes_softmax_attention_of_every_packed_token(
    dtype: torch.dtype,
    heads: int,
    key_heads: int,
    width: int,
    value_width: int,
    seed: int,
    cut: int,
) -> None:
    torch.manual_seed(seed)
    store = Store(1000)
    depths: set[int] = set()
    for some in packs(seed, cut):
        size = len(some.tokens)
        # as models hand them over: tokens before heads in memory
        query = torch.randn(1, size, heads, width).to(dtype).transpose(1, 2)
        key = torch.randn(1, size, key_heads, width).to(dtype).transpose(1, 2)
        value = torch.randn(1, size, key_heads, value_width).to(dtype).transpose(1, 2)
        layout = Layout(some, store, torch.device("cpu"))
        depths.add(layout.depth)
        call = Call(query * 3, key, value, store.kept.get(0), None, layout=layout)
        found = native.attend(call)
        wide = [x.float() for x in (call.query, key, value)]
        kept = None if call.kept is None else tuple(x.float() for x in call.kept)
        exact = attention.tiled(Call(*wide, kept, None, layout=layout))  # type: ignore[arg-type]
        assert found.dtype == dtype
        within = 3e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(found.float(), exact, atol=within, rtol=within)
        if some.keep:
            store.add(0, key, value, some)
            store.commit()
    assert len(depths) > 1 or cut > 1000


@needs_compiler
def test_far_scores_neither_overflow_nor_vanish() -> None:
    (some, *_) = packs(3, 1 << 30)
    torch.manual_seed(0)
    size = len(some.tokens)
    query, key, value = (torch.randn(1, 2, size, 16) for _ in range(3))
    layout = Layout(some, Store(1), torch.device("cpu"))
    call = Call(query * 300, key, value, None, None, layout=layout)
    torch.testing.assert_close(native.attend(call), attention.tiled(call), atol=1e-4, rtol=1e-4)


@needs_compiler
def test_it_is_built_once_for_a_processor_and_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path))
    first = native._built()
    written = first.stat().st_mtime_ns
    assert native._built() == first
    assert first.stat().st_mtime_ns == written
    assert [p.name for p in first.parent.iterdir()] == [first.name]
    monkeypatch.setattr(native, "_processor", lambda: b"another")
    assert native._built() != first


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_attention_takes_another_way(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "kernel", native.kernel.__wrapped__)
    monkeypatch.setattr(attention, "_found", {})
    assert native.kernel() is None
    found = attention._ways("cpu", torch.float32, -1)
    assert list(found.ways) == ["fused", "tiled"]
