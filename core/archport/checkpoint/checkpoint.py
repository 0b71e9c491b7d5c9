"""A resolved checkpoint: its folder, its normalised config, and its small files and tensor headers on demand.

Reads nothing but headers and JSON. Knows nothing of where the folder came from or of what a model does with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from archport.checkpoint.adapter_files import Adapter
from archport.checkpoint.adapting import Adapted, adapted_config, fitted
from archport.checkpoint.config import CLASSES, normalise_config
from archport.checkpoint.disk import files_in, inside, read_object
from archport.checkpoint.files import TABLES, body_folder, module_kind, pipeline_modules, routes_of, shorten
from archport.checkpoint.headers import Fetched, TensorInfo, read_header, read_tensors
from archport.checkpoint.inputs import read_inputs
from archport.checkpoint.pipeline import read_head, read_score_activation
from archport.checkpoint.routes import Routes
from archport.checkpoint.tokenizer import load_tokenizer, tells_pairs_apart
from archport.checkpoint.transformer import transformer_settings
from archport.contract.errors import CheckpointError
from archport.contract.heads import Activation, Head
from archport.contract.inputs import TextInputs

Source = Literal["folder", "package", "cache", "hub"]

# A trunk saved on its own has no prefix; these are of heads, or of a trunk inside a model with one. A conversion by
# mlx-lm or mlx-vlm puts both into a `language_model`.
_HEADED = (
    *("model.", "lm_head.", "cls.", "decoder.", "language_model.model.", "language_model.lm_head."),
    *("generator_lm_head.", "predictions.", "vocab_projector.", "vocab_transform."),
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One checkpoint on this machine; what `resolve` returns, and a `CheckpointView`.

    Args:
        name: the hub id that the request led to, or the folder.
        requested: the name as the caller wrote it.
        source: where the files were found.
        folder: where they are.
        config: `config.json`, normalised.
        revision: the commit of a hub checkpoint, None elsewhere.
        body: where in the folder the transformer is, "" except in some old pipelines.
        fetched: headers of weight files that stayed on the hub, for a checkpoint that is only described.
        adapted: an adapter that its weights are loaded with.
        root: the folder of an adapter that was loaded by its own name; its small files go before the base's.
        base: the checkpoint with the weights, where they are in another folder than the pipeline.
        route: of a pipeline that begins with a router; None for its main one.
    """

    name: str
    requested: str
    source: Source
    folder: Path
    config: Mapping[str, Any]
    revision: str | None = None
    body: str = ""
    fetched: Fetched | None = field(default=None, repr=False)
    adapted: Adapted | None = field(default=None, repr=False)
    root: Path | None = None
    base: Checkpoint | None = None
    route: str | None = None
    # Headers and the tokenizer are read once, on first use; a frozen value with slots needs a place for them.
    memo: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the transformer by name, from the headers, as it is with its adapter where it has one.

        Raises CheckpointError on damaged files.
        """
        return self.stored_tensors if self.adapted is None else self.adapted.tensors

    @property
    def stored_tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the transformer's own files."""
        if self.base is not None:
            return self.base.stored_tensors
        if "tensors" not in self.memo:
            self.memo["tensors"] = read_tensors(self.folder, self.body, self.fetched)
        return self.memo["tensors"]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformer's tensors as stored, with its adapter in them."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def weights_folder(self) -> Path:
        """What the files of the transformer's tensors are relative to."""
        return self.folder if self.base is None else self.base.folder

    @property
    def places(self) -> list[Path]:
        """Where tokenizer files may be, the first that has some decides.

        Old pipelines keep them next to the transformer, some next to the pipeline; an adapter may have its own.
        """
        base = [] if self.base is None else self.base.places
        own = [] if self.root in (None, self.folder) else [self.root]
        return list(dict.fromkeys([*own, self.body_path, self.folder, *base]))

    @property
    def folders(self) -> list[Path]:
        """Every folder that it is read from, its own first."""
        base = [] if self.base is None else [self.base.folder]
        adapter = [] if self.adapted is None else [self.adapted.adapter.folder]
        return list(dict.fromkeys([*([] if self.root is None else [self.root]), self.folder, *base, *adapter]))

    @property
    def adapter(self) -> str | None:
        """The folder or hub id of an adapter that the name it was loaded by does not lead to."""
        found = None if self.adapted is None else self.adapted.adapter
        return None if found is None or self.root is not None or found.folder == self.body_path else found.name

    @property
    def config_path(self) -> Path:
        """Its config.json."""
        return (self.base or self).body_path / "config.json"

    def deciding_files(self) -> list[Path]:
        """The files that decide its weights."""
        bodies = {(self.base or self).body_path, *([] if self.adapted is None else [self.adapted.adapter.folder])}
        return [path for body in bodies for kind in ("*.safetensors", "*.json") for path in body.glob(kind)]

    @property
    def body_path(self) -> Path:
        """The folder of the transformer's config, weights and tokenizer."""
        return inside(self.folder, self.body, "modules.json")

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON object of the checkpoint, None when the file is absent."""
        base = [] if self.base is None else [self.base.folder]
        found = (
            read_object(inside(folder, path, "the caller"))
            for folder in dict.fromkeys([self.root or self.folder, self.folder, *base])
        )
        return next((value for value in found if value is not None), None)

    @property
    def label(self) -> str:
        """The last part of the hub id or folder, in small letters."""
        # A folder may be called "." or end in a slash.
        last = (self.root or self.folder).resolve().name if self.source == "folder" else self.name.rsplit("/", 1)[-1]
        return last.lower()

    @property
    def modules(self) -> tuple[str, ...] | None:
        """The kinds of the pipeline's modules in order, None without a pipeline."""
        entries = pipeline_modules(self.folder, self.route)
        return None if entries is None else tuple(module_kind(entry) for entry in entries)

    @property
    def routes(self) -> Routes | None:
        """Which modules answer queries and which documents, where the pipeline begins with a router."""
        if "routes" not in self.memo:
            self.memo["routes"] = routes_of(self.folder)
        return self.memo["routes"]

    def stored_head(self) -> Head:
        """What the pipeline files say of the head; see `read_head`."""
        return read_head(self)

    def score_activation(self, labels: int) -> Activation:
        """What raw scores of pairs go through; see `read_score_activation`."""
        return read_score_activation(self, labels)

    def stored_inputs(self) -> TextInputs:
        """What the pipeline files say of prompts and limits; see `read_inputs`."""
        return read_inputs(self)

    def tensor_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a stored tensor of the transformer, or of a head in a file of its own, None when absent."""
        found = self.tensors.get(name)
        if found is None:
            head, _, own = name.rpartition(".")
            path = inside(self.folder, f"{head}.safetensors", "a head") if head else None
            found = read_header(path, path.name).get(own) if path is not None and path.is_file() else None
        return None if found is None else tuple(found.shape)

    def tells_pairs_apart(self) -> bool:
        """Whether the tokenizer numbers the texts of a pair (token_type_ids)."""
        return tells_pairs_apart(self)

    def token_id(self, token: str) -> int | None:
        """The vocabulary id of a token, None when the tokenizer does not hold it."""
        return load_tokenizer(self).token_to_id(token)


def open_checkpoint(
    folder: Path,
    *,
    name: str,
    requested: str,
    source: Source,
    revision: str | None = None,
    fetched: Fetched | None = None,
    adapter: Adapter | None = None,
    route: str | None = None,
) -> Checkpoint:
    """The checkpoint in a folder, with its config read and normalised.

    Args:
        fetched: headers of weight files that are not in the folder.
        adapter: one that its weights are loaded with.
        route: whose modules are the pipeline, where it begins with a router; None for the main one.

    Raises:
        CheckpointError: no readable `config.json`, or an adapter of another model.
    """
    body = body_folder(folder, route)
    place = inside(folder, body, "modules.json")
    _check_whole(folder, route)
    path = inside(place, "config.json", "a checkpoint")
    raw = _of_table(folder, body, fetched) if _is_table(folder, route) else read_object(path)
    if raw is None:
        present = files_in(folder)
        raise CheckpointError(
            f"{folder}: there is no {path.relative_to(folder)}, so this is not a checkpoint. "
            f"Found: {shorten(present) or 'nothing'}. Expected config.json, tokenizer.json and *.safetensors."
        )
    over = transformer_settings(folder, route).config
    if "num_labels" in over:
        # Names of labels that are not as many are none.
        raw = {key: value for key, value in raw.items() if key not in ("id2label", "label2id")}
    fit = None
    if adapter is not None:
        named = raw.get("architectures")
        first = str(named[0]) if isinstance(named, list) and named else ""
        generates = first.endswith(("ForCausalLM", "ForConditionalGeneration"))
        fit = fitted(adapter, str(folder), read_tensors(folder, body, fetched), generates=generates)
        raw = adapted_config(raw, fit)
    try:
        config = normalise_config({**raw, **over})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not config.get("architectures") and config.get("model_type") in CLASSES:
        config["architectures"] = _implied(config, read_tensors(folder, body, fetched))
    return Checkpoint(name, requested, source, folder, config, revision, body, fetched, fit, route=route)


def by_adapter(
    base: Checkpoint, root: Path, *, name: str, requested: str, source: Source, revision: str | None
) -> Checkpoint:
    """The checkpoint that an adapter's own name leads to: its pipeline and small files, and else those of its base.

    Args:
        base: opened with the adapter.
        root: the folder of the adapter.
    """
    facts: dict[str, Any] = {"name": name, "requested": requested, "source": source, "revision": revision}
    if pipeline_modules(root) is None:
        return replace(base, **facts, root=root, memo={})
    return Checkpoint(
        folder=root, config=base.config, body=body_folder(root), adapted=base.adapted, root=root, base=base, **facts
    )


def _is_table(folder: Path, route: str | None) -> bool:
    return any(module_kind(entry) in TABLES for entry in pipeline_modules(folder, route) or ())


def _of_table(folder: Path, body: str, fetched: Fetched | None) -> dict[str, Any]:
    """The config of a table of vectors, which has none, or one without its sizes: those of the stored table."""
    tensors = read_tensors(folder, body, fetched)
    table = tensors.get("embedding.weight") or tensors.get("embeddings")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(
            f"{folder}: its weights hold {shorten(sorted(tensors))}; expected a matrix embedding.weight, or embeddings."
        )
    rows = tensors.get("mapping", table).shape[0]
    stored = {"F16": "float16", "BF16": "bfloat16"}.get(table.dtype, "float32")
    return {
        "architectures": ["StaticEmbedding"],
        "model_type": "static_embedding",
        "is_causal": False,
        "vocab_size": rows,
        "hidden_size": table.shape[1],
        "torch_dtype": stored,
    }


def _implied(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The architectures of a config that names none: its class's trunk, or the class with a head that was saved."""
    known, stored = CLASSES[str(config["model_type"])], list(names)
    if known.labels and any(name.startswith(("classifier.", "score.")) for name in stored):
        return [known.labels]
    # DeBERTa's own masked-LM head, which transformers reads where this says so, and else leaves in the file.
    own = ("lm_predictions.",) if config.get("legacy") is False else ()
    headed = any(name.startswith((*_HEADED, *own)) for name in stored)
    found = (known.head if headed else known.trunk) or known.trunk or known.head
    return [] if found is None else [found]


def _check_whole(folder: Path, route: str | None) -> None:
    """Refuse, in its own words, what is no checkpoint of one transformer."""
    first = next(iter(pipeline_modules(folder, route) or ()), None)
    if first is not None and module_kind(first) in _NO_TRANSFORMER:
        raise CheckpointError(
            f"{folder}: its pipeline begins with a module of type {first['type']!r}, which archport does not run; "
            "expected a Transformer. Use sentence-transformers for this model."
        )


# Modules that a pipeline may begin with in a Transformer's place.
_NO_TRANSFORMER = frozenset({"BoW", "CLIPModel", "SparseStaticEmbedding", "WordEmbeddings"})
