"""Names of a classifier's labels, and its head, as a config states them. Pure data.

How rows are scored is the engine's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from archport.contract.heads import ClassificationHead, PoolingMode, ScoreActivation
from archport.contract.inputs import CheckpointView


def label_count(config: Mapping[str, Any]) -> int:
    """How many labels a classifier scores; configs leave out what transformers takes by default."""
    names: Mapping[Any, Any] = config.get("id2label") or {}
    return len(names) or config.get("num_labels") or 2


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a classifier's labels, in the order of its scores."""
    names: Mapping[Any, Any] = config.get("id2label") or {}
    return tuple(str(names.get(str(i), names.get(i, f"LABEL_{i}"))) for i in range(label_count(config)))


def _told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names, with its place after each that several labels have: scores are given by name."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


def classification_head(
    checkpoint: CheckpointView,
    pooling: PoolingMode,
    *,
    token_types: bool = False,
    temperature: float = 1.0,
    padding: int | None = None,
) -> ClassificationHead:
    """The head of a checkpoint for sequence classification.

    Probabilities are those of transformers' pipeline: softmax over labels, sigmoid of a single one or of independent
    ones, nothing for a regression. Pairs are ranked as sentence-transformers' CrossEncoder does. A name that
    several labels have is followed by the label's place, as in "neutral (2)".

    Args:
        pooling: which row is scored.
        token_types, temperature, padding: as in `ClassificationHead`.
    """
    config = checkpoint.config
    names = _told_apart(label_names(config))
    problem = config.get("problem_type")
    activation: ScoreActivation = "softmax" if len(names) > 1 else "sigmoid"
    if problem == "multi_label_classification":
        activation = "sigmoid"
    elif problem == "regression":
        activation = "identity"
    return ClassificationHead(
        names,
        pooling,
        activation,
        checkpoint.score_activation(len(names)),
        temperature=temperature,
        token_types=token_types,
        padding=padding,
        source="architectures and id2label of the config",
    )
