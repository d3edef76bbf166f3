"""YAML and JSON that may come from anybody: read only when they are of the size they look.

A few lines of YAML can stand for billions (aliases of aliases), and brackets without end overflow
the stack of who reads them. Both are refused before anything is built.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ceval_suite.errors import ConfigError

DEPTH = 100
"""Levels of mappings and lists in each other; the project's own files have six."""

NODES = 1_000_000
"""Values in a file, those that aliases stand for counted each time."""

FORMULA = ("=", "+", "-", "@", "\t", "\n", "\r", "＝", "＋", "－", "＠")
"""What spreadsheets take for the beginning of a formula; some do so for full-width signs."""

# libyaml where PyYAML was built with it: a task's file is read many times faster
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str, where: str) -> None:
    """See that YAML is neither deeper nor larger than files that people write.

    Raises:
        ConfigError: it is; aliases that contain themselves are.
        YAMLError: it is none.
    """
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=SafeLoader):
        size = 1
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 1))
            if len(open_) > DEPTH:
                raise ConfigError(
                    f"{where}, line {event.start_mark.line + 1}: more than {DEPTH} levels in each "
                    "other; write it flatter."
                )
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == one for one, _ in open_):
                raise ConfigError(
                    f"{where}, line {event.start_mark.line + 1}: *{event.anchor} stands in what it "
                    "stands for; write it out."
                )
            # one that is not there is told of when the file is read
            size, anchor = sizes.get(event.anchor, 1), None
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, sum_ = open_.pop()
        open_.append((outer, sum_ + size))
        if sum_ + size > NODES:
            raise ConfigError(
                f"{where}, line {event.start_mark.line + 1}: aliases stand for more than {NODES:,} "
                "values; write out what is meant."
            )


def from_json(content: bytes | str) -> Any:
    """JSON from elsewhere.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_inside(name: str) -> bool:
    r"""Whether a path that somebody else wrote stays in the folder that it is joined to.

    >>> [is_inside(name) for name in ("a/b.csv", "../b.csv", "/etc/b", "a/../../b", "C:\\b", "")]
    [True, False, False, False, False, False]
    """
    paths = PurePosixPath(name), PureWindowsPath(name)
    away = any(".." in path.parts or path.is_absolute() or path.drive for path in paths)
    return bool(name.strip()) and not away and "\0" not in name
