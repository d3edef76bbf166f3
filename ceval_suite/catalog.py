"""The YAML that people write: find it, read it, validate it, suggest the right name.

Tasks (`tasks/*.yaml`), templates (`prompts/<name>.yaml`, several named protocols a file), models
(`leaderboards/models.yaml`) and numbers others printed (`leaderboards/published/*.yaml`). User
folders are searched before the shipped ones: each entry of `$CEVAL_SUITE_PATH`, then the working
directory, then the project's own. Unknown keys are errors, and YAML never calls Python.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ValidationError

from ceval_suite.errors import ConfigError, UserError, unknown
from ceval_suite.model_spec import ModelSpec
from ceval_suite.specs import PublishedTokenizers, Task, Template
from ceval_suite.untrusted import SafeLoader, check_yaml

M = TypeVar("M", bound=BaseModel)


def data_root() -> Path:
    """The folder with `tasks/`, `prompts/` and `leaderboards/`: in the wheel, or the checkout."""
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parents[1]


def search_path() -> list[Path]:
    """Folders searched for YAML, the user's before the shipped one."""
    named = [Path(p) for p in os.environ.get("CEVAL_SUITE_PATH", "").split(os.pathsep) if p]
    roots: list[Path] = []
    for root in (*named, Path.cwd(), data_root()):
        resolved = root.resolve()
        if resolved not in roots:
            roots.append(resolved)
    return roots


def yaml_files(folder: str) -> dict[str, Path]:
    """Stem → file for all YAML files of `folder`, the first one found on the search path."""
    found: dict[str, Path] = {}
    for root in search_path():
        for path in sorted((root / folder).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


class _Loader(SafeLoader):
    """Safe YAML that refuses a key written twice (plain YAML silently keeps the last)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    own = {id(key_node) for key_node, _ in node.value}
    loader.flatten_mapping(node)  # what `<<` brings comes first, to be written over
    out: dict[Any, Any] = {}
    written: set[Any] = set()
    for key_node, value_node in node.value:
        key: Any = loader.construct_object(key_node, deep=True)
        if key in written:
            mark = key_node.start_mark
            raise ConfigError(f"{mark.name}, line {mark.line + 1}: key '{key}' is written twice.")
        if id(key_node) in own:
            written.add(key)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Named(io.StringIO):
    """A text whose errors name its file."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.name = str(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text, str(path))
        content: Any = yaml.load(_Named(text, path), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({detail}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(content).__name__}.")
    return content


def validate(model: type[M], content: Any, where: str) -> M:
    """Content of a file as a model.

    Raises:
        ConfigError: all that is wrong with it, one sentence a line.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines: list[str] = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(top)"
            if problem["type"] == "extra_forbidden":
                known = list(model.model_fields)
                hint = unknown("key", str(problem["loc"][-1]), known) if "." not in key else ""
                lines.append(f"{where}: {key}: {hint or 'unknown key.'}")
            else:
                message = str(problem["msg"]).removeprefix("Value error, ")
                lines.append(f"{where}: {key}: {message}.")
        raise ConfigError("\n".join(lines)) from error


def _validate_all(model: type[M], path: Path) -> dict[str, M]:
    """Every named entry of a file; the errors of all of them together."""
    out: dict[str, M] = {}
    problems: list[str] = []
    for key, content in read_yaml(path).items():
        try:
            out[key] = validate(model, content, f"{path}: {key}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return out


def task_names() -> list[str]:
    """Names of all tasks on the search path."""
    return sorted(yaml_files("tasks"))


def task_folder(name: str) -> Path:
    """The folder whose `tasks/<name>.yaml` is used; bundled data lies beside it."""
    return yaml_files("tasks")[name].parent


@cache
def load_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: unknown name or invalid file.
    """
    files = yaml_files("tasks")
    if name not in files:
        raise ConfigError(unknown("task", name, files))
    task = validate(Task, read_yaml(files[name]), str(files[name]))
    if task.name != name:
        raise ConfigError(f"{files[name]}: name: is '{task.name}', the file says '{name}'.")
    return task


@cache
def load_prompts(name: str) -> Mapping[str, Template]:
    """All protocols of a prompts file, by protocol name.

    Raises:
        ConfigError: unknown name or invalid file; all of its errors, one a line.
    """
    files = yaml_files("prompts")
    if name not in files:
        raise ConfigError(unknown("prompts file", name, files))
    out = _validate_all(Template, files[name])
    problems: list[str] = []
    for protocol, template in out.items():
        for part, text in _wordings(template):
            try:
                environment().parse(text)
            except TemplateSyntaxError as error:
                problems.append(f"{files[name]}: {protocol}.{part}: not a Jinja string ({error}).")
    if problems:
        raise ConfigError("\n".join(problems))
    return out


def _wordings(template: Template) -> Iterator[tuple[str, str]]:
    yield from template.parts(1).items()
    if template.zero_shot is not None:
        for part, text in template.zero_shot.parts().items():
            yield f"zero_shot.{part}", text


def load_template(task: Task, protocol: str | None = None) -> tuple[str, Template]:
    """The protocol name and template of a task; the task's own protocol by default.

    Raises:
        ConfigError: unknown protocol.
    """
    name = protocol or task.protocol
    templates = load_prompts(task.prompt)
    if name not in templates:
        raise ConfigError(f"task '{task.name}': " + unknown("protocol", name, templates))
    return name, templates[name]


def models_file() -> Path:
    """The models.yaml in use."""
    for root in search_path():
        path = root / "leaderboards" / "models.yaml"
        if path.is_file():
            return path
    raise ConfigError("no leaderboards/models.yaml on the search path; reinstall ceval-suite.")


def model_specs() -> dict[str, ModelSpec]:
    """All registered models, by name."""
    return _validate_all(ModelSpec, models_file())


def load_model_spec(name: str) -> tuple[str, ModelSpec]:
    """A registered model by name, else a path, `pypi:` reference or hub id as it stands.

    Returns:
        The name to show and to store under, and the spec.

    Raises:
        ConfigError: neither registered, nor a path that exists, nor of the form `owner/name`.
    """
    specs = model_specs()
    if name in specs:
        return name, specs[name]
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve().name.removesuffix(".gguf"), ModelSpec(path=str(path.resolve()))
    if name.startswith("pypi:"):
        return name.rsplit("/", 1)[-1].removesuffix(".gguf"), ModelSpec(path=name)
    hub_like = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if hub_like and all(part for part in name.split("/")):
        return name.replace("/", "__"), ModelSpec(path=name)
    raise ConfigError(
        unknown("model", name, specs)
        + " A local directory or .gguf file, a hub id (owner/name) or pypi:… also serves."
    )


def override(spec: ModelSpec, options: Mapping[str, Any]) -> ModelSpec:
    """A spec with some keys replaced from the command line.

    Raises:
        ConfigError: a value the key does not take.
    """
    # not model_dump, which leaves out what must not be shown
    content = {key: getattr(spec, key) for key in spec.model_fields_set} | dict(options)
    return validate(ModelSpec, content, "command line")


def published_tokenizers() -> dict[str, PublishedTokenizers]:
    """The tokenizer tables that others printed, by their key in the file.

    Raises:
        ConfigError: invalid file; all of its errors, one a line.
    """
    files = yaml_files("leaderboards/published")
    return _validate_all(PublishedTokenizers, files["tokenizers"]) if "tokenizers" in files else {}


def check() -> list[str]:
    """All errors of all YAML on the search path, one sentence each."""
    problems: list[str] = []

    def attempt(load: Any, *args: Any) -> Any:
        try:
            return load(*args)
        except UserError as error:
            problems.extend(str(error).splitlines())

    prompts = {name: attempt(load_prompts, name) for name in sorted(yaml_files("prompts"))}
    for name in task_names():
        task = attempt(load_task, name)
        if task is None:
            continue
        where = yaml_files("tasks")[name]
        if task.prompt not in prompts:
            problems.append(f"{where}: prompt: " + unknown("prompts file", task.prompt, prompts))
            continue
        templates: Mapping[str, Template] = prompts[task.prompt] or {}
        if templates and task.protocol not in templates:
            problems.append(f"{where}: protocol: " + unknown("protocol", task.protocol, templates))
        for protocol, template in templates.items() if task.prompt == task.name else ():
            at = f"{yaml_files('prompts')[task.prompt]}: {protocol}.subjects: "
            bad = [s for s in template.subjects or [] if s not in task.subjects]
            problems.extend(at + unknown("subject", subject, task.subjects) for subject in bad)
    attempt(model_specs)
    attempt(published_tokenizers)
    return problems


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """The one Jinja environment: strict, sandboxed, and nothing trimmed.

    Block trimming is off on purpose: it would eat a newline written after a tag, and a wording
    must print exactly the blanks it shows.
    """
    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
