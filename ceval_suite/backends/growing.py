"""Checkpoints with an extended tokenizer: a row for every token, or an error.

A new token's row is the mean of the old rows of the pieces that the base's own tokenizer gives
for the token's text: the start that Colossal-LLaMA trained from. Embeddings grow and never
shrink: a vocabulary padded beyond its tokenizer stays padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ceval_suite.backends import checkpoint, placement, reach
from ceval_suite.backends.adapter_files import tokenizer_home
from ceval_suite.backends.lexicon import Token, first_difference, vocabulary
from ceval_suite.backends.reach import ANCHOR
from ceval_suite.backends.tokenizers import load_tokenizer
from ceval_suite.errors import ModelError
from ceval_suite.model_spec import ModelSpec

SHOWN = 10
"""Tokens that are named where some are counted."""

Pieces = Sequence[Sequence[int]]


def fit(spec: ModelSpec, path: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """See that the model has a row for every token, growing it where the spec says so.

    Returns what is worth noting: rows never trained and, of a grown model, how it grew.

    Raises:
        ModelError: more tokens than rows and no `grow_embeddings`, no tokenizer to grow from, ids
            that mean something else in the extended tokenizer, or rows that cannot grow.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    tokens = vocabulary(tokenizer)
    if not spec.grow_embeddings:
        if max(tokens, default=0) >= rows:
            raise ModelError(
                f"{spec.path}: the tokenizer has {len(tokens)} entries but the embedding only "
                f"{rows} rows; give the tokenizer that belongs to these weights, or set "
                "grow_embeddings: true in models.yaml."
            )
        return {"never_trained": _never_trained(model, tokens)}
    about = _grown(spec, path, model, tokenizer, tokens)
    return {"grown": about, "never_trained": _never_trained(model, tokens)}


def base_tokenizer(spec: ModelSpec, path: Path) -> Any:
    """The tokenizer beside the weights of a spec that uses another one; None without any there."""
    if spec.tokenizer is None and tokenizer_home(spec) is None:
        return None
    own = spec.model_copy(update={"tokenizer": None, "tokenizer_revision": None, "adapters": []})
    try:
        return load_tokenizer(own, path)
    except ModelError:
        return None


def pieces(base: Any, tokenizer: Any, ids: Sequence[int], *, dummy_prefix: bool = False) -> Pieces:
    """For each new id, the base's ids of the token's text.

    LLaMA's tokenizers put a blank before a text; `dummy_prefix` keeps the piece this makes, as
    Colossal-LLaMA did, though the text has no blank of its own and every new row would hold a
    share of the same one.
    """
    tokens = vocabulary(tokenizer)
    found = texts(tokenizer, [tokens[i] for i in ids])
    known = iter(_encoded(base, [t for t in found if t is not None], dummy_prefix))
    return [
        next(known) if text is not None else _of_bytes(base, tokens[i])
        for i, text in zip(ids, found, strict=True)
    ]


def texts(tokenizer: Any, tokens: Sequence[Token]) -> list[str | None]:
    """What each token stands for; None for a part of a character."""
    added = tokenizer.get_added_vocab()
    blanks = "▁" in tokenizer.get_vocab()
    out: list[str | None] = []
    for token in tokens:
        if isinstance(token, bytes):
            text = token.decode("utf-8", "replace")
            out.append(None if "\ufffd" in text else text)
        elif token in added:
            out.append(token)
        elif blanks:
            byte = re.fullmatch(r"<0x[0-9A-F]{2}>", token)
            out.append(None if byte else token.replace("▁", " "))
        else:
            text = str(tokenizer.convert_tokens_to_string([token]))
            out.append(None if "\ufffd" in text and "\ufffd" not in token else text)
    return out


def unreachable(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Those of `ids` that their own text never becomes, neither at its start nor inside it."""
    tokens = vocabulary(tokenizer)
    found = zip(ids, texts(tokenizer, [tokens[i] for i in ids]), strict=True)
    whole = {i: text for i, text in found if text is not None}
    return reach.unreachable(lambda some: _ids(tokenizer, some), whole)


def _grown(
    spec: ModelSpec, path: Path, model: Any, tokenizer: Any, tokens: Mapping[int, Token]
) -> dict[str, Any]:
    rows = int(model.get_input_embeddings().weight.shape[0])
    base = tokenizer if spec.tokenizer is None else base_tokenizer(spec, path)
    old = vocabulary(base) if base is not None else {}
    new = sorted(i for i in tokens if i not in old or i >= rows)
    if base is None or (new and base is tokenizer):
        raise ModelError(
            f"{spec.path}: grow_embeddings makes new rows from the base's own tokenizer; put that "
            "beside the weights and name the extended one with `tokenizer:`."
        )
    at = first_difference(old, tokens)
    if at is not None:
        raise ModelError(
            f"{spec.tokenizer}: id {at} is {tokens.get(at)!r} where the tokenizer beside the "
            f"weights has {old[at]!r}; an extended tokenizer must keep every old id."
        )
    if not new:
        return {"rows_before": rows, "rows_after": rows, "new_tokens": 0}
    prefix = has_dummy_prefix(base)
    found = pieces(base, tokenizer, new)
    lost = unreachable(tokenizer, new)
    about = {
        "rows_before": rows,
        "new_tokens": len(new),
        "init": "mean of the old rows of the base's pieces",
        "dummy_prefix": "left out" if prefix else "none",
        **_initialise(model, max(tokens, default=-1) + 1, new, found, unknown(base)),
        "unreachable": len(lost),
        "unreachable_tokens": [shown(tokens[i]) for i in lost[:SHOWN]],
    }
    return about | {"rows_after": int(model.get_input_embeddings().weight.shape[0])}


def _initialise(
    model: Any, size: int, new: Sequence[int], found: Pieces, unknown: int | None
) -> dict[str, Any]:
    """Give every id of `new` a row of its own; says how many have no piece to come from."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    known = [[p for p in some if p < rows and p != unknown] for some in found]
    for weight in _matrices(model):
        if not weight.is_floating_point() or weight.is_meta:
            raise ModelError(
                "grow_embeddings needs embedding and head in memory and in a floating type; drop "
                "quant (or add both to its skip) and device_map."
            )
    if size > rows:
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for weight in _matrices(model):
            table = weight.detach().reshape(len(weight), -1)
            overall = table[:rows].float().mean(0)
            for i, some in zip(new, known, strict=True):
                mean = table[some].float().mean(0) if some else overall
                table[i] = mean.to(table.dtype)
    return {"without_pieces": sum(not some for some in known)}


def _matrices(model: Any) -> list[torch.Tensor]:
    """Embedding, untied head and the head's bias: what has a row for each token."""
    given, made = model.get_input_embeddings(), model.get_output_embeddings()
    out = [given.weight]
    if made is not None:
        tied = made.weight is given.weight or (
            not made.weight.is_meta and made.weight.data_ptr() == given.weight.data_ptr()
        )
        out += [] if tied else [made.weight]
        bias = getattr(made, "bias", None)
        out += [] if bias is None else [bias]
    return out


def _never_trained(model: Any, tokens: Mapping[int, Token]) -> dict[str, Any]:
    """Rows beyond the tokenizer, and rows of tokens that are zero or equal one another."""
    weight = placement.whole(model.get_input_embeddings().weight)
    about: dict[str, Any] = {"beyond_tokenizer": len(weight) - max(tokens, default=-1) - 1}
    if not weight.is_floating_point() or weight.is_meta:
        return about
    width = max(1, checkpoint.KEY // weight.element_size())
    keys = weight.detach()[:, :width].contiguous().view(torch.uint8).cpu().numpy()
    zero, equal = checkpoint.never_trained(keys)
    some = sorted({*zero, *equal})
    whole = weight.detach()[some].contiguous().view(torch.uint8).cpu().numpy()
    zero, equal = checkpoint.equal_rows(some, [row.tobytes() for row in whole])
    return about | note(zero, equal, tokens)


def note(zero: Sequence[int], equal: Sequence[int], tokens: Mapping[int, Token]) -> dict[str, Any]:
    """Counts of rows never trained, and the tokens among them."""
    named = [i for i in sorted({*zero, *equal}) if i in tokens]
    return {
        "zero": len(zero),
        "equal": len(equal),
        "tokens": len(named),
        "first_tokens": [shown(tokens[i]) for i in named[:SHOWN]],
    }


def shown(token: Token) -> str:
    """A token as text, whatever its kind."""
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else token


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return cast("list[list[int]]", found["input_ids"])


def has_dummy_prefix(tokenizer: Any) -> bool:
    """Whether a blank is put before a text that has none."""
    (ids,) = _ids(tokenizer, ["x"])
    first = tokenizer.convert_ids_to_tokens(ids[:1])
    return bool(first) and str(first[0]).startswith("▁")


def _encoded(base: Any, texts: Sequence[str], dummy_prefix: bool) -> list[list[int]]:
    bare = _ids(base, texts)
    if dummy_prefix or not has_dummy_prefix(base):
        return bare
    blank = base.get_vocab().get("▁")
    (anchor,) = _ids(base, [ANCHOR])
    out: list[list[int]] = []
    inside = _ids(base, [ANCHOR + text for text in texts])
    for text, first, second in zip(texts, bare, inside, strict=True):
        found = second[len(anchor) :] if anchor and second[: len(anchor)] == anchor else first
        # a tokenizer that takes the anchor for a blank leaves the prefix
        made = found[:1] == [blank] and not text.startswith(" ")
        out.append(found[1:] if made else found)
    return out


def _of_bytes(base: Any, token: Token) -> list[int]:
    """Pieces of a part of a character, in a byte-level vocabulary that spells it as it is."""
    core = getattr(base, "backend_tokenizer", None)
    if core is None or isinstance(token, bytes):
        return []
    return [piece.id for piece in core.model.tokenize(token)]


def unknown(tokenizer: Any) -> int | None:
    """The id that stands for what has no piece; its row says nothing of any text."""
    found = getattr(tokenizer, "unk_token_id", None)
    return None if found is None else int(found)
