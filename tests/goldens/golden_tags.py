"""Build tiny token classifiers, and record the spans of transformers' pipeline with aggregation_strategy="simple".

Each cuts words its own way. Some labels are those of real checkpoints, and some only look so.
"""

from __future__ import annotations

from typing import Any

import torch
from golden_encoders import BERT_SPECIALS, begin, make_tokenizer
from golden_heads import BERT_NAMES, BERT_SHAPE
from golden_tokenizer_files import xlm_roberta
from recording import randomise, read_corpus, versions, write_json
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, pipeline

LABELS = ["O", "B-PER", "I-PER", "LOC", "X-LOC", "B-LOC", "I-LOC"]
TEXTS = [
    "The Cat sleeps in the capital of China,  and\nhello world naps.",
    "Café NAÏVE 日本 日本 it's 123",
    "a",
    "",
    "  spaces before and after  ",
    "An 🙂 emoji 👩‍👩‍👧 stands for two characters, or for many.",
    *read_corpus()[:4],
]
LIMIT = 64


def write(name: str, shape: dict[str, Any], tokenizer: Any, stated: dict[str, Any], seed: int) -> None:
    """One checkpoint with its tokenizer and the spans of every text."""
    folder = begin(f"tags/{name}")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", {**stated, "model_max_length": LIMIT})
    labels = {str(index): label for index, label in enumerate(LABELS)}
    config = {**shape, "id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    write_json(folder / "config.json", config)
    model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        randomise(model, seed, {"query.weight": 3.0, "key.weight": 3.0})
    save_file(dict(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    read = AutoTokenizer.from_pretrained(folder)
    ask = pipeline("token-classification", model=model, tokenizer=read, aggregation_strategy="simple", device="cpu")
    keys = ("entity_group", "score", "start", "end")
    spans = [[[plain(span[key]) for key in keys] for span in ask(text)] for text in TEXTS]
    write_json(folder / "spans.json", {"versions": versions(), "texts": TEXTS, "spans": spans})
    print(f"tags/{name}: {sum(map(len, spans))} spans of {len(TEXTS)} texts")


def plain(value: Any) -> Any:
    return value if isinstance(value, str | int) else float(value)


def record() -> None:
    """Write tags/bert and tags/xlm-roberta."""
    shape = {**BERT_SHAPE, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": LIMIT}
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    bert = {**shape, "architectures": ["BertForTokenClassification"]}
    write("bert", bert, tokenizer, {**BERT_NAMES, "tokenizer_class": "BertTokenizer"}, 131)
    tokenizer, stated = xlm_roberta()
    size = tokenizer.get_vocab_size()
    roberta = {
        **shape,
        "architectures": ["XLMRobertaForTokenClassification"],
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "max_position_embeddings": LIMIT + 2,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "vocab_size": size,
    }
    write("xlm-roberta", roberta, tokenizer, stated, 132)


if __name__ == "__main__":
    record()
