"""Which tokens to compute, in which order, and which together: pure planning, no torch.

A *row* is the tokens of context + continuation without the last one; a *read* asks for the score
of one next token at one position of it. All rows of a call form a trie over token ids, whatever
subject, task, shot count or protocol they come from. Its compressed nodes, in depth-first order,
are cut into *packs*: the tokens of one forward pass. Every token of the trie is computed exactly
once, and of the keys and values only those of the path that is still open have to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

CUT = 64
"""A node this long that others hang below ends its pack, so that they find its keys and values
kept; shorter ones are repeated in the attention (never in the layers) of each row below them."""

LIKE = 0.6
"""Rows share an attention block while the shorter is at least this share of the longest."""

EARLY = 16
"""Where the first made-up sibling of a probe leaves its row."""


class Read(NamedTuple):
    """Score `token` as the next one after `position`; `slot` names who asked."""

    position: int
    token: int
    slot: tuple[int, int]


class Score(NamedTuple):
    """A read with what the model says: its raw logit and its natural log-probability.

    `greedy` says whether no token has a larger logit, where that was asked for (`Forward.greedy`).
    """

    read: Read
    logit: float
    logprob: float
    greedy: bool = False


@dataclass(slots=True)
class Row:
    """Tokens to run, what to read off them, and (once planned) how many are computed for it."""

    tokens: Tokens
    reads: list[Read]
    new: int = 0


@dataclass(slots=True)
class Node:
    """A run of trie tokens from position `start` on, below node `parent` (-1: none)."""

    start: int
    tokens: Tokens
    parent: int
    reads: list[Read] = field(default_factory=list[Read])
    leaf: bool = True

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.tokens)


def common(a: Tokens, b: Tokens) -> int:
    """Length of the common head of two rows."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def trie(rows: Sequence[Row], longest: int) -> list[Node]:
    """The compressed trie of all rows in depth-first order; no node is longer than `longest`.

    Every read stands in the node that holds its position. Linear in the tokens but for the sort.
    """
    # big-endian bytes of non-negative ids order exactly as the ids do
    ordered = sorted(rows, key=lambda row: row.tokens.astype(">u4").tobytes())
    shared = [0, *(common(a.tokens, b.tokens) for a, b in pairwise(ordered)), 0]
    borders = _borders(shared)
    nodes: list[Node] = []
    path: list[int] = []
    for k, row in enumerate(ordered):
        row.new = len(row.tokens) - shared[k]
        while path and nodes[path[-1]].start >= shared[k]:
            path.pop()
        cuts = [shared[k], *(b for b in borders[k] if b < len(row.tokens)), len(row.tokens)]
        for start, end in pairwise(cuts):
            for at in range(start, end, longest):
                parent = path[-1] if path else -1
                if parent >= 0:
                    nodes[parent].leaf = False
                path.append(len(nodes))
                nodes.append(Node(at, row.tokens[at : min(end, at + longest)], parent))
        _place(nodes, path, row.reads)
    return nodes


def _borders(shared: Sequence[int]) -> list[list[int]]:
    """For each row, where later rows leave it: the depths at which its new tokens are cut.

    These are the running minima of what it shares with the rows after it, as far as they lie
    beyond what it shares with the row before.
    """
    out: list[list[int]] = []
    minima: list[int] = []
    for k in range(len(shared) - 2, -1, -1):
        after = shared[k + 1]
        while minima and minima[-1] >= after:
            minima.pop()
        minima.append(after)
        at = len(minima)
        while at and minima[at - 1] > shared[k]:
            at -= 1
        out.append(minima[at:])
    out.reverse()
    return out


def _place(nodes: Sequence[Node], path: Sequence[int], reads: Sequence[Read]) -> None:
    for read in reads:
        for index in reversed(path):
            if nodes[index].start <= read.position:
                nodes[index].reads.append(read)
                break


@dataclass(slots=True)
class Block:
    """Rows of a pack that hang at one depth and have about one length, for the attention.

    `index` [n, L] names the packed token at each place of each row, 0 where a row has ended.
    The result of packed token `token[i]` is taken from place (`row[i]`, `column[i]`).
    """

    index: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]


@dataclass(slots=True)
class Pack:
    """The nodes `first` to `last - 1`: one forward pass.

    `stems` lists (from, to, depth): packed tokens from..to-1 see the first `depth` kept tokens.
    `paths` lists (from, to, above): packed tokens of a node, which see the packed tokens `above`
    and those before them in the node. `blocks` say the same row by row.
    `keep` lists (from, to, position): packed tokens whose keys and values later packs need, and
    where they stand in the path.
    """

    first: int
    last: int
    tokens: Tokens
    positions: npt.NDArray[np.int64]
    reads: list[Read]
    at: list[int]
    stems: list[tuple[int, int, int]]
    paths: list[tuple[int, int, npt.NDArray[np.int64]]]
    blocks: list[Block]
    keep: list[tuple[int, int, int]]


def pack(nodes: Sequence[Node], first: int, budget: int, cut: int = CUT) -> Pack:
    """The next forward pass: nodes from `first` on, of at most `budget` tokens together.

    A node longer than the budget goes alone.
    """
    last, size = first, 0
    while last < len(nodes):
        length = len(nodes[last].tokens)
        if size and size + length > budget:
            break
        size += length
        last += 1
        if not nodes[last - 1].leaf and length >= cut:
            break
    return _pack(nodes, first, last)


def _pack(nodes: Sequence[Node], first: int, last: int) -> Pack:
    chosen = nodes[first:last]
    lengths = [len(node.tokens) for node in chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    reads: list[Read] = []
    at: list[int] = []
    for node, offset in zip(chosen, offsets, strict=False):
        reads += node.reads
        at += [offset + read.position - node.start for read in node.reads]
    paths = _paths(nodes, first, last, offsets)
    return Pack(
        first=first,
        last=last,
        tokens=np.concatenate([node.tokens for node in chosen]),
        positions=np.concatenate([np.arange(node.start, node.end) for node in chosen]),
        reads=reads,
        at=at,
        stems=_stems(nodes, first, last, offsets),
        paths=paths,
        blocks=_blocks(_rows(nodes, first, last, paths), offsets[-1]),
        keep=_keep(nodes, first, last, offsets),
    )


def _keep(
    nodes: Sequence[Node], first: int, last: int, offsets: Sequence[int]
) -> list[tuple[int, int, int]]:
    out: list[tuple[int, int, int]] = []
    index = nodes[last].parent if last < len(nodes) else -1
    while index >= 0:
        if first <= index < last:
            k = index - first
            out.append((offsets[k], offsets[k + 1], nodes[index].start))
        index = nodes[index].parent
    return out


def _stems(
    nodes: Sequence[Node], first: int, last: int, offsets: Sequence[int]
) -> list[tuple[int, int, int]]:
    depth: list[int] = []
    for k in range(first, last):
        parent = nodes[k].parent
        depth.append(depth[parent - first] if parent >= first else nodes[k].start)
    stems: list[tuple[int, int, int]] = []
    for k, d in enumerate(depth):
        if d and stems and stems[-1][2] == d and stems[-1][1] == offsets[k]:
            stems[-1] = (stems[-1][0], offsets[k + 1], d)
        elif d:
            stems.append((offsets[k], offsets[k + 1], d))
    return stems


def _paths(
    nodes: Sequence[Node], first: int, last: int, offsets: Sequence[int]
) -> list[tuple[int, int, npt.NDArray[np.int64]]]:
    paths: list[tuple[int, int, npt.NDArray[np.int64]]] = []
    for k in range(first, last):
        above = np.zeros(0, np.int64)
        if nodes[k].parent >= first:
            begin, end, higher = paths[nodes[k].parent - first]
            above = np.concatenate([higher, np.arange(begin, end)])
        paths.append((offsets[k - first], offsets[k - first + 1], above))
    return paths


def _rows(
    nodes: Sequence[Node],
    first: int,
    last: int,
    paths: Sequence[tuple[int, int, npt.NDArray[np.int64]]],
) -> list[npt.NDArray[np.int64]]:
    """The packed tokens of each row: one for every node with nothing below it in the pack."""
    inner = {nodes[k].parent for k in range(first, last)}
    return [
        np.concatenate([above, np.arange(begin, end)])
        for k, (begin, end, above) in enumerate(paths, first)
        if k not in inner
    ]


def _blocks(spans: Sequence[npt.NDArray[np.int64]], size: int) -> list[Block]:
    seen = np.zeros(size, bool)
    groups: list[list[npt.NDArray[np.int64]]] = []
    for span in sorted(spans, key=lambda span: -len(span)):
        # padding costs attention only, but a short row beside a long one is nearly all padding
        if not groups or len(span) < LIKE * len(groups[-1][0]):
            groups.append([])
        groups[-1].append(span)
    blocks: list[Block] = []
    for group in groups:
        index = np.zeros((len(group), len(group[0])), np.int64)
        token, row, column = [], [], []
        for r, span in enumerate(group):
            index[r, : len(span)] = span
            new = ~seen[span]
            seen[span] = True
            token.append(span[new])
            column.append(np.flatnonzero(new))
            row.append(np.full(int(new.sum()), r, np.int64))
        blocks.append(
            Block(index, np.concatenate(token), np.concatenate(row), np.concatenate(column))
        )
    return blocks


def halve(nodes: Sequence[Node], index: int) -> list[Node]:
    """The same trie with one node cut in two, for when it does not fit into memory whole."""
    node = nodes[index]
    half = len(node.tokens) // 2
    middle = node.start + half

    def moved(other: Node) -> Node:
        parent = other.parent + (other.parent >= index)
        return Node(other.start, other.tokens, parent, other.reads, other.leaf)

    upper = Node(
        node.start,
        node.tokens[:half],
        node.parent,
        [read for read in node.reads if read.position < middle],
        leaf=False,
    )
    lower = Node(
        middle,
        node.tokens[half:],
        index,
        [read for read in node.reads if read.position >= middle],
        node.leaf,
    )
    return [*nodes[:index], upper, lower, *map(moved, nodes[index + 1 :])]


def planned_tokens(nodes: Sequence[Node]) -> int:
    """Tokens that the plan computes: the nodes of the trie."""
    return sum(len(node.tokens) for node in nodes)


def probe(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows to try a model on: the longest one's first `length` tokens, and made-up siblings.

    Siblings leave it early and half-way, so that kept heads, heads shared within a pack and packs
    of several rows are tried whatever was asked. All are read half-way, at the end, and right
    after the border, where a forgotten head shows most.
    """
    tokens = max(rows, key=lambda row: len(row.tokens)).tokens[:length]
    last = len(tokens) - 1
    early = min(EARLY, last)
    out: list[Row] = []
    for at in (-1, *sorted({early, max(early, len(tokens) // 2)})):
        some = tokens.copy()
        if at >= 0:
            some[at] = int(some[at] == 0)
        spots = sorted({max(at, 0), (at + last) // 2, last})
        slot = (-1 - len(out), 0)
        out.append(Row(some, [Read(p, int(tokens[p]), slot) for p in spots]))
    return out
