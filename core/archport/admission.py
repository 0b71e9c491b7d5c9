"""What a model's weights will take, and whether they fit: asked before any is read, of a load and of a plan alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from archport.checkpoint import loaded_bytes, weight_bytes
from archport.checkpoint.dtype import DTypeChoice, LoadDType, choose_dtype
from archport.contract import BackendMissing, DeviceFacts, MemoryBudgetExceeded
from archport.contract.device import DeviceKind
from archport.contract.sizes import format_bytes

if TYPE_CHECKING:
    import mlx.nn as nn

    from archport.loading import Description

log = logging.getLogger("archport")

BytesOf = Callable[[LoadDType, bool], int]


def bytes_of(about: Description) -> BytesOf:
    """Answers (dtype, dequantize) -> bytes of the weights that a load of the model holds.

    Where MLX has no backend, nobody can say which tensors the module drops, and all of them count.

    Args:
        about: with the tasks that its head leaves, as it is built.

    Raises:
        CheckpointError, PluginError: its tensors can't be read, or not by its plugin.
    """
    try:
        import archport.device.backend  # noqa: F401
    except BackendMissing:
        return lambda dtype, dequantize: weight_bytes(about.checkpoint, dtype=dtype, dequantize=dequantize)
    return loaded_bytes(about.checkpoint, cast("nn.Module", about.hooks.build(about.spec, about.checkpoint.config)))


def chosen_dtype(
    about: Description, dtype: str | None, device: DeviceKind, budget: int, needed: BytesOf
) -> DTypeChoice:
    """The element type of the weights of a load within a budget; raises as `choose_dtype`."""
    stored = {info.dtype for info in about.checkpoint.tensors.values()}
    return choose_dtype(dtype, about.spec, device, budget=budget, bytes_of=needed, stored=stored)


def admit_weights(
    about: Description,
    dtype: str | None,
    device: DeviceFacts,
    budget: int,
    *,
    share: float = 1.0,
) -> tuple[DTypeChoice, int]:
    """The element type of the weights and their bytes; raises MemoryBudgetExceeded when they do not fit.

    Args:
        share: of the weights that this process holds.
    """
    import mlx.core as mx

    whole = bytes_of(about)
    # The module that was asked has drawn first weights, which nobody reads; see `load_trunk`.
    mx.eval(mx.random.state)
    choice = chosen_dtype(about, dtype, device.kind, budget, lambda *how: int(share * whole(*how)))
    if choice.promoted:
        log.warning("%s: %s", about.checkpoint.name, choice.why)
    needed = int(share * whole(choice.dtype, choice.dequantize))
    if needed > budget:
        raise MemoryBudgetExceeded(
            f"the weights of {about.checkpoint.name} need {format_bytes(needed)} ({needed:,} bytes) in {choice.dtype}; "
            f"the memory budget is {format_bytes(budget)} ({budget:,} bytes). Raise memory_budget=, choose a smaller "
            "dtype, or a quantised checkpoint",
            required_bytes=needed,
            limit_bytes=budget,
            binding="memory_budget",
            breakdown={"weights": needed},
        )
    return choice, needed
