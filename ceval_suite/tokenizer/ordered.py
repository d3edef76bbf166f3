"""One extension from a user's order to the directory on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ceval_suite.backends.lexicon import open_tokenizer
from ceval_suite.errors import ConfigError, DataError, unknown
from ceval_suite.prepare import Selection, prepare
from ceval_suite.tokenizer import pieces, training
from ceval_suite.tokenizer.extend import Base, Extension, Measured, extend, measure, open_base
from ceval_suite.tokenizer.pieces import Listing
from ceval_suite.tokenizer.sentence_pieces import Scores
from ceval_suite.tokenizer.written import free, write

FOUND = ("mmlu", "cmmlu", "ceval")
"""Benchmarks whose questions are counted where their files are found."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be added to which tokenizer, and what to measure; exactly one source of pieces."""

    base: str
    out: Path
    pieces: Path | None = None
    sentencepiece: Path | None = None
    train: Sequence[Path] = ()
    size: int | None = None
    only_han: bool = False
    coverage: float = 0.9995
    scores: str = "below"
    add_merges: bool = False
    skip_bad: bool = False
    measure: Sequence[Path] = ()
    tasks: Sequence[str] | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Done:
    """What came of an order."""

    extension: Extension
    listing: Listing
    measured: tuple[Measured, ...]
    about: dict[str, Any]


def carry_out(order: Order, say: Callable[[str], None]) -> Done:
    """Read the pieces, extend, measure, write.

    Raises:
        ConfigError: no source of pieces or more than one, or unknown scores.
        DataError: bad pieces, an unreadable corpus, or no such benchmark.
        ModelError: a base that cannot be extended, or a directory that cannot be written.
    """
    _check(order)
    free(order.out)
    lexicon = open_tokenizer(order.base)
    base = open_base(lexicon)
    listing = _listing(order, base)
    if not order.skip_bad:
        refuse_as = "id" if order.sentencepiece else "line"
        pieces.refuse(listing.source, listing.bad, refuse_as)
    if not listing.pieces:
        raise DataError(f"{listing.source}: no piece that {order.base} lacks; nothing to add.")
    say(f"{len(listing.pieces)} new pieces for {order.base}")
    texts = _texts(order)
    flat = [text for some in texts.values() for text in some]
    scores = cast("Scores", order.scores)
    needs_merges = order.add_merges or (bool(order.train) and base.byte_level)
    made = extend(lexicon, listing.pieces, scores=scores, add_merges=needs_merges, texts=flat)
    both = [made]
    if made.scores is not None and texts:
        other: Scores = "zero" if scores == "below" else "below"
        both.append(extend(lexicon, listing.pieces, scores=other, add_merges=needs_merges))
    measured = tuple(measure(name, some, both) for name, some in texts.items())
    about = write(made, order.out, listing, measured)
    return Done(made, listing, measured, about)


def _check(order: Order) -> None:
    given = sum(map(bool, (order.pieces, order.sentencepiece, order.train)))
    if given != 1:
        raise ConfigError(
            f"{'no' if not given else 'more than one'} source of pieces: give one of --pieces, "
            "--sentencepiece and --train."
        )
    if bool(order.train) != bool(order.size):
        raise ConfigError("--train and --size belong together: text, and how many pieces of it.")
    if order.scores not in get_args(Scores):
        raise ConfigError(unknown("score rule", order.scores, get_args(Scores)))


def _listing(order: Order, base: Base) -> Listing:
    if order.pieces is not None:
        return pieces.of_jsonl(order.pieces, base.vocabulary, base.spell)
    if order.sentencepiece is not None:
        return pieces.of_model(order.sentencepiece, base.vocabulary, base.spell)
    assert order.size is not None
    return training.train(
        order.train,
        order.size,
        base.vocabulary,
        core=base.lexicon.core if base.byte_level else None,
        coverage=order.coverage,
        only_han=order.only_han,
    )


def _texts(order: Order) -> dict[str, list[str]]:
    """Texts to measure: lines of files, questions of benchmarks; none is read twice."""
    texts = {str(p): list(training.lines(training.files([p]))) for p in order.measure}
    for name in FOUND if order.tasks is None else order.tasks:
        try:
            task = prepare(name, Selection(shots=0, data=order.data))
        except DataError:
            if order.tasks is not None or order.data is not None:
                raise
            continue
        items = [item for subject in task.subjects for item in task.items[subject]]
        texts[f"{name} questions"] = [item.question for item in items]
    return {name: some for name, some in texts.items() if some}
