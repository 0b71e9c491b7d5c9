"""Norms that differ from MLX's own. Knows nothing of the blocks around them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class ZeroCentredRMSNorm(nn.Module):
    """RMS norm whose stored weight w scales by 1 + w, as Gemma and Qwen3.5 store theirs; parameter `weight`.

    `merge` adds the one once and for all, after loading; until then it is added in every call.
    """

    def __init__(self, dims: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = mx.zeros((dims,))
        self._eps, self._folded = eps, False

    def merge(self) -> None:
        """Turn the weight into the scale itself."""
        if not self._folded:
            # Added in float32: bfloat16 has 8 bits, and w is often far below 1.
            self.weight = (1.0 + self.weight.astype(mx.float32)).astype(self.weight.dtype)
            mx.eval(self.weight)
            self._folded = True

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight if self._folded else 1.0 + self.weight, self._eps)
