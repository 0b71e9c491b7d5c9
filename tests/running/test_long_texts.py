"""Beginnings of long texts: the same first ids as the whole, for every kind of tokenizer, found without the rest."""

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from archport.contract import ContextLengthExceeded, InputError, TextInputs
from archport.contract.inputs import PairText
from archport.reading.long_texts import LongTexts
from archport.reading.pairs import JoinedTokeniser, PairTokeniser
from archport.reading.texts import TextTokeniser, Tokens

GPT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNITS = ["a", "b", "é", " ", "\n", "\t", "漢", "😀", "1", ",", "-", "\u0301", "字典"]  # fmt: skip
WORDS = ["the", "hello", "World", "aaab", "don't", "a,", "deadbeef", "naïve", "漢字", "123", "!!", "[MASK]", "x\u0301"]


def some_text(rng: random.Random, characters: int) -> str:
    """Words, and runs of anything, of any length; at times the whole text is one run."""
    pieces: list[str] = []
    size = 0
    while size < characters:
        kind = rng.random()
        if kind < 0.35:
            piece = "".join(rng.choice(WORDS) + rng.choice(["", " ", "  ", "\n"]) for _ in range(rng.randint(1, 200)))
        elif kind < 0.65:
            piece = rng.choice(UNITS) * rng.choice([1, 3, 50, 700, 5000, 12_000])
        elif kind < 0.8:
            few = rng.sample(UNITS, 2)
            piece = "".join(rng.choices(few, k=rng.choice([10, 300, 6000])))
        elif kind < 0.9:
            piece = "".join(rng.choices(" \n\t\r", weights=[20, 1, 1, 1], k=rng.choice([10, 2000, 9000])))
        else:
            piece = "".join(rng.choices(UNITS, k=3)) * rng.choice([2, 400, 3000])
        pieces.append(piece)
        size += len(piece)
    return "".join(pieces)


def trained(kind: str) -> Tokenizer:
    """A tokenizer of one kind, trained on texts like those that it is tried with."""
    rng = random.Random(kind)
    texts = [some_text(rng, 1000)[:1000] for _ in range(12)] + ["a" * 64, " " * 64, "\n \n  " * 30, "\n   \n" * 90]
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    elif kind in ("unigram", "unigram one piece"):
        # Of random pieces: the trainer takes half a minute.
        signs = "".join(texts).replace(" ", "▁")
        starts = [rng.randrange(len(signs)) for _ in range(300)]
        pieces = {signs[at : at + rng.randint(1, 8)] for at in starts} | {"▁", "a", "b", ",", "漢", "\n"}
        vocabulary = [(token, 0.0) for token in special]
        vocabulary += [(piece, round(-rng.uniform(1, 3) * len(piece) ** 0.5, 2)) for piece in sorted(pieces)]
        made = Tokenizer(models.Unigram(vocabulary, unk_id=0))
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        made.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "unigram")
        made.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
        return made
    elif kind == "bpe of spaces as signs":
        made = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        made.normalizer = normalizers.NFC()
        made.decoder = decoders.ByteLevel()
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "byte-level")
        split = [pre_tokenizers.Split(Regex(GPT), "isolated")] if kind == "byte-level, newer" else []
        made.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    return made


KINDS = (
    *("wordpiece", "unigram", "unigram one piece", "bpe of spaces as signs"),
    *("byte-level", "byte-level, newer", "byte-level, whole"),
)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return trained(kind)


def check_beginnings(kind: str, seed: int, sizes: Sequence[int] = (4000, 15_000, 40_000)) -> None:
    """A random text's beginning has the whole's first ids, and more than asked for where it is not the whole."""
    rng = random.Random(f"{kind} {seed}")
    made = tokenizer(kind)
    whole = some_text(rng, rng.choice(sizes))
    tokens = rng.choice([1, 16, 257, 512])
    ids = made.encode(whole, add_special_tokens=False).ids
    long = LongTexts(made)
    for exact in (True, False):
        text, more = long.beginning(whole, tokens, exact=exact)
        found = made.encode(text, add_special_tokens=False).ids
        if more:
            assert len(ids) >= len(found) - long.margin >= tokens
        if exact:
            assert found[:tokens] == ids[:tokens]
        if not more:
            assert found == ids


@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_have_the_first_ids_of_random_texts(kind: str):
    for seed in range(2):
        check_beginnings(kind, seed, sizes=[4000, 8000])


@pytest.mark.truth
@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_have_the_first_ids_of_many_random_texts(kind: str):
    for seed in range(2, 120):
        check_beginnings(kind, seed)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "😀", "\n ", "deadbeef0123", "ab cd"])
def test_what_makes_no_token_is_left_out_exactly(unit: str):
    made = tokenizer("wordpiece")
    whole = "hello " + unit * (150_000 // len(unit)) + " world"
    text, more = LongTexts(made).beginning(whole, 300, exact=True)
    assert more == (unit == "ab cd")
    assert len(text) < 10_000
    assert made.encode(text).ids[:300] == made.encode(whole).ids[:300]


def test_repetitions_that_make_tokens_stay():
    made = tokenizer("wordpiece")
    whole = " " * 200_000 + "a b " * 3000 + "aé" * 4000 + " c"
    text, more = LongTexts(made).beginning(whole, 7000, exact=True)
    assert not more
    assert 12_000 < len(text) < 30_000
    assert made.encode(text).ids == made.encode(whole).ids


def test_spaces_that_a_line_break_far_behind_them_joins_are_cut_as_one_piece():
    signs = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {sign: index for index, sign in enumerate([*sorted(signs), "ĊĠ", "ĠĠ"])}
    made = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ġ"), ("Ġ", "Ġ")]))
    split = pre_tokenizers.Split(Regex(GPT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    whole = "word\n" + " " * 20_000 + "\nend"
    text, more = LongTexts(made).beginning(whole, 16, exact=True)
    assert more
    assert made.encode(text).tokens[:6] == made.encode(whole).tokens[:6] == ["w", "o", "r", "d", "ĊĠ", "ĠĠ"]
    # Without the break that is far behind.
    assert made.encode(text.rstrip("\n")).tokens[:6] == ["w", "o", "r", "d", "Ċ", "ĠĠ"]


def test_an_expression_that_looks_far_ahead_is_not_trusted():
    made = tokenizer("byte-level, newer")
    grouped = Tokenizer.from_str(made.to_str())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}(?=(\p{N}{3})*(?!\p{N}))|\P{N}+"), "isolated")
    grouped.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    digits = "1" * 20_000
    assert LongTexts(grouped).beginning(digits, 16, exact=True) == (digits, False)
    assert LongTexts(grouped).beginning(digits, 16, exact=False)[1]
    assert LongTexts(made).beginning(digits, 16, exact=True)[1]


def text_tokeniser(kind: str, limit: int, **inputs: object) -> TextTokeniser:
    return TextTokeniser(tokenizer(kind), TextInputs(**inputs), limit)  # pyright: ignore[reportArgumentType]


LONG = "hello world, " * 4000


@pytest.fixture
def encode_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on every text is encoded whole."""

    def begin() -> None:
        def whole(self: LongTexts, texts: Sequence[str], *_: object, **__: object) -> list[tuple[str, bool]]:
            return [(text, False) for text in texts]

        monkeypatch.setattr(LongTexts, "beginnings", whole)

    return begin


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_as_they_are_when_all_of_them_is_encoded(kind: str, encode_all: Callable[[], None]):
    texts = ["short", LONG, "a," * 9000, "", "x " * 3000 + "[MASK]"]

    def cut() -> Tokens:
        tokenise = text_tokeniser(kind, 512, final_token=tokenizer(kind).token_to_id("[SEP]"))
        return tokenise(texts, max_tokens=100, overflow="truncate", prompt="query: ")

    some = cut()
    encode_all()
    whole = cut()
    assert [row.tolist() for row in some.ids] == [row.tolist() for row in whole.ids]
    assert some.truncated == whole.truncated


def check_pairs(seed: int, encode_all: Callable[[], None]) -> None:
    """Random pairs are cut as they are when both texts are encoded whole, whichever is longer."""
    rng = random.Random(seed)
    limit, sizes = rng.choice([200, 255, 401]), [3, 40, 3000, 5000, 9000]
    items = [("x " + some_text(rng, rng.choice(sizes)), some_text(rng, rng.choice(sizes))) for _ in range(3)]
    items += [("a b " * 1500, "c " * rng.choice([2900, 3100])), ("c " * rng.choice([2900, 3100]), "a b " * 1500)]
    joined = JoinedTokeniser(tokenizer("wordpiece"), 512)
    some = joined(items, max_tokens=limit, overflow="truncate")
    encode_all()
    whole = joined(items, max_tokens=limit, overflow="truncate")
    for cut, uncut in zip(some, whole, strict=True):
        assert [row.tolist() for row in cut] == [row.tolist() for row in uncut]


def test_pairs_are_cut_as_they_are_when_both_texts_are_encoded_whole(encode_all: Callable[[], None]):
    check_pairs(0, encode_all)


@pytest.mark.truth
@pytest.mark.parametrize("seed", range(1, 14))
def test_many_pairs_are_cut_as_they_are_when_both_texts_are_encoded_whole(seed: int, encode_all: Callable[[], None]):
    check_pairs(seed, encode_all)


@pytest.mark.parametrize("side", ["query", "document"])
def test_templated_pairs_are_cut_as_they_are_when_all_is_encoded(side: str, encode_all: Callable[[], None]):
    text = PairText("<p>", "{query} {document}", "</s>", "", 300)
    tokeniser = PairTokeniser(tokenizer("byte-level"), text, 512)
    query, document = ("short", LONG) if side == "document" else (LONG, "short")
    some = tokeniser(query, [document, "other"], overflow="truncate")
    with pytest.raises(ContextLengthExceeded, match=r"document 0 makes a pair of at least \d+ tokens") as refused:
        tokeniser(query, [document])
    assert (refused.value.requested or 0) > 300
    encode_all()
    whole = tokeniser(query, [document, "other"], overflow="truncate")
    assert [row.tolist() for row in some] == [row.tolist() for row in whole]


REFUSALS: dict[str, Callable[[str], object]] = {
    "texts": lambda text: text_tokeniser("wordpiece", 128)(["short", text]),
    "a classified text": lambda text: JoinedTokeniser(tokenizer("wordpiece"), 128)([text]),
    "a pair's second text": lambda text: JoinedTokeniser(tokenizer("wordpiece"), 128)([("short", text)]),
    "a pair's texts": lambda text: JoinedTokeniser(tokenizer("wordpiece"), 128)([(text, text)]),
    "a prompt": lambda text: text_tokeniser("wordpiece", 128).fitting(text, "prompt 0", special=True),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_a_refusal_says_at_least_how_many_tokens_there_are(name: str):
    with pytest.raises(ContextLengthExceeded, match=r"has at least \d+ tokens") as refused:
        REFUSALS[name](LONG)
    # An estimate by the length of the text, of which there may be two.
    tokens = len(tokenizer("wordpiece").encode(LONG))
    assert 0.9 * tokens < (refused.value.requested or 0) < 2.2 * tokens


def test_a_text_that_is_not_far_over_the_limit_is_counted_exactly():
    with pytest.raises(ContextLengthExceeded, match="text 0 has 400 tokens; the limit is 128"):
        text_tokeniser("wordpiece", 128)(["a " * 400])


def test_an_input_that_is_no_text_is_refused_first():
    with pytest.raises(InputError, match="text 1 is a int"):
        text_tokeniser("wordpiece", 128)([LONG, 5])  # pyright: ignore[reportArgumentType]


# Prints the process's seconds of CPU, and bytes by which it grew, while two megabytes were refused, or embedded where
# they are few tokens.
GROWTH = r"""
import resource, sys, time
from archport import engine
from archport.contract import ContextLengthExceeded
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = engine.load(sys.argv[1])
model.embed("warm up")
for unit in sys.argv[2:]:
    text = unit * (2_000_000 // len(unit.encode()))
    before, began, refused = used(), time.process_time(), 0
    try:
        model.embed(text)
    except ContextLengthExceeded:
        refused = 1
    print(refused, time.process_time() - began, used() - before)
"""


def check_growth(model: str, units: Sequence[str]) -> None:
    """Two megabytes of each unit are refused or embedded in bounded memory, and the first is refused."""
    command = [sys.executable, "-c", GROWTH, str(Path(__file__).parents[1] / "goldens" / model), *units]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(units)
    assert lines[0][0] == "1"
    for refused, seconds, grown in lines:
        assert int(grown) < 50_000_000
        # A hundredth of a second; encoded whole it takes two, whatever else the machine does.
        assert refused == "0" or float(seconds) < 0.5


def test_two_megabytes_are_refused_or_embedded_within_50_megabytes():
    check_growth("bert-plain", ["a,", " "])


@pytest.mark.truth
@pytest.mark.parametrize("model", ["bert-plain", "qwen3-embed", "modernbert", "roberta"])
def test_two_megabytes_of_many_kinds_are_refused_or_embedded_within_50_megabytes(model: str):
    check_growth(model, ["a,", "hello world ", " ", "a", "漢", "😀", "\n", "\n ", "deadbeef0123"])
