"""Whose fault it is when loading fails with an error that nobody raised on purpose: a file's, a plugin's, or neither's.

It is tried out. Reading goes again with one entry of one file left out, or as the plugin's own example has it: where
that cures the error, the entry is at fault, and named. Where nothing does, a plugin that builds its own examples is
believed, and one that does not is blamed. Runs only after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from archport.checkpoint.disk import REMOVED, masked, watched
from archport.contract import ArchportError, CheckpointError, PluginError
from archport.contract.plugins import Plugin

if TYPE_CHECKING:
    import mlx.core as mx

# Seconds that the search may take, of this thread and by the clock: an attempt may ask the hub.
_PATIENCE, _LONGEST = 1.0, 10.0
# What of a plugin is run on its own examples.
_TRIED = ("archport_claim", "archport_build", "sanitize")
# Without these nobody claims a checkpoint, so that leaving them out cures everything.
_IDENTITY = ("architectures", "model_type", "auto_map")


def unexpected(error: BaseException) -> bool:
    """Whether an error is one that nobody raised on purpose, of archport's own code or of a plugin's."""
    if isinstance(error, ArchportError):
        return _of_plugin(error) is not None
    return isinstance(error, Exception)


def explained(
    error: Exception, folder: Path | None, plugins: Sequence[Plugin], attempt: Callable[[], object]
) -> Exception:
    """The error to raise in an unexpected one's place; the error itself where nothing more is known.

    Args:
        folder: of the checkpoint, where it was found.
        plugins: who may have failed.
        attempt: reads the small files of the checkpoint once more, as far as the error came from them.
    """
    of_plugin = _of_plugin(error)
    cause = error if of_plugin is None else of_plugin.__cause__ or of_plugin
    said = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]
    culprit = _culprit(attempt, [example for plugin in plugins for example in _examples(plugin)])
    if culprit is not None:
        path, keys, value = culprit
        stated = "is missing" if value is REMOVED else f"is {value!r:.80}"
        return CheckpointError(f"{path}: {'.'.join(keys) or 'it'} {stated}, which can't be used ({said}).")
    if of_plugin is None or of_plugin.hook not in _TRIED:
        return error
    failed = [plugin for plugin in plugins if of_plugin.plugin in (None, plugin.label)]
    if failed and all(_is_sound(plugin) for plugin in failed):
        return CheckpointError(
            f"{folder or 'the checkpoint'}: config.json or the tensors can't be used ({said}). They are damaged, or "
            "belong to different models."
        )
    return error


def _of_plugin(error: BaseException) -> PluginError | None:
    """The exception of a plugin behind an error: itself, or where nobody claims a config its cause."""
    found = error if isinstance(error, PluginError) else error.__cause__
    return found if isinstance(found, PluginError) and isinstance(error, ArchportError) and found.hook else None


def _culprit(
    attempt: Callable[[], object], examples: list[Mapping[str, Any]]
) -> tuple[str, tuple[str, ...], Any] | None:
    """(file, keys, value) of what has to change for the attempt to go through; None where it goes as it is.

    Where no change does that, one after which the attempt ends in a refusal on purpose is as good: without the entry
    something else is amiss. Entries that are left out of config.json are no such change.
    """
    with watched() as found:
        if _cures(attempt):
            return None
    files = dict(found)
    until, by_the_clock, second = time.thread_time() + _PATIENCE, time.monotonic() + _LONGEST, None
    # A checkpoint can do without most files, so that one attempt tells whether a file is at fault.
    for path in found:
        if time.monotonic() > by_the_clock:
            return second
        with masked(path, ()):
            cured = _cures(attempt)
        if cured:
            files = {path: found[path]}
            break
        if cured is None and not path.endswith("/config.json"):
            second = second or (path, (), found[path])
    for path, content in files.items():
        for keys, value, other in _changes(content, examples if path.endswith("/config.json") else []):
            if time.thread_time() > until or time.monotonic() > by_the_clock:
                return second
            with masked(path, keys, other):
                cured = _cures(attempt)
            if cured:
                return path, keys, value
            # A config without an entry that every model has is always refused, which tells nothing about the entry.
            told = cured is None and not (other is REMOVED and path.endswith("/config.json"))
            if told and (second is None or not second[1]):
                second = path, keys, value
    if len(files) < len(found):
        path = next(iter(files))
        return path, (), files[path]
    return second


def _changes(content: Any, examples: list[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(keys, value, another value) of all that may be tried with a file: entries left out, and those of examples."""
    if not isinstance(content, dict):
        return
    entries: dict[tuple[str, ...], Any] = {}
    for key, value in content.items():
        entries[(key,)] = value
        if isinstance(value, dict):
            entries |= {(key, inner): entry for inner, entry in value.items()}
    # The inmost first: it says more.
    for keys in sorted(entries, key=len, reverse=True):
        if keys[0] not in _IDENTITY:
            yield keys, entries[keys], REMOVED
    for example in (each for each in examples if each.get("model_type") == content.get("model_type")):
        for key, value in example.items():
            if key not in _IDENTITY and content.get(key, REMOVED) != value:
                yield (key,), content.get(key, REMOVED), value


def _cures(attempt: Callable[[], object]) -> bool | None:
    """Whether an attempt goes through; None where it ends in a refusal on purpose."""
    try:
        attempt()
    # Whatever it raises is what is looked into.
    except Exception as error:
        return False if unexpected(error) else None
    return True


def _examples(plugin: Plugin) -> list[Mapping[str, Any]]:
    if plugin.module is None:
        return []
    try:
        return [example.config for example in plugin.hooks().examples()]
    # A plugin may have none, or fail in this as well.
    except Exception:
        return []


def _is_sound(plugin: Plugin) -> bool:
    """Whether a plugin claims, builds and fills its own examples."""
    from mlx.utils import tree_flatten

    from archport.checkpoint import normalise_config

    try:
        examples = plugin.hooks().examples()
        for example in examples:
            config = normalise_config(dict(example.config))
            spec = plugin.hooks().claim(config)
            assert spec is not None, "a sound plugin claims its examples"
            trunk = plugin.hooks().build(spec, config)
            weights = cast("dict[str, mx.array]", dict(tree_flatten(cast(Any, trunk).parameters())))
            trunk.sanitize(dict(example.publish(weights)) if example.publish else weights)
    except Exception:
        return False
    return bool(examples)
