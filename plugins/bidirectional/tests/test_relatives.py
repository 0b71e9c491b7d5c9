"""What sets BERT's relatives apart from it: shared tables, shared layers, and keys that transformers does not read."""

import mlx.utils
import pytest

from archport.checkpoint import normalise_config
from archport.contract import SpecError
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
