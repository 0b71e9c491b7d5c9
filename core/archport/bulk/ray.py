"""Ray Data's side of `EmbedBatch`: one actor for each device, and blocks small enough to lose. The engine is Ray's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archport.bulk.extras import needed
from archport.bulk.tables import EmbedBatch

if TYPE_CHECKING:
    from ray.data import Dataset  # pyright: ignore[reportMissingImports]

__all__ = ["EmbedBatch", "embed"]


def embed(
    dataset: Dataset,
    model: str,
    *,
    actors: int = 1,
    block_rows: int = 4096,
    resources: dict[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """A data set with vectors, computed by Ray when it is written or read.

    Rows are cut into blocks first, because a block is what Ray writes, counts as done, and makes again after a crash:
    without that a job that crashes before its end has written nothing.

    Args:
        actors: processes that load the model, one for each device.
        block_rows: rows of a block.
        resources: what an actor takes of a node: {"num_gpus": 1} with CUDA, {"resources": {"mlx": 1}} on nodes that
            were started with `--resources='{"mlx": 1}'`. Default: nothing, or readers and writers wait for the actors.
        options: of `EmbedBatch`.

    Raises:
        InputError: Ray is not installed.
    """
    data = needed("ray", "ray", "this function needs").data
    return dataset.repartition(target_num_rows_per_block=block_rows).map_batches(
        EmbedBatch,
        fn_constructor_kwargs={"model": model, **options},
        batch_format="pyarrow",
        batch_size=None,
        compute=data.ActorPoolStrategy(size=actors),
        **({"num_cpus": 0} if resources is None else resources),
    )
