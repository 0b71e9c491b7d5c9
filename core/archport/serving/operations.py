"""What runs a server rather than a model: health, metrics."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from archport.serving.errors import Refused, unavailable
from archport.serving.http import Context, json_response

# A step under way that has taken longer says nothing good about the device.
STALLED_SECONDS = 120.0
# An idle device answers at once.
CHECK_SECONDS = 5.0


async def live(context: Context, _: None) -> Response:
    """Constant: the process answers."""
    return json_response(context, {"status": "live"})


async def ready(context: Context, _: None) -> Response:
    """Whether the device computes: it is asked to, unless it is computing."""
    state = context.state
    state.check_open()
    if not state.device.healthy:
        raise unavailable("engine_unhealthy", "The device's thread has ended.")
    since = state.device.busy_since
    if since is None:
        try:
            await asyncio.wait_for(asyncio.wrap_future(state.device.call(_computes)), CHECK_SECONDS)
        except Refused:
            raise
        except Exception as error:
            # A step may have begun in between, and take its time.
            since = state.device.busy_since
            if since is None:
                raise unavailable("engine_unhealthy", "The device does not answer.") from error
    if since is not None and time.monotonic() - since > STALLED_SECONDS:
        raise unavailable("engine_unhealthy", f"One step has run for more than {STALLED_SECONDS:.0f} s.")
    return json_response(context, {"status": "ready", "models": [each.id for each in state.registry.all]})


def _computes() -> bool:
    import mlx.core as mx

    return bool((mx.ones((2,)) + 1).sum().item() == 4)


async def metrics(context: Context, _: None) -> Response:
    """Prometheus' text format."""
    # macOS tells a process's memory through a program that takes a while.
    state = context.state
    text = await asyncio.to_thread(state.metrics.text if state.together is None else state.together.text)
    return Response(text, 200, None, CONTENT_TYPE_LATEST)
