"""Arguments as other libraries spell them, and archport's word for each. Knows no call."""

from __future__ import annotations

from collections.abc import Iterable

from archport.contract.errors import InputError

# Argument -> what to write instead.
SPELLINGS = {
    # sentence-transformers
    "batch_size": "leave it out: archport plans its batches (engine.load's memory_budget= bounds them)",
    "show_progress_bar": "write progress=True",
    "output_value": "write output='vectors' or output='tokens'",
    "max_active_dims": "write top_k=",
    "normalize_embeddings": "write normalize=True or False; left out, the model's own pipeline decides",
    "convert_to_numpy": "leave it out: vectors are numpy arrays",
    "convert_to_tensor": "leave it out: vectors are numpy arrays, which torch.from_numpy takes",
    "truncate_dim": "write dimensions=",
    "device": "leave it out: MLX chooses it; mlx.core.set_default_device changes it before a model is loaded",
    "prompts": "write prompt= or prompt_name= in each call",
    "default_prompt_name": "write prompt_name= in each call",
    "model_name_or_path": "give the name as the first argument",
    "trust_remote_code": "leave it out: no code of a repository is run; an architecture is a plugin",
    "model_kwargs": "write dtype=, max_context= and the other arguments of engine.load",
    "tokenizer_kwargs": "write max_tokens= and overflow= in each call",
    "config_kwargs": "leave it out: config.json decides",
    "max_seq_length": "write max_tokens= in a call, max_context= of engine.load",
    "cache_folder": "leave it out: the hub's cache is used; HF_HUB_CACHE moves it",
    "similarity_fn_name": "leave it out: the model's files decide",
    "chunk_size": "leave it out: archport plans its chunks",
    "pool": "use archport.bulk for several devices",
    "sentences": "give the texts as the first argument",
    "corpus": "write documents=",
    "activation_fn": "write raw_scores=True, for scores without the activation",
    "apply_softmax": "write raw_scores=False, which applies the model's own activation",
    "top_n": "write top_k=",
    # transformers
    "torch_dtype": "write dtype='float32', 'float16', 'bfloat16' or 'checkpoint'",
    "device_map": "leave it out: MLX chooses the device",
    "max_length": "write max_tokens=",
    "truncation": "write overflow='truncate'",
    "padding": "leave it out: archport packs or pads as planned",
    "return_tensors": "leave it out: answers are numpy arrays",
    "max_new_tokens": "write max_tokens=",
    "do_sample": "write temperature=: above 0 draws, 0 takes the likeliest",
    "stop_strings": "write stop=",
    "num_return_sequences": "write n=",
    # FlagEmbedding
    "return_dense": "write output='vectors', or a sequence of outputs",
    "return_sparse": "write output='sparse', or a sequence of outputs",
    "return_colbert_vecs": "write output='tokens', or a sequence of outputs",
    # spellings that come near
    "dimension": "write dimensions=",
    "dims": "write dimensions=",
    "normalise": "write normalize=",
}


def refuse_foreign(names: Iterable[str]) -> None:
    """Raise InputError for the first argument that another library spells so, with archport's word for it."""
    for name in names:
        if name in SPELLINGS:
            raise InputError(f"{name}= is no argument of archport's; {SPELLINGS[name]}")
