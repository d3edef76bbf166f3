"""An extended tokenizer on disk: the base's own files, the grown vocabulary and its provenance.

A directory is written beside its place, opened again and compared before it gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ceval_suite.backends.lexicon import Lexicon, open_tokenizer, same_ids
from ceval_suite.backends.sources import TOKENIZER_FILES
from ceval_suite.errors import ModelError
from ceval_suite.tokenizer.extend import PROBES, Extension, Measured
from ceval_suite.tokenizer.pieces import Listing

PROVENANCE = "extension.json"
FORMAT = 1
GENERIC = "PreTrainedTokenizerFast"
"""The class that reads a `tokenizer.json` as it is, in transformers 4 and 5."""

_VOCABULARIES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def write(
    extension: Extension, out: Path, listing: Listing, measured: Sequence[Measured] = ()
) -> dict[str, Any]:
    """Write a tokenizer directory and `extension.json`; returns what that says.

    Raises:
        ModelError: the directory exists, cannot be written, or does not read back as it should.
    """
    free(out)
    about = _about(extension, listing, measured)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}).") from error
    try:
        folder.chmod(0o777 & ~_umask())
        _fill(extension, folder)
        text = json.dumps(about, ensure_ascii=False, indent=1)
        (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")
        _read_back(extension, folder)
        free(out)
        os.replace(folder, out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return about


def free(out: Path) -> None:
    """See that nothing lies where a directory is to be written.

    Raises:
        ModelError: something does.
    """
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} exists; give --out a directory that does not.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _about(extension: Extension, listing: Listing, measured: Sequence[Measured]) -> dict[str, Any]:
    base = extension.base
    return {
        "format": FORMAT,
        "base": {
            "name": base.lexicon.name,
            "fingerprint": base.fingerprint,
            "size": extension.first,
        },
        "pieces": {
            "source": listing.source,
            "sha256": listing.sha256,
            "new": len(extension.pieces),
            "present": listing.present,
            "skipped": [asdict(one) for one in listing.bad],
        },
        "first_id": extension.first,
        "size": extension.size,
        "scores": extension.scores or "merges after the base's",
        "merges": extension.merges,
        "intermediate": list(extension.added),
        "unreachable": dict(extension.lost),
        "forms": extension.note,
        "measured": [asdict(one) for one in measured],
    }


def _fill(extension: Extension, folder: Path) -> None:
    source = extension.base.lexicon.path
    own = source.is_dir() and any((source / name).is_file() for name in _VOCABULARIES)
    if own:
        kept = [name for name in TOKENIZER_FILES if name not in _VOCABULARIES]
        for name in kept:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if (source / "additional_chat_templates").is_dir():
            more = "additional_chat_templates"
            shutil.copytree(source / more, folder / more)
    elif not extension.model:
        extension.base.lexicon.tokenizer.save_pretrained(folder)
        for name in _VOCABULARIES:
            (folder / name).unlink(missing_ok=True)
    if extension.model:
        (folder / "tokenizer.model").write_bytes(extension.model)
    if extension.definition is not None:
        text = json.dumps(extension.definition, ensure_ascii=False, indent=1)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    _configure(extension, folder)


def _configure(extension: Extension, folder: Path) -> None:
    """The base's `tokenizer_config.json`, with the class that reads what was written."""
    file = folder / "tokenizer_config.json"
    lexicon = extension.base.lexicon
    config: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    before = dict(config)
    if not config:
        special = {name: getattr(lexicon.tokenizer, name, None) for name in _SPECIAL}
        config = {name: str(token) for name, token in special.items() if token is not None}
    if extension.model and lexicon.core is None:
        # the class for LLaMA's files builds a tokenizer of its own from a tokenizer.json
        config["tokenizer_class"] = GENERIC if extension.definition else "LlamaTokenizer"
    elif extension.model and extension.definition is None:
        config["tokenizer_class"] = "LlamaTokenizer"
    config.setdefault("tokenizer_class", GENERIC)
    if not extension.model or extension.definition is not None:
        config.pop("auto_map", None)
    if config != before:
        text = json.dumps(config, ensure_ascii=False, indent=1)
        file.write_text(text + "\n", encoding="utf-8")


def _read_back(extension: Extension, folder: Path) -> None:
    """Open what was written and compare it with the base and with what was meant."""
    made = open_tokenizer(str(folder))
    base = extension.base.lexicon
    same_ids(base, made)
    problems = list(_differences(extension, base, made))
    if problems:
        raise ModelError(
            f"{base.name}: the extended tokenizer does not read back as it was made "
            f"({'; '.join(problems)}); nothing was written."
        )


def _differences(extension: Extension, base: Lexicon, made: Lexicon) -> Sequence[str]:
    problems: list[str] = []
    vocabulary = made.tokenizer.get_vocab()
    spelled = [extension.base.spell(piece) for piece in extension.pieces]
    for k, token in enumerate([*spelled, *extension.added]):
        if vocabulary.get(token) != extension.first + k:
            problems.append(f"{token!r} has id {vocabulary.get(token)}, not {extension.first + k}")
            break
    for name in (*_SPECIAL, "chat_template"):
        old, new = getattr(base.tokenizer, name, None), getattr(made.tokenizer, name, None)
        if old != new:
            problems.append(f"{name} is {new!r}, not {old!r}")
    if base.encode(["x"], special=True) != made.encode(["x"], special=True):
        problems.append("other start or end tokens")
    texts = [*PROBES, *(piece.replace("▁", " ") for piece in extension.pieces)]
    if not (extension.model and base.core is not None) and made.encode(texts) != extension.encode(
        texts
    ):
        problems.append("texts are cut in another way")
    return problems
