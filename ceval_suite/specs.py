"""What people write in YAML, as validated types: Task, Template and their parts."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ceval_suite.schema import Item, Kind


class Strict(BaseModel):
    """Unknown keys are errors; values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


class Columns(Strict):
    """Columns of a csv layout: names when the file has a header line, else 0-based positions."""

    question: str | int
    choices: list[str | int]
    answer: str | int
    explanation: str | int | None = None


class Download(Strict):
    """One way to fetch a benchmark: a URL, or a file or dataset on the hub."""

    url: str | None = None
    hub: str | None = None
    revision: str = "main"
    file: str | None = None
    name: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Download:
        if (self.url is None) == (self.hub is None):
            raise ValueError("give either url or hub")
        return self


class Source(Strict):
    """Where the files of a task lie and how they are laid out.

    `files` maps a split to a path pattern with `{subject}`. `folder` is the benchmark's folder
    under the data root. `bundled` files ship beside the task file.
    """

    layout: Literal["csv", "agieval", "gaokao"]
    folder: str
    files: dict[str, str]
    columns: Columns | None = None
    shots_file: str | None = None
    bundled: bool = False
    download: list[Download] = []


class Subject(Strict):
    """One row of a task's subject table.

    `counts` maps a split to its number of items. `partial` is the share of the points for some of
    the right letters and no wrong one.
    """

    title: str = ""
    category: str = ""
    subcategory: str = ""
    language: Literal["en", "zh"] | None = None
    exam: str = ""
    type: str = ""
    kind: Kind = "single"
    labels: str = "ABCD"
    points: float = 1.0
    partial: float = Field(default=0.0, ge=0, le=1)
    sub_questions: int | None = None
    shots_from: str | None = None
    without_passage: bool = False
    counts: dict[str, int] = {}


class PaperSubject(Strict):
    """A subject as an exam counts it: the marks of its paper, and the share of objective questions.

    `files` are the task's subjects whose scoring rate stands for the objective part.
    """

    total: float = Field(gt=0)
    objective: float = Field(gt=0, le=1)
    files: list[str] = Field(min_length=1)


class Paper(Strict):
    """How points become marks of a whole exam: by subject, and which subjects add up to a total."""

    source: str
    subjects: dict[str, PaperSubject] = Field(min_length=1)
    totals: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _known(self) -> Paper:
        for total, members in self.totals.items():
            strange = [m for m in members if m not in self.subjects]
            if strange:
                raise ValueError(f"total '{total}' names unknown subjects: {', '.join(strange)}")
        return self


class Task(Strict):
    """A benchmark as we run it.

    `open_questions` are path patterns of files with questions that no rule can score, in the known
    layouts, the newest first; all patterns of the first layout that is there are read.
    """

    name: str
    version: int
    title: str
    language: Literal["en", "zh", "zh+en"]
    source: Source
    counts: dict[str, int] = {}
    sub_questions: int | None = None
    points: float | None = None
    prompt: str
    protocol: str = "official"
    shots: int = Field(ge=0)
    shot_split: str | None = None
    split: str
    unlabelled: list[str] = []
    average: Literal["micro", "macro", "points"]
    subjects: dict[str, Subject] = Field(min_length=1)
    groups: dict[str, list[str]] = {}
    paper: Paper | None = None
    open_questions: list[list[str]] = []
    license: str
    homepage: str
    citation: str
    notes: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.split not in self.source.files:
            raise ValueError(f"split '{self.split}' has no entry under source.files")
        for group, members in self.groups.items():
            missing = [m for m in members if m not in self.subjects]
            if missing:
                raise ValueError(f"group '{group}' names unknown subjects: {', '.join(missing)}")
        for name, part in (self.paper.subjects if self.paper else {}).items():
            missing = [f for f in part.files if f not in self.subjects]
            if missing:
                raise ValueError(f"paper '{name}' names unknown subjects: {', '.join(missing)}")
        for split, count in self.counts.items():
            total = sum(s.counts.get(split, 0) for s in self.subjects.values())
            if total and total != count:
                raise ValueError(f"counts.{split} is {count} but the subjects add up to {total}")
        return self

    @property
    def categories(self) -> dict[str, list[str]]:
        """Category → its subjects, in the order of the table."""
        out: dict[str, list[str]] = {}
        for name, subject in self.subjects.items():
            if subject.category:
                out.setdefault(subject.category, []).append(name)
        return out


PARTS = ("header", "question", "cue", "lead", "answer", "join", "step", "between", "second", "end")

Method: TypeAlias = Literal[
    "letters", "continuation", "sequence", "chain", "forced", "generate", "either"
]
"""How an item is answered. letters: the likeliest label by its first token; continuation: the
likeliest whole option; sequence: letter after letter until the likeliest next is the end; chain:
each sub-question by its first token, after the answers that the model gave to those before it;
forced: the same after their gold answers; generate: read off what the model writes; either: letters
and generate, right when one of them is (ColossalEval's combined metric)."""


class Parts(Strict):
    """The parts of a wording; each is a Jinja string and none hides a blank.

    A prompt is header, then question + cue + answer + join for every shot, then question + cue.
    `lead` stands between the prompt and the letter where the official protocol only generates
    text: it is this suite's letter cue, not part of the official prompt, and is printed as such.
    For sub-questions, `step` stands before the letter of each and `between` after it; both know
    `part`, its number from 1, and `parts`. `second` is a second request: what follows the text that
    the model wrote (and stands on a line of its own), before it is asked for the answer itself.
    """

    header: str = ""
    question: str
    cue: str = ""
    lead: str = ""
    answer: str
    join: str = ""
    step: str = ""
    between: str = ""
    second: str = ""


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is not a regular expression ({error})") from error
    return text


class Rule(Strict):
    r"""One way of reading an answer off a text; `extract.predict` says what it does, step by step.

    It is for texts of one `language`, or subjects of one of the official `types`, where it says so.
    What is looked at: the text with full-width letters made `narrow` (Ａ is A), without what
    `remove` matches; of that the `last_line` that is not blank; of that the first match of
    `within` (its group, where it has one); of that what follows the last of the sentences `past`
    (each in turn; the first, where the text begins with it), without outer blanks.
    What is found: the group of a match of `find`, one expression or several tried in order, else
    the whole match; everything without `find`. `which` of the matches count, and how many there
    must be (`count`): any number, exactly as many as answers are wanted, or enough of them. A group
    named `number` says which blank a letter belongs to, from 1. `reading` reads on in what was
    found: AGIEval's readings of mathematics (`boxed`, `dollar`, `number`), the one option whose
    text stands in it (`holds_option`), or the option that it is (`is_option`).
    With `labels` what is found must be labels of the item, else the next rule is tried. With
    `ordered` several letters stay as they are written, else they are a set.
    """

    language: Literal["en", "zh"] | None = None
    types: list[str] = []
    narrow: bool = False
    remove: str = ""
    last_line: bool = False
    within: str = ""
    past: list[str] = []
    find: str | list[str] = ""
    which: Literal["first", "last", "all"] = "first"
    count: Literal["any", "exact", "enough"] = "any"
    reading: Literal["", "boxed", "dollar", "number", "holds_option", "is_option"] = ""
    labels: bool = False
    ordered: bool = False

    @field_validator("remove", "within")
    @classmethod
    def _one_regex(cls, text: str) -> str:
        return _regex(text)

    @field_validator("find")
    @classmethod
    def _some_regexes(cls, found: str | list[str]) -> str | list[str]:
        for text in [found] if isinstance(found, str) else found:
            _regex(text)
        return found


class ZeroShot(Strict):
    """Parts that differ when no shot is shown, and what else does."""

    header: str | None = None
    question: str | None = None
    cue: str | None = None
    lead: str | None = None
    answer: str | None = None
    step: str | None = None
    between: str | None = None
    second: str | None = None
    end: str | None = None
    extract: dict[Kind, list[Rule]] | None = None

    def parts(self) -> dict[str, str]:
        """The parts that differ."""
        return self.model_dump(include=set(PARTS), exclude_none=True)


class Template(Parts):
    """One named wording (protocol) of a benchmark.

    `methods` says how items of each kind are answered; those of other kinds are not scored.
    `end` is what closes the answer where letters follow one another (sequence). `normalise` is what
    a whole option's log-probability is divided by, or compared with: its tokens, its bytes, or
    its probability after `bare` alone (PMI). `max_new_tokens` and `stop` end what is written.
    `extract` has the rules by which an answer of each kind is read off what was written: the first
    that finds one counts. `read_as` is ColossalEval's two-token rule. `script` reproduces the
    quirks of the official scoring script as well.
    """

    source: str
    note: str = ""
    zero_shot: ZeroShot | None = None
    methods: dict[Kind, Method] = {"single": "letters"}
    match: Literal["equal", "any"] = "equal"
    normalise: Literal["none", "token", "byte", "pmi"] = "none"
    bare: str = ""
    end: str = ""
    max_new_tokens: int = Field(default=0, ge=0)
    stop: list[str] = []
    extract: dict[Kind, list[Rule]] = {}
    read_as: list[str] = []
    script: bool = False
    fit: Literal["drop_last", "drop_longest"] = "drop_last"
    shots: int | None = None
    subjects: list[str] | None = None

    def method(self, item: Item) -> Method | None:
        """How an item is answered; None where this protocol does not score it."""
        kind: Kind = "blanks" if item.part else item.kind
        method = self.methods.get(kind)
        return method if item.labels or method == "generate" else None

    def parts(self, shots: int) -> dict[str, str]:
        """All parts for a prompt with `shots` shots."""
        parts = {name: getattr(self, name) for name in PARTS}
        if shots == 0 and self.zero_shot is not None:
            parts.update(self.zero_shot.parts())
        return parts

    def rules(self, kind: Kind, shots: int) -> list[Rule]:
        """The rules for answers of a kind to a prompt with `shots` shots, in order."""
        other = self.zero_shot.extract if shots == 0 and self.zero_shot is not None else None
        return (self.extract if other is None else other).get(kind, [])


class PublishedTokenizer(Strict):
    """A tokenizer as others measured it.

    `mean_tokens` and `time` (minutes:seconds for the whole corpus) are by language, or for `all`
    texts together; `compression` is tokens per character of all texts.
    """

    vocabulary: int = Field(gt=0)
    mean_tokens: dict[Literal["zh", "en", "all"], float] = {}
    time: dict[Literal["zh", "en"], Annotated[str, Field(pattern=r"^\d+:[0-5]\d$")]] = {}
    compression: float | None = Field(default=None, gt=0)
    note: str = ""

    def length(self, language: str) -> float | None:
        """Mean tokens of one language's texts, or of `all`, where it was printed."""
        return {**self.mean_tokens}.get(language)

    def seconds(self, language: str) -> float | None:
        """The time for one language's texts in seconds, where it was printed."""
        printed = {**self.time}.get(language)
        if printed is None:
            return None
        minutes, rest = printed.split(":")
        return 60.0 * int(minutes) + int(rest)


class PublishedTokenizers(Strict):
    """A table of tokenizers that others printed: who, and measured on what."""

    title: str
    source: str
    corpus: str
    tokenizers: dict[str, PublishedTokenizer] = Field(min_length=1)
