"""Pieces are checked before anything is made of them, and every bad one is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ceval_suite.errors import DataError, ModelError
from ceval_suite.tokenizer import pieces, training


def listed(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x.encode() if isinstance(x, str) else x for x in lines) + b"\n")
    return path


def row(piece: object) -> str:
    return json.dumps({"piece": piece})


def test_every_bad_line_is_named_and_the_good_ones_are_kept_in_order(tmp_path: Path) -> None:
    file = listed(
        tmp_path / "p.jsonl",
        row("你好"),
        row("two words"),
        row("tab\there"),
        row("你好"),
        row("known"),
        row(""),
        '{"piece": "broken',
        '{"text": "x"}',
        "[1]",
        row(7),
        b'{"piece": "\xff"}',
        row("zero\u200bwidth"),
        row("full\u3000width"),
        row("▁▁"),
        '{"piece": "\\ud800"}',
        "",
        row("▁人工"),
    )
    found = pieces.of_jsonl(file, {"known"})
    assert found.pieces == ("你好", "▁人工")
    assert [one.line for one in found.bad] == list(range(2, 16))
    why = {one.line: one.why for one in found.bad}
    assert "write ▁" in why[2]
    assert "U+0009" in why[3]
    assert why[4] == "'你好' is on line 1 already"
    assert "vocabulary already" in why[5]
    assert "empty" in why[6]
    assert why[7] == "not JSON"
    assert "'piece' is missing" in why[8]
    assert "object" in why[9]
    assert "not a text" in why[10]
    assert why[11] == "not UTF-8"
    assert "U+200B" in why[12]
    assert "U+3000" in why[13]
    assert "blanks alone" in why[14]
    assert "U+D800" in why[15]


def test_the_refusal_lists_all_bad_lines_and_says_how_to_go_on(tmp_path: Path) -> None:
    bad = [pieces.Bad(k, "the piece is empty") for k in range(1, 1501)]
    with pytest.raises(DataError) as caught:
        pieces.refuse("p.jsonl", bad)
    message = str(caught.value)
    assert message.startswith("p.jsonl: 1500 lines are no pieces;")
    assert "--skip-bad" in message
    assert message.count("\n  line ") == 1500
    pieces.refuse("p.jsonl", [])


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_piece(tmp_path: Path) -> None:
    file = listed(tmp_path / "p.jsonl", b"\xef\xbb\xbf" + row("甲").encode() + b"\r", row("乙"))
    found = pieces.of_jsonl(file, set())
    assert (found.pieces, found.bad) == (("甲", "乙"), ())


def test_a_deeply_nested_line_is_one_bad_line(tmp_path: Path) -> None:
    file = listed(tmp_path / "p.jsonl", "[" * 200_000, row("甲"))
    found = pieces.of_jsonl(file, set())
    assert found.pieces == ("甲",)
    assert [one.line for one in found.bad] == [1]


def test_a_byte_level_vocabulary_is_searched_in_its_own_spelling(tmp_path: Path) -> None:
    file = listed(tmp_path / "p.jsonl", row("▁the"), row("é"), row("▁你"))
    found = pieces.of_jsonl(file, {"Ġthe", "Ã©"}, training.speller(True))
    assert found.pieces == ("▁你",)
    assert [one.line for one in found.bad] == [1, 2]


def test_a_sentencepiece_model_gives_what_the_base_lacks_in_the_order_of_its_ids(
    tmp_path: Path,
) -> None:
    import sentencepiece
    from sentencepiece import SentencePieceProcessor

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["今天天气很好", "天气很好吗", "the cat sat on the mat"] * 20),
        model_writer=made,
        model_type="bpe",
        vocab_size=45,
        minloglevel=2,
    )
    file = tmp_path / "zh.model"
    file.write_bytes(made.getvalue())
    sp = SentencePieceProcessor(model_file=str(file))
    every = [sp.id_to_piece(i) for i in range(3, sp.get_piece_size())]
    known = set(every[::3])
    found = pieces.of_model(file, known)
    assert list(found.pieces) == [p for p in every if p not in known and p.strip("▁")]
    assert found.present == len(known)


def test_what_is_no_sentencepiece_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for content in (b"", b"not a model", row("x").encode()):
        file = tmp_path / "x.model"
        file.write_bytes(content)
        with pytest.raises(ModelError, match="no SentencePiece model"):
            pieces.of_model(file, set())
    with pytest.raises(DataError, match="cannot be read"):
        pieces.of_jsonl(tmp_path / "absent.jsonl", set())


def test_an_unreadable_corpus_is_named_with_its_line(tmp_path: Path) -> None:
    import gzip

    file = listed(tmp_path / "a.txt", "one", "two", b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.txt, line 3: not UTF-8"):
        list(training.lines([file]))
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress("甲\n乙\n".encode()))
    assert list(training.lines([packed])) == ["甲", "乙"]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"b\.txt\.gz: cannot be read after line"):
        list(training.lines([packed]))
    with pytest.raises(DataError, match="no such file"):
        training.files([tmp_path / "absent.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text files"):
        training.files([tmp_path / "empty"])


def test_a_folder_stands_for_the_text_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ["in/b.txt", "a.csv", "in/c.jsonl.gz", "model.bin"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = [p.relative_to(tmp_path).as_posix() for p in training.files([tmp_path])]
    assert found == ["a.csv", "in/b.txt", "in/c.jsonl.gz"]
