"""`contamination` on a corpus with planted items: recall by kind, false positives, MB/s, memory.

`python tests/perf/contamination.py --lines 1000000` prints tables and decides nothing. The other
lines are sentences of the texts installed on the machine (documentation, licences, sources) and of
the benchmarks that are not searched for, in both languages, partly as they follow each other and
partly from anywhere.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import sysconfig
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

import planting

from ceval_suite.contamination import files, search, targets
from ceval_suite.contamination.search import Found, Outcome
from ceval_suite.contamination.verify import Rules
from ceval_suite.prepare import Selection, prepare
from ceval_suite.schema import Item

DATA = Path(os.environ.get("CEVAL_SUITE_DATA", "../shared/data"))
TEXTS = 24_000_000
"""Characters of documents that sentences are taken from."""


def items(tasks: str, data: Path) -> list[tuple[str, Item]]:
    """All items of tasks."""
    found = [prepare(name, Selection(data=data)) for name in tasks.split(",")]
    return [(p.task.name, i) for p in found for s in p.subjects for i in p.items[s]]


def documents() -> Iterator[str]:
    """Texts that are on any machine that runs this."""
    places = [
        *sorted(Path("/usr/share/common-licenses").glob("*")),
        *sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")),
        *sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.md")),
        *sorted(Path(sysconfig.get_paths()["purelib"]).rglob("METADATA")),
        *sorted(Path("/usr/share/doc").rglob("*.txt")),
    ]
    size = 0
    for place in places:
        try:
            text = place.read_text(encoding="utf-8")[: 2**18]
        except (OSError, UnicodeDecodeError):
            continue
        size += len(text)
        yield text
        if size > TEXTS:
            return


def pools(others: str, data: Path) -> list[list[str]]:
    """Sentences: Chinese and English ones of other benchmarks, and twice those of documents."""
    found = [item for _, item in items(others, data)]
    texts = [" ".join([i.passage, i.question, *i.choices, i.explanation]) for i in found]
    written = planting.sentences(documents())
    chinese = [t for t in texts if planting.chinese(t)]
    english = [t for t in texts if not planting.chinese(t)]
    return [planting.sentences(chinese), planting.sentences(english), written, written]


class Memory:
    """The memory of this process and its children along the corpus, twice a second.

    A page that several processes share counts once for each of them.
    """

    def __init__(self) -> None:
        self.most = [0.0] * 10
        self.share = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            tenth = min(9, int(10 * self.share))
            self.most[tenth] = max(self.most[tenth], total / 2**20)

    def step(self, done: int, total: int) -> None:
        """Note how far the search is."""
        self.share = done / total

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def processor_seconds() -> float:
    """Of this process and the children that ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def plainly(text: str) -> str:
    """Another way to fold a text, to judge what was found by."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def recall(outcome: Outcome, plants: list[planting.Plant]) -> list[str]:
    """Rows: planted, found, of those that the planted text can tell."""
    by_id = {found.target.id: found for found in outcome.found.values()}
    every = {target.id: target for target in outcome.targets}

    def hit(plant: planting.Plant) -> bool:
        found = by_id.get(plant.id)
        return found is not None and any(place.row == plant.line for place in found.places)

    def tells(plant: planting.Plant) -> bool:
        target = every[plant.id]
        return not target.reason and (target.basis == "question" or plant.options)

    rows: list[str] = []
    for kind in planting.KINDS:
        for language in ("zh", "en"):
            mine = [p for p in plants if p.kind == kind and every[p.id].language == language]
            told = [p for p in mine if tells(p)]
            found = sum(map(hit, told))
            answered = [p for p in mine if p.answered and hit(p)]
            right = sum(by_id[p.id].answered for p in answered)
            share = f"{100 * found / max(1, len(told)):.1f} %"
            rows.append(
                f"| {kind} | {language} | {len(mine)} | {sum(map(hit, mine))} "
                f"| {len(told)} | {found} | {share} | {right}/{len(answered)} |"
            )
    return rows


def unplanted(
    outcome: Outcome, plants: list[planting.Plant]
) -> tuple[list[Found], list[Found], list[Found]]:
    """Items found where they were not planted: other questions of a planted stem, duplicates of the
    text that stands there, and the rest."""
    lines = {plant.line: plant.id for plant in plants}
    planted = {plant.id for plant in plants}
    kin: list[Found] = []
    same: list[Found] = []
    rest: list[Found] = []
    for found in outcome.found.values():
        if found.target.id in planted:
            continue
        best = found.places[0]
        if all(place.row in lines for place in found.places):
            kin.append(found)
        elif plainly(found.target.shown) in plainly(best.passage):
            same.append(found)
        else:
            rest.append(found)
    return kin, same, rest


def main(
    lines: Annotated[int, typer.Option(help="Lines of the corpus.")] = 1_000_000,
    planted: Annotated[int, typer.Option(help="Items planted, a fifth of each kind.")] = 500,
    tasks: Annotated[str, typer.Option(help="Tasks searched for.")] = "mmlu,cmmlu,ceval",
    others: Annotated[str, typer.Option(help="Tasks whose sentences fill it.")] = "agieval,gaokao",
    seed: int = 1,
    workers: int = 2,
    data: Path = DATA,
    show: Annotated[int, typer.Option(help="Unplanted finds that are printed.")] = 20,
    corpus: Annotated[Path | None, typer.Option(help="Keep the corpus here.")] = None,
) -> None:
    """Plant, search, count."""
    chosen = items(tasks, data)
    with tempfile.TemporaryDirectory() as folder:
        path = corpus or Path(folder) / "corpus.jsonl"
        notes = path.with_suffix(".plants")
        if not notes.exists():
            some = random.Random(seed).sample([item for _, item in chosen], planted)
            made = planting.plant(path, some, pools(others, data), lines, seed)
            notes.write_text(json.dumps([vars(p) for p in made]), encoding="utf-8")
        plants = [planting.Plant(**p) for p in json.loads(notes.read_text(encoding="utf-8"))]
        size = path.stat().st_size / 1e6
        used, begun = processor_seconds(), time.perf_counter()
        found = targets.of_items(chosen)
        prepared = time.perf_counter()
        with Memory() as memory:
            outcome = search.search(
                found, files.sources([str(path)]), Rules(), workers=workers, step=memory.step
            )
        ended = time.perf_counter()
    print(
        f"\n{lines:,} lines, {size:.0f} MB, {len(found):,} items, seed {seed}, {workers} workers\n"
    )
    print("| change | text | planted | found | can be told | found of these | recall | answer |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    print("\n".join(recall(outcome, plants)))
    kin, same, rest = unplanted(outcome, plants)
    print(f"\nFound and not planted: {len(kin) + len(same) + len(rest)} of {len(found):,} items")
    print(f"- {len(kin)} in planted lines only: other questions with the planted one's wording")
    print(f"- {len(same)} stand in the other lines word for word (duplicates across benchmarks)")
    print(f"- {len(rest)} others; by eye duplicates with small changes, or false:")
    draw = random.Random(seed)
    for one in draw.sample(rest, min(show, len(rest))):
        place = one.places[0]
        print(
            f"  - {one.target.id} ({place.scores.kind}, similarity {place.scores.similarity:.2f})"
        )
        print(f"    item:   {one.target.shown[:160]!r}")
        print(f"    corpus: {place.passage[place.start : place.end][:160]!r}")
    seconds, processor = ended - begun, processor_seconds() - used
    print(
        f"\n{size / seconds:.1f} MB/s over {seconds:.1f} s, of which {prepared - begun:.1f} s for "
        f"the items; {processor:.1f} s of processor (all processes, items and index included), so "
        f"{2 * size / processor:.1f} MB/s on two free cores; load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    tenths = " ".join(f"{most:.0f}" for most in memory.most)
    print(f"MiB of all processes together, at most, in each tenth of the corpus: {tenths}")


if __name__ == "__main__":
    typer.run(main)
