"""The hub and its cache on this machine: find a repository, fetch what it needs, say why it could not.

The only code with a network. Chooses files by name before it asks for any: never code, never pickles, never the same
weights twice. Knows nothing of what the files mean beyond their names.

Files arrive small ones first, weights last, so a snapshot whose weights are whole is whole. A connection cut in the
middle of a file resumes where it stopped; a process that was killed starts that one file again and keeps the rest.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from archport.checkpoint.disk import inside, read_json
from archport.checkpoint.files import (
    ADAPTER_CONFIG,
    refuse_without_safetensors,
    shorten,
    small_files,
    weights_needed,
)
from archport.checkpoint.headers import LENGTH_BYTES, Fetched, TensorInfo, header_length, parse_header
from archport.contract.errors import CheckpointError, InputError, ModelNotFound, shown

logger = logging.getLogger("archport")

# Seconds for the first answer of the hub, and for one about a file while others are asked for.
_TIMEOUT, _FILE_TIMEOUT = 10.0, 30.0
# A transfer whose connection broke is taken up this often.
_ATTEMPTS = 3
# Of a weight file, bytes that are asked for first (most headers of one shard), and files that are read at once.
_FIRST, _CONNECTIONS = 16_384, 4
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files on this machine.

    Args:
        folder: where they are.
        commit: which version.
        complete: whether everything the repository offers and archport needs is certainly there.
        headers: of weight files that stayed on the hub.
    """

    folder: Path
    commit: str
    complete: bool
    headers: Fetched | None = None


def offline() -> bool:
    """Whether the environment forbids the network."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def endpoint() -> str | None:
    """The hub to talk to, None for the client's own default.

    Raises:
        InputError: HF_ENDPOINT is no address; the client's own faults over it name no variable.
    """
    # The client reads its environment once, at import; archport reads it at every call.
    stated = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if not stated:
        return None
    try:
        address = urlsplit(stated)
        usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    # Brackets that do not close, or a port above 65,535.
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"HF_ENDPOINT={shown(stated)} is no address; expected one such as https://huggingface.co")
    return stated


def cache_folder() -> Path:
    """Where the client keeps repositories."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if stated := os.environ.get(name):
            # A user who does not exist stays as it was written.
            return Path(os.path.expanduser(os.path.expandvars(stated))) / below
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_repositories() -> list[str]:
    """The ids of all model repositories in the cache, complete or not."""
    try:
        names = os.listdir(cache_folder())
    except OSError:
        return []
    return sorted(name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--"))


def find_cached(repo: str, revision: str | None) -> Snapshot | None:
    """The cached snapshot of a repository, None when there is none or it is known to be incomplete.

    Other programs cache single files: a snapshot without a stored listing may lack the pipeline files that decide the
    pooling, so it is returned with `complete` False.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # `os.path` says no to a name that is too long, instead of raising.
    if not os.path.isdir(cache_folder() / ("models--" + repo.replace("/", "--"))):
        return None
    try:
        located = snapshot_download(
            repo, revision=revision, cache_dir=cache_folder(), local_files_only=True, allow_patterns=["config.json"]
        )
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    folder = Path(located)
    names = _cached_listing(repo, revision)
    try:
        if names is None:
            here = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            # A table of vectors has none, and an adapter has its own.
            others = {"modules.json", ADAPTER_CONFIG}.intersection(here)
            config = [] if others and "config.json" not in here else ["config.json"]
            needed = [*config, *weights_needed(here, _reader(folder), repo)]
            whole = any(name.endswith(".safetensors") for name in needed)
        else:
            needed = small_files(names) + weights_needed(names, _reader(folder), repo)
            whole = True
    except CheckpointError:
        return None
    if not whole or not all((folder / name).is_file() for name in needed):
        return None
    return Snapshot(folder, folder.name, complete=names is not None)


def _cached_listing(repo: str, revision: str | None) -> list[str] | None:
    """Every file name of the cached version, when the client stored the listing."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    # Clients before 2 keep no listing.
    except ImportError:
        return None
    try:
        return [file.path for file in get_cached_repo_tree(repo, revision=revision, cache_dir=cache_folder())]
    except CachedRepoTreeNotFoundError:
        return None


def _reader(folder: Path) -> Callable[[str], Any]:
    return lambda name: read_json(inside(folder, name, "modules.json"))


def download(repo: str, revision: str | None, progress: bool | None) -> Snapshot:
    """Fetch what a repository needs into the cache.

    Args:
        progress: None shows a bar on a terminal only.

    Raises:
        ModelNotFound: no such repository or revision, no access, or no connection; the message says which.
        CheckpointError: the repository holds no safetensors weights.
    """
    _, weights = _begin(repo, revision)
    folder = _fetch(repo, revision, weights, progress)
    return Snapshot(folder, folder.name, complete=True)


def describe(repo: str, revision: str | None, progress: bool | None = None) -> Snapshot:
    """Fetch a repository's small files into the cache, and of its weights the headers alone, by ranges.

    Weights that are in the cache already are read there.

    Raises:
        ModelNotFound, CheckpointError: as `download`.
    """
    folder, weights = _begin(repo, revision)
    away = [file for file in weights if not (folder / file).is_file()]
    # The version whose small files were fetched.
    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="archport-headers") as threads:
        headers = list(threads.map(lambda file: _header(repo, folder.name, file), away))
    return Snapshot(folder, folder.name, complete=False, headers=dict(zip(away, headers, strict=True)))


def _begin(repo: str, revision: str | None) -> tuple[Path, list[str]]:
    """Fetch the small files; returns the snapshot's folder and the names of the weight files that the model needs."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=_token(), library_name="archport")
    info = _ask(repo, revision, lambda: api.model_info(repo, revision=revision, timeout=_TIMEOUT))
    names = [entry.rfilename for entry in info.siblings or []]
    refuse_without_safetensors(names, repo)
    folder = _fetch(repo, revision, small_files(names), progress=False)
    weights = weights_needed(names, _reader(folder), repo)
    absent = sorted(set(weights) - set(names))
    if absent:
        raise CheckpointError(f"{repo}: its index names {shorten(absent)}, which the repository does not hold.")
    return folder, weights


def _header(repo: str, commit: str, file: str) -> dict[str, TensorInfo]:
    """The tensors of one weight file on the hub, from its first bytes."""
    where = f"{repo}/{file}"

    def fetch(first: int, end: int) -> tuple[bytes, int]:
        return _ask(repo, commit, lambda: _range(repo, commit, file, first, end), attempts=_ATTEMPTS)

    start, total = fetch(0, _FIRST)
    end = LENGTH_BYTES + header_length(where, start, total)
    text = start[LENGTH_BYTES:end]
    if end > len(start):
        text += fetch(len(start), end)[0]
    return parse_header(where, file, text, total)


def _range(repo: str, commit: str, file: str, first: int, end: int) -> tuple[bytes, int]:
    """(bytes from `first` on and before `end`, bytes of the whole file), by one request.

    A server that knows no ranges sends the file from its beginning; the connection is closed when enough was read.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repo, file, revision=commit, endpoint=endpoint())
    headers = build_hf_headers(token=_token(), library_name="archport")
    headers |= {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=_FILE_TIMEOUT) as response:
        if response.status_code >= 400:
            # The client looks for the hub's reasons in the body too.
            response.read()
        hf_raise_for_status(response)
        partial = response.status_code == 206
        stated = response.headers.get("Content-Range", "") if partial else response.headers.get("Content-Length", "")
        total = int(stated.rpartition("/")[2])
        skipped = 0 if partial else first
        wanted = min(end, total) - first
        found = bytearray()
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= skipped + wanted:
                break
    if len(found) < skipped + wanted:
        raise HTTPError(f"{len(found):,} of {skipped + wanted:,} bytes of {file} arrived")
    return bytes(found[skipped : skipped + wanted]), total


def _fetch(repo: str, revision: str | None, names: Collection[str], progress: bool | None) -> Path:
    """Fetch exactly these files, taking broken transfers up again."""
    from huggingface_hub import snapshot_download

    def once() -> str:
        return snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_folder(),
            allow_patterns=[glob.escape(name) for name in names],
            endpoint=endpoint(),
            token=_token(),
            library_name="archport",
            tqdm_class=_progress_class(progress),
        )

    return Path(_ask(repo, revision, once, attempts=_ATTEMPTS))


def _progress_class(progress: bool | None) -> type[Any]:
    """The client's own bar, shown or not as asked."""
    from huggingface_hub.utils import tqdm

    shown = sys.stderr.isatty() if progress is None else progress

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": not shown})

    return Bar


def _token() -> str | None:
    """The token of the environment; None leaves the client to its own stored one."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def _ask(repo: str, revision: str | None, call: Callable[[], Any], attempts: int = 1) -> Any:
    """Run one request of the client; its many failures become one kind that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            # A status is the hub's answer; other transport errors are the connection's.
            broken = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
            if broken and attempt < attempts:
                logger.warning("%s: the connection broke (%s); taking it up again", repo, error)
                time.sleep(0.2 * attempt)
                continue
            raise ModelNotFound(_reason(repo, revision, error)) from error
    raise AssertionError("unreachable")


def _reason(repo: str, revision: str | None, error: BaseException) -> str:
    """What a failure of the client means and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = endpoint() or constants.ENDPOINT
    token = "the token in HF_TOKEN" if _token() else "no HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(repo, revision, error.__cause__)
    if isinstance(error, HFValidationError):
        return f"{repo!r} is not a hub id; expected `owner/name`."
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: its owner asks everyone to accept a licence first. Accept it at {where}/{repo}, create "
            f"a read token at {where}/settings/tokens and set HF_TOKEN to it (asked with {token})."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} exists at {where}, but has no revision {shown(revision)}; expected a branch, tag or commit."
    if isinstance(error, RepositoryNotFoundError):
        return f"{where} knows no model {repo!r}, or it is private and you have no access (asked with {token})."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE was set when the hub client was imported, so it refuses to connect."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"{where} refused access to {repo} ({status}, asked with {token}). Check that HF_TOKEN is valid and "
                f"may read it, and accept the licence at {where}/{repo} if it has one."
            )
        if status == 404:
            return f"{where} knows no model {repo!r} (404)."
        return f"{where} answered {status} for {repo}; try again later."
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    if isinstance(error, HTTPError) or "Consistency check failed" in said:
        return (
            f"{where} can't be reached ({said}). Check the network and HF_ENDPOINT, or download the model elsewhere "
            "and pass its folder."
        )
    if isinstance(error, OSError):
        return (
            f"{repo} can't be stored in the cache {cache_folder()} ({said}). Free space there, or set HF_HOME to a "
            "folder that can be written."
        )
    return (
        f"the hub client failed ({said}). Update huggingface_hub, or download the model elsewhere and pass its folder."
    )
