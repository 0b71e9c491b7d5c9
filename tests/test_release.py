"""What a release states: versions that agree, distributions, workflows that call the Makefile, templates."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from scripts import loaded

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


DISTRIBUTIONS = loaded(ROOT / "release" / "distributions.py")
CHECKLIST = loaded(ROOT / "release" / "checklist.py")
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist has no git to ask for its files")


@needs_git
def test_versions_ranges_and_changes_agree():
    assert CHECKLIST.states() == []


@needs_git
def test_archport_and_its_plugins_with_wheels_are_published_and_examples_are_not():
    names = [one.name for one in DISTRIBUTIONS.distributions()]
    assert names[0] == "archport"
    assert {"archport-decoders"} <= set(names)
    assert {"archport-llama", "archport-sdpa-demo"} & set(names) == set()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("## Unreleased\n\n### Added\n\n- One,\n  and more.\n", []),
        ("## 0.3.0 (2027-01-01)\n\n### Added\n\n- One.\n", ["no section of 0.2.0"]),
        ("## 0.2.0\n\n### Fixed\n\n- One.\n\n### Added\n\n- Two.\n", ["expected Added, Changed, Fixed"]),
        ("## Unreleased\n\n### Added\n\nNo item.\n", ["neither an item"]),
        ("## Unreleased\n\n### News\n\n- One.\n", ["expected Added"]),
    ],
)
def test_changes_are_items_under_three_headings(text: str, wrong: list[str]):
    problems = CHECKLIST.changes(text, "0.2.0")
    assert len(problems) == len(wrong)
    assert all(part in problem for part, problem in zip(wrong, problems, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("pkg/__init__.py", "", []),
        ("tests/test_a.py", "", ["holds tests/test_a.py"]),
        ("pkg/b.py", "Requires-Dist: a @ file:///a", ["requires Requires-Dist: a @"]),
    ],
)
def test_a_wheel_with_tests_or_paths_is_no_good_one(tmp_path: Path, name: str, text: str, wrong: list[str]):
    stated = ("License-Expression: MIT", "Requires-Python: >=3.11", "Summary: s", "Description-Content-Type: t", text)
    with zipfile.ZipFile(tmp_path / "pkg-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(name, "")
        wheel.writestr("pkg-1.dist-info/licenses/LICENSE", "")
        wheel.writestr("pkg-1.dist-info/METADATA", "Name: pkg\n" + "\n".join(filter(None, stated)) + "\n\ntext")
    problems = DISTRIBUTIONS.faults(tmp_path / "pkg-1-py3-none-any.whl")
    assert len(problems) == len(wrong)
    assert all(part in problem for part, problem in zip(wrong, problems, strict=True))


def test_a_wheel_without_a_licence_is_no_good_one(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "pkg-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pkg-1.dist-info/METADATA", "Name: pkg\n\ntext")
    assert "holds no licence" in DISTRIBUTIONS.faults(tmp_path / "pkg-1-py3-none-any.whl")[0]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_of_the_makefile(path: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"make ([a-z][\w-]*)", re.sub(r"#.*", "", text))
    matrix = re.search(r"target: \[(.+)\]", text)
    named += [word.strip() for word in matrix[1].split(",")] if matrix else []
    assert set(named) - targets == set()


def test_every_python_that_is_announced_is_tried():
    announced = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in ("ci", "wheels"):
        text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
        assert set(re.findall(r'ubuntu-latest, python: "([\d.]+)"', text)) == set(announced)


def test_an_issue_about_a_fault_asks_for_the_report_of_the_machine():
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "wrong.yml").read_text(encoding="utf-8")
    report = template.partition("id: report")[2].partition("- type:")[0]
    assert "archport doctor --report" in report
    assert "required: true" in report
