"""Tokenizer classes that transformers 5 makes anew, whatever tokenizer.json says, and how each is put together from
vocabulary, settings and special tokens.

A class with a constructor of its own takes vocabulary and merges from tokenizer.json, and some its post-processor;
normaliser, splitting and decoder are the class's, by the keys of tokenizer_config.json. All other classes are
tokenizer.json as it is. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from archport.contract.errors import CheckpointError

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Marks belong to the letters before them.
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

Named = Mapping[str, str | None]
MOST_SENTINELS = 10_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one class is put together.

    Args:
        model: the kind of vocabulary that it takes from tokenizer.json.
        defaults: its special tokens where no file says otherwise; None for none.
        build: (tokenizer with nothing but its vocabulary, settings, special tokens, tokenizer.json's normalisers).
        close: sets the post-processor after the special tokens' joining; None keeps that of tokenizer.json.
        marks: whether its special tokens lose the flags that files gave them.
        unknown: id of a Unigram vocabulary's unknown token, whatever the file says; None looks its text up.
        extra: special tokens without a name that it has, by the settings, where no file lists any.
    """

    model: str
    defaults: Named
    build: Callable[[Tokenizer, Mapping[str, Any], Named, list[Any]], None]
    close: Callable[[Tokenizer, Mapping[str, Any], Named], None] | None = None
    marks: bool = False
    unknown: int | None = None
    extra: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda _: ()


def _bert(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    model: Any = tokenizer.model
    model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word = (
        str(named["unk_token"]),
        "##",
        100,
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
        strip_accents=_maybe(settings, "strip_accents"),
        lowercase=_flag(settings, "do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")


def _close_bert(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    cls, sep = _required(named, "cls_token"), _required(named, "sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(cls, _id(tokenizer, cls)), (sep, _id(tokenizer, sep))],
    )


def _byte_level(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    _plain_bpe(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()


def _close_roberta(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    cls, sep = _required(named, "cls_token"), _required(named, "sep_token")
    prefix = _flag(settings, "add_prefix_space", False)
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, _id(tokenizer, sep)), (cls, _id(tokenizer, cls)), _flag(settings, "trim_offsets", True), prefix
    )


def _close_mpnet(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    cls, sep = _required(named, "cls_token"), _required(named, "sep_token")
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, _id(tokenizer, sep)), (cls, _id(tokenizer, cls)), True, False
    )


def _xlm_roberta(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    mapped = [each for each in normalisers if isinstance(each, normalizers.Precompiled)]
    if mapped:
        tokenizer.normalizer = mapped[0]
    # Here null means no.
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)


def _close_xlm_roberta(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    bos, eos = _required(named, "bos_token"), _required(named, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[(bos, _id(tokenizer, bos)), (eos, _id(tokenizer, eos))],
    )


def _albert(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    mapped = [each for each in normalisers if isinstance(each, normalizers.Precompiled)]
    _xlm_roberta(tokenizer, settings, named, normalisers)
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence([*steps, *mapped[:1]])


def _t5(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    _xlm_roberta(tokenizer, {}, named, normalisers)


def _close_t5(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    # The class puts this text there, with the id of whatever ends texts.
    ends = [("</s>", _id(tokenizer, _required(named, "eos_token")))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=ends
    )


def _sentinels(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """T5's marks of what was left out of a text, which files may number otherwise than by a hundred."""
    count = settings.get("extra_ids", 100)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_SENTINELS:
        raise CheckpointError(
            f"tokenizer_config.json: extra_ids={count!r:.80}; expected a number from 0 to {MOST_SENTINELS:,}."
        )
    return tuple(f"<extra_id_{index}>" for index in range(count))


def _deberta(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    steps: list[Any] = [normalizers.Lowercase()] if _flag(settings, "do_lower_case", False) else []
    steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(left=False, right=True)])
    scheme = "always" if settings.get("add_prefix_space", True) else "first"
    split: list[Any] = [pre_tokenizers.Punctuation("isolated")] if _flag(settings, "split_by_punct", False) else []
    split.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)


def _clip(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    _plain_bpe(tokenizer, unk=str(named["unk_token"]))
    model: Any = tokenizer.model
    model.continuing_subword_prefix, model.end_of_word_suffix = "", "</w>"
    steps: list[Any] = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()


def _close_clip(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named) -> None:
    bos, eos = _required(named, "bos_token"), _required(named, "eos_token")
    tokenizer.post_processor = processors.RobertaProcessing(
        (eos, _id(tokenizer, eos)), (bos, _id(tokenizer, bos)), False, False
    )


def _gemma(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    _plain_bpe(tokenizer, unk=str(named["unk_token"]), fuse=True, bytes_too=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _llama(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
    _plain_bpe(tokenizer, fuse=True, bytes_too=True)
    prefix = _flag(settings, "add_prefix_space", True)
    scheme = "never" if not prefix else "always" if _flag(settings, "legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def _qwen(pattern: str) -> Callable[[Tokenizer, Mapping[str, Any], Named, list[Any]], None]:
    def build(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Named, normalisers: list[Any]) -> None:
        _plain_bpe(tokenizer)
        prefix = _flag(settings, "add_prefix_space", False)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()

    return build


def _plain_bpe(tokenizer: Tokenizer, *, unk: str | None = None, fuse: bool = False, bytes_too: bool = False) -> None:
    """Set the switches of a BPE vocabulary; those that the class does not name are off."""
    model: Any = tokenizer.model
    model.dropout, model.unk_token, model.fuse_unk, model.byte_fallback = None, unk, fuse, bytes_too
    model.ignore_merges = False


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key, default)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise CheckpointError(f"tokenizer_config.json: {key}={value!r}; expected true or false.")
    return value


def _maybe(settings: Mapping[str, Any], key: str) -> bool | None:
    return None if settings.get(key) is None else _flag(settings, key, False)


def _required(named: Named, key: str) -> str:
    found = named[key]
    if found is None:
        raise CheckpointError(
            f"tokenizer_config.json: {key} is null, and this class of tokenizer puts it around texts."
        )
    return found


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, "a named token has joined the vocabulary"
    return found


_BERT_TOKENS: Named = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS: Named = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_ALBERT_TOKENS: Named = {
    **_BERT_TOKENS,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_T5_TOKENS: Named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_DEBERTA_TOKENS: Named = {**_BERT_TOKENS, "bos_token": "[CLS]", "eos_token": "[SEP]"}
_END = "<|endoftext|>"
_CLIP_TOKENS: Named = {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END}
_QWEN_TOKENS: Named = {"bos_token": None, "eos_token": _END, "unk_token": _END, "pad_token": _END}
_BERT = Recipe("WordPiece", _BERT_TOKENS, _bert, _close_bert)

RECIPES: Mapping[str, Recipe] = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "MPNetTokenizer": Recipe("WordPiece", {**_ROBERTA_TOKENS, "unk_token": "[UNK]"}, _bert, _close_mpnet),
    "CamembertTokenizer": Recipe("Unigram", _ROBERTA_TOKENS, _xlm_roberta, _close_xlm_roberta),
    "AlbertTokenizer": Recipe("Unigram", _ALBERT_TOKENS, _albert, _close_bert, unknown=1),
    "T5Tokenizer": Recipe("Unigram", _T5_TOKENS, _t5, _close_t5, unknown=2, extra=_sentinels),
    "DebertaV2Tokenizer": Recipe("Unigram", _DEBERTA_TOKENS, _deberta, _close_bert),
    "CLIPTokenizer": Recipe("BPE", _CLIP_TOKENS, _clip, _close_clip),
    "RobertaTokenizer": Recipe("BPE", _ROBERTA_TOKENS, _byte_level, _close_roberta),
    "XLMRobertaTokenizer": Recipe("Unigram", _ROBERTA_TOKENS, _xlm_roberta, _close_xlm_roberta, unknown=3),
    "GemmaTokenizer": Recipe(
        "BPE",
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        _gemma,
    ),
    "LlamaTokenizer": Recipe(
        "BPE",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        _llama,
    ),
    "Qwen2Tokenizer": Recipe("BPE", _QWEN_TOKENS, _qwen(_QWEN2), marks=True),
    "Qwen3_5Tokenizer": Recipe("BPE", _QWEN_TOKENS, _qwen(_QWEN35)),
}
