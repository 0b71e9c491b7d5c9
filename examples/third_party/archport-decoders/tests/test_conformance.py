"""Everything archport asks of a plugin; `archport check decoders` runs the same list.

`archport record decoders --output tests/golden.npz --python PYTHON` wrote what transformers computes from the
examples, and the golden tier compares with it.
"""

from pathlib import Path

from archport.testing import parametrize_conformance


@parametrize_conformance("decoders", golden=Path(__file__).with_name("golden.npz"))
def test_conformance(check):
    check()
