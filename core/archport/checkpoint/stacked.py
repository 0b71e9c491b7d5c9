"""Adapters of several tasks that a checkpoint stores itself: of each matrix a stack per factor, with a slice per task.

As torch's parametrisations name them: `M.parametrizations.weight.original` is the matrix, and `.0.lora_A`, `.0.lora_B`
next to it are the stacks. The config names the tasks in their order (`lora_adaptations`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from archport.checkpoint.adapter_files import Adapter, LowRank
from archport.checkpoint.adapting import STACKED_FACTOR, Adapted
from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.disk import inside
from archport.checkpoint.headers import TensorInfo
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a checkpoint.

    Args:
        fit: what it adds to which stored matrix.
        load: its factors by the names that `fit` knows them by.
        instruction: text in front of its texts; None where the files say nothing.
    """

    fit: Adapted
    load: Callable[[], Mapping[str, mx.array]]
    instruction: str | None = None


def stored_tasks(checkpoint: Checkpoint) -> dict[str, Task]:
    """The tasks that a checkpoint stores adapters of, in the order of its config; none in most. Reads headers only.

    Raises:
        CheckpointError: stacks that do not fit the config, or each other.
    """
    tensors, config, where = checkpoint.stored_tensors, checkpoint.config, str(checkpoint.config_path)
    stacks: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if match := STACKED_FACTOR.match(name):
            stacks.setdefault(match["module"], {})[match["factor"]] = info
    if not stacks:
        return {}
    names, rank, alpha = (config.get(key) for key in ("lora_adaptations", "lora_rank", "lora_alpha"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where}: lora_adaptations={names!r:.80}; expected the names of the tasks.")
    for key, value in (("lora_rank", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{where}: {key}={value!r:.80}; expected a number above 0.")
    assert isinstance(rank, int | float)
    assert isinstance(alpha, int | float)
    told = config.get("task_instructions") or {}
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise CheckpointError(f"{where}: task_instructions={told!r:.80}; expected names of tasks, each with a text.")
    terms: dict[str, LowRank] = {}
    for module, pair in stacks.items():
        base = tensors.get(f"{module}.parametrizations.weight.original")
        term = None if base is None else _term(base, pair, len(names), int(rank), alpha)
        if base is None or term is None:
            shapes = ", ".join(str(info.shape) for info in pair.values())
            raise CheckpointError(
                f"{where}: the adapters of {module} are {shapes} of a matrix {base and base.shape}; expected a slice "
                f"of rank {rank} for each of {len(names)} tasks."
            )
        terms[base.name] = term
    adapter = Adapter(checkpoint.name, checkpoint.weights_folder, terms={}, whole={})
    fit = Adapted(adapter, terms, {}, {}, {}, {}, tensors)
    return {name: Task(fit, _loader(checkpoint, terms, index), told.get(name)) for index, name in enumerate(names)}


def _term(base: TensorInfo, pair: Mapping[str, TensorInfo], count: int, rank: int, alpha: float) -> LowRank | None:
    """What every slice is, by the shapes of the stacks; None where they fit nothing."""
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None or len(base.shape) != 2:
        return None
    out, inner = base.shape
    scale = alpha / rank
    if (a.shape, b.shape) == ((count, rank, inner), (count, out, rank)):
        return LowRank(replace(a, shape=(rank, inner)), replace(b, shape=(out, rank)), scale)
    if (a.shape, b.shape) == ((count, out, rank), (count, rank, inner)):
        # Of a table A has the rows, and both are turned.
        return LowRank(replace(a, shape=(rank, out)), replace(b, shape=(inner, rank)), scale, table=True)
    return None


def _loader(checkpoint: Checkpoint, terms: Mapping[str, LowRank], index: int) -> Callable[[], Mapping[str, mx.array]]:
    def load() -> Mapping[str, mx.array]:
        from archport.checkpoint.weights import load_arrays

        arrays: dict[str, Any] = {}
        for file in {info.file for term in terms.values() for info in (term.a, term.b)}:
            arrays |= load_arrays(inside(checkpoint.weights_folder, file, "the index"))
        found: dict[str, mx.array] = {}
        for term in terms.values():
            for info in (term.a, term.b):
                found[info.name] = arrays[info.name][index].T if term.table else arrays[info.name][index]
        return found

    return load
