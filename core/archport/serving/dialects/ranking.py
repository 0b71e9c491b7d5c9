"""Reranking as Cohere, Jina, vLLM and Text Embeddings Inference ask for it, and vLLM's scores and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.serving.answers import Scored
from archport.serving.dialects.items import cutting_of, items_of
from archport.serving.errors import refused
from archport.serving.http import Body, Context, Texts, check_finite, json_response


class RerankBody(Body):
    """What `/rerank`, `/v1/rerank` and `/v2/rerank` take: `documents`, or Text Embeddings Inference's `texts`."""

    model: StrictStr | None = None
    query: StrictStr | dict[str, Any] = Field(description="a string")
    documents: Annotated[list[StrictStr | dict[str, Any]], Field(fail_fast=True)] | None = Field(
        None, description="an array of strings"
    )
    texts: Texts | None = Field(None, description="an array of strings")
    top_n: StrictInt | None = None
    top_k: StrictInt | None = None
    max_tokens_per_doc: StrictInt | None = None
    return_documents: bool | None = None
    return_text: bool = False
    raw_scores: bool = False
    instruction: StrictStr | None = None
    truncate: StrictStr | bool | None = None
    truncation_direction: StrictStr | None = None
    truncate_prompt_tokens: StrictInt | None = None


async def rerank(context: Context, body: RerankBody) -> Response:
    """Documents by how well they answer a query; the union of what all these clients read."""
    if body.texts is not None:
        return await _texts(context, body)
    if body.documents is None:
        raise refused("documents is missing; expected an array of strings.", "empty_input", "documents")
    scored, served = await _scored(context, body, list(body.documents), "documents")
    order = _order(scored, body.top_n if body.top_n is not None else body.top_k)
    scores = scored.raw if body.raw_scores else scored.shown
    results: list[dict[str, Any]] = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": float(scores[index])}
        if body.return_documents:
            document = body.documents[index]
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    tokens = sum(scored.tokens)
    answer = {
        "id": f"rerank-{context.id}",
        "object": "list",
        "model": served.id,
        "results": results,
        "score_kind": "logit" if body.raw_scores else scored.kind,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        },
    }
    return json_response(context, answer)


async def _texts(context: Context, body: RerankBody) -> Response:
    """The bare array of Text Embeddings Inference."""
    texts = list(body.texts or ())
    scored, _ = await _scored(context, body, texts, "texts")
    scores = scored.raw if body.raw_scores else scored.shown
    results: list[dict[str, Any]] = []
    for index in _order(scored, None):
        result: dict[str, Any] = {"index": index, "score": float(scores[index])}
        if body.return_text:
            result["text"] = texts[index]
        results.append(result)
    return json_response(context, results)


async def _scored(context: Context, body: RerankBody, documents: Sequence[Any], param: str) -> tuple[Scored, Any]:
    state = context.state
    served = state.registry.find(body.model, "rerank")
    for value, name in ((body.top_n, "top_n"), (body.top_k, "top_k")):
        if value is not None and value < 0:
            raise refused(f"{name} is {value}; expected 0 for all, or a number above it.", "invalid_value", name)
    if not documents:
        raise refused(f"{param} is empty; expected at least one document.", "empty_input", param)
    limits = state.settings.limits
    (query,) = _texts_of([body.query], "query", limits, served)
    found = _texts_of(documents, param, limits, served)
    # Cohere's clients expect long documents to be cut.
    most = body.max_tokens_per_doc if body.max_tokens_per_doc is not None else body.truncate_prompt_tokens
    if most is not None and most < 1 and most != -1:
        raise refused(
            f"max_tokens_per_doc is {most}; expected a number above 0.", "invalid_value", "max_tokens_per_doc"
        )
    cutting = cutting_of(body.truncate, body.truncation_direction, most)
    pairs = [(query, document) for document in found]
    scored = await state.answers.score(
        served, pairs, context.timing, instruction=body.instruction, cutting=cutting, param=param
    )
    check_finite(scored.shown, "A score")
    return scored, served


def _texts_of(values: Sequence[Any], param: str, limits: Any, served: Any) -> list[Any]:
    """Queries or documents: an empty text is one, and an object holds a text or, for a model that sees, a picture."""
    found: list[Any] = []
    for index, value in enumerate(values):
        if isinstance(value, str):
            found.append(value)
            continue
        (item,) = items_of([value], param, limits)
        if not isinstance(item, str) and not served.sees:
            raise refused(f"{param}[{index}] holds a picture, and {served.id!r} reads text only.",
                          "unsupported_operation", param)  # fmt: skip
        found.append(item)
    return found


def _order(scored: Scored, most: int | None) -> list[int]:
    """Indices by descending score of the head's own, equal ones in their own order."""
    order = np.argsort(-scored.raw, kind="stable").tolist()
    return order[: most or None]


class ScoreBody(Body):
    """What `POST /score` takes; `text_1` and `text_2` are vLLM's older names."""

    model: StrictStr | None = None
    queries: StrictStr | Texts | None = Field(None, description="a string or an array of strings")
    documents: StrictStr | Texts | None = Field(None, description="a string or an array of strings")
    text_1: StrictStr | Texts | None = None
    text_2: StrictStr | Texts | None = None
    raw_scores: bool = False
    instruction: StrictStr | None = None
    truncate: StrictStr | bool | None = None
    truncate_prompt_tokens: StrictInt | None = None


async def score(context: Context, body: ScoreBody) -> Response:
    """Scores of pairs, in their order: one text against many, or list against list."""
    state = context.state
    served = state.registry.find(body.model, "rerank")
    left = body.queries if body.queries is not None else body.text_1
    right = body.documents if body.documents is not None else body.text_2
    if not left or not right:
        name = "documents" if left else "queries"
        raise refused(f"{name} is missing or empty; expected a string or an array of strings.", "empty_input", name)
    queries, documents = ([each] if isinstance(each, str) else list(each) for each in (left, right))
    if isinstance(left, str) or len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise refused(
            f"queries has {len(queries)} entries and documents {len(documents)}; expected one query, or as many of "
            "both.", "invalid_value", "queries",
        )  # fmt: skip
    scored = await state.answers.score(
        served,
        list(zip(queries, documents, strict=True)),
        context.timing,
        instruction=body.instruction,
        cutting=cutting_of(body.truncate, None, body.truncate_prompt_tokens),
    )
    check_finite(scored.shown, "A score")
    scores = scored.raw if body.raw_scores else scored.shown
    tokens = sum(scored.tokens)
    answer = {
        "id": f"score-{context.id}",
        "object": "list",
        "model": served.id,
        "created": state.now(),
        "data": [{"index": index, "object": "score", "score": float(each)} for index, each in enumerate(scores)],
        "score_kind": "logit" if body.raw_scores else scored.kind,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_response(context, answer)


class ClassifyBody(Body):
    """What `POST /classify` takes."""

    model: StrictStr | None = None
    input: StrictStr | Texts = Field(description="a string or an array of strings")
    raw_scores: bool = False
    truncate: StrictStr | bool | None = None
    truncate_prompt_tokens: StrictInt | None = None


async def classify(context: Context, body: ClassifyBody) -> Response:
    """Labels of texts, as vLLM tells them."""
    state = context.state
    served = state.registry.find(body.model, "classify")
    items = items_of(body.input, "input", state.settings.limits)
    found, tokens = await state.answers.classify(
        served, items, context.timing, raw=body.raw_scores,
        cutting=cutting_of(body.truncate, None, body.truncate_prompt_tokens),
    )  # fmt: skip
    data = [
        {
            "index": index,
            "label": each.label,
            "probs": list(each.scores.values()),
            "num_classes": len(each.scores),
            "labels": list(each.scores),
        }
        for index, each in enumerate(found)
    ]
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    answer = {
        "id": f"classify-{context.id}", "object": "list", "created": state.now(), "model": served.id, "data": data,
        "usage": usage,
    }  # fmt: skip
    return json_response(context, answer)
