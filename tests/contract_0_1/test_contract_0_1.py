"""Example plugins as they were when contract 0.1 was written, held against today's kit: nothing in them ever changes.

`archport_llama`, `archport_sdpa_demo` and `small_chunks.py` are copies of `examples/third_party`; edit those alone.
"""

import hashlib
import sys
from pathlib import Path

import pytest

from archport import engine
from archport.testing import run_checks
from archport.testing.finding import find, release

HERE = Path(__file__).parent
# Of the files' names and contents; it changes when somebody edits a frozen copy.
FROZEN = "85bc72000d0073ab"


def frozen():
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        if path.name != Path(__file__).name:
            digest.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture
def plugins(monkeypatch):
    """The frozen plugins, imported from here and from nowhere else."""
    names = ("archport_llama", "archport_sdpa_demo", "small_chunks")
    monkeypatch.syspath_prepend(str(HERE))
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    found = {name: __import__(name) for name in names}
    assert all(str(HERE) in str(module.__file__) for module in found.values())
    yield found
    for module in found.values():
        release(find(module))
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.modules.update(kept)


def failures(outcomes):
    return {each.check.name: each.message for each in outcomes if each.status not in ("ok", "not applicable")}


def test_the_copies_are_frozen():
    assert frozen() == FROZEN


def test_a_plugin_of_contract_0_1_passes_the_kit(plugins):
    assert failures(run_checks(plugins["archport_llama"])) == {}


def test_a_plugin_that_speaks_of_segments_passes_the_kit_which_tells_the_new_word(plugins):
    told = failures(run_checks(plugins["archport_sdpa_demo"]))
    assert list(told) == ["nothing_deprecated_is_used"]
    assert "backend.py:28: 'segments' as the name of a mask or a backend" in told["nothing_deprecated_is_used"]
    assert "write 'documents'" in told["nothing_deprecated_is_used"]


def test_an_override_of_contract_0_1_is_obeyed(plugins):
    folder = HERE.parent / "goldens" / "qwen3-embed"
    model = engine.load(folder, overrides=[plugins["small_chunks"]])
    assert "archport_prefill_chunk of override small_chunks" in model.plan([300]).explain()
