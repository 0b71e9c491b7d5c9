"""Without a backend of MLX: what needs none works, and everything else says in two lines what to install.

What pip installs on Linux without an extra is simulated here, and is itself in tests/test_packaging.py.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# The name in the package is the command's.
doctor = importlib.import_module("archport.cli.doctor")
TESTS = Path(__file__).parents[1]
BERT, CONFIG = TESTS / "goldens" / "bert-plain", TESTS / "planning" / "data" / "qwen3_embedding_06b.json"
# Runs command lines one after the other, and prints (exit code, standard output, standard error) of each.
SEVERAL = """
import io, json, sys
from archport import cli
ended = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["archport", *line]
    real, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), io.StringIO(), io.StringIO()
    code = cli.run()
    ended.append((code, sys.stdout.getvalue(), sys.stderr.getvalue()))
    sys.stdout, sys.stderr = real
print(json.dumps(ended))
"""
WORK = [
    ["--help"],
    ["embed", "--help"],
    ["plugins", "--json"],
    ["plan", "--device", "m2-ultra-128gb", "--tokens", "9", "-m", str(CONFIG), "--json"],
    ["plan", "--device", "h200", "--tokens", "9", "-m", str(BERT), "--json"],
    ["info", "-m", str(BERT)],
]
NEED = [
    ["embed", "a", "-m", str(BERT)],
    ["rerank", "-q", "a", "b", "-m", str(BERT)],
    ["generate", "a", "-m", str(BERT)],
    ["chat", "-m", str(BERT)],
    ["check"],
    ["plan", "--tokens", "9", "-m", str(BERT)],
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Command line -> how it ended where MLX is installed without its library."""
    fake = tmp_path_factory.mktemp("fake")
    (fake / "mlx").mkdir()
    (fake / "mlx" / "__init__.py").write_text("")
    missing = "libmlx.so: cannot open shared object file: No such file or directory"
    (fake / "mlx" / "core.py").write_text(f"raise ImportError({missing!r})\n")
    lines = [*WORK, *NEED, ["doctor"]]
    environment = {**os.environ, "PYTHONPATH": f"{fake}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", SEVERAL, json.dumps(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {" ".join(line): how for line, how in zip(lines, json.loads(done.stdout), strict=True)}


def test_what_needs_no_backend_works(ended):
    for line in WORK:
        code, out, err = ended[" ".join(line)]
        assert (code, err) == (0, ""), line
        assert out, line


def test_everything_else_says_in_two_lines_what_to_install(ended):
    for line in NEED:
        code, out, err = ended[" ".join(line)]
        assert (code, out) == (1, ""), line
        assert err.count("\n") == 2, err
        assert "MLX has no backend" in err
        assert "pip install" in err


def test_doctor_prints_what_it_knows_and_the_mend_once(ended):
    code, out, err = ended["doctor"]
    assert (code, err) == (1, "")
    for part in ("archport", "python", "mlx", "device", "memory", "in use", "BLAS", "plugins", "hub"):
        assert f"\n{part} " in f"\n{out}"
    assert out.count("pip install") == 1


@pytest.mark.parametrize("name", list(doctor.PROBES))
@pytest.mark.parametrize(
    "error", [OSError(5, "no"), RuntimeError(), ImportError("x"), KeyError("k"), ValueError("a\nb")]
)
def test_doctor_prints_every_other_fact_where_one_can_not_be_told(monkeypatch, name, error):
    def broken():
        raise error

    monkeypatch.setitem(doctor.PROBES, name, broken)
    facts, faults = doctor.examine()
    assert [fact for fact, _ in facts] == list(doctor.PROBES)
    assert any(name in fault for fault in faults)
