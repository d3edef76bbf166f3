"""A site of 5 models × 50,000 items: seconds to build, size, first view and opening an item.

Run: `python -m tests.perf.site [FOLDER]`; runs made by an earlier call in the folder are kept.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ceval_suite.errors import UserError
from ceval_suite.prepare import Selection, prepare
from ceval_suite.site.write import Wanted, build
from tests.browser import opened
from tests.site_runs import scripted

WANTED = 50_000
COLUMNS = {"mmlu": "test", "cmmlu": "test", "ceval": "test", "agieval": None, "gaokao": None}
MODELS = {"qwen-a": 1.5, "qwen-b": 1.3, "llama-a": 0.9, "smollm-a": 0.3, "smollm-b": 0.2}


def runs(folder: Path) -> int:
    """Make the runs that are not there; returns the number of items."""
    total = 0
    for name, split in [*COLUMNS.items(), ("ceval", "val"), ("sample-mmlu", None)]:
        if total >= WANTED:
            break
        try:
            prepared = prepare(name, Selection(split=split))
        except UserError as error:
            print(f"without {name}: {error}")
            continue
        total += sum(len(item.record_ids()) for item in prepared.scored())
        for model, skill in MODELS.items():
            if not (folder / model / prepared.folder / "summary.json").is_file():
                scripted(prepared, folder, model, skill)
    return total


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    total = runs(folder / "runs")
    begun = time.perf_counter()
    page = build([folder / "runs"], folder / "site", Wanted(), print)
    rows = [("models × items", f"{len(MODELS)} × {total:,}")]
    rows.append(("build, seconds", f"{time.perf_counter() - begun:.1f}"))
    files = [path for path in page.parent.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    rows.append(("site", f"{size / 2**20:.1f} MiB in {len(files):,} files"))
    largest = max((path for path in files if path.suffix == ".js"), key=lambda p: p.stat().st_size)
    rows.append(("largest script", f"{largest.name}, {largest.stat().st_size / 2**20:.1f} MiB"))
    with opened(page) as tab:
        # from the start of navigation to the moment the board stands
        first = tab.evaluate("CS.ready[0]")
        rows.append(("first view, ms", f"{first:.0f}"))
        for what, action in {
            "open the largest column, ms": "location.hash = '#/items/' + "
            "[...CS.site.columns].sort((a, b) => b.items - a.items)[0].key",
            "next item, ms": "location.hash = document.querySelector('a.step').href.split('#')[1]",
            "subject's wrong items, ms": "location.hash = location.hash.split('?')[0] + "
            "'?filter=wrong&sort=margin'",
            "search all texts, ms": "location.hash = location.hash.split('?')[0] + '?q=energy'",
            "search again, ms": "location.hash = location.hash.split('?')[0] + '?q=water'",
            "compare two models, ms": "location.hash = '#/compare/' + CS.site.columns[0].key",
        }.items():
            count = tab.evaluate("CS.ready.length")
            begun = time.perf_counter()
            tab.evaluate(action)
            tab.wait_for_function("(n) => CS.ready.length > n", arg=count)
            rows.append((what, f"{1000 * (time.perf_counter() - begun):.0f}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()
