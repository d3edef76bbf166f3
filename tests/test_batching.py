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
    MIN_STEM,
    Read,
    Row,
    Segment,
    Stem,
    common,
    merge_rows,
    pack,
    plan,
    planned_tokens,
    probe,
)

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


def leaves(root: Stem) -> Iterator[tuple[list[int], Segment]]:
    """Every segment with the tokens of the stems above it, followed down from the root."""

    def down(stem: Stem, above: list[int]) -> Iterator[tuple[list[int], Segment]]:
        yield above, stem.segment
        inside = above + stem.segment.tokens.tolist()
        for tail in stem.tails:
            yield inside, tail
        for child in stem.stems:
            yield from down(child, inside)

    return down(root, [])


def trie_nodes(rows: list[Row]) -> int:
    """Distinct non-empty heads, counted the naive way."""
    return len(
        {tuple(row.tokens[:n].tolist()) for row in rows for n in range(1, len(row.tokens) + 1)}
    )


@given(sketches(), st.sampled_from([1, 2, 3, MIN_STEM]))
def test_every_read_stands_once_at_its_own_place_below_its_own_tokens(
    drawn: list[Sketch], min_stem: int
) -> None:
    rows = build(drawn)
    owner = {read: row for row in rows for read in row.reads}
    found: Counter[Read] = Counter()
    for above, segment in leaves(plan(rows, min_stem)):
        assert segment.start == len(above)
        whole = above + segment.tokens.tolist()
        for read in segment.reads:
            found[read] += 1
            assert segment.start <= read.position < len(whole)
            # the model sees at this position exactly the head of the row that asked
            assert whole[: read.position + 1] == owner[read].tokens[: read.position + 1].tolist()
    assert found == Counter(dict.fromkeys(owner, 1))


@given(sketches())
def test_with_the_shortest_stems_every_trie_node_is_computed_once(drawn: list[Sketch]) -> None:
    rows = build(drawn)
    assert planned_tokens(plan(rows, 1)) == trie_nodes(rows)


@given(sketches(), st.integers(1, 20))
def test_a_plan_lies_between_the_trie_and_the_plain_sum(drawn: list[Sketch], min_stem: int) -> None:
    rows = build(drawn)
    assert (
        trie_nodes(rows)
        <= planned_tokens(plan(rows, min_stem))
        <= sum(len(row.tokens) for row in rows)
    )


@given(sketches(), st.sampled_from([1, 3]))
def test_a_stem_is_long_enough_and_serves_at_least_two(drawn: list[Sketch], min_stem: int) -> None:
    root = plan(build(drawn), min_stem)
    for stem in root.walk():
        if stem is root:
            assert not len(stem.segment.tokens)
            assert not stem.segment.reads
        else:
            assert len(stem.segment.tokens) >= min_stem
            assert len(stem.tails) + len(stem.stems) >= 2
        assert all(len(tail.tokens) for tail in stem.tails)


@given(sketches(), st.randoms(use_true_random=False), st.sampled_from([1, 4]))
def test_the_plan_does_not_depend_on_the_order_of_the_rows(
    drawn: list[Sketch], shuffle: random.Random, min_stem: int
) -> None:
    def shape(rows: list[Row]) -> Counter[Any]:
        return Counter(
            (tuple(above), segment.start, tuple(segment.tokens.tolist()), frozenset(segment.reads))
            for above, segment in leaves(plan(rows, min_stem))
        )

    rows = build(drawn)
    mixed = list(rows)
    shuffle.shuffle(mixed)
    assert shape(mixed) == shape(rows)


@given(sketches())
def test_planning_leaves_the_rows_as_they_were(drawn: list[Sketch]) -> None:
    rows, before = build(drawn), build(drawn)
    plan(rows, 1)
    assert [(r.tokens.tolist(), r.reads) for r in rows] == [
        (r.tokens.tolist(), r.reads) for r in before
    ]


def test_a_row_that_is_the_head_of_others_costs_nothing_more() -> None:
    rows = build([([1, 2], [(1, 9)]), ([1, 2, 3], [(2, 9)]), ([1, 2, 4], [(2, 9)])])
    root = plan(rows, 1)
    assert planned_tokens(root) == 4
    (stem,) = root.stems
    assert stem.segment.tokens.tolist() == [1, 2]
    assert stem.segment.reads == [Read(1, 9, (0, 0))]
    assert sorted(tail.tokens.tolist() for tail in stem.tails) == [[3], [4]]


def test_equal_rows_are_one_row_with_all_their_reads() -> None:
    rows = build([([5, 6, 7], [(2, k)]) for k in range(4)])
    (merged,) = merge_rows(rows)
    assert sorted(merged.reads) == sorted(read for row in rows for read in row.reads)
    assert planned_tokens(plan(rows)) == 3


def test_a_single_row_is_one_tail_of_the_root() -> None:
    root = plan(build([([7, 8], [(0, 8), (1, 1)])]))
    assert not root.stems
    (tail,) = root.tails
    assert (tail.start, tail.tokens.tolist(), len(tail.reads)) == (0, [7, 8], 2)


def test_no_rows_make_an_empty_plan() -> None:
    assert planned_tokens(plan([])) == 0


def test_stems_nest_as_header_then_passage_then_question() -> None:
    header, passage = list(range(100, 140)), list(range(200, 230))
    rows = build(
        [(header + passage + [1, k], [(71, 0)]) for k in range(3)]
        + [([*header, 2, k], [(41, 0)]) for k in range(3)]
    )
    root = plan(rows)
    (outer,) = root.stems
    (inner,) = outer.stems
    assert outer.segment.tokens.tolist() == header
    assert inner.segment.tokens.tolist() == [*passage, 1]
    assert inner.segment.start == len(header)
    assert planned_tokens(root) == 40 + 31 + 3 + 3 * 2


@pytest.mark.parametrize(("extra", "stems"), [(0, 1), (-1, 0)])
def test_heads_shorter_than_the_shortest_stem_are_not_shared(extra: int, stems: int) -> None:
    head = list(range(MIN_STEM + extra))
    assert len(plan(build([([*head, 90], []), ([*head, 91], [])])).stems) == stems


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_common_is_the_length_of_the_common_head(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common(np.asarray(a, np.int32), np.asarray(b, np.int32)) == n


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100))
def test_packs_hold_each_tail_once_and_keep_to_the_budget(sizes: list[int], budget: int) -> None:
    tails = [Segment(0, np.zeros(n, np.int32), []) for n in sizes]
    packs = pack(tails, budget)
    assert sorted(id(t) for some in packs for t in some) == sorted(id(t) for t in tails)
    for some in packs:
        assert len(some) == 1 or sum(len(t.tokens) for t in some) <= budget
    lengths = [len(t.tokens) for some in packs for t in some]
    assert lengths == sorted(lengths, reverse=True)


def test_a_tail_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        pack([Segment(0, np.empty(0, np.int32), [])], 8)


@given(sketches())
@settings(max_examples=50)
def test_a_probe_tries_stems_and_packs_whatever_was_asked(drawn: list[Sketch]) -> None:
    rows = build(drawn)
    tried = probe(rows)
    lengths = [len(row.tokens) for row in rows]
    assert {min(lengths), max(lengths)} == {len(row.tokens) for row in tried}
    # reads of the made-up siblings never meet those of a request
    keys = [(read.slot, read.position) for row in tried for read in row.reads]
    real = {read.slot for row in rows for read in row.reads}
    assert {slot for slot, _ in keys if slot[0] >= 0} <= real
    made = [key for key in keys if key[0][0] < 0]
    assert len(set(made)) == len(made) > 0
    assert sum(len(stem.tails) for stem in plan(tried).walk()) >= 2


@pytest.mark.parametrize("length", [MIN_STEM + 1, 2 * MIN_STEM, 500])
def test_a_probe_of_one_row_has_stems_with_several_tails(length: int) -> None:
    tried = probe(build([(list(range(length)), [(length - 1, 3)])]))
    root = plan(tried)
    (early,) = root.stems
    assert len(early.segment.tokens) == MIN_STEM
    if length < 4 * MIN_STEM:
        assert (len(early.tails), early.stems) == (2, [])
    else:
        (half,) = early.stems
        assert len(early.tails) == 1
        assert len(half.tails) == 2
        assert half.segment.start + len(half.segment.tokens) == length // 2
    # read right after the borders, where a forgotten stem shows most
    for stem in root.walk():
        for tail in stem.tails:
            spots = {read.position for read in tail.reads}
            assert spots == {length - 1} or tail.start in spots
