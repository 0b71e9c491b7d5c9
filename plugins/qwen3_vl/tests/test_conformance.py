"""The conformance kit on this plugin."""

from archport.testing import parametrize_conformance


@parametrize_conformance("qwen3_vl")
def test_conformance(check):
    check()
