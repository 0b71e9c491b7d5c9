"""The toy plugin and the liars, which are modules of this folder and no tests."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name):
    # They import each other by name, also in the fresh process that times an import.
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return __import__(name)


@pytest.fixture(scope="session")
def load_kit():
    """Loads a module of this folder by name."""
    return load


@pytest.fixture(scope="session")
def toy():
    """The honest plugin."""
    return load("toy")


@pytest.fixture(scope="session")
def honest(toy):
    """What every check found on the honest plugin."""
    from archport.testing import run_checks

    return run_checks(toy)


@pytest.fixture(scope="session")
def toy_vision():
    """The honest plugin with a tower, and one that reads no images."""
    return load("toy_vision")


@pytest.fixture(scope="session")
def liars():
    """Every plugin that breaks a rule."""
    return load("liars").LIARS


def pytest_generate_tests(metafunc):
    if "liar" in metafunc.fixturenames:
        found = load("liars").LIARS
        metafunc.parametrize("liar", found, ids=[each.module.__name__.removeprefix("liar_") for each in found])
