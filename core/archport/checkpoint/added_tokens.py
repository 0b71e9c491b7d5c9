"""Which tokens the files of a tokenizer name besides its vocabulary, how they join it, and what is put around texts.

The files are tokenizer_config.json (with `added_tokens_decoder`, special tokens by name, further ones in lists),
special_tokens_map.json, added_tokens.json and tokenizer.json. Which of them wins is as transformers 5.23 has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archport.checkpoint.disk import inside, read_object
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """The tokens besides a vocabulary.

    Args:
        listed: in the order of the ids that their file gives them.
        named: `bos_token` and the like, the names of a model's own included; None where a file says that there is none.
        extra: special tokens without a name.
    """

    listed: tuple[AddedToken, ...]
    named: Mapping[str, str | AddedToken | None]
    extra: tuple[str | AddedToken, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the named and the further special tokens, each once."""
        found = (content(token) for token in (*self.named.values(), *self.extra) if token is not None)
        return tuple(dict.fromkeys(found))

    def text(self, name: str) -> str | None:
        """The text of a named token."""
        found = self.named.get(name)
        return None if found is None else content(found)


def content(token: Any) -> str:
    """The text of a token."""
    return token if isinstance(token, str) else token.content


def read_added_tokens(
    folder: Path, settings: Mapping[str, Any], given: Mapping[str, Any], stored: Mapping[int, AddedToken]
) -> AddedTokens:
    """The tokens that the files in a folder name.

    Args:
        settings: tokenizer_config.json under what the pipeline hands on.
        given: what the pipeline hands on, which wins over special_tokens_map.json.
        stored: the added tokens of tokenizer.json by id.

    Raises:
        CheckpointError: a token that is none.
    """
    where = f"{folder / 'tokenizer_config.json'}"
    values = dict(settings)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    named = {
        key: value
        for key, value in values.items()
        if key not in NAMED and key.endswith("_token") and isinstance(value, str | dict) and value
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        named |= values.pop("extra_special_tokens")
    by_id: dict[int, AddedToken] = {}
    decoder = values.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise CheckpointError(f"{where}: added_tokens_decoder={decoder!r:.80}; expected id to token.")
        by_id = {_index(where, key): _token(where, value, special=False) for key, value in decoder.items()}
    else:
        named |= _special_tokens_map(folder, values, given)
        by_id = _older(folder, values, stored)
    known = {token.content: token for token in by_id.values()}
    found: dict[str, str | AddedToken | None] = {}
    for key in (*NAMED, *named):
        if key not in values and key not in named:
            continue
        value = named.get(key, values.get(key))
        if value is None:
            found[key] = None
            continue
        token = value if isinstance(value, str) else _token(where, value)
        found[key] = known.get(content(token), token) if key in NAMED else token
    extra = values.get("extra_special_tokens", values.get("additional_special_tokens")) or ()
    if not isinstance(extra, list | tuple):
        raise CheckpointError(f"{where}: extra_special_tokens={extra!r:.80}; expected a list of tokens.")
    tokens = tuple(value if isinstance(value, str) else _token(where, value) for value in extra)
    return AddedTokens(tuple(by_id[index] for index in sorted(by_id)), found, tokens)


def _special_tokens_map(folder: Path, values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge special_tokens_map.json into `values`; returns tokens that it names beyond the usual names."""
    found: dict[str, Any] = {}
    for key, value in (read_object(inside(folder, "special_tokens_map.json", "a tokenizer")) or {}).items():
        if given.get(key):
            continue
        if key == "extra_special_tokens" and isinstance(value, list):
            value = [*(values.get(key) or []), *(token for token in value if token not in (values.get(key) or []))]
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = {**value, "special": True}
        values[key] = value
        if key not in NAMED and key.endswith("_token") and value:
            found[key] = value
    if isinstance(values.get("extra_special_tokens"), dict):
        found |= values.pop("extra_special_tokens")
    return found


def _older(folder: Path, values: Mapping[str, Any], stored: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """Tokens of added_tokens.json, and over them those of tokenizer.json, by id."""
    from tokenizers import AddedToken

    where = f"{folder / 'added_tokens.json'}"
    extra = values.get("extra_special_tokens") or []
    special = {_text(values.get(name)) for name in NAMED} | {_text(token) for token in extra}
    found: dict[int, AddedToken] = {}
    for text, index in (read_object(inside(folder, "added_tokens.json", "a tokenizer")) or {}).items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise CheckpointError(f"{where}: {text!r} has the id {index!r}; expected a number.")
        found[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return found | dict(stored)


def _text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _index(where: str, key: Any) -> int:
    try:
        return int(key)
    except ValueError:
        raise CheckpointError(f"{where}: added_tokens_decoder holds the id {key!r}; expected a number.") from None


def _token(where: str, value: Any, *, special: bool = True) -> AddedToken:
    """A token that a file spells as an object; `special` where the file does not say."""
    from tokenizers import AddedToken

    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where}: {value!r:.120} is no token; expected a text, or an object with `content`.")
    flags = {name: value[name] for name in _FLAGS if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{where}: the token {value['content']!r} has the flags {flags}; expected true or false.")
    # One that names its type is made before anybody calls it special.
    flags.setdefault("special", special and "__type" not in value)
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(value["content"], **flags)


def join(tokenizer: Tokenizer, added: AddedTokens) -> None:
    """Add the tokens to a tokenizer that does not hold them yet, in the reference's order."""
    from tokenizers import AddedToken

    held = tokenizer.get_added_tokens_decoder()
    same = {repr(token) for token in held.values()}
    joining: list[str | AddedToken] = [token for token in added.listed if repr(token) not in same]
    encoder = {token.content for token in held.values()} | {content(token) for token in joining}
    names = {content(token) for token in added.named.values() if token is not None}
    for token in (*added.named.values(), *added.extra):
        if token is not None and content(token) not in encoder and token not in joining:
            joining.append(token)
    if not joining:
        return
    ready: list[str | AddedToken] = []
    for token in joining:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif not token.special and token.content in names:
            token.special = True
        ready.append(token)
    tokenizer.add_tokens(ready)


def put_around(tokenizer: Tokenizer, values: Mapping[str, Any], added: AddedTokens) -> None:
    """Put the tokens of `add_bos_token` and `add_eos_token` around texts, and nothing else."""
    from tokenizers import processors

    bos = added.text("bos_token") if values.get("add_bos_token") else None
    eos = added.text("eos_token") if values.get("add_eos_token") else None
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    second = [*([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])]
    ids = [(token, found) for token in (bos, eos) if token and (found := tokenizer.token_to_id(token)) is not None]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=[*single, *second], special_tokens=ids)


def put_nothing_around(tokenizer: Tokenizer) -> None:
    """Leave texts without special tokens, and the types that the tokenizer gives the texts of a pair then.

    Without a post-processor the library's fast way to encode would give both the same.
    """
    from tokenizers import processors

    types = tokenizer.encode("a", "a", add_special_tokens=False).type_ids
    second = types[-1] if types else 1
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair=f"$A:0 $B:{second}", special_tokens=[])
