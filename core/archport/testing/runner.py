"""Run the checks on a plugin: which apply, how each ended, what is excused. Knows no property and prints nothing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from archport import engine
from archport.contract import InputError
from archport.contract.plugins import Plugin
from archport.testing.check import CHECKS, TIERS, Check, CheckFailed, NotApplicable, Outcome, Part, Status, Tier, Warned
from archport.testing.finding import find, subject_of
from archport.testing.recorded import GoldenFile, Recorded, read_golden
from archport.testing.subject import Golden, Subject, Tiny

# A plugin that does not even load fails this one, and nothing else is run.
LOADS = "hooks_match_the_contract"
# Every check of the tiny tier stands on this one.
BUILDS = "published_checkpoint_loads"
_WORST: tuple[Status, ...] = ("fail", "blocked", "warning", "ok", "not applicable")


def run_checks(
    plugin: str | ModuleType | Plugin,
    *,
    known_failures: Mapping[str, str] | None = None,
    tier: Tier | None = None,
    model: str | None = None,
    vectors: str | Path | None = None,
    golden: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> list[Outcome]:
    """Run the checks on a plugin, in their order.

    Args:
        plugin: an entry-point name, a module (installed or not), or what discovery found.
        known_failures: check name -> why it fails; one that passes is an `unexpected pass`.
        tier: run this one; left out: `contract` and `tiny`, and `golden` when a model or a golden file is named.
        model: real weights for the golden tier: a folder, hub id or alias.
        vectors: an .npz with `texts` (N,) and `vectors` (N, D) that the model gave earlier; the older name of `golden`.
        golden: what `archport record` wrote, of this model, or of the plugin's examples where no model is named.
        only: names of checks to run.

    Raises:
        InputError: an unknown check or tier, a known failure without a reason, or a golden file of something else.
    """
    if vectors is not None and golden is not None:
        raise InputError("both vectors= and golden= are given, which are two names for one file; give one of them")
    golden = vectors if golden is None else golden
    found = find(plugin)
    known = check_known_failures(known_failures)
    chosen = choose_checks(tier, only, golden=bool(model or golden))
    if found.module is None:
        part = Part("", "fail", f"{found.label} did not load: {found.error}", f"entry point {found.target!r}")
        return [Outcome(found.name, next(each for each in CHECKS if each.name == LOADS), "fail", (part,), 0.0)]
    subject = subject_of(found)
    cases = goldens(subject, model, golden) if any(each.tier == "golden" for each in chosen) else {}
    return [excused(run_check(subject, each, cases), known.get(each.name, "")) for each in chosen]


def choose_checks(tier: Tier | None, only: Sequence[str] | None, *, golden: bool) -> list[Check]:
    """The checks of a run.

    Args:
        golden: whether there is something for the golden tier.

    Raises:
        InputError: an unknown tier or name, or the golden tier without a model or reference.
    """
    if tier is not None and tier not in TIERS:
        raise InputError(f"{tier=}; expected one of {', '.join(TIERS)}")
    if tier == "golden" and not golden:
        raise InputError(
            "the golden tier needs real weights or a reference: name a model (`-m MODEL`), or what `archport record` "
            "wrote (`--golden FILE`)"
        )
    wanted = (tier,) if tier else TIERS[:3] if golden else TIERS[:2]
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


def run_check(subject: Subject, each: Check, cases: Mapping[str, Golden | Part] | None = None) -> Outcome:
    """One check on a plugin: once, or once per example.

    Args:
        cases: of the golden tier, see `goldens`.
    """
    started = time.perf_counter()
    if each.tier == "contract":
        parts = [_part(subject, each, "", subject)]
    elif each.tier == "golden":
        parts = [
            case if isinstance(case, Part) else _part(subject, each, name, case) for name, case in (cases or {}).items()
        ]
    else:
        parts = _per_example(subject, each)
    statuses: list[Status] = [part.status for part in parts]
    status = min(statuses, key=_WORST.index)
    return Outcome(subject.plugin.name, each, status, tuple(parts), time.perf_counter() - started)


def goldens(subject: Subject, model: str | None, file: str | Path | None) -> dict[str, Golden | Part]:
    """What the golden tier is given: the named model as "", or each example that a golden file was recorded from.

    An example without a reference is a part that says why.

    Raises:
        InputError: the file is of something else than is named, or of an example that changed since.
    """
    held = None if file is None else read_golden(file)
    if model is not None:
        if held is not None and held.of_examples:
            raise InputError(
                f"golden={str(file)!r} was recorded from examples; leave {model=} out, or record that model"
            )
        # A reference is float32; without one, what users get is looked at.
        dtype = None if held is None or held.cases[0].ids is None else "float32"
        loaded = engine.load(model, plugins=(subject.plugin,), dtype=dtype)
        return {"": Golden(loaded, None if held is None else held.cases[0])}
    assert held is not None, "the golden tier has a model or a file"
    if not held.of_examples:
        of = held.provenance.get("of", "a checkpoint")
        raise InputError(f"golden={str(file)!r} was recorded from {of}; name that checkpoint (`-m MODEL`)")
    return _examples_with(subject, held, str(file))


def _examples_with(subject: Subject, held: GoldenFile, file: str) -> dict[str, Golden | Part]:
    known: dict[str, Recorded] = {case.name: case for case in held.cases}
    tinies = {tiny.example.name: tiny for tiny in subject.tinies}
    again = "record it again (`archport record`)"
    gone = sorted({*known, *held.left_out} - set(tinies))
    if gone:
        raise InputError(f"golden={file!r} was recorded from examples that are gone: {', '.join(gone)}; {again}")
    found: dict[str, Golden | Part] = {}
    for name, tiny in tinies.items():
        if tiny.broken:
            found[name] = Part(name, "blocked", f"{BUILDS} fails: {tiny.broken.splitlines()[0]}")
        elif name not in known:
            why = held.left_out.get(name, f"it is newer than {file}")
            found[name] = Part(name, "not applicable", f"the example has no reference: {why}")
        elif not same_example(known[name].fingerprint, tiny.fingerprint):
            raise InputError(f"golden={file!r}: the example {name!r} is not what was recorded any more; {again}")
        else:
            found[name] = Golden(tiny.model, known[name], real=False)
    return found


def same_example(one: str, other: str) -> bool:
    """Whether two fingerprints of `Tiny` are of the same config and the same tensors, but for rounding."""
    (stated, _, size), (stated_too, _, size_too) = one.partition(" "), other.partition(" ")
    return stated == stated_too and abs(float(size) - float(size_too)) <= 1e-4 * float(size)


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
    except Warned as warning:
        return Part(example, "warning", str(warning), hook_location(subject.module, each.hook))
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
