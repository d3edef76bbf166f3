"""The YAML people write: shipped files complete, mistakes named all at once, nothing executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracles
import pytest
import yaml

from ceval_suite import catalog
from ceval_suite.catalog import load_model_spec, load_prompts, load_task, load_template
from ceval_suite.data import Reader
from ceval_suite.errors import ConfigError, PromptError, UserError, unknown
from ceval_suite.files import find_files
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.prompt import Renderer
from ceval_suite.specs import Template

FIVE = ("mmlu", "cmmlu", "ceval", "agieval", "gaokao")


def clear() -> None:
    catalog.load_task.cache_clear()
    catalog.load_prompts.cache_clear()


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own folder on the search path, and a working directory without YAML."""
    (tmp_path / "own").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("CEVAL_SUITE_PATH", str(tmp_path / "own"))
    clear()
    yield tmp_path / "own"
    clear()


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def a_task(name: str, **changes: Any) -> dict[str, Any]:
    """The content of a sound task file, with some keys changed."""
    content: dict[str, Any] = load_task("sample-mmlu").model_dump(
        mode="json", exclude_defaults=True
    )
    return content | {"name": name} | changes


def a_template(**changes: Any) -> dict[str, Any]:
    return {"source": "here", "question": "{{ item.question }}", "answer": "{{ label }}"} | changes


# ------------------------------------------------------------------------------- what is shipped


def test_all_shipped_yaml_is_valid() -> None:
    assert catalog.check() == []
    assert set(FIVE) | {f"sample-{name}" for name in FIVE} <= set(catalog.task_names())


@pytest.mark.parametrize(
    ("task", "subjects", "counts", "average"),
    [
        ("mmlu", 57, {"dev": 285, "val": 1531, "test": 14042}, "micro"),
        ("cmmlu", 67, {"dev": 335, "test": 11582}, "macro"),
        ("ceval", 52, {"dev": 260, "val": 1346, "test": 12342}, "macro"),
        ("agieval", 21, {"test": 8269}, "macro"),
        ("gaokao", 14, {"test": 1781}, "points"),
    ],
)
def test_subject_tables_are_complete(
    task: str, subjects: int, counts: dict[str, int], average: str
) -> None:
    spec = load_task(task)
    assert len(spec.subjects) == subjects
    assert spec.counts == counts
    for subject in spec.subjects.values():
        assert subject.counts.keys() == counts.keys()
        assert subject.title
    assert {p: sum(s.counts[p] for s in spec.subjects.values()) for p in counts} == counts
    assert spec.average == average
    assert all((spec.license, spec.homepage, spec.citation, spec.source.download))


def as_sets(groups: Any) -> dict[str, set[str]]:
    return {name: set(members) for name, members in groups.items()}


def test_mmlu_categories_are_the_official_ones() -> None:
    task = load_task("mmlu")
    assert as_sets(task.categories) == as_sets(oracles.MMLU_CATEGORIES)
    assert [len(task.categories[c]) for c in oracles.MMLU_CATEGORIES] == [18, 13, 12, 14]
    parts = {
        "STEM": "physics, chemistry, biology, computer science, math, engineering",
        "humanities": "history, philosophy, law",
        "social sciences": "politics, culture, economics, geography, psychology",
        "other (business, health, misc.)": "other, business, health",
    }
    for category, names in task.categories.items():
        found = {task.subjects[name].subcategory for name in names}
        assert found == set(parts[category].split(", "))
    assert {s: row.title for s, row in task.subjects.items()} == {
        s: s.replace("_", " ") for s in task.subjects
    }


def test_cmmlu_categories_and_titles_are_the_official_ones() -> None:
    task = load_task("cmmlu")
    found = as_sets(task.categories) | {"China specific": set(task.groups["china_specific"])}
    assert found == as_sets(oracles.CMMLU_CATEGORIES)
    sizes = {name: len(members) for name, members in found.items()}
    assert sizes == {
        "STEM": 17,
        "Humanities": 13,
        "Social Science": 22,
        "Other": 15,
        "China specific": 15,
    }
    assert {s: row.title for s, row in task.subjects.items()} == oracles.CMMLU_NAMES
    parts = {
        "STEM": "physics, chemistry, biology, computer science, math, engineering, statistics",
        "Humanities": "history, philosophy, law, arts, literature, global",
        "Social Science": "linguistics, business, politics, culture, economics, geography, "
        "psychology, education, sociology",
        "Other": "other",
    }
    for category, names in task.categories.items():
        assert {task.subjects[name].subcategory for name in names} == set(
            parts[category].split(", ")
        )


def test_ceval_categories_and_titles_are_the_official_ones() -> None:
    task = load_task("ceval")
    found = as_sets(task.categories) | {"Hard": set(task.groups["hard"])}
    assert found == as_sets(oracles.CEVAL_CATEGORIES)
    sizes = {name: len(members) for name, members in found.items()}
    assert sizes == {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11, "Hard": 8}
    assert {s: row.title for s, row in task.subjects.items()} == oracles.CEVAL_NAMES
    assert {s: row.exam.lower().replace(" ", "_") for s, row in task.subjects.items()} == {
        s: s for s in task.subjects
    }
    assert task.unlabelled == ["test"]
    assert task.split == "val"


def test_agieval_knows_the_language_kind_and_exam_of_every_file() -> None:
    task = load_task("agieval")
    english = {s for s, row in task.subjects.items() if row.language == "en"}
    assert english == set(oracles._ENGLISH_EXAMS) == set(task.groups["english"])
    assert set(task.groups["chinese"]) == set(task.subjects) - english
    kinds = {
        k: {s for s, row in task.subjects.items() if row.kind == k} for k in ("multi", "cloze")
    }
    assert kinds == {
        "multi": {"jec-qa-kd", "jec-qa-ca", "gaokao-physics"},
        "cloze": set(oracles._CLOZE_EXAMS),
    }
    five = {s for s, row in task.subjects.items() if row.labels == "ABCDE"}
    assert five == {"aqua-rat", "lsat-ar", "lsat-lr", "lsat-rc"}
    assert all(row.exam for row in task.subjects.values())


def test_gaokao_knows_the_kind_and_points_of_every_file() -> None:
    task = load_task("gaokao")
    ours = {frozenset(names) for names in task.categories.values()}
    assert ours == {frozenset(names) for names in oracles.GAOKAO_SUBJECTS.values()}
    kinds = {k: sum(r.type == k for r in task.subjects.values()) for k in ("single_choice",)}
    assert kinds == {"single_choice": 7}
    rows = task.subjects.values()
    assert sum((row.sub_questions or 0) * row.points for row in rows) == task.points == 9702
    assert sum(row.sub_questions or 0 for row in rows) == task.sub_questions == 2944
    for names in oracles.GAOKAO_SUBJECTS.values():
        assert len({task.subjects[name].title for name in names}) == 1


@pytest.mark.parametrize("task", FIVE)
def test_every_benchmark_has_the_named_wordings_with_their_sources(task: str) -> None:
    templates = load_prompts(load_task(task).prompt)
    written = {
        "mmlu": set[str](),
        "cmmlu": {"official-generate", "official-cot"},
        "ceval": {"official-generate", "official-cot"},
        "agieval": {f"official-{n}" for n in ("generate", "script", "cot", "zero-shot-cot")},
        "gaokao": {"teacher-forced", "official-generate", "official-script"},
    }[task]
    wanted = {"official", "colossal"} | ({"lm-eval"} if task != "gaokao" else set())
    if task in ("mmlu", "cmmlu", "ceval"):
        wanted |= {f"whole-option{how}" for how in ("", "-token", "-byte", "-pmi")}
    assert templates.keys() == wanted | written
    assert all(template.source for template in templates.values())
    assert load_template(load_task(task))[0] == "official"


# ------------------------------------------------------------------------------ mistakes are named

TWICE = "name: twice\nversion: 1\nversion: 2\n"
MISTAKES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "tasks/unknown-key.yaml": (
        lambda: a_task("unknown-key", sho=5),
        ["unknown-key.yaml: sho: unknown key 'sho': did you mean 'shots'?"],
    ),
    "tasks/nested-key.yaml": (
        lambda: a_task("nested-key", subjects={"x": {"titel": "X"}}),
        ["nested-key.yaml: subjects.x.titel: unknown key."],
    ),
    "tasks/wrong-type.yaml": (
        lambda: a_task("wrong-type", shots="many", average="mean"),
        ["wrong-type.yaml: shots: Input should", "wrong-type.yaml: average: Input should"],
    ),
    "tasks/missing-key.yaml": (
        lambda: {k: v for k, v in a_task("missing-key").items() if k != "license"},
        ["missing-key.yaml: license: Field required."],
    ),
    "tasks/twice.yaml": (lambda: TWICE, ["twice.yaml, line 3: key 'version' is written twice."]),
    "tasks/group.yaml": (
        lambda: a_task("group", groups={"hard": ["everyday_science", "alchemy"]}),
        ["group.yaml: (top): group 'hard' names unknown subjects: alchemy."],
    ),
    "tasks/counts.yaml": (
        lambda: a_task("counts", counts={"test": 101}),
        ["counts.yaml: (top): counts.test is 101 but the subjects add up to 100."],
    ),
    "tasks/no-split.yaml": (
        lambda: a_task("no-split", split="val"),
        ["no-split.yaml: (top): split 'val' has no entry under source.files."],
    ),
    "tasks/other-name.yaml": (lambda: a_task("another"), ["other-name.yaml: name: is 'another'"]),
    "tasks/not-yaml.yaml": (lambda: "name: [1, 2\nx: }", ["not-yaml.yaml: not valid YAML"]),
    "tasks/a-list.yaml": (
        lambda: "- 1\n",
        ["a-list.yaml: expected a mapping at the top, got list"],
    ),
    "tasks/no-prompt.yaml": (
        lambda: a_task("no-prompt", prompt="cmmul"),
        ["no-prompt.yaml: prompt: unknown prompts file 'cmmul': did you mean 'cmmlu'?"],
    ),
    "tasks/no-protocol.yaml": (
        lambda: a_task("no-protocol", protocol="oficial"),
        ["no-protocol.yaml: protocol: unknown protocol 'oficial': did you mean 'official'?"],
    ),
    "tasks/subset.yaml": (lambda: a_task("subset", prompt="subset", protocol="part"), []),
    "prompts/subset.yaml": (
        lambda: {"part": a_template(subjects=["english_usage", "englis_usage"])},
        ["subset.yaml: part.subjects: unknown subject 'englis_usage': did you mean 'english_"],
    ),
    "prompts/jinja.yaml": (
        lambda: {
            "first": a_template(question="{{ item.question"),
            "second": a_template(zero_shot={"header": "{% if %}"}),
            "third": a_template(cue="{% for %}", join="{% endif %}"),
        },
        [
            "jinja.yaml: first.question: not a Jinja string",
            "jinja.yaml: second.zero_shot.header: not a Jinja string",
            "jinja.yaml: third.cue: not a Jinja string",
            "jinja.yaml: third.join: not a Jinja string",
        ],
    ),
    "prompts/keys.yaml": (
        lambda: {"one": a_template(lede="x"), "two": a_template(fit="cut"), "three": {}},
        [
            "keys.yaml: one: lede: unknown key 'lede': did you mean 'lead'?",
            "keys.yaml: two: fit: Input should be 'drop_last' or 'drop_longest'.",
            "keys.yaml: three: source: Field required.",
            "keys.yaml: three: question: Field required.",
            "keys.yaml: three: answer: Field required.",
        ],
    ),
    "leaderboards/models.yaml": (
        lambda: {"good": {"path": "x"}, "a": {"pth": "x", "path": "x"}, "b": {"dtype": "int8"}},
        [
            "models.yaml: a: pth: unknown key 'pth': did you mean 'path'?",
            "models.yaml: b: dtype: Input should",
            "models.yaml: b: path: Field required.",
        ],
    ),
}


def test_check_names_every_mistake_of_every_file_at_once(own: Path) -> None:
    expected: list[str] = []
    for name, (content, problems) in MISTAKES.items():
        path = write(own, name, content())
        expected += [f"{path.parent}/{problem}" for problem in problems]
    clear()
    found = catalog.check()
    for start in expected:
        assert [line for line in found if line.startswith(start)], (start, found)
    assert len(found) == len(expected)
    assert all("\n" not in line and line.endswith(".") for line in found)


@pytest.mark.parametrize(
    "name", [n for n, (_, p) in MISTAKES.items() if n.startswith("tasks/") and p]
)
def test_a_task_with_a_mistake_never_runs(name: str, own: Path) -> None:
    content, _ = MISTAKES[name]
    write(own, name, content())
    clear()
    with pytest.raises(ConfigError):
        prepare(Path(name).stem, Selection())


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: load_task("cmlu"), "unknown task 'cmlu': did you mean 'cmmlu'?"),
        (lambda: load_prompts("gaokoa"), "unknown prompts file 'gaokoa': did you mean 'gaokao'?"),
        (
            lambda: load_template(load_task("ceval"), "collosal"),
            "task 'ceval': unknown protocol 'collosal': did you mean 'colossal'?",
        ),
        (
            lambda: prepare("cmmlu", Selection(subjects=["agronmy"])),
            "task 'cmmlu': unknown subject 'agronmy': did you mean 'agronomy'?",
        ),
        (
            lambda: prepare("ceval", Selection(split="vla")),
            "task 'ceval': unknown split 'vla': did you mean 'val'?",
        ),
        (lambda: load_model_spec("smollm-135m"), "did you mean 'smollm2-135m'?"),
        (
            lambda: prepare("agieval", Selection("colossal", subjects=["math"])),
            "task 'agieval': this protocol leaves out 'math'.",
        ),
        (lambda: prepare("gaokao", Selection(shots=5)), "protocol 'official' is 0-shot"),
        (lambda: prepare("agieval", Selection("lm-eval", shots=5)), "drop --shots 5"),
    ],
)
def test_a_name_that_does_not_exist_gets_the_nearest_that_does(
    act: Callable[[], object], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        act()
    assert expected in str(caught.value)


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    text = unknown("task", "zzzz", ["b", "a"])
    assert text == "unknown task 'zzzz': Known: a, b."
    many = unknown("subject", "zzzz", [f"s{n:02}" for n in range(40)])
    assert many.endswith("s29 and 10 more.")


# --------------------------------------------------------------------------------- whose file wins


def test_user_folders_come_before_the_working_directory_and_the_shipped_files(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_task("cmmlu").version == 1
    write(tmp_path / "cwd", "tasks/cmmlu.yaml", a_task("cmmlu", version=7))
    clear()
    assert load_task("cmmlu").version == 7
    write(own, "tasks/cmmlu.yaml", a_task("cmmlu", version=8))
    clear()
    assert load_task("cmmlu").version == 8
    write(tmp_path / "first", "tasks/cmmlu.yaml", a_task("cmmlu", version=9))
    monkeypatch.setenv("CEVAL_SUITE_PATH", f"{tmp_path / 'first'}:{own}")
    clear()
    assert load_task("cmmlu").version == 9
    assert load_task("mmlu").version == 1
    assert catalog.task_folder("cmmlu") == tmp_path / "first" / "tasks"


def test_a_users_own_benchmark_needs_only_yaml_and_its_files(own: Path) -> None:
    source = {
        "layout": "csv",
        "folder": "mine",
        "bundled": True,
        "files": {"test": "{subject}.csv"},
        "columns": {"question": "q", "choices": ["x", "y"], "answer": "key"},
    }
    subjects = {"trivia": {"title": "trivia", "labels": "AB"}}
    changes = {"source": source, "subjects": subjects, "counts": {}, "prompt": "mine", "shots": 0}
    write(own, "tasks/mine.yaml", a_task("mine", **changes, shot_split=None, protocol="plain"))
    cue = {"cue": "{% for label, text in choices %} {{ label }}:{{ text }}{% endfor %} ="}
    write(own, "prompts/mine.yaml", {"plain": a_template(**cue)})
    write(own, "tasks/mine/trivia.csv", 'key,y,x,q\nB,two,one,"1+1?"\n')
    clear()
    assert catalog.check() == []
    prepared = prepare("mine", Selection())
    (item,) = prepared.scored()
    prompt = prepared.renderer("trivia").render(item)
    assert (prompt.text, prompt.continuations) == ("1+1? A:one B:two =", ("A", "B"))
    assert item.answer == ("B",)


def test_a_users_models_replace_the_shipped_ones(own: Path) -> None:
    assert "smollm2-135m" in catalog.model_specs()
    write(own, "leaderboards/models.yaml", {"mine": {"path": "/weights", "dtype": "float32"}})
    assert catalog.model_specs() == {"mine": ModelSpec(path="/weights", dtype="float32")}
    assert load_model_spec("mine")[1].path == "/weights"


def test_models_may_be_paths_hub_ids_and_package_references(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    for given in (tmp_path / "tiny", tmp_path / "tiny.gguf"):
        name, spec = load_model_spec(str(given))
        assert (name, spec.path) == ("tiny", str(given.resolve()))
    assert load_model_spec("org/some-model") == (
        "org__some-model",
        ModelSpec(path="org/some-model"),
    )
    assert load_model_spec("pypi:p==1/p/m.gguf") == ("m", ModelSpec(path="pypi:p==1/p/m.gguf"))
    for wrong in ("./absent/dir", "/absent", "a/b/c", "nothing-like-it"):
        with pytest.raises(ConfigError, match=r"local directory or \.gguf file"):
            load_model_spec(wrong)


def test_command_line_options_override_a_model_and_are_validated() -> None:
    spec = ModelSpec(path="x", dtype="float16")
    assert catalog.override(spec, {"device": "cpu"}) == ModelSpec(
        path="x", dtype="float16", device="cpu"
    )
    with pytest.raises(ConfigError, match="command line: dtype: Input should be"):
        catalog.override(spec, {"dtype": "int3"})


# -------------------------------------------------------------------------------- data, never code


def render(wording: str) -> str:
    task = load_task("sample-mmlu")
    template = Template(source="test", question=wording, answer="{{ label }}")
    item = Reader(task, find_files(task)).items("english_usage", "test")[0]
    return Renderer(task, template, "english_usage", ()).render(item).text


ESCAPES = [
    "{{ item.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ item.question.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{{ lipsum.__globals__['os'].system('touch pwned') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(item) }}",
    "{{ (item.question | attr('__class__')).__mro__ }}",
    "{{ item.__dataclass_fields__ }}",
    "{{ choices.append(1) }}",
    "{{ subject.update({'title': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("wording", ESCAPES)
def test_a_template_cannot_reach_python(wording: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="question: cannot be rendered for sample-mmlu/test/"):
        render(wording)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "wording",
    [
        "{{ subejct.title }}",
        "{{ item.titel }}",
        "{{ subject.titel }}",
        "{{ 1 // 0 }}",
        "{{ 'ABCD'.index('E') }}",
        "{{ range(10 ** 9) | join }}",
        "{{ choices[9] }}",
        "{{ item.question + 1 }}",
        "{{ item.question | no_such_filter }}",
    ],
)
def test_a_wording_that_fails_names_its_file_part_and_item(wording: str) -> None:
    with pytest.raises(UserError) as caught:
        render(wording)
    text = str(caught.value)
    assert text.startswith("prompts/mmlu.yaml: question: cannot be rendered for sample-mmlu/test/")


def test_a_wording_prints_exactly_its_blanks() -> None:
    assert render("{% if true %}\n x {% endif %}\n\n") == "\n x \n\n"
    assert render("  {% if true %}y{% endif %}  ") == "  y  "


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch pwned']",
        "name: !!python/name:os.system",
        "name: !function utils.run",
    ],
)
def test_yaml_never_calls_python(text: str, own: Path, tmp_path: Path) -> None:
    path = write(own, "tasks/evil.yaml", text)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_task("evil")
    assert [line for line in catalog.check() if str(path) in line]
    assert not list(tmp_path.rglob("pwned"))


def test_a_file_that_cannot_be_read_is_a_sentence(own: Path) -> None:
    (own / "tasks").mkdir()
    (own / "tasks" / "binary.yaml").write_bytes(b"\xff\xfe\0name")
    (own / "tasks" / "folder.yaml").mkdir()
    problems = catalog.check()
    assert len(problems) == 2
    assert "binary.yaml: not valid YAML" in problems[0]
    assert "folder.yaml: cannot be read" in problems[1]
