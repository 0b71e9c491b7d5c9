"""The heads of a gated delta net, in numbers. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from archport.contract.errors import SpecError


@dataclass(frozen=True, slots=True)
class DeltaHeads:
    """The heads of a gated delta net.

    Args:
        n_key_heads, n_value_heads: the second is a multiple of the first.
        key_dim, value_dim: widths of one head.
    """

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        for name in ("n_key_heads", "n_value_heads", "key_dim", "value_dim"):
            value = getattr(self, name)
            # bool is an int: `True` heads would pass silently.
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise SpecError(f"gated delta net: {name}={value!r} is not a positive integer")
        if self.n_value_heads % self.n_key_heads:
            raise SpecError(
                f"gated delta net: n_value_heads={self.n_value_heads} is not a multiple of "
                f"n_key_heads={self.n_key_heads}; each key head serves equally many value heads"
            )

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.n_key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.n_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Width of q, k and v together, which the convolution reads."""
        return 2 * self.keys + self.values
