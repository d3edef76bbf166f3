"""Texts to encode: every form is read to the same texts, and a broken line is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ceval_suite.errors import DataError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.tokenizer import corpus
from ceval_suite.tokenizer.corpus import Corpus, batches, open_corpus, parallel, questions, survey

ZH = ["今天天气很好。", "他们在讨论经济问题，2023年。", "这是第三句话"]
EN = ["The weather is fine today.", "They discuss the economy of 2023.", "A third sentence"]
PAIRS = [text for pair in zip(ZH, EN, strict=True) for text in pair]


def put(path: Path, lines: list[str], *, end: str = "\n") -> Path:
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def texts(found: Corpus) -> list[str]:
    return [text for _, text in found.read()]


@pytest.mark.parametrize("name", ["news.txt", "news.txt.gz"])
def test_a_plain_file_is_one_text_a_line(tmp_path: Path, name: str) -> None:
    found = open_corpus([str(put(tmp_path / name, ZH))])
    assert list(found.read()) == [("zh", text) for text in ZH]
    assert list(found.read()) == [("zh", text) for text in ZH]  # as often as asked


def test_only_line_feeds_end_a_line_and_blank_lines_are_no_texts(tmp_path: Path) -> None:
    odd = ["\ufeffone\u2028still one", "", "two\rstill two", "   ", "three"]
    path = put(tmp_path / "odd.txt", odd, end="\r\n")
    assert texts(open_corpus([str(path)])) == ["one\u2028still one", "two\rstill two", "three"]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_form_of_pairs_holds_the_same_texts(tmp_path: Path, end: str) -> None:
    zh, en = put(tmp_path / f"news.zh{end}", ZH), put(tmp_path / f"news.en{end}", EN)
    rows = [f"{z}\t{e}" for z, e in zip(ZH, EN, strict=True)]
    tsv = put(tmp_path / f"pairs.tsv{end}", rows)
    expected = list(zip(["zh", "en"] * 3, PAIRS, strict=True))
    for found in (parallel(zh, en), open_corpus([str(tsv)]), open_corpus([str(tmp_path / "news")])):
        assert list(found.read()) == expected


def test_the_language_of_a_column_is_told_from_what_stands_in_it(tmp_path: Path) -> None:
    # News Commentary's own tsv has English first
    tsv = put(tmp_path / "p.tsv", [f"{e}\t{z}" for z, e in zip(ZH, EN, strict=True)])
    sides = survey(open_corpus([str(tsv)]))
    assert sides["zh"].sample == ZH
    assert sides["en"].sample == EN


def test_a_pair_with_an_empty_side_is_left_out_whole(tmp_path: Path) -> None:
    rows = [f"{ZH[0]}\t{EN[0]}", "\tonly English", "\t", "", f"{ZH[1]}\t{EN[1]}"]
    found = open_corpus([str(put(tmp_path / "p.tsv", rows))])
    assert texts(found) == PAIRS[:4]


def test_several_files_are_one_corpus(tmp_path: Path) -> None:
    files = [str(put(tmp_path / "a.txt", ZH)), str(put(tmp_path / "b.txt", EN))]
    found = survey(open_corpus(files))
    assert (found["zh"].texts, found["en"].texts) == (3, 3)


def test_counts_are_those_done_by_hand(tmp_path: Path) -> None:
    lines = ["我有3个苹果。", "法 律"]
    side = survey(open_corpus([str(put(tmp_path / "a.txt", lines))]))["zh"]
    # 我 有 3 个 苹 果 。 + 法 律: a run of other characters is one word
    assert (side.texts, side.characters, side.words) == (2, 10, 9)
    assert side.bytes == len("".join(lines).encode())
    words = survey(open_corpus([str(put(tmp_path / "b.txt", EN))]))["en"].words
    assert words == sum(len(text.split()) for text in EN)


def test_the_sample_is_the_first_texts_up_to_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SAMPLE_BYTES", 30)
    side = survey(open_corpus([str(put(tmp_path / "a.txt", EN))]))["en"]
    assert side.sample == EN[:2]
    assert side.texts == 3


def test_batches_hold_one_language_and_lose_nothing() -> None:
    read = iter([("zh", "一"), ("en", "a"), ("zh", "二"), ("zh", "三"), ("en", "b")])
    assert list(batches(read, 2)) == [("zh", ["一", "二"]), ("en", ["a", "b"]), ("zh", ["三"])]


# what cannot be read is named with its line


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes("好\n".encode() * 2 + b"ab\xff\n")
    with pytest.raises(DataError, match=r"bad\.txt, line 3: not UTF-8 .*at byte 2"):
        survey(open_corpus([str(path)]))


@pytest.mark.parametrize(
    ("row", "count"), [("只有一列", "1 column "), ("一\ttwo\tthree", "3 columns")]
)
def test_a_row_that_is_no_pair_is_named_with_its_line(tmp_path: Path, row: str, count: str) -> None:
    path = put(tmp_path / "p.tsv", [f"{ZH[0]}\t{EN[0]}", row])
    with pytest.raises(DataError, match=rf"p\.tsv, line 2: {count}"):
        survey(open_corpus([str(path)]))


@pytest.mark.parametrize(("zh", "en", "longer"), [(3, 2, "a.zh, line 3"), (1, 3, "b.en, line 2")])
def test_files_of_different_lengths_are_named_where_one_ends(
    tmp_path: Path, zh: int, en: int, longer: str
) -> None:
    one, two = put(tmp_path / "a.zh", ZH[:zh]), put(tmp_path / "b.en", EN[:en])
    with pytest.raises(DataError, match=f"{longer}: .* ends before it"):
        survey(parallel(one, two))


@pytest.mark.parametrize("content", [[], ["", "  "]])
def test_a_corpus_without_text_is_refused(tmp_path: Path, content: list[str]) -> None:
    with pytest.raises(DataError, match=r"none\.txt: there is no text in it"):
        survey(open_corpus([str(put(tmp_path / "none.txt", content))]))
    with pytest.raises(DataError, match="there is no text in it"):
        survey(open_corpus([str(put(tmp_path / "none.tsv", content))]))


@pytest.mark.parametrize(("columns", "which"), [((ZH, ZH), "both sides"), ((EN, EN), "neither")])
def test_pairs_without_exactly_one_chinese_side_are_refused(
    tmp_path: Path, columns: tuple[list[str], list[str]], which: str
) -> None:
    one, two = put(tmp_path / "a.txt", columns[0]), put(tmp_path / "b.txt", columns[1])
    with pytest.raises(DataError, match=f"{which} .*Chinese"):
        survey(parallel(one, two))


def test_missing_files_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nothing: there is no such file, nor the pair nothing\.zh"
    ):
        open_corpus([str(tmp_path / "nothing")])
    here = put(tmp_path / "a.zh", ZH)
    with pytest.raises(DataError, match=r"b\.en: there is no such file"):
        parallel(here, tmp_path / "b.en")


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt.gz"
    plain.write_text("no archive")
    with pytest.raises(DataError, match=r"plain\.txt\.gz, after line 0: cannot be read"):
        survey(open_corpus([str(plain)]))
    cut = put(tmp_path / "cut.txt.gz", [f"{text} {k}" for k in range(3000) for text in EN])
    cut.write_bytes(cut.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"cut\.txt\.gz, after line [1-9]\d*: cannot be read"):
        survey(open_corpus([str(cut)]))


# datasets as the hub has them


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` takes for a dataset, with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_a_dataset_of_translations_is_read_as_pairs(hub: Path) -> None:
    # the form of News Commentary on the hub
    from datasets import Dataset, Features, Translation

    rows = [{"en": e, "zh": z} for z, e in zip(ZH, EN, strict=True)]
    features = Features({"translation": Translation(languages=["en", "zh"])})
    made = Dataset.from_dict({"translation": rows}, features=features)
    made.to_parquet(hub / "train.parquet")
    found = open_corpus([f"hub:{hub}"])
    assert list(found.read()) == list(zip(["zh", "en"] * 3, PAIRS, strict=True))


def test_a_configuration_of_a_dataset_is_chosen_by_name(hub: Path) -> None:
    from datasets import Dataset

    for name, rows in (("first", ZH), ("second", EN)):
        Dataset.from_dict({"text": rows}).to_parquet(hub / f"{name}.parquet")
    entries = [
        f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("first", "second")
    ]
    (hub / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")
    assert texts(open_corpus([f"hub:{hub}:second"])) == EN
    assert texts(open_corpus([f"hub:{hub}:first"])) == ZH
    with pytest.raises(DataError, match="the dataset cannot be loaded"):
        open_corpus([f"hub:{hub}:third"])


def test_datasets_of_two_columns_and_of_texts_are_read(hub: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"zh": ZH, "en": EN}).to_parquet(hub / "train.parquet")
    assert texts(open_corpus([f"hub:{hub}"])) == PAIRS
    plain = hub.parent / "plain"
    plain.mkdir()
    Dataset.from_dict({"text": [*EN, ""]}).to_parquet(plain / "train.parquet")
    assert list(open_corpus([f"hub:{plain}"]).read()) == [("en", text) for text in EN]


def test_a_dataset_without_text_columns_is_refused(hub: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"label": [1, 2]}).to_parquet(hub / "train.parquet")
    with pytest.raises(DataError, match=r"neither columns zh and en.*there is label"):
        open_corpus([f"hub:{hub}"])


def test_a_dataset_that_cannot_be_had_is_one_sentence(hub: Path) -> None:
    with pytest.raises(DataError, match=r"hub:nobody/nothing-here: the dataset cannot be loaded"):
        open_corpus(["hub:nobody/nothing-here"])


# the questions of benchmarks


def test_questions_are_passage_question_and_options_of_every_item() -> None:
    prepared = prepare("sample-agieval", Selection())
    found = list(questions([prepared]).read())
    items = [item for subject in prepared.subjects for item in prepared.items[subject]]
    assert len(found) == len(items)
    for (language, text), item in zip(found, items, strict=True):
        assert text.startswith(item.passage or item.question)
        assert all(option in text for option in item.options)
        assert language == prepared.task.subjects[item.subject].language


@pytest.mark.real
def test_english_papers_of_a_chinese_exam_are_english_and_formulas_are_not(
    real_data: Path,
) -> None:
    gaokao = prepare("gaokao", Selection(data=real_data))
    english = [s for s in gaokao.subjects if "English" in s]
    sides = survey(questions([gaokao]))
    assert set(sides) == {"zh", "en"}
    assert sides["en"].texts == sum(len(gaokao.items[s]) for s in english)
    ceval = prepare("ceval", Selection(split="test", data=real_data))
    assert {k: s.texts for k, s in survey(questions([ceval])).items()} == {"zh": 12342}
