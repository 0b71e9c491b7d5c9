"""Build models with sentence-transformers' Router, and record what they make: inference-free SPLADE, and dense routes.

The largest transformer is that of splade/. Also records which route sentence-transformers takes by drawn rules.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from golden_heads import BERT_SHAPE
from golden_splade import LIMIT, TEXTS, TOP_K
from recording import HERE, randomise, versions, write_json
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling, Transformer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

FOLDER = HERE / "routed"
CASES = 120


def record() -> None:
    """Write routed/; splade/ is there."""
    transformer = Transformer(str(HERE / "splade"), transformer_task="fill-mask", max_seq_length=LIMIT)
    tokenizer = transformer.tokenizer
    dice = torch.Generator().manual_seed(152)
    weight = torch.randn(len(tokenizer.get_vocab()), generator=dice)
    # As a table of idf: what is common weighs nothing, and some trained ones go below it.
    weight = torch.where(weight.abs() < 0.5, torch.zeros(()), weight + 1)
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(tokenizer, weight=weight, frozen=True)],
        document_modules=[transformer, SpladePooling("max", activation_function="log1p_relu")],
    )
    encoder = SparseEncoder(modules=[router], device="cpu", prompts={"query": "a cat ", "document": "the "})
    encoder.save_pretrained(str(FOLDER), create_model_card=False)
    dense = {"convert_to_sparse_tensor": False}
    arrays = {
        "query": encoder.encode_query(TEXTS, **dense),
        "document": encoder.encode_document(TEXTS, **dense),
        "plain": encoder.encode(TEXTS, **dense),
        "bare_query": encoder.encode_query(TEXTS, prompt="", **dense),
        "top_query": encoder.encode_query(TEXTS, max_active_dims=TOP_K, **dense),
    }
    found = [encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)]
    arrays["similarity"] = encoder.similarity(*found)
    np.savez_compressed(FOLDER / "golden.npz", **{name: array.numpy() for name, array in arrays.items()})
    write_json(FOLDER / "routes.json", {"versions": versions(), "texts": TEXTS, "top_k": TOP_K, "cases": routes()})
    print(f"routed: {(arrays['query'] != 0).sum(dim=1).float().mean():.1f} weights a query")
    record_dense()


def record_dense() -> None:
    """Write routed-dense/: a table of vectors for queries, a transformer for documents, a smaller one for others."""
    large = Transformer(str(HERE / "splade"), max_seq_length=LIMIT)
    width = large.get_embedding_dimension()
    with TemporaryDirectory() as source:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(HERE / "splade" / name, source)
        stated = json.loads((HERE / "splade" / "config.json").read_text())
        shape = {**BERT_SHAPE, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        sizes = {key: stated[key] for key in ("vocab_size", "max_position_embeddings")}
        write_json(Path(source) / "config.json", {**shape, **sizes, "architectures": ["BertModel"]})
        trunk = AutoModel.from_config(AutoConfig.from_pretrained(source)).eval()
        with torch.no_grad():
            randomise(trunk, 154, {"query.weight": 3.0, "key.weight": 3.0})
        trunk.save_pretrained(source)
        small = Transformer(source, max_seq_length=LIMIT)
    torch.manual_seed(155)
    fast = Tokenizer.from_file(str(HERE / "splade" / "tokenizer.json"))
    router = Router(
        {
            "query": [StaticEmbedding(fast, embedding_dim=width)],
            "document": [large, Pooling(width, pooling_mode="cls")],
            "any": [small, Pooling(16, pooling_mode="mean"), Dense(16, width)],
        },
        default_route="any",
    )
    prompts = {"query": "a cat ", "document": "the "}
    encoder = SentenceTransformer(modules=[router, Normalize()], device="cpu", prompts=prompts)
    encoder.save_pretrained(str(FOLDER.with_name("routed-dense")), create_model_card=False)
    calls = {"query": encoder.encode_query, "document": encoder.encode_document, "plain": encoder.encode}
    # A table has no vector for a text without any token but zeros; those of transformers hold their special ones.
    arrays = {name: call(TEXTS) for name, call in calls.items()}
    np.savez_compressed(FOLDER.with_name("routed-dense") / "golden.npz", **arrays)
    print(f"routed-dense: {arrays['plain'].shape}")


def routes() -> list[dict[str, Any]]:
    """Drawn rules, and the route of each role by them; null where sentence-transformers raises."""
    dice, cases = random.Random(153), list[dict[str, Any]]()
    while len(cases) < CASES:
        names = dice.sample(["query", "document", "text", "image", "a", "b"], dice.randint(1, 4))
        rules = {
            (dice.choice([None, "query", "document"]), dice.choice([None, "text", "image", ("text", "image")])):
            dice.choice(names) for _ in range(dice.choice([0, 0, 1, 2, 3]))
        }  # fmt: skip
        stated = {
            "default_route": dice.choice([None, dice.choice(names)]),
            "allow_empty_key": dice.random() < 0.7,
        }
        router = Router({name: [Normalize()] for name in names}, route_mappings=rules, **stated)
        taken: dict[str, str | None] = {}
        for role in (None, "query", "document"):
            try:
                taken[str(role)] = router._resolve_route(role, "text")
            except ValueError:
                taken[str(role)] = None
        stated["route_mappings"] = {str(key): route for key, route in rules.items()}
        cases.append({"names": names, "parameters": stated, "taken": taken})
    return cases


if __name__ == "__main__":
    record()
