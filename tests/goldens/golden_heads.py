"""Build tiny classifiers, cross-encoders and a late-interaction model, and record what the reference libraries score.

Knows the published layouts of their heads. Uses the tokenizers of golden_encoders.
"""

import json
import string
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_encoders import BERT_SPECIALS, GEMMA_SPECIALS, VOCABULARY, XLMR_SPECIALS, begin, make_tokenizer
from golden_encoders import save_tokenizer as save
from recording import randomise, read_corpus, versions, write_json
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder
from tokenizers import AddedToken
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

BERT_SHAPE: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
MODERNBERT_SHAPE: dict[str, Any] = {
    "model_type": "modernbert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "local_attention": 16,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "torch_dtype": "float32",
}
PYLATE_DENSE = "pylate.models.Dense.Dense"
# What a multi-vector encoder of sentence-transformers keeps its settings in.
NATIVE = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json")
BERT_NAMES: dict[str, Any] = {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIALS}
# As the tokenizers of BERT have it by their class.
TYPED = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
XLMR_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
XLMR_NAMES |= {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}


def texts_and_pairs() -> tuple[list[str], list[tuple[str, str]]]:
    """Return texts of several lengths, and a query with as many documents."""
    corpus = read_corpus()
    texts = [corpus[3][:40], corpus[5][:130], "a", corpus[8][:70], "a cat sat on the mat."]
    query = corpus[12][:30]
    return texts, [(query, text) for text in texts] + [(corpus[9][:60], "b")]


@torch.no_grad()
def score(folder: Path, model: torch.nn.Module, notes: dict[str, Any], cross: bool = True) -> None:
    """Save the model, and the logits of texts and pairs, each alone; what CrossEncoder predicts of the pairs."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts, pairs = texts_and_pairs()
    arrays = {
        "texts": np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits for text in texts]),
        "pairs": np.concatenate([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in pairs]),
    }
    if cross:
        encoder = CrossEncoder(str(folder), device="cpu")
        arrays["predicted"] = np.stack([encoder.predict([pair])[0] for pair in pairs])
    spread = float(np.abs(arrays["pairs"] - arrays["pairs"][:1]).max())
    assert spread > 1e-2, (folder.name, spread)
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "texts.json", {"texts": texts, "pairs": pairs})
    write_json(folder / "golden.json", notes | {"versions": versions(), "spread": spread})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.name}: {size // 1024} KiB, spread {spread:.2f}")


def write(folder: Path, raw: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    write_json(folder / "config.json", raw)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")


def record_bert() -> None:
    """Write bert-classify: three named labels, `bert.pooler`, segments of pairs."""
    folder = begin("bert-classify")
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    save(tokenizer, folder, 256, BERT_NAMES | TYPED)
    labels = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    raw = {"architectures": ["BertForSequenceClassification"], **BERT_SHAPE, "id2label": labels}
    raw["label2id"] = {name: int(key) for key, name in labels.items()}
    model = BertForSequenceClassification(BertConfig(**raw)).eval()
    randomise(model, 101, {"query.weight": 3.0, "key.weight": 3.0})
    write(folder, raw, dict(model.state_dict()))
    score(folder, model, {"labels": list(labels.values())})


def record_xlm_roberta() -> None:
    """Write xlm-roberta-rerank: one label, dense and out_proj on <s>, a pair around two </s>."""
    folder = begin("xlm-roberta-rerank")
    tokenizer = make_tokenizer(XLMR_SPECIALS, "<unk>", "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    save(tokenizer, folder, 256, XLMR_NAMES)
    raw = {
        **BERT_SHAPE,
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "max_position_embeddings": 258,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
    }
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**raw)).eval()
    randomise(model, 102, {"query.weight": 3.0, "key.weight": 3.0})
    write(folder, raw, dict(model.state_dict()))
    score(folder, model, {})


def record_modernbert() -> None:
    """Write modernbert-rerank: one label, mean pooling, and CrossEncoder told to leave the score as it is."""
    folder = begin("modernbert-rerank")
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    save(tokenizer, folder, 512, BERT_NAMES | {"model_input_names": ["input_ids", "attention_mask"]})
    raw: dict[str, Any] = {
        "architectures": ["ModernBertForSequenceClassification"],
        **MODERNBERT_SHAPE,
        "vocab_size": VOCABULARY,
        "classifier_pooling": "mean",
        "id2label": {"0": "LABEL_0"},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
    }
    model = ModernBertForSequenceClassification(ModernBertConfig(**raw)).eval()
    randomise(model, 103, {"Wqkv": 1.2})
    write(folder, raw, dict(model.state_dict()))
    score(folder, model, {})


class LlamaReranker(torch.nn.Module):
    """What the published code of llama_bidirec classifiers computes: score(masked mean) / temperature."""

    def __init__(self, config: LlamaConfig, temperature: float) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.temperature = temperature

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(hidden)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        return type("Output", (), {"logits": self.score(pooled) / self.temperature})


def record_llama() -> None:
    """Write llama-bidirec-rerank: score without bias, mean pooling, a temperature, the published text of a pair."""
    folder = begin("llama-bidirec-rerank")
    tokenizer = make_tokenizer(GEMMA_SPECIALS, "<unk>", "<bos> $A", "<bos> $A $B")
    save(tokenizer, folder, 256, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})
    raw: dict[str, Any] = {
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "model_type": "llama_bidirec",
        "pooling": "avg",
        "temperature": 0.2,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 512,
        "vocab_size": VOCABULARY,
        "id2label": {"0": "LABEL_0"},
        "torch_dtype": "float32",
    }
    shape = {key: value for key, value in raw.items() if key not in ("architectures", "model_type", "id2label")}
    model = LlamaReranker(LlamaConfig(**shape, is_causal=False), raw["temperature"]).eval()
    randomise(model, 104, {"q_proj": 2.0, "k_proj": 2.0})
    write(folder, raw, dict(model.state_dict()))
    score(folder, model, {}, cross=False)
    _, pairs = texts_and_pairs()
    with torch.no_grad():
        ids = [tokenizer.encode(f"question:{query} \n \n passage:{text}").ids for query, text in pairs]
        found = [model(torch.tensor([row]), torch.ones(1, len(row))).logits[0].numpy() for row in ids]
    arrays = dict(np.load(folder / "golden.npz")) | {"templated": np.stack(found)}
    np.savez_compressed(folder / "golden.npz", **arrays)


def record_colbert() -> None:
    """Write colbert: HF_ColBERT, `linear.weight`, markers, queries filled with [MASK] that nobody attends to."""
    folder = begin("colbert")
    specials = [*BERT_SPECIALS, "[unused0]", "[unused1]"]
    tokenizer = make_tokenizer(specials, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    save(tokenizer, folder, 256, BERT_NAMES)
    model = BertModel(BertConfig(**BERT_SHAPE), add_pooling_layer=False).eval()
    randomise(model, 105, {"query.weight": 3.0, "key.weight": 3.0})
    linear = torch.nn.Linear(48, 16, bias=False)
    randomise(linear, 106)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    write(folder, {"architectures": ["HF_ColBERT"], **BERT_SHAPE}, weights | {"linear.weight": linear.weight.detach()})
    metadata = {"query_maxlen": 32, "doc_maxlen": 180, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    metadata |= {"mask_punctuation": True, "attend_to_mask_tokens": False, "dim": 16, "similarity": "cosine"}
    (folder / "artifact.metadata").write_text(json.dumps(metadata, indent=1))
    record_tokens(folder)
    write_json(folder / "golden.json", {"versions": versions()})


def record_tokens(folder: Path) -> tuple[list[str], list[str]]:
    """Save what MultiVectorEncoder makes of queries and documents, each alone, and their MaxSim; returns both."""
    encoder = MultiVectorEncoder(str(folder), device="cpu")
    texts, _ = texts_and_pairs()
    texts = [*texts, "punctuation: is, skipped! (in documents)"]
    queries = ["what is a cat?", texts[0]]
    arrays = {f"query_{i}": np.asarray(encoder.encode_query([query])[0]) for i, query in enumerate(queries)}
    arrays |= {f"document_{i}": np.asarray(encoder.encode_document([text])[0]) for i, text in enumerate(texts)}
    scores = [
        [float((arrays[f"query_{q}"] @ arrays[f"document_{d}"].T).max(axis=1).sum()) for d in range(len(texts))]
        for q in range(len(queries))
    ]
    arrays["maxsim"] = np.asarray(scores, np.float32)
    assert any(mark in texts[-1] for mark in string.punctuation)
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_json(folder / "texts.json", {"queries": queries, "documents": texts})
    shapes = [arrays[name].shape for name in arrays if name != "maxsim"]
    print(f"{folder.name}: {shapes}")
    return queries, texts


def record_pylate() -> None:
    """Write pylate: a ModernBERT with a projection in folders, one of them beside a residual, "[Q] " and "[D] " tokens,
    queries filled with [MASK], a skiplist. Its windows are narrower than its documents."""
    folder = begin("pylate")
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    tokenizer.add_tokens([AddedToken(marker, normalized=True) for marker in ("[Q] ", "[D] ")])
    save(tokenizer, folder, 127, BERT_NAMES | {"model_input_names": ["input_ids", "attention_mask"]})
    shape = {**MODERNBERT_SHAPE, "architectures": ["ModernBertModel"], "vocab_size": tokenizer.get_vocab_size()}
    model = ModernBertModel(ModernBertConfig(**shape)).eval()
    randomise(model, 107, {"Wqkv": 1.2})
    write(folder, shape, dict(model.state_dict()))
    widths = (shape["hidden_size"], 48, 16)
    for at, (before, after) in enumerate(pairwise(widths), 1):
        linear, beside = (torch.nn.Linear(before, after, bias=False) for _ in range(2))
        randomise(linear, 107 + at)
        randomise(beside, 117 + at)
        weights = {"linear.weight": linear.weight.detach()}
        raw = {"in_features": before, "out_features": after, "bias": False}
        raw |= {"activation_function": "torch.nn.modules.linear.Identity"}
        if at == 1:
            raw, weights = raw | {"use_residual": True}, weights | {"residual.weight": beside.weight.detach()}
        write(folder / f"{at}_Dense", raw, weights)
    modules = [("", "sentence_transformers.models.Transformer"), *((f"{at}_Dense", PYLATE_DENSE) for at in (1, 2))]
    named = [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", named)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 127, "do_lower_case": False})
    settings: dict[str, Any] = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 24,
        "document_length": 128,
        "attend_to_expansion_tokens": False,
        "skiplist_words": ["!", ",", "the", "unheard-of"],
        "do_query_expansion": True,
        "model_type": "ColBERT",
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    queries, documents = record_tokens(folder)
    with tempfile.TemporaryDirectory() as saved:
        MultiVectorEncoder(str(folder), device="cpu").save_pretrained(saved)
        native = {
            path: json.loads((Path(saved) / path).read_text()) for path in NATIVE if (Path(saved) / path).exists()
        }
        native |= {
            str(path.relative_to(saved)): json.loads(path.read_text())
            for path in sorted(Path(saved).glob("*/config.json"))
        }
        own = MultiVectorEncoder(saved, device="cpu")
        golden = np.load(folder / "golden.npz")
        assert np.abs(own.encode_query(queries[:1])[0] - golden["query_0"]).max() < 1e-6
        assert np.abs(own.encode_document(documents[1:2])[0] - golden["document_1"]).max() < 1e-6
    write_json(folder / "golden.json", {"versions": versions(), "native": native})


def record() -> None:
    """Write all of them."""
    record_bert()
    record_xlm_roberta()
    record_modernbert()
    record_llama()
    record_colbert()
    record_pylate()
