"""A model is loaded by the plugin that the caller names, where more than one may claim it."""

from pathlib import Path

import pytest

from archport import engine
from archport.contract import ClaimError, InputError

FOLDER = Path(__file__).parents[1] / "goldens" / "bert-plain"


def test_a_plugin_is_asked_by_name():
    assert engine.load(FOLDER, plugin="bidirectional").plugin.name == "bidirectional"


def test_a_named_plugin_that_claims_something_else_is_an_error_and_no_other_is_asked():
    with pytest.raises(ClaimError, match=r"no plugin claims model_type 'bert'.*installed: qwen3"):
        engine.load(FOLDER, plugin="qwen3")


def test_a_name_that_nobody_has_is_an_error():
    with pytest.raises(InputError, match="plugin='acme' is not installed"):
        engine.load(FOLDER, plugin="acme")
