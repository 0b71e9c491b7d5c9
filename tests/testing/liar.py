"""What a liar is: a plugin that breaks one rule, the check that must fail for it, and the others that it reaches."""

from dataclasses import dataclass, field
from types import ModuleType


@dataclass(frozen=True)
class Liar:
    """A plugin that breaks one rule.

    Args:
        breaks: the check that must fail.
        lie: what it does, in words.
        module: the plugin.
        says: what the failure's message must contain.
        where_padded: other checks that fail on a device that pads rows and batches to few shapes, each with the reason;
            of `also`, some need not fail there.
        only_on: the one device whose shapes show the lie, with the reason; () where every device shows it.
        also: other checks that fail, each with the reason why this lie reaches them.
        tier: the tier that is run; None for contract and tiny.
        honest: of the golden tier: the plugin that the reference is computed from; None for the toy.
    """

    breaks: str
    lie: str
    module: ModuleType
    says: str
    also: dict[str, str] = field(default_factory=dict)
    where_padded: dict[str, str] = field(default_factory=dict)
    tier: str | None = None
    honest: ModuleType | None = None
    only_on: tuple[str, ...] = ()
