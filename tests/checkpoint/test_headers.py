"""Weight files are checked from their headers, before anything else reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archport.checkpoint import Checkpoint, TensorInfo, resolve
from archport.contract.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def weights(opened: Callable[..., Checkpoint], content: bytes) -> Checkpoint:
    return opened(tensors={}, files={"model.safetensors": content})


def test_headers_say_name_type_shape_and_bytes(opened: Callable[..., Checkpoint]):
    tensors = {"a": np.zeros((3, 5), np.float16), "b": np.zeros((), np.int64), "c": np.zeros((0, 4), np.uint32)}
    found = opened(tensors=tensors).tensors
    assert {name: replace(info, offset=0) for name, info in found.items()} == {
        "a": TensorInfo("a", "float16", (3, 5), 30, "model.safetensors"),
        "b": TensorInfo("b", "int64", (), 8, "model.safetensors"),
        "c": TensorInfo("c", "uint32", (0, 4), 0, "model.safetensors"),
    }


def test_headers_say_where_a_tensor_lies(opened: Callable[..., Checkpoint]):
    array = np.arange(12, dtype=np.float32)
    checkpoint = opened(tensors={"a": np.ones(3, np.float16), "b": array})
    info = checkpoint.tensors["b"]
    data = (checkpoint.folder / info.file).read_bytes()[info.offset : info.offset + info.nbytes]
    assert data == array.tobytes()


def test_tensors_of_all_shards_are_found(opened: Callable[..., Checkpoint]):
    checkpoint = opened(shards=3)
    assert sorted(checkpoint.tensors) == [f"layer.{i}.weight" for i in range(4)]
    assert checkpoint.weight_bytes == 4 * 8 * 8 * 4


@pytest.mark.parametrize("cut", [0, 4, 8, 40, 600, -1])
def test_a_truncated_file_is_named_at_any_cut(opened: Callable[..., Checkpoint], make: Callable[..., Path], cut: int):
    folder = make()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        _ = resolve(folder, models={}).tensors


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (b"{", b"", None, "not JSON"),
        (b"[]", b"", None, "expected an object"),
        (b"\xff", b"", None, "not JSON"),
        (b'{"a": 1}', b"", None, "expected dtype, shape and data_offsets"),
        (b"{}", b"", 1 << 62, "truncated or not safetensors"),
        (b"[" * 50_000, b"", None, "not JSON"),
        ({"a": {**ENTRY, "dtype": "Q9"}}, b"x" * 8, None, "element type 'Q9'"),
        ({"a": {**ENTRY, "shape": [-2]}}, b"x" * 8, None, "expected dtype, shape"),
        ({"a": {**ENTRY, "shape": [2.0]}}, b"x" * 8, None, "expected dtype, shape"),
        ({"a": {**ENTRY, "data_offsets": [0, 7]}}, b"x" * 8, None, "takes 8 bytes, but its range is 0..7"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"x" * 8, None, "range is 8..0"),
        ({"a": {**ENTRY, "data_offsets": [8, 16]}}, b"x" * 16, None, "overlap or leave a gap"),
        ({"a": ENTRY, "b": ENTRY}, b"x" * 8, None, "overlap or leave a gap"),
        ({"a": ENTRY}, b"x" * 9, None, "holds 9 bytes of data"),
        ({"a": ENTRY}, b"x" * 7, None, "is truncated: 'a' ends at byte 8"),
        (b'{"a": {}, "a": {}}', b"", None, "names a twice"),
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(
    opened: Callable[..., Checkpoint], raw_shard: Callable[..., bytes], header, data, length, message: str
):
    checkpoint = weights(opened, raw_shard(header, data, length))
    with pytest.raises(CheckpointError, match=message) as caught:
        _ = checkpoint.tensors
    assert "model.safetensors" in str(caught.value)


def test_a_git_lfs_pointer_says_how_to_get_the_file(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="git lfs pull"):
        _ = weights(opened, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").tensors


def test_metadata_is_not_a_tensor(opened: Callable[..., Checkpoint], raw_shard: Callable[..., bytes]):
    content = raw_shard({"__metadata__": {"format": "pt"}, "a": ENTRY}, b"x" * 8)
    assert list(weights(opened, content).tensors) == ["a"]


def test_a_missing_shard_is_named(make: Callable[..., Path]):
    folder = make(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors, which \S+ names, is missing"):
        _ = resolve(folder, models={}).tensors


def test_a_missing_shard_is_noticed_without_an_index(make: Callable[..., Path]):
    folder = make(shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 shards"):
        _ = resolve(folder, models={}).tensors


def test_shards_without_an_index_are_found_by_name(make: Callable[..., Path]):
    folder = make(shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert len(resolve(folder, models={}).tensors) == 4


def test_a_tensor_in_two_shards_is_an_error_that_names_both(make: Callable[..., Path], raw_shard: Callable[..., bytes]):
    shard = raw_shard({"a": ENTRY}, b"x" * 8)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = make(tensors={}, files=dict.fromkeys(names, shard))
    with pytest.raises(CheckpointError, match=f"'a' is stored twice, in {names[0]} and in {names[1]}"):
        _ = resolve(folder, models={}).tensors


def test_an_index_of_another_version_is_noticed(make: Callable[..., Path]):
    folder = make(shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["layer.9.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"layer\.9\.weight is in a file that does not hold it"):
        _ = resolve(folder, models={}).tensors


def test_an_outdated_index_next_to_a_whole_file_is_passed_over(make: Callable[..., Path]):
    index = {"weight_map": {"a": "model-00001-of-00009.safetensors"}}
    assert len(resolve(make(files={"model.safetensors.index.json": index}), models={}).tensors) == 4


def test_a_whole_file_counts_and_not_the_shards_of_an_older_upload_next_to_it(
    make: Callable[..., Path], raw_shard: Callable[..., bytes]
):
    """transformers looks for model.safetensors first; pushing a model to the hub leaves the shards that were there."""
    old = raw_shard({"a": ENTRY}, b"x" * 8)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    files = {"model.safetensors.index.json": index, "model-00001-of-00001.safetensors": old}
    tensors = resolve(make(files=files), models={}).tensors
    assert {info.file for info in tensors.values()} == {"model.safetensors"}


def test_an_index_that_names_the_whole_file_and_others_is_followed(
    make: Callable[..., Path], raw_shard: Callable[..., bytes]
):
    shard = raw_shard({"a": ENTRY}, b"x" * 8)
    index = {"weight_map": {"a": "more.safetensors", "b": "model.safetensors"}}
    files = {"model.safetensors.index.json": index, "more.safetensors": shard}
    tensors = resolve(
        make(tensors={}, files={**files, "model.safetensors": raw_shard({"b": ENTRY}, b"x" * 8)}), models={}
    ).tensors
    assert {name: info.file for name, info in tensors.items()} == {"a": "more.safetensors", "b": "model.safetensors"}


@pytest.mark.parametrize("file", ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(make: Callable[..., Path], file: str):
    folder = make(tensors={}, files={"model.safetensors.index.json": {"weight_map": {"a": file}}, "x.safetensors": b""})
    with pytest.raises(CheckpointError, match="not a path inside the checkpoint"):
        _ = resolve(folder, models={}).tensors


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_a_malformed_index_is_named(make: Callable[..., Path], index):
    with pytest.raises(CheckpointError, match="`weight_map` is not an object"):
        _ = resolve(make(files={"model.safetensors.index.json": index}), models={}).tensors


def test_second_copies_of_the_weights_are_not_read(make: Callable[..., Path]):
    folder = make(shards=2, files={"consolidated.safetensors": b"twice", "model.fp16.safetensors": b"twice"})
    assert len(resolve(folder, models={}).tensors) == 4


def test_pickles_alone_are_refused_with_the_way_out(make: Callable[..., Path]):
    folder = make(tensors={}, files={"pytorch_model.bin": b"\x80\x04"})
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin(.|\n)*never opens them(.|\n)*refs/pr"):
        _ = resolve(folder, models={}).tensors


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.gguf", "archport reads safetensors"),
        ("adapter_model.safetensors", "need adapter_config"),
        ("x.txt", "no weights"),
    ],
)
def test_a_folder_without_a_model_says_what_it_holds(make: Callable[..., Path], file: str, message: str):
    with pytest.raises(CheckpointError, match=message):
        _ = resolve(make(tensors={}, files={file: b"x"}), models={}).tensors
