"""Texts of any characters and length, for every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import Seen, loaded
from fuzz.values import ODD_TEXTS

FILES = False
ALPHABET = "abc \n\t[]<|>_é漢🦆\u0301\u200b\u202e\ufeff\u0000\ud800▁Ġ0"
SPECIAL = [
    "[MASK]",
    "[CLS]",
    "<|im_end|>",
    "<|image_pad|>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "[UNK]",
    "##s",
    "a" * 700,
    " " * 9000,
    "a," * 20_000,
    "\u0301" * 3000,
    "x" * 300_000,
]


def cases() -> st.SearchStrategy[Any]:
    text = st.one_of(
        st.text(max_size=60),
        st.text(st.sampled_from(ALPHABET), max_size=40),
        st.lists(st.sampled_from([*SPECIAL, *ODD_TEXTS]), max_size=3).map("".join),
    )
    return st.tuples(
        st.sampled_from(
            ["bert", "labels", "masked", "roberta", "modernbert", "gemma", "qwen3", "generates", "hybrid", "sees"]
        ),
        st.sampled_from(
            ["embed", "truncate", "query", "rerank", "classify", "pair", "fill_mask", "generate", "stop", "chat"]
        ),
        st.lists(text, max_size=4),
        st.sampled_from([None, "error", "truncate"]),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, task, texts, overflow = case
    model = loaded(base, bases, seen)
    options: dict[str, Any] = {} if overflow is None else {"overflow": overflow}
    first = texts[0] if texts else ""
    if task == "embed":
        model.embed(texts, **options)
    elif task == "truncate":
        model.embed(texts, max_tokens=8, overflow="truncate")
    elif task == "query":
        model.encode_query(first, prompt=texts[-1] if texts else None)
    elif task == "rerank":
        model.rerank(first, texts, **options)
    elif task == "classify":
        model.classify(texts, **options)
    elif task == "pair":
        model.classify([(first, text) for text in texts], **options)
    elif task == "fill_mask":
        model.fill_mask(texts, **options)
    elif task == "generate":
        model.generate(first, max_tokens=3)
    elif task == "stop":
        model.generate(first, max_tokens=3, stop=texts)
    else:
        model.generate([{"role": "user", "content": text} for text in texts], max_tokens=3)
    seen.reached = True
