"""What a sequence leaves behind for its next tokens: keys and values, windows of them, recurrent state."""

from archport.memory.cache import KVCache, KVView
from archport.memory.caches import Caches, LayerState, joined
from archport.memory.recurrent import RecurrentState
from archport.memory.snapshot import Snapshot, put, put_rows, row_bytes, snapshot_bytes, take

__all__ = [
    "Caches",
    "KVCache",
    "KVView",
    "LayerState",
    "RecurrentState",
    "Snapshot",
    "joined",
    "put",
    "put_rows",
    "row_bytes",
    "snapshot_bytes",
    "take",
]
