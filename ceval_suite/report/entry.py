"""One entry of the registry, as plain data and as YAML."""

from __future__ import annotations

from typing import Any

import yaml

from ceval_suite import boards, catalog
from ceval_suite.backends import anatomy
from ceval_suite.errors import ConfigError, unknown


def describe(name: str) -> dict[str, Any]:
    """A task, prompts file, model or board as plain data; of a model also what its files say.

    Raises:
        ConfigError: nothing has this name.
    """
    if name in catalog.yaml_files("tasks"):
        return catalog.load_task(name).model_dump(exclude_defaults=True)
    if name not in catalog.model_specs() and name in catalog.yaml_files("prompts"):
        found = catalog.load_prompts(name)
        return {k: v.model_dump(exclude_defaults=True) for k, v in found.items()}
    if name not in catalog.model_specs() and name in boards.names():
        return boards.load(name).model_dump(exclude_defaults=True)
    try:
        label, spec = catalog.load_model_spec(name)
    except ConfigError:
        known = [*catalog.yaml_files("tasks"), *catalog.model_specs(), *boards.names()]
        raise ConfigError(unknown("task, model or board", name, known)) from None
    entry = spec.model_dump(exclude_defaults=True)
    return {label: entry, "checkpoint": anatomy.describe(name, spec)}


def as_yaml(content: dict[str, Any]) -> str:
    """Plain data as YAML, Chinese unescaped, order kept."""
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=100)
