"""From a model's name to its folder, config, weights, tokenizer and pipeline: the only code with disk and hub.

Knows published file layouts. Knows no architecture: renaming tensors is a module's `sanitize`, meaning is a plugin's.
Imports neither mlx nor the hub client nor tokenizers until one of them is needed.
"""

from archport.checkpoint.chat import ChatFiles, read_chat
from archport.checkpoint.checkpoint import Checkpoint, Source, open_checkpoint
from archport.checkpoint.config import normalise_config
from archport.checkpoint.counts import check_counts, has_large_counts
from archport.checkpoint.dense import check_widths, load_dense, stored_apart
from archport.checkpoint.headers import TensorInfo
from archport.checkpoint.inputs import read_inputs
from archport.checkpoint.pipeline import read_head
from archport.checkpoint.quantization import read_quantization
from archport.checkpoint.resolve import near_matches, resolve
from archport.checkpoint.routes import Role, Routes
from archport.checkpoint.static_weights import StaticTable, load_static_table
from archport.checkpoint.tokenizer import (
    duplicate,
    is_panic,
    load_tokenizer,
    mask_token,
    no_tokenizer,
    special_ids,
    truncation_side,
)
from archport.checkpoint.weights import WeightDType, load_weights, loaded_bytes, weight_bytes

__all__ = [
    "ChatFiles",
    "Checkpoint",
    "Role",
    "Routes",
    "Source",
    "StaticTable",
    "TensorInfo",
    "WeightDType",
    "check_counts",
    "check_widths",
    "duplicate",
    "has_large_counts",
    "is_panic",
    "load_dense",
    "load_static_table",
    "load_tokenizer",
    "load_weights",
    "loaded_bytes",
    "mask_token",
    "near_matches",
    "no_tokenizer",
    "normalise_config",
    "open_checkpoint",
    "read_chat",
    "read_head",
    "read_inputs",
    "read_quantization",
    "resolve",
    "special_ids",
    "stored_apart",
    "truncation_side",
    "weight_bytes",
]
