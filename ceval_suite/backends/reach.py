"""Which entries of a vocabulary no text becomes: rows that a model holds and never reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

ANCHOR = "\n"
"""A text that no piece reaches across: what follows it is tokenised as inside a text."""

LETTER = "龘"
"""A rare letter: after it a piece stands inside a word, where a line break counts as a blank."""

LOOKS: tuple[Callable[[str], str], ...] = (
    lambda text: ANCHOR + text,
    lambda text: text,
    lambda text: LETTER + text,
    lambda text: text.removeprefix(" "),
    lambda text: " " + text,
)
"""Where a text may stand: behind a line break, alone, inside a word, without and with a blank."""

Encode = Callable[[Sequence[str]], list[list[int]]]


def unreachable(encode: Encode, texts: Mapping[int, str]) -> list[int]:
    """Those ids of `texts` that their own text never becomes, wherever it stands.

    BPE reaches a long piece only through shorter ones, so that a piece may well be in the
    vocabulary and be cut up all the same.
    """
    left = dict(texts)
    for look in LOOKS:
        # most are found at once; only what is left is looked at again
        found = encode([look(text) for text in left.values()]) if left else []
        pairs = zip(left.items(), found, strict=True)
        left = {i: text for (i, text), ids in pairs if i not in ids}
    return list(left)
