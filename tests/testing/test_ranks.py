"""Models split over processes of this machine, with the ring backend, against one process."""

import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from archport import engine
from archport.contract import InputError
from archport.testing import run_checks
from archport.testing.finding import find, subject_of
from archport.testing.ranks import Asked, answered, on_ranks, start
from archport.testing.subject import Tiny

pytestmark = pytest.mark.only_on("cpu", reason="the ring backend joins processes that each have the CPU")

DEEP = {"num_hidden_layers": 4, "tie_word_embeddings": False}


def tiny(**more):
    """Qwen3 with an output head."""
    subject = subject_of(find("qwen3"))
    example = next(each for each in subject.examples if each.name == "generates, untied head")
    changed = type(example)("deep", {**example.config, **more}, 2, example.scale, example.publish)
    return Tiny(subject, changed)


def asked(t, folder=None, **options):
    rows = [t.tokens(30).tolist(), t.tokens(11).tolist()]
    return Asked(str(folder or t.folder), "qwen3", rows, texts=("one two", "three"), new_tokens=24, options=options)


def packed(t, group=32, bits=8):
    """The example's checkpoint with quantised matrices."""
    module = t.bare()
    nn.quantize(module, group_size=group, bits=bits)
    weights = dict(tree_flatten(module.parameters()))
    return t.write("packed", weights, quantization={"group_size": group, "bits": bits})


def gap(one, other):
    return np.abs(one.astype(np.float64) - other).max() / np.abs(other).max()


def check_equal(ranks, alone, limit, greedy=True):
    for name in ("hidden", "vectors"):
        assert gap(ranks[0].arrays[name], alone.arrays[name]) <= limit, name
    if greedy:
        assert np.array_equal(ranks[0].arrays["greedy"], alone.arrays["greedy"])
    for name, array in ranks[0].arrays.items():
        assert all(np.array_equal(array, other.arrays[name]) for other in ranks[1:]), name
    for rank in ranks:
        assert rank.peaks
        assert all(measured <= planned for measured, planned in rank.peaks)


def test_two_ranks_answer_as_one_process_and_draw_the_same_tokens():
    t = tiny(**DEEP, intermediate_size=128)
    plain = asked(t, dtype="float32")
    quantised = asked(t, packed(t), dtype="checkpoint")
    found = on_ranks([plain, quantised])
    check_equal(found[0], answered(plain), 1e-5)
    assert found[0][0].bytes < 0.55 * answered(plain).bytes
    assert "kv heads 2 to 1" in found[0][1].plan
    check_equal(found[1], answered(quantised), 1e-2, greedy=False)


def test_a_process_alone_is_told_how_to_start_the_others():
    t = tiny(**DEEP)
    with pytest.raises(InputError, match=r"this process is alone.*mlx\.launch"):
        engine.load(t.folder, tensor_parallel=True)


@pytest.mark.truth
@pytest.mark.parametrize("plugin", ["qwen3", "qwen35", "qwen3_vl", "bidirectional"])
def test_every_example_answers_on_two_ranks_as_on_one(plugin):
    (outcome,) = run_checks(plugin, tier="ranks")
    assert outcome.status == "ok", outcome.message


@pytest.mark.truth
def test_a_split_inside_a_group_of_quantised_matrices_is_refused_on_every_rank():
    t = tiny(**DEEP)
    # Half of an MLP of three groups ends inside the second.
    (found,) = on_ranks([asked(t, packed(t), dtype="checkpoint")])
    assert all("groups of a quantised matrix" in each.refused for each in found)


@pytest.mark.truth
def test_four_ranks_share_two_kv_heads_and_a_vocabulary_that_does_not_divide():
    t = tiny(**DEEP)
    wanted = asked(t, dtype="float32")
    (found,) = on_ranks([wanted], count=4)
    check_equal(found, answered(wanted), 1e-5)
    assert "some on several devices" in found[3].plan


@pytest.mark.truth
@pytest.mark.parametrize("more", [{}, {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 2}])
def test_bfloat16_answers_as_well_on_two_ranks(more):
    t = tiny(**DEEP, **more)
    wanted = asked(t, dtype="bfloat16")
    (found,) = on_ranks([wanted])
    check_equal(found, answered(wanted), 5e-2, greedy=False)


FAILS = """
import archport, os, sys, time
import numpy as np
from archport import engine
from archport.device import peers
from archport.testing.finding import find
peers.GRACE = 1.0
model = engine.load(sys.argv[1], plugins=(find("qwen3"),), tensor_parallel=True)
print(model.embed(["one"]).shape, flush=True)
rank = int(os.environ["MLX_RANK"])
def texts():
    yield "one"
    if rank == 1:
        raise RuntimeError("the texts of one rank end")
    yield "two"
try:
    model.embed(texts())
    print("answered", flush=True)
except RuntimeError as error:
    print("raised", error, flush=True)
    time.sleep(8)
"""


@pytest.mark.truth
def test_an_error_on_one_rank_reaches_the_other_with_the_reason(tmp_path):
    script, t = tmp_path / "fails.py", tiny(**DEEP)
    script.write_text(FAILS)
    with pytest.raises(
        RuntimeError, match=r"(?s)rank 0 of 2 ended with \d+.*rank 1 failed .*the texts of one rank end"
    ):
        start([str(script), str(t.folder)], 2, tmp_path)


DIFFERS = """
import archport, os, sys
from archport import engine
from archport.testing.finding import find
model = engine.load(sys.argv[1], plugins=(find("qwen3"),), tensor_parallel=True)
rank = int(os.environ["MLX_RANK"])
model.embed(["one"] * (1 + rank))
"""


@pytest.mark.truth
def test_ranks_that_are_asked_different_things_are_told_so(tmp_path):
    script, t = tmp_path / "differs.py", tiny(**DEEP)
    script.write_text(DIFFERS)
    with pytest.raises(RuntimeError, match=r"the request of rank \d differs from that of rank \d"):
        start([str(script), str(t.folder)], 2, tmp_path)
