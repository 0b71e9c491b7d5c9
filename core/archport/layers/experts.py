"""Mixture-of-experts MLP: a router picks a few experts per token, and their answers are added by its weights.

Parameter names are those of converted checkpoints: `gate`, `switch_mlp.{gate,up,down}_proj` with all experts stacked
(`switch_mlp.fc1` and `fc2` of experts without a gate), `shared_expert` and `shared_expert_gate`, or `shared_experts`.
Knows nothing of how a repository names or splits them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import Experts
from archport.contract.split import Cut, Rank, columns, out
from archport.device.evaluation import traced
from archport.device.mlx_lm import reused
from archport.device.ranks import Ranks
from archport.layers.activations import activation
from archport.layers.activations import gated as gated_product
from archport.layers.mlp import GatedMLP

PARTS = ("gate_proj", "up_proj", "down_proj")
# What a matrix is stored as, packed or not.
_MATRIX = ("weight", "scales", "biases")


class SparseMLP(nn.Module):
    """Experts behind a router, and one that every token visits where the spec has it.

    Args:
        hidden_size: model width D.
        experts: their number, how many a token visits, and widths.
        renormalise: whether the weights of the chosen experts are scaled to sum to one; a `router` says so itself.
        act: name of the activation inside an expert.
        bias: whether the router and the matrices of every expert have biases.
        combine: what an expert makes of (gate, up), arrays of one shape; act(gate) * up when left out. Without a gate
            it is called with (up).
        router: what chooses: a `SigmoidRouter`, or a module that is called and answers like one. When left out, a
            linear layer whose softmax weighs the largest.
        shared_gate: whether a gate weighs the shared expert's answer per token. The expert is `shared_expert` with it,
            and `shared_experts` without.
        gated: whether an expert has a gate matrix next to up and down, as the spec's `gated_mlp` says.
        output_bias: whether a bias (D,), the parameter `bias`, is added once to what a token's experts make together.

    Raises:
        SpecError: for an activation that is not known.
    """

    def __init__(
        self,
        hidden_size: int,
        experts: Experts,
        *,
        renormalise: bool = False,
        act: str = "silu",
        bias: bool = False,
        combine: Callable[..., mx.array] | None = None,
        router: nn.Module | None = None,
        shared_gate: bool = True,
        gated: bool = True,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        self._per_token, self._renormalise, self._routed = experts.per_token, renormalise, router is not None
        self._ranks: Ranks | None = None
        plain = activation(act)
        self._inward, self._outward = (("gate_proj", "up_proj"), "down_proj") if gated else (("fc1",), "fc2")
        inside: Callable[..., mx.array] = (lambda gate, up: plain(gate) * up) if gated else plain
        self._combine = inside = combine or inside
        self.gate = nn.Linear(hidden_size, experts.count, bias=bias) if router is None else router
        self.switch_mlp = reused(f"models.switch_layers.{'SwitchGLU' if gated else 'SwitchMLP'}")(
            hidden_size, experts.intermediate_size, experts.count, bias=bias
        )
        if not gated:
            self.switch_mlp.activation = lambda up: _in_order(inside(up))
        elif bias or combine is not None or act not in ("silu", "swish"):
            together = combine or gated_product(plain)
            self.switch_mlp.activation = lambda up, gate: _in_order(together(gate, up))
        if output_bias:
            self.bias = mx.zeros((hidden_size,))
        if experts.shared_intermediate_size and not shared_gate:
            self.shared_experts = GatedMLP(hidden_size, experts.shared_intermediate_size, plain)
        elif experts.shared_intermediate_size:
            self.shared_expert = GatedMLP(hidden_size, experts.shared_intermediate_size, plain)
            self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False)

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank of a group keeps of each matrix: a share of every expert's width; the router is everyone's."""
        width = self.switch_mlp[self._outward].weight.shape[-1]
        own = dict.fromkeys(self._inward, out(rank, width, "columns of an expert"))
        own[self._outward] = columns(rank, width, "columns of an expert")
        found = {f"switch_mlp.{name}": cut for name, cut in own.items()}
        for shared in ("shared_expert", "shared_experts"):
            if shared in self:
                found |= {f"{shared}.{name}": cut for name, cut in self[shared].cuts(rank).items()}
        return found

    def split(self, ranks: Ranks) -> None:
        """Run this rank's share of every expert, and sum what all of them make."""
        self._ranks = ranks
        down = self.switch_mlp[self._outward]
        if ranks.rank.number and "bias" in down:
            # Part of every rank's sum otherwise.
            down.bias = mx.zeros_like(down.bias)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, D) for x (B, L, D)."""
        chosen, weights = self.route(x)
        grouped = self._expert_by_expert if self._is_slow(x) else self.switch_mlp
        y = (grouped(x, chosen) * weights[..., None].astype(x.dtype)).sum(axis=-2)
        if "shared_experts" in self:
            y = y + self.shared_experts(x)
        elif "shared_expert" in self:
            y = y + mx.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        if self._ranks is not None:
            y = self._ranks.sum(y)
        return y + self["bias"] if "bias" in self else y

    def _is_slow(self, x: mx.array) -> bool:
        """Whether MLX's grouped product is one small product per token here (on a CPU), or none (in 16 bits there)."""
        # A width that the groups do not divide leaves one of them unpacked.
        packed = all("scales" in self.switch_mlp[name] for name in (*self._inward, self._outward))
        return not packed and mx.default_device().type == mx.DeviceType.cpu and not traced(x)

    def _expert_by_expert(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Answers (B, L, k, D) of each token's experts, one product per expert and matrix."""
        mlp, D = self.switch_mlp, x.shape[-1]
        mx.eval(x, chosen)
        experts = np.array(chosen).reshape(-1)
        order = np.argsort(experts, kind="stable")
        found, starts = np.unique(experts[order], return_index=True)
        rows, parts = x.reshape(-1, D), list[mx.array]()
        for expert, first, end in zip(found.tolist(), starts, [*starts[1:], len(order)], strict=True):
            own = rows[mx.array(order[first:end] // self._per_token)]
            inner = self._combine(*(_of_expert(mlp[name], expert, own) for name in self._inward))
            parts.append(_of_expert(mlp[self._outward], expert, inner))
            # Or every expert's inside would wait for the last one's.
            mx.eval(parts[-1])
        back = mx.array(np.argsort(order))
        return mx.concatenate(parts)[back].reshape(*chosen.shape, D)

    def route(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(experts (B, L, k), their weights (B, L, k) in float32) of each token.

        In float32: the share of experts that are nearly tied decides, and 16 bits tie many.
        """
        if self._routed:
            return self.gate(x)  # pyright: ignore[reportReturnType]
        shares = mx.softmax(self.gate(x).astype(mx.float32), axis=-1)
        k = self._per_token
        chosen = mx.argpartition(-shares, kth=k - 1, axis=-1)[..., :k]
        weights = mx.take_along_axis(shares, chosen, axis=-1)
        if self._renormalise:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return chosen, weights


def _in_order(x: mx.array) -> mx.array:
    """The same array (..., 1, W), its axis of one row with the stride of a row.

    A sum with biases that were given that axis may inherit a stride of one element for it, by which MLX's product of
    sorted rows takes the array for a transposed one on CUDA, and answers garbage.
    """
    return x.reshape(-1).reshape(x.shape)


def _of_expert(stacked: nn.Module, expert: int, x: mx.array) -> mx.array:
    """One expert's output (n, M) for its tokens x (n, N)."""
    # A slice is a view; MLX copies what a number picks.
    own = {name: stacked[name][expert : expert + 1].squeeze(0) for name in _MATRIX if name in stacked}
    if "scales" in own:
        how: Any = stacked
        y = mx.quantized_matmul(
            x, own["weight"], own["scales"], own.get("biases"), group_size=how.group_size, bits=how.bits, mode=how.mode
        )
        return y + stacked["bias"][expert] if "bias" in stacked else y
    weight = own["weight"].T
    return mx.addmm(stacked["bias"][expert], x, weight) if "bias" in stacked else x @ weight


def stack_experts(weights: Mapping[str, mx.array], layer: str, count: int) -> dict[str, mx.array]:
    """A layer's `{layer}.experts.N.*` stacked into `{layer}.switch_mlp.*`; tensors of other names as they are.

    Args:
        weights: the checkpoint's tensors.
        layer: the MLP's path, such as "model.layers.3.mlp".
        count: experts; stacking waits for all of them, so that a missing one is reported by name.
    """
    found = dict(weights)
    for part in PARTS:
        for leaf in ("weight", "scales", "biases", "bias"):
            names = [f"{layer}.experts.{index}.{part}.{leaf}" for index in range(count)]
            if all(name in found for name in names):
                found[f"{layer}.switch_mlp.{part}.{leaf}"] = mx.stack([found.pop(name) for name in names])
    return found
