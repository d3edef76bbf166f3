"""Boards as data: which columns, which models, beside which numbers that others printed.

A board is `leaderboards/<name>.yaml`; a table of others is `leaderboards/published/<name>.yaml`. A
number that others printed is kept to the digit and never takes part in a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ceval_suite import catalog, exclusions
from ceval_suite.errors import ConfigError, UserError, unknown
from ceval_suite.specs import PublishedTokenizers, Strict, Task, Template

FOLDER = "leaderboards"
PUBLISHED = "leaderboards/published"
TOKENIZERS = "tokenizers"
"""The file of published tokenizer tables, and the board of them."""

Printed = Annotated[str, Field(pattern=r"^\d+(\.\d+)?( \((\d+(\.\d+)?|-)\))?$")]
"""A percentage as printed, with the model's own number in parentheses where there was one."""


class Column(Strict):
    """One column: a benchmark under one protocol, a mean of columns, or what is known of a model.

    What is left out of a benchmark's protocol is the task's own. `subjects` or `group` narrow it to
    some of what was run. `reported` names the column of published tables that is shown beside it.
    """

    task: str | None = None
    protocol: str | None = None
    split: str | None = None
    shots: int | None = Field(default=None, ge=0)
    average: Literal["micro", "macro", "points"] | None = None
    limit: int | None = Field(default=None, ge=1)
    chat: bool = False
    group: str | None = None
    subjects: list[str] | None = None
    reported: str | None = None
    mean: list[str] | None = None
    show: Literal["backbone", "tokens", "settings"] | None = None
    published: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Column:
        kinds = [k for k in ("task", "mean", "show", "published") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError("give one of task, mean, show and published")
        if kinds != ["task"]:
            strange = self.model_fields_set - {*kinds}
            if strange:
                raise ValueError(f"{min(strange)} needs a task, and this column has {kinds[0]}")
        if self.group is not None and self.subjects is not None:
            raise ValueError("give either group or subjects")
        return self


class Own(Strict):
    """A number that a model's makers report themselves, in percent, and where."""

    value: float = Field(ge=0, le=100)
    source: str = Field(min_length=1)


class Model(Strict):
    """How a measured model is shown; the key is its name in runs, or a pattern such as `qwen*`."""

    name: str = ""
    backbone: str = ""
    tokens: str = ""
    settings: str = ""
    reported: dict[str, Own] = Field(default={})


class Reference(Strict):
    """Rows of a published table that a board shows; all of them where none is named."""

    table: str
    rows: list[str] | None = None


class Board(Strict):
    """A leaderboard. `only_listed` leaves out models that `models` does not name.

    `tokenizers` names tables of `published/tokenizers.yaml`; such a board has no columns of its
    own. `exclude` names lists of items without which scores are given as well.
    """

    title: str
    columns: dict[str, Column] = Field(default={})
    models: dict[str, Model] = Field(default={})
    only_listed: bool = False
    sort: str | None = None
    published: list[Reference] = Field(default=[])
    tokenizers: list[str] = Field(default=[])
    exclude: list[str] = Field(default=[])
    notes: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _whole(self) -> Board:
        if bool(self.columns) == bool(self.tokenizers):
            raise ValueError("give either columns or tokenizers")
        known = set(self.columns)
        for name, column in self.columns.items():
            for part in column.mean or ():
                if part not in known or self.columns[part].task is None:
                    tasks = [n for n, c in self.columns.items() if c.task]
                    raise ValueError(f"{name}.mean: {unknown('column', part, tasks).rstrip('.')}")
        if self.sort is not None and self.sort not in known:
            raise ValueError(f"sort: {unknown('column', self.sort, known).rstrip('.')}")
        for pattern, model in self.models.items():
            for column in model.reported:
                if column not in known:
                    found = unknown("column", column, known).rstrip(".")
                    raise ValueError(f"models.{pattern}.reported: {found}")
        return self


class PublishedColumn(Strict):
    """A benchmark in a table of others, and under which settings they measured it."""

    title: str
    settings: str


class PublishedRow(Strict):
    """A model in a table of others; `note` says what sets the row apart."""

    backbone: str = ""
    tokens: str = ""
    settings: str = ""
    note: str = ""
    values: dict[str, Printed]


class PublishedTable(Strict):
    """Scores that others printed: who, when, how."""

    title: str
    source: str
    date: str
    settings: str
    columns: dict[str, PublishedColumn] = Field(min_length=1)
    rows: dict[str, PublishedRow] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> PublishedTable:
        for name, row in self.rows.items():
            for column in row.values:
                if column not in self.columns:
                    found = unknown("column", column, self.columns).rstrip(".")
                    raise ValueError(f"rows.{name}.values: {found}")
        return self


def names() -> list[str]:
    """All boards on the search path."""
    return sorted(name for name in catalog.yaml_files(FOLDER) if name != "models")


def place(name: str) -> Path:
    """The file of a board.

    Raises:
        ConfigError: unknown name.
    """
    if name not in names():
        raise ConfigError(unknown("board", name, names()))
    return catalog.yaml_files(FOLDER)[name]


def generated(name: str) -> Path:
    """Where the tables of a board are written, without the ending: `generated/` beside its file.

    An installed board's are written below the working directory.
    """
    folder = place(name).parent
    if catalog.data_root().name == "_data" and folder.is_relative_to(catalog.data_root()):
        folder = Path(FOLDER)
    return folder / "generated" / name


def load(name: str) -> Board:
    """A board by name.

    Raises:
        ConfigError: unknown name, or an invalid file.
    """
    path = place(name)
    board = catalog.validate(Board, catalog.read_yaml(path), str(path))
    problems = list(_unknown_names(board, str(path)))
    if problems:
        raise ConfigError("\n".join(problems))
    return board


def load_published(name: str) -> PublishedTable:
    """A published table of scores by name.

    Raises:
        ConfigError: unknown name, or an invalid file.
    """
    files = published_files()
    if name not in files:
        raise ConfigError(unknown("published table", name, files))
    return catalog.validate(PublishedTable, catalog.read_yaml(files[name]), str(files[name]))


def load_tokenizers(board: Board) -> dict[str, PublishedTokenizers]:
    """The tables of tokenizers that a board names."""
    found = catalog.published_tokenizers()
    return {name: found[name] for name in board.tokenizers}


def published_files() -> dict[str, Path]:
    """Published tables of scores on the search path."""
    return {k: v for k, v in catalog.yaml_files(PUBLISHED).items() if k != TOKENIZERS}


def check() -> list[str]:
    """All errors of all boards and published tables on the search path, one sentence each."""
    problems: list[str] = []
    for load_one, some in ((load_published, published_files()), (load, names())):
        for name in some:
            try:
                load_one(name)
            except UserError as error:
                problems.extend(str(error).splitlines())
    return problems


def settle(column: Column) -> tuple[Task, str, Template]:
    """The task, protocol name and template of a column of a task."""
    task = catalog.load_task(column.task or "")
    return task, *catalog.load_template(task, column.protocol)


def members(column: Column, task: Task) -> list[str] | None:
    """The subjects that a column is narrowed to; None: all that were run."""
    if column.group is None:
        return column.subjects
    return (task.groups | task.categories)[column.group]


def _unknown_names(board: Board, where: str) -> Iterator[str]:
    for name, column in board.columns.items():
        if column.task is None:
            continue
        at = f"{where}: columns.{name}"
        try:
            task, _, _ = settle(column)
        except UserError as error:
            yield f"{at}: {error}"
            continue
        groups = task.groups | task.categories
        if column.group is not None and column.group not in groups:
            yield f"{at}.group: {unknown('group', column.group, groups)}"
        for subject in column.subjects or ():
            if subject not in task.subjects:
                yield f"{at}.subjects: {unknown('subject', subject, task.subjects)}"
        if column.split is not None and column.split not in task.source.files:
            yield f"{at}.split: {unknown('split', column.split, task.source.files)}"
    for reference in board.published:
        if reference.table not in published_files():
            found = unknown("published table", reference.table, published_files())
            yield f"{where}: published: {found}"
            continue
        rows = load_published(reference.table).rows
        for row in reference.rows or ():
            if row not in rows:
                yield f"{where}: published: {reference.table}: {unknown('row', row, rows)}"
    for table in board.tokenizers:
        if table not in catalog.published_tokenizers():
            known = catalog.published_tokenizers()
            yield f"{where}: tokenizers: {unknown('published table', table, known)}"
    for one in board.exclude:
        if one not in exclusions.names():
            yield f"{where}: exclude: {unknown('exclusion list', one, exclusions.names())}"
