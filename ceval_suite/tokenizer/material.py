"""What a tokenizer is looked at with: wordings, real prompts and question texts.

They come from the benchmarks where their files lie on this machine, else from the bundled exams,
so that an audit never waits for a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ceval_suite.catalog import load_prompts, load_task, task_names, yaml_files
from ceval_suite.data import Reader
from ceval_suite.errors import ConfigError, DataError, unknown
from ceval_suite.files import find_files
from ceval_suite.schema import Item
from ceval_suite.specs import Task, Template

PER_SUBJECT = 20
"""Questions of a subject that are looked at."""

SCORED = ("letters", "continuation", "either")
"""Ways of answering in which each label, or whole option, is scored by itself."""


@dataclass
class Source:
    """A task's items and shots, each file read once."""

    task: Task
    reader: Reader
    _items: dict[str, list[Item]] = field(default_factory=dict[str, list[Item]])
    _shots: dict[str, list[Item]] = field(default_factory=dict[str, list[Item]])

    def items(self, subject: str) -> list[Item]:
        """The items of the split that is scored."""
        if subject not in self._items:
            self._items[subject] = self.reader.items(subject, self.task.split)
        return self._items[subject]

    def shots(self, subject: str) -> list[Item]:
        """The solved items that the benchmark shows."""
        if subject not in self._shots:
            self._shots[subject] = self.reader.shots(subject)
        return self._shots[subject]

    def subjects(self, template: Template) -> list[str]:
        """Subjects that the template is for; the bundled exams stand in for any of them."""
        allowed = template.subjects
        if allowed is None or self.task.source.bundled:
            return list(self.task.subjects)
        return [name for name in self.task.subjects if name in allowed]

    def language(self, subject: str) -> str:
        """en or zh."""
        own = self.task.subjects[subject].language
        return own or ("en" if self.task.language == "en" else "zh")

    def first(self, subject: str, template: Template) -> Item | None:
        """The first item whose labels are scored."""
        items = self.items(subject)
        return next((i for i in items if i.labels and template.method(i) in SCORED), None)


def _lettered(template: Template) -> bool:
    """Whether a wording prints letters at all; options scored as texts need none."""
    return any(word in template.question + template.answer for word in ("label", "options"))


def wordings(asked: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """(prompts file, protocol) of all that score labels and print them, or of those asked for.

    They are asked for as `official` or `mmlu/official`.

    Raises:
        ConfigError: there is none of that name.
    """
    every = [
        (file, protocol)
        for file in sorted(yaml_files("prompts"))
        for protocol, template in load_prompts(file).items()
        if any(method in SCORED for method in template.methods.values()) and _lettered(template)
    ]
    if not asked:
        return every
    known = {f"{file}/{protocol}" for file, protocol in every} | {p for _, p in every}
    for name in asked:
        if name not in known:
            raise ConfigError(unknown("protocol", name, known))
    return [(f, p) for f, p in every if p in asked or f"{f}/{p}" in asked]


def sources(data: str | Path | None = None) -> dict[str, Source]:
    """For each prompts file, its benchmark where the files are found here, else a sample.

    Raises:
        DataError: `data` is named and not there.
    """
    if data is not None and not Path(data).expanduser().exists():
        raise DataError(f"{data}: no such folder; give the one with the benchmark files.")
    found: dict[str, Source] = {}
    tasks = [load_task(name) for name in task_names()]
    # the benchmark itself comes before what borrows its wording, samples come last
    for task in sorted(tasks, key=lambda t: (t.source.bundled, t.name != t.prompt)):
        if task.prompt not in found:
            try:
                found[task.prompt] = Source(task, Reader(task, find_files(task, data)))
            except DataError:
                continue
    return found


def questions(found: dict[str, Source]) -> dict[str, list[str]]:
    """Texts of the first questions of each subject, with their choices, by language."""
    out: dict[str, list[str]] = {"en": [], "zh": []}
    for source in found.values():
        for subject in source.task.subjects:
            items = source.items(subject)[:PER_SUBJECT]
            texts = ("\n".join(filter(None, [i.passage, i.question, *i.choices])) for i in items)
            out[source.language(subject)] += texts
    return out
