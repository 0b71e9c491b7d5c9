"""MTEB: an encoder and a cross-encoder for its tasks, with a prompt per task. Needs `mteb`.

from archport.integrations.mteb import ArchportEncoder
results = mteb.evaluate(ArchportEncoder("all-MiniLM-L6-v2"), tasks=mteb.get_tasks(["STSBenchmark"]))
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict  # pyright: ignore[reportMissingImports]
from mteb.abstasks.pair_classification import AbsTaskPairClassification  # pyright: ignore[reportMissingImports]
from mteb.abstasks.retrieval import AbsTaskRetrieval  # pyright: ignore[reportMissingImports]
from mteb.abstasks.sts import AbsTaskSTS  # pyright: ignore[reportMissingImports]
from mteb.abstasks.task_metadata import TaskMetadata  # pyright: ignore[reportMissingImports]
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name  # pyright: ignore[reportMissingImports]
from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]

from archport.compat import CrossEncoder, SentenceTransformer
from archport.compat.loaded import Loaded
from archport.contract import InputError
from archport.evaluation.tasks import Graded, Kind, Retrieval, bundled


class ArchportEncoder(AbsEncoder):
    """Vectors for MTEB's tasks, equal to those that it makes with sentence-transformers.

    Args:
        model: a name for `engine.load`, or a loaded model.
        revision: branch, tag or commit on the hub.
        device: read and passed over, because mteb's command gives it.
        prompts: of a task's name, its type, "query" or "document", or two of these as in "Retrieval-query"; the more
            special one wins. Default: those stored in the model's files.
        instruction_template: for models that want each task's instruction, as "Instruct: {instruction}\\nQuery:"; it
            goes in front of everything but documents.
        options: of `engine.load`.
    """

    def __init__(
        self,
        model: Any,
        revision: str | None = None,
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        instruction_template: str | None = None,
        **options: Any,
    ) -> None:
        self.model = SentenceTransformer(model, revision=revision, **options)
        self.model_prompts = self.prompts_dict = _prompts(self.model, prompts)
        self.instruction_template = instruction_template
        self.mteb_model_meta = _meta(
            self.model,
            embed_dim=self.model.get_embedding_dimension(),
            similarity_fn_name=self.model.similarity_fn_name,
            use_instructions=instruction_template is not None or any(self.model_prompts.values()),
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """Vectors (N, D) of a task's texts; raises InputError for inputs that are no text."""
        role = None if prompt_type is None else str(prompt_type.value)
        calls = {None: self.model.encode, "query": self.model.encode_query, "document": self.model.encode_document}
        return calls[role](_texts(inputs), prompt=self._prompt(task_metadata, prompt_type), **_known(options))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity (N, M) as this model's vectors compare."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity (N,) of each row with the other side's row."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def _prompt(self, task_metadata: Any, prompt_type: Any) -> str | None:
        if self.instruction_template is None:
            return _prompt_of(self.model_prompts, task_metadata, prompt_type)
        if prompt_type is not None and prompt_type.value == "document":
            return ""
        return self.get_task_instruction(task_metadata, prompt_type)


class ArchportCrossEncoder:
    """Scores of pairs for MTEB's reranking tasks.

    Args:
        model: a name for `engine.load`, or a loaded reranker.
        prompts: as of `ArchportEncoder`; rerankers with an instruction get it as that.
        others: as of `ArchportEncoder`.
    """

    def __init__(
        self,
        model: Any,
        revision: str | None = None,
        device: str | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.model = CrossEncoder(model, revision=revision, **options)
        self.model_prompts = dict(prompts or {})
        self.mteb_model_meta = _meta(self.model, model_type=["cross-encoder"], use_instructions=bool(prompts))

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """Scores (N,) of pairs of texts; raises InputError for inputs that are no text."""
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        known = {name: value for name, value in _known(options).items() if name != "precision"}
        return self.model.predict(pairs, prompt=_prompt_of(self.model_prompts, task_metadata, prompt_type), **known)


def bundled_tasks() -> list[Any]:
    """archport's own small tasks as MTEB's, downloading nothing: retrieval, reranking, STS and pair classification."""
    return [_BundledRetrieval(), _BundledReranking(), _BundledSTS(), _BundledPairs()]


def _texts(inputs: Any) -> list[str]:
    texts: list[str] = []
    for batch in inputs:
        if "text" not in batch:
            raise InputError(f"inputs with {', '.join(batch)} and no text; archport's adapter for MTEB runs text tasks")
        texts += batch["text"]
    return texts


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of MTEB's options of a call that are the model's."""
    return {name: options[name] for name in ("batch_size", "show_progress_bar", "precision") if name in options}


def _prompts(model: Loaded, given: Mapping[str, str] | None) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored: Any = dict(model.prompts if given is None else given)
        known = AbsEncoder.validate_task_to_prompt_name(stored, raise_for_invalid_keys=False)[0] or {}
    if given is None:
        # Names that are none of MTEB's are the model's own.
        return known
    others = sorted(set(stored) - set(known))
    if others:
        warnings.warn(
            f"prompts for {', '.join(others)}: none of MTEB's tasks, types and roles; they are for tasks of your own",
            stacklevel=3,
        )
    return stored


def _prompt_of(prompts: Mapping[str, str] | None, task_metadata: Any, prompt_type: Any) -> str | None:
    name = get_prompt_name(dict(prompts), task_metadata, prompt_type) if prompts else None
    return None if name is None else (prompts or {})[name]


def _meta(model: Loaded, **others: Any) -> Any:
    """What MTEB writes next to results; a folder's name stands in for an organisation's."""
    loaded = model.archport
    name = loaded.name if loaded.checkpoint.source == "hub" else f"archport/{PurePath(loaded.name).name}"
    facts = {"name": name, "revision": loaded.checkpoint.revision or "local", "max_tokens": model.max_seq_length}
    return ModelMeta.create_empty(overwrites={**facts, **others})


def _metadata(name: str, kind: str, main_score: str) -> Any:
    return TaskMetadata(
        name=name,
        type=kind,
        main_score=main_score,
        description="A small task that comes with archport.",
        reference=None,
        dataset={"path": "archport/bundled", "revision": "1"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-11-01", "2026-11-30"),
        dialect=[],
        domains=["Written"],
        task_subtypes=[],
        license="apache-2.0",
        annotations_creators="human-annotated",
        modalities=["text"],
        sample_creation="created",
        bibtex_citation="",
    )


def _retrieval(candidates: int | None) -> dict[str, Any]:
    task = cast("Retrieval", bundled("retrieval"))
    ids = [f"q{at}" for at in range(len(task.queries))]
    split: dict[str, Any] = {
        "queries": Dataset.from_list([{"id": id, "text": text} for id, text in zip(ids, task.queries, strict=True)]),
        "corpus": Dataset.from_list(
            [{"id": f"d{at}", "text": text, "title": ""} for at, text in enumerate(task.documents)]
        ),
        "relevant_docs": {id: {f"d{at}": 1 for at in rows} for id, rows in zip(ids, task.relevant, strict=True)},
        "top_ranked": None,
    }
    if candidates is not None:
        count = len(task.documents)
        split["top_ranked"] = {
            id: [f"d{(rows[0] + step * 7) % count}" for step in range(candidates)]
            for id, rows in zip(ids, task.relevant, strict=True)
        }
    return {"default": {"test": split}}


def _graded(kind: Kind, column: str, number: type) -> Any:
    task = cast("Graded", bundled(kind))
    grades = [number(grade) for grade in task.grades]
    rows = {"sentence1": list(task.first), "sentence2": list(task.second), column: grades}
    return DatasetDict({"test": Dataset.from_dict(rows)})


class _BundledRetrieval(AbsTaskRetrieval):
    metadata = _metadata("ArchportRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, *_: Any, **__: Any) -> None:
        self.dataset, self.data_loaded = _retrieval(None), True


class _BundledReranking(AbsTaskRetrieval):
    metadata = _metadata("ArchportReranking", "Reranking", "map_at_1000")

    def load_data(self, *_: Any, **__: Any) -> None:
        self.dataset, self.data_loaded = _retrieval(10), True


class _BundledSTS(AbsTaskSTS):
    metadata = _metadata("ArchportSTS", "STS", "cosine_spearman")

    def load_data(self, *_: Any, **__: Any) -> None:
        self.dataset, self.data_loaded = _graded("sts", "score", float), True


class _BundledPairs(AbsTaskPairClassification):
    metadata = _metadata("ArchportPairs", "PairClassification", "max_ap")

    def load_data(self, *_: Any, **__: Any) -> None:
        self.dataset, self.data_loaded = _graded("pairs", "labels", int), True
