"""OpenAI's embeddings and models, with the fields that vLLM, Jina, Voyage and infinity add to them."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.serving.answers import Wanted
from archport.serving.dialects.items import cutting_of, items_of, messages_item, prompt_of
from archport.serving.errors import Fault, refused
from archport.serving.http import Body, Context, IdRows, Ids, Objects, Texts, json_response


def shape(fault: Fault, id: str) -> Any:
    """OpenAI's error; a refusal by memory brings its numbers."""
    error = {"message": fault.message, "type": fault.type, "param": fault.param, "code": fault.code}
    return {"error": {**error, **fault.numbers, "request_id": id}}


class EmbeddingsBody(Body):
    """What `POST /v1/embeddings` takes."""

    model: StrictStr | None = None
    input: StrictStr | Texts | Ids | IdRows | Objects | None = Field(
        None, description="a string, an array of strings, an array of token ids, or an array of those"
    )
    messages: Objects | None = None
    encoding_format: Literal["float", "base64"] = Field("float", description="float or base64")
    dimensions: StrictInt | None = None
    user: Any = None
    prompt: StrictStr | None = None
    prompt_name: StrictStr | None = None
    input_type: StrictStr | None = None
    task: StrictStr | None = None
    modality: Literal["text", "image"] = "text"
    truncate: StrictStr | bool | None = None
    truncate_prompt_tokens: StrictInt | None = None
    truncation_side: Literal["left", "right"] | None = None
    normalize: bool | None = None


async def embeddings(context: Context, body: EmbeddingsBody) -> Response:
    """Vectors of inputs, in their order."""
    state = context.state
    served = state.registry.find(body.model, "embed")
    if body.messages is not None and body.input is None:
        items = [messages_item(body.messages, "messages", state.settings.limits)]
    elif body.input is None:
        raise refused("input is missing; expected a string, or an array of them.", "empty_input", "input")
    else:
        items = items_of(body.input, "input", state.settings.limits, body.modality)
    # An adapter of the model's own goes by its name, and has its own words.
    task = body.task if body.task in served.model.tasks else None
    vectors, tokens = await state.answers.embed(
        served,
        items,
        context.timing,
        prompt=prompt_of(body.prompt, body.prompt_name, body.input_type, None if task else body.task),
        wanted=Wanted(body.dimensions, body.normalize, task),
        cutting=cutting_of(body.truncate, body.truncation_side, body.truncate_prompt_tokens),
    )
    usage: dict[str, Any] = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    if context.timing.truncated:
        usage["truncated_inputs"] = context.timing.truncated
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return json_response(context, {"object": "list", "model": served.id, "data": data, "usage": usage})


def encoded(vector: np.ndarray, form: str) -> Any:
    """A vector as numbers, or as base64 of little-endian float32, which is what OpenAI's client asks for."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector


async def models(context: Context, _: None) -> Response:
    """All models."""
    data = [entry(each) for each in context.state.registry.all]
    shelf = context.state.shelf
    # Those that a request would have loaded.
    data += [
        {"id": id, "object": "model", "created": 0, "owned_by": "archport"} for id in (shelf.unloaded if shelf else ())
    ]
    return json_response(context, {"object": "list", "data": data})


async def model(context: Context, _: None) -> Response:
    """One model."""
    return json_response(context, entry(context.state.registry.find(context.request.path_params["id"])))


def entry(served: Any) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it."""
    capabilities = served.capabilities
    found: dict[str, Any] = {
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "archport",
        "max_model_len": served.model.max_tokens,
        "capabilities": list(capabilities),
        "revision": served.revision,
        "dtype": served.runtime.encoder.plan.dtype,
    }
    if "embed" in capabilities:
        head = served.runtime.head
        found |= {
            "dimensions": served.model.dimensions,
            "pooling": "+".join(head.pooling),
            "prompts": sorted(served.prompts),
            "matryoshka": served.matryoshka,
        }
    return found
