"""A program that embeds a parquet file under Ray Data, Dask or Spark and writes parquet: ENGINE SOURCE OUT MODEL STORE.

Run by test_engines.py as a process, so that it can be killed.
"""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import os
import sys

BLOCK = 250


def under_ray(source: str, out: str, model: str, store: str | None) -> None:
    import ray
    import ray.data

    from archport.bulk.ray import embed

    ray.init(num_cpus=4, object_store_memory=150_000_000, include_dashboard=False, logging_level="error")
    dataset = embed(ray.data.read_parquet(source), model, actors=2, block_rows=BLOCK, store=store)
    dataset.write_parquet(out)


def under_dask(source: str, out: str, model: str, store: str | None) -> None:
    import dask
    import dask.dataframe
    from dask.distributed import Client

    from archport.bulk.tables import EmbedBatch

    dask.config.set({"dataframe.convert-string": False})
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
        frame = dask.dataframe.read_parquet(source, split_row_groups=1)
        embed = EmbedBatch(model, store=store)
        frame.map_partitions(embed, meta=embed(frame._meta)).to_parquet(out, write_index=False)


def under_spark(source: str, out: str, model: str, store: str | None) -> None:
    from pyspark.sql import SparkSession

    from archport.bulk.tables import EmbedBatch

    # Spark's workers are started by the first python3 on the path, where archport need not be.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    options = {"spark.ui.enabled": "false", "spark.sql.execution.arrow.maxRecordsPerBatch": str(BLOCK)}
    builder = SparkSession.builder.master("local[2]")
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    schema = "id string, text string, embedding array<float>, error string"
    frame = session.read.parquet(source).repartition(2)
    frame.mapInArrow(EmbedBatch(model, store=store), schema).write.parquet(out)


if __name__ == "__main__":
    engine, source, out, model, store = sys.argv[1:]
    {"ray": under_ray, "dask": under_dask, "spark": under_spark}[engine](source, out, model, store or None)
