"""Real tokenizers grow: the published pair as published, a GGUF file as a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import _missing
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from ceval_suite.backends.lexicon import open_tokenizer, same_ids
from ceval_suite.tokenizer import pieces
from ceval_suite.tokenizer.extend import extend, measure, open_base
from ceval_suite.tokenizer.pieces import Listing
from ceval_suite.tokenizer.written import write


def parsed(file: Path) -> Any:
    """The pieces of a model file."""
    return pieces.read_proto(file.read_bytes(), file).pieces


@pytest.fixture(scope="module")
def real_tokenizers(real_data: Path) -> Path:
    """LLaMA's tokenizer and Chinese-LLaMA's pieces, beside the benchmark files."""
    folder = real_data.parent / "tokenizers"
    return folder if folder.is_dir() else _missing(f"{folder.name} not found beside {real_data}")


@pytest.mark.real
def test_llama_and_the_chinese_pieces_are_as_published(
    real_tokenizers: Path, real_data: Path, tmp_path: Path
) -> None:
    from ceval_suite.catalog import load_task
    from ceval_suite.data import Reader
    from ceval_suite.files import find_files

    base = open_tokenizer(str(real_tokenizers / "llama"))
    known = open_base(base)
    source = real_tokenizers / "chinese-llama" / "chinese_sp.model"
    found = pieces.of_model(source, known.vocabulary, known.spell)
    below, zero = extend(base, found.pieces), extend(base, found.pieces, scores="zero")
    assert (below.size, zero.size) == (49953, 49953)
    assert (len(below.lost), len(zero.lost)) == (344, 345)
    assert {"西班牙", "国务院", "维生素"} <= set(zero.lost)
    for scores in ("below", "zero"):
        assert not extend(base, found.pieces, scores=scores, add_merges=True).lost  # type: ignore[arg-type]
    out = tmp_path / "new"
    write(below, out, found)
    old = parsed(real_tokenizers / "llama" / "tokenizer.model")
    new = parsed(out / "tokenizer.model")
    assert [p.SerializeToString() for p in new[:32000]] == [p.SerializeToString() for p in old]

    def texts(name: str, split: str) -> list[Any]:
        task = load_task(name)
        reader = Reader(task, find_files(task, real_data))
        return [item for subject in task.subjects for item in reader.items(subject, split)]

    chinese = [
        "\n".join([item.question, *item.choices, item.explanation])
        for name in ("cmmlu", "ceval")
        for split in load_task(name).source.files
        for item in texts(name, split)
    ]
    assert len(chinese) == 335 + 11582 + 260 + 1346 + 12342
    want = SentencePieceProcessor(model_file=str(out / "tokenizer.model")).encode(chinese)
    assert open_tokenizer(str(out)).encode(chinese) == want
    assert (
        AutoTokenizer.from_pretrained(out)(chinese, add_special_tokens=False)["input_ids"] == want
    )
    english = [item.question for item in texts("mmlu", "test")]
    counted = measure("mmlu", english, [below, zero])
    assert counted.base_tokens == 930_226
    assert [(cut.tokens, cut.changed) for cut in counted.cuts] == [(904_425, 4693), (912_438, 6541)]


@pytest.mark.smollm2
def test_a_gguf_base_becomes_a_directory_that_plain_transformers_opens(
    smollm2: Path, tmp_path: Path, sample_texts: list[str]
) -> None:
    prose = [line for text in sample_texts for line in text.splitlines()]
    base = open_tokenizer(str(smollm2))
    wanted = ["人工智能", "下列", "你好"]
    made = extend(base, wanted, add_merges=True)
    out = tmp_path / "new"
    write(made, out, Listing("test", "0" * 64, ()))
    same_ids(base, open_tokenizer(str(out)))
    assert AutoTokenizer.from_pretrained(out)(prose)["input_ids"] == made.encode(prose)
    assert AutoTokenizer.from_pretrained(out).chat_template == base.tokenizer.chat_template
    english = [line for line in prose if line.isascii()]
    assert made.encode(english) == base.encode(english)
