"""The models of a server: their names, what each can do, and the one budget that they share.

A request names a model and never a path: only names that were registered at the start lead anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from archport.contract import (
    ClassificationHead,
    EmbeddingHead,
    PairReader,
    SparseHead,
    TaggingHead,
    TokenHead,
    YesNoHead,
)
from archport.engine import Model
from archport.planning import Plan, Planner, Request
from archport.runtime import Runtime
from archport.serving.errors import refused, unavailable, unsupported

# Bytes that other parts of the process hold are planned in steps of this share of the budget, so that plans are
# remembered.
STEPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPlanner(Planner):
    """A planner whose plans leave room for what others of the process hold.

    Args:
        others: bytes of them, now.
    """

    others: Callable[[], int] = field(default=lambda: 0, compare=False)

    def __call__(self, request: Request) -> Plan:
        """See Planner."""
        step = max(1, self.budget // STEPS)
        held = -(-self.others() // step) * step
        return Planner.__call__(self, replace(request, resident=request.resident + held))


def sharing(planner: Planner, others: Callable[[], int]) -> SharedPlanner:
    """The same planner, leaving room for others."""
    own = {each.name: getattr(planner, each.name) for each in fields(Planner) if each.init}
    return SharedPlanner(**own, others=others)


@dataclass(slots=True, eq=False)
class Served:
    """A model under its name.

    Args:
        id: how requests call it.
        model: loaded.
        config: of its checkpoint.
        runtime: its parts, with plans that share the process's budget.
        alone: its planner without what running generations hold, for what can never fit.
        revision: commit or branch that was loaded, where it came from a hub.
        folder: of its files.
        loading: how it was loaded, in flags of `archport plan`.
        created: seconds since 1970.
    """

    id: str
    model: Model
    config: Mapping[str, Any]
    runtime: Runtime
    alone: SharedPlanner
    revision: str | None = None
    folder: Path | None = None
    loading: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    # The longest row that is known to fit.
    _fits: int = 0

    def of_task(self, task: str | None) -> Runtime:
        """Its parts with the adapter of a task, in plans that share the process's budget; the base's own for None."""
        if task is None:
            return self.runtime
        made = self.runtime.tasks[task]
        return replace(made, encoder=replace(made.encoder, plan=self.runtime.encoder.plan))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can be asked for, in the words of `GET /v1/models`."""
        head, tasks = self.runtime.head, self.model.spec.tasks
        found: list[str] = []
        if isinstance(head, EmbeddingHead):
            found += ["embed", "rerank"] if head.stated or "generate" not in tasks else ["embed"]
        if isinstance(head, SparseHead) or "sparse" in self.runtime.more:
            found.append("embed_sparse")
        if isinstance(head, TokenHead):
            found += ["embed_tokens", "rerank"]
        if isinstance(head, YesNoHead) or (isinstance(head, ClassificationHead) and len(head.labels) < 3):
            found.append("rerank")
        if isinstance(head, ClassificationHead):
            found.append("classify")
        if isinstance(head, TaggingHead):
            found.append("tag")
        if "generate" in tasks:
            found.append("generate")
            if self.runtime.chat is not None and self.runtime.chat.templates:
                found.append("chat")
        return tuple(found)

    def need(self, capability: str) -> None:
        """Refuse a request for what the model can't do."""
        if capability not in self.capabilities:
            can = ", ".join(self.capabilities) or "nothing that this server offers"
            raise unsupported(f"The model {self.id!r} can't {capability}; it can {can}.", "model")

    @property
    def sees(self) -> bool:
        """Whether it takes pictures."""
        return self.runtime.tokeniser.inputs.reader is not None

    @property
    def reranks_apart(self) -> bool:
        """Whether its pairs are read by its plugin's own reader, which runs one query at a time."""
        reader = self.runtime.tokeniser.inputs.reader
        return isinstance(self.runtime.head, YesNoHead) and isinstance(reader, PairReader)

    @property
    def prompts(self) -> dict[str, str]:
        """Stored prompts by name."""
        return dict(self.runtime.tokeniser.inputs.prompts)

    @property
    def matryoshka(self) -> bool:
        """Whether its files say that its vectors may be cut."""
        head, config = self.runtime.head, self.config
        stated = config.get("is_matryoshka") or config.get("matryoshka_dimensions")
        return bool(stated) or (isinstance(head, EmbeddingHead) and head.dimensions is not None)

    def check_fits(self, tokens: int, *, pack: bool) -> None:
        """Refuse a row that no schedule runs within the budget, whatever else runs.

        Raises:
            AdmissionRefused: with numbers.
        """
        if tokens > self._fits:
            self.alone(Request(lengths=[tokens], pack=pack))
            self._fits = tokens


class Registry:
    """Models by name."""

    def __init__(self) -> None:
        self._models: dict[str, Served] = {}
        self._aliases: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._models)

    @property
    def all(self) -> list[Served]:
        return list(self._models.values())

    def has(self, id: str) -> bool:
        """Whether a model is loaded."""
        return id in self._models

    def remove(self, id: str) -> Served:
        """Forget a model; its other names stay its own."""
        return self._models.pop(id)

    def add(self, served: Served, aliases: Sequence[str] = ()) -> None:
        """Register a model under its id and other names."""
        self._models[served.id] = served
        for alias in aliases:
            self._aliases.setdefault(alias, served.id)

    def find(self, name: object, capability: str | None = None) -> Served:
        """The model of a name.

        Args:
            name: None for the only one, or the first that has the capability, where an interface names none.

        Raises:
            Refused: 404 for a name that is not served; 400 for a model that lacks the capability.
        """
        if name is None:
            able = [each for each in self.all if capability is None or capability in each.capabilities]
            if not self._models:
                raise unavailable("model_loading", "No model is loaded yet; a request that names one loads it.")
            if not able:
                raise unsupported(f"No model of this server can {capability}.")
            return able[0]
        served = None
        if isinstance(name, str):
            # Ollama's clients add a tag.
            for key in (name, name.removesuffix(":latest")):
                served = served or self._models.get(key) or self._models.get(self._aliases.get(key, ""))
        if served is None:
            names = ", ".join(repr(each) for each in self._models)
            raise refused(f"The model {str(name)[:200]!r} is not served here; served: {names}.", "model_not_found",
                          "model", 404)  # fmt: skip
        if capability is not None:
            served.need(capability)
        return served


def public_id(name: str) -> str:
    """How requests call a model that was named so: a folder by its last part, so that no path is told."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() or name.startswith(".") else name


def served_model(
    id: str,
    model: Model,
    config: Mapping[str, Any],
    *,
    others: Callable[[], int] = lambda: 0,
    held: Callable[[], int] = lambda: 0,
    budget: int | None = None,
) -> Served:
    """A loaded model, sharing the budget.

    Args:
        config: of its checkpoint.
        others: bytes that other models of the process hold for good.
        held: bytes that running generations have reserved.
        budget: bytes that all models may use together; the model's own when left out.
    """
    runtime = model._runtime
    encoder = runtime.encoder
    planner = encoder.plan if budget is None else replace(encoder.plan, budget=budget)
    remembered = runtime.prefixes.limit if "generate" in model.spec.tasks else 0
    alone = sharing(planner, others)
    shared = sharing(planner, lambda: others() + held() + remembered)
    own = replace(runtime, encoder=replace(encoder, plan=shared))
    return Served(id, model, config, own, alone)


def lasting_bytes(served: Served) -> int:
    """Bytes that a model holds for good: its weights, and what its prefix cache may hold."""
    remembered = served.runtime.prefixes.limit if "generate" in served.model.spec.tasks else 0
    return served.alone.weights.total + remembered
