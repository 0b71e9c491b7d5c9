"""The conformance kit on this plugin."""

from archport.testing import parametrize_conformance


@parametrize_conformance("qwen35")
def test_conformance(check):
    check()
