"""Small checkpoints written on the spot, so that each test can damage its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from archport.checkpoint import Checkpoint, resolve

from .damage import damaged, intact

__all__ = ["damaged", "intact"]

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 1, "hidden_size": 8}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "the", ",", "h", "e"]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def put() -> Callable[[Path, Any], None]:
    """Write a JSON file, making its folders."""
    return write_json


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint folder: `make(name, config=, tensors=, shards=, files=)`.

    `shards` is the number of weight files; `files` maps paths to JSON values, or to text or bytes as they are.
    """

    def build(
        name: str = "model",
        *,
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        shards: int = 1,
        files: Mapping[str, Any] | None = None,
        vocabulary: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_json(folder / "config.json", dict(CONFIG if config is None else config))
        if tensors is None:
            rng = np.random.default_rng(0)
            tensors = {f"layer.{i}.weight": rng.standard_normal((8, 8)).astype(np.float32) for i in range(4)}
        names = sorted(tensors)
        if shards == 1 and names:
            save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        elif names:
            weight_map = {}
            for part in range(shards):
                file = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
                mine = names[part::shards]
                save_file({name: tensors[name] for name in mine}, folder / file, {"format": "pt"})
                weight_map |= dict.fromkeys(mine, file)
            total = sum(array.nbytes for array in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(folder / "model.safetensors.index.json", index)
        if vocabulary:
            (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        for path, value in (files or {}).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, bytes):
                target.write_bytes(value)
            elif isinstance(value, str):
                target.write_text(value)
            else:
                write_json(target, value)
        return folder

    return build


@pytest.fixture
def opened(make: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """The same, resolved: `opened(name, ...)` answers a Checkpoint."""

    def build(*args: Any, **kwargs: Any) -> Checkpoint:
        return resolve(make(*args, **kwargs), models={})

    return build


@pytest.fixture
def raw_shard() -> Callable[..., bytes]:
    """The bytes of a safetensors file with any header, right or wrong."""

    def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    return build
