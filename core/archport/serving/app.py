"""The application: every request goes through the same gates, to one handler, and leaves one line in the log.

Host and Origin, key, drain, body within its bounds, the handler until the client leaves; whatever is raised becomes an
answer. Knows nothing of what handlers do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from archport.serving import openapi
from archport.serving.answers import Answers
from archport.serving.chats import Generations
from archport.serving.device import Device
from archport.serving.devices import together
from archport.serving.errors import Fault, Refused, fault_of, refused, unavailable
from archport.serving.frontiers import Frontiers
from archport.serving.http import (
    Context,
    Endpoint,
    Shape,
    fault_response,
    json_bytes,
    logged,
    parsed,
    read_body,
    request_id,
    timing_headers,
    until_gone,
)
from archport.serving.live import REFUSALS, Refusal, gauges
from archport.serving.metrics import Metrics
from archport.serving.models import Registry
from archport.serving.scheduler import Scheduler
from archport.serving.security import KeyRequests, check_host, check_key, check_origin
from archport.serving.settings import Settings
from archport.serving.talking import Talks

log = logging.getLogger("archport.serving")
access = logging.getLogger("archport.access")

# A client that left before its answer; nobody reads it.
GONE = 499


class State:
    """What a server holds.

    Args:
        threads: that read texts.

    Attributes:
        loading: whether models are still being loaded.
        draining: whether new requests are refused.
        active: requests under way.
        reading: bodies that are arriving.
        key_requests: requests under way of each key.
        budget: bytes that all models may use together; None for that of the model that has most.
        together: what the processes of all devices count; None where there is one.
        refusals: the last ones, newest last.
        frontiers: what fits where, for the page.
    """

    def __init__(self, settings: Settings, registry: Registry, threads: int = 2) -> None:
        self.settings, self.registry, self.threads = settings, registry, threads
        limits = settings.limits
        self.scheduler = Scheduler(limits.queue_tokens, limits.queue_requests)
        self.device = Device(
            self.scheduler,
            chat_share=settings.chat_share,
            most_tokens=settings.batch_tokens,
            window_seconds=settings.window_seconds,
            shared_seconds=settings.shared_seconds,
            most_deaths=settings.most_deaths,
        )
        self.scheduler.changed = self.device.wake
        self.answers = Answers(
            self.scheduler,
            self.device,
            limits,
            token_ids=settings.token_ids == "accept",
            any_dimensions=settings.any_dimensions,
            threads=threads,
        )
        self.generations = Generations(self.answers, self.device, limits)
        self.talks = Talks(self.generations)
        self.loading = self.draining = False
        # Has models loaded that a request names; None where all are loaded for good.
        self.shelf: Any = None
        self.active = 0
        self.budget: int | None = None
        self.reading: set[asyncio.Timeout] = set()
        self.key_requests = KeyRequests(settings.key_requests)
        self.metrics = Metrics(gauges(self))
        self.together = together(self.metrics.registry)
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS)
        self.frontiers = Frontiers()
        self.device.observed = self.metrics.ran

    def now(self) -> int:
        """Seconds since 1970."""
        return int(time.time())

    def check_open(self) -> None:
        """Refuse requests while models load, and once the server is to end."""
        if self.draining:
            raise unavailable("shutting_down", "The server is ending and takes no new requests.")
        if self.loading:
            raise unavailable("model_loading", "The models are still being loaded.", 5)
        if self.device.deaths > self.device.most_deaths:
            raise unavailable("engine_unhealthy", "The device's thread has ended too often.")


Send = Callable[[Any], Awaitable[None]]


class App:
    """The ASGI application.

    Args:
        endpoints: what it answers.
        default: shape of errors where no endpoint was reached.
    """

    def __init__(self, state: State, endpoints: Sequence[Endpoint], default: Shape) -> None:
        self.state, self._default = state, default
        self._document: bytes | None = None
        self.endpoints = endpoints
        self._routes = [(Route(each.path, _unused, methods=[each.method]), each) for each in endpoints]
        # Most requests name one of these as it is.
        self._exact = {(each.method, each.path): each for each in endpoints}

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        context = Context(request, self.state, request_id(request.headers.get("x-request-id")))
        status, path, origin, shape, operation = 0, "other", None, self._default, False

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.id
                headers["x-content-type-options"] = "nosniff"
                if origin is not None:
                    headers["access-control-allow-origin"] = origin
                    headers["vary"] = "Origin"
            await send(message)

        self.state.active += 1
        own = ExitStack()
        try:
            try:
                check_host(request.headers, self.state.settings)
                origin = check_origin(request.headers, self.state.settings)
                if request.method == "OPTIONS" and origin is not None:
                    response = _preflight(request.headers)
                else:
                    endpoint = self._endpoint(scope)
                    if endpoint is not None:
                        path, shape, operation = endpoint.path, endpoint.shape, endpoint.tag == "operations"
                    # Not of `request.url`, which older versions of Starlette make of the Host header too.
                    key = check_key(request.headers, scope["path"], self.state.settings)
                    if endpoint is not None and not operation:
                        # Until all of the answer is sent, and before any of the body is read.
                        own.enter_context(self.state.key_requests.counted(key))
                    response = await self._answer(context, endpoint, scope["path"])
            except ClientDisconnect:
                status = GONE
                return
            except Exception as error:
                response = self._failed(context, error, shape, None if operation else path)
            try:
                await response(scope, receive, sending)
            except (ClientDisconnect, OSError):
                status = GONE
        finally:
            own.close()
            self.state.active -= 1
            if context.done is not None:
                context.done()
            self._note(context, request.method, path, status)

    async def _answer(self, context: Context, endpoint: Endpoint | None, path: str) -> Response:
        if endpoint is None:
            if path == "/openapi.json" and context.request.method == "GET":
                return self._openapi()
            raise self._unknown(path, context.request.method)
        if endpoint.tag != "operations":
            self.state.check_open()
        body: Any = None
        if endpoint.body is not None:
            try:
                data = await read_body(context.request, self.state.settings.limits, self.state.reading)
            finally:
                if endpoint.tag != "operations":
                    self.state.check_open()
            body = parsed(data, endpoint.body, self.state.settings.limits)
        if endpoint.body is None:
            return await endpoint.handler(context, body)
        return await until_gone(context.request, self._handled(endpoint, context, body))

    async def _handled(self, endpoint: Endpoint, context: Context, body: Any) -> Response:
        """The handler's answer, the model that the body names being loaded while it is made."""
        shelf = self.state.shelf
        if shelf is None:
            return await endpoint.handler(context, body)
        held = await shelf.hold(getattr(body, "model", None))
        try:
            response = await endpoint.handler(context, body)
        except BaseException:
            if held is not None:
                shelf.let_go(held)
            raise
        if held is not None:
            # A stream needs its model to its end.
            context.done = lambda: shelf.let_go(held)
        return response

    def _endpoint(self, scope: Any) -> Endpoint | None:
        exact = self._exact.get((scope["method"], scope["path"]))
        if exact is not None:
            return exact
        for route, endpoint in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                return endpoint
        return None

    def _unknown(self, path: str, method: str) -> Refused:
        allowed = sorted({each.method for route, each in self._routes if route.path_regex.match(path)} - {method})
        if allowed:
            fault = Fault(405, f"{path} takes {', '.join(allowed)}, not {method}.", code="method_not_allowed",
                          headers={"allow": ", ".join(allowed)})  # fmt: skip
            return Refused(fault)
        return refused(f"There is nothing at {path[:200]}; GET /openapi.json lists what there is.", "not_found",
                       status=404)  # fmt: skip

    def _openapi(self) -> Response:
        if self._document is None:
            self._document = json_bytes(openapi.document(self.endpoints))
        return Response(self._document, 200, None, "application/json")

    def _refusal(self, path: str, fault: Fault) -> Refusal:
        numbers = {name: value for name, value in fault.numbers.items() if isinstance(value, int | float)}
        if fault.status == 429:
            numbers["waiting_tokens"] = self.state.scheduler.waiting_tokens
            numbers["retry_after_ms"] = int(fault.headers["retry-after-ms"])
        return Refusal(self.state.now(), path, fault.status, fault.code or fault.type, numbers)

    def _failed(self, context: Context, error: Exception, shape: Shape, path: str | None) -> Response:
        """The answer to what was raised, counted where it was asked for at a path and not of the server's health."""
        fault = fault_of(error, request_id=context.id)
        if not isinstance(error, Refused) and fault.status >= 500:
            log.error("request %s failed", context.id, exc_info=error)
        if path is not None:
            self.state.metrics.rejected.labels(fault.code or fault.type).inc()
            self.state.refusals.append(self._refusal(path, fault))
        response = fault_response(fault, shape, context.id)
        response.headers.update(timing_headers(context))
        return response

    def _note(self, context: Context, method: str, path: str, status: int) -> None:
        timing, metrics = context.timing, self.state.metrics
        seconds = time.monotonic() - timing.begun
        metrics.requests.labels(path, str(status)).inc()
        metrics.request_seconds.labels(path).observe(seconds)
        if timing.model is not None:
            metrics.tokens.labels(timing.model).inc(timing.tokens)
            metrics.generated.labels(timing.model).inc(context.tokens_out)
            metrics.truncated.labels(timing.model).inc(len(timing.truncated))
            metrics.reading_seconds.observe(timing.reading)
            metrics.queue_seconds.observe(timing.queue)
            metrics.device_seconds.observe(timing.device)
            if timing.first is not None:
                metrics.first_token_seconds.observe(timing.first)
        # The page asks every second.
        if path not in ("/page.json", "/plans.json") and access.isEnabledFor(logging.INFO):
            access.info(
                "%s",
                logged(
                    {
                        "id": context.id,
                        "method": method,
                        "path": path,
                        "status": status,
                        "ms": round(1000 * seconds, 1),
                        "queue_ms": round(1000 * timing.queue, 1),
                        "device_ms": round(1000 * timing.device, 1),
                        "model": timing.model,
                        "tokens": timing.tokens,
                        "generated": context.tokens_out,
                    }
                ),
            )


async def _unused(request: Request) -> Response:
    raise AssertionError("routes match; the application answers")


def _preflight(headers: Headers) -> Response:
    """What a browser may send, where its page was let in."""
    wanted = headers.get("access-control-request-headers", "authorization, content-type")
    return Response(
        None,
        204,
        {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": wanted,
            "access-control-max-age": "600",
        },
    )


async def _lifespan(receive: Callable[[], Awaitable[Any]], send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
