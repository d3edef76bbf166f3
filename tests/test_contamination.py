"""Which benchmark items stand in a user's training data."""

from __future__ import annotations

import bz2
import gzip
import html.parser
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import planting
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ceval_suite import exclusions
from ceval_suite.contamination import files, normal, numbers, reading, search, targets
from ceval_suite.contamination.search import Outcome
from ceval_suite.contamination.verify import Rules, longest
from ceval_suite.errors import DataError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.report import contamination as report
from ceval_suite.schema import Item

SAMPLES = ("sample-mmlu", "sample-cmmlu", "sample-ceval", "sample-agieval", "sample-gaokao")
TEXTS = st.text(st.characters(codec=None), max_size=60) | st.text(
    "aB １２ａ，.一⼀ß½Å\n\x00", max_size=60
)

QUESTION = (
    "During photosynthesis in green plants, which gas taken from the surrounding air supplies the "
    "carbon atoms that finally end up in glucose?"
)
CHINESE = "明代万历年间，负责治理黄河并主张“束水攻沙”的著名水利专家，其代表性著作的名称是"


def item(name: str, question: str, *choices: str, answer: str = "B") -> Item:
    labels = tuple("ABCD"[: len(choices)])
    return Item(
        id=f"exam/test/{name}/0",
        subject=name,
        question=question,
        options=choices,
        choices=choices,
        labels=labels,
        answer=(answer,),
    )


EXAM = [
    item("biology", QUESTION, "oxygen", "carbon dioxide", "nitrogen", "argon"),
    item("history", CHINESE, "水经注", "河防一览", "农政全书", "天工开物"),
]


def look(path: Path | Sequence[Path], items: Sequence[Item] = EXAM, **options: Any) -> Outcome:
    paths = [path] if isinstance(path, Path) else path
    found = targets.of_items([("exam", one) for one in items])
    rules = options.pop("rules", Rules())
    return search.search(found, files.sources([str(p) for p in paths]), rules, **options)


def kinds(outcome: Outcome) -> dict[str, str]:
    return {f.target.id.split("/")[2]: f.places[0].scores.kind for f in outcome.found.values()}


def jsonl(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# folding and hashing


def plain_fold(text: str) -> str:
    """The recorded rule, character by character."""
    out = ""
    for char in text:
        found = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        kept = "".join(c for c in found if unicodedata.category(c)[0] in "LN")
        out += unicodedata.normalize("NFC", kept)
    return out


def plain_hash(text: str, n: int) -> list[int]:
    """The hash of each n characters in Python's own integers."""
    mask, spread, times = 2**64 - 1, 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15
    singles = [(x := ord(c) * spread & mask) ^ x >> 32 for c in text]
    out: list[int] = []
    for at in range(len(text) - n + 1):
        value = 0
        for one in singles[at : at + n]:
            value = (value * times + one) & mask
        out.append((value ^ value >> 29) * spread & mask)
    return out


@settings(deadline=None)  # a busy machine pauses
@given(TEXTS)
def test_folding_by_table_equals_folding_each_character(text: str) -> None:
    assert normal.squeezed(text) == plain_fold(text)


@settings(deadline=None)  # a busy machine pauses
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_batch_holds_each_text_as_folded_alone(texts: list[str]) -> None:
    codes, starts = normal.batch(texts)
    ends = [*(starts[1:] - 1), len(codes) - 1]
    parts = [normal.as_text(codes[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert parts == [plain_fold(text) for text in texts]


@settings(deadline=None)  # a busy machine pauses
@given(TEXTS)
def test_places_lead_back_to_what_was_folded(text: str) -> None:
    found = normal.folded(text)
    assert found.text == plain_fold(text)
    for char, at in zip(found.text, found.at.tolist(), strict=True):
        assert char in plain_fold(text[at])


@settings(deadline=None)  # a busy machine pauses
@given(st.text("abcde 一二三１２", min_size=1, max_size=40), st.integers(1, 20))
def test_hashes_of_many_grams_equal_those_of_each_alone(text: str, n: int) -> None:
    found = normal.grams(np.array([ord(c) for c in text], np.uint32), n)
    assert found.tolist() == plain_hash(text, n)


@settings(deadline=None)  # a busy machine pauses
@given(st.text("The capital, of FRANCE? 法国的首都（）是12", min_size=1, max_size=60), st.randoms())
def test_blanks_width_and_case_do_not_count(text: str, draw: random.Random) -> None:
    changed = "".join(c + draw.choice(["", " ", "\u3000", "\n", "，"]) for c in text).upper()
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in changed)
    assert normal.squeezed(wide) == normal.squeezed(text)


@settings(deadline=None)  # a busy machine pauses
@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_the_longest_common_piece_is_the_longest(text: str, other: str) -> None:
    start, end = longest(text, other)
    every = [text[a:b] for a in range(len(text)) for b in range(a + 1, len(text) + 1)]
    assert text[start:end] in other
    assert end - start == max((len(piece) for piece in every if piece in other), default=0)


# what is found, and as what


@pytest.mark.parametrize(
    ("item", "passage", "agree"),
    [
        ("the divisor of 84 and 126", "the divisor of 84 and 126", True),
        ("the divisor of 84 and 126", "the divisor of 48 and 36", False),
        ("the divisor of 84 and 126", "the divisor of 84 and 136", False),
        ("the divisor of 84 and 126", "the big divisor of 84 and of 126", True),
        ("a two-digit number", "a three-digit number", False),
        ("six of them", "seven of them", False),
        ("第一次世界大战", "第二次世界大战", False),
        ("第一次世界大战后", "第一次世界大战前", True),
        ("the 12 months", "the months", True),
        ("the 12 months", "the 112 months", False),
        ("no figures at all", "no figure at all 5", True),
    ],
)
def test_a_number_in_the_place_of_another_makes_another_exercise(
    item: str, passage: str, agree: bool
) -> None:
    assert numbers.same(normal.squeezed(item), normal.squeezed(passage)) is agree


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("84 and 126?", {"biology": "exact"}),
        ("", {"biology": "part"}),
        ("8", {"biology": "part"}),  # cut off amid the number
        ("86 and 215?", {}),
        ("12 and 18?", {}),
        ("84 and 120?", {}),
    ],
)
def test_a_part_that_ends_where_the_numbers_differ_is_no_match(
    tmp_path: Path, behind: str, expected: dict[str, str]
) -> None:
    opening = "What is the greatest common divisor of "
    path = jsonl(tmp_path / "a.jsonl", {"text": f"So: {opening}{behind} And that is all."})
    assert kinds(look(path, [item("biology", f"{opening}84 and 126?")])) == expected


@pytest.mark.parametrize("question", [QUESTION, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("verbatim", {"exact"}),
        ("re-spaced", {"exact"}),
        ("full-width", {"exact"}),
        ("truncated", {"ngram", "part"}),
        ("one word in ten changed", {"ngram", "part", "near"}),
    ],
)
def test_a_changed_question_inside_a_longer_line_is_found(
    tmp_path: Path, question: str, change: str, expected: set[str]
) -> None:
    changed = planting.KINDS[change](question, random.Random(3))
    line = f"Some words before it, 前面的话。 {changed} 后面还有别的话 and something after it."
    outcome = look(jsonl(tmp_path / "a.jsonl", {"text": "nothing"}, {"text": line}))
    (found,) = outcome.found.values()
    assert found.target.shown == question
    assert found.places[0].scores.kind in expected
    assert found.places[0].row == 2
    place = found.places[0]
    matched = place.passage[place.start : place.end]
    assert normal.squeezed(changed)[:10] == normal.squeezed(matched)[:10]


@pytest.mark.parametrize(
    "text",
    [
        "Which gas do green plants take from the air? They take several.",
        "明代的水利专家写了许多代表性著作，其中一部的名称是什么？",
        "",
        "。。。！！！",
    ],
)
def test_a_text_on_the_same_matter_is_no_match(tmp_path: Path, text: str) -> None:
    assert look(jsonl(tmp_path / "a.jsonl", {"text": text})).found == {}


@pytest.mark.parametrize(
    ("behind", "text", "letter"),
    [
        ("", False, False),
        (" Answer: carbon dioxide", True, False),
        (" It was carbon di-\noxide.", True, False),
        (" A. oxygen C. nitrogen. Answer: B", False, True),
        (" The answer is (B).", False, True),
        (" The answer is C.", False, False),
        (" Answer: Because of the sun", False, False),
        (" 答案：B", False, True),
        (" " + "And so on. " * 80 + "carbon dioxide", False, False),
    ],
)
def test_the_answer_is_found_by_its_text_or_its_marked_letter(
    tmp_path: Path, behind: str, text: bool, letter: bool
) -> None:
    (found,) = look(jsonl(tmp_path / "a.jsonl", {"text": QUESTION + behind})).found.values()
    assert (found.places[0].answer.text, found.places[0].answer.letter) == (text, letter)
    assert found.answered == (text or letter)


def test_what_many_items_share_is_no_sign_of_any(tmp_path: Path) -> None:
    stem = "Decide for each of the following scenarios whether the main character does wrong. "
    exam = [
        item(f"s{i}", f"{stem}The person {i} repaired bicycle number {i}{i}.") for i in range(9)
    ]
    corpus = jsonl(tmp_path / "a.jsonl", {"text": stem}, {"text": exam[4].question})
    assert kinds(look(corpus, exam)) in ({"s4": "exact"}, {})


def test_too_little_text_is_listed_and_not_called_clean(tmp_path: Path) -> None:
    short = item("short", "首都是", "甲", "乙")
    outcome = look(jsonl(tmp_path / "a.jsonl", {"text": "首都是甲乙"}), [*EXAM, short])
    assert outcome.found == {}
    found = report.summary(outcome)
    assert list(found["too_little_text"]) == [short.id]
    cells = found["table"]["rows"][0]
    assert (cells["items"]["value"], cells["too little text"]["value"]) == (3, 1)


def test_a_short_question_is_told_with_its_options(tmp_path: Path) -> None:
    short = item(
        "short", "胃的生理功能是", "主持诸气的运行", "受纳腐熟水谷", "传化糟粕", "受盛化物"
    )
    text = "题目：胃的生理功能是 A. 主持诸气的运行 B. 受纳腐熟水谷 C. 传化糟粕 D. 受盛化物"
    alone = jsonl(tmp_path / "b.jsonl", {"text": "胃的生理功能是复杂的"})
    assert kinds(look(jsonl(tmp_path / "a.jsonl", {"text": text}), [*EXAM, short])) == {
        "short": "near"
    }
    assert look(alone, [*EXAM, short]).found == {}


def test_places_are_counted_and_the_surest_kept(tmp_path: Path) -> None:
    half = QUESTION[: round(len(QUESTION) * 0.7)]
    rows = [{"text": half}] * 7 + [{"text": QUESTION}] + [{"text": half}] * 3
    (found,) = look(jsonl(tmp_path / "a.jsonl", *rows)).found.values()
    assert sum(found.kinds.values()) == 11
    assert len(found.places) == search.PLACES
    assert (found.places[0].scores.kind, found.places[0].row) == ("exact", 8)


# files of every form


def packed(path: Path, content: bytes) -> Path:
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("form", ["jsonl", "json", "txt"])
def test_each_form_and_packing_names_the_same_row(tmp_path: Path, form: str, packing: str) -> None:
    texts = ["other words"] * 4 + [f"Here: {QUESTION}"] + ["more words"] * 4 + [CHINESE]
    lines = {
        "jsonl": "\n".join(json.dumps({"text": t}) for t in texts),
        "json": json.dumps([{"text": t} for t in texts], indent=2),
        "txt": "\n".join(texts),
    }
    path = packed(tmp_path / f"corpus.{form}{packing}", lines[form].encode())
    outcome = look(path)
    rows = {f.target.id.split("/")[2]: f.places[0].row for f in outcome.found.values()}
    assert rows == {"biology": 5, "history": 10}
    assert (outcome.broken, outcome.documents) == (0, 10)


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    table = pyarrow.table({"id": [*range(50)], "text": ["x"] * 33 + [QUESTION] + ["y"] * 16})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    outcome = look(tmp_path / "a.parquet", workers=2)
    (found,) = outcome.found.values()
    assert (found.places[0].row, outcome.documents) == (34, 50)


@pytest.mark.parametrize(
    "row",
    [
        {"content": QUESTION, "meta": {"id": 3}},
        {"instruction": QUESTION[:60], "input": QUESTION[60:], "output": "CO2"},
        {
            "messages": [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": "?"},
            ]
        },
        {"conversations": [{"from": "human", "value": QUESTION}]},
        {"question": QUESTION, "choices": ["a", "b"], "answer": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]},
        [QUESTION],
        QUESTION,
    ],
)
def test_the_text_of_a_row_is_guessed(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert kinds(look(path)) == {"biology": "exact"}


def test_a_named_field_is_taken_and_others_are_not(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": CHINESE, "raw": {"body": QUESTION}},
        {"text": CHINESE},
    )
    outcome = look(path, fields=["raw.body"])
    assert kinds(outcome) == {"biology": "exact"}
    assert outcome.named == [f"{path}, line 2: has no text under 'raw.body'"]


@pytest.mark.parametrize(("form", "packing"), [("jsonl", ""), ("txt", ""), ("txt", ".gz")])
def test_cutting_into_pieces_loses_nothing_and_counts_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, packing: str
) -> None:
    monkeypatch.setattr(files, "BLOCK", 1000)
    monkeypatch.setattr(files, "OVERLAP", 800)
    monkeypatch.setattr(reading, "LONG", 700)
    monkeypatch.setattr(reading, "SHARED", 500)
    draw = random.Random(5)
    for trial in range(12):
        texts = ["字 word " * draw.randint(0, 40) for _ in range(60)]
        at = draw.randrange(60)
        texts[at] = f"前面 {'x' * draw.randint(0, 200)} {QUESTION}"
        lines = [
            json.dumps({"text": t}, ensure_ascii=False) if form == "jsonl" else t for t in texts
        ]
        path = packed(tmp_path / f"{trial}.{form}{packing}", "\n".join(lines).encode())
        (found,) = look(path).found.values()
        assert [(p.scores.kind, p.row) for p in found.places] == [("exact", at + 1)]


LINES = st.one_of(
    st.fixed_dictionaries({"text": TEXTS}).map(json.dumps),
    st.fixed_dictionaries({"id": st.floats(0, 1), "text": TEXTS}).map(json.dumps),
    st.sampled_from(
        [
            '{"content": "x"}', '{"text": 5, "body": "y"}', '{"text": "a", "text": "b"}', "[1]",
            "", " ", '{"text": "x"', '{"text": "x"} {"text": "y"}', '{"text": NaN, "b": "c"}', "{}",
            '{"text": "\\ud800"}', '  {"text": "x"}', '{"text": "x"}\r', '{"text": "\\u0000"}', "{",
        ]
    ),
)  # fmt: skip


@settings(deadline=None)  # a busy machine pauses
@given(st.lists(LINES, max_size=6), st.sampled_from(["", "\n"]))
def test_lines_read_at_once_hold_what_each_holds_alone(lines: list[str], last: str) -> None:
    def piece(text: str) -> files.Piece:
        data = text.encode("utf-8", "surrogatepass")
        return files.Piece(0, "a.jsonl", "jsonl", 0, len(data), len(data), data)

    together = reading.read(piece("\n".join(lines) + last))
    alone = [reading.read(piece(f" \n{line}")) for line in lines]  # the blank line forbids haste
    assert [(d.row, d.text) for d in together.documents] == [
        (row, d.text) for row, one in enumerate(alone, start=1) for d in one.documents
    ]
    assert together.broken == [
        (row, why) for row, one in enumerate(alone, start=1) for _, why in one.broken
    ]


def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", 5000)
    rows = [{"text": f"{i} {QUESTION if i % 40 == 7 else CHINESE[: i % 50]}"} for i in range(300)]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    one, two = look(path, workers=1), look(path, workers=2)
    assert [*report.matches(one)] == [*report.matches(two)]
    assert report.summary(one) == report.summary(two)


# what is broken


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n{"text": "y"}\n', "line 2: is no JSON"),
        ("a.jsonl", b'{"text": "x"}\n\xff\xfe\xfd\n', "line 2: is no"),
        ("a.jsonl", b'{"text": "x"}\n{"n": 3}\n', "line 2: holds no text"),
        ("a.jsonl", b'{"text": "x"}\n\n' + b"[" * 100_000 + b"\n", "line 3: is no JSON"),
        ("a.txt", b"good\nbad \xff\n", "line 2: is not UTF-8"),
        ("b.jsonl.gz", gzip.compress(b'{"a": "x"}\n', mtime=0)[:-9], "b.jsonl.gz: cannot be read"),
        ("b.txt.xz", b"no such thing", "b.txt.xz: cannot be read"),
        ("b.txt.zst", b"no such thing", "b.txt.zst: cannot be read"),
        ("b.parquet", b"PAR1 and then nothing", "is no readable Parquet file"),
        ("b.json", b'[{"text": "x"}, {"text": ', "b.json: the JSON array breaks off"),
        ("b.txt", "文字".encode("utf-16"), "b.txt: is UTF-16"),
        ("b.txt", gzip.compress(b"text", mtime=0), "its name says text"),
    ],
)
def test_what_cannot_be_read_is_counted_and_named(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    good = jsonl(tmp_path / "z.jsonl", {"text": QUESTION})
    outcome = look([tmp_path / name, good])
    assert kinds(outcome) == {"biology": "exact"}
    assert outcome.broken == 1
    assert why in outcome.named[0]
    assert str(tmp_path / name) in outcome.named[0]


def test_nothing_readable_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing in the corpus could be read"):
        look(jsonl(tmp_path / "a.jsonl", "{", "}"))
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="the files are empty"):
        look(tmp_path / "empty.txt")


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        files.sources([str(tmp_path / "missing*.jsonl")])
    with pytest.raises(DataError, match="in this folder"):
        files.sources([str(tmp_path)])


# reports


HOSTILE = "<script>alert(1)</script> | **bold** [x](http://y) \x1b[31m </table> \ud800"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    rows = [{"text": f"{HOSTILE} {QUESTION} {HOSTILE}"}]
    report.write(look(jsonl(tmp_path / "<b>.jsonl", *[json.dumps(row) for row in rows])), folder)
    return folder


def test_a_script_in_the_corpus_stays_text(written: Path) -> None:
    class Tags(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()
            self.text = ""

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.seen.add(tag)

        def handle_data(self, data: str) -> None:
            self.text += data

    tags = Tags()
    tags.feed((written / "report.html").read_text(encoding="utf-8"))
    assert not tags.seen & {"script", "b", "img", "a"}
    assert "<script>alert(1)</script>" in tags.text
    markdown = (written / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "\x1b" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| <b>During")]
    assert len(rows) == 1
    assert rows[0].replace(r"\|", "").count("|") == 3


def test_the_exclusion_list_is_one_that_boards_read(written: Path) -> None:
    found = exclusions.load(str(written / "exclusions.yaml"))
    assert list(found.items) == ["exam/test/biology/0"]
    assert found.items["exam/test/biology/0"].startswith("in training data (exact): ")


def test_each_line_of_matches_has_item_place_and_scores(written: Path) -> None:
    (line,) = (written / "matches.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert (found["id"], found["row"], found["kind"]) == ("exam/test/biology/0", 1, "exact")
    assert found["passage"][found["start"] : found["end"]] == QUESTION.removesuffix("?")


def verb(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ceval_suite", "contamination", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_the_verb_prints_json_and_writes_the_report(tmp_path: Path) -> None:
    prepared = prepare("sample-ceval", Selection())
    some = prepared.items[prepared.subjects[0]][:3]
    path = jsonl(tmp_path / "a.jsonl", *({"text": i.question + "".join(i.options)} for i in some))
    out = tmp_path / "out"
    done = verb(str(path), "--tasks", "sample-ceval", "--out", str(out), "--json", "--workers", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    told = [i.id for i in some if i.id not in found["too_little_text"]]
    assert told
    assert [one["id"] for one in found["items"]] == told
    assert {p.name for p in out.iterdir()} == {
        "matches.jsonl", "exclusions.yaml", "report.md", "report.html", "summary.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.jsonl", "--tasks", "sample-ceval"], "there is no such file or folder"),
        (["{broken}", "--tasks", "sample-ceval"], "nothing in the corpus could be read"),
        (["{broken}", "--tasks", "cevall"], "did you mean 'ceval'"),
    ],
)
def test_a_user_error_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    broken = jsonl(tmp_path / "broken.jsonl", "{")
    done = verb(*(a.format(broken=broken) for a in arguments), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupt_writes_nothing_and_says_so(tmp_path: Path) -> None:
    line = json.dumps({"text": "Some words of no matter at all. " * 8}) + "\n"
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text(line * (200_000_000 // len(line)))
    options = [str(path), "--tasks", "sample-ceval", "--out", str(out), "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "ceval_suite", "contamination", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell has what it starts in the background ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while len(psutil.Process(process.pid).children()) < 3:  # two workers and their tracker
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not out.exists()
    assert "Traceback" not in said
    assert said.strip().splitlines() == [
        "interrupted; nothing was written. To search again, from the beginning:",
        f"  ceval-suite contamination {' '.join(options)}",
    ]


# recall, false positives, memory


def test_planted_sample_items_are_found_among_other_lines(tmp_path: Path) -> None:
    chosen = [("sample", i) for t in SAMPLES[:3] for p in [prepare(t, Selection())]
              for s in p.subjects for i in p.items[s]]  # fmt: skip
    others = [i for t in SAMPLES[3:] for p in [prepare(t, Selection())]
              for s in p.subjects for i in p.items[s]]  # fmt: skip
    texts = [" ".join([i.passage, i.question, *i.choices, i.explanation]) for i in others]
    texts.append((Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8"))
    # the one sentence there that is an item of the other benchmarks, but for a character
    texts = [t for t in texts if "下列动物中，属于哺乳动物的有" not in t]
    pools = [planting.sentences(t for t in texts if planting.chinese(t) == zh) for zh in (0, 1)]
    found = targets.of_items(chosen)
    told = {t.id for t in found if not t.reason and t.basis == "question"}
    tellable = [i for _, i in chosen if i.id in told]
    for seed in (1, 2):
        draw = random.Random(seed)
        plants = planting.plant(
            tmp_path / "a.jsonl", draw.sample(tellable, 50), pools, 10_000, seed
        )
        outcome = search.search(found, files.sources([str(tmp_path / "a.jsonl")]), Rules())
        rows = {(f.target.id, p.row) for f in outcome.found.values() for p in f.places}
        hits = dict.fromkeys(planting.KINDS, 0)
        for plant in plants:
            hits[plant.kind] += (plant.id, plant.line) in rows
        assert hits["verbatim"] == hits["re-spaced"] == hits["full-width"] == 10
        assert hits["truncated"] >= 4
        assert hits["one word in ten changed"] >= 8
        assert {name for name, _ in rows} <= {plant.id for plant in plants}


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    line = json.dumps({"text": "Some words, 一些文字, of no matter at all. " * 8}) + "\n"
    process = psutil.Process()
    most: list[int] = []
    for times in (1, 6):
        path = tmp_path / f"{times}.jsonl"
        with path.open("w") as out:
            for _ in range(times * 3):
                out.write(line * (files.BLOCK // len(line)))
        most.append(0)

        def step(done: int, total: int) -> None:
            most[-1] = max(most[-1], process.memory_info().rss)

        look(path, step=step)
    assert most[1] < most[0] + 64 * 2**20


@pytest.mark.real
def test_real_items_are_told_and_stock_wording_is_not(real_data: Path, tmp_path: Path) -> None:
    prepared = [prepare(name, Selection(data=real_data)) for name in ("ceval", "cmmlu")]
    items = [("zh", i) for p in prepared for s in p.subjects for i in p.items[s]]
    found = targets.of_items(items)
    assert sum(1 for t in found if t.reason) < 0.01 * len(found)
    stock = [
        "下列说法正确的是",
        "以下关于该问题的叙述，不正确的是",
        "根据我国法律的规定，下列说法错误的是",
    ]
    path = jsonl(tmp_path / "a.jsonl", *({"text": text * 2} for text in stock))
    assert search.search(found, files.sources([str(path)]), Rules()).found == {}
