"""Fake distributions on the import path, so that plugins are found exactly as installed ones are."""

import importlib
import sys
import textwrap

import pytest

from archport.contract import plugins

PREAMBLE = """
from archport.contract import ArchSpec, AttentionLayer, MaskPolicy, hookimpl

SPEC = ArchSpec(
    arch="toy", tasks=("embed",), layers=(AttentionLayer("bidirectional", 4, 2, 32),), vocab_size=100, hidden_size=64,
    intermediate_size=96, max_positions=512,
)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, source, distribution=...)` installs a plugin; other plugins of this environment are hidden."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for variable in ("ARCHPORT_PLUGINS", "ARCHPORT_PREFER", "ARCHPORT_STRICT", "ARCHPORT_TRACE"):
        monkeypatch.delenv(variable, raising=False)
    installed = []

    def install(name, source, *, distribution=None, version="0.1"):
        distribution = distribution or f"archport-{name}"
        module = f"{distribution}_{name}_plugin".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(PREAMBLE + textwrap.dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[archport]\n{name} = {module}\n")
        installed.append(module)
        importlib.invalidate_caches()
        plugins._discover.cache_clear()

    yield install
    plugins._discover.cache_clear()
    for module in installed:
        sys.modules.pop(module, None)


@pytest.fixture
def mine(monkeypatch):
    """Discovered plugins by name, without those that the environment really has."""

    def found():
        return {row.name: row for row in plugins.discover() if row.distribution != "archport"}

    return found
