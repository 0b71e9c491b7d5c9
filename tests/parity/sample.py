"""The recorded sample of `make test`: one or two draws per family, and what transformers said to them.

    PYTHONPATH=tests python -m parity.sample --reference .venv-goldens/bin/python

writes sample.json (configs, names and shapes of tensors) and sample.npz (answers) again. The tensors' values are made
from their names, so no weight is stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .families import FAMILIES
from .options import DROP, GROWING, LAYERED, ROPES, UNSAID
from .space import Draw
from .values import values

HERE = Path(__file__).parent
# What is asked of pipelines.
PIPED = ("vectors", "query", "document", "similar", "scores", "raw_scores")
SCALED = {"type": "linear", "factor": 2.0}
STRETCHED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
OWN_HEAD = {"tie_word_embeddings": True, "make.head": "its own"}
UNTIED = {"tie_word_embeddings": False}
# Each holds several keys that were once ignored, misread or refused.
CASES: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("qwen3", "Qwen3ForCausalLM",
     {"raw.rope_scaling": SCALED, "raw.rms_norm_eps": DROP, "raw.architectures": DROP, "raw.dtype": None, **OWN_HEAD}),
    ("qwen3", "Qwen3Model", {"raw.rope_scaling": STRETCHED, "max_position_embeddings": 40}),
    ("qwen3-moe", "Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 3, "hidden_act": "gelu"}),
    ("qwen3-next", "Qwen3NextForCausalLM", {"layer_types": ["full_attention"] * 2, "hidden_act": "gelu_new"}),
    ("qwen3.5", "Qwen3_5ForCausalLM", {"layer_types": ["linear_attention"] * 2, "hidden_act": "relu"}),
    ("qwen3.5", "Qwen3_5TextModel", {"linear_conv_kernel_dim": 1, "raw.rope_scaling": SCALED}),
    ("qwen3.5-moe", "Qwen3_5MoeForCausalLM", {"raw.norm_topk_prob": False, "hidden_act": "mish"}),
    ("qwen3.5-vl", "Qwen3_5ForConditionalGeneration", OWN_HEAD),
    ("qwen3-vl", "Qwen3VLForConditionalGeneration", {**OWN_HEAD, "text.hidden_act": "swish"}),
    ("qwen3-vl-moe", "Qwen3VLMoeForConditionalGeneration",
     {"raw.text.norm_topk_prob": False, "vision.num_position_embeddings": 20, "vision.hidden_act": "relu"}),
    ("bert", "BertForMaskedLM", {**UNTIED, "hidden_act": "gelu_python", "raw.layer_norm_eps": DROP}),
    ("roberta", "RobertaForMaskedLM", UNTIED),
    ("xlm-roberta", "XLMRobertaForMaskedLM", OWN_HEAD | {"hidden_act": "quick_gelu"}),
    ("camembert", "CamembertForMaskedLM", OWN_HEAD),
    ("mpnet", "MPNetForMaskedLM", {**UNTIED, "raw.architectures": DROP, "raw.layer_norm_eps": DROP}),
    ("mpnet", "MPNetModel", {"relative_attention_num_buckets": 40, "pad_token_id": 5}),
    ("distilbert", "DistilBertForMaskedLM", {**UNTIED, "raw.architectures": DROP, "raw.activation": DROP}),
    ("electra", "ElectraForMaskedLM", {"raw.architectures": DROP}),
    ("electra", "ElectraForSequenceClassification", {"embedding_size": 32, "hidden_act": "mish"}),
    ("albert", "AlbertForMaskedLM", {**UNTIED, "raw.architectures": DROP, "hidden_act": "gelu_new"}),
    ("albert", "AlbertForSequenceClassification", {"num_hidden_layers": 4, "num_hidden_groups": 3}),
    ("albert", "AlbertModel", {"inner_group_num": 2, "num_hidden_groups": 2}),
    ("modernbert", "ModernBertForMaskedLM", {**UNTIED, "rope_parameters": LAYERED[1]}),
    ("modernbert", "ModernBertForSequenceClassification", {"rope_parameters": LAYERED[2], "raw.architectures": DROP}),
    ("nomic", "NomicBertForMaskedLM", {**UNTIED, "head_dim": 16, "raw.rope_scaling": SCALED}),
    ("gte", "GteForMaskedLM", {**OWN_HEAD, "type_vocab_size": 0, "hidden_act": "relu"}),
    ("eurobert", "EuroBertForSequenceClassification", {"mlp_bias": True, "attention_bias": True, "num_labels": 4}),
    ("eurobert", "EuroBertForMaskedLM", {"mlp_bias": True, "tie_word_embeddings": True, "raw.rope_theta": 300.0}),
    ("embeddinggemma", "Gemma3TextModel", {"rope_parameters": LAYERED[1], "raw.rope_scaling": SCALED}),
    ("llama-bidirec", "LlamaModel", {"raw.rope_scaling": {"type": "yarn", "factor": 2.0}, "mlp_bias": True}),
    ("llama-nemotron-vl", "LlamaModel", {"raw.rope_scaling": SCALED, "raw.rms_norm_eps": DROP}),
    ("qwen3-bidirectional", "Qwen3Model", {"hidden_act": "relu2", "raw.rope_theta": 300.0}),
    ("siglip", "SiglipModel", {"text.hidden_act": "quick_gelu", "raw.vision.layer_norm_eps": DROP}),
    ("qwen2", "Qwen2ForCausalLM",
     {**OWN_HEAD, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "attention_bias": True}),
    ("qwen2", "Qwen2ForSequenceClassification", {"pad_token_id": 5, "num_labels": 4, "raw.architectures": DROP}),
    ("qwen2-bidirectional", "Qwen2Model", {"head_dim": 16, "raw.rope_theta": 300.0}),
    ("llama", "LlamaForCausalLM",
     {"rope_parameters": ROPES[6], "mlp_bias": True, **OWN_HEAD, "raw.architectures": DROP}),
    ("mistral", "MistralForCausalLM", {"sliding_window": 3, "raw.rms_norm_eps": DROP, "raw.dtype": None}),
    ("ministral3", "Ministral3ForCausalLM",
     {"rope_parameters": {**ROPES[4], **GROWING}, "sliding_window": 8, "hidden_act": "gelu"}),
    ("gemma", "GemmaForCausalLM",
     {"hidden_act": "gelu", "attention_bias": True, "raw.rope_scaling": {"type": "yarn", "factor": 2.0}}),
    ("gemma2", "Gemma2ForCausalLM",
     {"attn_logit_softcapping": 2.0, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("lfm2", "Lfm2Model", {"conv_bias": True, "raw.norm_eps": DROP, "rope_parameters": ROPES[7]}),
    ("gpt-oss", "GptOssForCausalLM", {"rope_parameters": ROPES[3], "swiglu_limit": 1.0, "num_experts_per_tok": 3}),
    ("gemma3", "Gemma3ForCausalLM", {"rope_parameters": LAYERED[1], "final_logit_softcapping": 30.0, **UNTIED}),
)  # fmt: skip
# Pipelines around a checkpoint, each with several keys that were misread once or that no other test sets.
PIPELINES: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("bert", "BertModel",
     {"make.modules": "pool dense norm dense", "make.pooling": ["max", "cls", "weightedmean"], "make.dense": "SiLU",
      "make.prompts": [{"sts": "t12 t13 "}, "sts"], "make.include_prompt": False, "make.special": "after",
      "make.similarity": "manhattan", "make.layout": "older names"}),
    ("bert", "BertForSequenceClassification",
     {"num_labels": 1, "make.special": "around", "make.activation": ["Tanh", "pipeline"],
      "make.layout": "0_Transformer"}),
    ("roberta", "RobertaForSequenceClassification", {"num_labels": 4, "make.prompts": [{"sts": "t12 t13 "}, "sts"]}),
    ("bert", "BertForSequenceClassification",
     {"num_labels": 1, "make.special": "around", "make.activation": ["Identity", "old key"], "make.bert":
      {"max_seq_length": 30}, "make.tokenizer": {"model_input_names": ["input_ids", "token_type_ids"]}}),
    ("bert", "BertForSequenceClassification",
     {"num_labels": 1, "make.special": "around", "make.activation": ["Identity", "config"], "make.layout": "bare"}),
    ("modernbert", "ModernBertModel",
     {"make.pooling": ["lasttoken", "mean"], "make.dense": "LeakyReLU", "make.prompts": [{"query": "t07 "}, "query"]}),
    ("qwen3", "Qwen3ForCausalLM",
     {"make.pooling": "lasttoken", "make.special": "after", "make.truncate_dim": 8, "make.false_token": None,
      "make.bert": {"query_length": 5, "document_length": 7}, "make.prompts": [{"query": "t07 T08 "}, None]}),
    ("qwen3.5", "Qwen3_5ForCausalLM",
     {"layer_types": ["linear_attention"] * 2, "make.modules": "pool dense pool norm", "make.bert":
      {"do_lower_case": True}, "make.activation": ["Sigmoid", "config"]}),
    ("qwen3-next", "Qwen3NextForCausalLM", {"layer_types": ["linear_attention"] * 2, "linear_num_value_heads": 8}),
    ("embeddinggemma", "Gemma3TextModel",
     {"make.modules": "pool norm dense", "make.residual": True, "make.dense": "Identity", "make.dense_bias": False,
      "make.special": "around", "make.bert": {"processing_kwargs": {"text": {"max_length": 6}}}}),
    ("llama-bidirec", "LlamaModel",
     {"make.pooling": "mean_sqrt_len_tokens", "make.bert": {"config_kwargs": {"rms_norm_eps": 0.2}},
      "make.special": "before", "make.tokenizer": {"truncation_side": "left", "model_max_length": 9}}),
    ("qwen2-bidirectional", "Qwen2Model",
     {"make.modules": "pool dense", "make.dense": "Identity", "make.prompts": [{"query": "t07 "}, "query"]}),
    ("mistral", "MistralModel",
     {"make.modules": "pool norm", "make.pooling": "lasttoken", "make.special": "around",
      "make.prompts": [{"query": "t07 T08 ", "document": "t09 "}, None]}),
    ("gemma2", "Gemma2ForCausalLM", {"attn_logit_softcapping": None, "make.layout": "0_Transformer"}),
    ("qwen3", "Qwen3ForSequenceClassification",
     {"num_labels": 1, "pad_token_id": 5, "make.special": "around", "make.layout": "bare"}),
)  # fmt: skip
# Of families that came later, with and without a pipeline: after all others, whose values their place decides. Rows are
# long enough for distances to share buckets.
LATER: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("t5", "T5EncoderModel",
     {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 20, "relative_attention_max_distance": 50,
      "raw.layer_norm_epsilon": DROP, "raw.architectures": DROP, "raw.n_positions": 16}),
    ("t5", "T5EncoderModel",
     {"make.modules": "pool dense norm", "make.dense": "Identity", "make.dense_bias": False, "make.special": "after"}),
    ("t5", "T5ForTokenClassification", {"num_labels": 4, "raw.dense_act_fn": "silu"}),
    ("mt5", "MT5EncoderModel", {"feed_forward_proj": "gated-silu", "is_encoder_decoder": False}),
    ("deberta-v2", "DebertaV2ForSequenceClassification",
     {"num_labels": 3, "pos_att_type": "p2c|c2p", "raw.architectures": DROP, "raw.layer_norm_eps": DROP}),
    ("deberta-v2", "DebertaV2ForMaskedLM",
     {"legacy": False, "share_att_key": False, "position_buckets": 16, "max_relative_positions": 40}),
    ("deberta-v2", "DebertaV2ForMaskedLM",
     {**UNTIED, "position_biased_input": True, "type_vocab_size": 2, "position_buckets": UNSAID,
      "pos_att_type": ["c2p"]}),
    ("deberta-v2", "DebertaV2Model", {"relative_attention": False, "position_biased_input": True}),
    ("deberta-v2", "DebertaV2ForSequenceClassification",
     {"make.modules": "pool", "num_labels": 1, "make.special": "around", "pos_att_type": "p2c"}),
    ("umt5", "UMT5EncoderModel", {"d_kv": 12, "num_layers": 3, "relative_attention_num_buckets": 8}),
    ("jina-v3", "JinaEmbeddingsV3Model", {"raw.rope_theta": 300.0, "raw.architectures": DROP, "pad_token_id": 5}),
    ("jina-v3", "JinaEmbeddingsV3ForMaskedLM", {**UNTIED, "rope_parameters": ROPES[1], "hidden_act": "relu"}),
    ("jina-v3", "JinaEmbeddingsV3ForSequenceClassification", {"num_labels": 4, "type_vocab_size": 2}),
    ("clip", "CLIPModel", {"text.hidden_act": "gelu", "raw.vision.layer_norm_eps": DROP, "vision.patch_size": 8}),
    ("glm4-moe", "Glm4MoeForCausalLM",
     {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "use_qk_norm": True, "attention_bias": True,
      "routed_scaling_factor": 2.5, "raw.rms_norm_eps": DROP, "raw.rope_scaling": SCALED}),
    ("glm4-moe", "Glm4MoeForCausalLM", {"n_shared_experts": 0, "first_k_dense_replace": 0}),
)  # fmt: skip
PLACES = range(len(CASES), len(CASES) + len(PIPELINES))
# Past the 40 positions that one of them states; pairs long enough to run what they share once.
LONGEST = {1: 70, len(CASES) + 8: 60}


def sampled() -> list[Draw]:
    return [
        Draw(family, architecture, 90 + index, options, LONGEST.get(index, 12 if index < PLACES.stop else 60))
        for index, (family, architecture, options) in enumerate([*CASES, *PIPELINES, *LATER])
    ]


def _piped(index: int) -> bool:
    """Whether a draw is asked for what its pipeline answers, and not for what its checkpoint does."""
    return index in PLACES or "make.modules" in sampled()[index].options


def rebuild(index: int, folder: Path) -> dict[str, np.ndarray]:
    """Write the checkpoint of one recorded draw; returns what the reference said to it."""
    stated, draw = json.loads((HERE / "sample.json").read_text()), sampled()[index]
    about = stated["draws"][index]
    for kind, files in about["files"].items():
        for name, content in files.items():
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / kind / name).write_text(json.dumps(stated["contents"][content]))
    target = folder / "checkpoint"
    # A trunk that was put behind a tower afterwards was filled under its own names.
    inner = "language_model." if draw.family == "llama-nemotron-vl" else ""
    shapes = {name.removeprefix(inner): shape for name, shape in about["tensors"].items()}
    made = values(shapes, draw.seed, zero_centred=FAMILIES[draw.family].zero_centred)
    arrays = {name: mx.array(made[name.removeprefix(inner)]) for name in about["tensors"]}
    mx.save_safetensors(str(target / "model.safetensors"), arrays, {"format": "pt"})
    for kind, pipeline in about["pipelines"].items():
        for path, tensors in pipeline.items():
            # Those of a Dense module were filled under the module's number.
            number = f"{path.partition('_')[0]}." if "_Dense/" in path else ""
            shapes = {f"{number}{name}": shape for name, shape in tensors.items()} if number else {}
            own = values(shapes, draw.seed, zero_centred=False)
            filled = {name: mx.array(own[number + name]) if number else arrays[tensors[name]] for name in tensors}
            mx.save_safetensors(str(folder / kind / path), filled, {"format": "pt"})
    with np.load(HERE / "sample.npz") as stored:
        prefix = f"{index}/"
        return {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}


def _tensors(folder: Path, checkpoint: dict[str, mx.array]) -> dict[str, dict[str, Any]]:
    """Of each tensor of a pipeline's body which one of the checkpoint it is, of others their shapes, by file."""
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        stored, name = mx.load(str(path)), str(path.relative_to(folder))
        if "_Dense/" in name:
            tensors[name] = {each: list(value.shape) for each, value in sorted(stored.items())}
            continue
        tensors[name] = {
            each: next(old for old, other in checkpoint.items() if mx.array_equal(other, value).item())
            for each, value in sorted(stored.items())
        }
    return tensors


def _kept(first: int) -> tuple[list[Any], dict[str, np.ndarray], list[Any]]:
    """(what sample.json says of the draws before `first`, what the reference said to them, contents of files)."""
    if not first:
        return [], {}, []
    stated = json.loads((HERE / "sample.json").read_text())
    with np.load(HERE / "sample.npz") as stored:
        arrays = {name: stored[name] for name in stored if int(name.partition("/")[0]) < first}
    return stated["draws"][:first], arrays, stated["contents"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", default=".venv-goldens/bin/python")
    parser.add_argument("--first", type=int, default=0, help="keep what is recorded of the draws before this one")
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="parity-"))
    (work / "draws.json").write_text(json.dumps([asdict(draw) for draw in sampled()]))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE.parent)}
    about, arrays, contents = _kept(asked.first)
    for index in range(asked.first):
        # The reference passes over what is there.
        (work / str(index)).mkdir()
    subprocess.run([asked.reference, "-m", "parity.reference", str(work)], check=True, env=environment)
    for index in range(asked.first, len(sampled())):
        stored = mx.load(str(work / str(index) / "checkpoint" / "model.safetensors"))
        shapes = {name: list(each.shape) for name, each in sorted(stored.items())}
        with np.load(work / str(index) / "expected.npz") as expected:
            left, kinds = [name for name in expected if not name.removeprefix("noise_").startswith(PIPED)], list[str]()
            if _piped(index):
                left = [name for name in expected if name.startswith("ids_") or name not in left]
                kinds = [kind for kind, name in (("vectors", "vectors"), ("scores", "raw_scores")) if name in expected]
            # Logits say what hidden states say.
            elif any(name.startswith("logits_") for name in left):
                left = [name for name in left if "hidden_" not in name]
            arrays |= {f"{index}/{name}": expected[name] for name in left}
        files: dict[str, dict[str, int]] = {kind: {} for kind in ("checkpoint", *kinds)}
        for kind, found in files.items():
            for path in sorted((work / str(index) / kind).rglob("*.json")):
                content = json.loads(path.read_text())
                if content not in contents:
                    contents.append(content)
                found[str(path.relative_to(work / str(index) / kind))] = contents.index(content)
        pipelines = {kind: _tensors(work / str(index) / kind, stored) for kind in kinds}
        about.append({"files": files, "tensors": shapes, "pipelines": pipelines})
    text = json.dumps({"contents": contents, "draws": about}, separators=(",", ":"))
    (HERE / "sample.json").write_text(text + "\n")
    np.savez_compressed(HERE / "sample.npz", **arrays)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
