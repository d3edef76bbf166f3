"""What is wrong with published items, found in the files themselves: ids and reasons, no text.

Questions are compared after a normalisation that is written down here (`normalised`): nothing that
could make two different questions equal is taken away.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ceval_suite.data import Reader
from ceval_suite.files import find_files
from ceval_suite.schema import Item
from ceval_suite.specs import Task

NORMALISATION = (
    "NFKC, without white space, invisible signs, the empty brackets or line of a gap, and an "
    "exam's number before the question"
)

KINDS = {
    "shot": "the question is also shown as a solved example",
    "conflict": "the same question has different gold labels",
    "duplicate": "the same question stands earlier in the split",
    "options": "options are empty or repeated",
    "label": "the gold label is missing or is not what the file's others are",
    "image": "the question needs a picture that is not there",
}

_BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_NUMBER = re.compile(r"^\d{1,3}[.、](?!\d)(?:\((?:本题)?\d+(?:\.\d+)?分\))?")
_GAP = re.compile(r"\(\)|_{2,}")
_DRAWN = "[asy]"  # a figure as the code that draws it
_FIGURE = re.compile(
    r"如[上下右左]?图(?:所示)?|[上下右左]图(?:是|为|中|所示)|(?:看|见|读)[上下右左]?图|图中所示"
    r"|\b(?:figure|diagram|graph|picture) (?:above|below|shown)\b"
    r"|\bshown in the (?:figure|diagram|picture)\b|\bthe (?:figure|diagram) (?:above|below)\b",
    re.IGNORECASE,
)
_NO_LETTER = re.compile(r"[^A-Ga-g\s\[\]',\"]")


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong with one item."""

    item: str
    kind: str
    detail: str

    @property
    def reason(self) -> str:
        """`kind: detail`, as it stands in a list of exclusions."""
        return f"{self.kind}: {self.detail}"


def normalised(text: str) -> str:
    """A question's text as it is compared."""
    flat = _BLANK.sub("", unicodedata.normalize("NFKC", text))
    return _GAP.sub("", _NUMBER.sub("", flat))


def find(task: Task, data: str | Path | None = None) -> list[Issue]:
    """All issues of all splits that can be scored, in the order of the files.

    Raises:
        DataError: files missing or broken.
    """
    reader = Reader(task, find_files(task, data))
    shots = {_key(shot): shot.id for s in task.subjects for shot in reversed(reader.shots(s))}
    found: list[Issue] = []
    for split in task.source.files:
        if split == task.shot_split:
            continue
        items = [item for subject in task.subjects for item in reader.items(subject, split)]
        same = _same(items)
        for item in items:
            found += _issues(task, item, split, shots, same)
    return found


def _key(item: Item) -> tuple[str, ...]:
    texts = item.choices or item.options
    return (
        normalised(item.passage),
        normalised(item.question),
        *(_BLANK.sub("", unicodedata.normalize("NFKC", text)) for text in texts),
    )


def _same(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Items that are the same question, by each one's id; only where there are several."""
    groups: defaultdict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[_key(item)].append(item)
    return {item.id: group for group in groups.values() if len(group) > 1 for item in group}


def _issues(
    task: Task,
    item: Item,
    split: str,
    shots: Mapping[tuple[str, ...], str],
    same: Mapping[str, list[Item]],
) -> Iterator[Issue]:
    shot = shots.get(_key(item))
    if shot is not None:
        yield Issue(item.id, "shot", f"also {shot}")
    group = same.get(item.id, [])
    if len({other.answer for other in group}) > 1:
        others = ", ".join(other.id for other in group if other.id != item.id)
        yield Issue(item.id, "conflict", f"other gold label than {others}")
    elif group and group[0].id != item.id:
        yield Issue(item.id, "duplicate", f"same as {group[0].id}")
    yield from _options(item)
    if split not in task.unlabelled:
        yield from _label(task, item)
    if "image" in item.flags:
        yield Issue(item.id, "image", "a link to a picture")
    elif _FIGURE.search(item.question) and _DRAWN not in item.question:
        yield Issue(item.id, "image", "refers to a figure")


def _options(item: Item) -> Iterator[Issue]:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for label, text in zip(item.labels, item.choices, strict=False):
        places[text.strip()].append(label)
    for text, labels in places.items():
        if not text:
            yield Issue(item.id, "options", f"{', '.join(labels)} empty")
        elif len(labels) > 1:
            gold = ", one of them gold" if set(labels) & set(item.answer) else ""
            yield Issue(item.id, "options", f"{' and '.join(labels)} equal{gold}")


def _label(task: Task, item: Item) -> Iterator[Issue]:
    if not item.answer:
        yield Issue(item.id, "label", "none")
    elif item.kind in ("single", "multi") and task.source.layout == "agieval":
        if task.subjects[item.subject].kind == "single" and item.kind == "multi":
            yield Issue(item.id, "label", "several letters in a file of single answers")
        elif _NO_LETTER.search(item.answer_text):
            yield Issue(item.id, "label", "signs that are no letters")


def reasons(issues: Iterable[Issue]) -> dict[str, str]:
    """Item → all that is wrong with it, as a list of exclusions has it."""
    out: defaultdict[str, list[str]] = defaultdict(list)
    for issue in issues:
        out[issue.item].append(issue.reason)
    return {item: "; ".join(dict.fromkeys(found)) for item, found in out.items()}


def as_yaml(name: str, issues: Iterable[Issue], tasks: Iterable[str]) -> str:
    """A list of exclusions with all issues."""
    content = {
        "name": name,
        "title": "Known bad or duplicated items",
        "source": f"found in the published files of {', '.join(tasks)} by 'data issues'; questions "
        f"compared after {NORMALISATION}",
        "items": reasons(issues),
    }
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)
