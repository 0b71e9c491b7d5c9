"""What a plan predicts is what MLX allocates: never less, and at most a quarter more."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from tolerances import CPU, PLANNED_ABOVE, PLANNED_BESIDE

from archport.attention import Chooser, attend
from archport.contract import ArchSpec, AttentionLayer
from archport.device.facts import this_device
from archport.device.profiles import profile
from archport.layers.activations import activation
from archport.layers.attention import Attention
from archport.layers.blocks import PreNormBlock
from archport.layers.mlp import GatedMLP
from archport.layers.rotary import Rotary
from archport.planning import BatchPlan, Plan
from archport.testing.measure import peaks
from archport.testing.plans import plan_of

LAYERS = 3
DEVICE = profile("cpu") if CPU else this_device()


class PlannedContext:
    """Runs each layer on its planned path and evaluates as often as planned."""

    decoding = None

    def __init__(self, plan: Plan, batch: BatchPlan) -> None:
        self.plan, self.batch = plan, batch

    def rotate(self, q, k, rope):
        return rope(q, 0), rope(k, 0)

    def pause(self, x):
        pass

    def attend(self, layer, q, k, v, *, scale, sinks=None, bias=None):
        if layer % self.batch.schedule.eval_every_layers == 0:
            mx.eval(q, k, v)
        return attend(self.batch.steps[0].paths[self.plan.layer_kinds[layer]], q, k, v, scale=scale)


def trunk(spec: ArchSpec) -> list[nn.Module]:
    act = activation("silu")
    blocks = []
    for index, layer in enumerate(spec.attention_layers):
        attention = Attention(
            index,
            layer,
            spec.hidden_size,
            bias=False,
            output_bias=False,
            qk_norm_eps=1e-6,
            rotary=Rotary(layer.head_dim, 1e4, None),
        )
        mlp = GatedMLP(spec.hidden_size, spec.intermediate_size, act)
        attention.merge()
        mlp.merge()
        blocks.append(PreNormBlock(attention, mlp, spec.hidden_size, 1e-6))
        mx.eval(blocks[-1].parameters())
    return blocks


def measured(spec: ArchSpec, plan: Plan) -> int:
    blocks, peak = trunk(spec), 0
    for batch in plan.batches:
        ids = mx.zeros((batch.shape.B, batch.shape.L), mx.int32)
        table = mx.zeros((2, spec.hidden_size))
        mx.eval(ids, table)

        def run(batch=batch, ids=ids, table=table):
            x = table[ids]
            for block in blocks:
                x = block(x, PlannedContext(plan, batch))
            mx.eval(x[:, -1].astype(mx.float32))

        # The first pass warms up kernels that are compiled or cached.
        _, *found = peaks(run, weights=0, runs=11)
        peak = max(peak, *found)
    return peak


CASES = [
    ("causal", 256, 8, 2, 64, [64] * 32),
    ("causal", 256, 4, 4, 64, [512] * 3),
    ("causal", 384, 8, 4, 128, [100, 90, 80, 70] * 4),
    ("bidirectional", 256, 4, 4, 64, [300, 200] * 4),
    ("bidirectional", 384, 6, 6, 64, [128] * 16),
    ("causal", 256, 4, 1, 64, [1500]),
]


@pytest.mark.parametrize(("semantics", "D", "heads", "kv", "head_dim", "lengths"), CASES)
def test_a_plan_predicts_the_peak_of_a_trunk(semantics, D, heads, kv, head_dim, lengths, real_choose: Chooser):
    layer = AttentionLayer(semantics, heads, kv, head_dim)
    spec = ArchSpec(
        arch="trunk",
        tasks=("embed",),
        layers=(layer,) * LAYERS,
        vocab_size=16,
        hidden_size=D,
        intermediate_size=3 * D,
        max_positions=8192,
    )
    plan = plan_of(spec, lengths, device=DEVICE, choose=real_choose, weight_bytes=0)
    peak = measured(spec, plan)
    assert peak <= plan.peak
    assert plan.peak - PLANNED_BESIDE <= PLANNED_ABOVE * peak or peak < 32e6
