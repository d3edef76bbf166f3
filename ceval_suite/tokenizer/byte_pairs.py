"""New pieces in a BPE with a list of merges (`tokenizer.json`): the merges that make them.

Every new merge ranks after all old ones. A text is thus cut as before first, and only then are
old tokens joined into new ones: what holds no new piece keeps its tokens, and a new token is
always the union of whole old ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from ceval_suite.backends.lexicon import bytes_of_characters

ANCHOR = "\n"
"""A text that no piece reaches across: what follows it is tokenised as inside a text."""


@dataclass
class Growth:
    """What has been added to a vocabulary: pieces, intermediate tokens, merges by their rank."""

    pieces: dict[str, int] = field(default_factory=dict[str, int])
    added: dict[str, int] = field(default_factory=dict[str, int])
    merges: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    lost: dict[str, str] = field(default_factory=dict[str, str])
    """Unreachable tokens, and why."""

    def join(self, tokens: Sequence[str]) -> list[str]:
        """The tokens after all new merges, least rank first and left before right."""
        out = list(tokens)
        while len(out) > 1:
            ranks = [self.merges.get((a, b)) for a, b in pairwise(out)]
            known = [(rank, k) for k, rank in enumerate(ranks) if rank is not None]
            if not known:
                break
            _, k = min(known)
            out[k : k + 2] = [out[k] + out[k + 1]]
        return out

    def merge(self, left: str, right: str) -> None:
        """One more merge, after all others."""
        self.merges.setdefault((left, right), len(self.merges))


def grow(
    definition: Mapping[str, Any], pieces: Mapping[str, str], *, add_merges: bool
) -> tuple[dict[str, Any], Growth]:
    """A `tokenizer.json` with new pieces (token → text), and what was added to it.

    A piece of which two tokens are left is made by one merge of them. One of which more are left
    needs intermediate tokens, which are only added with `add_merges`; else it has its id and no
    merge, and is named in `lost`, as is one that is cut before any merging.
    """
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(_by_merges(definition), ensure_ascii=False))
    old = {str(token): int(i) for token, i in core.get_vocab().items()}
    growth = Growth(pieces=_numbered(old, pieces))
    atoms = {token for token in pieces if len(token) == 1}
    waiting: dict[str, list[str]] = {}
    for token, text in pieces.items():
        cut = _cut(core, token, text)
        if cut is not None:
            growth.lost[token] = cut
        elif token not in atoms:
            waiting[token] = [*_tokens(core, token, atoms)]
    _merge_pairs(growth, waiting)
    if add_merges:
        for token in list(waiting):
            waiting[token] = _with_atoms(growth, core, old, token, waiting[token], atoms)
            _chain(growth, old, token, waiting, pieces[token])
        _merge_pairs(growth, waiting)
    for token, tokens in waiting.items():
        parts = " ".join(_shown(one) for one in growth.join(tokens))
        growth.lost[token] = f"intermediate merges are missing: {parts}"
    made = _written(definition, old, growth)
    _prove(made, pieces, growth)
    return made, growth


def _by_merges(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with merges alone: some take a word of the vocabulary whole, without any."""
    return {**definition, "model": {**definition["model"], "ignore_merges": False}}


def _numbered(old: Mapping[str, int], tokens: Iterable[str]) -> dict[str, int]:
    first = max(old.values(), default=-1) + 1
    return {token: first + k for k, token in enumerate(tokens)}


def _cut(core: Any, token: str, text: str) -> str | None:
    """What keeps a piece from ever being merged, or None when it comes to merging in one part."""
    first = ""
    for context in (text, ANCHOR + text, text + ANCHOR):
        normal = core.normalizer.normalize_str(context) if core.normalizer else context
        split = core.pre_tokenizer.pre_tokenize_str(normal) if core.pre_tokenizer else []
        split = split or [(normal, (0, len(normal)))]
        if any(token in part for part, _ in split):
            return None
        parts = " | ".join(normal[start:end] for _, (start, end) in split)
        changed = text not in normal and token not in normal
        why = "changed by the normaliser" if changed else "cut before merging"
        first = first or f"{why}: {parts}"
    return first


def _tokens(core: Any, token: str, atoms: set[str]) -> list[str]:
    """The old tokens of a piece; single characters that are new pieces stand for themselves."""
    out: list[str] = []
    rest = ""
    for character in token:
        if character in atoms:
            out += [str(one.value) for one in core.model.tokenize(rest)] if rest else []
            out.append(character)
            rest = ""
        else:
            rest += character
    return out + ([str(one.value) for one in core.model.tokenize(rest)] if rest else [])


def _merge_pairs(growth: Growth, waiting: dict[str, list[str]]) -> None:
    """Merge every piece of which two tokens are left, until a round finds none."""
    before = -1
    while before != len(waiting):
        before = len(waiting)
        for token in list(waiting):
            left = growth.join(waiting[token])
            if len(left) == 2 and "".join(left) == token:
                growth.merge(left[0], left[1])
                left = [token]
            if left == [token]:
                del waiting[token]


def _with_atoms(
    growth: Growth,
    core: Any,
    old: Mapping[str, int],
    token: str,
    tokens: list[str],
    atoms: set[str],
) -> list[str]:
    """The piece's tokens after its characters that have none (but bytes) got one."""
    if "".join(tokens) == token:
        return tokens
    for character in token:
        if character not in old and character not in atoms:
            atoms.add(character)
            growth.added[character] = -1
    return _tokens(core, token, atoms)


def _chain(
    growth: Growth, old: Mapping[str, int], token: str, waiting: dict[str, list[str]], text: str
) -> None:
    """Join a piece pair by pair, characters first, then from the left, by intermediate tokens.

    A pair whose union is an old token is left alone: old tokens come from old merges only.
    """
    owner = _characters(token, text)
    left = growth.join(waiting[token])
    while len(left) > 1 and "".join(left) == token:
        ends = [*accumulate(map(len, left))]
        whole = [
            owner[end - len(a)] != owner[end + len(b) - 1] for (a, b), end in _pairs(left, ends)
        ]
        free = [(cut, k) for k, cut in enumerate(whole) if left[k] + left[k + 1] not in old]
        if not free:
            return
        _, k = min(free)
        if (union := left[k] + left[k + 1]) not in growth.pieces:
            growth.added[union] = -1
        growth.merge(left[k], left[k + 1])
        left = growth.join(waiting[token])
    if left == [token]:
        del waiting[token]


def _pairs(left: Sequence[str], ends: Sequence[int]) -> Iterator[tuple[tuple[str, str], int]]:
    """Neighbours, and where the first of them ends."""
    return zip(pairwise(left), ends, strict=False)


def _characters(token: str, text: str) -> list[int]:
    """For each symbol of a token the character of the text that it is a part of."""
    if len(token) == len(text):
        return list(range(len(token)))
    return [k for k, character in enumerate(text) for _ in character.encode()]


def _shown(token: str) -> str:
    """A token for people: its text, or its bytes where it is a part of a character."""
    table = bytes_of_characters()
    if not all(character in table for character in token):
        return token
    data = bytes(table[character] for character in token)
    text = data.decode("utf-8", "replace")
    return f"<{data.hex(' ')}>" if "\ufffd" in text else text


def _written(
    definition: Mapping[str, Any], old: Mapping[str, int], growth: Growth
) -> dict[str, Any]:
    """The definition with all that was added; tokens from outside get their ids in writing.

    A reader numbers tokens that the vocabulary lacks from its end, which has moved.
    """
    growth.added = _numbered({**old, **growth.pieces}, growth.added)
    model = dict(definition["model"])
    model["vocab"] = {**old, **growth.pieces, **growth.added}
    listed = list(model["merges"])
    flat = bool(listed) and isinstance(listed[0], str)
    model["merges"] = listed + [" ".join(m) if flat else list(m) for m in growth.merges]
    return {**definition, "model": model}


def _prove(made: Mapping[str, Any], pieces: Mapping[str, str], growth: Growth) -> None:
    """Encode every piece, alone and inside a text; what it never becomes is lost."""
    tokens = {i: token for token, i in growth.pieces.items()}
    never = unreachable(made, {i: pieces[token] for i, token in tokens.items()})
    known = growth.lost
    growth.lost = {tokens[i]: known.get(tokens[i], "other merges come first") for i in never}


def unreachable(definition: Mapping[str, Any], texts: Mapping[int, str]) -> list[int]:
    """Those ids that merging never makes of their text, neither at its start nor inside it."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(_by_merges(definition), ensure_ascii=False))
    alone = core.encode_batch(list(texts.values()), add_special_tokens=False)
    within = [ANCHOR + text for text in texts.values()]
    inside = core.encode_batch(within, add_special_tokens=False)
    both = zip(texts, alone, inside, strict=True)
    return [i for i, one, two in both if i not in one.ids and i not in two.ids]
