"""Pipeline files of old and new sentence-transformers saves, and the documented defaults without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save as serialise

from archport.checkpoint import Checkpoint, load_dense, read_head, read_inputs
from archport.contract.errors import CheckpointError
from archport.contract.heads import Dense, EmbeddingHead
from archport.contract.inputs import TextInputs

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules.pooling."


def modules(*kinds: str, prefix: str = OLD) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": "" if kind == "Transformer" else f"{i}_{kind}", "type": f"{prefix}{kind}"}
        for i, kind in enumerate(kinds)
    ]


def pipeline(*kinds: str, prefix: str = OLD, **configs: Any) -> dict[str, Any]:
    files: dict[str, Any] = {"modules.json": modules(*kinds, prefix=prefix)}
    for i, kind in enumerate(kinds):
        if kind in configs:
            files[f"{i}_{kind}/config.json"] = configs[kind]
    return files


def head(opened: Callable[..., Checkpoint], *kinds: str, **configs: Any) -> EmbeddingHead:
    return read_head(opened(files=pipeline(*kinds, **configs)))


FLAGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}
NAMES = dict(
    zip(["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"], FLAGS.values(), strict=True)
)


@pytest.mark.parametrize(("flag", "mode"), FLAGS.items())
def test_each_old_pooling_flag_is_a_mode(opened: Callable[..., Checkpoint], flag: str, mode: str):
    flags = {f"pooling_mode_{name}": name == flag for name in FLAGS}
    assert head(opened, "Transformer", "Pooling", Pooling=flags).pooling == (mode,)


@pytest.mark.parametrize(("name", "mode"), NAMES.items())
def test_each_new_pooling_name_is_a_mode(opened: Callable[..., Checkpoint], name: str, mode: str):
    assert head(opened, "Transformer", "Pooling", Pooling={"pooling_mode": name}).pooling == (mode,)


def test_several_old_flags_are_concatenated_in_the_fixed_order(opened: Callable[..., Checkpoint]):
    flags = {f"pooling_mode_{name}": True for name in reversed(FLAGS)}
    assert head(opened, "Transformer", "Pooling", Pooling=flags).pooling == tuple(FLAGS.values())


def test_a_new_list_is_concatenated_in_its_own_order(opened: Callable[..., Checkpoint]):
    config = {"pooling_mode": ["mean", "cls"], "pooling_mode_max_tokens": True}
    assert head(opened, "Transformer", "Pooling", Pooling=config).pooling == ("mean", "cls")


def test_flags_that_are_all_false_mean_the_mean(opened: Callable[..., Checkpoint]):
    assert head(opened, "Transformer", "Pooling", Pooling={"pooling_mode_cls_token": False}).pooling == ("mean",)


@pytest.mark.parametrize(
    "config", [{"pooling_mode": "median"}, {"pooling_mode": []}, {"pooling_mode_rms_tokens": True}]
)
def test_an_unknown_pooling_mode_is_an_error(opened: Callable[..., Checkpoint], config):
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json asks for pooling"):
        head(opened, "Transformer", "Pooling", Pooling=config)


@pytest.mark.parametrize("stated", [True, False])
def test_prompt_tokens_can_be_left_out_of_pooling(opened: Callable[..., Checkpoint], stated: bool):
    config = {"pooling_mode": "mean", "include_prompt": stated}
    assert head(opened, "Transformer", "Pooling", Pooling=config).include_prompt is stated


def test_a_normalize_module_needs_no_folder(opened: Callable[..., Checkpoint]):
    assert head(opened, "Transformer", "Pooling", "Normalize", Pooling={}).normalize
    assert not read_head(opened("other", files=pipeline("Transformer", "Pooling", Pooling={}))).normalize


def test_module_types_of_any_package_path_are_known(opened: Callable[..., Checkpoint]):
    assert head(opened, "Transformer", "Pooling", prefix=NEW, Pooling={}).pooling == ("mean",)


def test_modules_run_in_the_order_of_the_list_whatever_their_index(opened: Callable[..., Checkpoint]):
    files = pipeline("Transformer", "Pooling", "Dense", "Normalize", Pooling={}, Dense=DENSE)
    for entry, index in zip(files["modules.json"], (0, 1, 3, 2), strict=True):
        entry["idx"] = index
    found = read_head(opened(files=files))
    assert found.normalize
    assert not found.dense[0].unit_input


DENSE = {"in_features": 8, "out_features": 4}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DENSE, Dense("2_Dense", 8, 4, True, "tanh", False)),
        (
            {**DENSE, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"},
            Dense("2_Dense", 8, 4, False, "identity", False),
        ),
        ({**DENSE, "activation_function": "torch.nn.modules.activation.GELU"}, Dense("2_Dense", 8, 4, True, "gelu")),
        ({**DENSE, "activation_function": None}, Dense("2_Dense", 8, 4, True, "identity")),
        ({**DENSE, "out_features": 8, "use_residual": True}, Dense("2_Dense", 8, 8, True, "tanh", True)),
        ({**DENSE, "use_residual": True}, Dense("2_Dense", 8, 4, True, "tanh", True)),
        ({**DENSE, "module_input_name": "sentence_embedding"}, Dense("2_Dense", 8, 4)),
    ],
)
def test_dense_modules_say_sizes_bias_and_activation(opened: Callable[..., Checkpoint], config, expected: Dense):
    assert head(opened, "Transformer", "Pooling", "Dense", Pooling={}, Dense=config).dense == (expected,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**DENSE, "activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU"),
        ({**DENSE, "activation_function": "my_code.Tanh"}, "my_code"),
        ({"in_features": 8}, "out_features=None"),
        ({**DENSE, "module_input_name": "token_embeddings"}, "pooled vectors only"),
    ],
)
def test_a_dense_module_that_archport_can_not_run_is_an_error(opened: Callable[..., Checkpoint], config, message: str):
    with pytest.raises(CheckpointError, match=message):
        head(opened, "Transformer", "Pooling", "Dense", Pooling={}, Dense=config)


@pytest.mark.parametrize("kind", ["WeightedLayerPooling", "LSTM", "Asym", "LayerNorm", "MyModule"])
def test_an_unknown_module_is_an_error(opened: Callable[..., Checkpoint], kind: str):
    with pytest.raises(CheckpointError, match=f"{kind}', which archport does not know"):
        head(opened, "Transformer", "Pooling", kind, Pooling={})


def test_dropout_changes_nothing(opened: Callable[..., Checkpoint]):
    assert head(opened, "Transformer", "Pooling", "Dropout", Pooling={}).pooling == ("mean",)


def test_a_dense_module_before_there_is_a_vector_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="Dense before Pooling"):
        head(opened, "Transformer", "Dense", "Pooling", Pooling={}, Dense=DENSE)


@pytest.mark.parametrize(
    ("kinds", "unit_inputs", "normalize"),
    [
        (("Pooling", "Normalize", "Dense"), (True,), False),
        (("Pooling", "Normalize", "Dense", "Normalize"), (True,), True),
        (("Pooling", "Normalize", "Normalize"), (), True),
        (("Pooling", "Dense", "Normalize", "Dense"), (False, True), False),
        # Without a vector there is nothing to scale.
        (("Normalize", "Pooling"), (), False),
        # It pools again from the tokens.
        (("Pooling", "Dense", "Normalize", "Pooling"), (), False),
    ],
)
def test_modules_run_in_any_order_that_the_reference_runs(
    opened: Callable[..., Checkpoint], kinds: tuple[str, ...], unit_inputs: tuple[bool, ...], normalize: bool
):
    found = head(opened, "Transformer", *kinds, Pooling={}, Dense=DENSE)
    assert tuple(dense.unit_input for dense in found.dense) == unit_inputs
    assert found.normalize is normalize


@pytest.mark.parametrize("kind", ["Dense", "Normalize"])
def test_a_module_of_token_vectors_is_an_error(opened: Callable[..., Checkpoint], kind: str):
    config = {**DENSE, "module_input_name": "token_embeddings"}
    with pytest.raises(CheckpointError, match="pooled vectors only"):
        head(opened, "Transformer", "Pooling", kind, Pooling={}, **{kind: config})


def test_a_pipeline_without_pooling_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="no Pooling module"):
        head(opened, "Transformer")


def test_a_module_without_its_config_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json is missing"):
        head(opened, "Transformer", "Pooling")


@pytest.mark.parametrize("value", [{}, [1], [{"type": "x"}], [{"type": "x", "path": "../up"}]])
def test_a_malformed_module_list_is_an_error(opened: Callable[..., Checkpoint], value):
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_head(opened(files={"modules.json": value}))


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "last"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "mean"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "mean"),
        ({"model_type": "x"}, "mean"),
    ],
)
def test_without_a_pipeline_the_documented_default_applies(opened: Callable[..., Checkpoint], config, mode: str):
    found = read_head(opened(config=config))
    assert (found.pooling, found.normalize, found.dense) == ((mode,), False, ())
    assert found.source.startswith("default")


def saved(settings: Any) -> dict[str, Any]:
    """A pipeline with these settings."""
    return {**pipeline("Transformer", "Pooling", Pooling={}), "config_sentence_transformers.json": settings}


@pytest.mark.parametrize(("stated", "expected"), [("dot", "dot"), ("cosine", "cosine"), (None, "cosine")])
def test_similarity_and_dimensions_are_read(opened: Callable[..., Checkpoint], stated, expected: str):
    settings = {"similarity_fn_name": stated, "truncate_dim": 64}
    found = read_head(opened(files=saved(settings)))
    assert (found.similarity, found.dimensions) == (expected, 64)


@pytest.mark.parametrize("settings", [{"similarity_fn_name": "maxsim"}, {"truncate_dim": 0}, {"truncate_dim": "64"}])
def test_a_similarity_or_dimension_that_is_none_is_an_error(opened: Callable[..., Checkpoint], settings):
    with pytest.raises(CheckpointError, match=r"similarity_fn_name|truncate_dim"):
        read_head(opened(files=saved(settings)))


def inputs(opened: Callable[..., Checkpoint], **files: Any) -> TextInputs:
    names = {
        "st": "config_sentence_transformers.json",
        "bert": "sentence_bert_config.json",
        "roberta": "sentence_roberta_config.json",
        "tokenizer": "tokenizer_config.json",
    }
    stored = {names[key]: value for key, value in files.items()}
    return read_inputs(opened(files={**pipeline("Transformer", "Pooling", Pooling={}), **stored}))


def test_without_files_there_is_no_limit_and_no_prompt(opened: Callable[..., Checkpoint]):
    assert inputs(opened) == TextInputs()


def test_without_a_pipeline_its_settings_do_not_count(opened: Callable[..., Checkpoint]):
    stored = {"prompts": {"query": "q: "}, "similarity_fn_name": "dot"}
    files = {"config_sentence_transformers.json": stored, "sentence_bert_config.json": {"max_seq_length": 16}}
    checkpoint = opened(files=files)
    assert read_inputs(checkpoint) == TextInputs()
    assert checkpoint.stored_head().similarity == "cosine"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"bert": {"max_seq_length": 256}, "tokenizer": {"model_max_length": 512}}, 256),
        ({"bert": {"max_seq_length": None}, "tokenizer": {"model_max_length": 512}}, 512),
        ({"roberta": {"max_seq_length": 128}}, 128),
        ({"tokenizer": {"model_max_length": 8192}}, 8192),
        ({"tokenizer": {"model_max_length": 1000000000000000019884624838656}}, None),
        ({"tokenizer": {"model_max_length": 1e30}}, None),
        ({"bert": {"processing_kwargs": {"text": {"max_length": 77}}}, "tokenizer": {"model_max_length": 512}}, 77),
        ({"bert": {"max_seq_length": 16, "processing_kwargs": {"text": {"max_length": 77}}}}, 77),
        ({"bert": {"processing_kwargs": {"text": {"max_length": 77}, "common": {"max_length": 33}}}}, 33),
        ({"bert": {"max_seq_length": 16, "processing_kwargs": {"text": {"truncation": False}}}}, None),
        ({"bert": {"max_seq_length": 16, "tokenizer_args": {"model_max_length": 32}}}, 32),
        ({"bert": {"processor_kwargs": {"model_max_length": 32}}, "tokenizer": {"model_max_length": 512}}, 32),
        ({"tokenizer": {"max_len": 48}}, 48),
    ],
)
def test_the_length_limit_is_the_pipelines_else_the_tokenizers(opened: Callable[..., Checkpoint], files, limit):
    assert inputs(opened, **files).max_tokens == limit


@pytest.mark.parametrize("value", [0, -1, "512", 1.5, True, float("nan")])
def test_a_length_limit_that_is_none_is_an_error(opened: Callable[..., Checkpoint], value):
    with pytest.raises(CheckpointError, match="max_seq_length"):
        inputs(opened, bert={"max_seq_length": value})


def test_old_lower_casing_is_read(opened: Callable[..., Checkpoint]):
    assert inputs(opened, bert={"do_lower_case": True}).lowercase


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, "query", "document"),
        ({"query": "q: ", "passage": "p: "}, "query", None),
        ({"corpus": "c: "}, None, None),
        ({"web": "w: "}, None, None),
        ({"query": "", "document": ""}, "query", "document"),
    ],
)
def test_prompts_for_queries_and_documents_go_by_name(
    opened: Callable[..., Checkpoint], prompts: dict[str, str], query: str | None, document: str | None
):
    found = inputs(opened, st={"prompts": prompts, "default_prompt_name": None})
    assert (found.prompts, found.query_prompt, found.document_prompt) == (prompts, query, document)


def test_the_default_prompt_is_read(opened: Callable[..., Checkpoint]):
    assert inputs(opened, st={"prompts": {"a": "x"}, "default_prompt_name": "a"}).default_prompt == "a"


@pytest.mark.parametrize(
    "settings", [{"prompts": {"a": "x"}, "default_prompt_name": "b"}, {"prompts": ["x"]}, {"prompts": {"a": 1}}]
)
def test_prompts_that_do_not_fit_are_an_error(opened: Callable[..., Checkpoint], settings):
    with pytest.raises(CheckpointError, match="prompt"):
        inputs(opened, st=settings)


def with_dense(opened: Callable[..., Checkpoint], dense: Any, **kwargs: Any) -> Checkpoint:
    files = pipeline("Transformer", "Pooling", "Dense", Pooling={}, Dense=DENSE)
    if dense is not None:
        files["2_Dense/model.safetensors"] = serialise(dense)
    return opened(files=files, **kwargs)


WEIGHT = np.arange(32, dtype=np.float32).reshape(4, 8)
BIAS = np.ones(4, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "checkpoint"])
def test_a_dense_module_gives_its_matrix_and_bias(opened: Callable[..., Checkpoint], dtype):
    checkpoint = with_dense(opened, {"linear.weight": WEIGHT, "linear.bias": BIAS})
    weight, bias = load_dense(checkpoint, read_head(checkpoint).dense[0], dtype)
    assert bias is not None
    assert weight.dtype == (mx.float32 if dtype == "checkpoint" else getattr(mx, dtype))
    assert mx.array_equal(weight, mx.array(WEIGHT).astype(weight.dtype))
    assert mx.array_equal(bias, mx.array(BIAS).astype(weight.dtype))


def test_a_dense_module_without_bias_has_none(opened: Callable[..., Checkpoint]):
    checkpoint = with_dense(opened, {"linear.weight": WEIGHT})
    assert load_dense(checkpoint, Dense("2_Dense", 8, 4, bias=False), "float32")[1] is None


PROJECTED = Dense("2_Dense", 8, 4, bias=False, activation="identity", residual=True)


def test_a_projected_residual_is_part_of_the_matrix(opened: Callable[..., Checkpoint]):
    checkpoint = with_dense(opened, {"linear.weight": WEIGHT, "residual.weight": 2 * WEIGHT})
    assert mx.array_equal(load_dense(checkpoint, PROJECTED, "float32")[0], mx.array(3 * WEIGHT))


def test_a_projected_residual_lies_below_the_matrix_where_there_is_an_activation(opened: Callable[..., Checkpoint]):
    checkpoint = with_dense(opened, {"linear.weight": WEIGHT, "residual.weight": 2 * WEIGHT})
    weight = load_dense(checkpoint, replace(PROJECTED, activation="tanh"), "float32")[0]
    assert mx.array_equal(weight, mx.array(np.concatenate([WEIGHT, 2 * WEIGHT])))


def test_a_projected_residual_without_its_matrix_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="missing"):
        load_dense(with_dense(opened, {"linear.weight": WEIGHT}), PROJECTED, "float32")


def test_dense_weights_in_the_main_file_are_found(opened: Callable[..., Checkpoint]):
    tensors = {"dense.0.weight": WEIGHT, "dense.0.bias": BIAS, "norm.weight": BIAS}
    checkpoint = with_dense(opened, None, tensors=tensors)
    weight, _ = load_dense(checkpoint, read_head(checkpoint).dense[0], "float32")
    assert mx.array_equal(weight, mx.array(WEIGHT))


def test_packed_dense_weights_in_the_main_file_are_unpacked(opened: Callable[..., Checkpoint]):
    dense = mx.random.normal((64, 128), key=mx.random.key(0))
    parts = zip(("weight", "scales", "biases"), mx.quantize(dense, group_size=64, bits=8), strict=True)
    tensors = {f"dense.0.{name}": np.array(array) for name, array in parts}
    checkpoint = with_dense(opened, None, tensors=tensors)
    weight, _ = load_dense(checkpoint, Dense("2_Dense", 128, 64, bias=False), "float32")
    assert mx.abs(weight - dense).max().item() < 0.05


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"linear.weight": WEIGHT.T.copy(), "linear.bias": BIAS}, r"found \(8, 4\) expected \(4, 8\)"),
        ({"linear.weight": WEIGHT}, "missing"),
        ({"linear.weight": WEIGHT, "linear.bias": BIAS, "residual.weight": WEIGHT}, r"holds residual\.weight"),
        (None, r"no model\.safetensors(.|\n)*another model's"),
    ],
)
def test_dense_weights_that_do_not_fit_are_an_error(opened: Callable[..., Checkpoint], tensors, message: str):
    checkpoint = with_dense(opened, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_dense(checkpoint, read_head(checkpoint).dense[0], "float32")


def test_dense_weights_as_a_pickle_are_refused(opened: Callable[..., Checkpoint]):
    files = pipeline("Transformer", "Pooling", "Dense", Pooling={}, Dense=DENSE)
    checkpoint = opened(files={**files, "2_Dense/pytorch_model.bin": b"\x80\x04"})
    with pytest.raises(CheckpointError, match=r"only .*pytorch_model\.bin"):
        load_dense(checkpoint, read_head(checkpoint).dense[0], "float32")
