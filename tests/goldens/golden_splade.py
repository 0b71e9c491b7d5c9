"""Build a tiny SPLADE model with sentence-transformers, and record what its SparseEncoder makes of texts.

One set of weights, and every pooling and activation of SpladePooling: the files of the first are here, and a test
writes those of the others.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from golden_encoders import BERT_SPECIALS, begin, make_tokenizer
from golden_heads import BERT_NAMES, BERT_SHAPE
from recording import randomise, read_corpus, versions, write_json
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from transformers import AutoConfig, AutoModelForMaskedLM

LIMIT = 64
TEXTS = ["The cat sleeps.", "a", "", "Café NAÏVE 日本 it's 123", *read_corpus()[:5]]
VARIANTS = {"max": ("max", "relu"), "sum": ("sum", "relu"), "twice": ("max", "log1p_relu")}
TOP_K = 7


def record() -> None:
    """Write splade/."""
    with TemporaryDirectory() as source:
        write(Path(source))


def write(source: Path) -> None:
    """The same, the model without its pipeline lying in `source` meanwhile."""
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    tokenizer.save(str(source / "tokenizer.json"), pretty=False)
    stated = {**BERT_NAMES, "tokenizer_class": "BertTokenizer", "model_max_length": LIMIT}
    write_json(source / "tokenizer_config.json", stated)
    shape: dict[str, Any] = {**BERT_SHAPE, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": LIMIT}
    write_json(source / "config.json", {**shape, "architectures": ["BertForMaskedLM"]})
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source)).eval()
    with torch.no_grad():
        randomise(model, 151, {"query.weight": 3.0, "key.weight": 3.0})
        # Most words of most texts have no weight, as in a trained model.
        model.cls.predictions.bias.sub_(6.0)
    model.save_pretrained(source)
    arrays: dict[str, np.ndarray] = {}
    folder = begin("splade")
    for name, (pooling, activation) in VARIANTS.items():
        transformer = Transformer(str(source), transformer_task="fill-mask", max_seq_length=LIMIT)
        modules = [transformer, SpladePooling(pooling, activation_function=activation)]
        encoder = SparseEncoder(modules=modules, device="cpu", prompts={"query": "a cat ", "document": ""})
        arrays[name] = encoder.encode(TEXTS, convert_to_sparse_tensor=False, batch_size=3).numpy()
        if name != "max":
            continue
        encoder.save_pretrained(str(folder), create_model_card=False)
        arrays["query"] = encoder.encode_query(TEXTS, convert_to_sparse_tensor=False).numpy()
        arrays["top_k"] = encoder.encode(TEXTS, convert_to_sparse_tensor=False, max_active_dims=TOP_K).numpy()
        found = encoder.encode(TEXTS)
        arrays["similarity"] = encoder.similarity(found, found).numpy()
        words = encoder.decode(found, top_k=TOP_K)
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "words.json", {"versions": versions(), "texts": TEXTS, "top_k": TOP_K, "words": words})
    weights = float((arrays["max"] > 0).sum(axis=1).mean())
    print(f"splade: {arrays['max'].shape}, {weights:.1f} weights a text")


if __name__ == "__main__":
    record()
