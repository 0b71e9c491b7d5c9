"""The page at /: models as their plugins declare them, the numbers of /metrics, the last refusals, and what fits where.

Tells nothing that requests hold: of a refusal its numbers and its code, never its message, which may quote a request.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from starlette.responses import Response

from archport import __version__
from archport.contract import EmbeddingHead
from archport.device.memory import resident_bytes
from archport.device.profiles import PROFILES, profile
from archport.pages.assembly import assembled, content_policy
from archport.pages.explorer import paths
from archport.planning import Plan
from archport.planning.report import describe
from archport.serving.errors import refused
from archport.serving.frontiers import Question, Waiting
from archport.serving.http import Context, json_response
from archport.serving.models import Served

# The last ones that are told.
REFUSALS = 20
# Of a chat, as the page plans it.
NEW_TOKENS = 256
PLANS_QUERY = {
    "model": "Id of a loaded model; the first one when left out.",
    "device": "Name of a profile, such as m4-pro-24gb; this machine when left out.",
    "new": f"Tokens to generate: 0 plans embeddings, {NEW_TOKENS} chats; by what the model can do when left out.",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was refused.

    Args:
        at: seconds since 1970.
        path: the address as the OpenAPI document has it.
        numbers: of the error, as what was asked for and what the limit is.
    """

    at: int
    path: str
    status: int
    code: str
    numbers: Mapping[str, float]


def gauges(state: Any) -> dict[str, tuple[str, Callable[[], float]]]:
    """What is measured when somebody asks: name -> (what it is, its value now)."""
    import mlx.core as mx

    models: Callable[[], list[Served]] = lambda: state.registry.all  # noqa: E731
    return {
        "archport_queue_tokens": ("Tokens that wait or run.", lambda: state.scheduler.waiting_tokens),
        "archport_queue_requests": ("Requests that wait or run.", lambda: state.scheduler.jobs),
        "archport_active_requests": ("Requests under way.", lambda: state.active),
        "archport_weights_bytes": ("Weights of loaded models.", lambda: sum(m.alone.weights.total for m in models())),
        "archport_prefix_bytes": (
            "What earlier prompts left to later ones.",
            lambda: sum(m.runtime.prefixes.bytes for m in models() if "generate" in m.model.spec.tasks),
        ),
        "archport_reserved_bytes": (
            "Bytes that generations may come to hold.",
            lambda: state.device.reserved,
        ),
        "archport_kv_bytes": (
            "KV that generations may come to hold, of the reserved bytes.",
            lambda: sum(p.bytes.get("kv", 0) for m in models() if (p := state.generations.plan(m)) is not None),
        ),
        "archport_planned_bytes": (
            "Peak of the plan that runs, or ran last; the largest of all models.",
            lambda: max((p.peak for m in models() if (p := _latest(state, m)) is not None), default=0),
        ),
        "archport_device_bytes": ("Live bytes on the device.", mx.get_active_memory),
        "archport_pool_bytes": ("Freed bytes that MLX keeps.", mx.get_cache_memory),
        "archport_host_bytes": (
            "Resident memory of the process; 0 where the system does not say.",
            lambda: resident_bytes() or 0,
        ),
        "archport_budget_bytes": (
            "Bytes that the models may use.",
            lambda: state.budget or max((m.model.budget for m in models()), default=0),
        ),
        "archport_engine_deaths": ("How often the device's thread died.", lambda: state.device.deaths),
    }


async def page(context: Context, _: None) -> Response:
    """The page itself, which is the same for everybody and holds no number."""
    text, policy = _page()
    headers = {
        "content-security-policy": policy, "x-frame-options": "DENY", "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }  # fmt: skip
    return Response(text, 200, headers, "text/html; charset=utf-8")


@cache
def _page() -> tuple[bytes, str]:
    text = assembled("live")
    return text.encode(), content_policy(text)


async def numbers(context: Context, _: None) -> Response:
    """Everything that the page shows."""
    state = context.state
    # Apart from the event loop, as /metrics is.
    samples = await asyncio.to_thread(state.metrics.samples)
    loaded: list[Served] = state.registry.all
    device = loaded[0].model.device.name if loaded else None
    told = {
        "version": __version__,
        "state": _state(state),
        "device": device,
        "models": [_model(state, each) for each in loaded],
        "unloaded": state.shelf.unloaded if state.shelf is not None else [],
        "profiles": list(PROFILES),
        "metrics": samples,
        "refusals": [asdict(each) for each in reversed(tuple(state.refusals))],
    }
    return json_response(context, told)


async def plans(context: Context, _: None) -> Response:
    """What fits of one model on one device, as `archport plan --points` has it; 202 until it is planned.

    Raises:
        Refused, InputError: no such model or profile, or other new tokens than the page's.
    """
    state, asked = context.state, context.request.query_params
    question = _question(state, asked.get("model"), asked.get("device"), asked.get("new"))
    # Apart from the event loop, as it may start a process.
    answer = await asyncio.to_thread(state.frontiers.ask, question)
    if isinstance(answer, Waiting):
        response = json_response(context, asdict(answer), 202)
        response.headers["retry-after"] = "1"
        return response
    zipped = "gzip" in context.request.headers.get("accept-encoding", "")
    headers = {"vary": "Accept-Encoding"} | ({"content-encoding": "gzip"} if zipped else {})
    return Response(answer if zipped else gzip.decompress(answer), 200, headers, "application/json")


def _question(state: Any, model: str | None, device: str | None, new: str | None) -> Question:
    served: Served = state.registry.find(model)
    writes = "generate" in served.capabilities
    able = {str(NEW_TOKENS): writes, "0": not writes or "embed" in served.capabilities}
    if new is None:
        new = next(tokens for tokens, can in able.items() if can)
    if not able.get(new):
        expected = " or ".join(tokens for tokens, can in able.items() if can)
        raise refused(f"new={new[:20]!r} is not planned of {served.id!r}; expected {expected}.", "invalid_value", "new")
    name = None if device is None else profile(device).name
    # The budget is this machine's; others have their own.
    budget = state.budget if name is None else None
    return Question(served.id, str(served.folder or served.model.name), name, int(new), budget, served.loading)


def _state(state: Any) -> str:
    if state.draining:
        return "ending"
    if state.loading:
        return "loading"
    return "ready" if state.device.healthy else "unhealthy"


def _latest(state: Any, served: Served) -> Plan | None:
    """The plan of the texts that a model generates now, or the last one of its other rows."""
    generating = state.generations.plan(served)
    if generating is not None:
        return generating
    latest = tuple(served.runtime.encoder.plan.latest)
    return latest[-1] if latest else None


def _model(state: Any, served: Served) -> dict[str, Any]:
    model, spec, head = served.model, served.model.spec, served.runtime.head
    about: dict[str, Any] = {
        "id": served.id,
        "capabilities": list(served.capabilities),
        "plugin": model.plugin.label,
        "architecture": spec.arch,
        "layers": [f"{count} x {describe(layer)}" for layer, count in Counter(spec.layers).items()],
        "hidden_size": spec.hidden_size,
        "vocabulary": spec.vocab_size,
        "context": model.max_tokens,
        "dtype": str(served.runtime.encoder.plan.dtype),
        "weights": served.alone.weights.total,
        "revision": served.revision,
        "prompts": sorted(served.prompts),
    }
    if "embed" in served.capabilities and isinstance(head, EmbeddingHead):
        about |= {"dimensions": model.dimensions, "pooling": "+".join(head.pooling), "similarity": head.similarity}
    plan = _latest(state, served)
    if plan is not None:
        lines = [text.split("\n") for text in paths(plan)]
        about["plan"] = {
            "peak": plan.peak,
            "budget": plan.budget,
            "bytes": {name: size for name, size in plan.bytes.items() if size},
            "paths": [f"{line[0]}: {line[1]}" for line in lines],
        }
    return about
