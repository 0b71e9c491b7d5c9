"""What a server answers instead of a result: status, type, code and numbers, in no dialect's shape yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from archport.contract import (
    AdmissionRefused,
    ArchportError,
    CheckpointError,
    ContextLengthExceeded,
    InputError,
    NonFiniteOutput,
)

# How the library's messages call what a request calls an input.
_ROW = re.compile(r"\b(?:text|document|prompt) (\d+)\b")
_PYTHON = (
    (re.compile(r"\.? ?Pass overflow='truncate' to cut it(?:, or raise max_tokens= \(at most \d+\))?"), ""),
    (re.compile(r"(?:: try|; try) dtype='float32'"), ""),
    (re.compile(r"Model\.(\w+)"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as a client sees it.

    Args:
        status: of HTTP.
        message: what happened, the value, what was expected, what to do.
        type, code: as OpenAI names them; no code for what has none.
        param: the field of the request that is wrong.
        headers: more headers of the answer.
        numbers: more fields of the error.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Refused(ArchportError):
    """A request that is answered with a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refused(
    message: str, code: str | None = None, param: str | None = None, status: int = 400, **numbers: int
) -> Refused:
    """A request that is wrong by itself; `numbers` are more fields of the error."""
    return Refused(Fault(status, message, code=code, param=param, numbers=numbers))


def unsupported(message: str, param: str | None = None) -> Refused:
    """A capability that the model or this server does not have."""
    return refused(message, "unsupported_operation", param)


def overloaded(seconds: float, why: str = "The server has as much waiting as it may have") -> Refused:
    """The queue is full, or a key has all the requests that it may have.

    Args:
        seconds: until there is probably room.
    """
    wait = max(1, math.ceil(seconds))
    headers = {"retry-after": str(wait), "retry-after-ms": str(max(100, round(seconds * 1000)))}
    message = f"{why}; try again in about {wait} s."
    return Refused(Fault(429, message, "rate_limit_error", "overloaded", headers=headers))


def unavailable(code: str, message: str, seconds: float = 1) -> Refused:
    """Loading, draining or unhealthy."""
    return Refused(Fault(503, message, "server_error", code, headers={"retry-after": str(math.ceil(seconds))}))


def timed_out(seconds: float) -> Refused:
    """The deadline of a request passed."""
    return Refused(Fault(504, f"The request was not done within {seconds:.3g} s.", "server_error", "timeout"))


def fault_of(error: BaseException, *, param: str | None = None, request_id: str = "") -> Fault:
    """What a client is told of an exception.

    Args:
        param: the field whose value led to it, where that is known.
        request_id: named where nothing else may be told.
    """
    if isinstance(error, Refused):
        return error.fault
    if isinstance(error, ContextLengthExceeded):
        ceiling, wanted = error.ceiling, error.requested
        message = (
            f"This model's maximum context length is {ceiling} tokens, however you requested {wanted} tokens. "
            f"{_sentence(str(error))}"
        )
        numbers = {
            "requested_tokens": wanted, "limit_tokens": ceiling, "max_tokens_that_fit": error.max_tokens_that_fit,
        }  # fmt: skip
        return Fault(400, message, code="context_length_exceeded", param=param, numbers=numbers)
    if isinstance(error, AdmissionRefused):
        numbers = memory_numbers(error)
        headers = {"x-should-retry": "false"}
        return Fault(
            400, _sentence(str(error)), code="input_exceeds_memory_budget", param=param, headers=headers,
            numbers=numbers,
        )  # fmt: skip
    if isinstance(error, InputError):
        return Fault(400, _sentence(str(error)), code="invalid_input", param=param)
    if isinstance(error, NonFiniteOutput):
        return Fault(500, _sentence(str(error)), "server_error", "non_finite_output")
    if isinstance(error, CheckpointError):
        return Fault(500, "The files of the model are at fault; the server's log says which.", "server_error")
    named = f" Its id is {request_id}; the server's log says what happened." if request_id else ""
    return Fault(500, f"The server failed at this request.{named}", "server_error", "internal_error")


def memory_numbers(error: AdmissionRefused) -> dict[str, Any]:
    """The numbers of a refusal by memory, in bytes and tokens."""
    largest = error.largest_buffer
    return {
        "estimated_bytes": error.required_bytes,
        "limit_bytes": error.limit_bytes,
        "largest_buffer_bytes": None if largest is None else largest[1],
        "binding": error.binding,
        "components": dict(error.breakdown),
        "max_tokens_that_fit": error.max_tokens_that_fit,
        "max_rows_that_fit": error.max_rows_that_fit,
    }


def _sentence(text: str) -> str:
    """A message of the library in the words of a request."""
    text = _ROW.sub(r"input \1", text)
    for pattern, words in _PYTHON:
        text = pattern.sub(words, text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else "The request can't be answered."
