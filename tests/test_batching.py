"""The plan: every read once and in its place, every shared token once, packs within the budget."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite.backends.batching import (
    CUT,
    EARLY,
    Node,
    Pack,
    Read,
    Row,
    common,
    halve,
    pack,
    planned_tokens,
    probe,
    trie,
)
from ceval_suite.backends.tiles import tiles

Sketch = tuple[list[int], list[tuple[int, int]]]
"""A row before it is one: its tokens, and (position, next token) of its reads."""


def build(sketches: list[Sketch]) -> list[Row]:
    return [
        Row(
            np.asarray(tokens, np.int32),
            [Read(position, token, (i, k)) for k, (position, token) in enumerate(reads)],
        )
        for i, (tokens, reads) in enumerate(sketches)
    ]


@st.composite
def sketches(draw: st.DrawFn) -> list[Sketch]:
    """Rows that share heads at several levels, over ids whose bytes sort unlike their values."""
    alphabet = draw(st.sampled_from([[1, 2], [0, 1, 255, 256, 65536, 2**30]]))
    some = st.lists(st.sampled_from(alphabet), min_size=1, max_size=8)
    heads: list[list[int]] = [[]]
    for _ in range(draw(st.integers(0, 4))):
        heads.append([*draw(st.sampled_from(heads)), *draw(some)])
    out: list[Sketch] = []
    for _ in range(draw(st.integers(1, 12))):
        tokens = [*draw(st.sampled_from(heads)), *draw(some)]
        last = len(tokens) - 1
        places = draw(st.lists(st.integers(0, last), max_size=3))
        out.append((tokens, [(p, draw(st.integers(0, 5))) for p in [*places, last]]))
    return out


def heads(rows: list[Row]) -> set[tuple[int, ...]]:
    """Distinct non-empty heads, found the naive way: the nodes of the token trie."""
    return {tuple(row.tokens[:n].tolist()) for row in rows for n in range(1, len(row.tokens) + 1)}


def paths(nodes: list[Node]) -> list[list[int]]:
    """The tokens from the root to the end of each node."""
    out: list[list[int]] = []
    for node in nodes:
        above = out[node.parent] if node.parent >= 0 else []
        assert len(above) == node.start
        out.append(above + node.tokens.tolist())
    return out


def all_packs(nodes: list[Node], budget: int, cut: int) -> list[Pack]:
    packs: list[Pack] = []
    while not packs or packs[-1].last < len(nodes):
        packs.append(pack(nodes, packs[-1].last if packs else 0, budget, cut))
    return packs


sizes = st.sampled_from([1, 2, 5, 100])
cuts = st.sampled_from([1, 3, CUT])
windows = st.sampled_from([None, 1, 2, 5, 100])


@given(sketches(), sizes)
def test_every_head_is_one_token_of_the_plan_and_no_other(
    drawn: list[Sketch], longest: int
) -> None:
    rows = build(drawn)
    nodes = trie(rows, longest)
    assert planned_tokens(nodes) == len(heads(rows))
    found = Counter(
        tuple(path[: node.start + k + 1])
        for node, path in zip(nodes, paths(nodes), strict=True)
        for k in range(len(node.tokens))
    )
    assert found == Counter(dict.fromkeys(heads(rows), 1))
    assert all(0 < len(node.tokens) <= longest for node in nodes)
    assert [node.leaf for node in nodes] == [
        all(other.parent != k for other in nodes) for k in range(len(nodes))
    ]


@given(sketches(), sizes)
def test_every_read_stands_once_at_its_own_place_below_its_own_tokens(
    drawn: list[Sketch], longest: int
) -> None:
    rows = build(drawn)
    owner = {read: row for row in rows for read in row.reads}
    nodes = trie(rows, longest)
    found: Counter[Read] = Counter()
    for node, path in zip(nodes, paths(nodes), strict=True):
        for read in node.reads:
            found[read] += 1
            assert node.start <= read.position < node.end
            # the model sees at this position exactly the head of the row that asked
            assert path[: read.position + 1] == owner[read].tokens[: read.position + 1].tolist()
    assert found == Counter(dict.fromkeys(owner, 1))


def seen(packs: list[Pack], nodes: list[Node]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(token, position, what it attends to as (token, position)) of every packed token."""
    kept: dict[int, tuple[int, int]] = {}
    for some in packs:
        own = list(zip(some.tokens.tolist(), some.positions.tolist(), strict=True))
        depth = [0] * len(own)
        for first, last, above in some.stems:
            depth[first:last] = [above] * (last - first)
        places = Counter(int(t) for block in some.blocks for t in block.token)
        assert places == Counter(range(len(own)))
        for block in some.blocks:
            for t, r, c in zip(block.token, block.row, block.column, strict=True):
                assert block.index[r, c] == t
                above = [kept[p] for p in range(depth[t])]
                yield *own[t], above + [own[i] for i in block.index[r, : c + 1]]
        for first, last, at in some.keep:
            kept.update({at + i: own[first + i] for i in range(last - first)})


@given(sketches(), sizes, st.sampled_from([1, 4, 9, 50]), cuts)
def test_every_packed_token_sees_its_own_path_and_nothing_else(
    drawn: list[Sketch], longest: int, budget: int, cut: int
) -> None:
    rows = build(drawn)
    nodes = trie(rows, longest)
    packs = all_packs(nodes, budget, cut)
    assert [some.first for some in packs] == [0, *(some.last for some in packs[:-1])]
    found: Counter[tuple[int, ...]] = Counter()
    for token, position, above in seen(packs, nodes):
        assert [p for _, p in above] == list(range(position + 1))
        assert above[-1] == (token, position)
        found[tuple(t for t, _ in above)] += 1
    assert found == Counter(dict.fromkeys(heads(rows), 1))


@given(sketches(), sizes, st.sampled_from([4, 9, 50]), cuts, st.integers(1, 7), windows)
def test_tiles_show_every_packed_token_what_blocks_show_it(
    drawn: list[Sketch], longest: int, budget: int, cut: int, size: int, window: int | None
) -> None:
    nodes = trie(build(drawn), longest)
    for some in all_packs(nodes, budget, cut):
        depth = np.zeros(len(some.tokens), int)
        for first, last, above in some.stems:
            depth[first:last] = above
        expected: dict[int, tuple[set[int], set[int]]] = {}
        for block in some.blocks:
            for t, r, c in zip(block.token, block.row, block.column, strict=True):
                reach = int(some.positions[t]) - (window or 1 << 30)
                own = {int(i) for i in block.index[r, : c + 1] if some.positions[i] > reach}
                expected[int(t)] = ({p for p in range(depth[t]) if p > reach}, own)
        found: dict[int, tuple[set[int], set[int]]] = {}
        for tile in tiles(some, size, window):
            assert 0 < tile.last - tile.first <= size
            kept = np.arange(tile.start, tile.depth)
            places = np.concatenate([kept, tile.columns])
            sees = np.ones((tile.last - tile.first, len(places)), bool)
            sees[:, len(places) - tile.seen.shape[1] :] = tile.seen
            for row, t in zip(sees, range(tile.first, tile.last), strict=True):
                assert t not in found
                above, own = row[: len(kept)], row[len(kept) :]
                found[t] = (set(kept[above].tolist()), set(tile.columns[own].tolist()))
        assert found == expected


@given(sketches(), sizes, st.sampled_from([1, 4, 9, 50]), cuts)
def test_packs_keep_to_the_budget_and_read_at_the_right_token(
    drawn: list[Sketch], longest: int, budget: int, cut: int
) -> None:
    nodes = trie(build(drawn), longest)
    reads: Counter[Read] = Counter()
    for some in all_packs(nodes, budget, cut):
        assert len(some.tokens) <= budget or some.last - some.first == 1
        for read, at in zip(some.reads, some.at, strict=True):
            assert some.positions[at] == read.position
            reads[read] += 1
        # a long head that others hang below ends its pack, so that they find it kept
        inside = nodes[some.first : some.last - 1]
        assert all(node.leaf or len(node.tokens) < cut for node in inside)
    assert reads == Counter(read for node in nodes for read in node.reads)


@given(sketches(), sizes, st.integers(0, 100))
def test_a_node_cut_in_two_leaves_the_trie_as_it_was(
    drawn: list[Sketch], longest: int, which: int
) -> None:
    rows = build(drawn)
    nodes = trie(rows, longest)
    long = [k for k, node in enumerate(nodes) if len(node.tokens) > 1]
    if not long:
        return
    cut = halve(nodes, long[which % len(long)])
    assert len(cut) == len(nodes) + 1
    assert Counter(tuple(p) for p in paths(cut)) >= Counter(tuple(p) for p in paths(nodes))
    assert planned_tokens(cut) == planned_tokens(nodes)
    found = Counter(tuple(t for t, _ in above) for *_, above in seen(all_packs(cut, 9, 3), cut))
    assert found == Counter(dict.fromkeys(heads(rows), 1))
    for node in cut:
        assert all(node.start <= read.position < node.end for read in node.reads)
    assert Counter(r for n in cut for r in n.reads) == Counter(r for n in nodes for r in n.reads)


@given(sketches(), st.randoms(use_true_random=False), sizes)
def test_the_plan_does_not_depend_on_the_order_of_the_rows(
    drawn: list[Sketch], shuffle: random.Random, longest: int
) -> None:
    def shape(rows: list[Row]) -> list[Any]:
        return [
            (node.start, node.tokens.tolist(), node.parent, frozenset(node.reads))
            for node in trie(rows, longest)
        ]

    rows = build(drawn)
    mixed = list(rows)
    shuffle.shuffle(mixed)
    assert shape(mixed) == shape(rows)


@given(sketches())
def test_new_tokens_of_the_rows_add_up_to_the_plan(drawn: list[Sketch]) -> None:
    rows, before = build(drawn), build(drawn)
    assert planned_tokens(trie(rows, 100)) == sum(row.new for row in rows)
    assert [(r.tokens.tolist(), r.reads) for r in rows] == [
        (r.tokens.tolist(), r.reads) for r in before
    ]


def test_planning_is_linear_in_the_input() -> None:
    # nodes visited, not seconds: each row adds at most two nodes and a cut one
    shots = list(range(3, 300))
    for n in (100, 1000):
        rows = build([([*shots, *divmod(k, 50), 1], [(299, 0)]) for k in range(n)])
        nodes = trie(rows, 1000)
        assert len(nodes) <= 2 * n + 1
        assert planned_tokens(nodes) == len(shots) + -(-n // 50) + n * 2


def test_levels_nest_as_header_then_passage_then_question() -> None:
    header, passage = list(range(100, 140)), list(range(200, 230))
    rows = build(
        [(header + passage + [1, k], [(71, 0)]) for k in range(3)]
        + [([*header, 2, k], [(41, 0)]) for k in range(3)]
    )
    nodes = trie(rows, 100)
    assert [(n.start, len(n.tokens), n.parent) for n in nodes] == [
        (0, 40, -1),
        (40, 1, 0),
        (41, 1, 1),
        (41, 1, 1),
        (41, 1, 1),
        (40, 31, 0),
        (71, 1, 5),
        (71, 1, 5),
        (71, 1, 5),
    ]


def test_no_rows_make_an_empty_plan() -> None:
    assert trie([], 10) == []


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_common_is_the_length_of_the_common_head(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common(np.asarray(a, np.int32), np.asarray(b, np.int32)) == n


@given(sketches(), st.integers(1, 40))
@settings(max_examples=50)
def test_a_probe_tries_kept_and_shared_heads_whatever_was_asked(
    drawn: list[Sketch], length: int
) -> None:
    rows = build(drawn)
    tried = probe(rows, length)
    longest = max(len(row.tokens) for row in rows)
    assert {len(row.tokens) for row in tried} == {min(length, longest)}
    assert any(
        row.tokens[: len(tried[0].tokens)].tolist() == tried[0].tokens.tolist() for row in rows
    )
    # reads of the probe never meet those of a request
    assert all(read.slot[0] < 0 for row in tried for read in row.reads)
    keys = [(read.slot, read.position) for row in tried for read in row.reads]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("length", [EARLY + 1, 2 * EARLY, 500])
def test_a_probe_leaves_its_row_early_and_half_way(length: int) -> None:
    tried = probe(build([(list(range(length)), [(length - 1, 3)])]), length)
    starts = {node.start for node in trie(tried, 1000)}
    assert starts == (
        {0, EARLY} if length < 4 * EARLY and length // 2 <= EARLY else {0, EARLY, 250}
    )
    # read right after the border, where a forgotten head shows most
    for row, border in zip(tried[1:], sorted(starts - {0}), strict=True):
        assert {read.position for read in row.reads} >= {border, length - 1}
