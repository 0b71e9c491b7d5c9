"""How far results may lie apart by rounding alone, per device and type: the one table that tests read.

A value belongs to a device and a type because of how that device multiplies: a bound that archport could keep better is
archport's to mend and is not written here. Knows nothing of models.
"""

from __future__ import annotations

import mlx.core as mx

CPU = mx.default_device().type == mx.DeviceType.cpu
DEVICE = "cpu" if CPU else "cuda" if mx.cuda.is_available() else "metal"

_TABLE: dict[tuple[str, str], dict[str, float]] = {
    # A row alone against the same row in a batch, relative to the largest number. A CPU's BLAS sums in blocks of the
    # same size for most shapes, and texts that lie in one row meet their keys in products of another. cuBLAS picks
    # another kernel, with another order of summing, by the number of rows.
    ("rows", "float32"): {"cpu": 2e-6, "cuda": 2e-5, "metal": 2e-5},
    # A row's numbers against the reference's, which torch recorded on a CPU in float32. TF32 is off (docs/adr/0012).
    ("reference", "float32"): {"cpu": 1e-5, "cuda": 2e-5, "metal": 2e-5},
    # Attention in tiles or bands against one call, absolute, for inputs of unit variance. On a CPU both run the same
    # products, so that MLX's own BLAS gives the same bits, and an optimised one rounds by the shape of a product. On a
    # GPU the one call is a kernel of MLX that holds its weights in the type of the values and sums in another order:
    # four steps of the type at 1.
    ("cut", "float32"): {"cpu": 1e-6, "cuda": 1e-5, "metal": 1e-5},
    ("cut", "float16"): {"cpu": 0.0, "cuda": 2**-8, "metal": 2**-8},
    ("cut", "bfloat16"): {"cpu": 0.0, "cuda": 2**-5, "metal": 2**-5},
    # A recurrence of hundreds of steps over correlated keys against float64, relative: what float32 itself loses there
    # depends on the order of its sums by a fifth.
    ("recurrence", "float32"): {"cpu": 2e-6, "cuda": 2.5e-6, "metal": 2.5e-6},
    # Log-probabilities of weights kept in 4 or 8 bits and computed in 16 against the same weights in float32: steps of
    # bfloat16 at logits of 4 to 8. A GPU also rounds every unpacked weight to 16 bits before it multiplies.
    ("quantised", "bfloat16"): {"cpu": 2 * 2**-5, "cuda": 4 * 2**-5, "metal": 4 * 2**-5},
}


# Bytes that a plan for a device has beside what a model moves: cuBLAS's workspace, and two pages of rounding for each
# of some hundred buffers that are in flight. They outweigh tiny models, whose other bytes are what tests compare.
PLANNED_BESIDE = {"cpu": 0, "cuda": (32 << 20) + (4 << 20), "metal": 4 << 20}[DEVICE]
# How far a plan may be above a measured peak. On a GPU what kernels held comes back with the graph of kernels that they
# ran in, and where one graph ends and another begins differs from run to run: a plan has room for all of them.
PLANNED_ABOVE = {"cpu": 1.25, "cuda": 1.5, "metal": 1.5}[DEVICE]


def tolerance(what: str, dtype: str = "float32") -> float:
    """The bound of this device for results of a type."""
    return _TABLE[what, dtype][DEVICE]
