"""A checkpoint's tokenizer as a `tokenizers.Tokenizer`, from all files that may speak of it.

tokenizer.json, its settings, special tokens, vocabularies, what the pipeline hands on; which wins is as transformers
5.23 has it. Some classes are made anew, others are tokenizer.json as it is. What can't be followed is refused by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from archport.checkpoint.added_tokens import (
    NAMED,
    AddedTokens,
    content,
    join,
    put_around,
    put_nothing_around,
    read_added_tokens,
)
from archport.checkpoint.disk import LARGEST_TOKENIZER, check_entries, inside, read_object, read_text
from archport.checkpoint.files import Opened
from archport.checkpoint.growth import LONGEST_WORD, check_growth
from archport.checkpoint.tokenizer_names import GENERIC, TYPED, class_name, is_generic
from archport.checkpoint.transformer import TransformerSettings, transformer_settings
from archport.checkpoint.vocabularies import check_vocabulary, lines, word_pieces
from archport.contract.errors import ArchportError, CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from archport.checkpoint.tokenizer_classes import Recipe

# A value that only 32 bits without a sign hold. Begins with the colon, which is looked for fast.
_LARGE_VALUE = re.compile(r":[ \t\n\r]*[2-4][0-9]{9}")
_SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "tokenizer.tiktoken")


def load_tokenizer(checkpoint: Opened, *, lowercase: bool = False) -> Tokenizer:
    """The tokenizer, without truncation and padding; the same object at every call for one checkpoint.

    Files may store both (a limit of 128 and padding to it, in a well-known one), which would cut texts silently.

    Args:
        lowercase: one that lower-cases every text first, special tokens in it excepted.

    Raises:
        CheckpointError: no tokenizer files, files that can't be read, or a key that archport does not follow.
    """
    if "tokenizer" not in checkpoint.memo:
        checkpoint.memo["tokenizer"] = _found(checkpoint)
    if not lowercase:
        return checkpoint.memo["tokenizer"]
    if "lowercase tokenizer" not in checkpoint.memo:
        checkpoint.memo["lowercase tokenizer"] = _lowercased(checkpoint.memo["tokenizer"])
    return checkpoint.memo["lowercase tokenizer"]


def _found(checkpoint: Opened) -> Tokenizer:
    folder = checkpoint.body_path
    settings = transformer_settings(checkpoint.folder, checkpoint.route)
    tokenizer = next(
        (found for place in checkpoint.places if (found := _read(place, checkpoint, settings)) is not None), None
    )
    if tokenizer is None:
        raise CheckpointError(
            f"{folder}: there is no tokenizer; looked for tokenizer.json, vocab.txt, {', '.join(_SLOW_FILES)}. "
            "Fetch the tokenizer files of the model that these weights come from."
        )
    if not settings.special_tokens or tokenizer.post_processor is None:
        put_nothing_around(tokenizer)
    stored = tokenizer.truncation
    checkpoint.memo["truncation side"] = str(stored["direction"]).lower() if stored else "right"
    tokenizer.no_truncation()
    tokenizer.no_padding()  # of one that transformers converted
    return tokenizer


def special_tokens(checkpoint: Opened) -> tuple[Mapping[str, str], frozenset[str]]:
    """(`eos_token` and the like -> its text, which of the names a file states; the rest are the class's defaults).

    Raises:
        CheckpointError: as `load_tokenizer`.
    """
    load_tokenizer(checkpoint)
    return checkpoint.memo["special tokens"]


def truncation_side(checkpoint: Opened) -> Literal["right", "left"]:
    """The end at which a text that is too long is cut, where a caller asks for that.

    Raises:
        CheckpointError: a side that is none.
    """
    load_tokenizer(checkpoint)
    folder = f"{checkpoint.body}/" if checkpoint.body else ""
    stated = checkpoint.json(f"{folder}tokenizer_config.json") or {}
    values = {**stated, **transformer_settings(checkpoint.folder, checkpoint.route).tokenizer}
    side = values.get("truncation_side", checkpoint.memo["truncation side"])
    if side != "right" and side != "left":
        raise CheckpointError(f"{checkpoint.folder}: truncation_side={side!r}; expected 'right' or 'left'.")
    return side


def special_ids(checkpoint: Opened) -> frozenset[int]:
    """The vocabulary ids of the tokens that the files call special by name or in a list.

    A token that tokenizer.json alone marks as special is none of them.
    """
    tokenizer = load_tokenizer(checkpoint)
    ids = (tokenizer.token_to_id(text) for text in checkpoint.memo["special texts"])
    return frozenset(found for found in ids if found is not None)


def tells_pairs_apart(checkpoint: Opened) -> bool:
    """Whether the tokenizer gives each token of a pair the number of its text (token_type_ids).

    `model_input_names` says so, else the class of tokenizer.
    """
    load_tokenizer(checkpoint)
    return checkpoint.memo["tells pairs apart"]


def duplicate(tokenizer: Tokenizer) -> Tokenizer:
    """A copy to change."""
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(tokenizer.to_str())
    # Its serialisation leaves this switch out.
    copied.encode_special_tokens = tokenizer.encode_special_tokens
    return copied


def no_tokenizer() -> Tokenizer:
    """A tokenizer without any token, for a model that reads no text."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"": 0}, unk_token=""))


def _lowercased(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a lower-casing step in front of its own; itself where it has one."""
    from tokenizers import normalizers

    before = tokenizer.normalizer
    steps: list[Any] = list(cast(Any, before)) if isinstance(before, normalizers.Sequence) else [before]
    steps = [step for step in steps if step is not None]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return tokenizer
    lowered = duplicate(tokenizer)
    lowered.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return lowered


def _read(folder: Path, checkpoint: Opened, settings: TransformerSettings) -> Tokenizer | None:
    from archport.checkpoint.tokenizer_classes import RECIPES

    stated = read_object(inside(folder, "tokenizer_config.json", "a tokenizer")) or {}
    fast = inside(folder, "tokenizer.json", "a tokenizer")
    vocabulary = (folder / "vocab.txt").is_file()
    slow = any((folder / name).is_file() for name in _SLOW_FILES)
    if not (fast.is_file() or vocabulary or slow):
        return None
    _check_stated(folder, stated, checkpoint.config)
    stored = _from_json(fast) if fast.is_file() else None
    if settings.plain_tokenizer and stored is not None:
        checkpoint.memo.update({"tells pairs apart": False, "special tokens": ({}, frozenset()), "special texts": ()})
        return stored
    if stored is not None:
        # As the reference: of a tokenizer.json its post-processor says what is put around texts.
        stated = {key: value for key, value in stated.items() if key not in ("add_bos_token", "add_eos_token")}
    name = class_name(
        stated.get("tokenizer_class") or checkpoint.config.get("tokenizer_class"),
        checkpoint.config.get("model_type"),
        remote=_remote(stated),
        byte_level=_byte_level(stored),
    )
    values = {**stated, **settings.tokenizer}
    recipe = RECIPES.get(name)
    if recipe is not None and stored is not None and is_generic(stated.get("tokenizer_class")):
        # The reference makes some types of model anew whatever class is named; of another kind of vocabulary, nonsense.
        recipe = recipe if recipe.model == type(stored.model).__name__ else None
        name = name if recipe is not None else GENERIC
    if stored is None and vocabulary and (recipe is None or recipe.model == "WordPiece"):
        recipe, name = RECIPES["BertTokenizer"], "BertTokenizer"
    elif stored is None and not (recipe is not None and recipe.model == "BPE" and (folder / "merges.txt").is_file()):
        return _converted(folder, checkpoint, settings)
    named_inputs = values.get("model_input_names")
    checkpoint.memo["tells pairs apart"] = "token_type_ids" in named_inputs if named_inputs else name in TYPED
    held = stored.get_added_tokens_decoder() if stored is not None else {}
    added = read_added_tokens(folder, values, settings.tokenizer, held)
    told = frozenset(added.named)
    if recipe is not None:
        every = {**recipe.defaults, **added.named}
        order = [*(name for name in NAMED if name in every), *(name for name in every if name not in NAMED)]
        added = replace(added, named={name: every[name] for name in order}, extra=added.extra or recipe.extra(values))
    checkpoint.memo["special tokens"] = _texts(added), told
    checkpoint.memo["special texts"] = added.texts
    try:
        return _made(folder, name, recipe, stored, values, added)
    except CheckpointError as error:
        if str(error).startswith(str(folder)):
            raise
        raise CheckpointError(f"{folder}: {error}") from error
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):
            raise  # other errors are looked into by whoever loads the model
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: the tokenizers library can't make a {name} of its files ({said:.300}). Fetch them again."
        ) from error


def _check_stated(folder: Path, stated: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where tokenizer_config.json leads to other files, or a class is no name."""
    if any(name != "tokenizer.json" for name in stated.get("fast_tokenizer_files") or ()):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: fast_tokenizer_files={stated['fast_tokenizer_files']!r:.120} names "
            "tokenizers for other versions of a library. Keep one, as tokenizer.json, and drop the key."
        )
    for file, settings in (("tokenizer_config.json", stated), ("config.json", config)):
        if not isinstance(settings.get("tokenizer_class"), str | None):
            raise CheckpointError(
                f"{folder / file}: tokenizer_class={settings['tokenizer_class']!r:.80}; expected a name."
            )


def _made(
    folder: Path,
    name: str,
    recipe: Recipe | None,
    stored: Tokenizer | None,
    values: Mapping[str, Any],
    added: AddedTokens,
) -> Tokenizer:
    """The tokenizer as its class makes it of the files' vocabulary, or the stored one where no class is known."""
    if recipe is None:
        assert stored is not None
        if name != GENERIC:
            _check_settings(folder, name, values, stored)
        return _completed(stored, None, values, added)
    tokenizer = _bare(folder, name, recipe, stored, added.text("unk_token"))
    if stored is not None:
        tokenizer.post_processor = stored.post_processor
        if stored.truncation is not None:
            tokenizer.enable_truncation(**stored.truncation)
    named = {key: None if token is None else content(token) for key, token in added.named.items()}
    if stored is None and recipe.model == "WordPiece":
        check_vocabulary(folder, tokenizer, named, added)
    recipe.build(tokenizer, values, named, _normalisers(stored))
    return _completed(tokenizer, recipe, values, added)


def _texts(added: AddedTokens) -> dict[str, str]:
    return {name: content(token) for name, token in added.named.items() if token is not None}


def _completed(tokenizer: Tokenizer, recipe: Recipe | None, values: Mapping[str, Any], added: AddedTokens) -> Tokenizer:
    """The tokenizer with its added tokens and its post-processor."""
    from tokenizers import AddedToken

    split = values.get("split_special_tokens")
    if split not in (None, True, False):
        raise CheckpointError(f"split_special_tokens={split!r}; expected true or false.")
    join(tokenizer, added)
    tokenizer.encode_special_tokens = split is True
    if values.get("add_bos_token") is not None or values.get("add_eos_token") is not None:
        put_around(tokenizer, values, added)
    if recipe is not None and recipe.marks:
        tokenizer.add_tokens([AddedToken(text, special=True) for text in added.texts])
    if recipe is not None and recipe.close is not None:
        recipe.close(tokenizer, values, {key: added.text(key) for key in added.named})
    return tokenizer


def _remote(stated: Mapping[str, Any]) -> bool:
    code = stated.get("auto_map")
    return bool(code.get("AutoTokenizer") if isinstance(code, dict) else code)


def _byte_level(stored: Tokenizer | None) -> bool:
    return stored is not None and "ByteLevel" in f"{stored.pre_tokenizer} {stored.decoder}"


def _json(path: Path) -> dict[str, Any]:
    stored = read_object(path, LARGEST_TOKENIZER)
    assert stored is not None
    return stored


@contextmanager
def tokenizer_faults(where: str, path: Path | None = None) -> Iterator[None]:
    """Say what the tokenizers library raises as a CheckpointError that names the file, which is JSON at `path`.

    It has no error of its own: it raises bare exceptions, Python's for numbers that are too large, and where its code
    panics one that is no Exception at all.
    """
    try:
        yield
    except ArchportError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        # A cut file gets its own message.
        if path is not None:
            read_object(path, LARGEST_TOKENIZER)
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{where}: the tokenizers library can't use it ({said:.300}). Fetch the file again, or update tokenizers."
        ) from error


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust. Each such library makes a class of its own for them."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


def _from_json(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, models

    text = read_text(path, LARGEST_TOKENIZER)
    assert text is not None
    check_entries(str(path), text)
    check_growth(str(path), text)
    with tokenizer_faults(str(path), path):
        tokenizer = Tokenizer.from_str(text)
    # Before anything is encoded: a stored width of a thousand million tokens ends the process.
    tokenizer.no_padding()
    if _LARGE_VALUE.search(text):
        token, largest = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        if largest >= 1 << 31:
            raise CheckpointError(f"{path}: the token {token!r:.60} has the id {largest}; no model has as many.")
    longest = tokenizer.model.max_input_chars_per_word if isinstance(tokenizer.model, models.WordPiece) else 0
    if longest > LONGEST_WORD:
        raise CheckpointError(f"{path}: max_input_chars_per_word={longest}; expected at most {LONGEST_WORD:,}.")
    return tokenizer


def _bare(folder: Path, name: str, recipe: Recipe, stored: Tokenizer | None, unknown: str | None) -> Tokenizer:
    """A tokenizer with nothing but the vocabulary of the files; `unknown` is the text of its unknown token."""
    from tokenizers import Tokenizer, models

    if stored is None:
        return Tokenizer(word_pieces(folder) if recipe.model == "WordPiece" else _pairs(folder))
    model = stored.model
    if not isinstance(model, getattr(models, recipe.model)):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: holds a {type(model).__name__} vocabulary, and tokenizer_class={name!r} "
            f"reads {recipe.model} ones. Where tokenizer.json is right, tokenizer_config.json has to say "
            'tokenizer_class "PreTrainedTokenizerFast".'
        )
    if recipe.model == "Unigram":
        entry = _json(folder / "tokenizer.json")["model"]
        # Most classes know the unknown token by its place.
        place = recipe.unknown
        if place is None:
            place = next((at for at, (piece, _) in enumerate(entry["vocab"]) if piece == unknown), 0)
        if entry.get("unk_id") != place or entry.get("byte_fallback"):
            model = models.Unigram([(piece, float(score)) for piece, score in entry["vocab"]], place, False)
    return Tokenizer(model)


def _normalisers(stored: Tokenizer | None) -> list[Any]:
    from tokenizers import normalizers

    found = None if stored is None else stored.normalizer
    if found is None:
        return []
    return list(cast(Any, found)) if isinstance(found, normalizers.Sequence) else [found]


def _pairs(folder: Path) -> Any:
    """The BPE vocabulary of a vocab.json with its merges.txt."""
    from tokenizers import models

    vocabulary = _json(inside(folder, "vocab.json", "a tokenizer"))
    stored = lines(inside(folder, "merges.txt", "a tokenizer"))
    merges = [tuple(line.split(" ")) for line in stored if line and not line.startswith("#version")]
    with tokenizer_faults(f"{folder / 'merges.txt'} with vocab.json"):
        return models.BPE(vocabulary, cast(Any, merges))


def _check_settings(folder: Path, name: str, values: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Refuse keys that a class which archport does not make anew would act on, unless tokenizer.json does the same."""
    shown = str(tokenizer.normalizer), str(tokenizer.pre_tokenizer)
    lowers = "Lowercase" in shown[0] or "lowercase=True" in shown[0]
    does = {
        "do_lower_case": lowers,
        "strip_accents": "StripAccents" in shown[0]
        or "strip_accents=True" in shown[0]
        or (lowers and "strip_accents=None" in shown[0]),
        "tokenize_chinese_chars": "handle_chinese_chars=True" in shown[0],
        "add_prefix_space": "add_prefix_space=True" in shown[1]
        or 'prepend_scheme="always"' in shown[1]
        or 'prepend_scheme="first"' in shown[1],
    }
    for key, done in does.items():
        if isinstance(values.get(key), bool) and values[key] != done:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {key}={values[key]!r} is not what tokenizer.json does, and "
                f"archport does not know how tokenizer_class={name!r} settles that. Save the tokenizer with "
                'transformers 5, and let tokenizer_class say "PreTrainedTokenizerFast".'
            )


def _converted(folder: Path, checkpoint: Opened, settings: TransformerSettings) -> Tokenizer:
    """Slow files only: transformers knows how to convert them, and is imported for nothing else."""
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **settings.tokenizer
        )
        named = dict(loaded.special_tokens_map)
        checkpoint.memo["tells pairs apart"] = "token_type_ids" in loaded.model_input_names
        checkpoint.memo["special tokens"] = named, frozenset(named)
        checkpoint.memo["special texts"] = tuple(loaded.all_special_tokens)
        return loaded.backend_tokenizer
    # It raises whatever the conversion of this kind of file raises.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: there is no tokenizer.json, and converting the older files failed "
            f"({type(error).__name__}: {error}). Save a fast tokenizer into the folder: "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        ) from error


def mask_token(checkpoint: Opened) -> int | None:
    """The vocabulary id of the token that stands for a masked word, None when the files name none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        folder = f"{checkpoint.body}/" if checkpoint.body else ""
        stated = (checkpoint.json(f"{folder}{name}") or {}).get("mask_token")
        token = stated.get("content") if isinstance(stated, dict) else stated
        if isinstance(token, str):
            return checkpoint.token_id(token)
    return next((found for name in ("[MASK]", "<mask>") if (found := checkpoint.token_id(name)) is not None), None)
