"""Heads that several families share: classifiers and cross-encoders, and late interaction as it is published."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from archport.contract import (
    ArchSpec,
    CheckpointView,
    ClassificationHead,
    Dense,
    EmbeddingHead,
    Expansion,
    Head,
    PoolingMode,
    SparseHead,
    SpecError,
    TaggingHead,
    TextInputs,
    TokenHead,
    classification_head,
    label_names,
)

# What Stanford's code takes where its file is missing.
_QUERY_TOKENS = 32


def tagging(checkpoint: CheckpointView) -> TaggingHead:
    """The head of a checkpoint for token classification."""
    return TaggingHead(label_names(checkpoint.config), source="architectures and id2label of the config")


def told_apart(checkpoint: CheckpointView) -> bool:
    """Whether the tokens of a pair have types: the tokenizer numbers its texts, and the model has two types or more."""
    return checkpoint.config.get("type_vocab_size", 2) > 1 and checkpoint.tells_pairs_apart()


def encoder_head(
    spec: ArchSpec, checkpoint: CheckpointView, *, pooling: PoolingMode = "cls", typed: bool = True
) -> Head | None:
    """The head of an encoder by its task and its files: labels of tokens or texts, late interaction, or stored scores.

    Args:
        pooling: what a classifier reads.
        typed: whether the family has token types.
    """
    if "tag" in spec.tasks:
        return tagging(checkpoint)
    if "classify" in spec.tasks:
        return classification_head(checkpoint, pooling, token_types=typed and told_apart(checkpoint))
    late = pylate(checkpoint)
    return late if late is not None else stored_scores(checkpoint, typed=typed)


def stored_scores(checkpoint: CheckpointView, *, typed: bool = True) -> ClassificationHead | None:
    """The head of a pipeline that scores pairs through a Dense module; None of any other checkpoint.

    Args:
        typed: whether the family has token types.
    """
    stored = checkpoint.stored_head()
    if not isinstance(stored, ClassificationHead):
        return None
    return replace(stored, token_types=typed and told_apart(checkpoint))


def three_heads(spec: ArchSpec, checkpoint: CheckpointView, dense: EmbeddingHead | None) -> EmbeddingHead | None:
    """The head of a checkpoint that weighs its words and compares its tokens too (bge-m3); None of any other.

    Its layers are files next to the pipeline, `.pt` as published. Source of the formulas: "M3-Embedding:
    Multi-Linguality, Multi-Functionality, Multi-Granularity Text Embeddings Through Self-Knowledge Distillation"
    (Chen et al. 2024), section 3.2; special tokens count as in its authors' code, FlagEmbedding.

    Args:
        dense: the head of its vectors; None for that of the pipeline.
    """

    def there(name: str) -> bool:
        files = (checkpoint.folder / f"{name}{suffix}" for suffix in (".safetensors", ".pt"))
        return any(file.is_file() for file in files) or checkpoint.tensor_shape(f"{name}.weight") is not None

    # From the hub come no `.pt` files, by which it is known elsewhere.
    known = checkpoint.label == "bge-m3"
    sparse, tokens = (known or there(name) for name in ("sparse_linear", "colbert_linear"))
    if not (sparse or tokens):
        return None
    stored = dense or checkpoint.stored_head()
    if not isinstance(stored, EmbeddingHead):
        return None
    D = spec.hidden_size
    width = (checkpoint.tensor_shape("colbert_linear.weight") or (D,))[0]
    settings = checkpoint.json("tokenizer_config.json") or {}
    special = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names = [_text(settings.get(key)) or default for key, default in special.items()]
    weights = SparseHead(
        logarithms=0,
        own=Dense("sparse_linear", D, 1, activation="identity"),
        skipped=_ids(checkpoint, names),
        source="sparse_linear",
    )
    compared = TokenHead(
        (Dense("colbert_linear", D, width, activation="identity"),), leading=1, source="colbert_linear"
    )
    return replace(stored, sparse=weights if sparse else None, tokens=compared if tokens else None)


def stanford_colbert(checkpoint: CheckpointView, width: int) -> TokenHead:
    """The head of an `HF_ColBERT` checkpoint: `linear.weight`, markers, queries filled with mask tokens.

    `artifact.metadata` says how, where it is there.
    """
    shape = checkpoint.tensor_shape("linear.weight")
    if shape is None:
        raise SpecError(f"{checkpoint.name}: there is no linear.weight, which projects every token of a ColBERT")
    path = checkpoint.folder / "artifact.metadata"
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    markers = [
        checkpoint.token_id(metadata.get(key) or default)
        for key, default in (("query_token_id", "[unused0]"), ("doc_token_id", "[unused1]"))
    ]
    mask = checkpoint.token_id("[MASK]")
    if None in markers or mask is None:
        raise SpecError(f"{checkpoint.name}: the vocabulary lacks the markers of queries and documents, or [MASK]")
    skipped = punctuation(checkpoint) if metadata.get("mask_punctuation", True) else ()
    length = metadata.get("query_maxlen") or _QUERY_TOKENS
    return TokenHead(
        dense=(Dense("linear", width, shape[0], bias=False, activation="identity"),),
        query_marker=markers[0],
        document_marker=markers[1],
        query_tokens=length,
        expansion=Expansion(mask, length, attended=bool(metadata.get("attend_to_mask_tokens"))),
        skipped=skipped,
        document_tokens=metadata.get("doc_maxlen"),
        source="artifact.metadata" if metadata else "the published defaults of ColBERT",
    )


def pylate(checkpoint: CheckpointView) -> TokenHead | None:
    """The head of a PyLate checkpoint, or of a multi-vector encoder of sentence-transformers; None for others."""
    path = checkpoint.folder / "modules.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    kinds = [(str(entry.get("type", "")), str(entry.get("path", "")).strip("/")) for entry in entries]
    stored = checkpoint.json("config_sentence_transformers.json") or {}
    # A multi-vector encoder keeps lengths and expansion with its Transformer.
    settings = {**(checkpoint.json("sentence_bert_config.json") or {}), **stored}
    marked = any(kind.startswith("pylate.") or kind.endswith(".MultiVectorMask") for kind, _ in kinds)
    if not marked and settings.get("model_type") not in ("ColBERT", "MultiVectorEncoder"):
        return None
    dense = tuple(_dense(checkpoint, folder) for kind, folder in kinds if kind.endswith(".Dense"))
    skipped = settings.get("skiplist_words")
    if skipped is None and settings.get("model_type") == "ColBERT":
        # PyLate's own default.
        skipped = list(string.punctuation)
    for kind, folder in kinds:
        if kind.endswith(".MultiVectorMask"):
            skipped = _masked(checkpoint, folder)
        elif not kind.endswith((".Transformer", ".Dense", ".Normalize")):
            raise SpecError(
                f"{checkpoint.name}: modules.json has a module of type {kind!r}, which is not supported here"
            )
    expansion = _expansion(checkpoint, settings)
    fixed = expansion is not None and (settings.get("query_expansion") or {}).get("strategy") != "min"
    return TokenHead(
        dense=dense,
        query_marker=_marker(checkpoint, settings.get("query_prefix")),
        document_marker=_marker(checkpoint, settings.get("document_prefix")),
        expansion=expansion,
        skipped=_ids(checkpoint, skipped),
        query_tokens=expansion.length if expansion is not None and fixed else settings.get("query_length"),
        document_tokens=settings.get("document_length"),
        source="modules.json and config_sentence_transformers.json",
    )


def pylate_inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    """The two roles of a PyLate checkpoint, which may have no words, and room for its markers; None for others.

    Its stored limit is that of a text before a marker joins it.
    """
    head = pylate(checkpoint)
    if head is None:
        return None
    stored = checkpoint.stored_inputs()
    longest = max(head.query_tokens or 0, head.document_tokens or 0, stored.max_tokens or 0)
    return replace(
        stored,
        prompts={"query": "", "document": "", **stored.prompts},
        query_prompt=stored.query_prompt or "query",
        document_prompt=stored.document_prompt or "document",
        # The head has them.
        query_tokens=None,
        document_tokens=None,
        max_tokens=min(longest, spec.max_positions) or None,
    )


def _masked(checkpoint: CheckpointView, folder: str) -> Any:
    """Words that a mask module leaves out of documents."""
    config = checkpoint.json(f"{folder}/config.json") or {}
    if config.get("keep_only_token_ids") or config.get("skiplist_tasks", ["document"]) != ["document"]:
        raise SpecError(
            f"{checkpoint.name}: {folder}/config.json keeps {config.get('keep_only_token_ids')} and skips in "
            f"{config.get('skiplist_tasks')}; only words skipped in documents are supported"
        )
    return config.get("skiplist_words", [])


def punctuation(checkpoint: CheckpointView) -> tuple[int, ...]:
    """Ids of punctuation marks that are tokens of their own."""
    return _ids(checkpoint, list(string.punctuation))


def _ids(checkpoint: CheckpointView, words: Any) -> tuple[int, ...]:
    if words is None:
        return ()
    return tuple(found for word in words if (found := checkpoint.token_id(str(word))) is not None)


def _dense(checkpoint: CheckpointView, folder: str) -> Dense:
    config = checkpoint.json(f"{folder}/config.json") or {}
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rsplit(".", 1)[-1]
    if activation != "Identity":
        raise SpecError(
            f"{checkpoint.name}: {folder}/config.json asks for {activation}; only plain projections per token are "
            "supported"
        )
    sizes = config["in_features"], config["out_features"]
    return Dense(folder, *sizes, bool(config.get("bias", True)), "identity", bool(config.get("use_residual")))


def _marker(checkpoint: CheckpointView, prefix: Any) -> int | None:
    """The id of a prefix that is one token of the vocabulary, with or without the space after it."""
    if not prefix:
        return None
    for text in (str(prefix), str(prefix).strip()):
        found = checkpoint.token_id(text)
        if found is not None:
            return found
    raise SpecError(
        f"{checkpoint.name}: the prefix {prefix!r} is no token of the vocabulary; as plain text it belongs into prompts"
    )


def _expansion(checkpoint: CheckpointView, settings: Mapping[str, Any]) -> Expansion | None:
    stated = settings.get("query_expansion")
    if "query_expansion" in settings and stated is None:
        return None
    published = "query_length" in settings or settings.get("model_type") == "ColBERT"
    if stated is None and settings.get("do_query_expansion", published) in (False, None):
        return None
    stated = stated or {}
    length = stated.get("length") or settings.get("query_length") or _QUERY_TOKENS
    attended = stated.get("attend", settings.get("attend_to_expansion_tokens", False))
    special = checkpoint.json("tokenizer_config.json") or {}
    # A decoder has no mask token; it is trained with what ends its texts.
    own = [_text(special.get("mask_token")), "[MASK]", "<mask>", _text(special.get("eos_token"))]
    names = [stated["token"]] if stated.get("token") else [name for name in own if name is not None]
    token = next((found for name in names if (found := checkpoint.token_id(name)) is not None), None)
    if token is None:
        raise SpecError(
            f"{checkpoint.name}: queries are filled with {' or '.join(names)}, which the vocabulary does not hold"
        )
    return Expansion(token, length, bool(attended))


def _text(token: Any) -> str | None:
    """A special token's text: files spell it as a string or as an object with `content`."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None
