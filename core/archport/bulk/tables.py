"""A callable that embeds a block of a table, for engines that hand out blocks: Ray Data, Spark, Dask. Imports none.

It pickles as its settings; the model is loaded where the first block arrives. With a `store` every block that was
embedded is kept by what it holds, so a run that crashed is read back block by block instead of being embedded again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from archport.answering.precision import check_precision
from archport.bulk.answers import named
from archport.bulk.extras import arrow, parquet
from archport.bulk.formats import arrow_type, plain_lists, vector_column
from archport.bulk.identity import weights_digest
from archport.bulk.manifest import whole
from archport.contract import InputError
from archport.reading.columns import arrow_values

if TYPE_CHECKING:
    from archport.engine import Model


class EmbedBatch:
    """Adds two columns to a block: vectors, as lists of a fixed size, and why a row has none.

    A call takes and returns a pyarrow Table (Ray's `batch_format="pyarrow"`), a RecordBatch, a pandas DataFrame (Dask's
    `map_partitions`), or an iterator of RecordBatches (Spark's `mapInArrow`, whose lists have no fixed size).

    Args:
        model, revision, dtype, memory_budget: as `engine.load` takes them.
        text: the column of texts.
        vectors, error: names of the columns that are added.
        store: a folder that all workers see, which keeps finished blocks; None keeps none.
        errors: `collect` gives a bad row null and its error, `raise` fails the block.
        options: as `Model.embed` takes them: prompt_name, dimensions, precision ("float32", "binary", "ubinary"), ...

    Raises:
        InputError: pyarrow is not installed, or an option that a block can't have.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str | None = None,
        memory_budget: int | str | None = None,
        text: str = "text",
        vectors: str = "embedding",
        error: str = "error",
        store: str | None = None,
        errors: Literal["collect", "raise"] = "collect",
        **options: Any,
    ) -> None:
        arrow()
        precision = options.get("precision", "float32")
        check_precision(precision)
        if precision in ("int8", "uint8"):
            raise InputError(f"precision={precision!r} is measured over all rows, and a block is some; embed float32")
        self._load = {"revision": revision, "dtype": dtype, "memory_budget": memory_budget}
        self._name, self._text, self._columns, self._errors = model, text, (vectors, error), errors
        self._store, self._options = store, options
        self._model: Model | None = None
        self._settings: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A loaded model belongs to its process.
        return {**self.__dict__, "_model": None}

    def __call__(self, block: Any) -> Any:
        """The block with vectors and errors.

        Raises:
            InputError: for a block without the column of texts, or with `errors="raise"` for its first bad row.
        """
        pa = arrow()
        if isinstance(block, pa.Table):
            return self._table(block)
        if isinstance(block, pa.RecordBatch):
            return self._batch(block)
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(block, pandas.DataFrame):
            return self._frame(block)
        if isinstance(block, Iterator):
            return map(self._for_spark, block)
        raise InputError(
            f"a block is a {type(block).__name__}; expected a pyarrow Table or RecordBatch, an iterator of those, or a "
            'pandas DataFrame; of Ray Data with batch_format="pyarrow"'
        )

    def _batch(self, batch: Any) -> Any:
        table = self._table(arrow().Table.from_batches([batch])).combine_chunks()
        columns = [self._whole(column) for column in table.columns]
        return arrow().RecordBatch.from_arrays(columns, schema=table.schema)

    def _for_spark(self, batch: Any) -> Any:
        """A batch as Spark takes it, which knows no lists of a fixed size."""
        made = self._batch(batch)
        columns = [plain_lists(column) for column in made.columns]
        return arrow().RecordBatch.from_arrays(columns, names=made.schema.names)

    def _whole(self, column: Any) -> Any:
        return column.chunk(0) if column.num_chunks else arrow().array([], column.type)

    def _frame(self, frame: Any) -> Any:
        """A pandas block; its new columns have Arrow's types, which parquet keeps."""
        pandas = sys.modules["pandas"]
        if self._text not in frame.columns:
            raise InputError(f"there is no column {self._text!r} among {', '.join(map(str, frame.columns))}")
        texts = arrow().array(frame[self._text], from_pandas=True)
        found = self._answers(arrow_values(texts))
        new = {name: pandas.arrays.ArrowExtensionArray(each) for name, each in zip(self._columns, found, strict=True)}
        return frame.assign(**new)

    def _table(self, table: Any) -> Any:
        if self._text not in table.column_names:
            raise InputError(f"there is no column {self._text!r} among {', '.join(table.column_names)}")
        for name, column in zip(self._columns, self._answers(arrow_values(table.column(self._text))), strict=True):
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, column)
        return table

    def _answers(self, texts: list[Any]) -> tuple[Any, Any]:
        """The columns of vectors and of errors."""
        if self._store is None or not texts:
            return self._embedded(texts)
        path = Path(self._store) / f"block-{self._digest(texts)}.parquet"
        try:
            kept = parquet().ParquetFile(path).read().combine_chunks()
            if kept.num_rows == len(texts):
                return arrow_type(self._whole(kept.column("vectors"))), self._whole(kept.column("error"))
        # One that is not there, or was damaged since: it is made anew.
        except (OSError, arrow().ArrowException):
            pass
        vectors, errors = self._embedded(texts)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = arrow().table({"vectors": vectors, "error": errors})
        whole(path, lambda file: parquet().write_table(made, file, use_dictionary=False, compression="none"))
        return vectors, errors

    def _embedded(self, texts: list[Any]) -> tuple[Any, Any]:
        pa, model = arrow(), self._loaded()
        if self._errors == "raise":
            vectors, errors = model.embed(texts, **self._options), {}
        else:
            made = model.embed(texts, errors="collect", **self._options)
            vectors, errors = made.results, made.errors
        missing = np.zeros(len(texts), bool)
        missing[list(errors)] = True
        # Which row of a block it is means nothing to whoever reads the column.
        said = [str(named(errors[row], "the text")) if row in errors else None for row in range(len(texts))]
        return vector_column(pa, vectors, missing), pa.array(said, pa.string())

    def _loaded(self) -> Model:
        if self._model is None:
            from archport import engine

            self._model = engine.load(self._name, **self._load)
        return self._model

    def _digest(self, texts: list[Any]) -> str:
        """What tells a block and how it is embedded from any other."""
        if self._settings is None:
            from archport import engine

            about = engine.describe(self._name, revision=self._load["revision"], weights=True)
            settings = {**self._load, "errors": self._errors, "options": self._options}
            settings["weights"] = weights_digest(*about.checkpoint.folders)
            self._settings = json.dumps(settings, sort_keys=True).encode()
        found = blake2b(self._settings, digest_size=20)
        for text in texts:
            found.update(repr(text).encode("utf-8", "surrogatepass") + b"\0")
        return found.hexdigest()
