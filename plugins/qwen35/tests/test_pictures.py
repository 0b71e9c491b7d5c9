"""Images and video in Qwen3.5's vision checkpoints, against what transformers computed from the same pixels."""

import json
import shutil
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import CheckpointError, ContextLengthExceeded, InputError
from archport.testing.plans import planned

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
FOLDER = GOLDENS / "qwen35-wrapper"
GOLDEN = np.load(FOLDER / "golden.npz")


CASES = ("one", "two", "video", "both")
# What was recorded with pictures: of the dense model, and of one with experts.
RECORDED = [*(("qwen35-wrapper", case) for case in CASES), *(("qwen35-moe-wrapper", case) for case in ("one", "both"))]
# Every frame is taken, as the recording did.
FILM = {"video": GOLDEN["video"], "fps": 3.0, "sample_fps": 100.0}


def conversation(case):
    first, second = GOLDEN["image_0"], GOLDEN["image_1"]
    pieces = {
        "one": [{"type": "image", "image": first}, {"type": "text", "text": "What is this?"}],
        "two": ["Compare ", {"image": second}, " with ", {"image": first}],
        "video": [{"type": "video", **FILM}, {"type": "text", "text": "What happens?"}],
        "both": ["Before ", {"image": second}, " and after ", FILM, ": what changed?"],
    }
    return [{"role": "user", "content": pieces[case]}]


@cache
def loaded(name):
    return engine.load(GOLDENS / name, dtype="float32"), np.load(GOLDENS / name / "golden.npz")


@pytest.fixture(scope="module")
def model():
    return loaded("qwen35-wrapper")[0]


def hidden_of(model, item):
    from archport.device.evaluation import Stretches
    from archport.running.steps import batch_caches, run_steps

    encoder, tokeniser, stretches = model._runtime.encoder, model._runtime.tokeniser, Stretches()
    tokens = tokeniser([item])
    plan = planned(encoder.plan, tokens.lengths, images=tokens.images)
    (batch,) = plan.batches
    with encoder.sight(tokeniser.inputs.reader, stretches) as sight:
        visual = sight.look(plan, batch, tokens.measured)
        caches = batch_caches(model.spec, plan, batch)
        steps = run_steps(encoder.trunk, plan, batch, tokens.ids, caches, stretches, visual)
        return tokens.ids[0], np.concatenate([np.array(hidden[0]) for _, hidden in steps])


@pytest.mark.parametrize(("name", "case"), RECORDED)
def test_ids_and_positions_are_the_reference_s(name, case):
    model, golden = loaded(name)
    (measured,) = model._runtime.tokeniser([conversation(case)]).measured
    np.testing.assert_array_equal(measured.ids, golden[f"pids_{case}"])
    np.testing.assert_array_equal(measured.positions, golden[f"positions_{case}"])
    assert measured.next_position - len(measured.ids) == golden[f"delta_{case}"]


@pytest.mark.parametrize(("name", "case"), RECORDED)
def test_hidden_states_and_logits_equal_transformers(name, case):
    model, golden = loaded(name)
    ids, hidden = hidden_of(model, conversation(case))
    hidden, logits = (
        hidden[: len(ids)],
        model._runtime.encoder.trunk.logits(mx.array(hidden[None, len(ids) - 1 :][:, :1])),
    )
    for found, want in ((hidden, golden[f"phidden_{case}"]), (np.array(logits)[0, 0], golden[f"plogits_{case}"])):
        assert np.abs(found - want).max() / np.abs(want).max() <= 3e-5


@pytest.mark.parametrize("name", sorted({name for name, _ in RECORDED}))
def test_greedy_tokens_after_images_and_video_equal_transformers(name):
    endless, golden = engine.load(GOLDENS / name, dtype="float32", prefix_cache=0), loaded(name)[1]
    cases = [case for each, case in RECORDED if each == name]
    # What was recorded went on behind the end.
    object.__setattr__(endless._runtime, "stops", frozenset())
    made = endless.generate([conversation(case) for case in cases], max_tokens=32)
    for case, each in zip(cases, made, strict=True):
        np.testing.assert_array_equal(each.tokens, golden[f"pgreedy_{case}"])


def test_a_video_file_gives_the_vector_of_its_frames(model, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "bgr0"
        for frame in GOLDEN["video"]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    text = "What happens?"
    file, frames, other = model.embed(
        [{"video": path, "text": text}, {**FILM, "fps": 4.0, "sample_fps": 2.0, "text": text}, {**FILM, "text": text}]
    )
    assert np.abs(file - frames).max() <= 1e-6
    assert np.abs(file - other).max() > 1e-3


def test_text_after_images_and_text_alone_do_not_know_of_each_other(model):
    texts = ["some text", conversation("one"), "some text", {"text": "What is this?", "image": GOLDEN["image_0"]}]
    vectors = model.embed(texts)
    assert np.abs(vectors[0] - vectors[2]).max() == 0
    assert np.abs(vectors[1] - vectors[3]).max() <= 1e-6
    assert np.abs(vectors[0] - model.embed(["some text"])[0]).max() <= 1e-6


@pytest.mark.parametrize(
    "item",
    [
        {"video": "film.mp4"},
        {**FILM, "fps": "three"},
        [{"role": "user", "content": 5}],
        {"text": "<|video_pad|>"},
        {"text": "<|image_pad|>", "image": GOLDEN["image_0"]},
        [{"role": "nobody", "content": "text"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        {},
        7,
    ],
    ids=["file", "rate", "no content", "video pad", "image pad", "role", "content", "nothing", "number"],
)
def test_what_it_can_t_read_is_refused(model, item):
    with pytest.raises(InputError, match="0"):
        model.embed([item])


def test_pictures_are_refused_rather_than_cut(model):
    with pytest.raises(ContextLengthExceeded, match="of them for pictures"):
        model.embed([conversation("one")], max_tokens=20, overflow="truncate")
    assert model.embed(["a rather long text about nothing at all"], max_tokens=5, overflow="truncate").shape == (1, 32)


def test_a_conversion_without_its_tower_reads_text_and_says_why_it_sees_nothing(tmp_path, model):

    folder = tmp_path / "text-half"
    shutil.copytree(FOLDER, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    kept = {name: value for name, value in weights.items() if "visual" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), kept, metadata={"format": "pt"})
    half = engine.load(folder, dtype="float32")
    assert np.abs(half.embed(["some text"]) - model.embed(["some text"])).max() == 0
    with pytest.raises(CheckpointError, match="no vision tower"):
        half.embed([conversation("one")])


def test_a_conversation_about_a_picture_goes_on_where_it_ended_and_another_picture_is_not_taken_for_it():
    def turns(picture, *more):
        pieces = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
        replies = [{"role": role, "content": text} for role, text in zip(("assistant", "user"), more, strict=False)]
        return [{"role": "user", "content": pieces}, *replies]

    def say(model, messages):
        return model.generate(messages, max_tokens=12, logprobs=1)

    remembering, fresh = engine.load(FOLDER, prefix_cache="64MB"), engine.load(FOLDER, prefix_cache=0)
    picture, longer = GOLDEN["image_0"], ("A chart.", "Of what?")
    say(remembering, turns(picture))
    again, other = (say(remembering, turns(each, *longer)) for each in (picture, 255 - picture))
    assert again.usage.cached_tokens > 15  # the picture's own
    assert other.usage.cached_tokens == 0
    for found, each in ((again, picture), (other, 255 - picture)):
        expected = say(fresh, turns(each, *longer))
        assert found.tokens == expected.tokens
        assert np.abs(np.subtract(found.logprobs[0].logprob, expected.logprobs[0].logprob)).max() <= 2e-5
    assert abs(again.logprobs[0].logprob - other.logprobs[0].logprob) > 1e-4


def test_settings_saved_in_one_file_as_today_are_read(tmp_path, model):
    folder = shutil.copytree(FOLDER, tmp_path / "today")
    nested = {}
    for name, path in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json")):
        nested[f"{name}_processor"] = json.loads((folder / path).read_text())
        (folder / path).unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert engine.load(folder).inputs.reader.settings == model.inputs.reader.settings
