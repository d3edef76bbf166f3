"""Downloads against real local servers: resumed, checked, never half there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from ceval_suite.catalog import load_task
from ceval_suite.data import Reader
from ceval_suite.errors import DataError
from ceval_suite.fetch import fetch, get
from ceval_suite.files import find_files
from ceval_suite.schema import Item
from ceval_suite.specs import Download, Task
from tests.serving import Files, listening

SAMPLE = Path(__file__).parents[1] / "tasks" / "sample"
BODY = bytes(range(256)) * 4096  # 1 MiB


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Site:
    """What a local server holds and how it behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut_after: int | None = None  # bytes of the next body, once
    redirects: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def gets(self) -> list[tuple[str, str | None]]:
        return [(path, asked) for method, path, asked in self.seen if method == "GET"]


def handler(site: Site) -> type[Files]:
    class Handler(Files):
        def reply(self, body: bool) -> None:
            path, asked = self.path.split("?")[0], self.headers.get("Range")
            site.seen.append((self.command, path, asked))
            if path in site.redirects:
                return self.send(302, Location=site.redirects[path])
            content = site.files.get(path)
            if content is None:
                return self.send(404, X_Error_Code="EntryNotFound")
            start = self.begin(content, sha256(content), ranges=site.ranges)
            if body and start is not None:
                end, site.cut_after = site.cut_after, None
                self.wfile.write(content[start:][:end])
                self.close_connection = end is not None
            return None

    return Handler


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    with listening(handler(site)) as url:
        site.url = url
        yield site


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with serving(Site(files={"/exam.zip": BODY})) as running:
        yield running


@dataclass
class Watch:
    """A progress callback that remembers."""

    events: list[tuple[str, int, int | None]] = field(default_factory=list)

    def __call__(self, name: str, done: int, total: int | None) -> None:
        self.events.append((name, done, total))


def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def failure(url: str, target: Path, pinned: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        get(url, target, pinned, Watch())
    assert not target.exists()
    return str(caught.value)


# ------------------------------------------------------------------------------------- one file


def test_a_file_arrives_whole_and_its_progress_is_told(site: Site, tmp_path: Path) -> None:
    target, watch = tmp_path / "exam.zip", Watch()
    get(f"{site.url}/exam.zip", target, sha256(BODY), watch)
    assert target.read_bytes() == BODY
    assert not part(target).exists()
    assert {(name, total) for name, _, total in watch.events} == {("exam.zip", len(BODY))}
    done = [n for _, n, _ in watch.events]
    assert done == sorted(done)
    assert len(done) > 1
    assert done[-1] == len(BODY)


def test_a_cut_download_is_continued_where_it_stopped(site: Site, tmp_path: Path) -> None:
    url, target, watch = f"{site.url}/exam.zip", tmp_path / "exam.zip", Watch()
    site.cut_after = 300_000
    assert "kept and continued" in failure(url, target)
    kept = part(target).stat().st_size
    assert 0 < kept <= 300_000
    get(url, target, sha256(BODY), watch)
    assert site.gets() == [("/exam.zip", None), ("/exam.zip", f"bytes={kept}-")]
    assert target.read_bytes() == BODY
    assert watch.events[0][1] > kept
    assert watch.events[-1] == ("exam.zip", len(BODY), len(BODY))


def test_a_server_without_ranges_sends_all_again_and_nothing_is_doubled(
    site: Site, tmp_path: Path
) -> None:
    url, target = f"{site.url}/exam.zip", tmp_path / "exam.zip"
    site.ranges, site.cut_after = False, 300_000
    failure(url, target)
    get(url, target, None, Watch())
    assert site.gets()[1][1] is not None
    assert target.read_bytes() == BODY


def test_a_wrong_hash_is_refused_and_nothing_of_it_is_kept(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "exam.zip"
    text = failure(f"{site.url}/exam.zip", target, "0" * 64)
    assert sha256(BODY)[:16] in text
    assert "is not the pinned 0000000000000000" in text
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_fetched_again_only_when_its_hash_is_wrong(
    site: Site, tmp_path: Path
) -> None:
    url, target = f"{site.url}/exam.zip", tmp_path / "exam.zip"
    target.write_bytes(BODY)
    get(url, target, sha256(BODY), Watch())
    get(url, target, None, Watch())
    assert site.seen == []
    target.write_bytes(BODY[:-1])
    get(url, target, sha256(BODY), Watch())
    assert target.read_bytes() == BODY


def test_a_finished_part_is_taken_and_a_part_too_long_is_thrown_away(
    site: Site, tmp_path: Path
) -> None:
    url, target = f"{site.url}/exam.zip", tmp_path / "exam.zip"
    part(target).write_bytes(BODY)
    get(url, target, sha256(BODY), Watch())
    assert target.read_bytes() == BODY

    target.unlink()
    part(target).write_bytes(BODY + b"more")
    assert "try again" in failure(url, target, sha256(BODY))
    get(url, target, sha256(BODY), Watch())
    assert target.read_bytes() == BODY


def test_a_missing_page_and_a_missing_server_are_sentences(site: Site, tmp_path: Path) -> None:
    assert "/none.zip: the server answered 404" in failure(f"{site.url}/none.zip", tmp_path / "x")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/exam.zip"
        assert url in failure(url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.redirects["/latest"] = "/exam.zip"
    get(f"{site.url}/latest", tmp_path / "exam.zip", sha256(BODY), Watch())
    assert (tmp_path / "exam.zip").read_bytes() == BODY


# ------------------------------------------------------------------------------------ a benchmark


def mini(name: str, *ways: Download) -> Task:
    """The shipped task with the bundled exam's subjects, fetched in the given ways."""
    sample, shipped = load_task(f"sample-{name}"), load_task(name)
    source = shipped.source.model_copy(update={"download": list(ways)})
    update = {"subjects": sample.subjects, "counts": sample.counts, "groups": {}, "source": source}
    return shipped.model_copy(update=update)


def archive(name: str, prefix: str = "") -> bytes:
    folder, out = SAMPLE / load_task(name).source.folder, io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, prefix + path.relative_to(folder).as_posix())
    return out.getvalue()


def everything(task: Task, data: Path | None = None) -> list[Item]:
    reader = Reader(task, find_files(task, data))
    items = [i for s in task.subjects for p in task.counts for i in reader.items(s, p)]
    return [replace(i, id=i.id.split("/", 1)[1]) for i in items]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CEVAL_SUITE_DATA", raising=False)
    monkeypatch.setenv("CEVAL_SUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def test_a_fetched_benchmark_is_found_and_is_not_fetched_twice(site: Site, cache: Path) -> None:
    site.files["/cmmlu.zip"] = data = archive("cmmlu", "CMMLU-master/data/")
    task = mini("cmmlu", Download(url=f"{site.url}/cmmlu.zip", sha256=sha256(data)))
    watch = Watch()
    assert fetch(task, watch) == cache / "cmmlu"
    assert watch.events[-1] == ("cmmlu.zip", len(data), len(data))
    assert find_files(task).place == cache / "cmmlu" / "cmmlu.zip"
    assert everything(task) == everything(load_task("sample-cmmlu"))
    fetch(task)
    assert len(site.gets()) == 1


def test_the_next_source_is_tried_when_one_fails(site: Site, cache: Path) -> None:
    site.files["/good.zip"] = archive("cmmlu")
    task = mini(
        "cmmlu",
        Download(url=f"{site.url}/gone.zip"),
        Download(url=f"{site.url}/good.zip", file="wrong.zip", sha256="f" * 64),
        Download(url=f"{site.url}/good.zip"),
    )
    fetch(task)
    assert [path for path, _ in site.gets()] == ["/gone.zip", "/good.zip", "/good.zip"]
    assert find_files(task).place == cache / "cmmlu" / "good.zip"


@pytest.mark.parametrize(
    "page",
    [b"<html>log in first</html>", archive("ceval", "other/")[:-30]],
    ids=["html", "cut zip"],
)
def test_a_page_in_the_place_of_an_archive_does_not_stay_in_the_way(
    page: bytes, site: Site, cache: Path
) -> None:
    site.files |= {"/a.zip": page, "/b.zip": archive("cmmlu")}
    task = mini("cmmlu", Download(url=f"{site.url}/a.zip"), Download(url=f"{site.url}/b.zip"))
    fetch(task)
    assert find_files(task).place == cache / "cmmlu" / "b.zip"
    assert not (cache / "cmmlu" / "a.zip").exists()


def test_an_archive_of_something_else_is_no_benchmark(site: Site, cache: Path) -> None:
    site.files["/a.zip"] = archive("gaokao")
    task = mini("cmmlu", Download(url=f"{site.url}/a.zip"))
    with pytest.raises(DataError, match="no benchmark files under"):
        fetch(task)
    site.files["/a.zip"] = archive("cmmlu")
    fetch(task)
    assert everything(task) == everything(load_task("sample-cmmlu"))


def test_a_file_the_user_put_there_is_never_deleted(site: Site, cache: Path) -> None:
    own = cache / "cmmlu" / "a.zip"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a readable archive"):
        fetch(mini("cmmlu", Download(url=f"{site.url}/a.zip")))
    assert own.read_bytes() == b"not a zip"


def test_when_every_source_fails_all_reasons_and_the_remedy_are_told(
    site: Site, cache: Path
) -> None:
    task = mini("cmmlu", Download(url=f"{site.url}/one.zip"), Download(url=f"{site.url}/two.zip"))
    with pytest.raises(DataError) as caught:
        fetch(task)
    text = str(caught.value)
    for expected in ("'cmmlu'", "/one.zip", "/two.zip", "404", "HF_ENDPOINT", str(cache / "cmmlu")):
        assert expected in text
    with pytest.raises(DataError, match="no source is known"):
        fetch(mini("cmmlu"))


# ---------------------------------------------------------------------------------------- the hub

FETCH = """
import json, sys
from ceval_suite.catalog import load_task
from ceval_suite.errors import DataError
from ceval_suite.fetch import fetch

out = {}
for name in sys.argv[1:]:
    try:
        out[name] = str(fetch(load_task(name)))
    except DataError as error:
        out[name] = f"DataError: {error}"
print(json.dumps(out))
"""


def fetch_apart(folder: Path, tasks: dict[str, Task], **env: str) -> dict[str, str]:
    """Fetch tasks in a process of its own, since hub settings are read at import."""
    (folder / "own" / "tasks").mkdir(parents=True)
    for name, task in tasks.items():
        source = task.source.model_dump(mode="json") | {"folder": name}
        content = task.model_dump(mode="json") | {"name": name, "source": source}
        path = folder / "own" / "tasks" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CEVAL_SUITE_"))}
    settings = {
        "CEVAL_SUITE_PATH": str(folder / "own"),
        "CEVAL_SUITE_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *tasks],
        env=kept | settings | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


FILE = "/datasets/haonan-li/cmmlu/resolve/v1/cmmlu_v1_0_1.zip"


def test_a_hub_file_comes_from_the_endpoint_that_is_set(tmp_path: Path) -> None:
    def way(file: str, pinned: str | None = None) -> Task:
        return mini(
            "cmmlu", Download(hub="haonan-li/cmmlu", revision="v1", file=file, sha256=pinned)
        )

    with serving(Site(files={FILE: archive("cmmlu")})) as hub:
        good, wrong, absent = "cmmlu_v1_0_1.zip", "0" * 64, "none.zip"
        tasks = {"wrong": way(good, wrong), "good": way(good), "absent": way(absent)}
        told = fetch_apart(tmp_path, tasks, HF_ENDPOINT=hub.url)
        assert ("GET", FILE) in {(method, path) for method, path, _ in hub.seen}

    assert told["good"] == str(tmp_path / "cache" / "data" / "good")
    data = tmp_path / "cache" / "data" / "good"
    assert find_files(tasks["good"], data).place == data / good
    assert everything(tasks["good"], data) == everything(load_task("sample-cmmlu"))

    assert re.search(r"DataError: .*haonan-li/cmmlu/\S+: not the pinned SHA-256", told["wrong"])
    assert not list((tmp_path / "cache" / "data" / "wrong").glob("*.zip*"))
    assert re.search(r"DataError: .*haonan-li/cmmlu on the hub: .*404", told["absent"])


CARD = """---
configs:
- config_name: all
  data_files:
  - {split: dev, path: dev.parquet}
  - {split: test, path: test.parquet}
---
"""


def test_a_hub_dataset_becomes_the_published_layout(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    sample = load_task("sample-mmlu")
    reader = Reader(sample, find_files(sample))
    for kind in ("whole", "no-subjects"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "README.md").write_text(CARD, encoding="utf-8")
        for split in ("dev", "test"):
            rows = [
                {
                    "question": item.question,
                    "subject": subject,
                    "choices": list(item.choices),
                    "answer": "ABCD".index(item.answer[0]),
                }
                for subject in (*sample.subjects, sample.name)
                for item in (reader.items(subject, split) if subject in sample.subjects else [])
            ]
            # what a subject of no task holds is left out
            rows.append(rows[0] | {"subject": "auxiliary"})
            if kind == "no-subjects":
                rows = [{k: v for k, v in row.items() if k != "subject"} for row in rows]
            path = tmp_path / kind / f"{split}.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    def way(kind: str) -> Task:
        task = mini("mmlu", Download(hub=str(tmp_path / kind), name="all"))
        files = {split: task.source.files[split] for split in ("dev", "test")}
        source = task.source.model_copy(update={"files": files})
        return task.model_copy(update={"source": source})

    tasks = {kind: way(kind) for kind in ("whole", "no-subjects")}
    told = fetch_apart(tmp_path, tasks, HF_HUB_OFFLINE="1")
    folder = tmp_path / "cache" / "data" / "whole"
    assert told["whole"] == str(folder)
    assert everything(tasks["whole"], folder) == everything(sample)
    assert len(list(folder.rglob("*.csv"))) == 2 * len(sample.subjects)

    assert "not in the expected form (KeyError('subject'))" in told["no-subjects"]
    assert not list((tmp_path / "cache" / "data" / "no-subjects").rglob("*.csv"))
