"""Build the tiny BERT checkpoints and record transformers' hidden states and sentence-transformers' pipelines.

Knows the published BERT layouts: bare BertModel without pooler, and `bert.` with pooler and pre-training heads.
"""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import HERE, LENGTHS, SHORT_LENGTHS, randomise, read_corpus, relative_error, text_of_length, write_golden
from recording import write_json as write
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, BertModel

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 500
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
}
GAINS = {"query.weight": 3.0, "key.weight": 3.0}
PROMPT = "represent this passage: "
OLD_MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def choose_pieces(tokenizer: Tokenizer) -> list[str]:
    """Return the vocabulary: specials, the 60 commonest characters in both positions, the commonest words and endings.

    Counted, not trained: the WordPiece trainer breaks ties differently from run to run.
    """
    words: Counter[str] = Counter()
    for paragraph in read_corpus():
        split = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(paragraph))
        words.update(word for word, _ in split)
    characters: Counter[str] = Counter()
    longer: Counter[str] = Counter()
    for word, count in words.items():
        characters.update({character: word.count(character) * count for character in set(word)})
        longer[word] += count if len(word) > 1 else 0
        longer.update({f"##{word[-n:]}": count for n in (2, 3) if len(word) > n + 1})
    letters = sorted(characters, key=lambda character: (-characters[character], character))[:60]
    fixed = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    common = sorted(longer, key=lambda piece: (-longer[piece], piece))
    return [*fixed, *common[: VOCABULARY - len(fixed)]]


def make_tokenizer() -> Tokenizer:
    """Return an uncased WordPiece tokenizer of 500 pieces, [PAD] = 0 as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces = {piece: i for i, piece in enumerate(choose_pieces(tokenizer))}
    tokenizer.model = models.WordPiece(pieces, unk_token="[UNK]")
    tokenizer.add_special_tokens(SPECIALS)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    write(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"} | names,
    )


def rows_for(tokenizer: Tokenizer, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return one row per length, [CLS] alone for length 1, and one with the pad id inside its content."""
    corpus = read_corpus()
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    rows = []
    for seed, length in enumerate(lengths):
        if length == 1:
            rows.append({"length": 1, "text": None, "why": "no text has one id: [CLS] alone", "ids": [start]})
            continue
        text = text_of_length(lambda text: tokenizer.encode(text).ids, corpus, length, seed)
        rows.append({"length": length, "text": text, "ids": tokenizer.encode(text).ids})
    ids = tokenizer.encode(corpus[3]).ids[1:38]
    ids = [start, *ids[:6], 0, 0, *ids[6:30], 0, *ids[30:], end]
    rows.append({"length": len(ids), "text": None, "why": "the pad id stands inside the content", "ids": ids})
    return rows


@torch.no_grad()
def hidden_rows(model: BertModel, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the last hidden state (L, D) of each row, run alone and without padding."""
    return [model(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0].numpy() for row in rows]


def check_it_bites(model: BertModel, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how far the golden moves when an engine gets one thing wrong; raise if any of it would pass unnoticed."""
    row = next(row for row in rows if row["length"] == 32)
    reference = hidden_rows(model, [row])[0]
    edited = hidden_rows(model, [{"ids": [*row["ids"][:-2], 77, row["ids"][-1]]}])[0]
    wrong = {"last word edited, first position": relative_error(edited[0], reference[0])}
    parts = {"LayerNorm.weight": 1.0, "bias": 0.0, "position_embeddings": 0.0, "token_type_embeddings": 0.0}
    for part, filler in parts.items():
        kept = {name: value.clone() for name, value in model.state_dict().items() if part in name}
        model.load_state_dict({name: torch.full_like(value, filler) for name, value in kept.items()}, strict=False)
        wrong[f"{part} all {filler:g}"] = relative_error(hidden_rows(model, [row])[0], reference)
        model.load_state_dict(kept, strict=False)
    exact_gelu = [layer.intermediate.intermediate_act_fn for layer in model.encoder.layer]
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")
    tanh_gelu = relative_error(hidden_rows(model, [row])[0], reference)
    for layer, function in zip(model.encoder.layer, exact_gelu, strict=True):
        layer.intermediate.intermediate_act_fn = function
    if min(wrong.values()) < 1e-2 or tanh_gelu < 3e-5:
        raise AssertionError(f"this golden would not notice: {wrong} {tanh_gelu}")
    return wrong | {"tanh instead of erf GELU": tanh_gelu}


def notes_for(model: BertModel, rows: list[dict[str, Any]], hidden: list[np.ndarray]) -> dict[str, Any]:
    """Return what golden.json says about the run, including float32's own distance from float64."""
    exact = hidden_rows(model.double(), rows)
    model.float()
    return {
        "attention_implementation": model.config._attn_implementation,
        "dtype": "float32",
        "float32_vs_float64": max(relative_error(a, b) for a, b in zip(hidden, exact, strict=True)),
        "wrong_engines": check_it_bites(model, rows),
    }


def old_pooling(*modes: str, include_prompt: bool = True) -> dict[str, Any]:
    """Return 1_Pooling/config.json in the dialect of sentence-transformers up to 5."""
    flags = {f"pooling_mode_{mode}": mode in modes for mode in OLD_MODES}
    return {"word_embedding_dimension": 48} | flags | {"include_prompt": include_prompt}


def variants() -> dict[str, dict[str, Any]]:
    """Return the pipelines: {name: {pooling, dense, normalize, settings}}, both dialects of the pooling file."""
    modes = {mode.removesuffix("_tokens").removesuffix("_token").replace("_", "-"): mode for mode in OLD_MODES}
    found: dict[str, dict[str, Any]] = {name: {"pooling": old_pooling(mode)} for name, mode in modes.items()}
    unnamed = {"in_features": 48, "out_features": 24, "bias": True}
    tanh = unnamed | {"activation_function": "torch.nn.modules.activation.Tanh"}
    identity = unnamed | {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    mean = {"embedding_dimension": 48, "pooling_mode": "mean", "include_prompt": True}
    mean_normal = {"pooling": old_pooling("mean_tokens"), "normalize": True}
    return found | {
        "mean-max": {"pooling": old_pooling("max_tokens", "mean_tokens")},
        "list-lasttoken-cls": {"pooling": mean | {"pooling_mode": ["lasttoken", "cls"]}},
        "no-prompt": {"pooling": old_pooling("mean_tokens", include_prompt=False)},
        "no-prompt-weighted": {"pooling": old_pooling("weightedmean_tokens", include_prompt=False)},
        "mean-normalize": mean_normal,
        "dense-tanh-normalize": {"pooling": mean, "dense": tanh, "normalize": True},
        "dense-identity": {"pooling": mean, "dense": identity},
        "dense-unnamed": {"pooling": mean, "dense": unnamed},
        "truncate-16": {"pooling": mean, "settings": {"truncate_dim": 16}},
        "normalize-truncate-16": mean_normal | {"settings": {"truncate_dim": 16}},
        "dot-product": {"pooling": mean, "settings": {"similarity_fn_name": "dot"}},
    }


def write_variant(folder: Path, variant: dict[str, Any], seed: int) -> None:
    """Write one pipeline's files, without weights, config and tokenizer of the trunk."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write(folder / "1_Pooling/config.json", variant["pooling"])
    if "dense" in variant:
        kinds.append((f"{len(kinds)}_Dense", "Dense"))
        dense = torch.nn.Linear(48, 24, bias=variant["dense"]["bias"])
        randomise(dense, seed)
        write(folder / kinds[-1][0] / "config.json", variant["dense"])
        weights = {f"linear.{name}": value for name, value in dense.state_dict().items()}
        save_file(weights, folder / kinds[-1][0] / "model.safetensors")
    if variant.get("normalize"):
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    settings = {"prompts": {"passage": PROMPT}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", settings | variant.get("settings", {}))


def record_pipelines(trunk: Path, texts: list[str]) -> None:
    """Write pipelines/<name>/ and what sentence-transformers makes of texts, bare and with the prompt.

    expected.npz holds `vectors` and `prompted` (N, D) float32, each text encoded alone.
    """
    vectors: dict[str, np.ndarray] = {}
    for seed, (name, variant) in enumerate(variants().items(), start=40):
        folder = trunk / "pipelines" / name
        write_variant(folder, variant, seed)
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(folder, scratch, dirs_exist_ok=True)
            for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(trunk / file, scratch)
            model = SentenceTransformer(scratch, device="cpu")
            vectors[name] = model.encode(texts, batch_size=1)
            prompted = model.encode(texts, batch_size=1, prompt_name="passage")
        np.savez_compressed(folder / "expected.npz", vectors=vectors[name], prompted=prompted)
    means = vectors["mean-normalize"]
    ranges = np.stack([means.min(axis=0), means.max(axis=0)])
    stored = {
        precision: quantize_embeddings(means, precision, ranges=ranges if precision.endswith("int8") else None)
        for precision in ("int8", "uint8", "binary", "ubinary")
    }
    np.savez_compressed(trunk / "pipelines" / "precision.npz", float32=means, ranges=ranges, **stored)
    write(trunk / "pipelines" / "texts.json", {"texts": texts, "prompt": PROMPT})


def record_plain() -> None:
    """Write bert-plain: bare BertModel, no prefix, no pooler, classic Hub config, and every pipeline over it."""
    folder = HERE / "bert-plain"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = make_tokenizer()
    save_tokenizer(tokenizer, folder)
    raw: dict[str, Any] = {"architectures": ["BertModel"], **SHAPE, "model_type": "bert"}
    raw |= {"initializer_range": 0.02, "position_embedding_type": "absolute", "torch_dtype": "float32"}
    raw |= {"transformers_version": "4.8.2", "use_cache": True}
    write(folder / "config.json", raw)
    model = BertModel(BertConfig(**raw), add_pooling_layer=False).eval()
    randomise(model, 21, GAINS)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    # Older checkpoints carry this buffer; a reader skips it.
    weights["embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    rows = rows_for(tokenizer, LENGTHS)
    hidden = hidden_rows(model, rows)
    record_pipelines(folder, [row["text"] for row in rows if row["text"] is not None and row["length"] <= 128])
    notes = notes_for(model, rows, hidden)
    write_golden(folder, rows, {f"hidden_{i}": array for i, array in enumerate(hidden)}, notes)
    print(f"bert-plain: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")


def record_prefixed() -> None:
    """Write bert-prefixed: `bert.` prefix, pooler, masked-LM and next-sentence heads, saved by transformers 5."""
    folder = HERE / "bert-prefixed"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = make_tokenizer()
    model = BertForPreTraining(BertConfig(**SHAPE)).eval()
    randomise(model, 22, GAINS)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    saved = json.loads((folder / "config.json").read_text())
    assert "dtype" in saved, saved  # the transformers-5 dialect; older saves say torch_dtype

    rows = rows_for(tokenizer, SHORT_LENGTHS)
    hidden = hidden_rows(model.bert, rows)
    notes = notes_for(model.bert, rows, hidden)
    write_golden(folder, rows, {f"hidden_{i}": array for i, array in enumerate(hidden)}, notes)
    print(f"bert-prefixed: {len(rows)} rows, float32 vs float64 {notes['float32_vs_float64']:.1e}")
