"""Every library that archport needs has an upper bound, and the version that doctor says was tested fits it."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from archport.cli.doctor import TESTED, examine

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(text for one in PROJECT["optional-dependencies"].values() for text in one))
]


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_a_library_has_an_upper_bound(needed: Requirement):
    assert any(bound.operator in ("<", "<=", "==", "~=") for bound in needed.specifier)


@pytest.mark.parametrize("name", TESTED)
def test_the_tested_version_is_one_that_may_be_installed(name: str):
    bounds = [needed.specifier for needed in NEEDED if needed.name == name]
    assert bounds
    assert all(TESTED[name] in bound for bound in bounds)


def test_doctor_names_the_tested_version_beside_another_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TESTED, "numpy", "1.0")
    facts, _ = examine()
    libraries = dict(facts)["libraries"]
    assert "(tested with 1.0)" in libraries
    assert "tokenizers" in libraries
