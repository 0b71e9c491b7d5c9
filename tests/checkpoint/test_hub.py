"""Downloads by the real hub client from a loopback hub: what is fetched, resumed, refused, and never asked for."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from archport.checkpoint import resolve
from archport.contract.errors import CheckpointError, ModelNotFound

PIPELINE = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ],
    "1_Pooling/config.json": {"pooling_mode_cls_token": True},
    "2_Dense/config.json": {"in_features": 8, "out_features": 4},
    "2_Dense/model.safetensors": b"dense",
}
# What repositories carry besides, and archport must not even ask for.
CLUTTER = {
    "README.md": "# card",
    ".gitattributes": "*.bin filter=lfs",
    "modeling_custom.py": "raise SystemExit('ran')",
    "pytorch_model.bin": b"\x80\x04pickle",
    "pytorch_model.bin.index.json": {"weight_map": {}},
    "training_args.bin": b"\x80\x04pickle",
    "2_Dense/pytorch_model.bin": b"\x80\x04pickle",
    "consolidated.safetensors": b"twice",
    "model.fp16.safetensors": b"twice",
    "tf_model.h5": b"h5",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": {},
    "openvino/openvino_model.xml": "<xml/>",
    "original/consolidated.safetensors": b"twice",
    "original/params.json": {},
}


def tokens(hub) -> set[str]:
    return {token for token in hub.tokens if token}


def test_a_whole_model_arrives_sharded_with_its_pipeline(hub, make: Callable[..., Path]):
    source = make(shards=3, files=PIPELINE)
    hub.add("owner/model", source)
    checkpoint = resolve("owner/model", models={})
    assert (checkpoint.name, checkpoint.source, checkpoint.revision) == (
        "owner/model",
        "hub",
        hub.commit("owner/model"),
    )
    found = {path.relative_to(checkpoint.folder).as_posix() for path in checkpoint.folder.rglob("*") if path.is_file()}
    assert found == {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert len(checkpoint.tensors) == 4
    for name in found:
        assert (checkpoint.folder / name).read_bytes() == (source / name).read_bytes()


def test_code_pickles_and_second_copies_are_never_asked_for(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(shards=2, files={**PIPELINE, **CLUTTER}))
    resolve("owner/model", models={})
    assert not hub.asked_for() & set(CLUTTER)
    assert not [name for name in hub.asked_for() if name.endswith((".py", ".bin", ".pt", ".pkl"))]


def test_an_alias_of_a_hub_id_is_downloaded_under_the_id(hub, make: Callable[..., Path]):
    hub.add("Qwen/Qwen3-Embedding-0.6B", make())
    models = {"Qwen/Qwen3-Embedding": "Qwen/Qwen3-Embedding-0.6B"}
    checkpoint = resolve("Qwen/Qwen3-Embedding", models=models)
    assert (checkpoint.requested, checkpoint.name) == ("Qwen/Qwen3-Embedding", "Qwen/Qwen3-Embedding-0.6B")


def test_a_second_load_asks_the_hub_nothing(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(files=PIPELINE))
    first = resolve("owner/model", models={})
    asked = len(hub.requests)
    second = resolve("owner/model", models={})
    assert (second.source, second.folder) == ("cache", first.folder)
    assert len(hub.requests) == asked


def test_a_model_with_a_package_comes_from_the_hub_when_the_package_is_absent(hub, make: Callable[..., Path]):
    hub.add("owner/model", make())
    models = {"short": "owner/model", "owner/model": "no_such_package_here:model"}
    checkpoint = resolve("short", models=models)
    assert (checkpoint.source, checkpoint.name) == ("hub", "owner/model")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_in_the_middle_of_a_file_is_taken_up_again(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, reset: bool
):
    # The client keeps whole chunks only, of 10 MB each.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    tensors = {"a.weight": np.arange(250_000, dtype=np.float32)}
    hub.add("owner/model", make(tensors=tensors))
    hub.cut["model.safetensors"] = [350_000]
    hub.reset = reset
    checkpoint = resolve("owner/model", models={})
    size = (checkpoint.folder / "model.safetensors").stat().st_size
    assert size == 1_000_000 + checkpoint_overhead(checkpoint.folder / "model.safetensors")
    assert checkpoint.tensors["a.weight"].nbytes == 1_000_000
    if not reset:
        # The rest alone was sent, not the file again.
        assert hub.ranges == [("model.safetensors", "bytes=300000-")]
        assert hub.served["model.safetensors"] == size + 50_000


def checkpoint_overhead(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_files_that_arrived_before_a_failure_are_not_sent_again(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(shards=2))
    last = "model-00002-of-00002.safetensors"
    hub.broken[last] = 403
    with pytest.raises(ModelNotFound, match="403"):
        resolve("owner/model", models={})
    hub.broken.clear()
    arrived = dict(hub.served)
    assert len(resolve("owner/model", models={}).tensors) == 4
    assert {name for name in hub.served if hub.served[name] != arrived.get(name)} == {last}


def test_an_incomplete_snapshot_is_completed(hub, make: Callable[..., Path]):
    hub.add("owner/model", make(files=PIPELINE))
    first = resolve("owner/model", models={})
    (first.folder / "1_Pooling" / "config.json").unlink()
    again = resolve("owner/model", models={})
    assert again.source == "hub"
    assert again.json("1_Pooling/config.json") == PIPELINE["1_Pooling/config.json"]


def test_a_snapshot_of_another_program_is_completed_with_its_pipeline(hub, make: Callable[..., Path]):
    from huggingface_hub import hf_hub_download

    hub.add("owner/model", make(files=PIPELINE))
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        hf_hub_download("owner/model", name, endpoint=hub.endpoint, cache_dir=str(Path(hub_cache())))
    checkpoint = resolve("owner/model", models={})
    assert checkpoint.json("1_Pooling/config.json") == PIPELINE["1_Pooling/config.json"]


def hub_cache() -> Path:
    from archport.checkpoint.hub import cache_folder

    return cache_folder()


def test_a_snapshot_of_another_program_is_used_with_a_warning_when_the_hub_is_gone(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from huggingface_hub import hf_hub_download

    hub.add("owner/model", make(files=PIPELINE))
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("owner/model", name, endpoint=hub.endpoint, cache_dir=str(hub_cache()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("owner/model", models={}).source == "cache"
    assert "another program" in caplog.text


def test_a_gated_model_says_how_to_get_access(hub, make: Callable[..., Path]):
    hub.add("google/gated", make())
    hub.gated["google/gated"] = "hf_right"
    with pytest.raises(ModelNotFound, match=r"gated(.|\n)*Accept it at http://127\S+/google/gated(.|\n)*HF_TOKEN"):
        resolve("google/gated", models={})


def test_the_token_of_the_environment_opens_a_gated_model(
    hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    hub.add("google/gated", make())
    hub.gated["google/gated"] = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert resolve("google/gated", models={}).source == "hub"
    assert tokens(hub) == {"Bearer hf_right"}


def test_a_token_that_is_not_valid_is_said(hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    hub.add("owner/model", make())
    hub.bad_tokens = {"hf_old"}
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(ModelNotFound, match=r"asked with the token in HF_TOKEN(.|\n)*Check that HF_TOKEN is valid"):
        resolve("owner/model", models={})


@pytest.mark.parametrize("status", [403, 500])
def test_other_refusals_of_the_hub_name_the_status(hub, make: Callable[..., Path], status: int):
    hub.add("owner/model", make())
    hub.statuses["owner/model"] = status
    with pytest.raises(ModelNotFound, match=str(status)):
        resolve("owner/model", models={})


@pytest.mark.parametrize("status", [401, 404])
def test_an_unknown_repository_lists_what_was_tried_and_near_matches(hub, status: int):
    if status == 404:
        hub.statuses["Qwen/Qwen3-Embeding"] = 404
    with pytest.raises(ModelNotFound) as caught:
        resolve("Qwen/Qwen3-Embeding", models={"Qwen/Qwen3-Embedding": "Qwen/Qwen3-Embedding-0.6B"})
    message = str(caught.value)
    assert "knows no model 'Qwen/Qwen3-Embeding'" in message
    assert "tried: folder Qwen/Qwen3-Embeding (absent); hub cache" in message
    assert "did you mean: Qwen/Qwen3-Embedding" in message


def test_cached_repositories_are_near_matches_too(hub, make: Callable[..., Path]):
    hub.add("owner/some-model", make())
    resolve("owner/some-model", models={})
    with pytest.raises(ModelNotFound, match="did you mean: owner/some-model"):
        resolve("owner/some-modle", models={})


def test_an_unknown_revision_is_named(hub, make: Callable[..., Path]):
    hub.add("owner/model", make())
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        resolve("owner/model", models={}, revision="v9")


def test_a_commit_is_a_revision(hub, make: Callable[..., Path]):
    hub.add("owner/model", make())
    commit = hub.commit("owner/model")
    assert resolve("owner/model", models={}, revision=commit).revision == commit
    assert resolve("owner/model", models={}, revision=commit).source == "cache"


def test_a_repository_with_pickles_only_says_so_and_downloads_nothing(hub, make: Callable[..., Path]):
    hub.add("BAAI/pickled", make(tensors={}, files={"pytorch_model.bin": b"\x80\x04"}))
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin(.|\n)*safe_serialization"):
        resolve("BAAI/pickled", models={})
    assert hub.asked_for() == set()


def test_no_network_is_said_with_the_address(no_hub: str):
    with pytest.raises(ModelNotFound, match=f"{no_hub} can't be reached"):
        resolve("owner/model", models={})


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aim_hub_client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        aim_hub_client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("archport.checkpoint.hub._TIMEOUT", 0.2)
        with pytest.raises(ModelNotFound, match="can't be reached \\(ReadTimeout"):
            resolve("owner/model", models={})


def test_a_connection_that_keeps_breaking_is_given_up(hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("owner/model", make())
    hub.cut["model.safetensors"] = [10] * 100
    with pytest.raises(ModelNotFound, match="can't be reached"):
        resolve("owner/model", models={})


def test_a_cache_that_can_not_be_written_is_said_with_its_place(
    hub, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.add("owner/model", make())
    (tmp_path / "occupied").write_text("a file where the cache should be")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(ModelNotFound, match=r"can't be stored in the cache .*occupied(.|\n)*set HF_HOME"):
        resolve("owner/model", models={})


def test_a_dense_module_that_is_only_a_pickle_is_refused_before_its_weights_are_fetched(hub, make: Callable[..., Path]):
    files = {name: value for name, value in PIPELINE.items() if name != "2_Dense/model.safetensors"}
    hub.add("owner/model", make(files={**files, "2_Dense/pytorch_model.bin": b"\x80\x04"}))
    with pytest.raises(CheckpointError, match=r"only 2_Dense/pytorch_model\.bin"):
        resolve("owner/model", models={})
    assert "model.safetensors" not in hub.asked_for()


def test_a_cached_model_loads_without_a_network(hub, make: Callable[..., Path], aim_hub_client):
    hub.add("owner/model", make())
    resolve("owner/model", models={})
    # Nobody listens on the discard port.
    aim_hub_client("http://127.0.0.1:9")
    assert resolve("owner/model", models={}).source == "cache"


def test_offline_with_a_cached_model_loads_it(hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    hub.add("owner/model", make())
    resolve("owner/model", models={})
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("owner/model", models={}).source == "cache"
    assert len(hub.requests) == asked


def test_offline_without_a_cached_model_asks_nobody(hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids"):
        resolve("owner/model", models={})
    assert hub.requests == []


def test_no_bar_is_drawn_away_from_a_terminal(hub, make: Callable[..., Path], capfd: pytest.CaptureFixture[str]):
    hub.add("owner/model", make())
    resolve("owner/model", models={})
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_drawn_when_asked_for(hub, make: Callable[..., Path], capfd: pytest.CaptureFixture[str]):
    hub.add("owner/model", make())
    resolve("owner/model", models={}, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "%" in err


def test_an_index_that_leaves_the_folder_is_refused(hub, make: Callable[..., Path]):
    folder = make(shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../../etc/passwd"}}))
    hub.add("owner/model", folder)
    with pytest.raises(CheckpointError, match="passwd"):
        resolve("owner/model", models={})
    assert not [name for name in hub.asked_for() if "passwd" in name]


def test_resolving_runs_no_code_of_the_model(hub, make: Callable[..., Path]):
    config = {"model_type": "custom", "auto_map": {"AutoModel": "modeling_custom.Model"}}
    hub.add("owner/model", make(config=config, files={"modeling_custom.py": "raise SystemExit"}))
    resolve("owner/model", models={})
    assert "modeling_custom" not in sys.modules
    assert "modeling_custom.py" not in hub.asked_for()
