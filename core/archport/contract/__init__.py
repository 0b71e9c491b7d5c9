"""The contract between archport and an architecture plugin; imports no mlx.

Read in this order: `spec` (what a plugin promises), `hookspecs` (what it may answer), `model` (what its module sees).
"""

from archport.contract.attention import AttentionCall, Backend, MaskKind, MaskPolicy, Price
from archport.contract.device import DeviceFacts, DeviceKind
from archport.contract.errors import (
    AdmissionRefused,
    ArchportError,
    BufferTooLarge,
    CheckpointError,
    ClaimError,
    ContextLengthExceeded,
    InputError,
    MemoryBudgetExceeded,
    ModelNotFound,
    NonFiniteOutput,
    PluginError,
    SpecError,
    WorkBoundExceeded,
)
from archport.contract.hookspecs import hookimpl
from archport.contract.memory import BatchShape, KVAllocation, Limits
from archport.contract.model import (
    CheckpointView,
    Dense,
    EmbeddingHead,
    Example,
    LayerContext,
    PoolingMode,
    TextInputs,
    Trunk,
)
from archport.contract.spec import (
    ArchSpec,
    AttentionLayer,
    DType,
    Experts,
    LayerSpec,
    Quantization,
    RecurrentLayer,
    Semantics,
    Task,
    VisionTower,
)

__all__ = [
    "AdmissionRefused",
    "ArchSpec",
    "ArchportError",
    "AttentionCall",
    "AttentionLayer",
    "Backend",
    "BatchShape",
    "BufferTooLarge",
    "CheckpointError",
    "CheckpointView",
    "ClaimError",
    "ContextLengthExceeded",
    "DType",
    "Dense",
    "DeviceFacts",
    "DeviceKind",
    "EmbeddingHead",
    "Example",
    "Experts",
    "InputError",
    "KVAllocation",
    "LayerContext",
    "LayerSpec",
    "Limits",
    "MaskKind",
    "MaskPolicy",
    "MemoryBudgetExceeded",
    "ModelNotFound",
    "NonFiniteOutput",
    "PluginError",
    "PoolingMode",
    "Price",
    "Quantization",
    "RecurrentLayer",
    "Semantics",
    "SpecError",
    "Task",
    "TextInputs",
    "Trunk",
    "VisionTower",
    "WorkBoundExceeded",
    "hookimpl",
]
