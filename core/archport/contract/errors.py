"""Every error archport raises on purpose. Knows nothing of how any of them comes about.

One base class, few kinds. A message says what happened, the values, what was expected and what to do.
Errors that mean "your argument is wrong" are also `ValueError`, so code that expects one keeps working.
"""

from __future__ import annotations

import reprlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _Shown(reprlib.Repr):
    """Representations of bounded length, found by the name of a value's type. A fault of a value's own is none here."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        # Thousands of digits are no message, and Python refuses to write them.
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length():,} bits"

    def repr_ndarray(self, x: Any, level: int) -> str:
        return f"an array of {x.dtype} {x.shape}"


_SHOWN = _Shown()


def shown(value: object) -> str:
    """A value as messages show it: its representation, bounded, whatever it is."""
    return _SHOWN.repr(value)


@contextmanager
def of_file(path: Path) -> Generator[None]:
    """An OSError inside that names no file, as a full disk's does, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class ArchportError(Exception):
    """Base of every error that archport raises on purpose."""


class SpecError(ArchportError, ValueError):
    """An ArchSpec or LayerSpec contradicts itself."""


class PluginError(ArchportError):
    """A plugin could not be loaded, or a hook of it answered something the contract does not allow.

    Attributes:
        hook: the hook, or the method of its module, that raised an exception; "" where none did.
        plugin: the label of the plugin that raised it, None where that is not known.
    """

    def __init__(self, message: str, *, hook: str = "", plugin: str | None = None) -> None:
        super().__init__(message)
        self.hook, self.plugin = hook, plugin


class ClaimError(ArchportError):
    """No plugin, or more than one, claims a checkpoint's config."""


class ModelNotFound(ArchportError):
    """A model name leads to no folder, package, cached repository or reachable hub repository."""


class CheckpointError(ArchportError):
    """A checkpoint folder is incomplete, damaged or not what its config says."""


class InputError(ArchportError, ValueError):
    """An argument of a call is not usable: the message names it, its value and what was expected."""


class BackendMissing(ArchportError, ImportError):
    """MLX has no backend for this machine, or mlx-lm is not there for a model that needs a part of it."""


class ForkedProcess(ArchportError, RuntimeError):
    """A call needs the device in a process that was forked after a model was loaded; MLX can't run there."""


class NonFiniteOutput(ArchportError, ArithmeticError):
    """A model produced NaN or infinity; archport raises instead of returning it."""


class DeviceFailure(ArchportError, RuntimeError):
    """The device gave up a request's work: nothing of it is returned, and the next request runs.

    Attributes:
        code: `device_timeout` (the system's watchdog), `device_out_of_memory`, `device_page_fault`, or `device_lost`
            for any other end. Where the device does not compute any more the message says so.
        said: the message of MLX.
        planned_bytes, budget_bytes: the plan's peak and its budget; these and the following are None where no plan ran.
        breakdown: bytes per component of that peak.
        largest_buffer: (name, bytes, cap) of the largest single allocation; cap None where the device has none.
        longest_seconds, limit_seconds: estimate of the longest stretch between two evaluations, and its bound; None
            where nothing watches.
        chunk: tokens per prefill step.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        said: str,
        planned_bytes: int | None = None,
        budget_bytes: int | None = None,
        breakdown: Mapping[str, int] | None = None,
        largest_buffer: tuple[str, int, int | None] | None = None,
        longest_seconds: float | None = None,
        limit_seconds: float | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.said = code, said
        self.planned_bytes, self.budget_bytes = planned_bytes, budget_bytes
        self.breakdown = dict(breakdown or {})
        self.largest_buffer = largest_buffer
        self.longest_seconds, self.limit_seconds = longest_seconds, limit_seconds
        self.chunk = chunk


class AdmissionRefused(ArchportError, ValueError):
    """A request was refused before anything was allocated.

    Attributes:
        code: `prefill_memory_exceeded`, `buffer_too_large`, `context_length_exceeded` or `work_bound_exceeded`.
        required_bytes, limit_bytes: what the binding limit would need and what it is, in bytes.
        binding: the limit that binds and the knob that moves it.
        breakdown: bytes per component.
        largest_buffer: (name, bytes, cap) of the largest single allocation; cap None where the device has none.
        max_tokens_that_fit: the longest row, at the same batch, that the limit admits.
        max_rows_that_fit: the largest batch, at the same length, that the limit admits.
        row: of the rows of a request the one that does not fit by itself; None where it is not one alone.
        requested, ceiling: tokens asked for and allowed, where tokens are what binds. Of a text far over the limit
            the former is an estimate by its length, as it is not counted to its end.
    """

    code = "admission_refused"

    def __init__(
        self,
        message: str,
        *,
        required_bytes: int | None = None,
        limit_bytes: int | None = None,
        binding: str = "",
        breakdown: Mapping[str, int] | None = None,
        largest_buffer: tuple[str, int, int | None] | None = None,
        max_tokens_that_fit: int | None = None,
        max_rows_that_fit: int | None = None,
        requested: int | None = None,
        ceiling: int | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.required_bytes = required_bytes
        self.limit_bytes = limit_bytes
        self.binding = binding
        self.breakdown = dict(breakdown or {})
        self.largest_buffer = largest_buffer
        self.max_tokens_that_fit = max_tokens_that_fit
        self.max_rows_that_fit = max_rows_that_fit
        self.requested = requested
        self.ceiling = ceiling
        self.row = row


class MemoryBudgetExceeded(AdmissionRefused):
    """The request's peak, or the model's weights, exceed the memory budget."""

    code = "prefill_memory_exceeded"


class BufferTooLarge(AdmissionRefused):
    """One allocation exceeds the device's largest buffer, however much memory is free."""

    code = "buffer_too_large"


class ContextLengthExceeded(AdmissionRefused):
    """More tokens than the context ceiling."""

    code = "context_length_exceeded"


class KvCeilingExceeded(ContextLengthExceeded):
    """A cache was asked to hold more tokens than its ceiling; nothing was allocated or written."""


class WorkBoundExceeded(AdmissionRefused):
    """The smallest dispatch that can be made would outlast the GPU watchdog."""

    code = "work_bound_exceeded"
