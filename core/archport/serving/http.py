"""From a request's bytes to a handler's arguments, and from its answer or error to bytes, within every bound.

Knows nothing of what handlers do; a dialect brings its bodies and the shape of its errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from archport.serving.errors import Fault, Refused, fault_of, refused
from archport.serving.requests import Timing
from archport.serving.settings import Limits

log = logging.getLogger("archport.serving")
T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Seconds between two comments of a stream that has nothing to say yet.
PING_SECONDS = 10.0
# What clients call a chat template of their own: a program that would run here.
TEMPLATES = ("chat_template", "template")
Shape = Callable[[Fault, str], Any]


# Only the first wrong entry is told; an error for each of millions takes gigabytes.
Texts = Annotated[list[StrictStr], Field(fail_fast=True)]
Ids = Annotated[list[StrictInt], Field(fail_fast=True)]
IdRows = Annotated[list[Ids], Field(fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class Body(BaseModel):
    """A request's body: fields that it does not know are passed over, as clients send many."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


@dataclass(slots=True)
class Context:
    """One request.

    Args:
        request: of Starlette.
        state: what the server holds; see `archport.serving.app`.
        id: of the request, told to the client and in the log.
        timing: where its time goes.
        headers: more headers of the answer.
        tokens_out: generated for it.
        done: called once it is answered.
    """

    request: Request
    state: Any
    id: str
    timing: Timing = field(default_factory=Timing)
    headers: dict[str, str] = field(default_factory=dict[str, str])
    tokens_out: int = 0
    done: Callable[[], None] | None = None


Handler = Callable[[Context, Any], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address.

    Args:
        body: what its JSON has to be; None for none.
        shape: of its errors.
        summary: for the OpenAPI document.
        streams: whether it may answer with events.
        media: of its answer, where that is one.
        query: parameters of its address, and what they say.
        waits: whether it may answer 202: ask again.
    """

    method: str
    path: str
    handler: Handler
    body: type[Body] | None
    shape: Shape
    summary: str
    tag: str
    streams: bool = False
    media: str = "application/json"
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    waits: bool = False


def request_id(given: str | None) -> str:
    """The client's own id where it is harmless, else a new one."""
    return given if given and _ID.fullmatch(given) else uuid.uuid4().hex


def json_bytes(value: Any) -> bytes:
    """JSON, numpy's numbers included. Callers have seen to it that all are finite: NaN would become null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(context: Context, value: Any, status: int = 200) -> Response:
    """An answer with the request's headers."""
    headers = {**timing_headers(context), **context.headers}
    return Response(json_bytes(value), status, headers, "application/json")


def timing_headers(context: Context) -> dict[str, str]:
    """Text Embeddings Inference's headers of time, in milliseconds, and archport's own."""
    timing = context.timing
    found = {
        "x-total-time": _milliseconds(time.monotonic() - timing.begun),
        "x-tokenization-time": _milliseconds(timing.reading),
        "x-queue-time": _milliseconds(timing.queue),
        "x-inference-time": _milliseconds(timing.device),
        "x-compute-tokens": str(timing.tokens),
        "x-compute-type": "mlx",
    }
    if timing.prompt:
        found["x-archport-prompt"] = timing.prompt.encode("ascii", "replace").decode()[:200]
    if timing.truncated:
        found["x-archport-truncated-inputs"] = str(len(timing.truncated))
    return found


def _milliseconds(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))


def fault_response(fault: Fault, shape: Shape, id: str) -> Response:
    """An error in a dialect's shape."""
    headers = dict(fault.headers)
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(json_bytes(shape(fault, id)), fault.status, headers, "application/json")


async def read_body(request: Request, limits: Limits, reading: set[asyncio.Timeout]) -> bytes:
    """The body, refused as soon as it is too long or too slow.

    Args:
        reading: bodies that are being read, which whoever ends the server makes late.

    Raises:
        Refused: 413, 408.
        ClientDisconnect: the client left.
    """
    stated = request.headers.get("content-length")
    if stated is not None and stated.isdigit() and int(stated) > limits.body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    scope = asyncio.timeout(limits.header_seconds)
    reading.add(scope)
    try:
        async with scope:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
    except TimeoutError:
        raise refused(
            f"The body did not arrive within {limits.header_seconds:.3g} s.", "request_timeout", status=408
        ) from None
    finally:
        reading.discard(scope)
    return b"".join(chunks)


def _too_large(limits: Limits) -> Refused:
    return refused(
        f"The body is larger than the {limits.body_bytes:,} bytes that a request may have.", "request_too_large",
        status=413, limit_bytes=limits.body_bytes,
    )  # fmt: skip


def parsed(data: bytes, model: type[Body], limits: Limits) -> Body:
    """A body's fields.

    Raises:
        Refused: 400, naming the field, its value's type and what was expected.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise refused(f"The body is not JSON: {error.msg} at byte {error.pos}.", "invalid_json") from None
    if not isinstance(value, dict):
        raise refused(f"The body is JSON of type {_kind(value)}; expected an object.", "invalid_json")
    if data.count(b"[") + data.count(b"{") > limits.depth and _depth(value) > limits.depth:
        raise refused(f"The body's JSON is nested more than {limits.depth} deep.", "invalid_json")
    for name in TEMPLATES:
        if value.get(name):
            raise refused(f"{name} is given; a request brings no template, the model's own is used. Leave it out.",
                          "unsupported_operation", name)  # fmt: skip
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = [str(part) for part in first["loc"] if isinstance(part, int) or not _is_branch(str(part))]
        name = str(first["loc"][0]) if first["loc"] else None
        about = model.model_fields.get(name or "")
        expected = f" Expected {about.description}." if about is not None and about.description else ""
        message = f"{'.'.join(place) or 'The body'}: {first['msg'].rstrip('.')}.{expected}"
        raise refused(message, "invalid_type", name) from None
    except RecursionError:
        raise refused("The body's JSON is nested too deeply.", "invalid_json") from None


def _is_branch(part: str) -> bool:
    """Whether a part of a place names a branch of a union, which no client knows."""
    return bool(re.search(r"[\[\]\s(-]|^(str|int|float|bool|list|dict|constrained)", part))


def _kind(value: Any) -> str:
    kinds = {str: "string", int: "number", float: "number", bool: "boolean", list: "array", type(None): "null"}
    return kinds.get(type(value), "object")


def _depth(value: Any) -> int:
    """How deep containers lie in containers."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = item.values() if isinstance(item, dict) else item
        waiting += [(each, depth + 1) for each in inner if isinstance(each, dict | list)]
    return deepest


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, which ends when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def check_finite(values: Any, what: str) -> None:
    """Refuse to send what JSON has no number for."""
    finite = np.isfinite(values).all() if isinstance(values, np.ndarray) else math.isfinite(values)
    if not finite:
        raise Refused(Fault(500, f"{what} holds NaN or infinity and is not returned.", "server_error",
                            "non_finite_output"))  # fmt: skip


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json_bytes(value) + b"\n\n"


def streamed(context: Context, events: AsyncIterator[bytes], shape: Shape, media: str) -> StreamingResponse:
    """Events as they come; comments keep the line open while there are none; an error is the last event.

    Args:
        media: `text/event-stream`, or `application/x-ndjson` with a line of JSON for each.
    """
    lines = media != "text/event-stream"

    async def body() -> AsyncIterator[bytes]:
        source = aiter(events)
        pending: asyncio.Future[bytes] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(source))
                done, _ = await asyncio.wait((pending,), timeout=None if lines else PING_SECONDS)
                if not done:
                    yield b": ping\n\n"
                    continue
                finished, pending = pending, None
                try:
                    chunk = finished.result()
                except StopAsyncIteration:
                    return
                yield chunk
        except asyncio.CancelledError:
            raise
        except Exception as error:
            fault = fault_of(error, request_id=context.id)
            if fault.status >= 500 and not isinstance(error, Refused):
                log.error("request %s failed in its stream", context.id, exc_info=error)
            value = shape(fault, context.id)
            yield json_bytes(value) + b"\n" if lines else event(value)
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.wait((pending,))
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **context.headers}
    return StreamingResponse(body(), 200, headers, media)


def logged(record: Mapping[str, Any]) -> str:
    """A line of the access log."""
    return json.dumps(record, ensure_ascii=True, separators=(",", ":"))
