"""`archport new`: the skeleton is a sound plugin whose only faults are its TODOs."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from archport.checkpoint import normalise_config
from archport.cli.new import check_name, write_skeleton
from archport.contract import InputError, PluginError
from archport.contract.plugins import load_plugins
from archport.testing import run_checks


def run(*arguments, cwd):
    command = [sys.executable, "-c", "from archport.cli import main; main()", "new", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def skeleton(tmp_path, monkeypatch):
    """The plugin `acme_small`, importable, as the loader sees it."""
    folder = write_skeleton("acme_small", tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    (plugin,) = load_plugins([EntryPoint("acme_small", "archport_acme_small", "archport")])
    yield folder, plugin
    for name in [name for name in sys.modules if name.startswith("archport_acme_small")]:
        del sys.modules[name]


def test_the_skeleton_loads_and_claims_its_own_example(skeleton):
    _, plugin = skeleton
    assert plugin.error is None
    (example,) = plugin.hooks().examples()
    spec = plugin.hooks().claim(normalise_config(dict(example.config)))
    assert (spec.arch, spec.semantics, len(spec.layers)) == ("acme_small", "causal", 2)


def test_building_the_skeleton_s_module_says_which_file_to_fill_in(skeleton):
    _, plugin = skeleton
    (example,) = plugin.hooks().examples()
    config = normalise_config(dict(example.config))
    with pytest.raises(PluginError, match=r"TODO: build .* in archport_acme_small/model.py"):
        plugin.hooks().build(plugin.hooks().claim(config), config)


def test_the_project_file_announces_the_package_and_requires_this_archport(skeleton):
    folder, _ = skeleton
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert folder.name == project["name"] == "archport-acme-small"
    assert project["entry-points"]["archport"] == {"acme_small": "archport_acme_small"}
    assert project["dependencies"] == ["archport>=0.2,<0.3"]


def test_the_project_names_its_licence_and_what_it_runs_on(skeleton):
    folder, _ = skeleton
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("MIT", ["LICENSE"])
    assert (folder / "LICENSE").read_text().startswith("MIT License")
    assert "Programming Language :: Python :: 3" in project["classifiers"]
    assert not [each for each in project["classifiers"] if each.startswith("License ::")]


def test_the_workflow_lints_tests_and_checks_the_plugin(skeleton):
    folder, _ = skeleton
    workflow = yaml.safe_load((folder / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    assert [command.split()[0] for command in commands] == ["pip", "ruff", "python", "archport"]
    assert commands[-1] == "archport check acme_small --recorded tests/ran.json"


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="needs ruff, which development tools bring")
def test_what_is_written_passes_the_linter_that_its_workflow_runs(skeleton):
    folder, _ = skeleton
    for command in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_test_compares_with_a_reference_once_there_is_one(skeleton):
    folder, _ = skeleton
    text = (folder / "tests" / "test_conformance.py").read_text()
    assert "golden=GOLDEN if GOLDEN.exists() else None" in text
    assert "archport record acme_small --output tests/golden.npz" in (folder / "README.md").read_text()


def test_no_placeholder_and_no_long_line_is_left_in_any_file(tmp_path):
    folder = write_skeleton("acme_bert_large", tmp_path)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text()
        assert "$" not in text
        assert max(map(len, text.splitlines())) <= 120, path
        if path.suffix == ".py":
            ast.parse(text)


def test_the_command_lists_what_it_wrote_and_what_to_do_next(tmp_path):
    done = run("acme", "--into", "made/here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in ("archport_acme/model.py", "archport_acme/__init__.py", "pyproject.toml", "tests/test_conformance.py"):
        assert path in done.stdout
        assert (tmp_path / "made/here/archport-acme" / path).is_file()
    assert "archport check acme" in done.stdout


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "archport-acme").mkdir()
    (tmp_path / "archport-acme" / "mine.txt").write_text("keep")
    done = run("acme", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "archport-acme exists; nothing was written" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["archport-acme", "mine.txt"]


def test_a_folder_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        write_skeleton("acme", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen-2.5", "for example 'qwen_2_5'"),
        ("2bert", "for example 'bert'"),
        ("a__b", "for example 'a_b'"),
        ("archport_llama", "leave the prefix out"),
        ("../up", "for example 'up'"),
        ("", "expected lower-case"),
        ("x" * 31, "at most 30"),
        ("grün", "expected lower-case"),
    ],
)
def test_a_name_that_would_not_work_is_refused_with_one_that_would(name, hint):
    with pytest.raises(InputError, match=hint.replace("(", r"\(")):
        check_name(name, {})


def test_a_name_that_an_installed_plugin_has_is_refused(tmp_path):
    done = run("qwen3", cwd=tmp_path)
    assert done.returncode == 1
    assert "qwen3 (archport" in done.stderr
    assert list(Path(tmp_path).iterdir()) == []


def test_conformance_of_the_skeleton_fails_only_at_its_todos(skeleton):
    _, plugin = skeleton
    outcomes = run_checks(plugin.module)
    unfinished = [outcome for outcome in outcomes if outcome.status not in ("ok", "not applicable")]
    assert {outcome.check.tier for outcome in outcomes if outcome.status == "ok"} == {"contract"}
    assert {outcome.check.name for outcome in unfinished if outcome.status == "fail"} == {"published_checkpoint_loads"}
    for part in (part for outcome in unfinished for part in outcome.parts):
        assert "TODO: build the layers, in archport_acme_small/model.py" in part.message
