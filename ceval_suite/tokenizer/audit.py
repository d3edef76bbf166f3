"""What a tokenizer is, holds and does to text: all that can be said without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ceval_suite.backends import reach
from ceval_suite.backends.lexicon import ADDED, BYTE, CONTROL, NORMAL, UNKNOWN, Entry, Lexicon
from ceval_suite.backends.tokenizers import chat_template, start_token
from ceval_suite.tokenizer import letters, material, scripts
from ceval_suite.tokenizer.scripts import SHOWN

PROBES = {
    "English": "The quick brown fox jumps over the lazy dog.",
    "apostrophes": "don't can't we're I'll they've 'tis l'été",
    "blanks before marks": "Hello , world ! ( yes ) isn 't",
    "Chinese": "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "traditional Chinese": "龍鳳呈祥，憂鬱的臺灣烏龜。",
    "rare characters": "㐀㗎䶮𠮷𪚥龘",
    "Chinese and English": "用Python写for循环，共3次。",
    "full-width letters": "ＡＢＣａｂｃ１２３",
    "full-width marks": "，。！？（）：；《》“”……——",
    "emoji": "😀👍🏽👨‍👩‍👧🇨🇳☺️",
    "several blanks": "two  three   eight        end",
    "blanks at the ends": " leading and trailing ",
    "ideographic blank": "　　全角　空格",
    "other blanks": "a\u00a0b\u2009c\u200bd\u2028e",
    "newlines": "one\ntwo\n\nthree\n\n\nfour\n",
    "carriage returns": "one\r\ntwo\rthree",
    "tabs": "\tif x:\n\t\treturn\n",
    "numbers": "3.14159, 1,234,567, ½, ٣",
    "mathematics": "∑ᵢ xᵢ² ≤ √(a²+b²) → ∞, 10⁻³",
    "compatibility characters": "ﬁnance Ⅻ ① ㎏ ㍿",
    "combining marks": "e\u0301 n\u0303 A\u030a",
    "letter case": "ABC abc ÀÉ ß",
    "other writings": "Привет, γειά, שלום, مرحبا, สวัสดี, 안녕, こんにちは",
    "control characters": "a\x01b\x7fc",
}
"""Texts that come back as they were, or do not: decoding what was encoded."""

READINGS = (
    ("full-width letters", "Ａ", "A"),
    ("full-width marks", "，", ","),
    ("compatibility characters (NFKC)", "①ﬁ", "1fi"),
    ("combining marks (NFC)", "e\u0301", "é"),
    ("accents", "é", "e"),
    ("upper case", "ABC", "abc"),
    ("two blanks", "a  b", "a b"),
    ("a blank in front", " a", "a"),
    ("a blank behind", "a ", "a"),
    ("a line break", "a\nb", "a b"),
    ("a tab", "a\tb", "a b"),
    ("a carriage return", "a\r\nb", "a\nb"),
    ("an ideographic blank", "a　b", "a b"),
    ("a zero-width blank", "a\u200bb", "ab"),
    ("control characters", "a\x01b", "ab"),
)
"""What is seen, and what it would be read as if the tokenizer changed it: equal tokens tell."""


def audit(
    lexicon: Lexicon,
    protocols: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """Everything about a tokenizer, as plain data; `report.audit` shows it.

    Raises:
        ConfigError: an unknown protocol.
        ModelError: `chat` without a chat template.
    """
    entries = lexicon.entries
    by_id = {entry.id: entry for entry in entries}
    wanted, sources = material.wordings(protocols), material.sources(data)
    lost = reach.unreachable(lexicon.encode, _texts(lexicon))
    found = letters.table(lexicon, wanted, sources, chat=chat)
    warnings: list[str] = []
    about: dict[str, Any] = {
        "tokenizer": lexicon.name,
        "kind": lexicon.kind,
        "class": type(lexicon.tokenizer).__name__,
        "entries": len(entries),
        "kinds": scripts.kinds(entries),
        "writing": scripts.by_writing(entries),
        "chinese": scripts.chinese(entries, lost),
        "digits": scripts.digits(lexicon.encode, by_id),
        "duplicates": _duplicates(lexicon),
        "unreachable": _named(lost, by_id),
        "untested": sum(e.kind in (NORMAL, ADDED) for e in entries) - len(_texts(lexicon)),
        "round_trip": _round_trip(lexicon),
        "read_as": read_as(lexicon),
        "normalizer": _parts(lexicon.definition.get("normalizer")),
        "text": _on_text(lexicon, by_id, material.questions(sources)),
        "special": _special(lexicon, by_id, warnings),
        "chat_template": chat_template(lexicon.tokenizer, warnings),
        "letters": [asdict(one) for one in found],
    }
    return about | {"warnings": warnings}


def _named(ids: Sequence[int], by_id: Mapping[int, Entry]) -> dict[str, Any]:
    return {
        "count": len(ids),
        "ids": list(ids),
        "first": [by_id[i].text or by_id[i].token for i in ids[:SHOWN]],
    }


def _texts(lexicon: Lexicon) -> dict[int, str]:
    """Texts of the entries that a text of their own can ask for.

    Not those of parts of characters, nor of WordPiece's `##…`, which only stand behind others.
    """
    inner = "##" if lexicon.kind == "wordpiece" else None
    return {
        entry.id: entry.text
        for entry in lexicon.entries
        if entry.kind in (NORMAL, ADDED) and entry.text is not None
        if inner is None or not entry.token.startswith(inner)
    }


def _duplicates(lexicon: Lexicon) -> dict[str, Any]:
    """Ids with the text of another; a byte that stands in for a missing piece is no duplicate."""
    held: dict[str, list[int]] = {}
    for i, text in _texts(lexicon).items():
        held.setdefault(text, []).append(i)
    twice = [ids for ids in held.values() if len(ids) > 1]
    return {"count": len(twice), "ids": twice}


def _round_trip(lexicon: Lexicon) -> dict[str, Any]:
    lost = _losses(lexicon, list(PROBES.values()))
    return {
        "probes": len(PROBES),
        "lost": {name: lost[text] for name, text in PROBES.items() if text in lost},
    }


def _losses(lexicon: Lexicon, texts: Sequence[str]) -> dict[str, str]:
    """Text → what it comes back as, of those that do not come back as they were."""
    out: dict[str, str] = {}
    for text, ids in zip(texts, lexicon.encode(texts), strict=True):
        back = lexicon.decode(ids)
        if back != text:
            out[text] = back
    return out


def read_as(lexicon: Lexicon) -> dict[str, str]:
    """What is changed before it is cut, and into what: kind of text → what it is read as."""
    unknown = {entry.id for entry in lexicon.entries if entry.kind == UNKNOWN}
    shown = lexicon.encode([text for _, text, _ in READINGS])
    meant = lexicon.encode([text for _, _, text in READINGS])
    return {
        name: text
        for (name, _, text), one, other in zip(READINGS, shown, meant, strict=True)
        # two texts that are both unknown are not one read as the other
        if one == other and not unknown & {*one}
    }


def _parts(definition: Any) -> list[str]:
    """Names of the parts of a tokenizers component, in order."""
    if not isinstance(definition, dict):
        return []
    inner: Any = definition.get("normalizers")
    if inner is not None:
        return [name for part in inner for name in _parts(part)]
    return [str(definition.get("type"))]


def _on_text(
    lexicon: Lexicon, by_id: Mapping[int, Entry], by_language: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Tokens of benchmark questions by language: how many are bytes, parts or unknown."""
    out: dict[str, Any] = {}
    for language, texts in by_language.items():
        counts: Counter[str] = Counter()
        for ids in lexicon.encode(texts):
            counts.update(_kind(by_id.get(i)) for i in ids)
        tokens = counts.total()
        lost = _losses(lexicon, texts)
        out[language] = {
            "texts": len(texts),
            "characters": sum(map(len, texts)),
            "tokens": tokens,
            **{key: counts[key] / max(tokens, 1) for key in ("bytes", "parts", "unknown")},
            "lost": len(lost),
            "first_lost": dict(list(lost.items())[:3]),
        }
    return out


def _kind(entry: Entry | None) -> str:
    if entry is None or entry.kind == UNKNOWN:
        return "unknown"
    if entry.kind == BYTE:
        return "bytes"
    return "parts" if entry.text is None else "whole"


def _special(lexicon: Lexicon, by_id: Mapping[int, Entry], warnings: list[str]) -> dict[str, Any]:
    """Start and end tokens: which there are, which are added, and whether text can hold them."""
    tokenizer = lexicon.tokenizer
    (bare,), (dressed,) = lexicon.encode(["A"]), lexicon.encode(["A"], special=True)
    at = next((k for k in range(len(dressed)) if dressed[k : k + len(bare)] == bare), 0)
    before, behind = dressed[:at], dressed[at + len(bare) :]
    eos = tokenizer.eos_token_id
    if eos is not None and eos in behind:
        warnings.append("the tokenizer adds the end token to a text; scoring takes it off again")
    control = [entry for entry in by_id.values() if entry.kind == CONTROL]
    held = lexicon.encode([f"a{entry.token}b" for entry in control])
    read = [entry for entry, ids in zip(control, held, strict=True) if entry.id in ids]
    return {
        "start": None if tokenizer.bos_token_id is None else str(tokenizer.bos_token),
        "start_token": start_token(lexicon.path, tokenizer, warnings),
        "end": None if eos is None else str(tokenizer.eos_token),
        "unknown": None if tokenizer.unk_token_id is None else str(tokenizer.unk_token),
        "padding": None if tokenizer.pad_token_id is None else str(tokenizer.pad_token),
        "added_before": _tokens(before, by_id),
        "added_behind": _tokens(behind, by_id),
        "special": len(control),
        "read_in_text": len(read),
        "added": scripts.added(list(by_id.values())),
    }


def _tokens(ids: Iterable[int], by_id: Mapping[int, Entry]) -> list[str]:
    return [by_id[i].token if i in by_id else str(i) for i in ids]
