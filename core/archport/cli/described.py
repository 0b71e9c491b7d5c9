"""A model as plans need it, and what plans its requests: from its files or its config, without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from archport.contract import InputError

if TYPE_CHECKING:
    from archport.attention import Chooser
    from archport.contract import ArchSpec, DeviceFacts, DType
    from archport.contract.hooks import Hooks
    from archport.planning import Planner, Readout
    from archport.tasks import Apart


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model would be loaded, as far as plans depend on it: arguments of `engine.load`.

    Args:
        budget: `memory_budget`, in bytes; it decides whether quantised weights are unpacked.
    """

    dtype: str | None = None
    max_context: int | None = None
    adapter: str | None = None
    adapters: Mapping[str, str] | None = None
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What a plan needs to know of a model.

    Args:
        weight_bytes: bytes of the weights on the planned device; None to estimate them from the spec.
        max_context: tokens that a text may have, as where it is loaded.
        dtype: element type of the computation; None: the device's usual one.
        apart: the adapters that it has next to its weights.
        pack: whether `embed` packs rows of different lengths.
        readout: what `embed` needs after the last layer, where that is more than a row of each text.
    """

    spec: ArchSpec
    hooks: Hooks
    label: str
    weight_bytes: int | None
    max_context: int
    dtype: DType | None = None
    apart: Apart | None = None
    pack: bool = False
    readout: Readout | None = None


def planner_of(about: Described, device: DeviceFacts, *, budget: int | None, choose: Chooser | None = None) -> Planner:
    """What plans requests of a model on a device.

    Args:
        choose: another planner's of the same model and device, whose answers are known already.
    """
    from archport.loading import path_chooser
    from archport.planning import Planner
    from archport.tasks import holding, priced

    planner = Planner.of(
        about.spec if about.apart is None else priced(about.spec, about.apart),
        device,
        choose or path_chooser(about.hooks, simulated=device.simulated),
        budget=budget,
        dtype=about.dtype,
        weight_bytes=about.weight_bytes,
        pins=about.hooks,
        plugin=about.label,
    )
    planner = replace(planner, max_context=about.max_context)
    return planner if about.apart is None else holding(planner, about.apart)


def described(model: str, device: DeviceFacts, loading: Loading | None = None) -> Described:
    """A model's spec and hooks, from its config alone where there are no weights.

    Raises:
        ModelNotFound, CheckpointError, ClaimError, ContextLengthExceeded: as loading it would.
    """
    return described_on(model, [device], loading)[0]


def described_on(model: str, devices: Sequence[DeviceFacts], loading: Loading | None = None) -> list[Described]:
    """As `described`, for each of some devices: the files are read once, and a hub is asked once.

    Raises:
        ModelNotFound, CheckpointError, ClaimError, ContextLengthExceeded: as loading it would.
    """
    loading = loading or Loading()
    dtype, adapter = loading.dtype, loading.adapter
    path = Path(model).expanduser()
    config = path / "config.json" if path.is_dir() else path
    if config.suffix == ".json" and config.is_file() and not any(config.parent.glob("*.safetensors")):
        if adapter is not None or loading.adapters:
            given = f"adapter={adapter!r}" if adapter is not None else f"adapters={', '.join(loading.adapters or ())}"
            raise InputError(f"{given}: {path} has no weights that it could belong to; name the whole model")
        return _from_config(config, devices, loading)
    from archport.admission import bytes_of, chosen_dtype
    from archport.checkpoint.weights import stored_dtype
    from archport.contract import EmbeddingHead
    from archport.loading import context_ceiling, describe, narrowed
    from archport.planning.readouts import readout_of
    from archport.tasks import find_apart, most_bytes

    about = describe(model, adapter=adapter)
    inputs = about.hooks.inputs(about.spec, about.checkpoint)
    _, ceiling = context_ceiling(about.checkpoint.name, about.spec, inputs, loading.max_context)
    head = about.hooks.head(about.spec, about.checkpoint)
    about = narrowed(about, head)
    spec = about.spec
    build = partial(about.hooks.build, spec, about.checkpoint.config)
    apart = find_apart(about.checkpoint, loading.adapters, (about.plugin,), build)
    held = bytes_of(about)
    made: list[Described] = []
    for device in devices:
        left = _budget(device, loading) - most_bytes(apart)
        choice = chosen_dtype(about, dtype, device.kind, left, held)
        weights = held(choice.dtype, choice.dequantize)
        computed = stored_dtype(about.checkpoint.tensors) if choice.dtype == "checkpoint" else choice.dtype
        made.append(
            Described(
                spec,
                about.hooks,
                about.plugin.label,
                weights,
                ceiling,
                computed,
                apart,
                pack=isinstance(head, EmbeddingHead),
                readout=readout_of(head, spec.vocab_size, spec.hidden_size, computed),
            )
        )
    return made


def _budget(device: DeviceFacts, loading: Loading) -> int:
    return device.default_budget if loading.budget is None else loading.budget


def _computed(dtype: str | None, spec: ArchSpec) -> DType | None:
    """The element type that a checked choice computes in; None where the device's usual one is meant."""
    return spec.dtype if dtype == "checkpoint" else cast("DType | None", dtype)


def _from_config(path: Path, devices: Sequence[DeviceFacts], loading: Loading) -> list[Described]:
    """A model of which there is only a config: its weights are estimated."""
    from archport.checkpoint import normalise_config, read_quantization
    from archport.checkpoint.disk import read_object
    from archport.checkpoint.dtype import choose_dtype
    from archport.contract import CheckpointError, TextInputs
    from archport.contract.hooks import Hooks, Speaker
    from archport.contract.plugins import claim, discover
    from archport.loading import context_ceiling

    raw = read_object(path)
    if raw is None:
        raise CheckpointError(f"{path} is not a JSON object; expected a model's config.json")
    config = normalise_config(raw)
    plugin, spec = claim(config, discover())
    assert plugin.module is not None, "a plugin that claims has been imported"
    spec = replace(spec, quantization=spec.quantization or read_quantization(config))
    for device in devices:
        # An unknown name, or one in which the family overflows, is refused as it is when loading.
        choose_dtype(loading.dtype, spec, device.kind, budget=_budget(device, loading), bytes_of=lambda *_: 0)
    hooks = Hooks([Speaker(plugin.label, plugin.module)])
    _, ceiling = context_ceiling(str(path), spec, TextInputs(), loading.max_context)
    computed, pack = _computed(loading.dtype, spec), "embed" in spec.tasks
    return [Described(spec, hooks, plugin.label, None, ceiling, computed, pack=pack)] * len(devices)
