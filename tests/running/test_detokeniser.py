"""Text as it comes is the text decoded at once: every decoder of tokenizers, random ids, with and without stops."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models
from tokenizers import decoders as d

from archport.generating.detokeniser import Detokeniser
from archport.generating.pieces import RowText

GOLDENS = Path(__file__).parents[1] / "goldens"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [
    *("a", "b", "##a", "##n't", "n't", ".", "!", " ,", "'s", "do not", " do not", "aab", "ab", "aa", "  ", " ", "\n"),
    *("▁a", "▁", "▁▁b", "</w>", "x</w>", "</w>y", "<pad>", "|", "a|", "é", "中", "👍", "�", "<0xZZ>", "<0x+F>", ""),
    # Byte-level letters: whole characters, halves of them, and what never becomes one.
    *("Ġa", "Ċ", "Ã©", "Ã", "©", "æĹ¥", "æĹ", "¥", "ðŁ", "ĳį", "ĠðŁĳ", "į", "ÿ", "íłĢ", "Ġ中"),
]
LLAMA = [d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]
KINDS = {
    "byte-level": d.ByteLevel(),
    "byte-fallback": d.Sequence(LLAMA),
    "wordpiece": d.WordPiece(),
    "metaspace": d.Metaspace(),
}
OTHERS = {
    "none": None,
    "gemma": d.Sequence(LLAMA[:3]),
    "nested": d.Sequence([d.Sequence(LLAMA[:2]), d.Sequence(LLAMA[2:]), d.Fuse()]),
    "wordpiece, not cleaned up": d.WordPiece(cleanup=False),
    "metaspace, never in front": d.Metaspace(prepend_scheme="never"),
    "suffix": d.BPEDecoder(),
    "ctc": d.CTC(),
    "ctc, metaspace": d.Sequence([d.CTC(), d.Metaspace()]),
    "byte-fallback, metaspace": d.Sequence([d.ByteFallback(), d.Metaspace()]),
    "suffix, wordpiece": d.Sequence([d.BPEDecoder(), d.WordPiece()]),
    "byte-level, strip": d.Sequence([d.ByteLevel(), d.Strip(" ", 3, 0)]),
    "strip of each token": d.Strip("a", 1, 0),
    "a pattern in each token": d.Replace(Regex("a+"), "Q"),
    "strings in the whole": d.Sequence([d.Fuse(), d.Replace("aab", "Z"), d.Replace("aa", "")]),
    "a pattern in the whole": d.Sequence([d.Fuse(), d.Replace(Regex("a+"), "Q")]),
}
# Recorded for other tests: of a checkpoint that generates, and of one that does not.
STORED = ("qwen3-vl", "bert-plain")


def tokenizer_of(kind: str) -> Tokenizer:
    if kind in STORED:
        return Tokenizer.from_file(str(GOLDENS / kind / "tokenizer.json"))
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<unk>", *WORDS, *BYTES]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("ü s", special=True)])
    tokenizer.add_tokens(["plain added", "中 x"])
    decoder = {**KINDS, **OTHERS}[kind]
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def sequences(tokenizer: Tokenizer, count: int, seed: int) -> list[list[int]]:
    """Random ids: of words, of runs of bytes, of anything, of an id that no token has."""
    dice = random.Random(seed)
    size = tokenizer.get_vocab_size()
    words = [at for word in WORDS if (at := tokenizer.token_to_id(word)) is not None] or list(range(size))
    raw = [at for byte in BYTES if (at := tokenizer.token_to_id(byte)) is not None] or words
    # Bytes of text, so that some runs are characters.
    said = [tokenizer.token_to_id(BYTES[byte]) for byte in "\n é 中👍".encode()] if len(raw) == 256 else words
    found: list[list[int]] = []
    for _ in range(count):
        pools = dice.choices([words, raw, said, range(size), [size + 7]], [6, dice.choice([0, 3]), 4, 2, 0.1], k=20)
        ids: list[int] = []
        for pool in pools[: dice.randint(0, 16)]:
            start = dice.randrange(len(pool))
            ids += pool[start : start + dice.choice([1, 1, 3, 7])] if pool is said else [pool[start]]
        found.append(ids)
    return found


def check_streaming(kind: str, count: int, seed: int) -> None:
    tokenizer = tokenizer_of(kind)
    for ids in sequences(tokenizer, count, seed):
        text = RowText(tokenizer, ())
        assert "".join([text.add(token) for token in ids]) + text.finish() == tokenizer.decode(ids), ids


def check_stops(kind: str, count: int, seed: int) -> None:
    """A text ends with the first token after which the text so far holds a stop string, and before that string."""
    tokenizer, dice = tokenizer_of(kind), random.Random(seed)
    for ids in sequences(tokenizer, count, seed):
        whole = tokenizer.decode(ids)
        stop = [whole[at : at + dice.randint(1, 4)] for at in dice.choices(range(len(whole) + 1), k=2)]
        stop = [each for each in stop if each and "�" not in each] or ["zz"]
        text, given, want = RowText(tokenizer, stop), "", whole
        for count_, token in enumerate(ids, 1):
            given += text.add(token)
            so_far = tokenizer.decode(ids[:count_]).rstrip("�")
            places = [at for each in stop if (at := so_far.find(each)) >= 0]
            assert text.stopped == bool(places), (ids, stop)
            if places:
                want = so_far[: min(places)]
                break
        assert given + text.finish() == want, (ids, stop)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS, *STORED])
def test_streamed_text_is_the_text_decoded_at_once(kind):
    check_streaming(kind, 50, seed=1)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS, *STORED])
def test_a_text_ends_at_its_first_stop_string(kind):
    check_stops(kind, 20, seed=2)


@pytest.mark.truth
@pytest.mark.parametrize("kind", [*KINDS, *OTHERS, *STORED])
def test_two_thousand_streamed_texts_are_the_texts_decoded_at_once(kind):
    check_streaming(kind, 2000, seed=3)
    check_stops(kind, 300, seed=4)


def test_a_text_with_stop_strings_and_one_without_are_the_same():
    tokenizer = tokenizer_of("byte-fallback")
    ids = [tokenizer.token_to_id(each) for each in ("▁a", "<0x0A>", "▁a", "<0x0A>", "▁", "▁a")]
    for stop, whole in (((), False), (("zz",), False), ((), True)):
        text = RowText(tokenizer, stop, whole=whole)
        assert "".join([text.add(token) for token in ids]) + text.finish() == "a\n a\n  a"


def test_half_characters_are_kept_back_and_whole_ones_given_at_once():
    tokenizer = tokenizer_of("byte-level")
    made = Detokeniser(tokenizer)
    ids = [tokenizer.token_to_id(each) for each in ("a", "Ã", "©", "ðŁ", "ĳį", "Ġa")]
    assert [made.add(token) for token in ids] == ["a", "", "é", "", "👍", " a"]


def test_a_line_break_in_bytes_ends_a_text_without_another_token():
    tokenizer = tokenizer_of("byte-fallback")
    text = RowText(tokenizer, ["\n"])
    assert [text.add(tokenizer.token_to_id(each)) for each in ("▁a", "<0x0A>")] == ["a", ""]
    assert text.stopped


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_a_token_does_not_grow_with_the_text(kind):
    tokenizer = tokenizer_of(kind)
    # No line ends, after which some detokenisers start anew.
    ids = [tokenizer.token_to_id(each) for each in ("▁a", "a", "b")] * 2000
    text, taken = RowText(tokenizer, ["zz"]), []
    for first in range(0, len(ids), 1000):
        start = time.thread_time()
        for token in ids[first : first + 1000]:
            text.add(token)
        taken.append(time.thread_time() - start)
    assert min(taken[3:]) < 2.5 * min(taken[:3])
