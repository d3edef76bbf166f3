"""Named lists of items that a score is also given without: known bad ones, or contaminated ones.

A list is data: `leaderboards/exclusions/<name>.yaml`, or a file of the user's. It names items and
says why of each; nothing of a benchmark's text stands in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from ceval_suite import catalog, methods
from ceval_suite.errors import ConfigError, UserError, unknown
from ceval_suite.schema import Record
from ceval_suite.specs import Strict

FOLDER = "leaderboards/exclusions"


class Exclusions(Strict):
    """A list of items: id → the reason. An id names an item with all of its sub-questions."""

    name: str = Field(min_length=1)
    title: str
    source: str
    items: dict[str, str]


def names() -> list[str]:
    """The lists on the search path."""
    return sorted(catalog.yaml_files(FOLDER))


def load(name: str) -> Exclusions:
    """A list by name, or a YAML file by its path.

    Raises:
        ConfigError: neither, or an invalid file.
    """
    files = catalog.yaml_files(FOLDER)
    path = files.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(unknown("exclusion list", name, files) + " A YAML file also serves.")
    found = catalog.validate(Exclusions, catalog.read_yaml(path), str(path))
    wrong = [item for item in found.items if item.count("/") < 3 or "#" in item]
    if wrong:
        raise ConfigError(
            f"{path}: items: '{wrong[0]}' is no item id (<task>/<split>/<subject>/<row>)."
        )
    return found


def check() -> list[str]:
    """All errors of all lists on the search path, one sentence each."""
    problems: list[str] = []
    for name in names():
        try:
            load(name)
        except UserError as error:
            problems.extend(str(error).splitlines())
    return problems


def without(records: Iterable[Record], lists: Sequence[Exclusions]) -> list[Record]:
    """The records of items that no list names."""
    named = {item for one in lists for item in one.items}
    return [record for record in records if methods.item(record.id) not in named]
