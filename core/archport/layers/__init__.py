"""Blocks that a plugin composes into its module. They build no mask, own no cache and keep no state."""

from archport.layers.activations import activation, gelu
from archport.layers.attention import Attention
from archport.layers.blocks import PostNormBlock, PreNormBlock
from archport.layers.distance import RelativeBuckets, Slopes, alibi_slopes
from archport.layers.embedding import Embedding, head_rows, settle_head
from archport.layers.experts import SparseMLP, stack_experts
from archport.layers.gated_delta_net import GatedDeltaNet
from archport.layers.merging import added, merge_projections
from archport.layers.mlp import MLP, GatedMLP
from archport.layers.norms import ZeroCentredRMSNorm
from archport.layers.rotary import Rotary, SectionedRotary
from archport.layers.routing import SigmoidRouter
from archport.layers.short_conv import ShortConv
from archport.layers.vision import PatchMergingTower, TowerShape

__all__ = [
    "MLP",
    "Attention",
    "Embedding",
    "GatedDeltaNet",
    "GatedMLP",
    "PatchMergingTower",
    "PostNormBlock",
    "PreNormBlock",
    "RelativeBuckets",
    "Rotary",
    "SectionedRotary",
    "ShortConv",
    "SigmoidRouter",
    "Slopes",
    "SparseMLP",
    "TowerShape",
    "ZeroCentredRMSNorm",
    "activation",
    "added",
    "alibi_slopes",
    "gelu",
    "head_rows",
    "merge_projections",
    "settle_head",
    "stack_experts",
]
