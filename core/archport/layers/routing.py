"""How tokens choose experts by sigmoid: each expert has a score of its own, and a bias and groups steer the choice.

DeepSeek-V3 and GLM-4.5 route so (arXiv 2412.19437, section 2.1.2). Knows nothing of what an expert is.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from archport.contract import Experts, SpecError


class SigmoidRouter(nn.Module):
    """Chooses each token's experts by sigmoid scores; for `SparseMLP(router=)`.

    Parameters: `weight` (E, D), and `e_score_correction_bias` (E,), which moves the choice and no weight of an answer.
    It computes in float32, since 16 bits tie many scores: let the trunk's `in_float32` keep both parameters so.

    Args:
        hidden_size: model width D.
        experts: their number E, and how many a token visits.
        groups: `n_group`: runs of E / groups neighbours.
        kept_groups: `topk_group`: groups that a token chooses from, by the sum of each group's best two scores.
        renormalise: whether the weights of the chosen experts are scaled to sum to one.
        factor: what weights are multiplied by at last, `routed_scaling_factor`.

    Raises:
        SpecError: groups of unequal sizes or of a single expert, or kept ones with fewer experts than a token visits.
    """

    def __init__(
        self,
        hidden_size: int,
        experts: Experts,
        *,
        groups: int = 1,
        kept_groups: int = 1,
        renormalise: bool = True,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        if groups < 1 or experts.count % groups or (groups > 1 and experts.count // groups < 2):
            raise SpecError(
                f"router: n_group={groups} groups of {experts.count} experts; expected a number that parts them into "
                "equal groups of two or more"
            )
        if not 1 <= kept_groups <= groups or kept_groups * (experts.count // groups) < experts.per_token:
            raise SpecError(
                f"router: topk_group={kept_groups} of {groups} groups with {experts.count // groups} experts each; "
                f"expected 1 to {groups} that hold the {experts.per_token} experts of a token"
            )
        self._groups, self._kept, self._per_token = groups, kept_groups, experts.per_token
        self._renormalise, self._factor = renormalise, factor
        self.weight = mx.zeros((experts.count, hidden_size))
        self.e_score_correction_bias = mx.zeros((experts.count,))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(experts (B, L, k), their weights (B, L, k) in float32) of tokens x (B, L, D)."""
        scores = mx.sigmoid(x.astype(mx.float32) @ self.weight.astype(mx.float32).T)
        likes = self._limited(scores + self.e_score_correction_bias.astype(mx.float32))
        k = self._per_token
        chosen = mx.argpartition(-likes, kth=k - 1, axis=-1)[..., :k]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        if self._renormalise:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return chosen, weights * self._factor

    def _limited(self, likes: mx.array) -> mx.array:
        """The same (B, L, E), minus infinity outside of a token's best groups."""
        if self._kept == self._groups:
            return likes
        grouped = likes.reshape(*likes.shape[:-1], self._groups, -1)
        best = mx.topk(grouped, 2, axis=-1).sum(axis=-1)
        least = mx.sort(best, axis=-1)[..., -self._kept, None]
        above, level = best > least, best == least
        # Of equal groups the first ones, and no more than are kept.
        left = self._kept - above.sum(axis=-1, keepdims=True)
        kept = above | (level & (mx.cumsum(level.astype(mx.int32), axis=-1) <= left))
        return mx.where(kept[..., None], grouped, -mx.inf).reshape(likes.shape)
