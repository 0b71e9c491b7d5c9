"""What checks are given: a plugin, each of its examples as a tiny model on disk, or a model with real weights.

A tiny model is written in the published layout and loaded through `engine.load`, so every stage between a folder and a
vector takes part. Knows how to plan and run rows with any option of the planner; knows no property that is checked.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport import engine
from archport.checkpoint import defaults, normalise_config
from archport.contract import (
    ArchSpec,
    AttentionLayer,
    ClassificationHead,
    EmbeddingHead,
    Example,
    LayerContext,
    Span,
    SpecError,
    TaggingHead,
    Trunk,
)
from archport.contract.hooks import Hooks, Speaker
from archport.contract.plugins import Plugin
from archport.device import tf32
from archport.memory import Caches
from archport.planning import Plan, Planner
from archport.running.steps import batch_caches, run_steps, spans_of
from archport.testing.recorded import Recorded
from archport.testing.writing import random_weights, write_checkpoint


class Subject:
    """A plugin under check.

    Args:
        plugin: the plugin.
        others: every other sound plugin that is installed.
    """

    def __init__(self, plugin: Plugin, others: Sequence[Plugin] = ()) -> None:
        self.plugin, self.others = plugin, tuple(others)
        # What was measured of examples whose passes are alike, by what they are (see `touched`), with the example.
        self.measured: dict[Hashable, tuple[str, int]] = {}

    @property
    def module(self) -> ModuleType:
        assert self.plugin.module is not None, "a plugin that did not load is reported before any check"
        return self.plugin.module

    @cached_property
    def hooks(self) -> Hooks:
        """The plugin's collecting hooks."""
        return self.plugin.hooks()

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        return self.hooks.examples()

    @property
    def is_guest(self) -> bool:
        """Whether it only brings backends or policy hooks to models that other plugins claim."""
        names = set(self.plugin.hook_names)
        return bool(names) and not names & {"archport_claim", "archport_build", "archport_examples"}

    @cached_property
    def tinies(self) -> tuple[Tiny, ...]:
        """One per example; for a guest, examples of the plugins it visits."""
        if self.is_guest:
            return guest_tinies(self, self.others)
        return tuple(Tiny(self, example) for example in self.examples)


class Tiny:
    """One example as a loaded model; everything is made on first use and kept."""

    def __init__(self, subject: Subject, example: Example) -> None:
        self.subject, self.example = subject, example
        # Plans of single rows, by their length and spans.
        self._alone: dict[tuple[int, tuple[Span, ...]], Plan] = {}
        # What checks found out once, by its name.
        self.memo: dict[str, Any] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The example's config, normalised."""
        return normalise_config(dict(self.example.config))

    @cached_property
    def spec(self) -> ArchSpec:
        """What the plugin declares for the example.

        Raises:
            SpecError: the plugin does not claim its own example.
        """
        spec = self.subject.hooks.claim(self.config)
        if spec is None:
            raise SpecError(f"the plugin does not claim its own example {self.example.name!r}")
        return spec

    @cached_property
    def _home(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="archport-check-")

    @cached_property
    def weights(self) -> dict[str, mx.array]:
        """The random tensors under the module's own names."""
        return random_weights(self.build(), self.example)

    @cached_property
    def published(self) -> dict[str, mx.array]:
        """The same tensors as the published layout names and shapes them."""
        publish = self.example.publish
        return dict(publish(self.weights)) if publish else dict(self.weights)

    @cached_property
    def fingerprint(self) -> str:
        """What a reference that was recorded from this example depends on: its config, its tensors and their size."""
        shapes = sorted((name, list(value.shape)) for name, value in self.published.items())
        stated = json.dumps([dict(self.example.config), self.example.seed, self.example.scale, shapes], sort_keys=True)
        # Rounded, for tensors are drawn anew on every machine.
        size = sum(float(mx.abs(value.astype(mx.float32)).sum()) for value in self.published.values())
        return f"{hashlib.sha256(stated.encode()).hexdigest()[:16]} {size:.8g}"

    @cached_property
    def folder(self) -> Path:
        """The checkpoint in the published layout."""
        return self.write(self.named("tiny"), self.published)

    def named(self, name: str) -> str:
        """A folder's name that says what the example is for: some plugins know nothing else to tell it by."""
        return name if "generate" in self.spec.tasks else f"{name}-embedding"

    def write(self, name: str, weights: Mapping[str, mx.array], **more: Any) -> Path:
        """A checkpoint of this example with these tensors; `more` goes into its config.json."""
        folder = Path(self._home.name) / name
        write_checkpoint(folder, {**self.example.config, **more}, weights, self.spec)
        return folder

    def load(self, folder: Path, **options: Any) -> engine.Model:
        """A checkpoint through `engine.load`, with this plugin as the only one asked; float32 unless told otherwise."""
        return engine.load(folder, plugins=(self.subject.plugin,), **{"dtype": "float32", **options})

    @cached_property
    def model(self) -> engine.Model:
        return self.load(self.folder)

    @cached_property
    def broken(self) -> str:
        """Why the example can't be loaded, "" when it can."""
        try:
            _ = self.model
        # Whatever a stranger's module raises; the check of loading itself reports it in full.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def build(self) -> Trunk:
        """A fresh module, with the seed of the example."""
        mx.random.seed(self.example.seed)
        return self.hooks.build(self.spec, self.config)

    def bare(self, weights: Mapping[str, mx.array] | None = None) -> Trunk:
        """A fresh module filled directly, past every file and loader."""
        trunk = self.build()
        module = cast(Any, trunk)
        module.load_weights(list((weights or self.weights).items()), strict=True)
        module.eval()
        return trunk

    @cached_property
    def hooks(self) -> Hooks:
        """The hooks of this one model: core defaults and the plugin."""
        plugin = self.subject.plugin
        return Hooks([Speaker("core defaults", defaults), Speaker(plugin.label, self.subject.module)])

    def answers(
        self, texts: str | Sequence[str] | Mapping[str, Any], model: engine.Model | None = None, **options: Any
    ) -> np.ndarray:
        """What the example's head makes of texts, or of a mapping with an image, a row each: vectors or raw scores."""
        model = model or self.model
        if isinstance(model.head, ClassificationHead):
            found = model.classify(cast("str | Sequence[str]", texts), raw_scores=True, **options)
            return np.array([list(each.scores.values()) for each in found])
        if isinstance(model.head, TaggingHead):
            tagger = model._runtime.tagger()
            given = [texts] if isinstance(texts, str) else list(cast("Sequence[str]", texts))
            # A row per text: what its tokens score on average.
            return np.stack([scores.mean(axis=0) for scores in tagger.scores(tagger.read(given, **options).ids)])
        return model.embed(texts, **options)

    @property
    def embeds(self) -> bool:
        """Whether the example's head makes vectors of texts."""
        return isinstance(self.model.head, EmbeddingHead)

    @property
    def trunk(self) -> Trunk:
        return self.model._runtime.encoder.trunk

    @property
    def planner(self) -> Planner:
        return self.model._runtime.encoder.plan

    @property
    def limit(self) -> float:
        """Relative difference that rounding alone may make in float32 on this device."""
        # Where TF32 was asked for, products round their inputs to ten bits.
        return 5e-3 if tf32.in_use() else 2e-5

    @property
    def attention(self) -> tuple[tuple[int, AttentionLayer], ...]:
        """(index, spec) of the first layer of each distinct attention spec."""
        first: dict[AttentionLayer, int] = {}
        for index, layer in enumerate(self.spec.layers):
            if isinstance(layer, AttentionLayer):
                first.setdefault(layer, index)
        return tuple((index, layer) for layer, index in first.items())

    @property
    def keeps(self) -> bool:
        """Whether rows may be run in steps: every layer reads left to right and remembers."""
        return self.spec.semantics == "causal" and all(layer.kv != "none" for layer in self.spec.attention_layers)

    @property
    def has_head(self) -> bool:
        """Whether some declared task reads an output head."""
        return bool({"generate", "rerank"} & set(self.spec.tasks)) and self.spec.semantics == "causal"

    def tokens(self, length: int, seed: int = 0) -> np.ndarray:
        """Random ids (length,) of the vocabulary."""
        rng = np.random.default_rng(1000 * self.example.seed + seed + length)
        return rng.integers(0, self.spec.vocab_size, length).astype(np.int32)

    def length(self, wanted: int) -> int:
        """`wanted` tokens, or as many as the example has positions for."""
        return min(wanted, self.model.max_tokens, self.spec.max_positions)

    def plan(self, lengths: Sequence[int], *, planner: Planner | None = None, **options: Any) -> Plan:
        """The plan of the loaded model, with any further option of the planner (`chunk`, `backend`...)."""
        from archport.testing.plans import planned

        return planned(planner or self.planner, lengths, **options)

    def together(self, rows: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        """Hidden states (L, D) of each row, run with the others in the batches that this device makes of them.

        Args:
            options: of `plan`; `mode="generate"` makes one batch of all.
        """
        lengths = [len(row) for row in rows]
        plan = self.plan(lengths, spans=[self.spans(row) for row in rows], **options)
        found: dict[int, np.ndarray] = {}
        for batch in plan.batches:
            # A plan of these rows alone, which are numbered anew.
            alone = replace(plan, batches=(replace(batch, rows=tuple(range(len(batch.rows)))),))
            found |= dict(zip(batch.rows, self.run(alone, [rows[row] for row in batch.rows]), strict=True))
        return [found[row][:length] for row, length in enumerate(lengths)]

    def caches(self, plan: Plan) -> Caches | None:
        """Empty caches of the plan's only batch."""
        (batch,) = plan.batches
        return batch_caches(self.spec, plan, batch)

    def run(
        self,
        plan: Plan,
        rows: Sequence[np.ndarray],
        *,
        caches: Caches | None = None,
        trunk: Trunk | None = None,
        wrap: Callable[[LayerContext], LayerContext] = lambda ctx: ctx,
    ) -> np.ndarray:
        """Hidden states (B, L, D) float32 of the plan's only batch, step by step, in the order of the request.

        L is the longest row's length: what a device pads it by is cut off.

        Args:
            caches: what steps write to; made as planned when left out.
            trunk: the module to run; the loaded one when left out.
            wrap: put around every step's context.
        """
        (batch,) = plan.batches
        inner = trunk or self.trunk

        def outer(ids: mx.array, ctx: LayerContext) -> mx.array:
            return inner(ids, wrap(ctx))

        caches = self.caches(plan) if caches is None else caches
        pieces: list[np.ndarray] = []
        with closing(run_steps(cast(Trunk, outer), plan, batch, [rows[row] for row in batch.rows], caches)) as steps:
            for _, hidden in steps:
                pieces.append(np.array(hidden.astype(mx.float32)))
        out = np.concatenate(pieces, axis=1)
        return out[np.argsort(batch.rows), : max(batch.lengths)]

    def spans(self, row: np.ndarray) -> tuple[Span, ...]:
        """The spans that the plugin's inputs name in a row; () where they name none."""
        found = spans_of(self.model._runtime.encoder.rule, [row])
        return () if found is None else found.rows[0]

    def hidden(
        self, row: np.ndarray, *, prompt: int | None = None, spans: Sequence[Span] | None = None, **options: Any
    ) -> np.ndarray:
        """Hidden states (L, D) of one row in one pass, or as `run` and its options say.

        Args:
            prompt: leading tokens in which spans are looked for, as where the others were generated; None: all.
            spans: those to take instead of what the plugin's inputs name.
        """
        named = tuple(self.spans(row[:prompt]) if spans is None else spans)
        key = len(row), named
        if key not in self._alone:
            self._alone[key] = self.plan([len(row)], spans=[named])
        return self.run(self._alone[key], [row], **options)[0]


@dataclass(frozen=True, slots=True)
class Golden:
    """A model and what a reference computed from its weights.

    Args:
        model: loaded by the plugin under check.
        recorded: what the reference computed; None when there is none.
        real: whether the weights are real ones, and not an example's.
    """

    model: engine.Model
    recorded: Recorded | None = None
    real: bool = True

    @property
    def stored(self) -> tuple[list[str], np.ndarray] | None:
        """Recorded (texts, vectors (N, D)); None when there are none."""
        if self.recorded is None or self.recorded.vectors is None:
            return None
        return list(self.recorded.texts), self.recorded.vectors


class GuestTiny(Tiny):
    """An example of a host, loaded with the guest in front of it."""

    def __init__(self, subject: Subject, host: Plugin, example: Example) -> None:
        super().__init__(subject, example)
        self.host = host

    @cached_property
    def spec(self) -> ArchSpec:
        spec = self.host.hooks().claim(self.config)
        assert spec is not None, "hosts are chosen by what they claim"
        return spec

    @cached_property
    def hooks(self) -> Hooks:
        assert self.host.module is not None, "hosts are sound plugins"
        guest = Speaker(f"override {self.subject.module.__name__}", self.subject.module)
        return Hooks([Speaker("core defaults", defaults), Speaker(self.host.label, self.host.module), guest])

    def load(self, folder: Path, **options: Any) -> engine.Model:
        """A checkpoint through `engine.load`, claimed by the host, with the guest among the overrides."""
        options = {"dtype": "float32", **options}
        return engine.load(folder, plugins=(self.host,), overrides=[self.subject.module], **options)


def guest_tinies(subject: Subject, hosts: Sequence[Plugin]) -> tuple[Tiny, ...]:
    """One causal and one bidirectional example of the hosts, of texts alone; fewer where they have no such thing."""
    found: dict[str, Tiny] = {}
    for host in sorted(hosts, key=lambda host: host.distribution != "archport"):
        for example in host.hooks().examples():
            tiny = GuestTiny(subject, host, Example(f"{host.name}: {example.name}", *_rest(example)))
            if tiny.spec.vision is None:
                found.setdefault(tiny.spec.semantics, tiny)
    return tuple(found[kind] for kind in ("causal", "bidirectional") if kind in found)


def _rest(example: Example) -> tuple[Any, ...]:
    return example.config, example.seed, example.scale, example.publish
