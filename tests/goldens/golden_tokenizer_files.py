"""Record the ids of transformers where a tiny tokenizer's files say something else: tokenizer_files.json.gz.

Every family's tokenizer is trained on a few words; a case draws keys of tokenizer_config.json, special_tokens_map.json
and added_tokens.json from a seed, or takes tokenizer.json away where its vocabulary is enough.
"""

import gzip
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recording import HERE, versions
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

WORDS = [
    "The Cat sleeps",
    "hello world naps",
    "what is the capital of China?",
    "café naïve",
    "日本 日本",
    "a dog b c",
] * 20
TEXTS = [
    "<MARK> the Cat [unused1] <FOO> <X> <image>dog b c<M3> <MASK2>",
    "naps sleeps Cat\n  [MASK] <mask>  café 日本 It's 123",
    "Hello, WORLD! </s><s> naïve <|im_end|>x",
]
COUNT = 260
END, IM_END = "<|endoftext|>", "<|im_end|>"
Files = dict[str, Any]


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    """The tokenizer with a vocabulary."""
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def bert() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return tokenizer, {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **names}


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    return trained(tokenizer, trainer)


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def roberta() -> tuple[Tokenizer, Files]:
    tokenizer = byte_level(ROBERTA)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer, {"tokenizer_class": "RobertaTokenizer", **ROBERTA_NAMES}


def ends_with_endoftext(name: str) -> Callable[[], tuple[Tokenizer, Files]]:
    def make() -> tuple[Tokenizer, Files]:
        tokenizer = byte_level([END, "<|im_start|>", IM_END])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, 0)]
        )
        return tokenizer, {"tokenizer_class": name, "eos_token": IM_END, "pad_token": END}

    return make


def xlm_roberta() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trained(tokenizer, trainers.UnigramTrainer(vocab_size=90, special_tokens=ROBERTA, unk_token="<unk>"))
    return tokenizer, {"tokenizer_class": "XLMRobertaTokenizer", **ROBERTA_NAMES}


def mpnet() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer, {"tokenizer_class": "MPNetTokenizer", **ROBERTA_NAMES, "unk_token": "[UNK]"}


def albert() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trained(tokenizer, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return tokenizer, {"tokenizer_class": "AlbertTokenizer", **names}


def camembert() -> tuple[Tokenizer, Files]:
    tokenizer, config = xlm_roberta()
    return tokenizer, {**config, "tokenizer_class": "CamembertTokenizer"}


def t5() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trained(tokenizer, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>"))
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    return tokenizer, {"tokenizer_class": "T5Tokenizer", **names}


def deberta() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trained(tokenizer, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="[UNK]"))
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    return tokenizer, {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, **names}


def clip() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, ends = pre_tokenizers.ByteLevel.alphabet(), ["<|startoftext|>", END]
    trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=620, end_of_word_suffix="</w>", special_tokens=ends, initial_alphabet=alphabet),
    )
    names = {"bos_token": ends[0], "eos_token": END, "unk_token": END, "pad_token": END}
    return tokenizer, {"tokenizer_class": "CLIPTokenizer", **names}


def gemma() -> tuple[Tokenizer, Files]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trained(tokenizer, trainers.BpeTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special, strict=True))
    return tokenizer, {"tokenizer_class": "GemmaTokenizer", **names}


FAMILIES: dict[str, tuple[str, Callable[[], tuple[Tokenizer, Files]]]] = {
    "bert": ("bert", bert),
    "roberta": ("roberta", roberta),
    "xlm-roberta": ("xlm-roberta", xlm_roberta),
    "mpnet": ("mpnet", mpnet),
    "camembert": ("camembert", camembert),
    "albert": ("albert", albert),
    "t5": ("t5", t5),
    "deberta": ("deberta-v2", deberta),
    "clip": ("clip", clip),
    "gemma": ("gemma3_text", gemma),
    "qwen3": ("qwen3", ends_with_endoftext("Qwen2Tokenizer")),
    "qwen35": ("qwen3_5_text", ends_with_endoftext("Qwen2Tokenizer")),
    "modernbert": ("modernbert", ends_with_endoftext("PreTrainedTokenizerFast")),
    "llama": ("llama", ends_with_endoftext("LlamaTokenizer")),
}


def drawn(chance: random.Random, family: str, stored: dict[str, Any], config: Files) -> tuple[Files, list[str]]:
    """(small files of one case, files of the family that it lacks)."""

    def token(text: str, **more: Any) -> Files:
        flags = ("lstrip", "rstrip", "normalized", "single_word")
        return {"content": text, **{flag: chance.random() < 0.3 for flag in flags}, **more}

    choices: dict[str, list[Any]] = {
        "do_lower_case": [True, False, "absent"],
        "strip_accents": [True, False, None],
        "tokenize_chinese_chars": [True, False],
        "split_special_tokens": [True, False],
        "add_prefix_space": [True, False],
        "tokenizer_class": ["absent", None, "PreTrainedTokenizerFast", config["tokenizer_class"] + "Fast"],
        "legacy": [True, False],
        "extra_ids": [0, 3],
        "split_by_punct": [True, False],
        "add_bos_token": [True],
        "add_eos_token": [True],
        "mask_token": [token("<MASK2>", __type="AddedToken"), "sleeps"],
        "image_token": ["<image>", "dog"],
        "additional_special_tokens": [["<MARK>", "[unused1]"], ["cat"]],
        "extra_special_tokens": [["<X>"], {"foo_token": "<FOO>"}],
    }
    stated = dict(config)
    for key, values in choices.items():
        if chance.random() < 0.2:
            value = chance.choice(values)
            stated.pop(key, None) if value == "absent" else stated.update({key: value})
    size = len(stored["model"]["vocab"])
    if chance.random() < 0.3:
        own = [(entry["id"], entry["content"]) for entry in stored["added_tokens"]][: chance.randint(0, 5)]
        more = [(size, "<MARK>"), (size + 1, "b c")][: chance.randint(0, 2)]
        stated["added_tokens_decoder"] = {
            str(at): token(text, special=chance.random() < 0.5) for at, text in own + more
        }
    files: Files = {"tokenizer_config.json": stated}
    if chance.random() < 0.1:
        del files["tokenizer_config.json"]
    if chance.random() < 0.3:
        files["special_tokens_map.json"] = {"additional_special_tokens": ["<MARK>", "[unused1]"]}
        if chance.random() < 0.5:
            files["special_tokens_map.json"]["mask_token"] = token("<M3>")
    if chance.random() < 0.3:
        files["added_tokens.json"] = {"<MARK>": size, "[unused1]": size + 1}
    drop = [] if "tokenizer_config.json" in files else ["tokenizer_config.json"]
    if family in ("bert", "roberta", "qwen3") and chance.random() < 0.25:
        drop.append("tokenizer.json")
        vocabulary = stored["model"]["vocab"]
        if family == "bert":
            files["vocab.txt"] = "\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n"
        else:
            files["vocab.json"] = vocabulary
            files["merges.txt"] = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in stored["model"]["merges"])
    return files, drop


def record() -> None:
    """Write tokenizer_files.json.gz."""
    chance, families, cases = random.Random(4), {}, []
    for name, (model_type, make) in FAMILIES.items():
        tokenizer, config = make()
        families[name] = {
            "config.json": {"model_type": model_type},
            "tokenizer.json": json.loads(tokenizer.to_str()),
            "tokenizer_config.json": config,
        }
    for number in range(COUNT):
        family = list(FAMILIES)[number % len(FAMILIES)]
        own = families[family]
        files, drop = drawn(chance, family, own["tokenizer.json"], own["tokenizer_config.json"])
        with tempfile.TemporaryDirectory() as place:
            for name, value in ({name: value for name, value in own.items() if name not in drop} | files).items():
                (Path(place) / name).write_text(value if isinstance(value, str) else json.dumps(value))
            try:
                tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
                ids = [tokenizer(text)["input_ids"] for text in TEXTS] + [tokenizer(TEXTS[0], "b c")["input_ids"]]
            except Exception as error:  # a combination that the reference itself can't read
                print(f"{number} {family}: {type(error).__name__}: {error}"[:160])
                continue
        cases.append({"family": family, "files": files, "drop": drop, "class": type(tokenizer).__name__, "ids": ids})
    stored = {"versions": versions(), "texts": TEXTS, "families": families, "cases": cases}
    text = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
    (HERE / "tokenizer_files.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"tokenizer files: {len(cases)} cases")


if __name__ == "__main__":
    record()
