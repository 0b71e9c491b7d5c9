"""What a plugin or caller may fix about a plan. The planner asks; it does not know who answers.

The typed face of the hooks satisfies this protocol, so planning needs neither plugins nor their manager.
"""

from __future__ import annotations

from typing import Protocol

from archport.contract import (
    ArchSpec,
    AttentionCall,
    BatchShape,
    DeviceFacts,
    KVAllocation,
    LayerSpec,
    Limits,
    MaskPolicy,
)


class Pins(Protocol):
    """Answers to the policy hooks; None leaves the choice to the planner."""

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None: ...

    def kv_allocation(
        self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits
    ) -> KVAllocation | None: ...

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None: ...

    def sdpa_backend(
        self, spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts
    ) -> str | None: ...

    def answered_by(self, hook: str) -> str:
        """Who gave the latest answer of a hook ("qwen3 (archport 0.1.0)"); "" when nobody has yet."""
        ...


class NoPins:
    """Fixes nothing."""

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
        return None

    def kv_allocation(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
        return None

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None:
        return None

    def sdpa_backend(self, spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts) -> str | None:
        return None

    def answered_by(self, hook: str) -> str:
        return ""
