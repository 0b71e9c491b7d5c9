"""Build tiny static embedding models, and record what sentence-transformers and model2vec make of texts.

Three layouts: a pipeline of sentence-transformers with Dense and Normalize, model2vec's with rows that tokens share and
weights of tokens, which both read, and model2vec's without modules.json, which it alone reads. Each reader has its own
way with unknown tokens.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from golden_encoders import BERT_SPECIALS, begin, make_tokenizer
from model2vec import StaticModel
from recording import read_corpus, write_json
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

TEXTS = ["The cat sleeps.", "a", "", "Café NAÏVE 日本 it's 123", "日本", *(text[:300] for text in read_corpus()[:4])]
WIDTH, ROWS, LIMIT = 24, 60, 40


def record() -> None:
    """Write static/pipeline, static/shared and static/own."""
    dice = np.random.default_rng(171)
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    size = tokenizer.get_vocab_size()
    table = dice.normal(size=(size, WIDTH)).astype(np.float32)
    torch.manual_seed(172)
    folder = begin("static/pipeline")
    modules = [StaticEmbedding(tokenizer, embedding_weights=table), Dense(WIDTH, 12), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "a cat ", "document": ""})
    model.save_pretrained(str(folder), create_model_card=False)
    np.savez_compressed(folder / "golden.npz", plain=model.encode(TEXTS), query=model.encode_query(TEXTS))
    folder = begin("static/shared")
    mapping = dice.integers(0, ROWS, size)
    weights = dice.random(size).astype(np.float32)
    shared = StaticModel(
        table[:ROWS], tokenizer, normalize=True, weights=weights, token_mapping=mapping, max_length=LIMIT
    )
    shared.save_pretrained(folder, model_name="shared")
    (folder / "README.md").unlink()
    np.savez_compressed(folder / "golden.npz", plain=SentenceTransformer(str(folder), device="cpu").encode(TEXTS))
    folder = begin("static/own")
    # model2vec cuts characters before tokens, 512 times the median of a token's: more than these texts have.
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": WIDTH, "normalize": False}
    own = StaticModel(table, tokenizer, config, normalize=False)
    own.save_pretrained(folder, model_name="own")
    for name in ("README.md", "modules.json"):
        (folder / name).unlink()
    np.savez_compressed(folder / "golden.npz", plain=own.encode(TEXTS))
    write_json(folder.parent / "texts.json", TEXTS)
    print("static:", json.dumps({name.name: len(list(name.rglob("*"))) for name in folder.parent.iterdir()}))


if __name__ == "__main__":
    record()
