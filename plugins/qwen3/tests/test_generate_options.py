"""Options of generation on tiny Qwen3 checkpoints: what they mean, alone, in batches, in pieces and from a cache."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import ContextLengthExceeded
from archport.generating import prefill

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
IDS = list(range(40, 60))


def load(name, *, stops=frozenset(), **options):
    """A model with these final tokens, in float32 as the references are."""
    model = engine.load(GOLDENS / name, **{"dtype": "float32", "prefix_cache": 0, **options})
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset(stops))
    return model


@pytest.fixture(scope="module")
def model():
    return load("qwen3-windowed")


def decided(model, ids, steps, change):
    """Greedy tokens by full passes and a change of their logits in float64."""
    text = []
    for _ in range(steps):
        hidden = model.forward(np.array([[*ids, *text]]))[:, -1:]
        logits = np.array(model._runtime.encoder.trunk.logits(hidden))[0, 0].astype(np.float64)
        text.append(int(change(logits, text).argmax()))
    return text


def test_penalties_and_biases_are_those_of_the_definition(model):
    def change(logits, text):
        logits[9] += 2.5
        for token in text:
            logits[token] -= 0.75
        for token in set(text):
            logits[token] -= 1.5
        return logits

    options = {"presence_penalty": 1.5, "frequency_penalty": 0.75, "logit_bias": {9: 2.5}}
    assert list(model.generate(IDS, max_tokens=16, **options).tokens) == decided(model, IDS, 16, change)


def test_the_prompt_counts_for_a_repetition_penalty_only(model):
    free = model.generate(IDS, max_tokens=1).tokens
    prompt = [*IDS, *free, *IDS]
    token = model.generate(prompt, max_tokens=1).tokens
    known = [*prompt, *token]
    assert model.generate(known, max_tokens=1, presence_penalty=2, frequency_penalty=2).tokens == (
        model.generate(known, max_tokens=1).tokens
    )


def test_a_bias_of_a_hundred_decides_and_one_of_minus_a_hundred_forbids(model):
    assert model.generate(IDS, max_tokens=4, logit_bias={77: 100}).tokens == (77,) * 4
    first = model.generate(IDS, max_tokens=1).tokens[0]
    assert first not in model.generate(IDS, max_tokens=12, logit_bias={first: -100}).tokens


def test_a_final_token_beyond_the_vocabulary_is_none(tmp_path, model):
    """Tokenizers are given tokens that the model's matrices have no rows for; masking one wrote out of bounds."""
    shutil.copytree(GOLDENS / "qwen3-windowed", tmp_path / "more")
    width = model.spec.vocab_size
    (tmp_path / "more" / "generation_config.json").write_text(json.dumps({"eos_token_id": [width - 1, width, 99999]}))
    more = engine.load(tmp_path / "more", dtype="float32")
    assert more._runtime.stops == {width - 1}
    alone = load("qwen3-windowed", stops={width - 1}).generate(IDS, max_tokens=6, min_tokens=4)
    assert more.generate(IDS, max_tokens=6, min_tokens=4).tokens == alone.tokens


def test_a_stop_token_ends_a_text_as_a_final_token_does(model):
    free = model.generate(IDS, max_tokens=8)
    token = free.tokens[4]
    made = model.generate(IDS, max_tokens=8, stop_token_ids=[token, 3])
    first = free.tokens.index(token)
    assert (made.tokens, made.finish_reason) == (free.tokens[: first + 1], "stop")
    assert made.text == model._runtime.tokeniser.tokenizer.decode(list(free.tokens[:first]))


def test_no_end_comes_before_the_tokens_that_are_asked_for():
    free = load("qwen3-windowed").generate(IDS, max_tokens=12)
    ends = set(free.tokens[:5])
    own, asked = free.tokens[0], ends - {free.tokens[0]}
    model = load("qwen3-windowed", stops={own})
    for least in (0, 1, 3, 6):
        made = model.generate(IDS, max_tokens=12, min_tokens=least, stop_token_ids=list(asked), logprobs=100)

        def change(logits, text, least=least):
            if len(text) < least:
                logits[list(ends)] = -np.inf
            return logits

        want = decided(model, IDS, 12, change)
        last = next((at for at, token in enumerate(want) if token in ends), 11)
        assert list(made.tokens) == want[: last + 1]
        assert last >= least
        for told in made.logprobs[:least]:
            assert not ends & {token for token, _ in told.top}


def test_a_stop_string_that_early_tokens_complete_does_not_count(model):
    tokenizer = model._runtime.tokeniser.tokenizer
    free = model.generate(IDS, max_tokens=24)
    for least in (0, 3, 9):
        early = tokenizer.decode(list(free.tokens[:least]))
        if "�" in early[-3:]:
            continue
        for stop in (free.text[1:3], free.text[6:8], free.text[len(early) - 1 : len(early) + 2]):
            if not stop:
                continue
            made = model.generate(IDS, max_tokens=24, stop=stop, min_tokens=least)
            # The first place that ends beyond what the early tokens say.
            at = free.text.find(stop, max(0, len(early) - len(stop) + 1))
            assert made.text == (free.text if at < 0 else free.text[:at])
            assert made.finish_reason == ("length" if at < 0 else "stop")
            pieces = list(model.generate(IDS, max_tokens=24, stop=stop, min_tokens=least, stream=True))
            assert "".join(piece.text for piece in pieces) == made.text


def joined(pieces):
    """(row, answer) -> (text, tokens, reason, logprobs, clamped) of a stream."""
    found = {}
    for piece in pieces:
        text, tokens, _, told, _ = found.get((piece.row, piece.answer), ("", (), None, (), None))
        found[piece.row, piece.answer] = (
            *(text + piece.text, tokens + piece.tokens, piece.finish_reason),
            *(told + piece.logprobs, piece.clamped_to),
        )
    return found


ROWS = (IDS, IDS[:3], [7] * 30, IDS[5:], [400, 3], IDS)
EACH = {
    "max_tokens": [9, 14, 0, 5, 3000, 11],
    "temperature": [0, 2.5, 1.0, 0, 1.5, 0.7],
    "top_p": [1, 0.9, 1, 1, 0.5, 1],
    "top_k": [0, 0, 3, 0, 40, 0],
    "seed": [1, 2, 3, 4, 5, 6],
    "presence_penalty": [2, 0, 0, -1, 0.5, 0],
    "frequency_penalty": [0, 0.5, 0, 2, 0, 0],
    "repetition_penalty": [None, 1.5, None, None, 0.9, None],
    "logit_bias": [None, {3: 4.0, 8: -100}, {9: 1}, {5: 3.0}, None, None],
    "min_tokens": [3, 0, 0, 5, 9, 0],
    "stop_token_ids": [[5, 6, 7], None, [], list(range(200)), None, [10]],
    "stop": [None, "e", None, ["a", "b"], [" "], None],
}


def check_rows(model, rows, each):
    """Rows with options of their own are what they are alone, and streamed."""
    together = model.generate(rows, logprobs=2, **each)
    for at, (row, made) in enumerate(zip(rows, together, strict=True)):
        alone = model.generate(row, logprobs=2, **{option: values[at] for option, values in each.items()})
        assert (made.text, made.tokens, made.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert made.clamped_to == alone.clamped_to
    streamed = joined(model.generate(rows, logprobs=2, stream=True, **each))
    for at, made in enumerate(together):
        text, tokens, reason, told, clamped = streamed[at, 0]
        assert (text, tokens, reason, clamped) == (made.text, made.tokens, made.finish_reason, made.clamped_to)
        assert [each.token for each in told] == [each.token for each in made.logprobs]


def drawn_options(rng, rows):
    """Random options of so many rows; what ends a text is likely to come."""

    def column(draw, nothing, share=0.5):
        return [draw() if rng.random() < share else nothing for _ in range(rows)]

    most = [int(rng.choice([0, 1, 7, 12, 200])) for _ in range(rows)]
    return {
        "max_tokens": most,
        "temperature": column(lambda: float(rng.uniform(0.1, 4)), 0.0, 0.7),
        "top_p": column(lambda: float(rng.uniform(0.1, 1)), 1.0),
        "top_k": column(lambda: int(rng.integers(1, 90)), 0),
        "min_p": column(lambda: float(rng.uniform(0, 0.4)), 0.0, 0.3),
        "seed": [int(rng.integers(0, 9)) for _ in range(rows)],
        "repetition_penalty": column(lambda: float(rng.uniform(0.5, 2)), None),
        "presence_penalty": column(lambda: float(rng.uniform(-2, 2)), 0.0),
        "frequency_penalty": column(lambda: float(rng.uniform(-2, 2)), 0.0),
        "logit_bias": column(
            lambda: {int(rng.integers(0, 503)): float(rng.uniform(-9, 9)) for _ in range(rng.integers(0, 5))}, None
        ),
        "min_tokens": [int(min(count, rng.integers(0, 8))) for count in most],
        "stop_token_ids": column(lambda: rng.integers(0, 503, rng.integers(0, 60)).tolist(), None),
        "stop": column(lambda: rng.choice(["e", "a", " t", "in", "\n"], rng.integers(1, 4)).tolist(), None),
    }


def test_rows_with_options_of_their_own_are_what_they_are_alone():
    check_rows(load("qwen3-windowed", stops={11, 12, 13}, max_context=60), ROWS, EACH)


@pytest.mark.truth
@pytest.mark.parametrize("prefix_cache", [0, "64MB"])
@pytest.mark.parametrize("name", ["qwen3-windowed", "qwen3-moe", "qwen3-yarn", "qwen3-4bit"])
def test_rows_with_random_options_are_what_they_are_alone(name, prefix_cache):
    model = load(name, stops={11, 12, 13}, max_context=70, prefix_cache=prefix_cache)
    rng = np.random.default_rng(len(name))
    for _ in range(12):
        count = int(rng.integers(2, 7))
        rows = [rng.integers(0, 500, rng.integers(1, 60)).tolist() for _ in range(count)]
        check_rows(model, rows, drawn_options(rng, count))


def test_answers_of_a_prompt_are_those_of_the_prompt_given_so_often(model):
    options = {"max_tokens": 12, "temperature": 2.0, "seed": 3, "presence_penalty": 0.5}
    answers = model.generate([IDS, IDS[:4]], n=3, **options)
    assert len({each.tokens for each in answers[0]}) == 3
    repeated = model.generate([IDS] * 3 + [IDS[:4]] * 3, **options)
    assert [each.tokens for row in answers for each in row] == [each.tokens for each in repeated]
    assert answers[0][0].tokens == model.generate(IDS, **options).tokens
    assert model.generate(IDS, n=3, **options) == answers[0]
    assert [each.tokens for each in model.generate(IDS, n=1, **options)] == [answers[0][0].tokens]


def test_answers_share_one_prefill_and_leave_one_by_one(model, monkeypatch):
    read = []
    real = prefill._read
    monkeypatch.setattr(
        prefill, "_read", lambda encoder, plan, rows, *rest: read.extend(rows) or real(encoder, plan, rows, *rest)
    )
    answers = model.generate([IDS, IDS[:9]], n=4, max_tokens=20, temperature=3.0, seed=1, stop="e")
    assert sum(map(len, read)) == len(IDS) + 9
    assert len({len(each.tokens) for row in answers for each in row}) > 1
    pieces = joined(model.generate([IDS, IDS[:9]], n=4, max_tokens=20, temperature=3.0, seed=1, stop="e", stream=True))
    for (row, answer), (text, tokens, reason, *_) in pieces.items():
        made = answers[row][answer]
        assert (text, tokens, reason) == (made.text, made.tokens, made.finish_reason)


def test_answers_without_a_draw_are_equal_and_decoded_once(model, monkeypatch):
    from archport.generating.decode import Decoding

    rows = []
    real = Decoding.step
    monkeypatch.setattr(Decoding, "step", lambda self, tokens: rows.append(tokens.shape[0]) or real(self, tokens))
    one = model.generate(IDS, max_tokens=7)
    assert model.generate(IDS, max_tokens=7, n=3) == [one] * 3
    assert set(rows) == {1}
    mixed = model.generate([IDS, IDS], max_tokens=7, n=2, temperature=[0, 3.0], seed=1)
    assert [each.tokens for each in mixed[0]] == [one.tokens] * 2
    assert mixed[1][0].tokens != mixed[1][1].tokens


def test_answers_go_on_from_a_remembered_beginning():
    cached = load("qwen3-moe", prefix_cache="64MB")
    options = {"max_tokens": 8, "temperature": 2.0, "seed": 4, "frequency_penalty": 1.0}
    fresh = cached.generate(IDS, n=3, **options)
    again = cached.generate(IDS, n=3, **options)
    assert again[0].usage.cached_tokens == len(IDS) - 1
    assert [each.tokens for each in again] == [each.tokens for each in fresh]
    turn = [*IDS, *fresh[2].tokens, 5]
    assert cached.generate(turn, max_tokens=1).usage.cached_tokens == len(IDS) + 7


@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-windowed"])
def test_no_tokens_read_the_prompt_for_later_calls(name):
    cached = load(name, prefix_cache="64MB")
    made = cached.generate([IDS, [9] * 12], max_tokens=0, logprobs=3, n=2)
    for row in made:
        assert [(each.text, each.tokens, each.finish_reason, each.logprobs) for each in row] == [
            ("", (), "length", ())
        ] * 2
    assert made[0][0].usage.completion_tokens == 0
    assert cached.generate([*IDS, 5], max_tokens=2).usage.cached_tokens == len(IDS)
    want = load(name).generate([*IDS, 5], max_tokens=2).tokens
    assert cached.generate([*IDS, 5], max_tokens=2).tokens == want
    pieces = list(cached.generate(IDS, max_tokens=0, stream=True))
    assert [(piece.text, piece.tokens, piece.finish_reason) for piece in pieces] == [("", (), "length")]


@pytest.mark.parametrize("name", ["qwen3-windowed", "qwen3-moe"])
def test_more_tokens_than_the_context_has_room_for_are_clamped_aloud(name, caplog):
    model = load(name, max_context=40)
    rows = [[7] * 30, IDS[:5], [9] * 39, [5] * 40]
    with caplog.at_level(logging.WARNING, "archport"):
        made = model.generate(rows, max_tokens=[10**30, 30, 50, 0])
    assert [len(each.tokens) for each in made] == [10, 30, 1, 0]
    assert [each.clamped_to for each in made] == [10, None, 1, None]
    assert [each.finish_reason for each in made] == ["length"] * 4
    (told,) = [record.getMessage() for record in caplog.records if "max_tokens" in record.getMessage()]
    assert "is more than the context of 40 tokens has room for: prompt 0 has 30, so at most 10" in told
    assert "1 more prompt alike" in told
    assert made[1].tokens == model.generate(IDS[:5], max_tokens=30).tokens
    with pytest.raises(ContextLengthExceeded, match="prompt 1 has 41 tokens and the context 40"):
        model.generate([IDS, [7] * 41], max_tokens=0)


def test_yarn_by_rope_scaling_alone_reads_and_writes_past_the_trained_length(tmp_path):
    # Qwen's recipe: config.json gains rope_scaling, and max_position_embeddings stays as it was.
    shutil.copytree(GOLDENS / "qwen3-yarn", tmp_path / "recipe")
    file = tmp_path / "recipe" / "config.json"
    config = json.loads(file.read_text())
    yarn = config.pop("rope_parameters")
    config["rope_theta"] = yarn.pop("rope_theta")
    config |= {"rope_scaling": yarn, "max_position_embeddings": yarn["original_max_position_embeddings"]}
    file.write_text(json.dumps(config))
    golden = np.load(GOLDENS / "qwen3-yarn" / "golden.npz")
    model = load(tmp_path / "recipe")
    assert model.max_tokens == 256
    prompt = golden["ids_3"]
    assert len(prompt) == 2 * config["max_position_embeddings"]
    assert list(model.generate(prompt, max_tokens=64).tokens) == golden["greedy_3"].tolist()
