"""What files beside the pooling decide: scores of pairs, keys of the Transformer module, adapters, other modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from archport.checkpoint import Checkpoint, read_head, read_inputs
from archport.contract.errors import CheckpointError
from archport.contract.heads import EmbeddingHead, YesNoHead


def pipeline(*kinds: str, **configs: Any) -> dict[str, Any]:
    """The files of a pipeline of these kinds of modules."""
    entries = [
        {"idx": i, "name": str(i), "path": "" if kind == "Transformer" else f"{i}_{kind}", "type": f"st.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    return {"modules.json": entries} | {
        f"{kinds.index(kind)}_{kind}/config.json": value for kind, value in configs.items()
    }


def with_transformer(stated: dict[str, Any]) -> dict[str, Any]:
    """A pipeline whose Transformer has these settings."""
    return {**pipeline("Transformer", "Pooling", Pooling={}), "sentence_bert_config.json": stated}


def crossing(
    opened: Callable[..., Checkpoint], *kinds: str, model_type: str = "CrossEncoder", **configs: Any
) -> Checkpoint:
    files = pipeline("Transformer", *kinds, **configs)
    return opened(files={**files, "config_sentence_transformers.json": {"model_type": model_type}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"true_token_id": "yes"}, "true_token_id='yes'"),
        ({"true_token_id": 3, "false_token_id": 3}, "false_token_id=3"),
        ({"true_token_id": 3, "module_input_name": "scores"}, "module_input_name"),
    ],
)
def test_a_logit_score_that_names_no_tokens_is_an_error(opened: Callable[..., Checkpoint], config, message: str):
    with pytest.raises(CheckpointError, match=message):
        read_head(crossing(opened, "LogitScore", LogitScore=config))


def test_a_logit_score_needs_no_false_token(opened: Callable[..., Checkpoint]):
    found = read_head(crossing(opened, "LogitScore", LogitScore={"true_token_id": 3, "false_token_id": None}))
    assert isinstance(found, YesNoHead)
    assert (found.yes, found.no, found.activation) == (3, None, "sigmoid")


def test_a_cross_encoder_whose_modules_make_no_scores_is_an_error(opened: Callable[..., Checkpoint]):
    config = {"in_features": 8, "out_features": 1}
    with pytest.raises(CheckpointError, match="no module makes scores"):
        read_head(crossing(opened, "Pooling", "Dense", Pooling={}, Dense=config))


def test_the_same_modules_make_a_vector_where_no_file_says_otherwise(opened: Callable[..., Checkpoint]):
    config = {"in_features": 8, "out_features": 1}
    found = read_head(crossing(opened, "Pooling", "Dense", model_type="SentenceTransformer", Pooling={}, Dense=config))
    assert isinstance(found, EmbeddingHead)


ACTIVATION = "torch.nn.modules.activation.{}"


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({"activation_fn": ACTIVATION.format("Tanh")}, {}, "tanh"),
        (
            {"activation_fn": "torch.nn.modules.linear.Identity"},
            {"sbert_ce_default_activation_function": "x"},
            "identity",
        ),
        ({}, {"sbert_ce_default_activation_function": ACTIVATION.format("Tanh")}, "tanh"),
        ({}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        # Code that nobody trusts is passed over, as the reference does.
        ({"activation_fn": "own.Code"}, {}, "sigmoid"),
        ({}, {}, "sigmoid"),
    ],
)
def test_the_activation_of_scores_is_read_from_every_file(
    opened: Callable[..., Checkpoint], files, config, expected: str
):
    own = {**pipeline("Transformer"), "config_sentence_transformers.json": files}
    checkpoint = opened(config={"model_type": "bert", **config}, files=own)
    assert checkpoint.score_activation(1) == expected


@pytest.mark.parametrize(
    ("stated", "key"),
    [
        ({"tokenizer_name_or_path": "elsewhere"}, "tokenizer_name_or_path"),
        ({"model_args": {"variant": "fp16"}}, "model_kwargs.variant"),
        ({"processing_kwargs": {"text": {"truncation_side": "left"}}}, "processing_kwargs.text.truncation_side"),
        ({"processing_kwargs": {"common": {"truncation": "only_second"}}}, "processing_kwargs.text.truncation"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config.text"),
        ({"processor_kwargs": {"subfolder": "other"}}, "processor_kwargs.subfolder"),
    ],
)
def test_a_key_of_the_transformer_that_is_not_followed_is_refused_by_name(
    opened: Callable[..., Checkpoint], stated: dict[str, Any], key: str
):
    with pytest.raises(CheckpointError, match=key):
        read_inputs(opened(files=with_transformer(stated)))


def test_query_expansion_outside_late_interaction_is_refused(opened: Callable[..., Checkpoint]):
    files = with_transformer({"query_expansion": {"length": 32}})
    with pytest.raises(CheckpointError, match="query_expansion"):
        read_head(opened(files=files))


@pytest.mark.parametrize("kind", ["SparseStaticEmbedding", "BoW", "WordEmbeddings"])
def test_a_pipeline_without_a_transformer_is_named(opened: Callable[..., Checkpoint], kind: str):
    with pytest.raises(CheckpointError, match=f"begins with a module of type '.*{kind}'"):
        opened(files=pipeline(kind, "Normalize"))


def test_config_args_win_over_the_config(opened: Callable[..., Checkpoint]):
    files = with_transformer({"config_args": {"hidden_act": "relu", "num_labels": 1}})
    config = opened(
        config={"model_type": "bert", "hidden_act": "gelu", "id2label": {"0": "a", "1": "b"}}, files=files
    ).config
    assert (config["hidden_act"], config["num_labels"], config.get("id2label")) == ("relu", 1, None)
