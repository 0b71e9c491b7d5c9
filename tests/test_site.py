"""The site's own machinery: navigation, links that leave docs/, the check of built pages. `make docs` builds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts import loaded

DOCS = Path(__file__).parents[1] / "docs"


HOOKS, CHECK = loaded(DOCS / "site_hooks.py"), loaded(DOCS / "check_site.py")
TITLES = {"hooks.md": "Hooks", "index.md": "archport"}


def test_the_navigation_lists_pages_that_are_there():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} | set(HOOKS.PAGES.values())
    listed = {line.rpartition(": ")[2] for line in navigation.splitlines() if line.endswith(".md")}
    assert len(listed) > 20
    assert listed - pages == set()


def test_folders_and_pages_that_nobody_listed_are_in_the_navigation(tmp_path: Path):
    for page in ("index.md", "late.md", "adr/2.md", "adr/1.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).touch()
    config = SimpleNamespace(docs_dir=str(tmp_path), nav=[{"Home": "index.md"}, {"Project": [{"Decisions": "adr/"}]}])
    assert HOOKS.on_config(config).nav == [
        {"Home": "index.md"},
        {"Project": [{"Decisions": ["adr/1.md", "adr/2.md"]}]},
        {"More": ["late.md"]},
    ]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("hooks.md#types", "[a text](hooks.md#types)"),
        ("../README.md#limits", "[a text](index.md#limits)"),
        ("../CHANGELOG.md", "[a text](changelog.md)"),
        ("../plugins/a.py", "[a text](http://host/repository/blob/main/plugins/a.py)"),
        ("http://host/page", "[a text](http://host/page)"),
        ("#here", "[a text](#here)"),
    ],
)
def test_a_link_leads_on_the_site_where_it_leads_in_the_repository(target: str, shown: str):
    assert HOOKS.link("a text", target, "docs/faq.md", "faq.md", "http://host/repository", TITLES) == shown


def test_a_page_of_the_repository_links_to_pages_of_docs():
    assert HOOKS.link("x", "docs/hooks.md", "CONTRIBUTING.md", "contributing.md", "", TITLES) == "[x](hooks.md)"


def test_a_file_is_named_where_no_repository_is_known():
    assert HOOKS.link("the plugin", "../plugins/a.py", "docs/faq.md", "faq.md", "", {}) == "the plugin (`plugins/a.py`)"


def test_a_link_that_is_called_by_its_file_gets_the_page_s_title():
    assert HOOKS.link("hooks.md", "hooks.md", "docs/faq.md", "faq.md", "", TITLES) == "[Hooks](hooks.md)"


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('<a href="other.html#here">', []),
        ('<a href="gone.html">', ["gone.html, which is not there"]),
        ('<a href="other.html#nowhere">', ["other.html#nowhere, which has no such anchor"]),
        ('<img src="gone.svg">', ["gone.svg, which is not there"]),
        ('<script src="https://host/a.js"></script>', ["loads https://host/a.js"]),
        ('<a href="https://host/">', []),
    ],
)
def test_the_check_finds_what_leads_nowhere_and_what_comes_from_elsewhere(tmp_path: Path, body: str, wrong: list[str]):
    (tmp_path / "index.html").write_text(body, encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="here">', encoding="utf-8")
    problems = CHECK.problems(tmp_path)
    assert len(problems) == len(wrong)
    assert all(problem.endswith(end) for problem, end in zip(problems, wrong, strict=True))


def test_an_empty_site_is_no_good_one(tmp_path: Path):
    assert CHECK.problems(tmp_path) != []
