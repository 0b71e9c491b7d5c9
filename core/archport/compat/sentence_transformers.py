"""sentence-transformers' `SentenceTransformer` on archport: the same calls, arguments and shapes, without torch.

from archport.compat import SentenceTransformer
vectors = SentenceTransformer("all-MiniLM-L6-v2").encode(["a text"], normalize_embeddings=True)

It runs models and trains none. Batches are archport's to plan, so that `batch_size` is read and changes nothing.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Self, get_args

import numpy as np

from archport.answering.precision import Precision, check_precision, quantise
from archport.answering.similarity import similarity, similarity_pairwise
from archport.compat.loaded import Loaded, bar, check_batch
from archport.compat.processes import Pool
from archport.compat.tensors import as_array, tensor, tensor_or_array
from archport.contract import InputError
from archport.contract.errors import shown as repr_of
from archport.contract.heads import Similarity
from archport.engine import Model

Task = Literal["query", "document"]
# Stored prompts of documents, the first one that is there.
_DOCUMENTS = ("document", "passage", "corpus")


class SentenceTransformer(Loaded):
    """Vectors of one model, asked for as sentence-transformers' users do.

    Programs that ask `isinstance(model, sentence_transformers.SentenceTransformer)` take it for one once they have
    imported that library, as they do mocks.

    Args:
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; default: what the model's files say.
        truncate_dim: leading dimensions that vectors keep; as there, they are not scaled to unit length again.
        others: as `Loaded` takes them.
    """

    def __init__(
        self,
        model_name_or_path: Any,
        *,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        **others: Any,
    ) -> None:
        Loaded.__init__(self, model_name_or_path, **others)
        head: Any = self.archport._runtime.embedder().head.head
        self.truncate_dim = truncate_dim if truncate_dim is not None else head.dimensions
        self._width = head.dense[-1].out_features if head.dense else self.archport.spec.hidden_size * len(head.pooling)
        self._similarity: Similarity = head.similarity
        if similarity_fn_name is not None:
            self.similarity_fn_name = similarity_fn_name

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        library = sys.modules.get("sentence_transformers")
        return getattr(library, "SentenceTransformer", type(self))

    def encode(
        self,
        sentences: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        *,
        task: Task | None = None,
        inputs: Any = None,
    ) -> Any:
        """Vectors of texts; those over the model's limit are cut.

        Args:
            sentences, inputs: a text, or a sequence of them; a model that sees also takes mappings.
            prompt, prompt_name: put in front of each text, literally or by its name; default: `default_prompt_name`'s.
            batch_size: read for its sign; archport plans its batches.
            output_value: "sentence_embedding"; "token_embeddings" for the hidden states of every token; None for a dict
                of both and the token ids of each text.
            precision: "float32", or "int8", "uint8" (calibrated over this call), "binary", "ubinary".
            convert_to_numpy, convert_to_tensor: one array, one torch tensor, or with neither a list of tensors.
            device: a list of names runs in a process for each; one name changes nothing.
            normalize_embeddings: scale to unit length, after `truncate_dim`.
            pool, chunk_size: of `start_multi_process_pool`, and texts that a process gets at a time.
            task: the text's role, whose limit of tokens the model may have.

        Returns:
            (N, D) array, or (D,) for one text.

        Raises:
            InputError, AdmissionRefused, NonFiniteOutput: as `Model.embed`; and for tensors where torch is missing.
        """
        check_batch(batch_size)
        check_precision(precision)
        if output_value not in ("sentence_embedding", "token_embeddings", None):
            raise InputError(f"{output_value=}; expected 'sentence_embedding', 'token_embeddings' or None")
        if task not in (None, *get_args(Task)):
            raise InputError(f"{task=}; expected 'query', 'document' or None")
        given = inputs if sentences is None else sentences
        alone = isinstance(given, str | Mapping)
        texts: list[Any] = [given] if alone else given.tolist() if isinstance(given, np.ndarray) else list(given)
        cut = truncate_dim if truncate_dim is not None else self.truncate_dim
        options = {"prompt": self._prompt(prompt, prompt_name), "task": task}
        places = {"shown": bar(show_progress_bar), "device": device, "pool": pool, "chunk_size": chunk_size}
        if output_value != "sentence_embedding":
            kind = "_items" if output_value is None else "_tokens"
            rows = [row for chunk in self._run(kind, texts, options, **places) for row in chunk]
            made = [_tensors(row) for row in rows]
            return made[0] if alone else made
        options |= {"dimensions": cut, "normalize": normalize_embeddings}
        vectors = quantise(np.concatenate(self._run("_vectors", texts, options, **places)), precision)
        if not texts:
            vectors = np.zeros(0, np.float32)
        if convert_to_tensor:
            vectors = tensor(vectors, "convert_to_tensor=True")
        elif not convert_to_numpy:
            vectors = [tensor(np.asarray(row), "convert_to_numpy=False") for row in vectors]
        return vectors[0] if alone else vectors

    def encode_query(self, sentences: Any = None, prompt_name: str | None = None, *args: Any, **options: Any) -> Any:
        """`encode` with the prompt stored as "query", unless another one is given."""
        return self._encode_role("query", ("query",), sentences, prompt_name, args, options)

    def encode_document(self, sentences: Any = None, prompt_name: str | None = None, *args: Any, **options: Any) -> Any:
        """`encode` with the prompt stored as "document", else "passage", else "corpus", unless another one is given."""
        return self._encode_role("document", _DOCUMENTS, sentences, prompt_name, args, options)

    def _encode_role(
        self,
        task: Task,
        names: Sequence[str],
        sentences: Any,
        prompt_name: str | None,
        args: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> Any:
        stated = prompt_name is not None or options.get("prompt") is not None or (args and args[0] is not None)
        if not stated:
            prompt_name = next((name for name in names if name in self.prompts), None)
        return self.encode(sentences, prompt_name, *args, **{"task": task, **options})

    def encode_multi_process(self, sentences: Sequence[Any], pool: Pool, **options: Any) -> Any:
        """`encode` in the processes of a pool."""
        return self.encode(sentences, pool=pool, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity (N, M) of all rows with all rows: a tensor where torch is installed, else an array."""
        return tensor_or_array(similarity(as_array(embeddings1), as_array(embeddings2), self._similarity))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarity (N,) of each row with the other side's row: a tensor where torch is installed, else an array."""
        return tensor_or_array(similarity_pairwise(as_array(embeddings1), as_array(embeddings2), self._similarity))

    @property
    def similarity_fn_name(self) -> str:
        """How vectors are compared."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        name = str(getattr(value, "value", value))
        if name not in get_args(Similarity):
            raise InputError(f"similarity_fn_name={repr_of(value)}; expected one of {', '.join(get_args(Similarity))}")
        self._similarity = name  # pyright: ignore[reportAttributeAccessIssue]

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return min(self._width, self.truncate_dim or self._width)

    def get_sentence_embedding_dimension(self) -> int:
        """`get_embedding_dimension` by its older name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[Self]:
        """Vectors keep this many dimensions within the block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield self
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Ids and mask (B, L) of texts, padded on the right with 0: tensors where torch is installed, else arrays."""
        rows = [self.archport.tokenizer.encode(text).ids[: self.max_seq_length] for text in texts]
        width = max(map(len, rows), default=0)
        ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        return {"input_ids": tensor_or_array(ids), "attention_mask": tensor_or_array(mask)}

    def _vectors(
        self,
        texts: list[Any],
        *,
        prompt: str,
        task: Task | None,
        dimensions: int | None,
        normalize: bool,
        shown: bool,
    ) -> np.ndarray:
        """Vectors (N, D) float32: cut after the pipeline, which may have scaled them, and scaled again if asked for."""
        whole = self._embed(texts, task, prompt=prompt, dimensions=self._width, progress=shown)
        vectors = whole[:, :dimensions]
        if normalize:
            # As torch's functional.normalize, which leaves a vector of zeros.
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(vectors)

    def _tokens(self, texts: list[Any], *, prompt: str, task: Task | None, shown: bool) -> list[np.ndarray]:
        """Per text the hidden states (tokens, D) of all its tokens, special ones and the prompt's included."""
        return list(self._embed(texts, task, prompt=prompt, output="tokens", progress=shown))

    def _items(self, texts: list[Any], *, prompt: str, task: Task | None, shown: bool) -> list[dict[str, np.ndarray]]:
        vectors = self._vectors(texts, prompt=prompt, task=task, dimensions=None, normalize=False, shown=shown)
        tokens = self._tokens(texts, prompt=prompt, task=task, shown=False)
        return [
            {"token_embeddings": rows, "attention_mask": np.ones(len(rows), np.int64), "sentence_embedding": vector}
            for rows, vector in zip(tokens, vectors, strict=True)
        ]

    def _embed(self, texts: list[Any], task: Task | None, **options: Any) -> np.ndarray:
        model = _uncut(self.archport)
        call = {None: model.embed, "query": model.encode_query, "document": model.encode_document}[task]
        return call(texts, overflow="truncate", max_tokens=self._limit, **options)


def _uncut(model: Model) -> Model:
    """The same model without the number of dimensions that its files state, which is cut after its pipeline here."""
    head: Any = model._runtime.head
    if head.dimensions is None:
        return model
    other = copy.copy(model)
    other._runtime = replace(model._runtime, head=replace(head, dimensions=None))
    return other


def _tensors(row: np.ndarray | dict[str, np.ndarray]) -> Any:
    """Tensors where torch is installed, else the arrays."""
    if isinstance(row, dict):
        return {name: tensor_or_array(array) for name, array in row.items()}
    return tensor_or_array(row)
