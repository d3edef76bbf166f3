"""What a model wrote → its answer, by the rules of the template and never by chance.

The rules are data (`extract` in prompts/*.yaml, `specs.Rule`); here is what their keys do. Pure:
no model, no torch. What cannot be read is no answer: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from ceval_suite.schema import Item, Kind
from ceval_suite.specs import Rule, Subject, Template

_NARROW = {wide: wide - 0xFEE0 for wide in range(ord("Ａ"), ord("Ｚ") + 1)}


def predict(
    text: str,
    item: Item,
    template: Template,
    subject: Subject,
    language: str | None,
    *,
    shots: int,
) -> list[str]:
    """The prediction in a text that was written after a prompt with `shots` shots.

    Empty is unanswered. single: one letter. multi: the letters, sorted and each once (with the
    rule's `ordered`, as they were written). blanks: one letter for each answer in order, `""` where
    there is none. cloze: the text of the answer.

    A letter that is none of the item's labels is no answer: a blank with it is unanswered, and so
    is a whole set with it in it (the official scripts count both as wrong, too). Where the official
    script is followed (`template.script`), the kind of the file decides, not that of the item: it
    reads one letter off the seven items of AGIEval's gaokao-mathqa that have several.
    """
    kind = item.kind
    if kind == "multi" and template.script:
        kind = subject.kind
    wanted = max(1, len(item.answer) or item.parts) if kind == "blanks" else 1
    for rule in template.rules(kind, shots):
        if rule.language not in (None, language) or (rule.types and subject.type not in rule.types):
            continue
        found = _found(rule, text, item, kind, wanted)
        if found is not None:
            return _prediction(rule, found, item, kind, wanted)
    return []


def _found(rule: Rule, text: str, item: Item, kind: Kind, wanted: int) -> list[str] | None:
    """What a rule finds: nothing in the right place is empty, and no place to look at is None."""
    looked_at = _looked_at(rule, text)
    if looked_at is None:
        return None
    final = [] if rule.within else None
    values = _matches(rule, looked_at, kind, wanted) if rule.find else [looked_at]
    if not values:
        return final
    fits = {"any": True, "exact": len(values) == wanted, "enough": len(values) >= wanted}
    if not fits[rule.count]:
        return final
    if rule.reading:
        read = [_READINGS[rule.reading](value, item) for value in values]
        if None in read:
            return final
        values = [value for group in read for value in group or ()]
    if rule.labels and any(value not in item.labels for value in values):
        return final
    return values


def _looked_at(rule: Rule, text: str) -> str | None:
    if rule.narrow:
        text = text.translate(_NARROW)
    if rule.remove:
        text = _regex(rule.remove).sub("", text)
    if rule.last_line:
        text = next((line for line in reversed(text.split("\n")) if line.strip()), text)
    if rule.within:
        place = _regex(rule.within).search(text)
        if place is None:
            return None
        text = _value(place) or ""
    for sentence in rule.past:
        # AGIEval's own order: the first where the text begins with it, else the last
        if text.startswith(sentence):
            text = text[len(sentence) :].strip()
        elif sentence in text:
            text = text.rpartition(sentence)[2].strip()
    return text


def _matches(rule: Rule, text: str, kind: Kind, wanted: int) -> list[str]:
    for regex in [rule.find] if isinstance(rule.find, str) else rule.find:
        pattern = _regex(regex)
        if "number" in pattern.groupindex:
            values = _numbered(pattern, text, wanted)
        elif rule.which == "first":
            # a match whose group took no part only skips what cannot match
            values = next(([v] for m in pattern.finditer(text) if (v := _value(m)) is not None), [])
        else:
            values = [v for match in pattern.finditer(text) if (v := _value(match)) is not None]
            values = values[-1:] if rule.which == "last" else values
        if values:
            return values
    return []


def _numbered(pattern: re.Pattern[str], text: str, wanted: int) -> list[str]:
    """Letters by the number written with each; none when a number is not that of a blank."""
    values = [""] * wanted
    for match in pattern.finditer(text):
        number = int(match["number"])
        if not 1 <= number <= wanted:
            return []
        values[number - 1] = _value(match) or ""
    return values if any(values) else []


def _value(match: re.Match[str]) -> str | None:
    """The first group that took part, the number aside; the whole match without groups."""
    number = match.re.groupindex.get("number", 0)
    groups = [g for k, g in enumerate(match.groups(), start=1) if k != number]
    return next((group for group in groups if group is not None), None) if groups else match[0]


def _prediction(rule: Rule, found: list[str], item: Item, kind: Kind, wanted: int) -> list[str]:
    if kind == "cloze":
        return [value for value in found[:1] if value]
    if kind == "multi":
        letters = list("".join(found))
        if any(letter not in item.labels for letter in letters):
            return []
        return letters if rule.ordered else sorted(set(letters))
    letters = [value if value in item.labels else "" for value in found[:wanted]]
    if not any(letters):
        return []
    return letters if kind == "single" else letters + [""] * (wanted - len(letters))


@cache
def _regex(text: str) -> re.Pattern[str]:
    return re.compile(text)


# readings: what was found → what it says; None where the reading is not for such a text


def _after_equals(text: str) -> str:
    return text.split("=")[-1].lstrip(" ") if "=" in text else text


def _boxed(text: str, item: Item) -> list[str] | None:
    r"""What the last \boxed{…} holds; nothing when its braces do not close."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "}" and depth == 0:
            box = text[start : end + 1]
            return [_after_equals(box[7:-1])] if box.startswith("\\boxed{") else []
    return []


def _dollar(text: str, item: Item) -> list[str] | None:
    """What stands between the first and the last dollar sign of the last line that has two."""
    lines = [match[1] for match in _regex(r"\$(.*)\$").finditer(text)]
    answer = _after_equals(lines[-1]) if lines else ""
    return [answer] if answer else None


def _number(text: str, item: Item) -> list[str] | None:
    r"""What follows the last equals sign, up to a written-out \n; without one, the last number."""
    if "=" in text:
        return [_after_equals(text).rstrip(".").split("\\n")[0]]
    # the look-behind only saves trying again inside a number
    numbers = [match[0] for match in _regex(r"\$?(?<!\d)\d+(?:\.\d+)?(?!\w)").finditer(text)]
    return numbers[-1:] or None


def _holds_option(text: str, item: Item) -> list[str] | None:
    text = text.strip()
    held = [
        label for label, choice in zip(item.labels, item.choices, strict=False) if choice in text
    ]
    return held if len(held) == 1 else None


def _is_option(text: str, item: Item) -> list[str] | None:
    if text in item.labels:
        return [text]
    same = [a for a, choice in zip(item.labels, item.choices, strict=False) if choice == text]
    return same[:1] or [text]


_READINGS: dict[str, Callable[[str, Item], list[str] | None]] = {
    "boxed": _boxed,
    "dollar": _dollar,
    "number": _number,
    "holds_option": _holds_option,
    "is_option": _is_option,
}
