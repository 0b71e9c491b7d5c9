"""What MLX says when a device gives up work: out of memory, ended by the watchdog, a fault of addresses, or gone.

Texts of MLX 0.32.4: `[METAL] Command buffer execution failed: {description}.` with Metal's own description in it,
`[metal::malloc] ...`, `[malloc] Unable to allocate ...`, and on CUDA `{call} failed: {description}.`. Knows no plans.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

Failure = Literal["device_timeout", "device_out_of_memory", "device_page_fault", "device_lost"]

# The first that matches counts: what a command buffer's failure is called in general stands last.
_SIGNS: tuple[tuple[Failure, tuple[str, ...]], ...] = (
    (
        "device_timeout",
        (
            "CallbackErrorTimeout",
            "CallbackErrorHang",
            "ImpactingInteractivity",
            "Impacting Interactivity",
            "GPU Timeout",
        ),
    ),
    (
        "device_out_of_memory",
        (
            "CallbackErrorOutOfMemory",
            "Insufficient Memory",
            "[metal::malloc]",
            "[malloc] Unable to allocate",
            "failed: out of memory",
            "cudaErrorMemoryAllocation",
            "CUDNN_STATUS_ALLOC_FAILED",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ),
    ),
    (
        "device_page_fault",
        ("CallbackErrorPageFault", "GPU Address Fault", "an illegal memory access", "misaligned address"),
    ),
    (
        "device_lost",
        (
            "[METAL] Command buffer execution failed",
            "CallbackErrorSubmissionsIgnored",
            "unspecified launch failure",
            "the launch timed out",
            "GPU is lost",
            "device-side assert",
        ),
    ),
)
# Times that the device is asked whether it still works. MLX keeps an error of a command buffer until a stream is next
# used, and a buffer after the failed one may have left another.
_ATTEMPTS = 4


def failure_of(error: BaseException) -> Failure | None:
    """What an error of MLX says of the device; None for any other error."""
    if type(error) is not RuntimeError:
        return None
    said = str(error)
    return next((failure for failure, signs in _SIGNS if any(sign in said for sign in signs)), None)


def recover() -> bool:
    """Let the device end what it was given, and give the pool of freed buffers back; whether it computes again.

    Call when nothing of the failed work is held any more.
    """
    import mlx.core as mx

    for _ in range(_ATTEMPTS):
        with suppress(RuntimeError):
            mx.synchronize()
            works = (mx.array(1) + 1).item() == 2
            mx.clear_cache()
            return works
    return False
