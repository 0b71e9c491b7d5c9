"""sentence-transformers' `CrossEncoder` on archport: scores of pairs by the same calls and arguments, without torch.

from archport.compat import CrossEncoder
ranking = CrossEncoder("BAAI/bge-reranker-v2-m3").rank("a query", ["a document", "another"], top_k=3)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from archport.answering.labels import LabelScorer
from archport.checkpoint.pipeline import read_score_activation
from archport.compat.loaded import Loaded, bar, check_batch
from archport.compat.processes import Pool
from archport.compat.tensors import as_array, tensor, torch_is_there
from archport.contract import ClassificationHead, InputError, YesNoHead
from archport.contract.errors import shown as repr_of
from archport.contract.heads import Activation
from archport.running.calls import device_call
from archport.running.pool import activated


class CrossEncoder(Loaded):
    """Scores of pairs, asked for as sentence-transformers' users do.

    Args:
        num_labels: what the checkpoint has to have; it is not made another.
        max_length: tokens of a pair, as `max_seq_length`.
        activation_fn: what raw scores go through; default: what the model's files say, else sigmoid of a single score.
        others: as `Loaded` takes them.
    """

    def __init__(
        self,
        model_name_or_path: Any,
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[..., Any] | None = None,
        **others: Any,
    ) -> None:
        Loaded.__init__(self, model_name_or_path, **others)
        # Raises what a model says that scores no pairs.
        self.archport._runtime.scorer()
        if max_length is not None:
            self.max_seq_length = max_length
        if num_labels not in (None, self.num_labels):
            raise InputError(f"{num_labels=}, and {self.archport.name} has {self.num_labels}; heads are not made anew")
        self.activation_fn = activation_fn

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        head = self.archport._runtime.head
        return len(head.labels) if isinstance(head, ClassificationHead) else 1

    @property
    def max_length(self) -> int:
        """`max_seq_length` by its older name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.max_seq_length = value

    def predict(
        self,
        sentences: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        *,
        inputs: Any = None,
    ) -> Any:
        """Scores of pairs; those over the model's limit are cut.

        Args:
            sentences, inputs: a pair of texts, or a sequence of pairs.
            prompt, prompt_name: of rerankers with an instruction that; else put in front of the first text.
            activation_fn: a function of raw scores, which gets a tensor where torch is installed, else an array.
            apply_softmax: make the scores of several labels sum to 1.
            others: as `SentenceTransformer.encode` takes them.

        Returns:
            (N,) float32, or (N, labels) of a model with several; of one pair its row alone.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: as `Model.rerank`.
        """
        check_batch(batch_size)
        given = inputs if sentences is None else sentences
        given = given.tolist() if isinstance(given, np.ndarray) else given
        alone = isinstance(given, list | tuple) and len(given) > 0 and not isinstance(given[0], list | tuple)
        pairs = [tuple(given)] if alone else [_pair(pair, at) for at, pair in enumerate(given)]
        if alone:
            _pair(given, 0)
        own = self.default_prompt_name == self.archport.inputs.default_prompt
        text = None if own and prompt is None and prompt_name is None else self._prompt(prompt, prompt_name)
        places = {"shown": bar(show_progress_bar), "device": device, "pool": pool, "chunk_size": chunk_size}
        raw = np.concatenate(self._run("_raw", pairs, {"prompt": text}, **places))
        scores = self._activated(raw, activation_fn or self.activation_fn)
        if self.num_labels == 1 and scores.ndim > 1:
            scores = scores[..., 0]
        if apply_softmax and scores.ndim > 1:
            scores = _activated(scores, "softmax")
        if convert_to_tensor:
            made: Any = tensor(scores, "convert_to_tensor=True")
        elif convert_to_numpy:
            made = scores
        else:
            made = [tensor(np.asarray(row), "convert_to_numpy=False") for row in scores]
        return made[0] if alone else made

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents by descending score: dicts of "corpus_id", "score" and, if asked for, "text".

        Equal scores stay in the order of the documents.

        Raises:
            InputError: the model has more labels than one, which is no order; else as `predict`.
        """
        if self.num_labels != 1:
            raise InputError(f"rank with a model of {self.num_labels} labels; expected one, or call predict with pairs")
        texts = list(documents)
        scores = self.predict(
            [(query, text) for text in texts],
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            activation_fn,
            **options,
        )
        ranked = [{"corpus_id": at, "score": float(scores[at])} for at in np.argsort(-scores, kind="stable").tolist()]
        if return_documents:
            ranked = [{**row, "text": texts[row["corpus_id"]]} for row in ranked]
        return ranked[:top_k]

    def _activated(self, raw: np.ndarray, function: Callable[..., Any] | None) -> np.ndarray:
        if function is None:
            head, checkpoint = self.archport._runtime.head, self.archport.checkpoint
            stated = isinstance(head, ClassificationHead | YesNoHead)
            return _activated(raw, read_score_activation(checkpoint, self.num_labels)) if stated else raw
        if torch_is_there():
            return as_array(function(tensor(raw, "activation_fn")))
        return np.asarray(function(raw), np.float32)

    def _raw(self, pairs: list[tuple[Any, Any]], *, prompt: str | None, shown: bool) -> np.ndarray:
        """Raw scores (N, labels) float32 of pairs."""
        runtime = self.archport._runtime
        scorer = runtime.scorer()
        if isinstance(scorer, LabelScorer) and scorer.templated is None:
            own = self._prompt(None, None) if prompt is None else prompt
            return _labelled(replace(scorer, prompt=own), pairs, self._limit)
        # Of rerankers that read a query and documents as one prompt: query by query.
        rows: dict[Any, list[int]] = {}
        for at, (query, _) in enumerate(pairs):
            rows.setdefault(query if isinstance(query, str) else at, []).append(at)
        scores = np.zeros((len(pairs), 1), np.float32)
        for places in rows.values():
            ranked = self.archport.rerank(
                pairs[places[0]][0],
                [pairs[at][1] for at in places],
                instruction=prompt,
                raw_scores=True,
                max_tokens=self._limit,
                overflow="truncate",
                progress=shown,
            )
            for row in ranked:
                scores[places[row.index]] = row.score
        return scores


@device_call
def _labelled(scorer: LabelScorer, pairs: list[tuple[Any, Any]], limit: int | None) -> np.ndarray:
    rows = scorer.classify(pairs, raw=True, max_tokens=limit, overflow="truncate")
    scores = [list(row.scores.values()) for row in rows]
    return np.array(scores, np.float32).reshape(len(pairs), len(scorer.head.labels))


@device_call
def _activated(scores: np.ndarray, activation: Activation) -> np.ndarray:
    return np.array(activated(mx.array(scores), activation)) if len(scores) else scores


def _pair(value: Any, at: int) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"pair {at} is {repr_of(value)}; expected two texts")
    return (value[0], value[1])
