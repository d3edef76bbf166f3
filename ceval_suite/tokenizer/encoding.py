"""How many tokens texts make, counted as fast as the tokenizer's own library can.

A transformers tokenizer spends most of its time on what a count does not need. Here texts go to the
library below it (tokenizers' batches, SentencePiece's threads), after a proof on real texts that
this gives the same ids; a tokenizer that fails it, or has no such library, is asked itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from ceval_suite.backends.lexicon import Lexicon

Ids = list[list[int]]

PROOF = 256
"""Texts of each language that the fast way is proved on, spread over the sample."""

_SWITCH = "TOKENIZERS_PARALLELISM"
_THREADS = "RAYON_NUM_THREADS"


def threads() -> int:
    """Threads that encoding may use: $RAYON_NUM_THREADS, or as many as this process has cores."""
    named = os.environ.get(_THREADS, "")
    if named.isdigit() and int(named):
        return int(named)
    own: Any = getattr(os, "sched_getaffinity", None)  # not on every system
    found = len(own(0)) if own else os.cpu_count() or 1
    # the library reads it when it starts its threads, so that what is printed is what runs
    os.environ[_THREADS] = str(found)
    return found


@contextmanager
def parallel(on: bool) -> Generator[None]:
    """Let the tokenizers library use its threads, or not."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "true" if on else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


class Meter:
    """Counts the tokens of texts, without start and end tokens."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._fast: Callable[[Sequence[str], int], Ids] | None = None
        self._core: Any = None
        if lexicon.core is not None:
            self._core = lexicon.core
            # a tokenizer.json may say to cut or fill texts, which a transformers tokenizer ignores
            self._core.no_truncation()
            self._core.no_padding()
            self._fast = self._by_core
        elif lexicon.model is not None and getattr(lexicon.tokenizer, "vocab_file", None):
            self._processor = _processor(str(lexicon.tokenizer.vocab_file))
            self._written = _written(lexicon.tokenizer)
            self._fast = self._by_processor

    @property
    def direct(self) -> bool:
        """Whether texts go to the library itself."""
        return self._fast is not None

    def prove(self, texts: Sequence[str]) -> None:
        """Give the fast way up unless some of these texts get the tokenizer's own ids by it."""
        some = list(texts[:: max(1, len(texts) // PROOF)][:PROOF])
        if self._fast is not None and self._fast(some, 1) != self.lexicon.encode(some):
            self._fast = None

    def ids(self, texts: Sequence[str], threads: int = 1) -> Ids:
        """Token ids of each text."""
        if self._fast is None:
            return self.lexicon.encode(texts)
        return self._fast(texts, threads)

    def count(self, texts: Sequence[str], threads: int = 1) -> int:
        """Tokens of all texts together."""
        if self._core is not None and self._fast is not None:
            # the ids stay where they are: to make Python's numbers of them costs as much again
            return sum(map(len, self._encodings(texts, threads)))
        return sum(map(len, self.ids(texts, threads)))

    def forget(self) -> None:
        """Empty the library's cache of words, so that a repeat does the work again."""
        clear: Any = getattr(getattr(self._core, "model", None), "_clear_cache", None)
        if clear is not None:
            clear()

    def _encodings(self, texts: Sequence[str], threads: int) -> list[Any]:
        with parallel(threads > 1):
            return list(self._core.encode_batch_fast(list(texts), add_special_tokens=False))

    def _by_core(self, texts: Sequence[str], threads: int) -> Ids:
        return [list(found.ids) for found in self._encodings(texts, threads)]

    def _by_processor(self, texts: Sequence[str], threads: int) -> Ids:
        # the processor takes `<s>` for text where the tokenizer takes it for the token
        special = [k for k, text in enumerate(texts) if self._written.search(text)]
        found: Ids = self._processor.encode(list(texts), out_type=int, num_threads=threads)
        for k, ids in zip(special, self.lexicon.encode([texts[k] for k in special]), strict=True):
            found[k] = ids
        return found


def _processor(path: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=path)


def _written(tokenizer: Any) -> re.Pattern[str]:
    """What finds a special or added token written out in a text."""
    tokens = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    tokens |= {str(token) for token in tokenizer.all_special_tokens}
    names = sorted((re.escape(token) for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(names) or r"(?!)")
