"""Checkpoints on a model hub: only the files that are needed, resumed, from any mirror.

huggingface_hub does the work: it follows HF_ENDPOINT to a mirror and the usual proxy variables, and
reads HF_TOKEN. Only large files are brought into its cache before it looks there, since it starts
a file anew that was cut short. No torch, no transformers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from ceval_suite.errors import DataError, ModelError, NotNow
from ceval_suite.fetch import get
from ceval_suite.files import cache_dir
from ceval_suite.secrecy import clean

Progress = Callable[[int, int | None], None]
"""(bytes so far, bytes in all or None)"""

Choose = Callable[[list[str]], list[str]]
"""Names of all files of a repository → those that are needed."""

READ_BY_TOKENIZERS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Small files beside the weights: configuration and everything a tokenizer is made of."""

LARGE = 8 << 20
"""Bytes of a file that is worth continuing."""

AT_ONCE = 4
"""Large files that are fetched side by side."""

WEIGHTS = "*.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin")


def needed(
    names: Iterable[str],
    *,
    weights: bool = True,
    pickle: bool = False,
    code: bool = False,
    folder: str = "",
) -> list[str]:
    """Files of a repository that loading reads, of all it holds.

    Safetensors if there are any, else (with `pickle`) pickled weights; copies in other layouts
    (`consolidated.*`, `original/`, `onnx/`), other precisions and training states are left.
    `folder` is the part of the repository that an adapter lies in.
    """
    every = sorted(names)
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    here = [n for n in every if n.startswith(prefix) and "/" not in n[len(prefix) :]]
    small = [n for n in here if _like(n, READ_BY_TOKENIZERS)]
    small += [n for n in every if fnmatchcase(n, "additional_chat_templates/*.jinja")]
    small += [n for n in every if n.endswith(".py")] if code else []
    if not weights:
        return small
    tensors = [n for n in here if _like(n, (WEIGHTS,)) and "consolidated" not in _base(n)]
    usual = [n for n in tensors if _base(n) == "model.safetensors"]
    shards = [n for n in tensors if re.fullmatch(r"model-\d+-of-\d+\.safetensors", _base(n))]
    if f"{prefix}model.safetensors.index.json" in here and shards:
        tensors = shards
    elif usual:
        tensors = usual
    if not tensors and pickle:
        tensors = [n for n in here if _like(n, PICKLES)]
    return small + tensors


def pickled_only(names: Iterable[str]) -> bool:
    """Whether a repository publishes its weights in pickled files alone."""
    every = [_base(n) for n in names]
    return any(_like(n, PICKLES) for n in every) and not any(_like(n, (WEIGHTS,)) for n in every)


def refuse_pickles(path: str, names: Iterable[str], allowed: bool) -> None:
    """See that a repository has weights that may be read.

    Raises:
        ModelError: only pickled ones, and those are not allowed.
    """
    if pickled_only(names) and not allowed:
        raise ModelError(
            f"{path}: the hub holds only pickled weights (.bin) of it, which run code when loaded; "
            "take a copy in safetensors, or set allow_pickle: true in models.yaml if you trust "
            "their source."
        )


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _like(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(_base(name), pattern) for pattern in patterns)


def cached(repo: str, revision: str | None) -> Path | None:
    """The folder of what an earlier download left, whole or not; never asks the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        # a snapshot of chosen files is none of the whole repository, but it is a folder
        partial = getattr(error, "snapshot_path", None)
        return Path(partial) if partial else None


def download(
    repo: str, revision: str | None, choose: Choose, progress: Progress | None = None
) -> Path:
    """The local folder with the chosen files of a repository; only what is missing is fetched.

    Without a connection, what an earlier download left serves; whether that is all of a checkpoint
    is seen when it is read.

    Raises:
        ModelError: unknown, not allowed, not reachable, cut short, or nothing to fetch in it.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # its versions differ in the HTTP library and its errors
        refusal = _refusal(repo, revision, error)
        kept = None if refusal else cached(repo, revision)
        if kept is not None:
            return kept
        raise refusal or _unreachable(repo) from error
    wanted = choose([file.rfilename for file in found.siblings or []])
    if not wanted:
        raise ModelError(f"{repo}: the hub holds none of the files of a checkpoint there.")
    large = [file for file in found.siblings or [] if file.rfilename in wanted and file.lfs]
    large = [file for file in large if int(file.size or 0) >= LARGE]
    try:
        _fetch_large(repo, str(found.sha), large, progress)
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[_literal(n) for n in wanted],
            tqdm_class=_silent(),
        )
    except Exception as error:  # as above
        refusal = _refusal(repo, revision, error)
        raise refusal or NotNow(
            f"{repo}: the download broke off ({_reason(error)}); what came is kept and continued "
            "next time."
        ) from error
    return Path(folder)


def _fetch_large(repo: str, commit: str, files: list[Any], progress: Progress | None) -> None:
    """Bring large files into the hub's cache, where it finds them by their SHA-256."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    blobs = storage / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not (blobs / file.lfs.sha256).exists()]
    total = sum(file.size for file in missing)
    counts: dict[str, int] = {}
    stop = threading.Event()

    def count(name: str, done: int, _: int | None) -> None:
        if stop.is_set():
            raise DataError("another file could not be fetched")
        counts[name] = done
        if progress is not None:
            progress(sum(counts.values()), total)

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for job in [pool.submit(_large, repo, commit, f, blobs, count) for f in missing]:
            job.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _large(
    repo: str, commit: str, file: Any, blobs: Path, count: Callable[[str, int, int | None], None]
) -> None:
    """One large file, taken up again as long as some of it comes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, file.rfilename, revision=commit)
    target = blobs / file.lfs.sha256
    part = target.with_name(f"{target.name}.part")
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{target.name}.lock"):
        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                return get(url, target, file.lfs.sha256, count, build_hf_headers())
            except DataError:
                if not part.is_file() or part.stat().st_size <= before:
                    raise


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _reason(error: Exception) -> str:
    text = " ".join(clean(str(error)).split()).split(". ")[0].rstrip(".")
    return (text or type(error).__name__)[:200]


def _refusal(repo: str, revision: str | None, error: Exception) -> ModelError | None:
    """What the hub itself says no to; None where it could not be asked, or was in trouble."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{repo}: the hub gives this model only to those who accepted its terms; accept them "
            "on its page and set HF_TOKEN to a token of yours."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{repo}: the hub knows no revision '{revision}' of it.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = isinstance(error, errors.HFValidationError) or status in (400, 401, 403, 404)
    if not told:
        return None
    return ModelError(
        f"{repo}: neither a local path nor to be had from the hub ({_reason(error)}); check the "
        "name."
    )


def _unreachable(repo: str) -> NotNow:
    return NotNow(
        f"{repo}: neither a local path nor reachable on the hub; check the name, the network, or "
        "set HF_ENDPOINT to a mirror."
    )


def _silent() -> type[Any]:
    """What huggingface_hub takes for bars, drawing nothing."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return Silent
