"""Attention paths: one file per backend, the tables and probes of what MLX fuses, and a drop-in for MLX's call.

Importing it, pricing and choosing touch no array and no device; MLX is imported where a path runs.
"""

from archport.attention.backends.builtin import builtin_backends
from archport.attention.choose import Chooser, choose
from archport.attention.dropin import limits_from_environment, scaled_dot_product_attention
from archport.attention.masks import sharing, stop_sharing
from archport.attention.prices import TableRoutes
from archport.attention.probe import ProbedRoutes, probed_routes
from archport.attention.run import Runner, attend, prepare

__all__ = [
    "Chooser",
    "ProbedRoutes",
    "Runner",
    "TableRoutes",
    "attend",
    "builtin_backends",
    "choose",
    "limits_from_environment",
    "prepare",
    "probed_routes",
    "scaled_dot_product_attention",
    "sharing",
    "stop_sharing",
]
