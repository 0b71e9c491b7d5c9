"""A model of the hub is described by its small files and the headers of its weights, which stay where they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archport.checkpoint import resolve
from archport.contract.errors import CheckpointError, ModelNotFound


def described(name: str, **options: object):
    return resolve(name, models={}, weights=False, **options)  # pyright: ignore[reportArgumentType]


def enlarged(folder: Path, name: str, tensors: dict[str, tuple[int, ...]]) -> None:
    """A weight file of float32 zeros that takes no room on this disk."""
    header, at = {}, 0
    for tensor, shape in tensors.items():
        size = 4 * int(np.prod(shape))
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_those_of_a_download_and_no_weight_is_sent(hub, make: Callable[..., Path], shards: int):
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.weight": rng.standard_normal((64, 300)).astype(np.float32) for i in range(6)}
    hub.add("owner/model", make(tensors=tensors, shards=shards))
    before = described("owner/model")
    assert hub.sent < 100_000
    assert not list(before.folder.glob("*.safetensors"))
    whole = resolve("owner/model", models={})
    assert hub.sent > 400_000
    assert before.tensors == whole.tensors
    assert (before.config, before.revision, before.folder) == (whole.config, whole.revision, whole.folder)
    assert before.weight_bytes == whole.weight_bytes == 6 * 64 * 300 * 4


@pytest.mark.parametrize("shards", [1, 40])
def test_200_megabytes_are_described_by_less_than_one(hub, make: Callable[..., Path], shards: int):
    folder = make(tensors={})
    each = {part: {f"layer.{part}.{i}.weight": (125, 10_000 // shards) for i in range(40)} for part in range(shards)}
    names = {part: f"model-{part + 1:05d}-of-{shards:05d}.safetensors" for part in range(shards)}
    for part, tensors in each.items():
        enlarged(folder, names[part] if shards > 1 else "model.safetensors", tensors)
    if shards > 1:
        weight_map = {tensor: names[part] for part, tensors in each.items() for tensor in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.add("owner/large", folder)
    assert described("owner/large").weight_bytes == 200_000_000
    assert hub.sent < 1_000_000


def test_a_header_longer_than_the_first_range_is_read_whole(hub, make: Callable[..., Path]):
    folder = make(tensors={})
    enlarged(folder, "model.safetensors", {f"a.tensor.with.a.long.name.{i:05d}": (10, 10) for i in range(2000)})
    hub.add("owner/model", folder)
    assert len(described("owner/model").tensors) == 2000
    assert hub.ranges[0][1] == "bytes=0-16383"
    assert len(hub.ranges) == 2


def test_a_hub_without_ranges_is_hung_up_on_when_the_header_is_there(hub, make: Callable[..., Path]):
    folder = make(tensors={})
    enlarged(folder, "model.safetensors", {f"layer.{i:04d}.weight": (500, 1000) for i in range(30)})
    hub.add("owner/model", folder)
    hub.ignores_ranges = True
    assert described("owner/model").weight_bytes == 60_000_000
    # What lay in buffers between the two ends.
    assert hub.sent < 30_000_000


def test_a_model_in_the_cache_is_described_without_a_network(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(shards=2))
    whole = resolve("owner/model", models={})
    asked = len(hub.requests)
    found = described("owner/model")
    assert (found.source, found.tensors) == ("cache", whole.tensors)
    assert len(hub.requests) == asked


def test_shards_in_the_cache_are_read_there(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(shards=2))
    whole = resolve("owner/model", models={})
    tensors = dict(whole.tensors)
    (whole.folder / "model-00002-of-00002.safetensors").unlink()
    found = described("owner/model")
    assert found.tensors == tensors
    assert {name for name, _ in hub.ranges} == {"model-00002-of-00002.safetensors"}


def test_a_described_model_is_not_taken_for_a_whole_one(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    hub.add("owner/model", make())
    described("owner/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids"):
        resolve("owner/model", models={})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert (resolve("owner/model", models={}).folder / "model.safetensors").is_file()


def test_a_revision_is_described_as_asked_for(hub, make: Callable[..., Path]):
    hub.add("owner/model", make())
    commit = hub.commit("owner/model")
    assert described("owner/model", revision=commit).revision == commit
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        described("owner/model", revision="v9")


def test_a_gated_model_is_described_with_its_token_alone(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    hub.add("google/gated", make())
    hub.gated["google/gated"] = "hf_right"
    with pytest.raises(ModelNotFound, match=r"gated(.|\n)*HF_TOKEN"):
        described("google/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert len(described("google/gated").tensors) == 4
    assert {token for token in hub.tokens if token} == {"Bearer hf_right"}


@pytest.mark.parametrize(("status", "message"), [(403, "refused access"), (404, "404"), (500, "answered 500")])
def test_what_the_hub_answers_for_a_header_is_said(hub, make: Callable[..., Path], status: int, message: str):
    hub.add("owner/model", make())
    hub.broken["model.safetensors"] = status
    with pytest.raises(ModelNotFound, match=message):
        described("owner/model")


def test_a_header_whose_transfer_breaks_is_asked_for_again(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("owner/model", make())
    hub.cut["model.safetensors"] = [100]
    assert len(described("owner/model").tensors) == 4
    hub.cut["model.safetensors"] = [10] * 100
    with pytest.raises(ModelNotFound, match="can't be reached"):
        described("owner/model")


def test_without_a_network_a_description_fails_as_a_download_does(no_hub: str):
    with pytest.raises(ModelNotFound, match=f"{no_hub} can't be reached"):
        described("owner/model")


def test_pickles_alone_are_refused(hub, make: Callable[..., Path]):
    hub.add("owner/pickled", make(tensors={}, files={"pytorch_model.bin": b"\x80\x04"}))
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin"):
        described("owner/pickled")


def test_a_damaged_header_is_refused_by_name(hub, make: Callable[..., Path], raw_shard: Callable[..., bytes]):
    entry = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    hub.add("owner/model", make(tensors={}, files={"model.safetensors": raw_shard(entry, b"\0" * 8)}))
    with pytest.raises(CheckpointError, match=r"owner/model/model\.safetensors is truncated"):
        described("owner/model")
    hub.add("owner/other", make("other", tensors={}, files={"model.safetensors": raw_shard(entry, length=10**15)}))
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        described("owner/other")
