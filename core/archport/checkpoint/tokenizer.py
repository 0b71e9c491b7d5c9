"""A checkpoint's tokenizer as a `tokenizers.Tokenizer`, from whichever files it ships.

Knows file names and the classic BERT vocabulary. Knows nothing of prompts, limits or batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.files import read_object
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "tokenizer.tiktoken")


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer, without truncation and padding; the same object at every call for one checkpoint.

    Files may store both (a limit of 128 and padding to it, in a well-known one), which would cut texts silently.

    Raises:
        CheckpointError: no tokenizer files, or files that can't be read.
    """
    if "tokenizer" not in checkpoint.memo:
        folder = checkpoint.body_path
        # Old pipelines keep the tokenizer next to the transformer, some next to the pipeline.
        places = [folder] if folder == checkpoint.folder else [folder, checkpoint.folder]
        tokenizer = next((found for place in places if (found := _read(place)) is not None), None)
        if tokenizer is None:
            raise CheckpointError(
                f"{folder}: there is no tokenizer; looked for tokenizer.json, vocab.txt, {', '.join(_SLOW_FILES)}. "
                "Fetch the tokenizer files of the model that these weights come from."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        checkpoint.memo["tokenizer"] = tokenizer
    return checkpoint.memo["tokenizer"]


def no_tokenizer() -> Tokenizer:
    """A tokenizer without any token, for a model that reads no text."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"": 0}, unk_token=""))


def _read(folder: Path) -> Tokenizer | None:
    fast = folder / "tokenizer.json"
    if fast.is_file():
        return _from_json(fast)
    if (folder / "vocab.txt").is_file():
        return _from_vocabulary(folder)
    if any((folder / name).is_file() for name in _SLOW_FILES):
        return _converted(folder)
    return None


def _from_json(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    # The library raises a bare Exception.
    except Exception as error:
        # A git-lfs pointer or a cut file gets its own message.
        read_object(path)
        raise CheckpointError(
            f"{path}: the tokenizers library can't read it ({error}). Fetch the file again, or update tokenizers."
        ) from error


def _text(value: Any, default: str) -> str:
    """A special token's text: configs spell it as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _from_vocabulary(folder: Path) -> Tokenizer:
    """The WordPiece tokenizer that a BERT vocabulary file means."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    settings = read_object(folder / "tokenizer_config.json") or {}
    unknown = _text(settings.get("unk_token"), "[UNK]")
    cls, sep = _text(settings.get("cls_token"), "[CLS]"), _text(settings.get("sep_token"), "[SEP]")
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / 'vocab.txt'}: not UTF-8 text ({error}). Fetch the file again.") from error
    # A token may contain other Unicode line ends, so only \n separates; the file ends with one.
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    missing = [token for token in (unknown, cls, sep) if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{folder / 'vocab.txt'}: the special tokens {', '.join(missing)} are not among its {len(vocabulary):,} "
            "lines. Expected a BERT vocabulary, or a tokenizer.json."
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    defaults = ("[PAD]", unknown, cls, sep, "[MASK]")
    special = [_text(settings.get(name), default) for name, default in zip(names, defaults, strict=True)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special if token in vocabulary])
    return tokenizer


def _converted(folder: Path) -> Tokenizer:
    """Slow files only: transformers knows how to convert them, and is imported for nothing else."""
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return loaded.backend_tokenizer
    # It raises whatever the conversion of this kind of file raises.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: there is no tokenizer.json, and converting the older files failed "
            f"({type(error).__name__}: {error}). Save a fast tokenizer into the folder: "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        ) from error


def mask_token(checkpoint: Checkpoint) -> int | None:
    """The vocabulary id of the token that stands for a masked word, None when the files name none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        folder = f"{checkpoint.body}/" if checkpoint.body else ""
        stated = (checkpoint.json(f"{folder}{name}") or {}).get("mask_token")
        token = stated.get("content") if isinstance(stated, dict) else stated
        if isinstance(token, str):
            return checkpoint.token_id(token)
    return next((found for name in ("[MASK]", "<mask>") if (found := checkpoint.token_id(name)) is not None), None)
