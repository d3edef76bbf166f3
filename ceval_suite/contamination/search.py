"""Conducts a search: pieces to workers, matches back in order, the best of each item kept."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ceval_suite.contamination import files, index
from ceval_suite.contamination.answers import Answer, answer
from ceval_suite.contamination.files import Piece, Source
from ceval_suite.contamination.normal import Array, as_text, batch, folded
from ceval_suite.contamination.reading import Document, Read, read
from ceval_suite.contamination.scan import ENOUGH, Scanner
from ceval_suite.contamination.targets import SEED, Target
from ceval_suite.contamination.verify import KINDS, Rules, Scores, Verifier
from ceval_suite.errors import DataError

PLACES = 5
"""Places of an item that are kept; further ones are counted."""

BATCH = 2**18
"""Characters that are looked through at once: what is made of them fits a processor's cache."""

NAMED = 5
"""Broken lines that are named; further ones are counted."""

CONTEXT = 120
"""Characters shown on either side of a passage."""

PASSAGE = 6000
"""Characters of a passage that are kept, at most."""

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """Where in the corpus an item was found, and how well; `start` to `end` of `passage` matched.

    `row` counts lines of text or JSON, rows of Parquet and elements of a JSON array from 1.
    """

    file: str
    row: int
    scores: Scores
    answer: Answer
    passage: str
    start: int
    end: int

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts the surest first, then those with the answer, then as they stand in the corpus."""
        kind = list(KINDS).index(self.scores.kind)
        return kind, not self.answer.found, -round(self.scores.similarity, 6)


@dataclass
class Found:
    """An item that is in the corpus: its best places, and how many there are of each kind."""

    target: Target
    places: list[Place] = field(default_factory=list[Place])
    kinds: Counter[str] = field(default_factory=Counter[str])
    answered: bool = False

    def add(self, place: Place) -> None:
        """Count a place, and keep it where it is one of the best."""
        self.kinds[place.scores.kind] += 1
        self.answered = self.answered or place.answer.found
        self.places = sorted([*self.places, place], key=lambda p: p.rank)[:PLACES]


@dataclass
class Outcome:
    """All that a search found."""

    targets: list[Target]
    rules: Rules
    fields: tuple[str, ...]
    found: dict[int, Found] = field(default_factory=dict[int, Found])
    files: list[str] = field(default_factory=list[str])
    documents: int = 0
    bytes: int = 0
    broken: int = 0
    named: list[str] = field(default_factory=list[str])


@dataclass
class _Hit:
    target: int
    row: int
    scores: Scores
    answer: Answer
    passage: str
    start: int
    end: int


class Searcher:
    """What a worker does with a piece."""

    def __init__(self, folder: Path, rules: Rules, fields: Sequence[str]) -> None:
        """`folder` is what `index.save` wrote."""
        self._targets, lengths, indexes = index.load(folder)
        self._scanner = Scanner(lengths, indexes, min(ENOUGH, rules.threshold / 2))
        self._verifier = Verifier(self._targets, rules)
        self._fields = fields
        self._places = lru_cache(4)(_places)  # several items are often found in one document

    def search(self, piece: Piece) -> tuple[list[_Hit], Read]:
        """Every place of every target in a piece."""
        found = read(piece, self._fields)
        hits: list[_Hit] = []
        for documents in _batches(found.documents):
            codes, starts = batch([document.text for document in documents])
            for one in self._scanner.candidates(codes, starts):
                begin = int(starts[one.document])
                end = (
                    int(starts[one.document + 1]) if one.document + 1 < len(starts) else len(codes)
                )
                text = as_text(codes[begin : end - 1])
                scores = self._verifier.scores(one.target, text, one.low, one.high)
                if scores is not None:
                    hits += self._hit(one.target, scores, documents[one.document])
        found.documents = []  # nothing of the corpus but its matches goes back
        return sorted(hits, key=lambda hit: (hit.row, hit.target)), found

    def _hit(self, number: int, scores: Scores, document: Document) -> Iterator[_Hit]:
        at = self._places(document.text)
        begin, end = int(at[scores.low]), int(at[scores.high - 1]) + 1
        # what begins in the shared end is found by the next part, what began before by the last
        if begin >= document.owned or (document.cut and scores.low == 0):
            return
        text = document.text
        low = max(0, begin - CONTEXT)
        passage = text[low : min(end, begin + PASSAGE) + CONTEXT]
        row = document.row + (text.count("\n", 0, begin) if document.lines else 0)
        found = answer(self._targets[number], text, end)
        yield _Hit(number, row, scores, found, passage, begin - low, end - low)


def _places(text: str) -> Array:
    return folded(text).at


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents together that are folded the same way, in order within each."""
    waiting: dict[bool, list[Document]] = {True: [], False: []}
    sizes = {True: 0, False: 0}
    for document in documents:
        plain = document.text.isascii()
        waiting[plain].append(document)
        sizes[plain] += len(document.text)
        if sizes[plain] >= BATCH:
            yield waiting[plain]
            waiting[plain], sizes[plain] = [], 0
    yield from (group for group in waiting.values() if group)


_worker: list[Searcher] = []


def _begin(folder: str, rules: Rules, fields: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _worker[:] = [Searcher(Path(folder), rules, fields)]
    gc.freeze()  # what is here now stays; no need to look through it again and again


def _search(piece: Piece) -> tuple[list[_Hit], Read]:
    return _worker[0].search(piece)


def search(
    targets: list[Target],
    corpus: Sequence[Source],
    rules: Rules,
    *,
    fields: Sequence[str] = (),
    workers: int = 1,
    step: Step = lambda _done, _total: None,
) -> Outcome:
    """Look for all targets in all files; the same whatever the number of workers.

    Raises:
        DataError: nothing in the corpus could be read.
    """
    outcome = Outcome(targets, rules, tuple(fields))
    outcome.files = [str(source.path) for source in corpus]
    outcome.bytes = sum(source.size for source in corpus)
    indexes = [found for name in SEED if (found := index.build(targets, name)) is not None]
    with tempfile.TemporaryDirectory(prefix="ceval-suite-") as folder:
        index.save(Path(folder), targets, indexes)
        del indexes
        results = _results(Path(folder), corpus, rules, fields, workers)
        _collected(outcome, corpus, results, step)
    if not outcome.documents:
        why = outcome.named[0] if outcome.named else "the files are empty"
        raise DataError(f"nothing in the corpus could be read: {why}")
    return outcome


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Hold an interrupt back; a process that is started meanwhile never sees one."""
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    # other threads (a library's) take a signal that is blocked in this one
    usual = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if here else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if here:
            signal.signal(signal.SIGINT, usual)
            if came:
                signal.raise_signal(signal.SIGINT)


_Result = tuple[Piece | DataError, tuple[list[_Hit], Read] | None]


def _results(
    folder: Path, corpus: Sequence[Source], rules: Rules, fields: Sequence[str], workers: int
) -> Iterator[_Result]:
    if workers == 1:
        searcher = Searcher(folder, rules, fields)
        for piece in files.pieces(corpus):
            yield piece, None if isinstance(piece, DataError) else searcher.search(piece)
        return
    # spawned, not forked: the parent may have threads; what they share is mapped from files
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, context, initializer=_begin, initargs=(str(folder), rules, tuple(fields))
    )
    waiting: deque[tuple[Piece | DataError, Future[tuple[list[_Hit], Read]] | None]] = deque()
    try:
        for piece in files.pieces(corpus):
            with _uninterrupted():  # the first one starts the workers
                future = None if isinstance(piece, DataError) else pool.submit(_search, piece)
            waiting.append((piece, future))
            if len(waiting) > 2 * workers:
                piece, future = waiting.popleft()
                yield piece, future.result() if future is not None else None
        while waiting:
            piece, future = waiting.popleft()
            yield piece, future.result() if future is not None else None
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(
    outcome: Outcome, corpus: Sequence[Source], results: Iterator[_Result], step: Step
) -> None:
    before = [0, *accumulate(source.size for source in corpus)]
    rows: Counter[int] = Counter()
    for piece, result in results:
        if isinstance(piece, DataError) or result is None:
            outcome.broken += 1
            outcome.named += [str(piece)] if len(outcome.named) < NAMED else []
            continue
        hits, found = result
        base = rows[piece.source]
        for hit in hits:
            known = outcome.found.setdefault(hit.target, Found(outcome.targets[hit.target]))
            values = {k: v for k, v in vars(hit).items() if k not in ("target", "row")}
            known.add(Place(file=piece.path, row=base + hit.row, **values))
        outcome.documents += found.count
        outcome.broken += len(found.broken)
        for row, why in found.broken[: NAMED - len(outcome.named)]:
            outcome.named.append(f"{piece.path}, line {base + row}: {why}")
        rows[piece.source] += found.rows
        step(before[piece.source] + piece.advance, outcome.bytes)
