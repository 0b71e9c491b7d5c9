"""Ollama's vectors and list of models. Its clients expect long texts to be cut unless they say otherwise."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport import __version__
from archport.serving.answers import Cutting, Wanted
from archport.serving.dialects.items import items_of
from archport.serving.errors import Fault
from archport.serving.http import Body, Context, Texts, json_response


def shape(fault: Fault, id: str) -> Any:
    """Ollama's error."""
    return {"error": fault.message, **({"code": fault.code} if fault.code else {}), **fault.numbers}


class EmbedBody(Body):
    """What `POST /api/embed` takes."""

    model: StrictStr | None = None
    input: StrictStr | Texts = Field(description="a string or an array of strings")
    truncate: bool = True
    dimensions: StrictInt | None = None


async def embed(context: Context, body: EmbedBody) -> Response:
    """Vectors of texts, of unit length."""
    state = context.state
    served = state.registry.find(body.model, "embed")
    if body.input == []:
        return json_response(context, {"model": served.id, "embeddings": []})
    items = items_of(body.input, "input", state.settings.limits)
    vectors, tokens = await state.answers.embed(
        served, items, context.timing, wanted=Wanted(body.dimensions, normalize=True),
        cutting=Cutting("end" if body.truncate else "none"),
    )  # fmt: skip
    answer = {
        "model": served.id,
        "embeddings": vectors,
        "total_duration": round(1e9 * (time.monotonic() - context.timing.begun)),
        "load_duration": 0,
        "prompt_eval_count": sum(tokens),
    }
    return json_response(context, answer)


async def tags(context: Context, _: None) -> Response:
    """All models."""
    return json_response(context, {"models": [_entry(each) for each in context.state.registry.all]})


async def version(context: Context, _: None) -> Response:
    """archport's version, which is not Ollama's."""
    return json_response(context, {"version": __version__})


def _entry(served: Any) -> dict[str, Any]:
    modified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(served.created))
    return {
        "name": served.id,
        "model": served.id,
        "modified_at": modified,
        "size": served.runtime.encoder.plan.weights.total,
        "digest": served.revision or "",
        "details": {
            "format": "safetensors",
            "family": served.model.spec.arch,
            "families": [served.model.spec.arch],
            "parameter_size": "",
            "quantization_level": served.runtime.encoder.plan.dtype or "",
        },
        "capabilities": list(served.capabilities),
    }
