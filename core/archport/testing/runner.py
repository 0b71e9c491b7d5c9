"""Run the checks on a plugin: which apply, how each ended, what is excused. Knows no property and prints nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from archport import engine
from archport.contract import InputError
from archport.contract.plugins import Plugin
from archport.testing.check import CHECKS, TIERS, Check, CheckFailed, NotApplicable, Outcome, Part, Status, Tier
from archport.testing.finding import find, subject_of
from archport.testing.subject import Golden, Subject, Tiny

# A plugin that does not even load fails this one, and nothing else is run.
LOADS = "hooks_match_the_contract"
# Every check of the tiny tier stands on this one.
BUILDS = "published_checkpoint_loads"
_WORST: tuple[Status, ...] = ("fail", "blocked", "ok", "not applicable")


def run_checks(
    plugin: str | ModuleType | Plugin,
    *,
    known_failures: Mapping[str, str] | None = None,
    tier: Tier | None = None,
    model: str | None = None,
    vectors: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> list[Outcome]:
    """Run the checks on a plugin, in their order.

    Args:
        plugin: an entry-point name, a module (installed or not), or what discovery found.
        known_failures: check name -> why it fails; one that passes is an `unexpected pass`.
        tier: run this one; left out: `contract` and `tiny`, and `golden` when a model is named.
        model: real weights for the golden tier: a folder, hub id or alias.
        vectors: an .npz with `texts` (N,) and `vectors` (N, D) that the model gave earlier.
        only: names of checks to run.

    Raises:
        InputError: an unknown check or tier, or a known failure without a reason.
    """
    found = find(plugin)
    known = check_known_failures(known_failures)
    chosen = choose_checks(tier, model, only)
    if found.module is None:
        part = Part("", "fail", f"{found.label} did not load: {found.error}", f"entry point {found.target!r}")
        return [Outcome(found.name, next(each for each in CHECKS if each.name == LOADS), "fail", (part,), 0.0)]
    subject = subject_of(found)
    golden = Golden(engine.load(model, plugins=(found,)), _stored(vectors)) if model else None
    return [excused(run_check(subject, each, golden), known.get(each.name, "")) for each in chosen]


def choose_checks(tier: Tier | None, model: str | None, only: Sequence[str] | None) -> list[Check]:
    """The checks of a run.

    Raises:
        InputError: an unknown tier or name, or the golden tier without a model.
    """
    if tier is not None and tier not in TIERS:
        raise InputError(f"{tier=}; expected one of {', '.join(TIERS)}")
    if tier == "golden" and model is None:
        raise InputError("the golden tier needs real weights: name a model (`-m MODEL`)")
    wanted = (tier,) if tier else TIERS if model else TIERS[:2]
    unknown = sorted(set(only or ()) - {each.name for each in CHECKS})
    if unknown:
        raise InputError(f"unknown checks: {', '.join(unknown)}; known: {', '.join(each.name for each in CHECKS)}")
    return [each for each in CHECKS if each.tier in wanted and (only is None or each.name in only)]


def check_known_failures(known: Mapping[str, str] | None) -> dict[str, str]:
    """The known failures, once their names and reasons are sound.

    Raises:
        InputError: a name that is no check, a reason that says nothing, or a check that can't be excused.
    """
    by_name = {each.name: each for each in CHECKS}
    for name, reason in (known or {}).items():
        if name not in by_name:
            raise InputError(f"known_failures names {name!r}, which is no check; known: {', '.join(by_name)}")
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(f"known_failures[{name!r}] is {reason!r}; expected the reason, best with a link")
        if by_name[name].tier == "contract" or name == BUILDS:
            raise InputError(f"known_failures names {name!r}, which can't be excused: everything else stands on it")
    return dict(known or {})


def excused(outcome: Outcome, reason: str) -> Outcome:
    """The outcome of a check that is declared a known failure for this reason, "" for none."""
    if not reason or outcome.status not in ("ok", "fail"):
        return outcome
    status: Status = "known failure" if outcome.status == "fail" else "unexpected pass"
    return Outcome(outcome.plugin, outcome.check, status, outcome.parts, outcome.seconds, reason)


def run_check(subject: Subject, each: Check, golden: Golden | None = None) -> Outcome:
    """One check on a plugin: once, or once per example."""
    started = time.perf_counter()
    if each.tier == "contract":
        parts = [_part(subject, each, "", subject)]
    elif each.tier == "golden":
        parts = [_part(subject, each, "", golden)]
    else:
        parts = _per_example(subject, each)
    statuses: list[Status] = [part.status for part in parts]
    status = min(statuses, key=_WORST.index)
    return Outcome(subject.plugin.name, each, status, tuple(parts), time.perf_counter() - started)


def _per_example(subject: Subject, each: Check) -> list[Part]:
    try:
        tinies = subject.tinies
    # A hook of a stranger: whatever it raises is told by the contract's own check.
    except Exception as error:
        return [Part("", "blocked", f"archport_examples failed: {error}")]
    if not tinies:
        return [Part("", "blocked", "archport_examples names no example to build")]
    return [
        Part(tiny.example.name, "blocked", f"{BUILDS} fails: {tiny.broken.splitlines()[0]}")
        if each.name != BUILDS and tiny.broken
        else _part(subject, each, tiny.example.name, tiny)
        for tiny in tinies
    ]


def _part(subject: Subject, each: Check, example: str, given: Subject | Tiny | Golden | None) -> Part:
    try:
        return Part(example, "ok", each.run(given))
    except NotApplicable as reason:
        return Part(example, "not applicable", str(reason))
    except CheckFailed as failure:
        cause = failure.__cause__
        where = frame_location(subject.module, cause) if cause else hook_location(subject.module, each.hook)
        return Part(example, "fail", str(failure), where)
    # Anything else that a stranger's code raises is a failure of the property, told with its place.
    except Exception as error:
        return Part(example, "fail", f"{type(error).__name__}: {error}", frame_location(subject.module, error))


def hook_location(module: ModuleType, hook: str) -> str:
    """File, line and name of the hook that decides a property."""
    function: Callable[..., Any] | None = getattr(module, hook, None)
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{hook} of {module.__name__}"
    return f"{_short(code.co_filename)}:{code.co_firstlineno} in {hook}"


def frame_location(module: ModuleType, error: BaseException) -> str:
    """Where an error came from: the deepest frame in the plugin's own files, else the deepest one."""
    own = _folder(module)
    deepest = ""
    cause: BaseException | None = error
    chain: list[BaseException] = []
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            place = f"{_short(frame.filename)}:{frame.lineno} in {frame.name}"
            deepest = deepest or place
            if own and Path(frame.filename).is_relative_to(own):
                return place
    return deepest


def _folder(module: ModuleType) -> Path | None:
    if not getattr(module, "__file__", None):
        return None
    path = Path(str(module.__file__))
    return path.parent if path.name == "__init__.py" else path


def _short(filename: str) -> str:
    path = Path(filename)
    return str(Path(*path.parts[-2:]))


def _stored(path: str | Path | None) -> tuple[list[str], np.ndarray] | None:
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return [str(text) for text in file["texts"]], np.asarray(file["vectors"], dtype=np.float32)
    except Exception as error:
        raise InputError(
            f"vectors={str(path)!r} can't be read ({type(error).__name__}: {error}); expected an .npz with `texts` "
            "(N,) and `vectors` (N, D)"
        ) from error
