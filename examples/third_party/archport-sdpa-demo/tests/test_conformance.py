"""What archport asks of a plugin that claims nothing; `archport check sdpa_demo` runs the same list."""

from archport.testing import parametrize_conformance


@parametrize_conformance("sdpa_demo")
def test_conformance(check):
    check()
