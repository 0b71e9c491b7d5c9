"""How modules are split over ranks, without any process: what each rank keeps makes up the whole, or is refused."""

import json
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from archport.checkpoint.cutting import cut_array, cut_of, kept_size
from archport.checkpoint.headers import TensorInfo
from archport.contract import ArchSpec, AttentionLayer, DeltaHeads, Experts, InputError, RecurrentLayer
from archport.contract.split import Cut, Rank, attention_of, kv_heads
from archport.layers import MLP, Attention, Embedding, GatedDeltaNet, GatedMLP, PreNormBlock, SparseMLP
from archport.layers.splitting import split_of

D, V = 64, 199
LAYER = AttentionLayer("causal", 8, 4, 16)
HEADS = DeltaHeads(2, 4, 16, 16)
RECURRENT = RecurrentLayer.gated_delta(HEADS, 4)
EXPERTS = Experts(4, 2, 32, layers=(1,), shared_intermediate_size=48)


class Own(Attention):
    """A plugin's attention with a call of its own."""

    def __call__(self, x, ctx, onto=None):
        return super().__call__(x, ctx)


class Model(nn.Module):
    """A layer of each kind: attention, experts, a recurrence; and attention of the plugin's own where it is asked."""

    def __init__(self, spec, attention=Attention):
        super().__init__()
        self.words = Embedding(V, D)
        self.layers = [
            PreNormBlock(
                attention(0, spec.layers[0], D, bias=True, output_bias=True), GatedMLP(D, 96, nn.silu), D, 1e-6
            ),
            PreNormBlock(
                attention(1, spec.layers[1], D, bias=False, output_bias=False),
                SparseMLP(D, EXPERTS, renormalise=True, bias=True),
                D,
                1e-6,
            ),
            PreNormBlock(GatedDeltaNet(2, HEADS, D, conv_taps=4, eps=1e-6), MLP(D, 96, nn.gelu, bias=True), D, 1e-6),
        ]
        self.lm_head = nn.Linear(D, V, bias=False)


def spec_of(layer=LAYER, **more):
    given = {"vocab_size": V, "hidden_size": D, "intermediate_size": 96, "max_positions": 64, "experts": EXPERTS}
    return ArchSpec(arch="mixed", tasks=("embed",), layers=(layer, layer, RECURRENT), **{**given, **more})


def splits(count, spec=None, attention=Attention):
    spec = spec or spec_of()
    trunk = Model(spec, attention)
    return trunk, [split_of(trunk, spec, Rank(number, count)) for number in range(count)]


def kept(name, array, split, folder=None):
    cut = cut_of(name, split.cuts)
    return array if cut is None else cut_array(array, name, cut, folder, None)


def test_what_two_ranks_keep_makes_up_every_tensor_that_is_split():
    trunk, (first, second) = splits(2)
    split = 0
    for name, array in tree_flatten(trunk.parameters()):
        parts = [kept(name, array, each) for each in (first, second)]
        if parts[0].shape == array.shape:
            continue
        split += 1
        axis = next(at for at in range(array.ndim) if parts[0].shape[at] != array.shape[at])
        joined = np.concatenate([np.array(part) for part in parts], axis=axis)
        # The recurrence's q, k and v lie after one another, so its ranks' parts are the whole in another order.
        flat = np.sort(joined, axis=None), np.sort(np.array(array), axis=None)
        assert np.array_equal(*flat), name
        if "conv1d" not in name and "in_proj_qkv" not in name:
            assert np.array_equal(joined, np.array(array)), name
    assert split >= 30


def test_a_rank_runs_its_own_heads_widths_and_experts():
    _, (first, _) = splits(2)
    attention, _, recurrent = first.spec.layers
    assert (attention.n_heads, attention.n_kv_heads) == (4, 2)
    assert (recurrent.heads.n_key_heads, recurrent.state_bytes) == (1, RECURRENT.state_bytes // 2)
    assert first.spec.intermediate_size == 48
    assert (first.spec.experts.intermediate_size, first.spec.experts.shared_intermediate_size) == (16, 24)
    assert first.spec.vocab_size == V
    assert first.about.vocabulary == 100


def test_kv_heads_fewer_than_ranks_are_repeated():
    layer = replace(LAYER, n_kv_heads=2)
    assert [kv_heads(layer, Rank(number, 4)).spans for number in range(4)] == [
        ((0, 1),),
        ((0, 1),),
        ((1, 2),),
        ((1, 2),),
    ]
    assert attention_of(layer, Rank(3, 4)).n_kv_heads == 1


@pytest.mark.parametrize(
    ("layer", "count", "says"),
    [
        (LAYER, 3, "can't be split over 3 processes; use 2 or 4 or 8"),
        (replace(LAYER, n_heads=12, n_kv_heads=3), 2, "3 kv heads can neither be split"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_what_does(layer, count, says):
    with pytest.raises(InputError, match=says):
        splits(count, spec_of(layer))


def test_a_cut_inside_a_group_of_a_quantised_matrix_is_refused():
    half = Cut("in", ((0, 48),), 96)
    with pytest.raises(InputError, match=r"down_proj\.scales has 3 entries.*groups of a quantised matrix"):
        cut_array(mx.zeros((64, 3)), "mlp.down_proj.scales", half, None, None)


def test_attention_of_a_plugin_s_own_is_whole_on_every_rank_and_said_so():
    _, (first, _) = splits(2, attention=Own)
    assert first.spec.layers[0] == LAYER
    assert not any("self_attn" in name and name.startswith("layers.0") for name in first.cuts)
    assert any("layers.N.self_attn.q_proj" in words for words in first.about.replicated)


def test_a_model_of_which_nothing_can_be_split_is_refused_by_name():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = Embedding(V, D)

    with pytest.raises(InputError, match=r"no layer of mixed can be split.*Strange"):
        split_of(Strange(), spec_of(), Rank(0, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint32"])
@pytest.mark.parametrize("side", ["out", "in"])
def test_a_share_is_read_from_a_file_as_it_is_cut_out_of_the_whole(tmp_path, dtype, side):
    array = (mx.random.normal((8, 12)) * 1000).astype(getattr(mx, dtype))
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), {"odd": mx.zeros((3,), mx.uint8), "weight": array})
    header = int.from_bytes(file.read_bytes()[:8], "little")
    begin, end = json.loads(file.read_bytes()[8 : 8 + header])["weight"]["data_offsets"]
    info = TensorInfo("weight", dtype, (8, 12), end - begin, file.name, 8 + header + begin)
    cut = Cut(side, ((1, 2), (3, 4)), 4)
    # The whole is never asked for: zeros stand in for it.
    read = cut_array(mx.zeros((8, 12), array.dtype), "m.weight", cut, tmp_path, info)
    assert mx.array_equal(read, cut_array(array, "m.weight", cut, tmp_path, None))
    assert read.size == kept_size("m.weight", (8, 12), cut) == 48
