"""The OpenAPI document, made of the table of endpoints and the bodies that they check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from archport import __version__
from archport.serving.http import Endpoint

_ERRORS = {
    "400": "The request is wrong, too long, or can never fit the memory plan.",
    "401": "No key, or another one.",
    "403": "A Host or Origin that is not let in.",
    "404": "The model is not served.",
    "408": "The body did not arrive in time.",
    "413": "The body, or what it holds, is over a limit.",
    "422": "A picture can't be read.",
    "429": "The queue is full.",
    "500": "The server failed.",
    "503": "Loading, draining or unhealthy.",
    "504": "The deadline passed.",
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    bodies = list(dict.fromkeys(each.body for each in endpoints if each.body is not None))
    references, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for each in endpoints:
        path = each.path.replace(":path}", "}")
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "archport", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": {"type": "object"}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(endpoint: Endpoint, references: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{endpoint.path.translate(str.maketrans('/{}:', '____'))}",
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {"200": _answer(endpoint), **_errors(endpoint)},
    }
    if endpoint.waits:
        operation["responses"]["202"] = {**_answer(endpoint), "description": "Being made; ask again."}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": about, "schema": {"type": "string"}}
        for name, about in endpoint.query.items()
    ]
    if "{id" in endpoint.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema = references[endpoint.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    kinds = [endpoint.media]
    if endpoint.streams:
        kinds.append("application/x-ndjson" if endpoint.tag == "ollama" else "text/event-stream")
    return {"description": "Done.", "content": {kind: {} for kind in kinds}}


def _errors(endpoint: Endpoint) -> dict[str, Any]:
    body = endpoint.body is not None
    some = {"401", "403", "404", "500", "503"} | ({"400"} if endpoint.query else set())
    wanted = [code for code in _ERRORS if body or code in some]
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {code: {"description": _ERRORS[code], "content": schema} for code in wanted}
