"""LoRA adapters by their files: what is refused and in which words, which weight a name means, what is added to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from archport.checkpoint import Checkpoint, resolve
from archport.checkpoint.adapter_files import read_adapter
from archport.checkpoint.adapting import merged
from archport.checkpoint.weights import load_arrays
from archport.contract.errors import CheckpointError, InputError, ModelNotFound

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": "base", "task_type": None}
Adapters = Callable[..., Path]


def factors(out: int = 8, inner: int = 8, rank: int = 2, seed: int = 0, **kinds: str) -> dict[str, np.ndarray]:
    """Both factors of one module, by PEFT's words for them."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, inner)), rng.standard_normal((out, rank))
    return {"lora_A.weight": a.astype(np.float32), "lora_B.weight": b.astype(np.float32)}


def named(path: str, pair: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"base_model.model.{path}.{name}": array for name, array in pair.items()}


@pytest.fixture
def adapter(tmp_path: Path, put: Callable[[Path, Any], None]) -> Adapters:
    """Write an adapter: `adapter(tensors=, name=, **settings)`; a setting of ... is left out."""

    def build(tensors: Mapping[str, np.ndarray] | None = None, name: str = "adapter", **settings: Any) -> Path:
        folder = tmp_path / name
        stated = {key: value for key, value in {**SETTINGS, **settings}.items() if value is not ...}
        put(folder / "adapter_config.json", stated)
        save_file(
            dict(named("layer.0", factors()) if tensors is None else tensors), folder / "adapter_model.safetensors"
        )
        return folder

    return build


def opened(base: Path, adapter: Path) -> Checkpoint:
    return resolve(base, models={}, adapter=adapter)


def weights(checkpoint: Checkpoint, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The checkpoint's tensors with its adapter in them."""
    assert checkpoint.adapted is not None
    stored = {}
    for file in {info.file for info in checkpoint.stored_tensors.values()}:
        stored |= load_arrays(checkpoint.weights_folder / file)
    own = load_arrays(checkpoint.adapted.adapter.folder / "adapter_model.safetensors")
    return {name: np.array(array) for name, array in merged(checkpoint.adapted, stored, own, dtype).items()}


def base_tensors(prefix: str = "", **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = shapes or {"layer.0.weight": (8, 8), "layer.0.bias": (8,), "layer.1.weight": (8, 12)}
    return {f"{prefix}{name}": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"0": 6}}, 3),
        ({"alpha_pattern": {"layer.0": 6}}, 3),
        ({"alpha_pattern": {r"layer\.\d": 6}}, 3),
        ({"alpha_pattern": {"ayer.0": 6}}, 4),
        ({"alpha_pattern": {"layer": 6}}, 4),
        ({"alpha_pattern": {"1": 2, ".*0": 6}}, 3),
        ({"r": 16, "rank_pattern": {"layer.0": 2}}, 4),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.5, "target_modules": ["0"], "fan_in_fan_out": None}, 4),
    ],
)
def test_what_is_added_is_the_product_times_alpha_over_rank(
    make: Callable[..., Path], adapter: Adapters, settings: dict[str, Any], scale: float
):
    base, pair = base_tensors(), factors()
    got = weights(opened(make(tensors=base), adapter(**settings)))
    wanted = base["layer.0.weight"] + scale * pair["lora_B.weight"] @ pair["lora_A.weight"]
    np.testing.assert_allclose(got["layer.0.weight"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got["layer.1.weight"], base["layer.1.weight"])


@pytest.mark.parametrize(
    ("stored", "module"),
    [
        ("", "layer.0"),
        ("bert.", "layer.0"),
        ("", "bert.layer.0"),
        ("model.", "model.layer.0"),
        ("language_model.model.", "model.language_model.layer.0"),
        ("model.language_model.", "language_model.layer.0"),
    ],
)
def test_a_module_is_found_whatever_trunk_or_model_was_saved(
    make: Callable[..., Path], adapter: Adapters, stored: str, module: str
):
    checkpoint = opened(make(tensors=base_tensors(stored)), adapter(named(module, factors())))
    assert checkpoint.adapted is not None
    assert list(checkpoint.adapted.terms) == [f"{stored}layer.0.weight"]


def test_what_an_adapter_stores_whole_takes_the_base_s_place_before_it_is_added_to(
    make: Callable[..., Path], adapter: Adapters
):
    pair, own = factors(), np.full((8, 8), 3, np.float32)
    tensors = {**named("layer.0", pair), "base_model.model.layer.0.base_layer.weight": own}
    got = weights(opened(make(tensors=base_tensors()), adapter(tensors)))["layer.0.weight"]
    np.testing.assert_allclose(got, own + 4 * pair["lora_B.weight"] @ pair["lora_A.weight"], rtol=1e-5, atol=1e-5)


def test_a_matrix_stored_turned_gets_what_is_added_turned(make: Callable[..., Path], adapter: Adapters):
    base, pair = base_tensors(), factors(out=12, inner=8)
    checkpoint = opened(make(tensors=base), adapter(named("layer.1", pair), fan_in_fan_out=True))
    wanted = base["layer.1.weight"] + 4 * (pair["lora_B.weight"] @ pair["lora_A.weight"]).T
    np.testing.assert_allclose(weights(checkpoint)["layer.1.weight"], wanted, rtol=1e-5, atol=1e-5)


def test_a_filter_gets_what_is_added_in_its_own_shape(make: Callable[..., Path], adapter: Adapters):
    base = base_tensors(**{"conv.weight": (6, 3, 2, 2)})
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 3, 2, 2)).astype("f4"), rng.standard_normal((6, 2, 1, 1)).astype("f4")
    checkpoint = opened(
        make(tensors=base), adapter(named("conv", {"lora_A.weight": a, "lora_B.weight": b}), lora_alpha=2)
    )
    wanted = base["conv.weight"] + np.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
    np.testing.assert_allclose(weights(checkpoint)["conv.weight"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type='IA3'; archport runs LORA adapters"),
        ({"peft_type": ...}, r"peft_type=None"),
        ({"use_dora": True}, r"use_dora=True: DoRA scales .* merge_and_unload"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights='pissa_niter_4' changes the base"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\], which archport does not obey"),
        ({"target_parameters": ["experts.down_proj"]}, r"target_parameters="),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\]"),
        ({"somewhat_new": 0.5}, r"somewhat_new=0.5, which archport does not obey"),
        ({"r": 4}, r"have rank 2; r and rank_pattern say 4"),
        ({"lora_alpha": "8"}, r"lora_alpha='8'; expected a number"),
        ({"alpha_pattern": {"q": None}}, r"alpha_pattern\['q'\]=None"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\]; expected names"),
        ({"alpha_pattern": {"(a+)+": 1}}, r"at most 3 repetitions, none of them of a group"),
        ({"alpha_pattern": {"a*a*a*a*": 1}}, r"at most 3 repetitions"),
        ({"alpha_pattern": {"[": 1}}, r"which is no pattern"),
        ({"modules_to_save": "classifier"}, r"modules_to_save='classifier'; expected a list"),
        ({"base_model_name_or_path": 7}, r"base_model_name_or_path=7; expected a text"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(adapter: Adapters, settings: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_adapter(adapter(**settings), "it")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensor"),
        ({"layer.0.lora_A.weight": (2, 8)}, r"layer\.0 has no lora_B"),
        ({"layer.0.lora_A.weight": (2, 8), "layer.0.lora_B.weight": (8, 3)}, r"\(2, 8\) and \(8, 3\)"),
        ({"layer.0.lora_A.weight": (2,), "layer.0.lora_B.weight": (8, 2)}, r"\(2,\) and \(8, 2\)"),
        ({"layer.0.lora_magnitude_vector": (8,)}, "no tensor of plain LoRA"),
        ({"x" * 300: (1,)}, "has 317 characters"),
    ],
)
def test_tensors_that_are_no_factors_are_refused(adapter: Adapters, tensors: dict[str, tuple[int, ...]], message: str):
    stored = {f"base_model.model.{name}": np.zeros(shape, np.float32) for name, shape in tensors.items()}
    with pytest.raises(CheckpointError, match=message):
        read_adapter(adapter(stored), "it")


def test_another_base_is_refused_with_every_module_that_does_not_fit(make: Callable[..., Path], adapter: Adapters):
    tensors = {**named("layer.0", factors(out=4)), **named("layer.7", factors()), **named("layer.1", factors(8, 12))}
    with pytest.raises(CheckpointError) as caught:
        opened(make(tensors=base_tensors()), adapter(tensors))
    said = str(caught.value)
    assert "does not fit" in said
    assert "(2 of 3 modules)" in said
    assert "trained on 'base'" in said
    assert "no such weight (1): layer.7" in said
    assert "layer.0 adds (4, 8) to (8, 8)" in said


def test_a_pooler_that_the_base_does_not_store_is_passed_over(make: Callable[..., Path], adapter: Adapters):
    pooler = {**named("pooler.dense", factors()), "base_model.model.pooler.dense.bias": np.zeros(8, np.float32)}
    checkpoint = opened(make(tensors=base_tensors()), adapter({**named("layer.0", factors()), **pooler}))
    assert checkpoint.adapted is not None
    assert list(checkpoint.adapted.terms) == ["layer.0.weight"]
    assert checkpoint.tensors.keys() == checkpoint.stored_tensors.keys()


def test_a_name_that_may_be_two_weights_is_refused(make: Callable[..., Path], adapter: Adapters):
    base = {**base_tensors("text."), **base_tensors("vision.")}
    with pytest.raises(CheckpointError, match=r"layer\.0\.weight may be each of text\.layer\.0\.weight, vision"):
        opened(make(tensors=base), adapter())


@pytest.mark.parametrize("file", ["adapter_model.bin", None])
def test_an_adapter_without_safetensors_is_refused(adapter: Adapters, file: str | None):
    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    if file is not None:
        (folder / file).write_bytes(b"\x80\x04pickle")
    wanted = r"save_file\(torch\.load\('adapter_model\.bin', weights_only=True\)" if file else "is missing"
    with pytest.raises(CheckpointError, match=wanted):
        read_adapter(folder, "it")


def test_damaged_weights_are_refused(adapter: Adapters):
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        read_adapter(folder, "it")


def test_a_link_out_of_the_adapter_is_not_followed(adapter: Adapters, tmp_path: Path):
    folder = adapter()
    (folder / "adapter_model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        read_adapter(folder, "it")


def test_an_adapter_alone_leads_to_its_base(make: Callable[..., Path], adapter: Adapters):
    base = make("base")
    checkpoint = resolve(adapter(base_model_name_or_path=str(base)), models={})
    assert (checkpoint.folder, checkpoint.weights_folder, checkpoint.name) == (base, base, checkpoint.name)
    assert checkpoint.name.endswith("adapter")
    assert checkpoint.adapted is not None
    assert checkpoint.adapter is None


def test_its_own_pipeline_goes_before_the_base_s(
    make: Callable[..., Path], adapter: Adapters, put: Callable[[Path, Any], None]
):
    base = make("base", files={"generation_config.json": {"eos_token_id": 3}})
    folder = adapter(base_model_name_or_path=str(base))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    put(folder / "modules.json", modules)
    checkpoint = resolve(folder, models={})
    assert (checkpoint.folder, checkpoint.weights_folder) == (folder, base)
    assert checkpoint.modules == ("Transformer",)
    assert checkpoint.json("generation_config.json") == {"eos_token_id": 3}
    assert checkpoint.token_id("hello") == 5


def test_base_weights_next_to_an_adapter_are_its_base(make: Callable[..., Path], adapter: Adapters):
    folder = adapter(base_model_name_or_path="nobody/nothing", name="model-with-adapter")
    whole = make("other")
    for file in ("config.json", "model.safetensors", "vocab.txt"):
        (folder / file).write_bytes((whole / file).read_bytes())
    checkpoint = resolve(folder, models={})
    assert checkpoint.folder == folder
    assert checkpoint.adapted is not None


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        (None, CheckpointError, "names no base"),
        ("/nowhere/at/all", ModelNotFound, r"its base .* there is no folder /nowhere/at/all(.|\n)*engine\.load\(BASE"),
        ("\0", ModelNotFound, "its base"),
    ],
)
def test_a_base_that_is_not_to_be_had_is_named(
    adapter: Adapters, base: str | None, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        resolve(adapter(base_model_name_or_path=base), models={})


def test_an_adapter_of_an_adapter_is_refused(make: Callable[..., Path], adapter: Adapters):
    inner = adapter(name="inner", base_model_name_or_path=str(make("base")))
    outer = adapter(name="outer", base_model_name_or_path=str(inner))
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        resolve(outer, models={})
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        resolve(inner, models={}, adapter=outer)


def test_a_folder_that_is_no_adapter_is_refused(make: Callable[..., Path]):
    with pytest.raises(CheckpointError, match=r"there is no adapter_config\.json, so this is not an adapter"):
        opened(make("base"), make("other"))


@pytest.mark.parametrize("name", [7, "", "a\0b"])
def test_an_adapter_s_name_that_can_be_none_is_refused(make: Callable[..., Path], name: Any):
    with pytest.raises(InputError, match="adapter"):
        opened(make(), name)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_on_the_hub_brings_its_base(hub: Any, make: Callable[..., Path], adapter: Adapters, *, whole: bool):
    hub.add("owner/base", make("base"))
    hub.add("owner/adapter", adapter(base_model_name_or_path="owner/base"))
    first, again = (resolve("owner/adapter", models={}, weights=whole) for _ in range(2))
    assert (first.name, first.source, first.revision) == ("owner/adapter", "hub", hub.commit("owner/adapter"))
    assert again.source == ("cache" if whole else "hub")
    for checkpoint in (first, again):
        assert checkpoint.adapted is not None
        assert checkpoint.tensors["layer.0.weight"].shape == (8, 8)


def test_an_adapter_on_the_hub_joins_a_base_of_this_machine(hub: Any, make: Callable[..., Path], adapter: Adapters):
    hub.add("owner/adapter", adapter())
    checkpoint = opened(make("base"), "owner/adapter")
    assert checkpoint.source == "folder"
    assert checkpoint.adapter == "owner/adapter"
    assert weights(checkpoint)["layer.0.weight"].shape == (8, 8)


def test_a_pickled_adapter_on_the_hub_is_refused_before_it_is_fetched(hub: Any, adapter: Adapters):
    folder = adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    hub.add("owner/adapter", folder)
    with pytest.raises(CheckpointError, match=r"adapter's weights are only adapter_model\.bin"):
        resolve("owner/adapter", models={})
