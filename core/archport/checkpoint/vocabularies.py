"""The lists of words that older checkpoints have next to, or in place of, a tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archport.checkpoint.added_tokens import AddedTokens
from archport.checkpoint.disk import MOST_ENTRIES, inside, read_text
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def lines(path: Path) -> list[str]:
    """The lines of a list; raises CheckpointError for more than any vocabulary has."""
    text = (read_text(path) or "").replace("\r\n", "\n").replace("\r", "\n")
    count = text.count("\n")
    if count > MOST_ENTRIES:
        raise CheckpointError(f"{path}: holds {count:,} lines; expected at most {MOST_ENTRIES:,}.")
    return text.split("\n")


def word_pieces(folder: Path) -> Any:
    """The WordPiece vocabulary of a vocab.txt."""
    from tokenizers import models

    words = lines(inside(folder, "vocab.txt", "a tokenizer"))
    # A token may contain other Unicode line ends, so only \n separates; the file ends with one.
    if words and not words[-1]:
        words.pop()
    return models.WordPiece({line.rstrip(): index for index, line in enumerate(words)}, unk_token="[UNK]")


def check_vocabulary(folder: Path, tokenizer: Tokenizer, named: Mapping[str, str | None], added: AddedTokens) -> None:
    """Raise CheckpointError for special tokens that a vocab.txt lacks."""
    listed = {token.content for token in added.listed}
    needed = [text for name in ("unk_token", "cls_token", "sep_token") if (text := named[name]) is not None]
    missing = [text for text in needed if tokenizer.token_to_id(text) is None and text not in listed]
    if missing:
        raise CheckpointError(
            f"{folder / 'vocab.txt'}: the special tokens {', '.join(missing)} are not among its "
            f"{tokenizer.get_vocab_size():,} lines. Expected a BERT vocabulary, or a tokenizer.json."
        )
