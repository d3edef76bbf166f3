"""What tests of faults share: a command line on a bench, a scripted model, runs half done.

Everything real but the model: files, locks, signals, limits. The model answers by a hash of the
item, so that what a run must come to is known without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ceval_suite import cli, stopping
from ceval_suite.records import read_records
from ceval_suite.schema import Record, Reply, Request

TASK = ("--tasks", "sample-mmlu", "--limit", "2")
PACK = 3
"""Items that the scripted model answers at once."""


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@dataclass
class Hashed:
    """A model that answers by a hash of the item; `at` has something happen before an answer."""

    at: dict[int, Callable[[], Any]] = field(default_factory=dict[int, Callable[[], Any]])
    stop: int | None = None
    max_length: int = 1 << 30
    asked: list[str] = field(default_factory=list[str])

    def count_tokens(self, texts: Sequence[str], *, template_tokens: bool = False) -> list[int]:
        return [len(text) for text in texts]

    def wrap(self, user: str) -> str:
        return user

    def audit(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"dtype": "float32", "tokens": {}, "path": {}}

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for number, request in enumerate(requests):
            if number % PACK == 0:
                stopping.point()
            if number == self.stop:
                raise KeyboardInterrupt
            changed = self.at.get(number, lambda: None)()
            self.asked.append(request.id)
            digest = hashlib.sha256(request.id.encode()).digest()
            logits = tuple(float(b) for b in digest[: len(request.continuations)])
            reply = Reply(
                id=request.id,
                logits=logits,
                logprobs=tuple(x - 256 for x in logits),
                num_tokens=len(request.context),
                choice_mass=0.5,
            )
            yield changed if isinstance(changed, Reply) else reply


@dataclass
class Bench:
    """A working place: a checkpoint, an `--out`, and the command line in this process."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    tiny: Path = Path()
    llama: Callable[..., Path] = lambda *_, **__: Path()

    @property
    def out(self) -> Path:
        return self.path / "runs"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def run(self) -> Path:
        """The one run folder."""
        found = self.out.glob("checkpoint/sample-mmlu-*")
        return next(path for path in found if ".rescued" not in path.name)

    @property
    def records(self) -> Path:
        return self.run / "records.jsonl"

    def call(self, *args: object) -> Result:
        """`ceval-suite ARGS`."""
        self.monkeypatch.setattr(sys, "argv", ["ceval-suite", *map(str, args)])
        before = signal.getsignal(signal.SIGTERM)
        self.capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return Result(int(code), *self.capsys.readouterr())

    def use(self, model: Any) -> None:
        """Put a model in place of the checkpoint's."""
        self.monkeypatch.setattr("ceval_suite.run.open_backend", lambda _spec, _say: model)

    def score(self, model: Any = None, *before: object) -> Result:
        """`run` on the bench's task."""
        self.use(model or Hashed())
        return self.call(*before, "run", "--model", self.checkpoint, *TASK, "--out", self.out)

    def lines(self) -> list[str]:
        return self.records.read_text(encoding="utf-8").splitlines()

    def write(self, lines: Sequence[str | bytes], end: bytes = b"\n") -> None:
        """Other lines in place of those of the records."""
        whole = [one.encode() if isinstance(one, str) else one for one in lines]
        self.records.write_bytes(b"".join(one + end for one in whole))

    def change(self, name: str, **values: Any) -> None:
        """Change keys of run.json or summary.json; None takes one away."""
        content = json.loads((self.run / name).read_text(encoding="utf-8"))
        content |= values
        content = {key: value for key, value in content.items() if value is not None}
        (self.run / name).write_text(json.dumps(content), encoding="utf-8")


def records_in(folder: Path) -> dict[str, Record]:
    """The records of a run folder, by id."""
    return {record.id: record for record in read_records(folder / "records.jsonl")}


def checkpoint(folder: Path) -> Path:
    """Something with weights and a tokenizer to tell apart; only scripted models stand for it."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


def bench(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, before: Path | None) -> Bench:
    """A bench at `path`; `before` are runs that were made for an equal checkpoint."""
    monkeypatch.setenv("CEVAL_SUITE_DEBUG", "")
    monkeypatch.delenv("CEVAL_SUITE_LOG_FORMAT", raising=False)
    (path / "cwd").mkdir()
    monkeypatch.chdir(path / "cwd")
    checkpoint(path / "checkpoint")
    if before is not None:
        shutil.copytree(before, path / "runs")
    return Bench(path, monkeypatch, capsys)


def kill(number: int) -> Callable[[], None]:
    """Sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def address_space() -> int:
    """Bytes of address space that this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """`python -m tests.faulty N ARGS`: the command line, killed before the model's answer N."""
    import ceval_suite.run

    model = Hashed(at={int(sys.argv[1]): kill(signal.SIGKILL)})
    ceval_suite.run.open_backend = lambda _spec, _say: model  # type: ignore[assignment]
    sys.argv = ["ceval-suite", *sys.argv[2:]]
    cli.main()


if __name__ == "__main__":
    main()
