"""Cohere's `POST /v2/embed`. Its clients expect long texts to be cut at their end unless they say otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.answering.precision import quantise
from archport.serving.answers import Wanted
from archport.serving.dialects.items import cutting_of, items_of, prompt_of
from archport.serving.dialects.openai import encoded
from archport.serving.errors import Fault, refused
from archport.serving.http import Body, Context, Objects, Texts, json_response

TYPES = ("float", "int8", "uint8", "binary", "ubinary", "base64")


def shape(fault: Fault, id: str) -> Any:
    """Cohere's error."""
    return {"id": id, "message": fault.message, "code": fault.code, **fault.numbers}


class EmbedBody(Body):
    """What `POST /v2/embed` takes."""

    model: StrictStr | None = None
    texts: Texts | None = Field(None, description="an array of strings")
    images: Texts | None = Field(None, description="an array of data URIs")
    inputs: Objects | None = Field(None, description="an array of objects with content")
    input_type: StrictStr | None = None
    embedding_types: Texts | None = Field(None, description=f"an array of {', '.join(TYPES)}")
    output_dimension: StrictInt | None = None
    max_tokens: StrictInt | None = None
    truncate: StrictStr | None = None


async def embed(context: Context, body: EmbedBody) -> Response:
    """Vectors of texts, of images, or of inputs of both, in every type that was asked for."""
    state = context.state
    served = state.registry.find(body.model, "embed")
    limits = state.settings.limits
    given = {"texts": body.texts, "images": body.images, "inputs": body.inputs}
    present = [name for name, value in given.items() if value is not None]
    if not present:
        raise refused("texts is missing; expected an array of strings.", "empty_input", "texts")
    if len(present) > 1:
        names = " and ".join(present)
        raise refused(f"{names} are given; expected one of them. inputs takes both texts and images.", "invalid_value",
                      present[1])  # fmt: skip
    name = present[0]
    items = items_of(given[name], name, limits, "image" if name == "images" else "text")
    types = body.embedding_types or ["float"]
    unknown = [each for each in types if each not in TYPES]
    if unknown:
        raise refused(
            f"embedding_types holds {unknown[0][:50]!r}; expected {', '.join(TYPES)}.", "invalid_value",
            "embedding_types",
        )  # fmt: skip
    vectors, tokens = await state.answers.embed(
        served,
        items,
        context.timing,
        prompt=prompt_of(input_type=body.input_type),
        wanted=Wanted(body.output_dimension),
        cutting=cutting_of(body.truncate, None, body.max_tokens, default="end"),
        param=name,
    )
    array = np.stack(vectors)
    found: dict[str, Any] = {}
    for each in dict.fromkeys(types):
        if each == "base64":
            found[each] = [encoded(vector, "base64") for vector in vectors]
        elif each == "float":
            found[each] = array
        elif each in ("binary", "ubinary"):
            found[each] = quantise(array, each).tolist()  # pyright: ignore[reportArgumentType]
        else:
            # One range for all calls, so that vectors of several compare; unit vectors lie within it.
            levels = np.clip(np.round(array * 127), -128, 127).astype(np.int16)
            found[each] = (levels if each == "int8" else levels + 128).tolist()
    answer = {
        "id": context.id,
        "embeddings": found,
        "texts": body.texts or [],
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": sum(tokens)}},
    }
    return json_response(context, answer)
