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
from typing import Any, TypeVar

from archport.contract.errors import SpecError

# The contract's own version, apart from the package's: it grows with what a plugin may say, and a plugin states the one
# it was written for. Those from OLDEST on are understood.
CONTRACT = (0, 2)
OLDEST = (0, 1)

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
