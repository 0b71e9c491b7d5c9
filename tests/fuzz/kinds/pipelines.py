"""Files of a sentence-transformers pipeline: modules, their configs, prompts and limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fuzz.cases import Seen, copied, edit_json, load, use
from fuzz.values import edited, edits, odd

FILES = True
MODULES = [
    *(
        "Pooling",
        "Normalize",
        "Dense",
        "Dropout",
        "Transformer",
        "LogitScore",
        "CNN",
        "LSTM",
        "StaticEmbedding",
        "Router",
    ),
    *("Asym", "WeightedLayerPooling", "SparseEncoder", "Odd"),
]
KEYS = {
    "modules.json": ["idx", "name", "path", "type"],
    "1_Pooling/config.json": [
        "word_embedding_dimension",
        "pooling_mode",
        "pooling_mode_cls_token",
        "include_prompt",
        "pooling_mode_mean_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_odd",
    ],
    "2_Dense/config.json": [
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "use_residual",
        "module_input_name",
        "module_output_name",
    ],
    "config_sentence_transformers.json": [
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "truncate_dim",
        "model_type",
        "activation_fn",
        "__version__",
    ],
    "sentence_bert_config.json": [
        "max_seq_length",
        "do_lower_case",
        "processor_kwargs",
        "model_kwargs",
        "config_kwargs",
        "tokenizer_args",
        "processing_kwargs",
        "query_length",
        "document_length",
        "query_expansion",
        "transformer_task",
        "modality_config",
        "module_output_name",
    ],
    "tokenizer_config.json": ["model_max_length", "max_len", "model_input_names"],
}


def cases() -> st.SearchStrategy[Any]:
    file = st.sampled_from(sorted(KEYS)).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(edits(KEYS[name]), edits(KEYS[name]), odd()))
    )
    kinds = st.one_of(
        st.just(["Pooling", "Dense", "Normalize"]),
        st.just(["Pooling", "Normalize"]),
        st.lists(st.sampled_from(MODULES), max_size=4),
    )
    return st.tuples(st.sampled_from(["bert", "roberta", "modernbert", "qwen3", "gemma", "labels"]), kinds, file)


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, kinds, (name, change) = case
    folder = copied(bases, base, place)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, kind in enumerate(kinds, 1):
        path = f"{index}_{kind}"
        entries.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir()
        config: dict[str, Any] = {}
        if kind == "Pooling":
            config = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        elif kind == "Dense":
            config = {
                "in_features": width,
                "out_features": width,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
            arrays = {"linear.weight": np.eye(width, dtype=np.float32), "linear.bias": np.zeros(width, np.float32)}
            save_file(arrays, folder / path / "model.safetensors")
        if kind not in ("Normalize", "Dropout"):
            edit_json(folder / path / "config.json", config)
    stored: dict[str, Any] = {
        "config_sentence_transformers.json": {
            "prompts": {"query": "q: ", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
    }
    for file, content in stored.items():
        edit_json(folder / file, content)
    edit_json(folder / "modules.json", entries)
    target = folder / name.replace(
        "2_Dense", next((entry["path"] for entry in entries if "Dense" in entry["path"]), "2_Dense")
    )
    target.parent.mkdir(exist_ok=True)
    old = json.loads(target.read_text()) if target.exists() else {}
    if (
        isinstance(change, list)
        and change
        and all(isinstance(each, tuple | list) and len(each) == 4 for each in change)
    ):
        if isinstance(old, list):
            old[change[0][1] % len(old)] = edited(old[change[0][1] % len(old)], change)
        else:
            old = edited(old, change)
    else:
        old = change
    edit_json(target, old)
    use(load(folder, seen), seen)
