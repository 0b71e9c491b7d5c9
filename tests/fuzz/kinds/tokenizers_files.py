"""tokenizer.json part by part, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import Seen, copied, edit_json, load, use
from fuzz.values import edited, edits, odd

FILES = True
SETTINGS = [
    *("tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "bos_token"),
    *("eos_token", "unk_token", "cls_token", "mask_token", "added_tokens_decoder", "additional_special_tokens"),
    *("extra_special_tokens", "split_special_tokens", "model_max_length", "truncation_side", "add_bos_token"),
    *("add_eos_token", "fast_tokenizer_files", "auto_map", "model_input_names", "chat_template", "padding_side"),
]
PATTERNS = [
    {"String": "h"},
    {"String": ""},
    {"Regex": "(?=l)"},
    {"Regex": "(l+)+$"},
    {"Regex": "("},
    {"Regex": "\\s+"},
    {"Regex": "(.|.)*z"},
    {"Regex": "[a-z]{1,9999}"},
    {"String": 5},
]
CONTENTS = ["", "x", "hh", "h" * 300, "▁"]
_replace = st.builds(
    lambda pattern, content: {"type": "Replace", "pattern": pattern, "content": content},
    st.sampled_from(PATTERNS),
    st.sampled_from(CONTENTS),
)
_plain = st.sampled_from(["NFC", "NFKD", "NFKC", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Nothing"])
NORMALIZERS = st.one_of(
    _replace,
    _plain.map(lambda kind: {"type": kind}),
    st.sampled_from(
        [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Prepend", "prepend": "x" * 500},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Precompiled", "precompiled_charsmap": ""},
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
        ]
    ),
)
SPLITTERS = st.one_of(
    st.builds(
        lambda pattern, behavior, invert: {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert},
        st.sampled_from(PATTERNS),
        st.sampled_from(["Isolated", "Removed", "MergedWithPrevious", "Contiguous", "Odd"]),
        st.booleans(),
    ),
    st.sampled_from(
        [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            {"type": "Metaspace", "replacement": "long", "prepend_scheme": "always", "split": True},
            {"type": "WhitespaceSplit"},
            {"type": "BertPreTokenizer"},
            {"type": "Digits", "individual_digits": True},
            {"type": "Punctuation", "behavior": "Isolated"},
            {"type": "UnicodeScripts"},
            {"type": "FixedLength", "length": 0},
        ]
    ),
)
DECODERS = st.one_of(
    _replace,
    st.sampled_from(
        [
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "Strip", "content": " ", "start": 2**40, "stop": 0},
            {"type": "WordPiece", "prefix": "##", "cleanup": True},
            {"type": "BPEDecoder", "suffix": "</w>"},
            {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        ]
    ),
)
MODELS: list[Any] = [
    {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": "x"},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "byte_fallback": True, "dropout": 2.0},
    {"type": "BPE", "vocab": {"h": 0, "e": 1}, "merges": [], "continuing_subword_prefix": "##", "fuse_unk": True},
    {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[U]"},
    {"type": "WordLevel", "vocab": {"a": 0, "[U]": 2**32 - 1}, "unk_token": "[U]"},
    {"type": "WordLevel", "vocab": {"a": 0, "[U]": 500}, "unk_token": "[U]"},
    {"type": "WordLevel", "vocab": {"a": 7, "[U]": 7}, "unk_token": "[U]"},
    {
        "type": "WordPiece",
        "vocab": {"a": 0, "[UNK]": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 2**62,
    },
    {
        "type": "WordPiece",
        "vocab": {"a": 0},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 100,
    },
    {
        "type": "WordPiece",
        "vocab": {"": 0, "[UNK]": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 100,
    },
    {"type": "Unigram", "vocab": [["<unk>", 0.0], ["h", -1.0]], "unk_id": 0},
    {"type": "Unigram", "vocab": [["<unk>", 0.0], ["h", -1.0]], "unk_id": 9},
    {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None},
    {
        "type": "Unigram",
        "vocab": [["<unk>", 0.0], ["h", float("inf")], ["", 1e300]],
        "unk_id": 0,
        "byte_fallback": True,
    },
    {"type": "Unigram", "vocab": [], "unk_id": 0},
    {"type": "WordLevel", "vocab": {}, "unk_token": ""},
    {},
    None,
]
_piece = st.sampled_from(
    [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"SpecialToken": {"id": "gone", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 2**32 - 1}},
    ]
)
PROCESSORS = st.one_of(
    st.builds(
        lambda single, pair, ids: {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        st.lists(_piece, max_size=4).map(lambda pieces: pieces * 1),
        st.lists(_piece, max_size=4),
        st.sampled_from([[2], [], [2**32 - 1], [2] * 3000, [10**6]]),
    ),
    st.sampled_from(
        [
            {
                "type": "RobertaProcessing",
                "sep": ["</s>", 2**32 - 1],
                "cls": ["<s>", 0],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
            {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "Sequence", "processors": []},
            None,
        ]
    ),
)


def _several(part: str, steps: str, one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.tuples(st.lists(one, max_size=4), st.sampled_from([1, 1, 1, 10, 30]))
    chain = many.map(lambda drawn: {"type": "Sequence", steps: drawn[0] * drawn[1]})
    return st.tuples(st.just("part"), st.just(part), st.one_of(one, chain, st.none(), odd()))


_token = st.builds(
    lambda at, text, special, normalized: {
        "id": at,
        "content": text,
        "special": special,
        "normalized": normalized,
        "single_word": False,
        "lstrip": False,
        "rstrip": True,
    },
    st.sampled_from([0, 1, 120, 198, 199, 5000, 2**31, 2**32 - 1, -1]),
    st.sampled_from(["", "h", "hello", "[MASK]", " ", "x" * 2000, "é\u0301"]),
    st.booleans(),
    st.booleans(),
)


def cases() -> st.SearchStrategy[Any]:
    change = st.one_of(
        _several("normalizer", "normalizers", NORMALIZERS),
        _several("pre_tokenizer", "pretokenizers", SPLITTERS),
        _several("decoder", "decoders", DECODERS),
        st.tuples(st.just("part"), st.just("post_processor"), PROCESSORS),
        st.tuples(st.just("part"), st.just("model"), st.sampled_from(MODELS)),
        st.tuples(st.just("tokens"), st.just("added_tokens"), st.lists(_token, max_size=3)),
        st.tuples(
            st.just("part"),
            st.sampled_from(["truncation", "padding", "version", "unknown", "added_tokens"]),
            st.one_of(
                odd(),
                st.sampled_from(
                    [
                        {"direction": "Left", "max_length": 2**63, "strategy": "LongestFirst", "stride": 0},
                        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 9},
                        {
                            "strategy": {"Fixed": 10**12},
                            "direction": "Right",
                            "pad_to_multiple_of": None,
                            "pad_id": 0,
                            "pad_type_id": 0,
                            "pad_token": "[PAD]",
                        },
                    ]
                ),
            ),
        ),
        st.tuples(
            st.just("settings"), st.sampled_from(["tokenizer_config.json", "special_tokens_map.json"]), edits(SETTINGS)
        ),
        st.tuples(
            st.just("model"),
            st.just("model"),
            edits(["dropout", "unk_token", "byte_fallback", "ignore_merges", "vocab"]),
        ),
    )
    return st.tuples(st.sampled_from(["bert", "roberta", "gemma", "qwen3", "generates", "sees", "masked"]), change)


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, (change, name, value) = case
    folder = copied(bases, base, place)
    path = folder / (name if change == "settings" else "tokenizer.json")
    stored = json.loads(path.read_text()) if path.exists() else {"unk_token": "[UNK]"}
    if change == "settings":
        stored = edited(stored, value)
    elif change == "model":
        stored["model"] = edited(stored["model"], value)
    elif change == "tokens":
        stored["added_tokens"] += value
    else:
        stored[name] = value
    edit_json(path, stored)
    use(load(folder, seen), seen, ["hello world", "hel" + "l" * 40 + "o", "é[MASK] 1"])
