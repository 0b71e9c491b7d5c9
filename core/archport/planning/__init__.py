"""From a request to a plan: how it runs on a device within a budget, or why it does not.

Pure Python on numbers. Imports only the contract; is handed its attention paths and its hooks.
"""

from archport.planning.batch import (
    Buffer,
    ChunkBound,
    Decoding,
    KindPlan,
    Mode,
    Quote,
    Readout,
    Request,
    Schedule,
    StepPlan,
    VisionStep,
    Work,
)
from archport.planning.costs import Weights, estimate_weights, weights_on
from archport.planning.facts import NoPins, Pins
from archport.planning.plan import BatchPlan, Plan
from archport.planning.planner import Planner
from archport.planning.shapes import Group, group_rows

__all__ = [
    "BatchPlan",
    "Buffer",
    "ChunkBound",
    "Decoding",
    "Group",
    "KindPlan",
    "Mode",
    "NoPins",
    "Pins",
    "Plan",
    "Planner",
    "Quote",
    "Readout",
    "Request",
    "Schedule",
    "StepPlan",
    "VisionStep",
    "Weights",
    "Work",
    "estimate_weights",
    "group_rows",
    "weights_on",
]
