"""Tokenizers side by side on the same texts and prompts; no model is needed."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ceval_suite.backends.lexicon import Lexicon, open_tokenizer
from ceval_suite.backends.tokens import Encoder
from ceval_suite.errors import ConfigError, PromptError
from ceval_suite.tokenizer.corpus import Corpus, Side, batches, survey
from ceval_suite.tokenizer.encoding import Meter, parallel, threads
from ceval_suite.tokenizer.prompts import Bench, Cost

BATCH = 4096
"""Texts encoded at a time."""

REPEATS, REPEAT_SECONDS = 3, 5.0
"""Speeds are medians of as many passes over the sample as this allows, of one at least."""

Step = Callable[[str, int, int | None], None]
"""Is told of some work its name, the bytes done and all bytes."""


@dataclass(frozen=True)
class Measured:
    """One tokenizer on one language's texts.

    `seconds` is the time of encoding all of them with all threads: the median of the repeats where
    the sample is the whole, else of one pass. `single` and `multi` are bytes of text per second
    with one thread and with all, on the sample.
    """

    tokens: int
    seconds: float
    single: float
    multi: float


@dataclass
class Contender:
    """One tokenizer of the comparison and what was found; `failed` says why a task has no cost."""

    label: str
    reference: str
    lexicon: Lexicon = field(repr=False)
    measured: dict[str, Measured] = field(default_factory=dict[str, Measured])
    costs: dict[str, Cost] = field(default_factory=dict[str, Cost])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    direct: bool = True


@dataclass(frozen=True)
class Comparison:
    """What there is to print; `tasks` says of each benchmark how its prompts were made."""

    corpus: str
    sides: dict[str, Side]
    contenders: tuple[Contender, ...]
    tasks: dict[str, str]
    contexts: tuple[int, ...]
    threads: int


_NAMED = re.compile(r"([^=/:@]+)=(?!=)(.+)")


def labels(references: Sequence[str]) -> list[tuple[str, str]]:
    """A label and a reference for each `NAME=REFERENCE` or bare reference; labels differ.

    A bare reference is named by as much of its end as tells it apart from the others.

    Raises:
        ConfigError: a name or reference given twice.
    """
    pairs = [_named(reference) for reference in references]
    parts = [PurePosixPath(_split(reference)[0]).parts or (".",) for _, reference in pairs]
    # a file called tokenizer.model says nothing by itself
    sizes = [2 if p and p[-1].startswith("tokenizer.") else 1 for p in parts]
    while True:
        out = [
            name or _end(reference, part, size)
            for (name, reference), part, size in zip(pairs, parts, sizes, strict=True)
        ]
        twice = {label for label in out if out.count(label) > 1}
        if not twice:
            return [(label, reference) for label, (_, reference) in zip(out, pairs, strict=True)]
        grow = [
            k
            for k, label in enumerate(out)
            if label in twice and not pairs[k][0] and sizes[k] < len(parts[k])
        ]
        if not grow:
            raise ConfigError(
                f"'{min(twice)}' stands for two tokenizers of this comparison; name one of them, "
                "as in NAME=REFERENCE."
            )
        for k in grow:
            sizes[k] += 1


def _named(reference: str) -> tuple[str, str]:
    found = _NAMED.fullmatch(reference)
    if found is None or Path(reference).expanduser().exists():
        return "", reference
    return found[1], found[2]


def _split(reference: str) -> tuple[str, str]:
    """A reference and, with its `@`, the pattern of a rank file behind it."""
    bare, at, pattern = reference.rpartition("@")
    return (bare, at + pattern) if at and "/" not in pattern else (reference, "")


def _end(reference: str, parts: Sequence[str], size: int) -> str:
    return "/".join(parts[-size:]).replace("//", "/") + _split(reference)[1]


def open_all(references: Sequence[str], *, trust_remote_code: bool = False) -> list[Contender]:
    """Every tokenizer, opened; errors come before any work.

    Raises:
        ConfigError: two with one name.
        ModelError: one that cannot be opened.
    """
    return [
        Contender(label, reference, open_tokenizer(reference, trust_remote_code=trust_remote_code))
        for label, reference in labels(references)
    ]


def compare(
    contenders: Sequence[Contender],
    corpus: Corpus,
    benches: Sequence[Bench],
    contexts: Sequence[int],
    step: Step,
) -> Comparison:
    """Measure all of them on a corpus and on the prompts of some benchmarks.

    Raises:
        DataError: the corpus cannot be read.
    """
    count = threads()
    sides = survey(corpus, lambda size: step("reading", size, None))
    _encode(contenders, corpus, sides, count, step)
    for bench in benches:
        _prompts(contenders, bench, contexts, step)
    return Comparison(
        corpus=corpus.name,
        sides=sides,
        contenders=tuple(contenders),
        tasks={bench.prepared.task.name: bench.title for bench in benches},
        contexts=tuple(contexts),
        threads=count,
    )


def _encode(
    contenders: Sequence[Contender], corpus: Corpus, sides: dict[str, Side], count: int, step: Step
) -> None:
    meters = [Meter(contender.lexicon) for contender in contenders]
    for contender, meter in zip(contenders, meters, strict=True):
        for side in sides.values():
            meter.prove(side.sample)
        contender.direct = meter.direct
    tokens = {(k, name): 0 for k in range(len(meters)) for name in sides}
    seconds = dict.fromkeys(tokens, 0.0)
    done, whole = 0, len(meters) * sum(side.bytes for side in sides.values())
    for language, texts in batches(corpus.read(), BATCH):
        size = sum(len(text.encode()) for text in texts)
        for k, meter in enumerate(meters):
            start = time.perf_counter()
            tokens[k, language] += meter.count(texts, count)
            seconds[k, language] += time.perf_counter() - start
            done += size
            step("encoding", done, whole)
    sizes = {name: sum(len(text.encode()) for text in s.sample) for name, s in sides.items()}
    done, whole = 0, len(meters) * sum(sizes.values())
    for k, (contender, meter) in enumerate(zip(contenders, meters, strict=True)):
        for language, side in sides.items():
            size = sizes[language]
            single, multi = (_median(meter, side.sample, n) for n in (1, count))
            taken = multi if len(side.sample) == side.texts else seconds[k, language]
            contender.measured[language] = Measured(
                tokens[k, language], taken, size / single, size / multi
            )
            done += size
            step("speed", done, whole)


def _median(meter: Meter, texts: Sequence[str], count: int) -> float:
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < REPEAT_SECONDS:
        meter.forget()
        start = time.perf_counter()
        meter.count(texts, count)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _prompts(
    contenders: Sequence[Contender], bench: Bench, contexts: Sequence[int], step: Step
) -> None:
    name, whole = bench.prepared.task.name, bench.bytes * len(contenders)
    done = 0

    def more(size: int) -> None:
        nonlocal done
        done += size
        step(f"prompts of {name}", done, whole)

    for contender in contenders:
        try:
            with parallel(True):
                cost = bench.cost(Encoder(contender.lexicon.tokenizer), contexts, more)
        except PromptError as error:
            contender.failed[name] = str(error)
            continue
        if cost is not None:
            contender.costs[name] = cost
