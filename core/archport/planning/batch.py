"""Rows that run together, and the steps they run in. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from archport.contract import AttentionPath, BatchShape, MaskPolicy, Span
from archport.planning.plan import StepPlan


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together, before a schedule is found.

    Args:
        lengths: new tokens per row.
        cached: cached tokens per row.
        shape: their padded shape.
        others: whether other batches run before or after this one.
        visible: leading tokens of each row that any token sees; empty when all are.
        pictures: patches of each picture, in the order of rows and of tokens in them.
        packed: whether the rows lie behind one another in a single one, which `shape` is of.
        spans: per row the stretches of new tokens that see each other; empty when no row has any.
        dense: whether one mask of (B,1,S,S) in float32 is to be built, as a naive implementation does.
    """

    lengths: tuple[int, ...]
    cached: tuple[int, ...]
    shape: BatchShape
    others: bool = False
    dense: bool = False
    pictures: tuple[int, ...] = ()
    visible: tuple[int, ...] = ()
    packed: bool = False
    spans: tuple[tuple[Span, ...], ...] = ()

    @property
    def even_start(self) -> bool:
        """Whether new tokens stand at one position in all rows."""
        return min(self.cached) == max(self.cached)

    @property
    def even_end(self) -> bool:
        """Whether all rows hold equally many tokens once they are prefilled."""
        return len({cached + new for cached, new in zip(self.cached, self.lengths, strict=True)}) == 1


@dataclass(frozen=True, slots=True)
class Steps:
    """The prefill of a batch: its steps, and per kind of layer the mask policy and what hooks fixed, in words."""

    steps: tuple[StepPlan, ...]
    masks: tuple[MaskPolicy | None, ...]
    pins: tuple[tuple[str, ...], ...]

    @property
    def exceeds(self) -> bool:
        """Whether some path breaks the limits it was chosen within."""
        return any(path.excess for step in self.steps for path in step.paths if isinstance(path, AttentionPath))
