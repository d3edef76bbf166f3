"""Every quirk of the published files, on its real row; counts and gold answers of all of them."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracles
import pytest

from ceval_suite.catalog import load_task
from ceval_suite.data import Reader, duplicates
from ceval_suite.errors import DataError
from ceval_suite.exams import parts
from ceval_suite.files import find_files
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Item

SPLITS = {
    "mmlu": ("dev", "val", "test"),
    "cmmlu": ("dev", "test"),
    "ceval": ("dev", "val", "test"),
    "agieval": ("test",),
    "gaokao": ("test",),
}
Read = Callable[[str, str], dict[str, list[Item]]]


@pytest.fixture(scope="module")
def read(real_data: Path) -> Read:
    """All items of a task's split by subject, read once."""
    cache: dict[tuple[str, str], dict[str, list[Item]]] = {}

    def items(task: str, split: str) -> dict[str, list[Item]]:
        if (task, split) not in cache:
            spec = load_task(task)
            reader = Reader(spec, find_files(spec, real_data))
            cache[task, split] = {s: reader.items(s, split) for s in spec.subjects}
        return cache[task, split]

    return items


@pytest.fixture(scope="module")
def agieval(read: Read) -> dict[str, list[Item]]:
    return read("agieval", "test")


@pytest.fixture(scope="module")
def gaokao(read: Read) -> dict[str, list[Item]]:
    return read("gaokao", "test")


@pytest.fixture(scope="module")
def agieval_shots(real_data: Path) -> dict[str, list[Item]]:
    task = load_task("agieval")
    reader = Reader(task, find_files(task, real_data))
    return {subject: reader.shots(subject) for subject in task.subjects}


def flat(items: dict[str, list[Item]]) -> Iterator[Item]:
    return itertools.chain.from_iterable(items.values())


def where(items: dict[str, list[Item]], wanted: Callable[[Item], Any]) -> dict[str, list[int]]:
    """Subject → rows of the items for which `wanted` holds."""
    rows = {s: [n for n, item in enumerate(group) if wanted(item)] for s, group in items.items()}
    return {subject: found for subject, found in rows.items() if found}


def texts(item: Item) -> tuple[str, ...]:
    return (item.question, *item.options)


# ------------------------------------------------------------------------- counts and gold answers


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "counts"),
    [
        ("mmlu", {"dev": 285, "val": 1531, "test": 14042}),
        ("cmmlu", {"dev": 335, "test": 11582}),
        ("ceval", {"dev": 260, "val": 1346, "test": 12342}),
        ("agieval", {"test": 8269}),
        ("gaokao", {"test": 1781}),
    ],
)
def test_every_published_item_is_read_once_under_its_own_id(
    task: str, counts: dict[str, int], read: Read
) -> None:
    for split, count in counts.items():
        items = read(task, split)
        assert sum(len(group) for group in items.values()) == count
        for subject, group in items.items():
            assert [i.id for i in group] == [
                f"{task}/{split}/{subject}/{n}" for n in range(len(group))
            ]
            assert all(item.subject == subject for item in group)


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("mmlu", {"STEM": (90, 321, 3018), "humanities": (65, 518, 4705)}),
        ("mmlu", {"social sciences": (60, 337, 3077)}),
        ("mmlu", {"other (business, health, misc.)": (70, 355, 3242)}),
        ("cmmlu", {"STEM": (85, 2531), "Humanities": (65, 2489)}),
        ("cmmlu", {"Social Science": (110, 3652), "Other": (75, 2910)}),
        ("ceval", {"STEM": (100, 430, 3965), "Social Science": (50, 275, 2520)}),
        ("ceval", {"Humanities": (55, 257, 2364), "Other": (55, 384, 3493)}),
    ],
)
def test_every_category_has_its_published_rows(
    task: str, rows: dict[str, tuple[int, ...]], read: Read
) -> None:
    categories = load_task(task).categories
    for category, expected in rows.items():
        found = tuple(
            sum(len(read(task, p)[s]) for s in categories[category]) for p in SPLITS[task]
        )
        assert found == expected


@pytest.mark.real
def test_groups_that_overlap_categories_have_their_published_rows(read: Read) -> None:
    china = load_task("cmmlu").groups["china_specific"]
    assert sum(len(read("cmmlu", "test")[s]) for s in china) == 2572
    hard = load_task("ceval").groups["hard"]
    assert [sum(len(read("ceval", p)[s]) for s in hard) for p in ("val", "test")] == [152, 1405]


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "split"), [(t, s) for t, splits in SPLITS.items() for s in splits]
)
def test_gold_answers_equal_the_independent_reader(
    task: str, split: str, read: Read, real_data: Path
) -> None:
    expected: dict[str, list[str]] = {}
    for id, gold in oracles.answers(real_data, task, split):
        # Physics: the published string "AB" is the set {A, B}
        expected[id] = sorted("".join(gold or [])) if "_Physics_" in id else list(gold or [])
    assert {item.id: list(item.answer) for item in flat(read(task, split))} == expected


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "split", "letters"),
    [
        ("mmlu", "test", {"A": 3222, "B": 3462, "C": 3582, "D": 3776}),
        ("mmlu", "val", {"A": 381, "B": 379, "C": 387, "D": 384}),
        ("mmlu", "dev", {"A": 67, "B": 69, "C": 71, "D": 78}),
        ("cmmlu", "test", {"A": 2926, "B": 2883, "C": 2877, "D": 2896}),
        ("ceval", "val", {"A": 310, "B": 338, "C": 344, "D": 354}),
        ("ceval", "dev", {"A": 51, "B": 78, "C": 61, "D": 70}),
        ("ceval", "test", {"": 12342}),
    ],
)
def test_label_counts_are_the_published_ones(
    task: str, split: str, letters: dict[str, int], read: Read
) -> None:
    assert Counter("".join(item.answer) for item in flat(read(task, split))) == letters


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "split", "kinds"),
    [
        ("mmlu", "test", {"single": 14042}),
        ("cmmlu", "test", {"single": 11582}),
        ("ceval", "val", {"single": 1346}),
        ("agieval", "test", {"single": 4944, "multi": 2207, "cloze": 1118}),
        ("gaokao", "test", {"single": 1462, "multi": 64, "blanks": 255}),
    ],
)
def test_kinds_are_counted_and_the_official_protocol_scores_every_one(
    task: str, split: str, kinds: dict[str, int], read: Read, real_data: Path
) -> None:
    assert Counter(item.kind for item in flat(read(task, split))) == kinds
    prepared = prepare(task, Selection(data=real_data))
    assert not any(prepared.not_scored.values())
    whole = {item.id.split("#")[0] for item in prepared.scored()}
    assert len(whole) == sum(kinds.values())


@pytest.mark.real
def test_what_a_protocol_cannot_answer_is_named_not_dropped(read: Read, real_data: Path) -> None:
    prepared = prepare("agieval", Selection("lm-eval", data=real_data))
    assert sum(map(Counter, prepared.not_scored.values()), Counter[str]()) == {"cloze": 1118}
    assert len(prepared.scored()) == 8269 - 1118


# ------------------------------------------------------------------------------------------ MMLU


@pytest.mark.real
def test_the_option_none_stays_text(read: Read) -> None:
    a_to_d = "ABCD"

    def found(split: str) -> dict[str, list[tuple[int, str]]]:
        out: dict[str, list[tuple[int, str]]] = {}
        for subject, rows in where(read("mmlu", split), lambda i: "None" in i.choices).items():
            items = read("mmlu", split)[subject]
            out[subject] = [(n, a_to_d[items[n].choices.index("None")]) for n in rows]
        return out

    assert found("test") == {
        "college_computer_science": [(10, "A"), (94, "A")],
        "college_mathematics": [(8, "A"), (21, "A"), (60, "A")],
        "college_physics": [(60, "D")],
        "electrical_engineering": [(41, "D"), (68, "D"), (107, "D"), (117, "D")],
    }
    assert found("val") == {
        "conceptual_physics": [(16, "A")],
        "electrical_engineering": [(10, "D")],
    }
    assert "none" in read("mmlu", "test")["high_school_mathematics"][247].choices


@pytest.mark.real
def test_mmlu_newlines_inside_quoted_fields_do_not_split_rows(read: Read) -> None:
    for split, questions in {"dev": 32, "val": 126, "test": 1127}.items():
        assert sum("\n" in item.question for item in flat(read("mmlu", split))) == questions
    rows = {p: where(read("mmlu", p), lambda i: "\n" in "".join(i.options)) for p in SPLITS["mmlu"]}
    assert rows == {
        "dev": {"high_school_computer_science": [4]},
        "val": {},
        "test": {"high_school_computer_science": [28]},
    }
    dev, test = (read("mmlu", split)["high_school_computer_science"] for split in ("dev", "test"))
    assert [sum("\n" in o for o in i.options) for i in (dev[4], test[28])] == [4, 4]


@pytest.mark.real
def test_carriage_returns_inside_fields_survive(read: Read, real_data: Path) -> None:
    def rows(task: str, split: str) -> dict[str, list[int]]:
        return where(read(task, split), lambda i: "\r" in "".join((*texts(i), i.explanation)))

    assert rows("mmlu", "dev") == {"college_mathematics": [2]}
    assert rows("mmlu", "val") == {"college_mathematics": [3], "college_physics": [8, 10]}
    assert rows("mmlu", "test") == {}
    assert [sum(map(len, rows("ceval", p).values())) for p in ("dev", "val", "test")] == [
        17,
        19,
        153,
    ]
    # the end of a row is no part of its last field, also in the 44 files with CRLF row ends
    files = sorted((real_data / "mmlu").glob("*/*.csv"))
    assert sum(b"\r\n" in path.read_bytes() for path in files) == 44
    assert all(i.answer_text in "ABCD" for p in SPLITS["mmlu"] for i in flat(read("mmlu", p)))


@pytest.mark.real
def test_blanks_around_questions_and_options_are_kept(read: Read) -> None:
    test = read("mmlu", "test")
    assert sum(i.question != i.question.lstrip() for i in flat(test)) == 648
    assert sum(i.question != i.question.rstrip() for i in flat(test)) == 315
    assert {
        split: sum(o != o.strip() for i in flat(read("mmlu", split)) for o in i.options)
        for split in SPLITS["mmlu"]
    } == {"dev": 10, "val": 283, "test": 133}
    assert {
        split: sum(o != o.strip() for i in flat(read("cmmlu", split)) for o in i.options)
        for split in SPLITS["cmmlu"]
    } == {"dev": 24, "test": 343}
    assert "ARP " in [o for i in read("cmmlu", "dev")["computer_science"] for o in i.choices]
    cmmlu = list(flat(read("cmmlu", "test")))
    assert sum(i.question != i.question.rstrip() for i in cmmlu) == 37
    assert sum(i.question != i.question.lstrip() for i in cmmlu) == 3
    assert any(o != o.strip() for o in read("ceval", "val")["high_school_biology"][15].choices)


@pytest.mark.real
def test_odd_characters_pass_through_untouched(read: Read) -> None:
    mmlu = read("mmlu", "test")
    assert where(mmlu, lambda i: "\ufeff" in "".join(texts(i))) == {"college_medicine": [49, 80]}
    nbsp = [sum("\xa0" in "".join(texts(i)) for i in flat(read("mmlu", p))) for p in SPLITS["mmlu"]]
    assert sum(nbsp) == 60
    mojibake = where(mmlu, lambda i: re.search("Â|Ã", "".join(texts(i))))
    assert mojibake.keys() == {"professional_law"}
    assert len(mojibake["professional_law"]) == 7


@pytest.mark.real
def test_look_alike_characters_are_not_normalised(read: Read) -> None:
    radical = re.compile("[\u2e80-\u2fdf]")
    rows = where(read("cmmlu", "test"), lambda i: radical.search("".join(texts(i))))
    assert {subject: len(found) for subject, found in rows.items()} == {
        "computer_science": 167,
        "high_school_physics": 107,
        "high_school_geography": 103,
        "elementary_mathematics": 84,
        "modern_chinese": 38,
        "high_school_mathematics": 37,
        "machine_learning": 1,
    }
    dev = where(read("cmmlu", "dev"), lambda i: radical.search("".join(texts(i))))
    assert sum(map(len, dev.values())) == 15
    private = where(
        read("cmmlu", "test"), lambda i: re.search("[\ue000-\uf8ff]", "".join(texts(i)))
    )
    assert private == {"high_school_chemistry": [103]}


@pytest.mark.real
def test_equal_options_keep_their_places_and_the_published_label(read: Read) -> None:
    item = read("mmlu", "val")["miscellaneous"][9]
    assert item.choices[0] == item.choices[1] == "60,000,000"
    assert item.answer == ("A",)
    for task, expected in {
        "mmlu": {"dev": 1, "val": 3, "test": 9},
        "cmmlu": {"dev": 0, "test": 0},
        "ceval": {"dev": 1, "val": 3, "test": 34},
    }.items():
        for split, count in expected.items():
            assert sum(len(set(i.choices)) < 4 for i in flat(read(task, split))) == count
    ceval = read("ceval", "val")
    assert (
        ceval["advanced_mathematics"][3].choices[0] == ceval["advanced_mathematics"][3].choices[3]
    )
    assert ceval["computer_network"][12].answer == ("B",)


@pytest.mark.real
def test_duplicates_are_found_and_kept(read: Read) -> None:
    assert len(duplicates(flat(read("mmlu", "test")))) == 105
    cmmlu = duplicates(flat(read("cmmlu", "test"))).values()
    assert {tuple(id.removeprefix("cmmlu/test/") for id in ids) for ids in cmmlu} == {
        ("anatomy/79", "anatomy/100"),
        ("logical/11", "logical/38"),
        ("college_medicine/210", "professional_medicine/68"),
    }
    ceval = duplicates(flat(read("ceval", "test"))).values()
    assert {tuple(id.removeprefix("ceval/test/") for id in ids) for ids in ceval} == {
        ("college_economics/203", "college_economics/300"),
        ("high_school_politics/31", "high_school_politics/157"),
    }
    assert len(duplicates(flat(read("agieval", "test")))) == 61
    # five MMLU shots are also questions
    shots = {(i.question, i.choices): i.id for i in flat(read("mmlu", "dev"))}
    both = {i.id: shots.get((i.question, i.choices)) for i in flat(read("mmlu", "test"))}
    assert {shot.removeprefix("mmlu/dev/"): id for id, shot in both.items() if shot} == {
        "clinical_knowledge/0": "mmlu/test/college_medicine/152",
        "clinical_knowledge/4": "mmlu/test/college_medicine/81",
        "college_medicine/0": "mmlu/test/clinical_knowledge/252",
        "college_medicine/1": "mmlu/test/clinical_knowledge/93",
        "college_medicine/4": "mmlu/test/clinical_knowledge/56",
    }


@pytest.mark.real
def test_conflicting_labels_of_one_question_stay_as_published(read: Read) -> None:
    def pair(items: list[Item], first: int, second: int) -> tuple[bool, str, str]:
        a, b = items[first], items[second]
        return a.question == b.question, a.answer[0], b.answer[0]

    assert pair(read("ceval", "val")["college_economics"], 5, 54) == (True, "D", "C")
    agieval = read("agieval", "test")
    assert pair(agieval["gaokao-chemistry"], 5, 33) == (True, "B", "D")
    for subject in ("sat-en", "sat-en-without-passage"):
        assert pair(agieval[subject], 100, 101) == (True, "B", "A")


# ---------------------------------------------------------------------------------------- C-Eval


@pytest.mark.real
def test_ceval_newlines_and_backslash_n_are_what_the_file_says(read: Read) -> None:
    newline = [sum("\n" in i.question for i in flat(read("ceval", p))) for p in SPLITS["ceval"]]
    assert newline == [12, 41, 391]
    options = [
        sum("\n" in o for i in flat(read("ceval", p)) for o in i.options) for p in SPLITS["ceval"]
    ]
    assert options == [0, 4, 69]
    literal = where(read("ceval", "val"), lambda i: "\\n" in "".join(texts(i)))
    assert literal == {
        "college_programming": [6],
        "discrete_mathematics": [11],
        "high_school_mathematics": [2, 16],
    }
    assert (
        sum("____" in i.question for p in SPLITS["ceval"] for i in flat(read("ceval", p))) == 13945
    )


@pytest.mark.real
def test_csv_options_that_begin_with_letters_lose_nothing(read: Read) -> None:
    item = read("ceval", "val")["college_economics"][15]
    assert any(re.match(r"[A-D][、.．,，]", choice) for choice in item.choices)
    for task in ("mmlu", "cmmlu", "ceval"):
        for split in SPLITS[task]:
            assert all(i.choices == i.options for i in flat(read(task, split)))


@pytest.mark.real
def test_ceval_shots_carry_their_explanations(read: Read) -> None:
    assert all(i.explanation for i in flat(read("ceval", "dev")))
    assert not any(i.explanation for i in flat(read("ceval", "val")))


# --------------------------------------------------------------------------------------- AGIEval


@pytest.mark.real
def test_junk_and_empty_labels_of_the_lawyer_exam_become_sets(
    agieval: dict[str, list[Item]],
) -> None:
    junk, missing = agieval["jec-qa-ca"][48], agieval["jec-qa-kd"][211]
    assert (junk.answer_text, junk.answer) == ("['A', 'C', 'D', '。']", ("A", "C", "D"))
    assert (missing.answer_text, missing.answer, missing.labels) == ("[]", (), tuple("ABCD"))
    unlabelled = where(agieval, lambda i: not i.answer)
    assert unlabelled == {"jec-qa-kd": [211]}
    for subject, sizes in {
        "jec-qa-kd": {0: 1, 1: 479, 2: 196, 3: 205, 4: 119},
        "jec-qa-ca": {1: 533, 2: 217, 3: 172, 4: 78},  # row 48: the fourth entry is no letter
    }.items():
        assert Counter(len(i.answer) for i in agieval[subject]) == sizes
        assert {i.kind for i in agieval[subject]} == {"multi"}


@pytest.mark.real
def test_cloze_rows_are_answered_by_their_published_text(agieval: dict[str, list[Item]]) -> None:
    assert [i.answer for i in agieval["math"][:2]] == [("(3,4]",), ("30",)]
    assert agieval["gaokao-mathcloze"][1].answer == ("$5$;$10$",)
    # a blank before one of them stays
    blank = where(agieval, lambda i: i.kind == "cloze" and i.answer[0] != i.answer[0].strip())
    assert [agieval[s][n].answer for s, rows in blank.items() for n in rows] == [(" \\frac{1}{8}",)]


@pytest.mark.real
def test_several_letters_in_one_string_make_a_multi_item(agieval: dict[str, list[Item]]) -> None:
    items = agieval["gaokao-mathqa"]
    assert {n: i.answer_text for n, i in enumerate(items) if i.kind == "multi"} == {
        148: "AD",
        149: "ACD",
        245: "A B D",
        246: "A C",
        247: "B C D",
        285: "CD",
        286: "AC",
    }
    assert items[247].answer == ("B", "C", "D")
    assert Counter(i.kind for i in items) == {"single": 344, "multi": 7}


@pytest.mark.real
def test_physics_labels_come_as_letters_and_as_lists(agieval: dict[str, list[Item]]) -> None:
    lists = [i for i in agieval["gaokao-physics"] if i.answer_text.startswith("[")]
    assert Counter(len(i.answer) for i in lists) == {2: 30, 3: 5}
    assert {i.kind for i in agieval["gaokao-physics"]} == {"multi"}
    assert sum(len(i.answer) == 1 for i in agieval["gaokao-physics"]) == 165


PERMUTED = [108, 114, 140, 144, 145, 147, 148, 150, 172, 185, *range(192, 196), *range(197, 202)]


@pytest.mark.real
@pytest.mark.parametrize("subject", ["logiqa-en", "logiqa-zh"])
def test_labels_follow_the_printed_letters_where_they_are_permuted(
    subject: str, agieval: dict[str, list[Item]]
) -> None:
    rows = where(agieval, lambda i: i.labels != tuple("ABCDEFG"[: len(i.options)]) and i.options)
    assert rows == {"logiqa-en": PERMUTED, "logiqa-zh": PERMUTED}
    assert {agieval[subject][n].labels for n in PERMUTED} == {("A", "C", "B", "D")}


@pytest.mark.real
@pytest.mark.parametrize(
    ("subject", "row", "right"),
    [
        # solved by hand: the label names the letter that is printed, not the place
        ("logiqa-en", 108, "No.2 valve and No.3 valve."),
        ("logiqa-en", 114, "Some northerners are not workers."),
        ("logiqa-en", 140, "Wuliangye and Bancheng Shaojiao are good wines."),
        ("logiqa-zh", 108, " 2号阀和3号阀。"),
        ("logiqa-zh", 114, " 有些北方人不是工人。"),
        ("logiqa-zh", 140, "五粮液和板城烧锅酒都是好酒。"),
    ],
)
def test_the_gold_text_of_permuted_options_is_the_right_one(
    subject: str, row: int, right: str, agieval: dict[str, list[Item]]
) -> None:
    item = agieval[subject][row]
    assert dict(zip(item.labels, item.choices, strict=True))[item.answer[0]] == right


@pytest.mark.real
@pytest.mark.parametrize(
    ("row", "printed", "gold"),
    [(78, "ABCC", "外资工业"), (80, "ABCC", "百团大战"), (83, "ACCD", "特权阶级")],
)
def test_typo_letters_follow_the_position(
    row: int, printed: str, gold: str, agieval: dict[str, list[Item]]
) -> None:
    item = agieval["gaokao-history"][row]
    assert [option[1] for option in item.options] == list(printed)
    assert item.labels == tuple("ABCD")
    by_label = dict(zip(item.labels, item.choices, strict=True))
    assert by_label[item.answer[0]].startswith(gold)
    assert not any(choice.startswith(("(", "C")) for choice in item.choices)


@pytest.mark.real
def test_option_prefixes_of_every_style_are_read(agieval: dict[str, list[Item]]) -> None:
    bare = Counter(
        subject
        for subject, items in agieval.items()
        for item in items
        for option in item.options
        if not re.match(r"\([A-G]\)", option)
    )
    assert bare == {
        "logiqa-zh": 1353,
        "gaokao-english": 160,
        "gaokao-chinese": 40,
        "logiqa-en": 24,
        "gaokao-history": 8,
        "gaokao-chemistry": 2,
        "gaokao-geography": 1,
    }
    prefix = re.compile(r"\s*(?:[(（]\s*[A-G]\s*[)）]|[A-G]\s*[．.、:：。]|[A-G]\s+)")
    untouched = {
        (item.id.removeprefix("agieval/test/"), label)
        for item in flat(agieval)
        for label, option, choice in zip(item.labels, item.options, item.choices, strict=True)
        if option == choice
    }
    assert untouched == {
        # letters lost in translation, and two bare options of the published file
        *(("logiqa-en/10", label) for label in "AB"),
        *(("logiqa-en/15", label) for label in "CD"),
        *(("logiqa-en/524", label) for label in "AD"),
        ("logiqa-en/544", "B"),
        *(("gaokao-chemistry/107", label) for label in "AB"),
    }
    for item in flat(agieval):
        for option, choice in zip(item.options, item.choices, strict=True):
            assert option.endswith(choice)
            taken = option[: len(option) - len(choice)]
            assert not taken or prefix.fullmatch(taken), (item.id, option, choice)


@pytest.mark.real
@pytest.mark.parametrize(
    ("subject", "row", "label", "choice"),
    [
        ("aqua-rat", 29, "A", "A)59"),
        ("aqua-rat", 29, "E", "E)99"),
        ("logiqa-en", 4, "A", "A."),
        ("logiqa-en", 4, "D", "Ding."),
        ("logiqa-zh", 195, "D", " F、G、J、L"),
        ("logiqa-zh", 541, "A", "F、M、T"),
        ("logiqa-zh", 596, "D", " M、U、W"),
        (
            "jec-qa-kd",
            671,
            "C",
            "A、B项以外,与投保人有抚养、赡养或者扶养关系的家庭其他成员、近亲属",
        ),
        ("gaokao-chemistry", 74, "D", ""),
        ("gaokao-chemistry", 77, "D", ""),
        ("gaokao-chemistry", 107, "A", "錀   第七周期"),
    ],
)
def test_one_prefix_is_taken_off_and_no_more(
    subject: str, row: int, label: str, choice: str, agieval: dict[str, list[Item]]
) -> None:
    item = agieval[subject][row]
    assert dict(zip(item.labels, item.choices, strict=True))[label] == choice


@pytest.mark.real
def test_agieval_files_have_four_five_or_no_options(agieval: dict[str, list[Item]]) -> None:
    five = {"aqua-rat", "lsat-ar", "lsat-lr", "lsat-rc"}
    cloze = {"math", "gaokao-mathcloze"}
    for subject, items in agieval.items():
        number = 5 if subject in five else 0 if subject in cloze else 4
        assert {len(item.options) for item in items} == {number}
        assert {len(item.labels) for item in items} == {number}
        assert (subject in cloze) == ({item.kind for item in items} == {"cloze"})
    assert {i.answer for i in agieval["lsat-lr"]} == {(letter,) for letter in "ABCDE"}
    assert all(i.answer == (i.answer_text,) for s in cloze for i in agieval[s])


@pytest.mark.real
def test_passages_are_there_where_published_and_cluster_their_items(
    agieval: dict[str, list[Item]],
) -> None:
    passages = {s: sum(bool(i.passage) for i in items) for s, items in agieval.items()}
    assert {s: n for s, n in passages.items() if n} == {
        "logiqa-en": 651,
        "logiqa-zh": 651,
        "lsat-ar": 230,
        "lsat-lr": 510,
        "lsat-rc": 269,
        "sat-math": 14,
        "sat-en": 206,
        "gaokao-chinese": 220,
        "gaokao-english": 306,
    }
    for items in agieval.values():
        assert len({i.passage for i in items}) == len({i.cluster for i in items})
    assert 1 < len({i.cluster for i in agieval["sat-en"]}) < 206


@pytest.mark.real
def test_outer_blanks_invisible_characters_and_newlines_survive_in_agieval(
    agieval: dict[str, list[Item]],
) -> None:
    outer = where(agieval, lambda i: i.question != i.question.strip())
    assert sum(map(len, outer.values())) == 454
    assert len(outer["gaokao-mathqa"]) == 351
    newline = where(agieval, lambda i: "\n" in "".join(i.options))
    assert newline == {"gaokao-geography": [55, 113, 181, 184]}
    invisible = where(agieval, lambda i: "\u200b" in "".join((i.passage, *texts(i))))
    assert invisible.keys() == {"logiqa-en"}


@pytest.mark.real
def test_the_csv_gives_three_four_or_five_shots_by_file(
    agieval_shots: dict[str, list[Item]],
) -> None:
    numbers = {subject: len(shots) for subject, shots in agieval_shots.items()}
    three = ["logiqa-en", "logiqa-zh", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en"]
    three += ["sat-en-without-passage", "gaokao-chinese", "gaokao-english"]
    assert numbers == {s: 3 if s in three else 4 if s == "math" else 5 for s in numbers}
    assert all(shot.explanation for shots in agieval_shots.values() for shot in shots)


@pytest.mark.real
def test_shots_without_passage_are_those_of_sat_en_with_the_passage_removed(
    agieval_shots: dict[str, list[Item]],
) -> None:
    full, bare = agieval_shots["sat-en"], agieval_shots["sat-en-without-passage"]
    assert [s.question for s in full] == [s.question for s in bare]
    assert [s.options for s in full] == [s.options for s in bare]
    assert [s.answer for s in full] == [s.answer for s in bare]
    assert all(s.passage for s in full)
    assert not any(s.passage for s in bare)


@pytest.mark.real
def test_odd_shots_are_read_as_they_stand(agieval_shots: dict[str, list[Item]]) -> None:
    geography = agieval_shots["gaokao-geography"]
    assert [len(s.options) for s in geography] == [1, 1, 1, 1, 1]
    assert ["\r\n" in s.options[0] for s in geography] == [False, True, False, True, True]
    assert [len(s.options) for s in agieval_shots["gaokao-biology"]] == [4, 4, 4, 4, 3]
    assert [s.answer_text for s in agieval_shots["gaokao-physics"]] == [
        "D",
        "D",
        "['B', 'C']",
        "D",
        "['A', 'D']",
    ]
    assert agieval_shots["jec-qa-kd"][1].answer_text == "['A', 'B', 'C']"
    assert [s.answer_text for s in agieval_shots["math"]] == ["[2,5)", "125", "16", "\\frac{26}{3}"]


@pytest.mark.real
def test_a_chemistry_shot_is_also_test_row_140(
    agieval: dict[str, list[Item]], agieval_shots: dict[str, list[Item]]
) -> None:
    shot, item = agieval_shots["gaokao-chemistry"][4], agieval["gaokao-chemistry"][140]
    assert (shot.options, shot.answer) == (item.options, item.answer)
    bare_shot, bare_item = (re.sub(r"[\s(（）)]", "", i.question) for i in (shot, item))
    assert bare_shot == bare_item


# ---------------------------------------------------------------------------------- GAOKAO-Bench


@pytest.mark.real
def test_gaokao_sub_questions_and_points_add_up(gaokao: dict[str, list[Item]]) -> None:
    table = {
        "2010-2013_English_MCQs": (105, 105, 105),
        "2010-2022_Biology_MCQs": (150, 150, 900),
        "2010-2022_Chemistry_MCQs": (124, 124, 744),
        "2010-2022_History_MCQs": (287, 287, 1148),
        "2010-2022_Math_I_MCQs": (214, 214, 1070),
        "2010-2022_Math_II_MCQs": (218, 218, 1090),
        "2010-2022_Political_Science_MCQs": (320, 320, 1280),
        "2010-2022_Physics_MCQs": (64, 64, 384),
        "2010-2022_Chinese_Lang_and_Usage_MCQs": (56, 80, 240),
        "2010-2022_Chinese_Modern_Lit": (29, 87, 261),
        "2010-2022_English_Fill_in_Blanks": (30, 600, 900),
        "2010-2022_English_Reading_Comp": (124, 470, 940),
        "2010-2022_Geography_MCQs": (34, 95, 380),
        "2012-2022_English_Cloze_Test": (26, 130, 260),
    }

    found = {
        subject: (
            len(items),
            sum(len(item.record_ids()) for item in items),
            sum(part.points for item in items for part in parts(item)),
        )
        for subject, items in gaokao.items()
    }
    assert found == table
    assert [sum(column) for column in zip(*found.values(), strict=True)] == [1781, 2944, 9702]
    rows = load_task("gaokao").subjects
    assert {s: rows[s].sub_questions for s in rows} == {s: row[1] for s, row in table.items()}


@pytest.mark.real
def test_gaokao_kinds_follow_the_number_of_answers(gaokao: dict[str, list[Item]]) -> None:
    usage = gaokao["2010-2022_Chinese_Lang_and_Usage_MCQs"]
    assert Counter((i.kind, len(i.answer)) for i in usage) == {("single", 1): 44, ("blanks", 3): 12}
    physics = gaokao["2010-2022_Physics_MCQs"]
    assert {i.kind for i in physics} == {"multi"}
    assert Counter(len(i.answer) for i in physics) == {1: 41, 2: 20, 3: 3}
    assert physics[3].answer == ("A", "C")
    seven = gaokao["2012-2022_English_Cloze_Test"]
    assert {i.labels for i in seven} == {tuple("ABCDEFG")}
    assert {len(i.answer) for i in seven} == {5}
    blanks = gaokao["2010-2022_English_Fill_in_Blanks"][0]
    assert len(blanks.answer) == 20
    assert list(blanks.answer) != sorted(blanks.answer)


@pytest.mark.real
def test_every_sub_question_of_a_published_file_is_asked_under_an_id_of_its_own(
    gaokao: dict[str, list[Item]],
) -> None:
    asked = [part for item in flat(gaokao) for part in parts(item)]
    ids = [part.id for part in asked]
    assert len(ids) == len(set(ids)) == 2944
    assert ids == [id for item in flat(gaokao) for id in item.record_ids()]
    assert Counter(part.kind for part in asked) == {"single": 2880, "multi": 64}
    several = Counter(part.cluster for part in asked if part.parts)
    assert several == {i.id: len(i.answer) for i in flat(gaokao) if i.kind == "blanks"}
    alone = gaokao["2010-2022_Chinese_Lang_and_Usage_MCQs"][0]
    assert (alone.kind, parts(alone), "#" in alone.id) == ("single", [alone], False)


@pytest.mark.real
@pytest.mark.parametrize(
    ("subject", "row", "letters"),
    [
        # `C respected`, `A condition`, `A 一脉相承` lack their point; all of 27 stands on one line
        ("2010-2022_English_Fill_in_Blanks", 4, "ABCD"),
        ("2010-2022_English_Fill_in_Blanks", 9, "ABCD"),
        ("2010-2022_Chinese_Lang_and_Usage_MCQs", 50, "ABCD"),
        ("2010-2022_Geography_MCQs", 27, "ABCD"),
        ("2012-2022_English_Cloze_Test", 0, "ABCDEFG"),
    ],
)
def test_sub_questions_have_the_letters_of_their_file_whatever_is_printed(
    subject: str, row: int, letters: str, gaokao: dict[str, list[Item]]
) -> None:
    assert {part.labels for part in parts(gaokao[subject][row])} == {tuple(letters)}


@pytest.mark.real
def test_gaokao_items_carry_the_year_of_their_exam(gaokao: dict[str, list[Item]]) -> None:
    years = {subject: sorted({item.year for item in items}) for subject, items in gaokao.items()}
    for subject, found in years.items():
        first, last = subject[:9].split("-")
        # Geography begins with 2011, Chinese_Lang_and_Usage ends with 2021
        assert first <= found[0] <= found[-1] <= last
        assert all(len(year) == 4 for year in found)
    assert len(years["2010-2022_History_MCQs"]) == 13
    assert gaokao["2010-2022_English_Fill_in_Blanks"][9].year == "2015"


@pytest.mark.real
def test_items_that_need_a_missing_picture_are_flagged(gaokao: dict[str, list[Item]]) -> None:
    assert where(gaokao, lambda i: "image" in i.flags) == {
        "2010-2022_Chemistry_MCQs": [8, 64, 76, 78, 83],
        "2010-2022_Math_I_MCQs": [64],
    }


@pytest.mark.real
def test_backspaces_wide_blanks_and_final_newlines_survive_in_gaokao(
    gaokao: dict[str, list[Item]],
) -> None:
    assert where(gaokao, lambda i: "\b" in i.question) == {"2010-2022_Math_I_MCQs": [1]}
    assert sum("\u3000" in i.question for i in flat(gaokao)) == 501
    assert sum(i.question.endswith("\n") for i in flat(gaokao)) == 1777
    assert where(gaokao, lambda i: not i.explanation.strip()) == {"2010-2022_Geography_MCQs": [27]}


@pytest.mark.real
def test_both_gaokao_layouts_and_key_names_give_the_same_items(
    gaokao: dict[str, list[Item]], real_data: Path, tmp_path: Path
) -> None:
    old = tmp_path / "gaokao-bench" / "data" / "Multiple-choice_Questions"
    old.mkdir(parents=True)
    for path in (real_data / "gaokao-bench" / "Objective_Questions").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["keyword"] = content.pop("keywords")
        for example in content["example"]:
            example["standard_answer"] = example.pop("answer")
        (old / path.name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    task = load_task("gaokao")
    files = find_files(task, tmp_path)
    assert files.prefix == "data/"
    reader = Reader(task, files)
    assert {subject: reader.items(subject, "test") for subject in task.subjects} == gaokao


# ------------------------------------------------------------------------- rules, without real data


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    task = load_task("sample-mmlu")
    with pytest.raises(DataError, match="no split 'train'; it has dev, test"):
        Reader(task, find_files(task)).items("everyday_science", "train")


def test_the_data_hash_names_the_files_and_bytes_that_were_read() -> None:
    task = load_task("sample-mmlu")
    once, again, other = (Reader(task, find_files(task)) for _ in range(3))
    for reader in (once, again):
        reader.items("everyday_science", "test")
    assert once.sha256 == again.sha256
    other.items("english_usage", "test")
    assert other.sha256 != once.sha256
    again.items("english_usage", "test")
    assert again.sha256 not in (once.sha256, other.sha256)
