"""`archport info`: what a model is, from its files alone; no weight is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archport.cli.embed import DEFAULT_MODEL
from archport.cli.options import Adapter, Adapters, adapters_of
from archport.contract import (
    AttentionLayer,
    ClassificationHead,
    EmbeddingHead,
    Head,
    LayerSpec,
    SparseHead,
    TaggingHead,
    TextInputs,
    TokenHead,
    YesNoHead,
)

if TYPE_CHECKING:
    from archport.contract import DType
    from archport.tasks import Apart


def info(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or alias.")] = DEFAULT_MODEL,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show who claims a model, its layers by kind, widths, semantics, context and parameter bytes."""
    from archport.loading import describe

    apart = adapters_of(adapters, adapter)
    facts = gather(describe(model, revision=revision, adapter=adapter), apart)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for index, line in enumerate(lines):
            typer.echo(f"{name.replace('_', ' ') if index == 0 else '':<18} {line}")


def gather(about: Any, adapters: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts of a described model, ready to print.

    Args:
        adapters: as `engine.load` takes them.
    """
    from archport.contract.sizes import format_bytes
    from archport.loading import context_ceiling, narrowed
    from archport.tasks import find_apart

    spec, checkpoint = about.spec, about.checkpoint
    head = about.hooks.head(spec, checkpoint)
    inputs = about.hooks.inputs(spec, checkpoint)
    context, _ = context_ceiling(checkpoint.name, spec, inputs, None)
    spec = narrowed(about, head).spec
    fit = checkpoint.adapted
    build = partial(about.hooks.build, spec, checkpoint.config)
    apart = find_apart(checkpoint, adapters, (about.plugin,), build)
    quantised = spec.quantization and f"{spec.quantization.bits}-bit {spec.quantization.mode}"
    return {
        "model": checkpoint.name,
        "found_in": f"{checkpoint.source}: {checkpoint.folder}",
        **(
            {}
            if fit is None
            else {"adapter": f"{fit.adapter.name}, {len(fit.terms)} matrices, {len(fit.whole)} replaced"}
        ),
        **({} if apart is None else {"adapters": _apart(apart, spec.dtype)}),
        "claimed_by": about.plugin.label,
        "architecture": spec.arch,
        "tasks": ", ".join(spec.tasks),
        "semantics": spec.semantics,
        "layers": [f"{count} x {_layer(layer)}" for layer, count in Counter(spec.layers).items()],
        "head_dim": ", ".join(map(str, spec.head_dims)),
        "hidden_size": spec.hidden_size,
        "vocabulary": spec.vocab_size,
        "context": f"{context} tokens by default{_roles(inputs)}, {spec.max_positions} positions",
        "parameter_bytes": f"{checkpoint.weight_bytes:,} ({format_bytes(checkpoint.weight_bytes)})",
        "stored_as": quantised or spec.dtype,
        "pipeline": f"{_pipeline(head)} (from {head.source})",
        "similarity": head.similarity if isinstance(head, EmbeddingHead | SparseHead) else "none",
        "prompts": [f"{name}: {text!r}" for name, text in inputs.prompts.items()] or "none",
        "inputs_from": inputs.source,
    }


def _apart(apart: Apart, dtype: DType) -> list[str]:
    """Each adapter that is kept apart, and what it holds in an element type."""
    from archport.contract.sizes import format_bytes

    lines: list[str] = []
    for name, task in apart.tasks.items():
        size = apart.nbytes_of(name, dtype)
        where = f"{task.fit.adapter.name}, {len(task.fit.terms)} matrices"
        lines.append(f"{name}: {where}, {size:,} bytes ({format_bytes(size)}) in {dtype}")
    return lines


def _roles(inputs: TextInputs) -> str:
    """Limits of queries and documents, where they have their own."""
    limits = {"queries": inputs.query_tokens, "documents": inputs.document_tokens}
    return "".join(f", {tokens} of {role}" for role, tokens in limits.items() if tokens is not None)


def _pipeline(head: Head) -> str:
    """What rows become, in words."""
    if isinstance(head, YesNoHead):
        difference = f"logit of token {head.yes}" + ("" if head.no is None else f" - logit of token {head.no}")
        return f"{head.activation}({difference}), last position"
    if isinstance(head, ClassificationHead):
        named = ", ".join(head.labels[:8]) + (", ..." if len(head.labels) > 8 else "")
        before = f"pool {head.pooling}" if head.vector is None else _pipeline(head.vector)
        return f"{before}, scores of {len(head.labels)} labels ({named}), {head.activation}"
    if isinstance(head, TaggingHead):
        return f"scores of {len(head.labels)} labels per token ({', '.join(head.labels[:8])})"
    if isinstance(head, SparseHead):
        steps = ["relu", *["log(1 + x)"] * head.logarithms, f"pool {head.pooling}"]
        return ", ".join(["logits of the vocabulary" if head.own is None else "a weight of each token", *steps])
    if isinstance(head, TokenHead):
        each = [f"dense {dense.in_features} -> {dense.out_features}, {dense.activation}" for dense in head.dense]
        return ", ".join(["one vector per token", *each, *(["unit length"] if head.normalize else [])])
    steps = [f"pool {' + '.join(head.pooling)}" + ("" if head.include_prompt else " without the prompt")]
    for dense in head.dense:
        steps += ["unit length"] if dense.unit_input else []
        steps.append(f"dense {dense.in_features} -> {dense.out_features}, {dense.activation}")
    more = {"sparse": head.sparse, "tokens": head.tokens}
    others = [f"output={name!r}: {_pipeline(each)}" for name, each in more.items() if each is not None]
    return "; ".join([", ".join(steps + (["unit length"] if head.normalize else [])), *others])


def _layer(layer: LayerSpec) -> str:
    if not isinstance(layer, AttentionLayer):
        return f"recurrent, {layer.state_bytes:,} bytes of state per sequence, {layer.conv_taps} conv taps"
    reach = "all" if not layer.is_windowed else "{} left, {} right".format(*layer.reach)
    widths = f"head_dim {layer.head_dim}" + (f", v {layer.v_head_dim}" if layer.v_head_dim != layer.head_dim else "")
    return f"{layer.semantics} attention, {layer.n_heads} heads on {layer.n_kv_heads} KV heads, {widths}, sees {reach}"
