"""What sets BERT's relatives apart from it: shared tables, shared layers, and keys that transformers does not read."""

import mlx.utils
import pytest

from archport.checkpoint import normalise_config
from archport.contract import ClaimError, SpecError
from archport.contract.plugins import claim, discover
from archport_bidirectional import FAMILIES, archport_build, archport_claim, archport_examples, claimed


def example(name):
    return next(tiny for tiny in archport_examples() if tiny.name == name)


def test_mpnet_refuses_a_table_smaller_than_the_one_that_transformers_reads():
    config = normalise_config({**example("mpnet, distances in shared buckets").config})
    with pytest.raises(SpecError, match="relative_attention_num_buckets=16"):
        archport_claim({**config, "relative_attention_num_buckets": 16})


def test_albert_holds_one_block_for_all_its_layers():
    config = normalise_config(example("albert, one block for all layers").config)
    spec = archport_claim(config)
    names = [name for name, _ in mlx.utils.tree_flatten(archport_build(spec, config).parameters())]
    assert len(spec.layers) == 3
    assert sum(name.endswith("q_proj.weight") for name in names) == 1


def test_no_config_of_an_example_is_claimed_by_two_families():
    for tiny in archport_examples():
        config = normalise_config(tiny.config)
        assert sum(claimed(family, config) is not None for family in FAMILIES) == 1, tiny.name


ENCODERS = [tiny for tiny in archport_examples() if not normalise_config(tiny.config)["causal"]]


@pytest.mark.parametrize("tiny", ENCODERS, ids=lambda tiny: tiny.name)
def test_an_encoder_that_says_it_is_a_decoder_is_refused_with_the_reason(tiny):
    config = normalise_config({**tiny.config, "is_decoder": True})
    if not config["causal"]:
        # Its name alone says that it is none.
        assert archport_claim(config) is not None
        return
    arch = archport_claim(normalise_config(tiny.config)).arch
    with pytest.raises(SpecError, match=f"{arch}: is_decoder=True of config.json is not supported"):
        archport_claim(config)


def test_the_reason_reaches_who_loads_a_decoder_by_a_name_of_bert():
    bert = next(tiny for tiny in ENCODERS if archport_claim(normalise_config(tiny.config)).arch == "bert")
    config = normalise_config({**bert.config, "is_decoder": True})
    with pytest.raises(ClaimError, match="bert: is_decoder=True"):
        claim(config, discover())
