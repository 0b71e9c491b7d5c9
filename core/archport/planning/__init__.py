"""From a request to a plan: how it runs on a device within a budget, or why it does not.

Pure Python on numbers. Imports only the contract; is handed its attention paths and its hooks.
"""

from archport.planning.costs import Weights, estimate_weights
from archport.planning.memo import Memo
from archport.planning.pins import NoPins, Pins
from archport.planning.plan import (
    BatchPlan,
    Buffer,
    ChunkBound,
    Decoding,
    KindPlan,
    Mode,
    Plan,
    StepPlan,
    VisionStep,
    Work,
)
from archport.planning.planner import plan_request
from archport.planning.readout import Readout
from archport.planning.shapes import Group, group_rows

__all__ = [
    "BatchPlan",
    "Buffer",
    "ChunkBound",
    "Decoding",
    "Group",
    "KindPlan",
    "Memo",
    "Mode",
    "NoPins",
    "Pins",
    "Plan",
    "Readout",
    "StepPlan",
    "VisionStep",
    "Weights",
    "Work",
    "estimate_weights",
    "group_rows",
    "plan_request",
]
