"""The typed face of every hook: calls it, checks the answer, and names the plugin when something is wrong.

The rest of archport calls these methods and never pluggy. Knows nothing of what an answer is used for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, cast, get_args

import pluggy

from archport.contract import hookspecs
from archport.contract.attention import AttentionCall, Backend, MaskPolicy
from archport.contract.deprecation import spelt
from archport.contract.device import DeviceFacts
from archport.contract.errors import ArchportError, CheckpointError, PluginError
from archport.contract.heads import Head, TokenHead, YesNoHead
from archport.contract.inputs import CheckpointView, Example, TextInputs
from archport.contract.memory import BatchShape, KVAllocation, Limits
from archport.contract.model import Trunk
from archport.contract.spec import ArchSpec, AttentionLayer, LayerSpec

T = TypeVar("T")
# What the name of every hook begins with.
PREFIX = "archport_"


@dataclass(frozen=True, slots=True)
class Speaker:
    """A module that answers hooks, and how errors name it ("qwen3 (archport 0.1.0)")."""

    label: str
    module: ModuleType


class _Manager(pluggy.PluginManager):
    """pluggy's manager, which looks for hooks under their names alone: a hook's function is named after it.

    pluggy takes half a millisecond to look at every name of two modules, and each load registers several.
    """

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name.startswith(PREFIX) else None

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name.startswith(PREFIX) else None


class Hooks:
    """The hooks of one model: core defaults, the claiming plugin and explicit overrides, later ones asked first.

    Args:
        speakers: in the order of registration; the last is asked first, defaults marked `trylast` come last.
    """

    def __init__(self, speakers: Sequence[Speaker]) -> None:
        self.speakers = tuple(speakers)
        self._answered: dict[str, str] = {}
        self._asked: dict[str, list[tuple[str, Callable[..., Any]]]] = {}
        self._manager = _Manager("archport")
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get("ARCHPORT_TRACE") == "1":
            self._manager.trace.root.setwriter(sys.stderr.write)
            self._manager.enable_tracing()
        for speaker in speakers:
            self._manager.register(speaker.module, name=speaker.label)

    # Collecting hooks: every speaker answers.

    def models(self) -> dict[str, str]:
        merged: dict[str, str] = {}
        for who, answer in self._collect("archport_models"):
            _checked(who, "archport_models", answer, Mapping, "a mapping of name to target")
            for name, target in cast(Mapping[Any, Any], answer).items():
                if not isinstance(name, str) or not isinstance(target, str):
                    raise _wrong(who, "archport_models", {name: target}, "strings on both sides")
                merged[name] = target
        return merged

    def claim(self, config: Mapping[str, Any]) -> ArchSpec | None:
        for who, answer in self._collect("archport_claim", config=config):
            return _checked(who, "archport_claim", answer, ArchSpec, "an ArchSpec or None")
        return None

    def examples(self) -> tuple[Example, ...]:
        found: list[Example] = []
        for who, answer in self._collect("archport_examples"):
            _checked(who, "archport_examples", answer, Sequence, "a sequence of Example")
            for example in cast(Sequence[Any], answer):
                found.append(_checked(who, "archport_examples", example, Example, "a sequence of Example"))
        return tuple(found)

    def sdpa_backends(self) -> tuple[Backend, ...]:
        found: list[Backend] = []
        for who, answer in self._collect("archport_sdpa_backends"):
            _checked(who, "archport_sdpa_backends", answer, Sequence, "a sequence of backends")
            for backend in cast(Sequence[Any], answer):
                missing = [part for part in ("name", "reasons_against", "price", "run") if not hasattr(backend, part)]
                if missing:
                    raise _wrong(who, "archport_sdpa_backends", backend, f"an object that has {', '.join(missing)}")
                found.append(backend)
        return tuple(found)

    # First answer wins.

    def build(self, spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
        who, module = self._first("archport_build", spec=spec, config=config)
        if module is None:
            raise PluginError(f"{self.speakers[-1].label} claims {spec.arch!r} but does not implement archport_build")
        parts = ["__call__", "sanitize", "parameters"]
        if {"generate", "rerank"} & set(spec.tasks) and spec.semantics == "causal":
            parts += ["logits", "head_rows"]
        parts += ["logits"] if "fill_mask" in spec.tasks else []
        parts += ["scores"] if {"classify", "tag"} & set(spec.tasks) else []
        missing = [part for part in parts if not hasattr(module, part)]
        if missing:
            raise _wrong(
                who,
                "archport_build",
                module,
                f"an mlx.nn.Module that has {', '.join(missing)}, for the tasks {', '.join(spec.tasks)}",
            )
        return cast(Trunk, module)

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
        who, answer = self._first("archport_mask_policy", spec=spec, layer=layer, shape=shape)
        policy = _optional(who, "archport_mask_policy", answer, MaskPolicy, "a MaskPolicy or None")
        if policy and isinstance(layer, AttentionLayer) and policy.contradicts(layer.semantics):
            raise PluginError(
                f"{who}: archport_mask_policy pins {policy.kind!r} for a layer declared {layer.semantics}; "
                "pin a policy that keeps the declared semantics, or declare the layer otherwise"
            )
        return policy

    def kv_allocation(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape, limits: Limits) -> KVAllocation | None:
        who, answer = self._first("archport_kv_allocation", spec=spec, layer=layer, shape=shape, limits=limits)
        return _optional(who, "archport_kv_allocation", answer, KVAllocation, "a KVAllocation or None")

    def prefill_chunk(self, spec: ArchSpec, shape: BatchShape, device: DeviceFacts) -> int | None:
        who, answer = self._first("archport_prefill_chunk", spec=spec, shape=shape, device=device)
        if answer is None:
            return None
        if not isinstance(answer, int) or isinstance(answer, bool) or answer < 1:
            raise _wrong(who, "archport_prefill_chunk", answer, "an int >= 1 (tokens) or None")
        return answer

    def sdpa_backend(self, spec: ArchSpec, layer: LayerSpec, call: AttentionCall, device: DeviceFacts) -> str | None:
        who, answer = self._first("archport_sdpa_backend", spec=spec, layer=layer, call=call, device=device)
        return spelt(_optional(who, "archport_sdpa_backend", answer, str, "the name of a backend or None"))

    def head(self, spec: ArchSpec, checkpoint: CheckpointView) -> Head:
        who, answer = self._first("archport_head", spec=spec, checkpoint=checkpoint)
        if not isinstance(answer, Head):
            kinds = " or ".join(kind.__name__ for kind in get_args(Head))
            raise _wrong(who, "archport_head", answer, f"one of {kinds}, or None")
        beyond = [token for token in _tokens_of(answer) if token >= spec.vocab_size]
        if beyond:
            # MLX reads rows out of bounds: the answer is garbage, or the process ends.
            raise CheckpointError(
                f"{answer.source}: the head needs token id {beyond[0]}; the model's vocabulary has {spec.vocab_size} "
                "entries. The file or the tokenizer is another model's."
            )
        return answer

    def inputs(self, spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs:
        who, answer = self._first("archport_inputs", spec=spec, checkpoint=checkpoint)
        return _checked(who, "archport_inputs", answer, TextInputs, "a TextInputs or None")

    # How a hook is asked: one speaker at a time, in pluggy's order, so that every answer has a name.

    def _askers(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        askers = self._asked.get(hook)
        if askers is None:
            askers = self._asked[hook] = self._find_askers(hook)
        return askers

    def _find_askers(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        implementations = [
            impl for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()) if not impl.wrapper
        ]
        modules = [impl.plugin for impl in implementations]
        return [
            (
                self._manager.get_name(module) or "an unnamed plugin",
                self._manager.subset_hook_caller(hook, [other for other in modules if other is not module]),
            )
            for module in modules
        ]

    def _ask(self, hook: str, who: str, caller: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        try:
            return caller(**arguments)
        except ArchportError as error:
            error.add_note(f"in hook {hook} of plugin {who}")
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise PluginError(f"hook {hook} of plugin {who} raised {said}", hook=hook, plugin=who) from error

    def _collect(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        return [
            (who, answer)
            for who, caller in self._askers(hook)
            for answer in self._ask(hook, who, caller, arguments)
            if answer is not None
        ]

    def _first(self, hook: str, **arguments: Any) -> tuple[str, Any]:
        for who, caller in self._askers(hook):
            answer = self._ask(hook, who, caller, arguments)
            if answer is not None:
                self._answered[hook] = who
                return who, answer
        return "nobody", None

    def answered_by(self, hook: str) -> str:
        """Whose answer to a first-answer hook was the latest that counted; "" when it had none."""
        return self._answered.get(hook, "")


def _wrong(who: str, hook: str, value: object, expected: str) -> PluginError:
    return PluginError(f"{who}: {hook} returned {value!r}; expected {expected}")


def _checked(who: str, hook: str, value: Any, kind: type[T], expected: str) -> T:
    if not isinstance(value, kind):
        raise _wrong(who, hook, value, expected)
    return value


def _optional(who: str, hook: str, value: Any, kind: type[T], expected: str) -> T | None:
    return None if value is None else _checked(who, hook, value, kind, expected)


def _tokens_of(head: Head) -> list[int]:
    """Vocabulary ids that a head itself runs or reads."""
    found: list[int | None] = []
    if isinstance(head, YesNoHead):
        found = [head.yes, head.no]
    elif isinstance(head, TokenHead):
        found = [head.query_marker, head.document_marker, head.expansion.token if head.expansion else None]
    return [token for token in found if token is not None]
