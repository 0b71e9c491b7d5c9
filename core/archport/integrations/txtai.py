"""txtai: a vector method that an index stores by name, and a function for `method="external"`. Needs `txtai`.

METHOD = "archport.integrations.txtai.ArchportVectors"
embeddings = Embeddings(method=METHOD, path="all-MiniLM-L6-v2")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from txtai.vectors import Vectors  # pyright: ignore[reportMissingImports]

from archport.engine import Model, load


class ArchportVectors(Vectors):
    """Vectors of one model: queries and documents with the prompts that its files state.

    An index's configuration: `path` is a name for `engine.load`, `vectors` holds options of `engine.load` under "load"
    and others of `Model.embed`, and `instructions` take the place of the model's prompts.
    """

    def loadmodel(self, path: str) -> Model:
        """The model of a name; raises as `engine.load` does."""
        return load(path, **self.config.get("vectors", {}).get("load", {}))

    def encode(self, data: Sequence[str], category: str | None = None) -> np.ndarray:
        """Vectors (N, D) of texts; raises as `Model.embed` does."""
        options = {name: value for name, value in self.config.get("vectors", {}).items() if name != "load"}
        if self.instructions:
            # txtai has put its own text in front.
            options = {"prompt": "", **options}
        embed = self.model.encode_document if category == "data" else self.model.encode_query
        return embed(list(data), **options)


def transform(model: str | Model, **options: Any) -> Callable[[Sequence[str]], np.ndarray]:
    """A function of texts for `Embeddings(method="external", transform=...)`, which tells no queries from documents.

    Args:
        model: a name for `engine.load`, or a loaded model.
        options: of `Model.embed`.
    """
    loaded = model if isinstance(model, Model) else load(model)

    def vectors(texts: Sequence[str]) -> np.ndarray:
        return loaded.embed(list(texts), **options)

    return vectors
