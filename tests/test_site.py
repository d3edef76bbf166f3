"""The site's files: chunks, proofs of prompts, words, bundled parts."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ceval_suite.cli import app
from ceval_suite.comparison import Side
from ceval_suite.errors import RunError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.prepare import Selection, prepare
from ceval_suite.records import read_records
from ceval_suite.report.board import read_summaries
from ceval_suite.run import evaluate
from ceval_suite.site import chunks, column, pairs, prompts
from ceval_suite.site.collect import collect, family
from ceval_suite.site.write import SCRIPTS, STATIC, Wanted, build
from ceval_suite.standings import by_model, standing
from tests.finished_runs import record
from tests.site_runs import scripted

TASKS = ("sample-mmlu", "sample-cmmlu", "sample-agieval", "sample-gaokao")
MODELS = {"qwen-tiny-a": 2.5, "qwen-tiny-b": 1.0, "llama-small": 0.2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for name in TASKS:
        prepared = prepare(name, Selection())
        for model, skill in MODELS.items():
            scripted(prepared, out, model, skill)
    return out


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    return build([runs], out, Wanted(title="Sample <exams>"), lambda _: None).parent


def content(site: Path, name: str) -> Any:
    """What a data script hands to the page."""
    text = (site / "data" / f"{name}.js").read_text(encoding="utf-8")
    found = re.fullmatch(r"CS\.data\((.*)\);\n", text, re.S)
    assert found
    given_name, value = json.loads(f"[{found.group(1)}]")
    assert given_name == name
    return value


def keys(site: Path) -> list[str]:
    return [one["key"] for one in content(site, "site")["columns"]]


# --- data as scripts


@given(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x, max_size=3)))
def test_a_data_script_holds_any_text_and_none_of_it_can_end_the_script(value: Any) -> None:
    written = chunks.script("x", value)
    text = written.decode("utf-8")
    assert not set("<>&\u2028\u2029") & set(text)
    _, back = json.loads(f"[{text.removeprefix('CS.data(').removesuffix(');' + chr(10))}]")
    assert back == value


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "\u2028", "\ud800", "\x00", "&lt;"])
def test_harmful_texts_come_back_unchanged(text: str) -> None:
    written = chunks.script("x", [text]).decode("utf-8")
    assert text not in written or text == "]]>" or text == "\x00"
    assert json.loads(f"[{written[8:-3]}]")[1] == [text]


def test_a_number_that_json_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        chunks.script("x", float("nan"))


def test_numbers_that_json_does_not_know_become_null() -> None:
    value = {"a": [float("inf"), 1.5, {"b": float("nan")}], 3: "x"}
    assert chunks.finite(value) == {"a": [None, 1.5, {"b": None}], "3": "x"}


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(5, 20))
def test_chunks_hold_every_item_once_and_are_never_longer(counts: list[int], most: int) -> None:
    spans = chunks.spans(counts, most)
    assert [k for begin, end in spans for k in range(begin, end)] == list(range(sum(counts)))
    assert all(0 < end - begin <= most for begin, end in spans)


def test_a_subject_that_fits_a_chunk_is_never_cut() -> None:
    assert chunks.spans([3, 4, 12, 1], 5) == [(0, 3), (3, 7), (7, 12), (12, 17), (17, 20)]


@given(st.text(), st.lists(st.text(max_size=6), max_size=5))
def test_a_pattern_filled_again_is_the_prompt_to_the_letter(text: str, parts: list[str]) -> None:
    assert chunks.filled(chunks.pattern(text, parts), parts) == text


def test_equal_wordings_share_one_pattern() -> None:
    patterns = {
        chunks.pattern(f"Q: {q}\nA. {a}\nAnswer:", [q, a])
        for q, a in (("Which?", "this one"), ("Whose?", "that one"))
    }
    assert len(patterns) == 1


# --- what is collected


def test_every_item_of_every_run_is_in_the_site_once(site: Path, runs: Path) -> None:
    found = collect([runs])
    assert [c.key for c in found.columns] == keys(site)
    for one in found.columns:
        index = content(site, f"c/{one.key}/index")
        ids = [index["prefix"] + id for id in index["ids"]]
        for model, run in enumerate(one.runs.values()):
            records = {r.id: r for r in read_records(run.path / "records.jsonl")}
            assert sorted(ids) == sorted(records)
            for place, id in enumerate(ids):
                assert index["gold"][place] == column.joined(records[id].answer)
                assert index["predictions"][model][place] == column.joined(records[id].prediction)
                right = index["states"][model][place] == "r"
                assert right == bool(records[id].correct)


def test_items_stand_in_the_order_of_the_task_and_its_files(site: Path) -> None:
    for key in keys(site):
        index = content(site, f"c/{key}/index")
        rows = [tuple(map(int, re.findall(r"\d+", id.rpartition("/")[2]))) for id in index["ids"]]
        start = 0
        for _, count in index["subjects"]:
            assert rows[start : start + count] == sorted(rows[start : start + count])
            start += count


def test_the_board_s_numbers_are_those_of_the_summaries(site: Path, runs: Path) -> None:
    columns = {one["key"]: one for one in content(site, "site")["columns"]}
    for one in collect([runs]).columns:
        for model, run in one.runs.items():
            cell = columns[one.key]["cells"][model]
            expected = run.summary["metrics"][run.summary["headline"]]
            assert cell["metrics"][cell["headline"]] == [
                expected[name] for name in ("value", "low", "high", "n")
            ]


def test_two_runs_of_one_model_and_protocol_are_refused(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "llama-small", tmp_path / "again")
    with pytest.raises(RunError, match="two runs of one protocol"):
        build([runs, tmp_path], tmp_path / "site", Wanted(), lambda _: None)
    assert not (tmp_path / "site").exists()


def test_the_same_folder_twice_is_one(runs: Path) -> None:
    assert len(collect([runs, runs]).columns) == len(TASKS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen3-8B", "qwen"), ("smollm2-135m-zh", "smollm"), ("7b", "llama")],
)
def test_a_model_s_family_is_the_letters_its_name_begins_with(name: str, expected: str) -> None:
    assert family(name, {"model": {"path": "meta/Llama-2-7b"}}) == expected
    assert family("7b", {}) == "7b"


# --- prompts


def test_prompts_of_letters_are_proved_by_the_hashes_of_the_records(site: Path) -> None:
    for key in keys(site):
        if "gaokao" in key:
            continue  # sub-questions are asked after a model's own answers, which are made up here
        states = content(site, f"c/{key}/r0")["states"]
        assert {state for item in states for state in item} == {"ok"}


def test_the_page_s_parts_of_a_prompt_have_the_record_s_hash(site: Path, runs: Path) -> None:
    """Heads, patterns and texts as the page has them, put together, are what was asked."""
    proved = 0
    for one in collect([runs]).columns:
        heads = content(site, f"c/{one.key}/heads")
        index = content(site, f"c/{one.key}/index")
        texts, results = (content(site, f"c/{one.key}/{kind}0") for kind in "tr")
        run = next(iter(one.runs.values()))
        hashes = {r.id: r.prompt_sha256 for r in read_records(run.path / "records.jsonl")}
        for place, item in enumerate(texts["items"]):
            question, _, choices, passage = item[:4]
            parts = ["" if passage is None else texts["passages"][passage], question, *choices]
            head, pattern, _, _ = results["prompts"][place][results["which"][place][0]]
            text = heads[head] + chunks.filled(results["patterns"][pattern], parts)
            if results["states"][place][0] == "ok":
                id = index["prefix"] + index["ids"][place]
                assert hashlib.sha256(text.encode()).hexdigest() == hashes[id]
                proved += 1
    assert proved > 200


def test_prompts_of_a_real_run_are_proved_after_the_model_s_own_answers_too(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Sub-questions one after the other, letters, free text, each as the engine asked it."""
    spec = ModelSpec(path=str(tiny_model), device="cpu")
    names = ("sample-gaokao", "sample-cmmlu")
    evaluate("tiny", spec, [prepare(name, Selection(limit=1)) for name in names], tmp_path / "runs")
    build([tmp_path / "runs"], tmp_path / "site", Wanted(), lambda _: None)
    seen = 0
    for key in keys(tmp_path / "site"):
        ids = content(tmp_path / "site", f"c/{key}/index")["ids"]
        states = content(tmp_path / "site", f"c/{key}/r0")["states"]
        assert {id: one for id, one in zip(ids, states, strict=True) if one != ["ok"]} == {}
        seen += sum("#" in id for id in ids)
    assert seen > 2


def test_fewer_shots_are_found_whichever_the_fitting_rule_left(tmp_path: Path) -> None:
    prepared = prepare("sample-mmlu", Selection())
    found = prompts.source(prepared.about(), None)
    item = prepared.scored()[0]
    renderer = prepared.renderer(item.subject)
    shots = renderer.shots
    some = [shots[:5], shots[:3], (shots[1], shots[3], shots[4]), ()]
    sides = [
        {
            item.id: replace(
                record(item.id, item.subject, item.answer, "A"),
                shots=len(left),
                prompt_sha256=renderer.render(item, left).sha256,
            )
        }
        for left in some
    ]
    asked = prompts.asked(found, item.id, sides)
    assert asked
    assert list(asked.states) == ["ok"] * 4
    assert [one.shots for one in asked.variants] == [5, 3, 3, 0]
    assert list(asked.which) == [0, 1, 2, 3]
    for left, one in zip(some, asked.variants, strict=True):
        assert one.head + one.tail == renderer.render(item, left).text


def test_a_prompt_that_is_not_the_record_s_is_never_called_proved() -> None:
    prepared = prepare("sample-mmlu", Selection())
    found = prompts.source(prepared.about(), None)
    item = prepared.scored()[0]
    one = record(item.id, item.subject, item.answer, "A")
    sides = [
        {item.id: replace(one, shots=5, prompt_sha256="0" * 64)},
        {item.id: replace(one, shots=5)},
        {},
    ]
    asked = prompts.asked(found, item.id, sides)
    assert asked
    assert list(asked.states) == ["other", "none", None]


def test_other_benchmark_files_than_the_run_s_are_said_to_be_others() -> None:
    about = prepare("sample-mmlu", Selection()).about()
    assert prompts.source(about, None).reason == ""
    assert prompts.source({**about, "data": {"sha256": "0" * 64}}, None).reason == "changed"
    assert prompts.source(about, None, texts=False).reason == "without"


def test_without_prompts_no_text_of_the_benchmark_is_in_the_site(
    runs: Path, tmp_path: Path
) -> None:
    build([runs], tmp_path / "site", Wanted(texts=False), lambda _: None)
    item = prepare("sample-mmlu", Selection()).scored()[0]
    for path in (tmp_path / "site" / "data").rglob("*.js"):
        assert item.question[:30] not in path.read_text(encoding="utf-8")
    assert {one["reason"] for one in content(tmp_path / "site", "site")["columns"]} == {"without"}


def test_no_path_of_the_machine_is_in_the_site(site: Path, runs: Path) -> None:
    places = {str(runs), str(Path.cwd()), str(STATIC.parents[2])}
    for path in (*(site / "data").rglob("*.js"), site / "index.html"):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if place in text]


# --- margins, marks


@pytest.mark.parametrize(
    ("answer", "logprobs", "expected"),
    [
        ("A", {"A": -0.5, "B": -1.5}, 1.0),
        ("B", {"A": -0.5, "B": -1.5}, -1.0),
        ("AC", {"A": -1.0, "AC": -0.25, "C": -2.0}, 0.75),
        ("AC", {"A": -1.0, "C": -2.0}, None),
        ("A", {"A": -1.0}, None),
        ("A", {}, None),
        ("", {"A": -1.0, "B": -2.0}, None),
    ],
)
def test_a_margin_is_gold_less_the_likeliest_other(
    answer: str, logprobs: dict[str, float], expected: float | None
) -> None:
    assert column.margin(record("t/s/x/0", "x", answer, "A", logprobs=logprobs)) == expected


def test_bold_ties_and_ranks_are_those_of_the_board(site: Path, runs: Path) -> None:
    marked = 0
    for one in content(site, "site")["columns"]:
        summaries = [s for s in read_summaries(runs) if s["protocol_sha256"] == one["sha"]]
        found = standing("", by_model(summaries, ""))
        for model, at in found.tested.items():
            assert found.ranks is not None
            cell = one["cells"][model]
            assert cell["rank"] == [found.ranks.low[at], found.ranks.high[at]]
            assert cell["mark"] == found.ranks.mark(at)
            marked += bool(cell["mark"])
    assert marked


def test_with_many_models_only_the_best_is_compared_with_all(runs: Path) -> None:
    path = next(iter(collect([runs]).columns[0].runs.values())).path
    about = json.loads((path / "run.json").read_text())
    few = {r.id: r for _, r in zip(range(20), read_records(path / "records.jsonl"), strict=False)}
    sides = {f"m{k}": Side(path, about, few) for k in range(pairs.MOST + 1)}
    found = pairs.compared(sides, {"m3": 0.9, "m1": 0.2})
    assert len(found) == pairs.MOST
    assert all(names[0] == "m3" for names in found)


# --- excluded items, the command


def test_excluded_items_are_neither_shown_nor_counted(runs: Path, tmp_path: Path) -> None:
    items = [item.id for item in prepare("sample-mmlu", Selection()).scored()[:10]]
    path = tmp_path / "bad.yaml"
    lines = "".join(f"  {id}: no right answer\n" for id in items)
    path.write_text(f"name: bad\ntitle: Bad items\nsource: here\nitems:\n{lines}", "utf-8")
    out = tmp_path / "site"
    arguments = ["report", str(runs), "-o", str(out), "--exclude", str(path)]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    mmlu = next(one for one in content(out, "site")["columns"] if one["task"] == "sample-mmlu")
    index = content(out, f"c/{mmlu['key']}/index")
    assert not {index["prefix"] + id for id in index["ids"]} & {*items}
    for cell in mmlu["cells"].values():
        assert cell["metrics"]["acc/micro"][3] == len(index["ids"])


def test_the_command_writes_the_page_and_says_where(runs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(runs), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_site_is_written_over_and_nothing_else_ever_is(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build([runs], out, Wanted(title="one"), lambda _: None)
    (out / "stale").write_text("x")
    build([runs], out, Wanted(title="two"), lambda _: None)
    assert "two" in (out / "index.html").read_text()
    assert not (out / "stale").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="no site of ours"):
        build([runs], mine, Wanted(), lambda _: None)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


def test_several_processes_write_the_same_site_as_one(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    build([runs], tmp_path / "one", Wanted(), said.append)
    monkeypatch.setattr("ceval_suite.site.write.LARGE", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    again: list[str] = []
    build([runs], tmp_path / "two", Wanted(), again.append)
    assert said == again
    for path in (tmp_path / "one" / "data").rglob("*.js"):
        if path.name != "site.js":  # which says when it was made
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == other.read_bytes(), path.name


def test_a_folder_without_runs_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs"):
        build([tmp_path], tmp_path / "site", Wanted(), lambda _: None)
    with pytest.raises(RunError, match="does not exist"):
        build([tmp_path / "x"], tmp_path / "site", Wanted(), lambda _: None)


# --- words, bundled parts


def test_both_languages_have_every_word_and_the_same_blanks() -> None:
    words = json.loads((STATIC / "words.json").read_text(encoding="utf-8"))
    assert set(words) == {"en", "zh"}
    assert words["en"].keys() == words["zh"].keys()
    for key, text in words["en"].items():
        other = words["zh"][key]
        assert text.strip(), key
        assert other.strip(), key
        assert {*re.findall(r"\{\w+\}", text)} == {*re.findall(r"\{\w+\}", other)}, key


def test_every_word_that_the_scripts_use_is_there() -> None:
    words = json.loads((STATIC / "words.json").read_text(encoding="utf-8"))["en"]
    for name in SCRIPTS:
        text = (STATIC / name).read_text(encoding="utf-8")
        for key in re.findall(r"""\bt\(["`]([^"`$]+)["`]""", text):
            assert key in words, f"{name}: {key}"
        for head in re.findall(r"\bt\(`([^$`]+)\$", text):
            assert any(key.startswith(head) for key in words), f"{name}: {head}"


def test_bundled_parts_are_the_published_files_with_their_licences() -> None:
    folder = STATIC / "vendor"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    named: set[str] = set()
    for one in manifest:
        assert re.fullmatch(r"\d+\.\d+\.\d+", one["version"])
        assert one["license"] in ("MIT", "Apache-2.0")
        assert any("LICENSE" in name for name in one["files"])
        for name, sha256 in one["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256, name
        named |= {*one["files"]}
    assert {path.name for path in folder.iterdir()} == named | {"manifest.json"}


def test_own_scripts_never_parse_markup_nor_run_text() -> None:
    for name in SCRIPTS:
        text = (STATIC / name).read_text(encoding="utf-8")
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert banned not in text, f"{name}: {banned}"
        assert "fetch(" not in text
        assert not re.search(r"https?://", text)


def test_the_page_has_no_inline_script_and_asks_nothing_of_the_net(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "Sample &lt;exams&gt;" in page
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=", page)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


def test_numbers_become_text_in_one_script_only() -> None:
    for name in SCRIPTS:
        if name != "format.js":
            text = (STATIC / name).read_text(encoding="utf-8")
            assert not re.search(r"toFixed|toPrecision|toLocaleString|Intl\.", text), name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parents[1]
    out = tmp_path_factory.mktemp("wheel")
    (name,) = builder.WheelBuilder(str(root)).build(directory=str(out), versions=["standard"])
    return Path(name)


def test_a_built_wheel_has_every_file_of_the_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    for path in STATIC.rglob("*"):
        if path.is_file():
            assert f"ceval_suite/site/static/{path.relative_to(STATIC).as_posix()}" in shipped


def test_records_of_a_site_are_read_with_all_their_fields() -> None:
    """A field of Record that the page does not know of should be decided on, not forgotten."""
    known = {"id", "subject", "answer", "prediction", "correct", "score", "logits", "logprobs"}
    known |= {"choice_mass", "tie", "text", "shots", "prompt_tokens", "prompt_sha256", "bounded"}
    known |= {"cut", "predictions", "opinions", "cluster", "turns"}
    assert {*asdict(record("t/s/x/0", "x", "A", "A"))} == known
