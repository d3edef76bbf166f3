"""Downloads of benchmark files into the cache: resumed, checked, never half there."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock

from ceval_suite.errors import DataError
from ceval_suite.files import cache_dir, find_files
from ceval_suite.secrecy import clean
from ceval_suite.specs import Download, Task
from ceval_suite.untrusted import is_inside

TIMEOUT = httpx.Timeout(60, connect=10)

Progress = Callable[[str, int, int | None], None]
"""(file, bytes so far, bytes in all or None)"""


def fetch(task: Task, progress: Progress = lambda _f, _d, _t: None) -> Path:
    """Bring a task's published files into the cache, by the first way that works.

    Returns:
        The folder they lie in.

    Raises:
        DataError: no way works, or what came is not the benchmark.
    """
    folder = cache_dir() / "data" / task.source.folder
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with FileLock(folder / ".lock"):
        for download in task.source.download:
            got: Path | None = None
            try:
                got = _one(task, download, folder, progress)
                find_files(task, cache_dir() / "data")
            except DataError as error:
                problems.append(str(error))
                if got is not None:  # an archive without the benchmark must not stay in the way
                    got.unlink(missing_ok=True)
                continue
            return folder
    raise DataError(
        f"task '{task.name}' could not be fetched: {'; '.join(problems) or 'no source is known'}. "
        f"Set HF_ENDPOINT to a mirror, or put the published files into {folder}."
    )


def ensure(task: Task, data: Path | None, say: Callable[[str], None], progress: Progress) -> None:
    """Fetch a task whose files are found nowhere; a folder given by hand is taken as it is.

    Raises:
        DataError: not there, and it could not be fetched.
    """
    try:
        find_files(task, data)
    except DataError as missing:
        if data is not None:
            raise
        say(f"{task.name}: not on this machine, fetching it")
        try:
            fetch(task, progress)
        except DataError as failed:
            raise DataError(f"{missing} {failed}") from failed


def _one(task: Task, download: Download, folder: Path, progress: Progress) -> Path | None:
    """Follow one way; returns the one file that came, if it was not there before."""
    if download.url is None and download.file is None:
        _hub_dataset(task, download, folder)
        return None
    name = download.file or str(download.url).rsplit("/", 1)[-1]
    if not is_inside(name):
        raise DataError(
            f"task '{task.name}': source.download: file '{name}' lies outside the cache"
        )
    target = folder / name
    existed = target.is_file()
    if download.url is not None:
        get(download.url, target, download.sha256, progress)
    else:
        _hub_file(download, target)
    return None if existed else target


def get(
    url: str,
    target: Path,
    sha256: str | None,
    progress: Progress,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download a file, continuing a part that an earlier try left.

    `headers` go to the host of `url` and to none that it redirects to.

    Raises:
        DataError: not reachable, cut short, or another SHA-256 than pinned.
    """
    if target.is_file() and (sha256 is None or _sha256(target) == sha256):
        return
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    # identity: bytes on the wire are bytes of the file, or a part could not be continued
    own = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    own |= headers or {}
    try:
        with httpx.stream("GET", url, headers=own, follow_redirects=True, timeout=TIMEOUT) as reply:
            if reply.status_code == 416:
                # the part is as long as the file or longer: judge it by its hash, or start again
                have = have if sha256 and _sha256(part) == sha256 else 0
                if not have:
                    part.unlink()
                    raise DataError(f"{clean(url)}: the partial download did not fit; try again")
            else:
                reply.raise_for_status()
                if reply.status_code != 206:
                    have = 0
                _save(reply, part, have, target.name, progress)
    except httpx.HTTPStatusError as error:
        raise DataError(
            f"{clean(url)}: the server answered {error.response.status_code}"
        ) from error
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise DataError(unusable_proxy(error)) from None
    except (httpx.HTTPError, OSError) as error:
        raise DataError(
            f"{clean(url)}: {type(error).__name__} {clean(str(error))} (what came is kept and "
            "continued next time)"
        ) from error
    if sha256 is not None and _sha256(part) != sha256:
        found = _sha256(part)
        part.unlink()
        raise DataError(f"{clean(url)}: SHA-256 {found[:16]}… is not the pinned {sha256[:16]}…")
    os.replace(part, target)


def unusable_proxy(error: Exception) -> str:
    """What to say where an address cannot be spoken to at all: of the proxy, mostly."""
    return (
        f"the URL or the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names cannot be used "
        f"({' '.join(clean(str(error)).split()).rstrip('.')}); write it as http://host:port."
    )


def _save(reply: httpx.Response, part: Path, have: int, name: str, progress: Progress) -> None:
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    with part.open("ab" if have else "wb") as sink:
        for block in reply.iter_bytes(2**18):
            sink.write(block)
            have += len(block)
            progress(name, have, total)
    encoded = reply.headers.get("Content-Encoding")
    if total is not None and not encoded and have != total:
        raise httpx.ReadError(f"{have} of {total} bytes came")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _hub_file(download: Download, target: Path) -> None:
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(
            str(download.hub),
            str(download.file),
            repo_type="dataset",
            revision=download.revision,
        )
    except Exception as error:  # its versions differ in the HTTP library and its errors
        detail = " ".join(clean(str(error)).split())[:200]
        raise DataError(f"{download.hub} on the hub: {detail}") from error
    if download.sha256 is not None and _sha256(Path(found)) != download.sha256:
        raise DataError(f"{download.hub}/{download.file}: not the pinned SHA-256")
    partial = target.with_name(target.name + ".part")
    shutil.copyfile(found, partial)
    os.replace(partial, target)


def _hub_dataset(task: Task, download: Download, folder: Path) -> None:
    """A hub dataset with columns question, subject, choices, answer, written in the csv layout."""
    import datasets

    try:
        loaded: Any = datasets.load_dataset(
            str(download.hub), download.name, revision=download.revision
        )
    except Exception as error:  # the library raises anything here
        detail = " ".join(clean(str(error)).split())[:200]
        raise DataError(f"{download.hub} on the hub: {detail}") from error
    names = {"dev": "dev", "val": "validation", "test": "test"}
    rows: dict[tuple[str, str], list[list[str]]] = {}
    try:
        for split in task.source.files:
            for row in loaded[names.get(split, split)]:
                answer = row["answer"]
                label = "ABCDEFG"[answer] if isinstance(answer, int) else str(answer)
                lines = rows.setdefault((split, row["subject"]), [])
                lines.append([row["question"], *row["choices"], label])
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{download.hub} on the hub: not in the expected form ({error!r})"
        ) from error
    for (split, subject), lines in rows.items():
        if subject in task.subjects and is_inside(subject):
            path = folder / task.source.files[split].format(subject=subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as sink:
                csv.writer(sink, lineterminator="\n").writerows(lines)
