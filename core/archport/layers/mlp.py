"""Position-wise feed-forward blocks."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from archport.contract.split import Cut, Rank, columns, out
from archport.device.ranks import Ranks
from archport.layers.activations import Activation, gated, gated_halves, own
from archport.layers.merging import MergedLinear, linear_onto
from archport.layers.parallel import SummedLinear


class MLP(nn.Module):
    """Two linear layers around an activation; parameters `up_proj` and `down_proj`."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: Activation, *, bias: bool) -> None:
        super().__init__()
        self._act = own(act)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank of a group keeps of each matrix."""
        return _cuts(self.down_proj, rank, "up_proj")

    def split(self, ranks: Ranks) -> None:
        """Run this rank's share of the width, and sum what all of them make."""
        self.down_proj = SummedLinear(self.down_proj, ranks)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._act(self.up_proj(x)))


class GatedMLP(nn.Module):
    """Gated feed-forward (SwiGLU with `silu`); parameters `gate_proj`, `up_proj`, `down_proj`."""

    takes_onto = True

    def __init__(self, hidden_size: int, intermediate_size: int, act: Activation, *, bias: bool = False) -> None:
        super().__init__()
        act = own(act)
        self._gated, self._gated_halves = gated(act), gated_halves(act)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def merge(self) -> None:
        """Replace gate_proj and up_proj by one product, where their kinds allow."""
        merged = MergedLinear.of([self.gate_proj, self.up_proj])
        if merged is not None:
            self.gate_up_proj = merged
            del self.gate_proj, self.up_proj

    def cuts(self, rank: Rank) -> Mapping[str, Cut]:
        """What one rank of a group keeps of each matrix."""
        return _cuts(self.down_proj, rank, "gate_proj", "up_proj")

    def split(self, ranks: Ranks) -> None:
        """Run this rank's share of the width, and sum what all of them make."""
        self.down_proj = SummedLinear(self.down_proj, ranks)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """Output (..., D) for x (..., D), added to `onto` where that is given."""
        if "gate_up_proj" in self:
            inner = self._gated_halves(self["gate_up_proj"].product(x))
        else:
            inner = self._gated(self.gate_proj(x), self.up_proj(x))
        return linear_onto(self["down_proj"], inner, onto)


def _cuts(down: nn.Module, rank: Rank, *inward: str) -> Mapping[str, Cut]:
    width = down["weight"].shape[-1]
    own = dict.fromkeys(inward, out(rank, width, "columns of the MLP"))
    return own | {"down_proj": columns(rank, width, "columns of the MLP")}
