"""What leaves the contract, from when on it warns, and what takes its place: the one list, and how it is told.

docs/contract-promise.md says when. A hook or its argument is marked where it is declared (`warn_on_impl`,
`warn_on_impl_args` of pluggy) with a `ContractDeprecation` of a text from here; whatever else is called warns through
`Deprecation.warn`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ParamSpec, TypeVar, cast

from archport.contract.errors import SpecError

# The contract's own version, apart from the package's: it grows with what a plugin may say, and a plugin states the one
# it was written for. Those from OLDEST on are understood.
CONTRACT = (0, 2)
OLDEST = (0, 1)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class ContractDeprecation(DeprecationWarning):
    """A plugin uses what leaves the contract; the conformance kit collects these."""


@dataclass(frozen=True, slots=True)
class Deprecation:
    """One thing that leaves.

    Args:
        what: as a plugin's author wrote it.
        instead: what to write.
        since: contract version that began to warn.
        until: contract version that removes it at the earliest.
    """

    what: str
    instead: str
    since: str
    until: str

    @property
    def text(self) -> str:
        """What a warning says."""
        return (
            f"{self.what} is deprecated since contract {self.since}: {self.instead}. It works until contract "
            f"{self.until} at the least"
        )

    def warn(self, stacklevel: int = 3) -> None:
        """Warn at the line that used it, which Python shows once per place."""
        warnings.warn(self.text, ContractDeprecation, stacklevel=stacklevel)


POSITIONAL_SPEC = Deprecation(
    what="ArchSpec(...) with positional arguments",
    instead="give every field by name, ArchSpec(arch=..., tasks=..., layers=...), since the order of fields may change",
    since="0.2",
    until="0.4",
)


_SPELLING = {"since": "0.2", "until": "0.4"}
SEGMENTS = Deprecation("'segments' as the name of a mask or a backend", "write 'documents'", **_SPELLING)
SEGMENTS_TYPE = Deprecation("archport.contract.Segments", "import Documents", **_SPELLING)
CONTEXT_SEGMENTS = Deprecation("ctx.segments", "read ctx.documents", **_SPELLING)
ARGUMENT_SEGMENTS = Deprecation("segments= of ShortConv", "write documents=, or no name", **_SPELLING)


class Documents(str):
    """The word `documents`, which by `==` and `!=` is `segments` as well, and then warns: plugins compare masks."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        old = other == "segments" if type(other) is str else False
        if old:
            SEGMENTS.warn()
        return old or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        if type(other) is str and other == "segments":
            SEGMENTS.warn()
            return False
        return str.__ne__(self, other)


def spelt(name: T) -> T:
    """The name of a mask or a backend as it is spelt now, as `dataclass` fields and arguments take it."""
    if isinstance(name, str) and not isinstance(name, Documents) and name in ("segments", "documents"):
        if name == "segments":
            # The line that made the policy or call, after `__post_init__` and `__init__`.
            SEGMENTS.warn(stacklevel=5)
        return cast(T, Documents("documents"))
    return name


def renamed_argument(old: str, new: str, notice: Deprecation) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions one of whose arguments may still be given by its old name."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if old in options:
                notice.warn()
                options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def documents_as_segments() -> Any:
    """A context's `segments`, which says that it is `documents` now."""

    def segments(self: Any) -> Any:
        CONTEXT_SEGMENTS.warn()
        return self.documents

    return property(segments)


def keywords_only(notice: Deprecation) -> Callable[[type[T]], type[T]]:
    """A class decorator for dataclasses made with `kw_only=True`: positional arguments still work, and warn.

    Raises:
        TypeError: when called with more positional arguments than fields, or with one twice, as by Python itself.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Callable[..., None] = cls.__init__
        names = [each.name for each in fields(cls) if each.init]  # pyright: ignore[reportArgumentType]

        @functools.wraps(made)
        def init(self: Any, *args: Any, **given: Any) -> None:
            if args:
                if len(args) > len(names):
                    raise TypeError(f"{cls.__name__} has {len(names)} fields, but {len(args)} arguments were given")
                twice = [name for name in names[: len(args)] if name in given]
                if twice:
                    raise TypeError(f"{cls.__name__} got {twice[0]!r} by position and by name")
                notice.warn()
            made(self, **dict(zip(names, args, strict=False)), **given)

        cls.__init__ = init
        return cls

    return decorate


def contract_fault(stated: object) -> str | None:
    """Why a plugin written for the contract version it states can't be used here; None when it can.

    Args:
        stated: the plugin module's `ARCHPORT_CONTRACT`, such as "0.2".
    """
    here = ".".join(map(str, CONTRACT))
    try:
        version = parsed(stated)
    except SpecError as error:
        return str(error)
    if version > CONTRACT:
        return (
            f"it is written for contract {stated}, and this archport speaks {here}; upgrade archport, or install an "
            "older release of the plugin"
        )
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return (
            f"it is written for contract {stated}, and this archport understands {oldest} to {here}; install a newer "
            "release of the plugin, or an older archport"
        )
    return None


def parsed(stated: object) -> tuple[int, int]:
    """A version such as "0.2" as two numbers; raises SpecError for anything else."""
    parts = stated.split(".") if isinstance(stated, str) else []
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
        raise SpecError(f'ARCHPORT_CONTRACT is {stated!r}; expected two numbers, such as "0.2"')
    return int(parts[0]), int(parts[1])
