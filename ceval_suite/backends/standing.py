"""Whether the files of a checkpoint are still those that were read: a stamp of each, no bytes.

Nothing is asked of the clock: a stamp is size, inode and time of change, and only equality counts.
"""

from __future__ import annotations

from pathlib import Path

from ceval_suite.backends import adapter_files, sources
from ceval_suite.errors import UserError
from ceval_suite.model_spec import ModelSpec

Stamp = tuple[int, int, int]

WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt"}


def files(spec: ModelSpec) -> list[Path]:
    """The local files that decide what a spec's model answers, as far as they are there."""
    spec = adapter_files.expand(spec)
    places = [sources.find(spec)]
    if spec.tokenizer is not None:
        places.append(Path(spec.tokenizer).expanduser())
    places += [Path(one.path).expanduser() / one.subfolder for one in spec.adapters]
    found: list[Path] = []
    for place in places:
        if place and place.is_file():
            found.append(place)
        elif place and place.is_dir():
            found += [path for path in sorted(place.iterdir()) if _counts(path)]
    return found


def _counts(path: Path) -> bool:
    named = path.name in {*sources.TOKENIZER_FILES, "config.json", adapter_files.CONFIG}
    return named or path.suffix in WEIGHTS


class Stamps:
    """The stamps of a spec's files at one moment."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._stamps: dict[Path, Stamp] = {}
        self.renew()

    def __bool__(self) -> bool:
        return bool(self._stamps)

    def renew(self) -> None:
        """Take the files as they are now."""
        taken = {path: _stamp(path) for path in self._files()}
        self._stamps = {path: stamp for path, stamp in taken.items() if stamp is not None}

    def changed(self) -> Path | None:
        """A file that is another one now, has other content, or stands in for one that is gone.

        Training jobs delete old checkpoints while they are evaluated, and what is loaded stays.
        """
        now = {path: _stamp(path) for path in self._stamps}
        for path, stamp in self._stamps.items():
            if now[path] not in (stamp, None):
                return path
        folders = {path.parent for path, stamp in now.items() if stamp is None}
        if not folders:
            return None
        try:
            found = self._files()
        except (UserError, OSError):  # all of it is gone
            return None
        # what is gone was read before; but shards may stand where one file was
        return next((p for p in found if p not in now and p.parent in folders), None)

    def _files(self) -> list[Path]:
        return files(self._spec) if self._spec.backend not in ("server", "lm_eval") else []


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
