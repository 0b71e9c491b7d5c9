"""The stages between a model's name and a loaded model, one function each. `engine.load` calls them in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from archport.attention import Chooser, TableRoutes, builtin_backends, probed_routes
from archport.checkpoint import (
    ChatFiles,
    Checkpoint,
    check_counts,
    check_widths,
    has_large_counts,
    load_dense,
    load_tokenizer,
    load_weights,
    mask_token,
    no_tokenizer,
    read_chat,
    read_quantization,
    resolve,
    special_ids,
    stored_apart,
    truncation_side,
)
from archport.checkpoint import defaults as checkpoint_defaults
from archport.checkpoint.dtype import DTypeChoice
from archport.checkpoint.sharing import shared, stamp
from archport.contract import (
    ArchSpec,
    AttentionLimits,
    CheckpointError,
    ClaimError,
    ClassificationHead,
    ContextLengthExceeded,
    Dense,
    DeviceFacts,
    EmbeddingHead,
    Head,
    InputError,
    PluginError,
    SpanRule,
    SparseHead,
    SpecError,
    TaggingHead,
    TextInputs,
    TokenHead,
    Trunk,
    YesNoHead,
)
from archport.contract.arguments import checked
from archport.contract.hooks import Hooks, Speaker
from archport.contract.plugins import Plugin, claim, discover, find_fault, known_models, named
from archport.faults import explained, unexpected

if TYPE_CHECKING:
    import mlx.nn as nn

    from archport.layers.splitting import ModelSplit
    from archport.planning import Planner
    from archport.runtime import Runtime

log = logging.getLogger("archport")


@dataclass(frozen=True, slots=True)
class Description:
    """A model as its files describe it, before any weight is read."""

    checkpoint: Checkpoint
    plugin: Plugin
    spec: ArchSpec
    hooks: Hooks
    overridden: bool = False


@checked
def describe(
    name: str | Path,
    *,
    revision: str | None = None,
    overrides: Sequence[ModuleType] = (),
    plugin: str | None = None,
    plugins: Sequence[Plugin] | None = None,
    progress: bool | None = None,
    weights: bool = False,
    adapter: str | Path | None = None,
) -> Description:
    """Resolve a name and ask the one plugin that claims it; reads configs and headers only, on the hub too.

    Args:
        plugin: the name of the only plugin to ask, where several claim it.
        plugins: who may claim it; the installed ones when left out.
        weights: fetch the weights from the hub as well, to load them next.
        adapter: as `load` takes it.

    Raises:
        ModelNotFound, CheckpointError, ClaimError, PluginError: see `load`.
    """
    known = discover() if plugins is None else tuple(plugins)
    known = known if plugin is None else (named(plugin, known),)

    def attempt(*, weights: bool = False) -> Description:
        found = partial(resolve, name, revision=revision, progress=progress, weights=weights, adapter=adapter)
        return described(found, overrides, known)

    try:
        about = attempt(weights=weights)
    except Exception as error:
        if not unexpected(error):
            raise
        better = explained(error, None, known, attempt)
        if better is error:
            raise
        raise better from error
    if about.checkpoint.name != str(name) and about.checkpoint.source != "folder":
        log.info("%r is loaded as %r", str(name), about.checkpoint.name)
    return about


def described(
    found: Callable[..., Checkpoint], overrides: Sequence[ModuleType], plugins: Sequence[Plugin]
) -> Description:
    """What the one plugin that claims a checkpoint says of it.

    Args:
        found: finds it, given `models`: the names that plugins know.
    """
    plugins = tuple(plugins)
    checkpoint = found(models=known_models(plugins))
    where = f"{checkpoint.config_path}"
    try:
        if has_large_counts(checkpoint.config):
            check_counts(checkpoint.config, checkpoint.tensors)
        plugin, spec = claim(checkpoint.config, plugins)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except ClaimError as error:
        if not isinstance(error.__cause__, SpecError | CheckpointError):
            raise
        raise ClaimError(f"{where}: {error}") from error.__cause__
    # How tensors are packed is written the same way for every architecture, so plugins need not read it.
    spec = replace(spec, quantization=spec.quantization or read_quantization(checkpoint.config))
    return Description(checkpoint, plugin, spec, Hooks(_speakers(plugin, overrides)), bool(overrides))


def read_again(
    name: str | Path, revision: str | None, plugins: Sequence[Plugin], adapter: str | Path | None = None
) -> None:
    """Go through the small files of a checkpoint as `load` does, up to where its tensors are read; for `explained`."""
    about = described(partial(resolve, name, revision=revision, weights=False, adapter=adapter), (), plugins)
    about.hooks.head(about.spec, about.checkpoint)
    inputs = about.hooks.inputs(about.spec, about.checkpoint)
    about.hooks.build(about.spec, about.checkpoint.config)
    if not inputs.images_only:
        load_tokenizer(about.checkpoint, lowercase=inputs.lowercase)
        truncation_side(about.checkpoint)
    read_chat(about.checkpoint)
    mask_token(about.checkpoint)


def _speakers(plugin: Plugin, overrides: Sequence[ModuleType]) -> list[Speaker]:
    assert plugin.module is not None, "a plugin that claims has been imported"
    for module in overrides:
        fault = find_fault(module)
        if fault:
            raise InputError(f"overrides: {getattr(module, '__name__', module)!r} is not usable as a plugin: {fault}")
    return [
        Speaker("core defaults", checkpoint_defaults),
        Speaker(plugin.label, plugin.module),
        *(Speaker(f"override {module.__name__}", module) for module in overrides),
    ]


def narrowed(about: Description, head: Head) -> Description:
    """The description with the tasks that the checkpoint's head leaves of those its architecture could do."""
    others: tuple[str, ...]
    if isinstance(head, YesNoHead):
        others = ("embed", "classify", "fill_mask")
    elif isinstance(head, ClassificationHead) and head.vector is not None:
        # Its trunk has no classifier, whatever it scores, so it is built as declared.
        ranks = "rerank" in about.spec.tasks and len(head.labels) < 3
        return replace(about, spec=replace(about.spec, tasks=("rerank",))) if ranks else about
    elif isinstance(head, ClassificationHead):
        others = ("embed", "generate", "fill_mask", *(("rerank",) if len(head.labels) > 2 else ()))
    elif isinstance(head, TokenHead):
        others = ("generate", "classify", "fill_mask", "tag")
    elif isinstance(head, SparseHead):
        # It reads the masked-LM head of its trunk.
        others = ("rerank", "generate", "classify", "tag")
    elif isinstance(head, TaggingHead):
        others = tuple(task for task in about.spec.tasks if task != "tag")
    else:
        others = ("rerank",) if not head.stated else ("rerank", "generate", "fill_mask", "classify", "tag")
    left = [task for task in about.spec.tasks if task not in others]
    # A head that serves none of the declared tasks is the plugin's own contradiction; it surfaces where it is used.
    return replace(about, spec=replace(about.spec, tasks=tuple(left) or about.spec.tasks))


def context_ceiling(name: str, spec: ArchSpec, inputs: TextInputs, max_context: int | None) -> tuple[int, int]:
    """(tokens that a text may have by default, tokens that any text may have, in whatever role).

    Raises:
        ContextLengthExceeded: more is asked for than the model has positions.
    """
    positions = spec.max_positions
    if max_context is None:
        default = min(positions, inputs.max_tokens or positions)
        return default, min(positions, max(default, inputs.query_tokens or 0, inputs.document_tokens or 0))
    if not isinstance(max_context, int) or isinstance(max_context, bool) or max_context < 1:
        raise InputError(f"{max_context=}; expected a positive integer")
    if max_context > positions:
        raise ContextLengthExceeded(
            f"{max_context=} is above the {positions} positions of {name}; it is refused, not lowered",
            requested=max_context,
            ceiling=positions,
            max_tokens_that_fit=positions,
            binding=f"max_position_embeddings {positions}",
        )
    return max_context, max_context


def split_over(about: Description) -> ModelSplit:
    """What this process holds and runs of a model that its group shares.

    Raises:
        InputError: this process was started alone, or the model can't be split.
    """
    from archport.device.ranks import join
    from archport.layers.splitting import split_of

    rank = join().rank
    return split_of(about.hooks.build(about.spec, about.checkpoint.config), about.spec, rank)


def load_trunk(
    about: Description, choice: DTypeChoice, *, share: bool = False, split: ModelSplit | None = None, merge: bool = True
) -> Trunk:
    """The plugin's module, filled from the checkpoint.

    Args:
        share: use the buffers of a trunk of this process that was read from the same files in the same way.
        split: what this process holds of it, where it runs it together with others.
        merge: projections of one input into one product.
    """
    import mlx.core as mx

    from archport.device.ranks import join
    from archport.layers import merge_projections
    from archport.layers.splitting import split_modules

    def read() -> Trunk:
        trunk = about.hooks.build(about.spec, about.checkpoint.config)
        load_weights(
            about.checkpoint,
            cast("nn.Module", trunk),
            quantization=about.spec.quantization,
            dtype=choice.dtype,
            dequantize=choice.dequantize,
            cuts=None if split is None else split.cuts,
        )
        if split is not None:
            split_modules(trunk, split, join())
        if merge:
            merge_projections(trunk)
        # Layers draw first weights, which nobody reads; the chain of keys would stay behind, some 70 KB a load.
        mx.eval(mx.random.state)
        return trunk

    # Another module's hooks may build another trunk from the same files.
    if not share or about.overridden or split is not None:
        return read()
    how = (choice.dtype, choice.dequantize, merge)
    key = (about.plugin.module, repr(about.spec), how, stamp(about.checkpoint.deciding_files()))
    trunk, there = shared(key, read)
    if there:
        name, other = about.checkpoint.name, "share_weights=False reads them anew"
        log.info("%s: the weights are shared with a model that is loaded already; %s", name, other)
    return trunk


def make_planner(
    about: Description,
    trunk: Trunk,
    device: DeviceFacts,
    budget: int,
    max_context: int,
    limits: AttentionLimits,
    split: ModelSplit | None = None,
) -> Planner:
    from archport.device.ranks import join
    from archport.planning import Planner, weights_on
    from archport.running.steps import hidden_dtype, parameter_bytes

    spec = about.spec if split is None else split.spec
    dtype = hidden_dtype(trunk, spec)
    held = parameter_bytes(trunk)
    if split is not None:
        # The last rank may have a word less than the first; their plans are one.
        held = join().most(held)
    planner = Planner(
        spec=spec,
        split=None if split is None else split.about,
        device=device,
        budget=budget,
        max_context=max_context,
        choose=path_chooser(about.hooks),
        pins=about.hooks,
        plugin=about.plugin.label,
        weights=weights_on(spec, device, dtype, budget, held),
        dtype=dtype,
        limits=limits,
    )
    if split is not None:
        # Other plans would be other collectives.
        join().agree("what plans are made of", (spec, device, budget, max_context, planner.weights, limits))
    return planner


def path_chooser(hooks: Hooks, *, simulated: bool = False) -> Chooser:
    """Chooses attention paths among the built-in backends and those that a model's plugins bring.

    Args:
        simulated: believe the tables of routes, because the plan is for a machine that can't be asked.
    """
    return Chooser(builtin_backends(TableRoutes() if simulated else probed_routes(), hooks.sdpa_backends()))


def make_runtime(
    about: Description,
    trunk: Trunk,
    planner: Planner,
    choice: DTypeChoice,
    head: Head,
    inputs: TextInputs,
    max_tokens: int,
    prefix_cache: int | str | None,
) -> Runtime:
    from archport.memory.snapshot import PrefixCache
    from archport.reading.texts import Side, TextTokeniser
    from archport.running.encode import Encoder
    from archport.runtime import Runtime

    files, chat = ChatFiles({}, {}, frozenset()), None
    if "generate" in about.spec.tasks or inputs.messages is not None:
        from archport.reading.chat import ChatTemplate

        files = read_chat(about.checkpoint)
        chat = ChatTemplate(files.templates, files.special, about.checkpoint.name, files.files)
    tokenizer = no_tokenizer() if inputs.images_only else load_tokenizer(about.checkpoint, lowercase=inputs.lowercase)
    own = head.vector if isinstance(head, ClassificationHead) else head
    stored = own.dense if isinstance(own, EmbeddingHead | TokenHead) else ()
    pooled = len(own.pooling) if isinstance(own, EmbeddingHead) else 1
    check_widths(about.checkpoint, about.spec.hidden_size * pooled, stored)
    apart = _apart(head)
    for layers in apart.values():
        check_widths(about.checkpoint, about.spec.hidden_size, layers)
    more = {
        name: tuple(load_dense(about.checkpoint, dense, choice.dtype) for dense in layers)
        for name, layers in apart.items()
        if all(stored_apart(about.checkpoint, dense) for dense in layers)
    }
    limits = (max_tokens, planner.max_context)
    side: Side = "right" if inputs.images_only else truncation_side(about.checkpoint)
    if inputs.messages is not None and inputs.reader is None:
        from archport.reading.messages import Conversation, MessageTokeniser

        assert chat is not None, "read above, because there are messages"
        texts = MessageTokeniser(Conversation(tokenizer, chat, inputs.messages, side), inputs, *limits)
    else:
        special = frozenset[int]() if inputs.images_only else special_ids(about.checkpoint)
        texts = TextTokeniser(tokenizer, inputs, *limits, side, special)
    return Runtime(
        about.checkpoint.name,
        texts,
        Encoder(trunk, planner.spec, planner, _span_rule(about, inputs)),
        head,
        tuple(load_dense(about.checkpoint, dense, choice.dtype) for dense in stored),
        chat=chat,
        # No row of the head makes a token beyond it, and MLX writes out of bounds where one is masked.
        stops=frozenset(each for each in files.stops if each < about.spec.vocab_size),
        prefixes=PrefixCache.of_size(prefix_cache, planner.budget),
        mask=mask_token(about.checkpoint) if "fill_mask" in about.spec.tasks else None,
        more=more,
    )


def _apart(head: Head) -> dict[str, tuple[Dense, ...]]:
    """The layers of each output that a head has beside its own."""
    if not isinstance(head, EmbeddingHead):
        return {}
    layers = {
        "sparse": () if head.sparse is None or head.sparse.own is None else (head.sparse.own,),
        "tokens": () if head.tokens is None else head.tokens.dense,
    }
    return {name: some for name, some in layers.items() if some}


def _span_rule(about: Description, inputs: TextInputs) -> SpanRule | None:
    """The rule of inputs that names spans, of which the model's layers must know.

    Raises:
        PluginError: no layer does, so that what the rule names would change nothing.
    """
    if inputs.spans is not None and not any(layer.spans for layer in about.spec.attention_layers):
        raise PluginError(
            f"{about.plugin.label}: archport_inputs names spans, but no layer of {about.spec.arch} declares "
            "spans=True; declare the layers whose tokens see each other within a span, or leave the rule out"
        )
    return inputs.spans
