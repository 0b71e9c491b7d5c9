"""What planning found out about one model on one device, kept for later requests. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archport.contract import AttentionLayer, BatchShape, LayerSpec, MaskPolicy

if TYPE_CHECKING:
    from archport.planning.quote import Quote, Schedule

Key = tuple[object, ...]
# Entries of all kinds. A quote takes some kilobytes, and devices that pad little see many shapes.
MOST = 2048


@dataclass(slots=True)
class Memo:
    """Answers that depend on their keys alone, for one spec, device, chooser and set of hooks.

    Without it every request of some short texts pays one to four milliseconds for what the last one knew.

    Args:
        numbers: rows that fit, and smallest peaks.
        quotes: of batches whose rows' lengths do not matter.
        schedules: by shape, of batches whose rows' lengths do.
        masks, backends, chunks: what hooks fixed, and who did.
    """

    numbers: dict[Key, int] = field(default_factory=dict["Key", "int"])
    quotes: dict[Key, Quote] = field(default_factory=dict["Key", "Quote"])
    schedules: dict[Key, Schedule] = field(default_factory=dict["Key", "Schedule"])
    masks: dict[tuple[LayerSpec, BatchShape], tuple[MaskPolicy | None, str]] = field(
        default_factory=dict["tuple[LayerSpec, BatchShape]", "tuple[MaskPolicy | None, str]"]
    )
    backends: dict[tuple[AttentionLayer, int, int, bool], tuple[str | None, str]] = field(
        default_factory=dict["tuple[AttentionLayer, int, int, bool]", "tuple[str | None, str]"]
    )

    chunks: dict[BatchShape, tuple[int | None, str]] = field(
        default_factory=dict["BatchShape", "tuple[int | None, str]"]
    )

    def tidy(self) -> None:
        """Forget everything once it is much; called between requests."""
        kinds = (self.numbers, self.quotes, self.schedules, self.masks, self.backends, self.chunks)
        if sum(map(len, kinds)) > MOST:
            for each in kinds:
                each.clear()
