"""Text Embeddings Inference: bare arrays out, flat errors, and one model without a name.

`/predict` of a model that labels tokens, which Text Embeddings Inference has not, takes and gives what the Hub's
inference API does for that task.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response
from tokenizers import Encoding

from archport import __version__
from archport.contract import ClassificationHead, EmbeddingHead, SparseHead, TaggingHead
from archport.serving.answers import Cutting, Prompt, Wanted
from archport.serving.dialects.items import cutting_of, items_of, prompt_of
from archport.serving.errors import Fault, refused, unsupported
from archport.serving.http import Body, Context, IdRows, Ids, Texts, json_response
from archport.serving.models import Served

_TYPES = {
    "empty_input": "Empty",
    "overloaded": "Overloaded",
    "shutting_down": "Unhealthy",
    "engine_unhealthy": "Unhealthy",
    "model_loading": "Unhealthy",
}


def shape(fault: Fault, id: str) -> Any:
    """Text Embeddings Inference's error."""
    kind = _TYPES.get(fault.code or "", "Backend" if fault.status >= 500 else "Validation")
    return {"error": fault.message, "error_type": kind, **fault.numbers}


Inputs = StrictStr | Texts


class EmbedBody(Body):
    """What `/embed` and `/embed_all` take."""

    inputs: Inputs | Ids | IdRows = Field(description="a string or an array of strings")
    normalize: bool = True
    truncate: bool | StrictStr | None = None
    truncation_direction: StrictStr = "Right"
    prompt_name: StrictStr | None = None
    dimensions: StrictInt | None = None


def _cutting(body: Any) -> Cutting:
    return cutting_of(body.truncate, body.truncation_direction)


async def embed(context: Context, body: EmbedBody) -> Response:
    """Vectors of texts."""
    state = context.state
    served = state.registry.find(None, "embed")
    items = items_of(body.inputs, "inputs", state.settings.limits)
    vectors, _ = await state.answers.embed(
        served, items, context.timing, prompt=prompt_of(prompt_name=body.prompt_name),
        wanted=Wanted(body.dimensions, body.normalize), cutting=_cutting(body), param="inputs",
    )  # fmt: skip
    return json_response(context, vectors)


async def embed_all(context: Context, body: EmbedBody) -> Response:
    """A vector of every token of texts."""
    state = context.state
    able = [each for each in state.registry.all if isinstance(each.runtime.head, EmbeddingHead)]
    served = able[0] if able else state.registry.find(None, "embed_tokens")
    items = items_of(body.inputs, "inputs", state.settings.limits)
    if any(isinstance(item, np.ndarray) for item in items):
        raise refused("inputs holds token ids; /embed_all takes texts.", "token_ids_not_accepted", "inputs")
    vectors, _ = await state.answers.embed_tokens(
        served, items, context.timing, prompt=_literal(served, body.prompt_name), cutting=_cutting(body)
    )
    return json_response(context, vectors)


def _literal(served: Any, name: str | None) -> Prompt:
    """A prompt of vectors of tokens, which have none unless it is named."""
    return Prompt(text="") if name is None else Prompt(name=name)


class SparseBody(Body):
    """What `/embed_sparse` takes."""

    inputs: Inputs = Field(description="a string or an array of strings")
    truncate: bool | StrictStr | None = None
    truncation_direction: StrictStr = "Right"
    prompt_name: StrictStr | None = None


async def embed_sparse(context: Context, body: SparseBody) -> Response:
    """Of every text the words that have a weight, by ascending index."""
    state = context.state
    served = state.registry.find(None, "embed_sparse")
    items = items_of(body.inputs, "inputs", state.settings.limits)
    rows, _ = await state.answers.embed_sparse(
        served, items, context.timing, prompt=prompt_of(prompt_name=body.prompt_name), cutting=_cutting(body)
    )
    answer = [[{"index": int(index), "value": float(value)} for index, value in row] for row in rows]
    return json_response(context, answer)


class TagParameters(Body):
    """How labels of tokens are given.

    Args:
        aggregation_strategy: `simple` joins neighbours with one label, `none` gives every token.
        ignore_labels: labels that are left out; "O" where nothing is said.
        stride: tokens that pieces of a long text share; refused, as texts are not read in pieces.
    """

    aggregation_strategy: StrictStr | None = None
    ignore_labels: Texts | None = None
    stride: StrictInt | None = None


class PredictBody(Body):
    """What `/predict` takes: a text, a pair, or an array of either."""

    inputs: StrictStr | Texts | Annotated[list[Texts], Field(fail_fast=True)] = Field(
        description="a string, an array of strings, or an array of arrays of one or two strings"
    )
    raw_scores: bool = False
    truncate: bool | StrictStr | None = None
    truncation_direction: StrictStr = "Right"
    parameters: TagParameters | None = Field(default=None, description="of a model that labels tokens")


async def predict(context: Context, body: PredictBody) -> Response:
    """Labels of texts and pairs, the likeliest first; of a model that labels tokens, the pieces of texts."""
    state = context.state
    if not any("classify" in each.capabilities for each in state.registry.all):
        taggers = [each for each in state.registry.all if "tag" in each.capabilities]
        if taggers:
            return await _tagged(context, taggers[0], body)
    served = state.registry.find(None, "classify")
    if body.parameters is not None and body.parameters.aggregation_strategy is not None:
        raise unsupported(f"{served.id!r} labels whole texts, so aggregation_strategy is nothing of it; leave it out.",
                          "parameters")  # fmt: skip
    given = body.inputs
    several = not isinstance(given, str)
    items: list[Any] = [given] if isinstance(given, str) else list(given)
    for index, item in enumerate(items):
        if isinstance(item, list) and len(item) not in (1, 2):
            raise refused(f"inputs[{index}] has {len(item)} texts; expected one or two.", "invalid_value", "inputs")
    items = [item if isinstance(item, str) else item[0] if len(item) == 1 else tuple(item) for item in items]
    if not items:
        raise refused("inputs is empty; expected at least one text.", "empty_input", "inputs")
    found, _ = await state.answers.classify(
        served, items, context.timing, raw=body.raw_scores, cutting=_cutting(body), param="inputs"
    )
    lists = [
        sorted(
            ({"label": label, "score": score} for label, score in each.scores.items()),
            key=lambda entry: -entry["score"],
        )
        for each in found
    ]
    return json_response(context, lists if several else lists[0])


async def _tagged(context: Context, served: Served, body: PredictBody) -> Response:
    """What transformers' pipeline gives of the pieces of texts that have a label, words as they stand in the text."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if body.raw_scores:
        raise unsupported("raw_scores is of labels of whole texts; labels of tokens have probabilities.", "raw_scores")
    given = body.parameters or TagParameters()
    strategy = given.aggregation_strategy or "simple"
    if strategy not in ("none", "simple"):
        raise unsupported(f"aggregation_strategy is {strategy[:100]!r}; expected none or simple.", "parameters")
    if given.stride:
        raise unsupported("stride is not followed: a text is read whole, or cut with truncate.", "parameters")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise refused(f"inputs[{index}] is an array; {served.id!r} labels the tokens of single texts.",
                          "invalid_value", "inputs")  # fmt: skip
    if not texts:
        raise refused("inputs is empty; expected at least one text.", "empty_input", "inputs")
    more = {} if given.ignore_labels is None else {"ignored": given.ignore_labels}
    found = await context.state.answers.tag(
        served, texts, context.timing, joined=strategy == "simple", cutting=_cutting(body), **more
    )
    key = "entity_group" if strategy == "simple" else "entity"
    lists = [
        [
            {key: span.label, "score": span.score, "word": span.text, "start": span.start, "end": span.end}
            for span in each
        ]
        for each in found
    ]
    return json_response(context, lists[0] if isinstance(body.inputs, str) else lists)


class TokenizeBody(Body):
    """What `/tokenize` takes."""

    inputs: Inputs = Field(description="a string or an array of strings")
    add_special_tokens: bool = True
    prompt_name: StrictStr | None = None


async def tokenize(context: Context, body: TokenizeBody) -> Response:
    """Tokens of texts, with where they stand."""
    state = context.state
    served = state.registry.find(None)
    items = items_of(body.inputs, "inputs", state.settings.limits)
    tokeniser, prompt = served.runtime.tokeniser, ""
    if body.prompt_name is not None:
        if body.prompt_name not in served.prompts:
            stored = ", ".join(sorted(served.prompts)) or "none"
            raise refused(f"prompt_name is {body.prompt_name[:100]!r}; this model stores: {stored}.", "invalid_prompt",
                          "prompt_name")  # fmt: skip
        prompt = served.prompts[body.prompt_name]

    def encode() -> list[Encoding]:
        texts = [prompt + item for item in items]
        return tokeniser.tokenizer.encode_batch(texts, add_special_tokens=body.add_special_tokens)

    with state.answers.admitted(items, "inputs") as characters:
        encodings = await state.answers.host(encode, characters)
    state.answers.check_tokens(sum(map(len, encodings)), "inputs")
    answer = [
        [
            {
                "id": id,
                "text": token,
                "special": bool(special),
                "start": None if special else start,
                "stop": None if special else stop,
            }
            for id, token, special, (start, stop) in zip(
                each.ids, each.tokens, each.special_tokens_mask, each.offsets, strict=True
            )
        ]
        for each in encodings
    ]
    return json_response(context, answer)


async def info(context: Context, _: None) -> Response:
    """The server and its first model."""
    state = context.state
    served = state.registry.find(None)
    head, settings = served.runtime.head, state.settings
    kind: dict[str, Any] = {}
    if isinstance(head, EmbeddingHead):
        kind = {"embedding": {"pooling": "+".join(head.pooling)}}
    elif isinstance(head, SparseHead):
        kind = {"embedding": {"pooling": "splade"}}
    elif isinstance(head, ClassificationHead | TaggingHead):
        labels = dict(enumerate(head.labels))
        name = "token_classifier" if isinstance(head, TaggingHead) else "reranker" if len(labels) == 1 else "classifier"
        kind = {name: {"id2label": {str(key): value for key, value in labels.items()},
                       "label2id": {value: key for key, value in labels.items()}}}  # fmt: skip
    answer = {
        "model_id": served.id,
        "model_sha": served.revision,
        "model_dtype": served.runtime.encoder.plan.dtype,
        "model_type": kind,
        "max_concurrent_requests": settings.limits.queue_requests,
        "max_input_length": served.model.max_tokens,
        "max_batch_tokens": settings.batch_tokens,
        "max_client_batch_size": settings.limits.inputs,
        "auto_truncate": False,
        "tokenization_workers": state.threads,
        "version": __version__,
        "prompts": sorted(served.prompts),
        "default_prompt": served.runtime.tokeniser.inputs.default_prompt,
        "capabilities": list(served.capabilities),
        "device": served.model.device.name,
        "budget_bytes": served.model.budget,
        "models": [each.id for each in state.registry.all],
    }
    return json_response(context, answer)
