"""Everything archport asks of a plugin; `archport check decoders` runs the same list."""

from archport.testing import parametrize_conformance


@parametrize_conformance("decoders")
def test_conformance(check):
    check()
