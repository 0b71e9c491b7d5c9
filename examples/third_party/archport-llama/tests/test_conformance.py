"""Everything archport asks of a plugin; `archport check llama` runs the same list."""

from archport.testing import parametrize_conformance


@parametrize_conformance("llama")
def test_conformance(check):
    check()
