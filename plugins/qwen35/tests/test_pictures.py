"""Images in Qwen3.5's vision checkpoints, against what transformers computed from the same pixels."""

from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import CheckpointError, ContextLengthExceeded, InputError

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
FOLDER = GOLDENS / "qwen35-wrapper"
GOLDEN = np.load(FOLDER / "golden.npz")


def conversation(case):
    first, second = GOLDEN["image_0"], GOLDEN["image_1"]
    pieces = {
        "one": [{"type": "image", "image": first}, {"type": "text", "text": "What is this?"}],
        "two": ["Compare ", {"image": second}, " with ", {"image": first}],
    }
    return [{"role": "user", "content": pieces[case]}]


@pytest.fixture(scope="module")
def model():
    return engine.load(FOLDER)


def hidden_of(model, item):
    from archport.running.context import Stretches
    from archport.running.planned import batch_caches, run_steps
    from archport.running.vision import sight_of

    encoder, tokeniser, stretches = model._runtime.encoder, model._runtime.tokeniser, Stretches()
    tokens = tokeniser([item])
    plan = encoder.plan(tokens.lengths, images=tokens.images)
    (batch,) = plan.batches
    with sight_of(encoder.trunk, tokeniser.inputs.reader, stretches) as sight:
        visual = sight.look(plan, batch, tokens.measured)
        caches = batch_caches(model.spec, plan, batch)
        steps = run_steps(encoder.trunk, plan, batch, tokens.ids, caches, stretches, visual)
        return tokens.ids[0], np.concatenate([np.array(hidden[0]) for _, hidden in steps])


@pytest.mark.parametrize("case", ["one", "two"])
def test_ids_and_hidden_states_equal_transformers(model, case):
    ids, hidden = hidden_of(model, conversation(case))
    np.testing.assert_array_equal(ids, GOLDEN[f"pids_{case}"])
    want = GOLDEN[f"phidden_{case}"]
    assert np.abs(hidden[: len(ids)] - want).max() / np.abs(want).max() <= 3e-5


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
        {"text": "<|endoftext|>", "image": GOLDEN["image_0"]},
        [{"role": "nobody", "content": "text"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        {},
        7,
    ],
    ids=["video", "placeholder in the text", "role", "content", "nothing", "number"],
)
def test_what_it_can_t_read_is_refused(model, item):
    with pytest.raises(InputError, match="0"):
        model.embed([item])


def test_text_with_images_is_refused_rather_than_cut(model):
    with pytest.raises(ContextLengthExceeded, match="of them for images"):
        model.embed([conversation("one")], max_tokens=20, overflow="truncate")
    assert model.embed(["a rather long text about nothing at all"], max_tokens=5, overflow="truncate").shape == (1, 32)


def test_a_conversion_without_its_tower_reads_text_and_says_why_it_sees_nothing(tmp_path, model):
    import shutil

    import mlx.core as mx

    folder = tmp_path / "text-half"
    shutil.copytree(FOLDER, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    kept = {name: value for name, value in weights.items() if "visual" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), kept, metadata={"format": "pt"})
    half = engine.load(folder)
    assert np.abs(half.embed(["some text"]) - model.embed(["some text"])).max() == 0
    with pytest.raises(CheckpointError, match="no vision tower"):
        half.embed([conversation("one")])
