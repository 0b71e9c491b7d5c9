"""Users' programs in pyright's strict mode: nothing is said of 40 right snippets, and something of each wrong call."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.truth

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "core"


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """{file: {line: rules}} of pyright's errors."""
    folder = tmp_path_factory.mktemp("pyright")
    for name in ("right.py", "wrong.py"):
        shutil.copy(HERE / name, folder)
    config = folder / "pyrightconfig.json"
    settings = {"strict": ["."], "extraPaths": [str(CORE)], "pythonVersion": "3.11", "reportMissingModuleSource": False}
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == 2, done.stdout
    errors = {"right.py": {}, "wrong.py": {}}
    for each in told["generalDiagnostics"]:
        line = each["range"]["start"]["line"] + 1
        errors[Path(each["file"]).name].setdefault(line, set()).add(each.get("rule", ""))
    return errors


def test_right_snippets_pass_strict_mode(reported):
    assert (HERE / "right.py").read_text().count("def s") == 40
    assert reported["right.py"] == {}


def test_wrong_calls_are_told_each_at_its_line(reported):
    lines = (HERE / "wrong.py").read_text().splitlines()
    marked = {at for at, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert len(marked) == 12
    # What follows from an error, such as a result of unknown type, is none of its own.
    told = {line for line, rules in reported["wrong.py"].items() if any("Unknown" not in rule for rule in rules)}
    assert told == marked
