"""Whatever a cluster does: a right result or one clear sentence, and every finished record kept.

One table: how a fault is made, the sentence, the exit code, how many records are there afterwards.
A sentence names the file, key, row or item and the remedy; what is made right again by itself has
exit code 0 and comes to the very records of a run without the fault.
"""

# ruff: noqa: E501  (the table has a row a line)

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ceval_suite.backends.forward import Forward
from ceval_suite.records import RunFolder, read_json
from ceval_suite.schema import Reply
from tests import faulty
from tests.faulty import Bench, Hashed, Result, kill, records_in

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("faults")]

ALL = 10
HALF = 4
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """One row: what goes wrong, and what must come of it.

    `start` is what lies there before: nothing, a run half done, or a whole one. `kept` counts the
    records that can be read in the run folder afterwards; None where there is no such folder, or
    where its records cannot be read until the remedy has been followed.
    """

    name: str
    make: Callable[[Bench], Result | None]
    says: str = ""
    code: int = 0
    kept: int | None = ALL
    start: str = "half"


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were cut off half-way, and whole ones."""
    made: dict[str, Path] = {}
    for name, stop in (("half", HALF), ("whole", None)):
        path = tmp_path_factory.mktemp(name) / "place"
        path.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            bench = faulty.bench(path, patch, _NoCapture(), None)
            bench.score(Hashed(stop=stop))
            assert len(records_in(bench.run)) == (stop or ALL)
        made[name] = path / "runs"
    return made


class _NoCapture:
    def readouterr(self) -> tuple[str, str]:
        return "", ""


# how faults are made


def lines(change: Callable[[list[str]], list[str | bytes]], **more: Any) -> Any:
    """The records file with other lines; then the same command again."""

    def make(bench: Bench) -> None:
        bench.write(change(bench.lines()), **more)

    return make


def put(name: str, content: bytes) -> Any:
    """A file of the run folder with other content."""
    return lambda bench: (bench.run / name).write_bytes(content)


def row(**values: Any) -> Any:
    """The second record with other values."""

    def change(found: list[str]) -> list[str | bytes]:
        content = json.loads(found[1]) | values
        found[1] = json.dumps({k: v for k, v in content.items() if v != "(none)"})
        return [*found]

    return lines(change)


def during(number: int, happens: Callable[[Bench], Any]) -> Any:
    """Something that happens while the model answers, before its answer `number` (from 0)."""
    return lambda bench: bench.score(Hashed(at={number: lambda: happens(bench)}))


def keys(name: str, **values: Any) -> Any:
    return lambda bench: bench.change(name, **values)


def deep(levels: int = 100_000) -> bytes:
    return b'{"identity":' + b"[" * levels + b"]" * levels + b"}"


def held(bench: Bench) -> Result:
    about = json.loads((bench.run / "run.json").read_text())
    with RunFolder(bench.run, about["identity"], {}):
        return bench.score()


def dead_owner(bench: Bench) -> None:
    (bench.run / ".lock").touch()
    owner = {"host": "gone", "pid": 1, "user": "x", "since": "2020", "command": "ceval-suite run"}
    (bench.run / ".owner.json").write_text(json.dumps(owner))


def no_flock(number: int) -> Any:
    def make(bench: Bench) -> None:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        bench.monkeypatch.setattr(fcntl, "flock", flock)

    return make


def moved(bench: Bench) -> None:
    bench.run.rename(bench.path / "elsewhere")


def a_folder_for_the_records(bench: Bench) -> None:
    bench.records.unlink()
    bench.records.mkdir()


def replaced(bench: Bench) -> None:
    other = bench.records.with_name("copy")
    shutil.copy(bench.records, other)
    os.replace(other, bench.records)


def small_files(bench: Bench) -> None:
    """No file may grow from now on: what a quota does, and a full disk to one who appends."""
    limit = bench.records.stat().st_size + 100
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    bench.monkeypatch.setattr(
        bench, "undo", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before), raising=False
    )


def full(bench: Bench) -> Result:
    try:
        return during(1, small_files)(bench)
    finally:
        bench.undo()  # type: ignore[attr-defined]


def a_file_in_the_way(bench: Bench) -> Result:
    run = bench.run
    shutil.rmtree(run)
    run.write_text("")
    result = bench.score()
    run.unlink()
    return result


def no_number(bench: Bench) -> Result:
    (id,) = [json.loads(line)["id"] for line in bench.lines()[:1]]
    del id
    model = Hashed()
    broken = {}

    def nan() -> Reply:
        return Reply(
            id=broken["id"],
            logits=(float("nan"),) * 4,
            logprobs=(float("nan"),) * 4,
            num_tokens=1,
            choice_mass=float("nan"),
        )

    real = model.ask

    def ask(requests: Any) -> Any:
        broken["id"] = requests[2].id
        return real(requests)

    model.at[2] = nan
    model.ask = ask  # type: ignore[method-assign]
    return bench.score(model)


def linked(name: str, target: str) -> Any:
    def make(bench: Bench) -> None:
        (bench.path / target).write_text("mine")
        (bench.run / name).unlink(missing_ok=True)
        (bench.run / name).symlink_to(bench.path / target)

    return make


def rewritten(name: str, content: bytes) -> Any:
    """A file of the checkpoint that another process replaces."""

    def make(bench: Bench) -> None:
        other = bench.checkpoint / "new"
        other.write_bytes(content)
        os.replace(other, bench.checkpoint / name)

    return make


def by_shards(bench: Bench) -> None:
    """Other weights, in two files instead of one."""
    (bench.checkpoint / "model.safetensors").unlink()
    for number in (1, 2):
        (bench.checkpoint / f"model-0000{number}-of-00002.safetensors").write_bytes(b"new")


def touched(bench: Bench) -> None:
    shutil.copy(bench.checkpoint / "model.safetensors", bench.path / "same")
    os.replace(bench.path / "same", bench.checkpoint / "model.safetensors")


def in_place(bench: Bench) -> None:
    with (bench.checkpoint / "model.safetensors").open("r+b") as stream:
        stream.write(b"other weights")


def while_loading(bench: Bench) -> Result:
    def opener(_spec: Any, _say: Any) -> Hashed:
        in_place(bench)
        return Hashed()

    bench.monkeypatch.setattr("ceval_suite.run.open_backend", opener)
    return bench.call("run", "--model", bench.checkpoint, *faulty.TASK, "--out", bench.out)


def opening(happens: Callable[[], Any]) -> Any:
    """Something that happens while the model is loaded."""

    def make(bench: Bench) -> Result:
        def opener(_spec: Any, _say: Any) -> Hashed:
            happens()
            return Hashed()

        bench.monkeypatch.setattr("ceval_suite.run.open_backend", opener)
        return bench.call("run", "--model", bench.checkpoint, *faulty.TASK, "--out", bench.out)

    return make


def fails(error: BaseException) -> Any:
    def happen(_: Any = None) -> None:
        raise error

    return happen


def jumping(bench: Bench) -> None:
    """A wall clock that goes ten years forward and back at every look."""
    real, state = time.time, [0]

    def now() -> float:
        state[0] += 1
        return real() + (3e8 if state[0] % 2 else -3e8)

    bench.monkeypatch.setattr(time, "time", now)


def board_of(name: str, content: bytes | None = None, **values: Any) -> Any:
    """`board` on a run folder one of whose files is another."""

    def make(bench: Bench) -> Result:
        if content is None:
            bench.change(name, **values)
        else:
            (bench.run / name).write_bytes(content)
        return bench.call("board", "--runs", bench.out)

    return make


def rescored(name: str, content: bytes) -> Any:
    def make(bench: Bench) -> Result:
        (bench.run / name).write_bytes(content)
        return bench.call("rescore", bench.out)

    return make


def beside(option: str) -> Any:
    """A progress or metrics file that cannot be written."""
    return lambda bench: bench.score(None, option, bench.checkpoint / "config.json" / "x")


# faults of a real model


def tiny(change: Callable[[Any], Any] = lambda _: None, *more: str) -> Any:
    """The tiny model with other weights, scored for real."""

    def make(bench: Bench) -> Result:
        from safetensors.torch import load_file, save_file

        folder = Path(shutil.copytree(bench.tiny, bench.path / "tiny"))
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        task = more or ("--tasks", "sample-mmlu", "--limit", "1")
        return bench.call("run", "--model", folder, *task, "--out", bench.path / "others")

    return make


def spoil(name: str, value: float, *where: int) -> Callable[[Any], Any]:
    return lambda weights: weights[name].__setitem__(where, value)


def swell(*names: str) -> Callable[[Any], Any]:
    return lambda weights: [weights[name].mul_(1e30) for name in names]


def scarce(error: Exception) -> Any:
    """Passes of more than 64 tokens find no memory; the numbers must be those of smaller passes."""

    def make(bench: Bench) -> Result:
        task = ("--tasks", "sample-mmlu", "--limit", "1")
        usual = bench.call("run", "--model", bench.tiny, *task, "--out", bench.path / "usual")
        assert usual.code == 0, usual.err
        real = Forward._logits, Forward._hidden

        def limited(which: int) -> Any:
            def method(self: Any, ids: Any, *args: Any, **more: Any) -> Any:
                if ids.shape[1] > 64 and more.get("position_ids") is not None:
                    raise error
                return real[which](self, ids, *args, **more)

            return method

        bench.monkeypatch.setattr(Forward, "_logits", limited(0))
        bench.monkeypatch.setattr(Forward, "_hidden", limited(1))
        # what decides which path is valid tries both; here it is known
        packed = {"attention": "packed"}
        bench.monkeypatch.setattr("ceval_suite.backends.hf.check", lambda *_: packed)
        found = bench.call("run", "--model", bench.tiny, *task, "--out", bench.path / "others")
        same_numbers(bench)
        return found

    return make


def no_room_for_weights(bench: Bench) -> Result:
    def read(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    bench.monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    return bench.call("run", "--model", bench.tiny, *faulty.TASK, "--out", bench.path / "others")


def same_numbers(bench: Bench) -> None:
    one, other = (
        records_in(next((bench.path / name).glob("*/sample-mmlu-*")))
        for name in ("usual", "others")
    )
    assert one.keys() == other.keys()
    for id, record in one.items():
        assert other[id].logprobs == pytest.approx(record.logprobs, abs=1e-5)


def address_space(bench: Bench) -> Result:
    """What a limit of the system (ulimit -v, a batch system's) leaves is too little for a pass."""
    from ceval_suite.backends import open_backend

    wide = bench.llama("wide", seed=1, hidden_size=64, intermediate_size=65536, num_hidden_layers=2)
    task = (
        "--tasks",
        "sample-mmlu",
        "--limit",
        "2",
        "--subjects",
        "world_geography",
        "--shots",
        "2",
    )
    usual = bench.call("run", "--model", wide, *task, "--out", bench.path / "usual")
    assert usual.code == 0, usual.err
    before = resource.getrlimit(resource.RLIMIT_AS)

    def opener(spec: Any, say: Any) -> Any:
        backend = open_backend(spec, say)
        room = faulty.address_space() + (150 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
        return backend

    bench.monkeypatch.setattr("ceval_suite.run.open_backend", opener)
    try:
        found = bench.call("run", "--model", wide, *task, "--out", bench.path / "others")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    same_numbers(bench)
    return found


# faults of the system


def mounted(bench: Bench, *options: str) -> Callable[[], Any]:
    """The runs on a file system of their own; returns what takes it away."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount")
    runs = bench.path / "on-the-side"
    shutil.move(bench.out, runs)
    bench.out.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", bench.out], check=False
    ).returncode:
        pytest.skip("mount is not allowed here")
    shutil.copytree(runs, bench.out, dirs_exist_ok=True)
    return lambda: subprocess.run(["umount", bench.out], check=True)


def on_a_full_disk(bench: Bench) -> Result:
    unmount = mounted(bench, "-o", "size=1m")
    try:

        def fill(bench: Bench) -> None:
            with contextlib.suppress(OSError), (bench.out / "fill").open("wb", 0) as stream:
                while True:
                    stream.write(bytes(4096))

        found = during(1, fill)(bench)
        assert len(records_in(bench.run)) > HALF
    finally:
        unmount()
    return found


def on_a_disk_for_reading(bench: Bench) -> Result:
    unmount = mounted(bench)
    try:
        subprocess.run(["mount", "-o", "remount,ro", bench.out], check=True)
        found = bench.score()
        shutil.copytree(bench.run, bench.path / "kept")
    finally:
        unmount()
    shutil.copytree(bench.path / "kept", bench.out / "checkpoint" / "sample-mmlu-kept")
    return found


def sigkill(bench: Bench) -> None:
    command = [sys.executable, "-m", "tests.faulty", "2", "run", "--model", bench.checkpoint]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *faulty.TASK, "--out", bench.out], env=path, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert len(records_in(bench.run)) == HALF + 2


FAULTS = [
    # corrupt and torn records
    Fault("a torn last line", lambda b: b.records.write_bytes(b.records.read_bytes()[:-30])),
    Fault("torn inside a character", lambda b: b.records.write_bytes(b.records.read_bytes() + '{"id":"法'.encode()[:-1])),
    Fault("an empty records file", lambda b: b.records.write_bytes(b"")),
    Fault("no records file", lambda b: b.records.unlink()),
    Fault("a broken middle line", lines(lambda f: [f[0], '{"id": "x', *f[2:]]),
          r"records\.jsonl: line 2 is broken \(.*\); remove that line to have its item scored", 1,
          None),
    Fault("an empty middle line", lines(lambda f: [f[0], "", *f[1:]]),
          r"records\.jsonl: line 2 is broken .*; remove that line", 1, None),
    Fault("NUL bytes, as a crash of the machine leaves them", lines(lambda f: [f[0], b"\0" * 300]),
          r"records\.jsonl: line 2 is broken .*; remove that line", 1, None),
    Fault("a list for a record", lines(lambda f: ["[1, 2]", *f]),
          r"records\.jsonl: line 1 is broken \(Expected `object`, got `array`\); remove", 1, None),
    Fault("a number for an id", row(id=7),
          r"line 2 is broken \(Expected `str`, got `int` - at `\$\.id`\); remove that line", 1, None),
    Fault("a text for a score", row(score="1"),
          r"line 2 is broken \(Expected `float \| null`, got `str` - at `\$\.score`\); remove", 1, None),
    Fault("a list for the logits", row(logits=[1, 2]),
          r"line 2 is broken \(Expected `object`, got `array` - at `\$\.logits`\); remove", 1, None),
    Fault("a text among the log-probabilities", row(logprobs={"A": "much"}),
          r"line 2 is broken \(Expected `float`, got `str` - at `\$\.logprobs\[\.\.\.\]`\); remove", 1, None),
    Fault("a record without its id", row(id="(none)"),
          r"line 2 is broken \(.*missing required field `id`\); remove that line", 1, None),
    Fault("a line that stands twice", lines(lambda f: [*f, f[0]]),
          r"records\.jsonl: item sample-mmlu/test/\S+ stands twice; delete one line", 1, HALF),
    Fault("an item of another run", row(id="sample-cmmlu/test/x/0"),
          r"item sample-cmmlu/test/x/0 does not belong to this run; delete it", 1, HALF),
    Fault("a byte order mark", lines(lambda f: [b"\xef\xbb\xbf" + f[0].encode(), *f[1:]]),
          r"records\.jsonl: line 1 starts with a byte order mark.*; save the file as UTF-8", 1, None),
    Fault("UTF-16", lambda b: b.records.write_bytes(b.records.read_text().encode("utf-16")),
          r"records\.jsonl: line \d is broken .*; remove that line", 1, None),
    Fault("nested too deeply", lines(lambda f: [f[0], deep()]),
          r"records\.jsonl: line 2 is broken \(nested too deeply\); remove that line", 1, None),
    Fault("fields of a later version", row(more={"a": [1]}, another=None)),
    Fault("line ends of another system", lines(lambda f: [*f], end=b"\r\n")),
    Fault("a folder for the records", a_folder_for_the_records,
          r"records\.jsonl: a link or no file, .*; use another --out, or delete the folder", 1, None),
    # run.json and summary.json
    Fault("a truncated run.json", lambda b: put("run.json", (b.run / "run.json").read_bytes()[:90])(b),
          r"run\.json: not readable as JSON \(.*\); put a copy of it back, or delete", 1, HALF),
    Fault("an empty run.json", put("run.json", b""),
          r"run\.json: not readable as JSON .*; put a copy of it back, or delete", 1, HALF),
    Fault("NUL bytes for run.json", put("run.json", b"\0" * 2000),
          r"run\.json: not readable as JSON .*; put a copy of it back, or delete", 1, HALF),
    Fault("no run.json", lambda b: (b.run / "run.json").unlink(),
          r"records\.jsonl: there is no run\.json beside it .*; use another --out, or delete", 1, HALF),
    Fault("a list for run.json", put("run.json", b"[]"),
          r"run\.json: not a JSON object; put a copy of it back, or delete", 1, HALF),
    Fault("an engine that is a text", keys("run.json", engine="fast"),
          r"run\.json: not as it is written here \(Expected `object`, got `str` - at `\$\.engine`\); put a copy", 1, HALF),
    Fault("an identity that is a list", keys("run.json", identity=[1]),
          r"run\.json: not as it is written here .*at `\$\.identity`\); put a copy", 1, HALF),
    Fault("seconds that are no number", keys("run.json", seconds={"scoring": "long"}),
          r"run\.json: not as it is written here .*at `\$\.seconds\[\.\.\.\]`\); put a copy", 1, HALF),
    Fault("run.json of a later format", keys("run.json", format=2),
          r"has format 2, this is 1; use another --out, or the version of ceval-suite", 1, HALF),
    Fault("a JSON bomb for run.json", put("run.json", deep()),
          r"run\.json: not readable as JSON \(nested too deeply\); put a copy", 1, HALF),
    Fault("records of another model", keys("run.json", identity={"model": "other"}),
          r"holds records of another \w+ \(.*\); use another --out, or delete", 1, HALF),
    Fault("an empty summary.json", lambda b: (b.run / "summary.json").write_bytes(b"") and None, start="whole"),
    Fault("a truncated summary.json", put("summary.json", b'{"task": "sam'), start="whole"),
    Fault("a list for summary.json", put("summary.json", b"[1]"), start="whole"),
    Fault("a board of a broken summary", board_of("summary.json", b'{"task": 1'),
          r"summary\.json: not readable as JSON .*; have it made again by 'ceval-suite rescore ", 1, start="whole"),
    Fault("a board of another version's summary", board_of("summary.json", metrics=None),
          r"summary\.json: not as it is written here \(.*missing required field `metrics`\); have it made again", 1,
          start="whole"),
    Fault("a board of a summary with a text for its metrics", board_of("summary.json", metrics="good"),
          r"summary\.json: not as it is written here .*; have it made again by 'ceval-suite rescore", 1, start="whole"),
    Fault("rescore on a broken summary", rescored("summary.json", b"{"), start="whole"),
    # the folder
    Fault("another run writes there", held,
          r"is being written by another run \(pid \d+ of \S+ on \S+, since \S+: ceval-suite.*\); "
          r"wait for it, end it, or use another --out", 1, HALF),
    Fault("the lock of a dead process", dead_owner),
    Fault("no file locks on this disk", no_flock(errno.ENOSYS),
          r"no file locks on this disk; the file \.lock stands for one"),
    Fault("locks that the network does not give", no_flock(errno.ENOLCK),
          r"the file \.lock there cannot be locked \(No locks available\); give an --out on a disk", 1, HALF),
    Fault("a link for the lock", linked(".lock", "mine"),
          r"the file \.lock there cannot be locked \(.*\); give an --out", 1, HALF),
    Fault("a link for the records", linked("records.jsonl", "mine"),
          r"records\.jsonl: a link or no file, .*; use another --out", 1, None),
    Fault("a link for what is written first", linked(".run.json.partial", "mine")),
    Fault("a file in the place of the folder", a_file_in_the_way,
          r"sample-mmlu-\S+: this folder cannot be made \(File exists\); give an --out", 1, None),
    Fault("an --out under a file", lambda b: b.call("run", "--model", b.checkpoint, *faulty.TASK, "--out", b.checkpoint / "config.json" / "x"),
          r"config\.json/x\S*: this folder cannot be made \(Not a directory\); give an --out", 1, HALF),
    Fault("the folder is deleted", during(2, lambda b: shutil.rmtree(b.run)),
          r"records\.jsonl: this file was deleted while .*; its records are saved in \S+\.rescued-1: move", 1, None),
    Fault("the folder is moved", during(2, moved),
          r"records\.jsonl: this file or its folder was deleted, moved or replaced .*; start the same", 1, None),
    Fault("the records are replaced", during(2, replaced),
          r"records\.jsonl: this file was deleted while .*; its records are saved in", 1, HALF + 2),
    Fault("no file may grow", full,
          r"records\.jsonl: cannot be written \(File too large\); make room .* and start the same command", 1, HALF + 1),
    Fault("a full disk", on_a_full_disk,
          r"json: cannot be written \(No space left on device\); make room .* and start the same command", 1, None),
    Fault("a disk for reading only", on_a_disk_for_reading,
          r"the file \.lock there cannot be locked \(Read-only file system\); give an --out on a disk", 1, HALF),
    # the checkpoint
    Fault("weights replaced", during(2, rewritten("model.safetensors", b"new")),
          r"checkpoint/model\.safetensors: this file of the checkpoint was replaced or changed .*: put that back", 1, HALF + 2),
    Fault("weights changed in place", during(2, in_place),
          r"checkpoint/model\.safetensors: this file of the checkpoint was replaced or changed .*: put that back", 1, HALF + 2),
    Fault("weights replaced by shards", during(2, by_shards),
          r"checkpoint/model-00001-of-00002\.safetensors: this file of the checkpoint was replaced or changed .*: put that back", 1, HALF + 2),
    Fault("a tokenizer replaced", during(2, rewritten("tokenizer.json", b'{"a": 1}')),
          r"checkpoint/tokenizer\.json: this file of the checkpoint was replaced or changed .*: put that back", 1, HALF + 2),
    Fault("weights replaced while they are loaded", while_loading,
          r"checkpoint/model\.safetensors: this file of the checkpoint was replaced or changed .*: put that back", 1, HALF),
    Fault("weights replaced between two starts", lambda b: in_place(b),
          r"holds records of another weights_sha256 \(.*\); use another --out, or delete", 1, HALF),
    Fault("weights written again as they were", during(2, touched)),
    Fault("a checkpoint deleted when it is loaded", during(2, lambda b: shutil.rmtree(b.checkpoint))),
    Fault("a score that is no number", no_number,
          r"sample-mmlu/test/\S+: a score that is not a finite number is not recorded; see what answers", 1, HALF + 2),
    # memory, signals, clocks
    Fault("no memory in Python", during(2, fails(MemoryError())),
          r"out of memory \(--memory\): .*; give --memory, .* and start the same command again", 1, HALF + 2),
    Fault("no memory in torch's allocator", during(2, fails(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."))),
          r"out of memory \(--memory\): .*; give --memory", 1, HALF + 2),
    Fault("no memory on a GPU", during(2, fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))),
          r"out of memory \(--memory\): .*; give --memory", 1, HALF + 2),
    Fault("no memory for the weights", no_room_for_weights,
          r"tiny-llama\d*: out of memory while its weights were loaded; give a narrower --dtype", 1, HALF),
    Fault("no memory while loading", opening(fails(MemoryError("std::bad_alloc"))),
          r"out of memory \(--memory\): .*std::bad_alloc.*; give --memory", 1, HALF),
    Fault("SIGTERM: the pass under way is finished", during(1, lambda _: kill(signal.SIGTERM)()),
          r"interrupted; finished records are kept\. To go on:\n  ceval-suite run --model ", 130, HALF + faulty.PACK),
    Fault("SIGTERM twice", during(1, lambda _: (kill(signal.SIGTERM)(), kill(signal.SIGTERM)())),
          r"interrupted; finished records are kept\. To go on:\n  ceval-suite run --model ", 130, HALF + 1),
    Fault("SIGTERM while loading", opening(kill(signal.SIGTERM)),
          r"interrupted; finished records are kept\. To go on:\n  ceval-suite run --model ", 130, HALF),
    Fault("Ctrl-C", during(1, lambda _: kill(signal.SIGINT)()),
          r"interrupted; finished records are kept\. To go on:\n  ceval-suite run --model ", 130, HALF + 1),
    Fault("a wall clock that jumps", jumping),
    Fault("SIGKILL", sigkill),
    Fault("a progress file that cannot be written", beside("--progress"),
          r"config\.json/x: cannot be written \(.*\); the run goes on without it"),
    Fault("a metrics file that cannot be written", beside("--metrics"),
          r"config\.json/x: cannot be written \(.*\); the run goes on without it"),
    # a real model
    Fault("a weight that is no number", tiny(spoil("model.layers.1.mlp.down_proj.weight", float("nan"), 3, 5)),
          r"sample-mmlu/test/\S+: the model's logits are not finite, and no score is recorded; the first layer whose "
          r"output is not is 'model\.layers\.1\.mlp\.down_proj'; its tensor 'model\.layers\.1\.mlp\.down_proj\.weight' "
          r"holds 1 values that are not; fetch the checkpoint again", 1, HALF),
    Fault("an infinite weight of a norm", tiny(spoil("model.norm.weight", float("inf"), 7)),
          r"sample-mmlu/test/\S+: .* is 'model\.norm'; its tensor 'model\.norm\.weight' holds 1 values that are not; fetch", 1, HALF),
    Fault("weights whose products overflow", tiny(swell(*(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"))),
          r"sample-mmlu/test/\S+: .* whose output is not is 'model\.layers\.0\.self_attn'; all its weights are; .*\(try --dtype float32\)", 1, HALF),
    Fault("no number while a text is written", tiny(spoil("model.layers.0.mlp.up_proj.weight", float("nan"), 0, 0),
          "--tasks", "sample-cmmlu", "--protocol", "official-generate", "--limit", "1"),
          r"sample-cmmlu/test/\S+: .* is 'model\.layers\.0\.mlp\.up_proj'; its tensor .* holds 1 values that are not; fetch", 1, HALF),
    Fault("a pass too large for a GPU", scarce(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
          r"out of memory on \d+ tokens at once: \d+ from now on", 0, HALF),
    Fault("a pass too large for a CPU", scarce(RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)")),
          r"out of memory on \d+ tokens at once: \d+ from now on", 0, HALF),
    Fault("a limit on the address space", address_space,
          r"out of memory on \d+ tokens at once: \d+ from now on", 0, HALF),
]  # fmt: skip


@pytest.fixture
def bench(
    request: pytest.FixtureRequest,
    starts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    tiny_llama: Callable[..., Path],
) -> Bench:
    made = faulty.bench(tmp_path, monkeypatch, capsys, starts.get(request.param))
    made.tiny, made.llama = tiny_model, tiny_llama
    return made


@pytest.mark.parametrize(
    ("fault", "bench"),
    [(f, f.start) for f in FAULTS],
    ids=[f.name for f in FAULTS],
    indirect=["bench"],
)
def test_a_fault_ends_in_a_right_result_or_one_sentence(
    fault: Fault, bench: Bench, starts: dict[str, Path]
) -> None:
    whole = records_in(next(starts["whole"].glob("*/sample-mmlu-*")))
    found = fault.make(bench)
    if not isinstance(found, Result):  # the fault lies there, and the same command comes again
        found = bench.score()
    assert (found.code, "Traceback" in found.err) == (fault.code, False), found.err
    assert re.search(fault.says, found.err), found.err
    if fault.code == 1:
        (sentence,) = [line for line in found.err.splitlines() if line.startswith("error: ")]
        assert found.err.splitlines()[-1] == sentence
        assert sentence.endswith(".")
    if fault.kept is not None:
        kept = records_in(bench.run)
        assert len(kept) == fault.kept
        right = {id: record for id, record in kept.items() if whole.get(id) == record}
        assert len(kept) - len(right) <= (fault.name == "an item of another run")
    if fault.code == 0 and fault.kept == ALL:
        assert read_json(bench.run / "summary.json")["complete"] is True
    mine = bench.path / "mine"
    assert not mine.exists() or mine.read_text() == "mine"


ELSEWHERE = {
    "a server that is not there": "test_server.test_no_server_is_a_sentence",
    "a server that is busy or answers 500": "test_server.test_a_busy_server_is_tried_again",
    "a server that hangs": "test_server.test_a_slow_server_is_given_up_after_two_tries",
    "a server that asks for hours": "test_server.test_a_pause_of_hours_is_not_waited_for",
    "a server that breaks half-way": "test_server.test_what_breaks_half_way_keeps_its_records_and_a_second_run_goes_on",
    "a server that lies": "test_server.test_a_lying_server_is_refused_before_the_first_item",
    "another model behind one address": "test_server.test_another_model_behind_the_same_address_is_another_model",
    "a hub that fails": "test_model_fetch.test_each_failure_is_a_sentence_and_the_rest_is_fetched",
    "no network": "test_model_fetch.test_without_a_network_and_a_copy_the_remedy_is_told",
    "a connection that breaks": "test_model_fetch.test_a_connection_that_breaks_is_taken_up_again",
    "a killed download": "test_model_fetch.test_a_killed_download_goes_on_where_it_stopped",
    "a truncated download": "test_fetch.test_a_cut_download_is_continued_where_it_stopped",
    "other bytes than are pinned": "test_fetch.test_a_wrong_hash_is_refused_and_nothing_of_it_is_kept",
    "all sources of a benchmark fail": "test_fetch.test_when_every_source_fails_all_reasons_and_the_remedy_are_told",
    "kills at any moment": "test_kill.test_records_after_20_kills_equal_those_of_an_uninterrupted_run",
}
"""Faults with a test of their own, and where."""


def test_faults_that_are_tested_elsewhere_are_tested_there() -> None:
    for place in ELSEWHERE.values():
        module, name = place.split(".")
        assert f"def {name}(" in (ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")


def test_the_table_is_long_and_each_sentence_names_what_and_the_remedy() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    named = re.compile(r"json|line|item|folder|lock|checkpoint|--\w+|sample-|holds|format|rescued")
    remedy = re.compile(
        r"fetch|try |remove|delete|use |put a|put that|give |make |have it|start|save|wait|see |To go on|goes on|move|stands"
    )
    for fault in FAULTS:
        assert bool(fault.says) >= (fault.code != 0), fault.name
        if fault.code == 1:
            assert named.search(fault.says), fault.name
            assert remedy.search(fault.says.replace("\\", "")), fault.name
