"""From a name to a checkpoint on this machine: folder, package that carries it, hub cache, hub.

Knows the order and words the failures. Knows no model: names and their targets come from the plugins.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from archport.checkpoint import hub
from archport.checkpoint.adapter_files import Adapter, adapter_alone, read_adapter
from archport.checkpoint.checkpoint import Checkpoint, Source, by_adapter, open_checkpoint
from archport.checkpoint.disk import inside
from archport.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, body_folder
from archport.checkpoint.headers import Fetched
from archport.contract.errors import CheckpointError, InputError, ModelNotFound, PluginError, shown

logger = logging.getLogger("archport")

_PACKAGE = re.compile(r"^(?P<package>[A-Za-z_]\w*):(?P<folder>.*)$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?$")
_HUB_ID_LENGTH = 96
_URL = re.compile(r"^https?://[^/]+/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, slots=True)
class _Location:
    """The files that a name leads to, which nobody has read yet."""

    folder: Path
    name: str
    source: Source
    revision: str | None = None
    fetched: Fetched | None = None


@dataclass(slots=True)
class _Trail:
    """What is looked for and where it was, for the error."""

    requested: str
    known: Mapping[str, str]
    progress: bool | None
    weights: bool
    steps: list[str] = field(default_factory=list)

    def to(self, name: str) -> _Trail:
        """The trail of another name."""
        return _Trail(name, self.known, self.progress, self.weights)

    def not_found(self, reason: str) -> ModelNotFound:
        lines = [f"no model {self.requested[:100]!r}: {reason}"]
        if self.steps:
            lines.append("tried: " + "; ".join(self.steps))
        if close := near_matches(self.requested, self.known):
            lines.append("did you mean: " + ", ".join(close) + "?")
        return ModelNotFound("\n  ".join(lines))


def resolve(
    name: str | Path,
    *,
    models: Mapping[str, str],
    revision: str | None = None,
    progress: bool | None = None,
    weights: bool = True,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """Find a checkpoint, fetching it when it is nowhere on this machine.

    The order: a folder of that name, an installed package that carries the model, the hub cache, the hub. A model in
    the cache is used as it is; nothing asks the hub whether it has a newer version. What holds an adapter alone leads
    to the base that it names.

    Args:
        name: a folder, a hub id, or a name that `models` knows.
        models: name -> hub id, another name, or `package:folder` of a package that carries the model.
        revision: branch, tag or commit of a hub repository; a package, which has none, is then passed over.
        progress: whether a download shows a bar; None on a terminal only.
        weights: whether weight files are fetched from the hub; without it their headers alone are, which describe a
            model but don't load one.
        adapter: a folder or hub id of an adapter that its weights are loaded with.

    Raises:
        ModelNotFound: the name leads nowhere; the message lists what was tried and near matches.
        CheckpointError: it leads to something that is not a usable checkpoint, or an adapter does not fit it.
        InputError: a name that can't be one, or a revision of a folder.
        PluginError: the plugins' names go in a circle.
    """
    trail = _Trail(_checked_name("model name", name), models, progress, weights)
    found = _located(name, revision, trail)
    if adapter is not None:
        given = _given_adapter(adapter, trail)
        if adapter_alone(_body(found), found.fetched):
            raise CheckpointError(
                f"{found.name}: is an adapter itself, and archport loads one of a base. Name the base and one adapter."
            )
        return _opened(found, trail, given)
    if adapter_alone(_body(found), found.fetched):
        return _of_adapter(found, trail)
    return _opened(found, trail, _adapter_in(found))


def resolve_adapter(name: str | Path, *, models: Mapping[str, str], progress: bool | None = None) -> Adapter:
    """Find an adapter, fetching it when it is nowhere on this machine.

    Raises:
        ModelNotFound, InputError: as `resolve`.
        CheckpointError: what is there is no adapter, or none that archport runs.
    """
    return _given_adapter(name, _Trail(str(name), models, progress, weights=True))


def _checked_name(what: str, name: str | Path) -> str:
    requested = str(name)
    if not isinstance(name, str | Path) or not requested.strip() or "\0" in requested:
        raise InputError(f"{what} {name!r}: expected a folder, a hub id such as 'owner/name', or a known name.")
    return requested


def _located(name: str | Path, revision: str | None, trail: _Trail) -> _Location:
    """The files that a name leads to."""
    if found := _from_folder(name, revision, trail):
        return found
    requested = str(name)
    targets = _chain(requested, trail.known)
    hub_id = next((target for target in reversed(targets) if not _PACKAGE.match(target)), requested)
    for target in targets:
        if match := _PACKAGE.match(target):
            if revision is not None:
                trail.steps.append(
                    f"package {match['package']} (passed over: revision={shown(revision)} was asked for)"
                )
            elif found := _from_package(match["package"], match["folder"], hub_id, trail):
                return found
    return _from_hub(hub_id, revision, trail)


def _opened(found: _Location, trail: _Trail, adapter: Adapter | None = None) -> Checkpoint:
    return open_checkpoint(
        found.folder,
        name=found.name,
        requested=trail.requested,
        source=found.source,
        revision=found.revision,
        fetched=found.fetched,
        adapter=adapter,
    )


def _body(found: _Location) -> Path:
    return inside(found.folder, body_folder(found.folder), "modules.json")


def _adapter_in(found: _Location) -> Adapter | None:
    place = _body(found)
    prefix = "" if place == found.folder else f"{place.relative_to(found.folder).as_posix()}/"
    return read_adapter(place, found.name, (found.fetched or {}).get(f"{prefix}{ADAPTER_WEIGHTS}"))


def _given_adapter(name: str | Path, trail: _Trail) -> Adapter:
    """An adapter that the caller named."""
    found = _located(name, None, trail.to(_checked_name("adapter", name)))
    adapter = _adapter_in(found)
    if adapter is None:
        raise CheckpointError(
            f"{found.folder}: there is no {ADAPTER_CONFIG}, so this is not an adapter. Expected {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS}, as peft saves them."
        )
    return adapter


def _of_adapter(found: _Location, trail: _Trail) -> Checkpoint:
    """The base that an adapter names, with it."""
    adapter = _adapter_in(found)
    assert adapter is not None, "what is an adapter alone has its config"
    if adapter.base is None:
        raise CheckpointError(
            f"{found.name}: {ADAPTER_CONFIG} names no base (base_model_name_or_path). Name it: engine.load(BASE, "
            f"adapter={found.name!r})."
        )
    try:
        place = _located(
            adapter.base, None if _kind(Path(adapter.base)) else adapter.base_revision, trail.to(adapter.base)
        )
    except (ModelNotFound, InputError) as error:
        raise ModelNotFound(
            f"{found.name}: its base (base_model_name_or_path) is not to be had: {error}\n  Name one that is: "
            f"engine.load(BASE, adapter={found.name!r})."
        ) from error
    if adapter_alone(_body(place), place.fetched):
        raise CheckpointError(
            f"{found.name}: its base {adapter.base!r} is an adapter itself, and archport loads one of a base. Merge "
            "that one into its own base first."
        )
    base = _opened(place, trail.to(adapter.base), adapter)
    return by_adapter(
        base,
        found.folder,
        name=found.name,
        requested=trail.requested,
        source=found.source,
        revision=found.revision,
    )


def _chain(requested: str, models: Mapping[str, str]) -> list[str]:
    """The name and what it stands for, link by link."""
    targets = [requested]
    while (target := models.get(targets[-1])) is not None and target != targets[-1]:
        targets.append(target)
        if target in targets[:-1]:
            raise PluginError(
                f"model names go in a circle: {' -> '.join(targets)}. A plugin's archport_models is wrong."
            )
    return targets


def _short(path: Path) -> str:
    """A path as messages show it: its end, where it is longer than any that exists."""
    text = str(path)
    return text if len(text) <= 300 else f"...{text[-100:]} ({len(text):,} characters)"


def _kind(path: Path) -> str:
    """What is at a path: "folder", "file" or nothing."""
    # A name may be too long for a path.
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else ""
    except OSError:
        return ""


def _from_folder(name: str | Path, revision: str | None, trail: _Trail) -> _Location | None:
    requested = str(name)
    try:
        path = Path(name).expanduser()
    # No such user.
    except RuntimeError:
        path = Path(name)
    explicit = isinstance(name, Path) or path.is_absolute() or requested.startswith((".", "~")) or "\\" in requested
    if _kind(path) == "folder":
        if not explicit and not any((path / file).exists() for file in ("config.json", "modules.json", ADAPTER_CONFIG)):
            trail.steps.append(f"folder {path} (holds no config.json)")
            return None
        if revision is not None:
            raise InputError(
                f"revision={shown(revision)} with the folder {path}: a folder has no revisions; leave it out."
            )
        folder = path.resolve()
        return _Location(folder, str(folder), "folder")
    if _kind(path) == "file":
        raise CheckpointError(f"{path} is a file; expected the folder that holds config.json and the weights.")
    if explicit or (requested.count("/") > 1 and not _URL.match(requested)):
        siblings = os.listdir(path.parent) if _kind(path.parent) == "folder" else []
        close = difflib.get_close_matches(path.name, siblings, n=3)
        hint = f" Near it: {', '.join(str(path.parent / other) for other in close)}." if close else ""
        raise ModelNotFound(f"there is no folder {_short(path)} (working directory {Path.cwd()}).{hint}")
    trail.steps.append(f"folder {requested[:100]} (absent)")
    return None


def _from_package(package: str, folder: str, name: str, trail: _Trail) -> _Location | None:
    """The checkpoint inside an installed package, found without importing the package."""
    try:
        spec = importlib.util.find_spec(package)
    # A half-initialised module of that name.
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        trail.steps.append(f"package {package}, which carries it (not installed)")
        return None
    for location in spec.submodule_search_locations:
        path = inside(Path(location), folder, f"the name of a model in package {package}")
        if path.is_dir():
            return _Location(path, name, "package")
    trail.steps.append(f"package {package} (installed without a folder {folder!r})")
    return None


def _from_hub(hub_id: str, revision: str | None, trail: _Trail) -> _Location:
    if not _HUB_ID.match(hub_id) or len(hub_id) > _HUB_ID_LENGTH:
        url = _URL.match(hub_id)
        raise trail.not_found(f"pass {url[1]!r}, not its address" if url else "it is neither a folder nor a hub id")
    # The hub client can't even be imported with an address that is none.
    hub.endpoint()
    snapshot = hub.find_cached(hub_id, revision)
    if snapshot is not None and snapshot.complete:
        return _of_snapshot(snapshot, hub_id, "cache")
    trail.steps.append(f"hub cache {hub.cache_folder()} ({'incomplete' if snapshot else 'absent or incomplete'})")
    if hub.offline():
        reason = "HF_HUB_OFFLINE forbids asking the hub; unset it, or download the model once while online"
        failure = trail.not_found(reason)
    else:
        try:
            fetch = hub.download if trail.weights else hub.describe
            return _of_snapshot(fetch(hub_id, revision, trail.progress), hub_id, "hub")
        except ModelNotFound as error:
            trail.steps.append(f"hub {hub_id}")
            failure = trail.not_found(str(error))
            failure.__cause__ = error.__cause__
    if snapshot is None:
        raise failure
    logger.warning(
        "%s: using the cached copy, which another program made; whether it holds every pipeline file is unknown, and "
        "the hub could not be asked",
        hub_id,
    )
    return _of_snapshot(snapshot, hub_id, "cache")


def _of_snapshot(snapshot: hub.Snapshot, hub_id: str, source: Source) -> _Location:
    return _Location(snapshot.folder, hub_id, source, snapshot.commit, snapshot.headers)


def near_matches(requested: str, known: Iterable[str]) -> list[str]:
    """Known and cached names like the requested one, best first."""
    names = sorted({*known, *hub.cached_repositories()})
    by_lower = {name.lower(): name for name in reversed(names)}
    by_tail: dict[str, list[str]] = {}
    for name in names:
        by_tail.setdefault(name.rsplit("/", 1)[-1].lower(), []).append(name)
    whole = difflib.get_close_matches(requested.lower(), by_lower, n=3, cutoff=0.6)
    tails = difflib.get_close_matches(requested.rsplit("/", 1)[-1].lower(), by_tail, n=3, cutoff=0.6)
    found = [by_lower[name] for name in whole] + [name for tail in tails for name in by_tail[tail]]
    return [name for name in dict.fromkeys(found) if name != requested][:4]
