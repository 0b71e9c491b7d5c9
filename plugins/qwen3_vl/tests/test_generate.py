"""Generation with pictures: transformers' tokens, ragged batches, streams, prefixes that know pictures, limits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.contract import ContextLengthExceeded
from archport.testing.plans import planned

CASES = ["text", "first", "last", "two", "five", "video", "both"]


def unending(model: engine.Model) -> engine.Model:
    """The model without a final token: what was recorded went on behind it."""
    object.__setattr__(model._runtime, "stops", frozenset())
    return model


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen3-vl-moe"])
def generating(request: pytest.FixtureRequest) -> engine.Model:
    folder = Path(__file__).parents[3] / "tests" / "goldens" / request.param
    return unending(engine.load(folder, dtype="float32", prefix_cache=0))


@pytest.fixture
def own(generating: engine.Model, goldens: Any) -> Any:
    return goldens[Path(generating.name).name]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_the_reference_s(case: str, own: Any, generating: engine.Model):
    made: Any = generating.generate(own.messages(case), max_tokens=32)
    np.testing.assert_array_equal(made.tokens, own[f"greedy_{case}"])
    assert made.usage.prompt_tokens == len(own[f"ids_{case}"])


def test_a_ragged_batch_of_texts_and_pictures_says_what_singles_say(generating: engine.Model, own: Any):
    together: Any = generating.generate([own.messages(case) for case in CASES], max_tokens=32)
    for case, made in zip(CASES, together, strict=True):
        np.testing.assert_array_equal(made.tokens, own[f"greedy_{case}"])


def test_a_stream_is_the_same_text(generating: engine.Model, goldens: Any):
    golden = goldens["qwen3-vl"]
    whole: Any = generating.generate(golden.messages("both"), max_tokens=12)
    pieces: Any = list(generating.generate(golden.messages("both"), max_tokens=12, stream=True))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(token for piece in pieces for token in piece.tokens) == whole.tokens


def test_options_of_prompts_with_pictures_are_their_own_and_answers_share_the_tower(
    generating: engine.Model, own: Any, monkeypatch: pytest.MonkeyPatch
):
    cases = ["two", "text", "both"]
    options: Any = {
        "max_tokens": [9, 12, 7], "temperature": [1.5, 0, 1.0], "presence_penalty": [2, 0, -1], "seed": [1, 2, 3],
        "frequency_penalty": [0, 0.5, 0], "logit_bias": [None, {9: 3.0}, {4: -100}], "min_tokens": [9, 0, 3],
        "stop_token_ids": [[5, 6], None, [7]],
    }  # fmt: skip
    seen: list[int] = []
    trunk: Any = generating._runtime.encoder.trunk
    original = type(trunk).see
    monkeypatch.setattr(type(trunk), "see", lambda self, *rest: seen.append(1) or original(self, *rest))
    together: Any = generating.generate([own.messages(case) for case in cases], n=2, **options)
    passes = len(seen)
    for at, case in enumerate(cases):
        own_options = {name: each[at] for name, each in options.items()}
        alone: Any = generating.generate(own.messages(case), n=2, **own_options)
        assert [each.tokens for each in together[at]] == [each.tokens for each in alone]
    seen.clear()
    generating.generate([own.messages(case) for case in cases], max_tokens=1)
    assert len(seen) == passes


@pytest.fixture
def remembering(goldens: Any) -> engine.Model:
    return unending(engine.load(goldens["qwen3-vl"].folder, dtype="float32", prefix_cache="64MB"))


def asked(picture: np.ndarray, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def test_a_second_question_about_a_picture_starts_behind_it(remembering: engine.Model, goldens: Any, generating: Any):
    picture = goldens["qwen3-vl"]["image_2"]
    remembering.generate(asked(picture, "What is it?"), max_tokens=4)
    seen: list[int] = []
    trunk: Any = remembering._runtime.encoder.trunk
    original = type(trunk).see
    try:
        type(trunk).see = lambda self, *rest: seen.append(1) or original(self, *rest)
        again: Any = remembering.generate(asked(picture, "What colour has it?"), max_tokens=16)
    finally:
        type(trunk).see = original
    fresh: Any = unending(engine.load(goldens["qwen3-vl"].folder, dtype="float32", prefix_cache=0)).generate(
        asked(picture, "What colour has it?"), max_tokens=16
    )
    assert not seen
    assert again.usage.cached_tokens > 40
    assert again.tokens == fresh.tokens


def test_another_picture_of_the_same_size_is_not_taken_for_the_first(remembering: engine.Model, goldens: Any):
    picture = goldens["qwen3-vl"]["image_2"]
    remembering.generate(asked(picture, "What is it?"), max_tokens=4)
    other: Any = remembering.generate(asked(255 - picture, "What is it?"), max_tokens=16)
    fresh: Any = unending(engine.load(goldens["qwen3-vl"].folder, dtype="float32", prefix_cache=0)).generate(
        asked(255 - picture, "What is it?"), max_tokens=16
    )
    assert other.usage.cached_tokens < 10
    assert other.tokens == fresh.tokens


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny-VL-Instruct"
    golden = Path(__file__).parents[3] / "tests" / "goldens" / "qwen3-vl"
    shutil.copytree(golden, folder, ignore=shutil.ignore_patterns("golden*"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 16_384
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**processor, "size": {"shortest_edge": 64, "longest_edge": 10**9}})
    )
    return folder


def prompt_of(model: engine.Model, pictures: int, tokens: int) -> list[dict[str, Any]]:
    """A conversation of exactly so many tokens: pictures of 840 tokens each, and digits, of one each."""
    dice = np.random.default_rng(0)
    parts: list[Any] = [
        {"type": "image", "image": dice.integers(0, 256, (160, 336, 3), dtype=np.uint8)} for _ in range(pictures)
    ]
    short = len(model._runtime.prompts()([{"role": "user", "content": parts}]).rows[0])
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "7" * (tokens - short)}]}]
    assert len(model._runtime.prompts()(messages).rows[0]) == tokens
    return messages


def test_a_cache_that_begins_with_4096_tokens_takes_a_prompt_of_6776(long_context: Path):
    model = unending(engine.load(long_context, dtype="float32"))
    prompt = prompt_of(model, 8, 6776)
    plan = planned(model._runtime.encoder.plan, [6776], new_tokens=None, images=[[840 * 4] * 8])
    (kept,) = {kind.kv for kind in plan.batches[0].kinds}
    assert kept is not None
    assert (kept.storage, kept.initial) == ("growing", 4096)
    stream: Any = model.generate(prompt, max_tokens=None, stream=True)
    first = [next(stream) for _ in range(3)]
    stream.close()
    assert [len(piece.tokens) for piece in first] == [1, 1, 1]


def test_a_prompt_above_the_context_is_refused_with_both_numbers_before_any_vision_work(
    long_context: Path, monkeypatch: pytest.MonkeyPatch
):
    model = engine.load(long_context, dtype="float32", max_context=4000)
    prompt = prompt_of(engine.load(long_context, dtype="float32"), 5, 4913)
    trunk: Any = model._runtime.encoder.trunk
    monkeypatch.setattr(type(trunk), "see", lambda *_: pytest.fail("the tower ran"))
    monkeypatch.setattr("archport.media.images.ImageSource.image", lambda self: pytest.fail("an image was decoded"))
    with pytest.raises(
        ContextLengthExceeded, match=r"has 4,913 tokens, [\d,]+ of them for pictures; the limit is 4,000"
    ):
        model.generate(prompt)
