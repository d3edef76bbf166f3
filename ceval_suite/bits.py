"""Bits per byte: how well a model predicts whole texts, whatever tokenizer it has.

Accuracies of models with different tokenizers rest on prompts of different lengths and shots; the
probability of a text per byte or per character does not depend on how it is cut into tokens.
Every group of texts (a task, a file) is one folder `bits-<fingerprint8>` beside the task runs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite import __version__, metrics
from ceval_suite.backends import identify, open_backend
from ceval_suite.backends.base import Say
from ceval_suite.errors import ModelError, RunError
from ceval_suite.model_spec import ModelSpec
from ceval_suite.records import Folder, read_json, safe_name, write_json
from ceval_suite.schema import Text, TextRecord

SAY_EVERY = 15.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class Corpus:
    """A group of texts and how windows roll over them; None means the model's own."""

    group: str
    texts: Sequence[Text]
    window: int | None = None
    stride: int | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is measured and how, and of nothing about the model."""
        rows = [[t.id, t.group, t.language, t.cluster, t.text] for t in self.texts]
        content = {"texts": rows, "window": self.window, "stride": self.stride}
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the folder."""
        return f"bits-{self.fingerprint[:8]}"


TextFolder = Folder[TextRecord]


def measure(
    model: str, spec: ModelSpec, corpora: Sequence[Corpus], out: Path, say: Say
) -> list[Path]:
    """Measure every text of the corpora with one model; finished texts are never measured again.

    The model is loaded only when something is left.

    Returns:
        The folders, in the order of `corpora`.

    Raises:
        UserError: anything a user can put right; finished records are kept.
    """
    if spec.backend != "hf":
        raise ModelError(
            f"bits per byte need every token's probability: model '{model}' is of backend "
            f"{spec.backend}, and only hf gives them; load its weights with backend hf."
        )
    who = identify(spec)
    folders = [out / safe_name(model) / corpus.folder for corpus in corpora]
    with ExitStack() as stack:
        runs: list[tuple[Corpus, TextFolder]] = []
        for folder, corpus in dict(zip(folders, corpora, strict=True)).items():
            about = {
                "model": {"name": model, **spec.model_dump(exclude_defaults=True)},
                "group": corpus.group,
                "languages": sorted({t.language for t in corpus.texts}),
                "window": corpus.window,
                "stride": corpus.stride,
                "ceval_suite": __version__,
            }
            key = {"protocol_sha256": corpus.fingerprint, "model": model, **who}
            run = stack.enter_context(Folder(folder, key, about, TextRecord))
            strays = set(run.done) - {text.id for text in corpus.texts}
            if strays:
                raise RunError(
                    f"{folder}: text {min(strays)} does not belong to this run; delete it."
                )
            runs.append((corpus, run))
        if any(len(run.done) < len(corpus.texts) for corpus, run in runs):
            say(f"loading {model}")
            _measure(spec, runs, say)
        for corpus, run in runs:
            write_json(run.path / "summary.json", summary(model, corpus, run))
    return list(dict.fromkeys(folders))


def measure_again(folder: Path, corpora: Sequence[Corpus], say: Say) -> None:
    """Measure texts with the model whose runs lie in `folder`, as it is described there.

    Raises:
        UserError: no run in it, or anything that loading and measuring may raise.
    """
    folder = folder.resolve()
    single = (folder / "run.json").is_file()
    found = sorted(folder.glob("run.json" if single else "*/run.json"))
    if not found:
        raise RunError(f"{folder} holds no run that names a model; give a run folder.")
    about: dict[str, Any] = dict(read_json(found[0])["model"])
    name = about.pop("name")
    out = found[0].parents[2]  # OUT/<model>/<run>/run.json
    measure(str(name), ModelSpec.model_validate(about), corpora, out, say)


def _measure(spec: ModelSpec, runs: Sequence[tuple[Corpus, TextFolder]], say: Say) -> None:
    backend: Any = open_backend(spec, say)
    for corpus, run in runs:
        left = [text for text in corpus.texts if text.id not in run.done]
        if not left:
            continue
        run.check_numerics(backend.describe()["dtype"])
        run.update({"windows": backend.windows(corpus.window, corpus.stride)})
        begun = shown = time.monotonic()
        try:
            for record in backend.measure(left, corpus.window, corpus.stride):
                run.append(record)
                if time.monotonic() - shown > SAY_EVERY:
                    shown = time.monotonic()
                    say(f"{corpus.group}: {len(run.done)} of {len(corpus.texts)} texts")
        finally:
            seconds = run.about.get("seconds", 0.0) + time.monotonic() - begun
            run.update({"engine": backend.describe(), "seconds": seconds})


def summary(model: str, corpus: Corpus, run: TextFolder) -> dict[str, Any]:
    """The content of summary.json, from the records and the texts."""
    ordered = [run.done[text.id] for text in corpus.texts if text.id in run.done]
    return {
        "measure": "bits",
        "group": corpus.group,
        "model": model,
        "protocol_sha256": corpus.fingerprint,
        "complete": len(ordered) == len(corpus.texts),
        **metrics.bits(ordered),
        "windows": run.about.get("windows", {}),
        "engine": run.about.get("engine", {}).get("path", {}),
    }
