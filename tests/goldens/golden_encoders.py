"""Build tiny bidirectional encoders, and record transformers' hidden states and logits of them.

Knows how their repositories are laid out: prefixes, heads, classic configs. Long rows are kept at some positions only.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import HERE, randomise, read_corpus, relative_error, write_golden, write_json
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

VOCABULARY = 240
# Around every window's edge, where tiles of attention end, and beyond.
LENGTHS = (1, 2, 31, 32, 100, 128, 255, 256, 300)
# Hidden rows that are kept of a longer text, and how many of them.
KEPT = 24
XLMR_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(specials: Sequence[str], unknown: str, single: str, pair: str) -> Tokenizer:
    """Return a WordPiece tokenizer of VOCABULARY pieces: specials, characters, the commonest words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for paragraph in read_corpus():
        split = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(paragraph))
        words.update(word for word, _ in split)
    letters = sorted({letter for word, count in words.items() if count > 20 for letter in word})
    fixed = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces = [*fixed, *common][:VOCABULARY]
    tokenizer.model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=unknown)
    tokenizer.add_special_tokens(list(specials))
    ids = [(token, tokenizer.token_to_id(token)) for token in specials if token in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, limit: int, names: dict[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"model_max_length": limit, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", settings | names)


def rows_for(lengths: Sequence[int], seed: int, vocabulary: int, padding: int | None) -> list[dict[str, Any]]:
    """Return rows of random ids; the last one has the padding id inside its content, where the family has one."""
    dice = torch.Generator().manual_seed(seed)
    rows = [
        {"length": n, "ids": torch.randint(5, vocabulary, (n,), generator=dice).tolist()}  # 5: behind the specials
        for n in lengths
    ]
    if padding is not None:
        ids = torch.randint(5, vocabulary, (40,), generator=dice).tolist()
        ids[6] = ids[7] = ids[30] = padding
        rows.append({"length": 40, "why": "the pad id stands inside the content", "ids": ids})
    return rows


@torch.no_grad()
def hidden_rows(trunk: torch.nn.Module, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the last hidden state (L, D) of each row, run alone and without padding."""
    return [trunk(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0].numpy() for row in rows]


def kept_positions(length: int) -> np.ndarray:
    """Return which positions of a row are stored: all of a short one, else both ends and some in between."""
    if length <= 32:
        return np.arange(length, dtype=np.int32)
    return np.unique(np.linspace(0, length - 1, KEPT).round().astype(np.int32))


def check_it_bites(
    trunk: torch.nn.Module, row: dict[str, Any], wrong_configs: dict[str, Callable[[], torch.nn.Module]]
) -> dict[str, float]:
    """Return how far a row moves when an engine gets one thing wrong; raise if it would pass unnoticed."""
    reference = hidden_rows(trunk, [row])[0]
    ids = row["ids"][:31]
    short, edited = (hidden_rows(trunk, [{"ids": [*ids, last]}])[0] for last in (7, 8))
    wrong = {"last token edited, first position": relative_error(edited[0], short[0])}
    for name, make in wrong_configs.items():
        other = make()
        other.load_state_dict(trunk.state_dict())
        wrong[name] = relative_error(hidden_rows(other.eval(), [row])[0], reference)
    return wrong


def store(
    folder: Path,
    raw: dict[str, Any],
    weights: dict[str, torch.Tensor],
    trunk: torch.nn.Module,
    rows: list[dict[str, Any]],
    wrong: dict[str, float],
    arrays: dict[str, np.ndarray] | None = None,
    least: float = 1e-3,
) -> None:
    """Write the checkpoint and what transformers made of the rows."""
    missed = {name: value for name, value in wrong.items() if value < least}
    if missed:
        raise AssertionError(f"{folder.name} would not notice: {missed}")
    write_json(folder / "config.json", raw)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    found = dict(arrays or {})
    for i, (row, hidden) in enumerate(zip(rows, hidden_rows(trunk, rows), strict=True)):
        at = kept_positions(row["length"])
        found[f"hidden_{i}"], found[f"at_{i}"] = hidden[at], at
        found[f"mean_{i}"] = hidden.astype(np.float64).mean(axis=0)
    notes = {
        "attention_implementation": trunk.config._attn_implementation,
        "dtype": "float32",
        "wrong_engines": wrong,
    }
    write_golden(folder, rows, found, notes)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.name}: {len(rows)} rows, {size // 1024} KiB, {wrong}")


def begin(name: str) -> Path:
    """Return an empty folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@torch.no_grad()
def masked_logits(model: torch.nn.Module, rows: list[dict[str, Any]], mask: int) -> dict[str, np.ndarray]:
    """Return logits (2, V) at two masked places of the row of 31 ids, with the ids."""
    ids = list(next(row["ids"] for row in rows if row["length"] == 31))
    ids[4] = ids[20] = mask
    logits = model(input_ids=torch.tensor([ids])).logits[0, [4, 20]]
    return {"masked_ids": np.asarray(ids, np.int32), "masked_logits": logits.numpy()}


ROBERTA: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 322,
    "type_vocab_size": 1,
    "vocab_size": VOCABULARY,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
}
ROBERTA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
ROBERTA_NAMES |= {"cls_token": "<s>", "sep_token": "</s>"}


def record_roberta_kind(
    folder: Path, raw: dict[str, Any], model: torch.nn.Module, mask: int, more: dict[str, torch.Tensor]
) -> None:
    """Write a masked language model of the RoBERTa kind: positions behind pad id 1, a tied decoder.

    `more` are tensors beside its own that the file holds.
    """
    randomise(model, 51, {"query.weight": 3.0, "key.weight": 3.0})
    rows = rows_for((1, 2, 31, 32, 128, 256, 320), 52, VOCABULARY, padding=1)
    trunk = model.roberta
    tied = ("lm_head.decoder.weight", "lm_head.decoder.bias")
    weights = {name: value for name, value in model.state_dict().items() if name not in tied} | more
    # What an engine would compute that counted positions from zero, or counted padding inside the content.
    position_table = trunk.embeddings.position_embeddings.weight
    reference = hidden_rows(trunk, rows)
    kept = position_table.detach().clone()
    position_table.data.copy_(torch.roll(kept, -1, 0))
    wrong = {"positions off by one": relative_error(hidden_rows(trunk, rows)[2], reference[2])}
    position_table.data.copy_(kept)
    plain = [{"ids": [5 if i == 1 else i for i in rows[-1]["ids"]]}]
    wrong["padding counted"] = relative_error(hidden_rows(trunk, plain)[0], reference[-1])
    wrong |= check_it_bites(trunk, rows[3], {})
    store(folder, raw, weights, trunk, rows, wrong, masked_logits(model, rows, mask))


def record_xlm_roberta() -> None:
    """Write xlm-roberta: `roberta.` prefix, a masked-LM head."""
    folder = begin("xlm-roberta")
    tokenizer = make_tokenizer(XLMR_SPECIALS, "<unk>", "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    save_tokenizer(tokenizer, folder, 320, ROBERTA_NAMES)
    raw = {"architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", **ROBERTA}
    record_roberta_kind(folder, raw, XLMRobertaForMaskedLM(XLMRobertaConfig(**raw)).eval(), 4, {})


def record_roberta() -> None:
    """Write roberta: a byte-level tokenizer, and the position ids that files of its time hold."""
    folder = begin("roberta")
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*XLMR_SPECIALS[:4], *(letter for letter in bytes_ if letter.isascii() or letter == "\u0120")]
    pieces = [*pieces, *(letter for letter in bytes_ if letter not in pieces)][: VOCABULARY - 1]
    pieces.append("<mask>")
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens([*XLMR_SPECIALS[:4], AddedToken("<mask>", lstrip=True, special=True)])
    save_tokenizer(tokenizer, folder, 320, ROBERTA_NAMES)
    raw = {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", **ROBERTA}
    more = {"roberta.embeddings.position_ids": torch.arange(322)[None]}
    record_roberta_kind(folder, raw, RobertaForMaskedLM(RobertaConfig(**raw)).eval(), VOCABULARY - 1, more)


def record_modernbert() -> None:
    """Write modernbert: `model.` prefix, a masked-LM head, classic config, windows of 64 each side on two of four."""
    folder = begin("modernbert")
    tokenizer = make_tokenizer(BERT_SPECIALS, "[UNK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    save_tokenizer(tokenizer, folder, 8192, {f"{token[1:-1].lower()}_token": token for token in BERT_SPECIALS})
    raw: dict[str, Any] = {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_bias": True,
        "classifier_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    model = ModernBertForMaskedLM(ModernBertConfig(**raw)).eval()
    randomise(model, 61, {"Wqkv": 1.2})
    rows = rows_for((*LENGTHS, 200, 1000, 8192), 62, VOCABULARY, padding=0)
    trunk = model.model
    kinds = trunk.config.layer_types

    def other(**changes: Any) -> Callable[[], torch.nn.Module]:
        return lambda: type(trunk)(ModernBertConfig(**{**raw, **changes}))

    wrong = check_it_bites(
        trunk,
        rows[LENGTHS.index(300)],
        {
            "a window of 63": other(local_attention=126),
            "a window of 65": other(local_attention=130),
            "no window": other(layer_types=["full_attention"] * len(kinds)),
            "one theta": other(local_rope_theta=160000.0),
            "all local": other(layer_types=["sliding_attention"] * len(kinds)),
        },
    )
    tanh = other(hidden_activation="gelu_pytorch_tanh")
    weights = {name: value for name, value in model.state_dict().items() if name != "decoder.weight"}
    wrong_tanh = check_it_bites(trunk, rows[3], {"tanh instead of erf GELU": tanh})
    assert wrong_tanh["tanh instead of erf GELU"] > 2e-5, wrong_tanh
    store(folder, raw, weights, trunk, rows, wrong, masked_logits(model, rows, 4))


def record_embeddinggemma() -> None:
    """Write embeddinggemma: windows of 256 each side on two of three layers, 2_Dense and 3_Dense, prompts."""
    folder = begin("embeddinggemma")
    tokenizer = make_tokenizer(GEMMA_SPECIALS, "<unk>", "<bos> $A <eos>", "<bos> $A <eos> $B <eos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    save_tokenizer(tokenizer, folder, 2048, names)
    raw: dict[str, Any] = {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "_sliding_window_pattern": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "max_position_embeddings": 2048,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "torch_dtype": "float32",
    }
    model = Gemma3TextModel(Gemma3TextConfig(**raw)).eval()
    randomise(model, 71, {"norm": 0.3, "q_norm": 1.5, "k_norm": 1.5})
    rows = rows_for((*LENGTHS, 257, 258, 600, 1200, 2000), 72, VOCABULARY, padding=0)

    def other(**changes: Any) -> Callable[[], torch.nn.Module]:
        return lambda: Gemma3TextModel(Gemma3TextConfig(**{**raw, **changes}))

    wrong = check_it_bites(
        model,
        next(row for row in rows if row["length"] == 600),
        {
            "a window of 255": other(sliding_window=510),
            "a window of 257": other(sliding_window=514),
            "no window": other(sliding_window=4096),
            "one theta": other(rope_local_base_freq=1000000.0),
            "scores by head_dim": other(query_pre_attn_scalar=32),
        },
    )
    store(folder, raw, dict(model.state_dict()), model, rows, wrong)
    record_gemma_pipeline(folder)


def record_gemma_pipeline(folder: Path) -> None:
    """Add the pipeline of the published repository, and sentence-transformers' vectors of some texts."""
    from sentence_transformers import SentenceTransformer

    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Dense", "Dense")]
    kinds.append(("4_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True, "include_prompt": True}
    write_json(folder / "1_Pooling/config.json", pooling)
    for seed, (name, shape) in enumerate({"2_Dense": (48, 80), "3_Dense": (80, 48)}.items(), start=75):
        dense = torch.nn.Linear(*shape, bias=False)
        randomise(dense, seed)
        settings = {"in_features": shape[0], "out_features": shape[1], "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        write_json(folder / name / "config.json", settings)
        save_file({"linear.weight": dense.weight.detach().contiguous()}, folder / name / "model.safetensors")
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    corpus = read_corpus()
    texts = [corpus[3][:40], corpus[5][:200], corpus[8][:90], " ".join(corpus[10:16])[:1500]]
    model = SentenceTransformer(str(folder), device="cpu")
    found = {
        "plain": model.encode(texts, batch_size=1),
        "query": model.encode(texts, batch_size=1, prompt_name="query"),
        "document": model.encode(texts, batch_size=1, prompt_name="document"),
    }
    np.savez_compressed(folder / "vectors.npz", **found)
    write_json(folder / "vectors.json", {"texts": texts})


def record() -> None:
    """Write all of them."""
    record_xlm_roberta()
    record_roberta()
    record_modernbert()
    record_embeddinggemma()
