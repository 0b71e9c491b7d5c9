"""A new user's hour, in a fresh environment; and that what reads the pages there would notice a page that is wrong."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import loaded

HERE = Path(__file__).parent


HOUR = loaded(HERE / "run.py", "hour_run")


@pytest.mark.truth
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pages' commands are those of a Linux CPU")
def test_a_new_user_s_hour_needs_nothing_that_the_pages_do_not_say():
    assert [step.page for step in HOUR.run()] == [page for _, page in HOUR.STEPS]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], None]:
    """Reads a text as a page, in this interpreter's environment."""

    def of(text: str) -> None:
        (tmp_path / "page.md").write_text(text, encoding="utf-8")
        HOUR.FreshReader(tmp_path, os.environ | {"VIRTUAL_ENV": sys.prefix}).read(tmp_path / "page.md")

    return of


def test_python_blocks_share_names_and_their_output_is_compared(read):
    read("```python\nx = 3\n```\n\n```python\nprint(x)\n```\n\n```output\n3\n```\n")
    with pytest.raises(AssertionError, match="but this is"):
        read("```python\nprint(4)\n```\n\n```output\n3\n```\n")


def test_a_python_block_that_raises_is_told_with_its_line(read):
    with pytest.raises(AssertionError, match=r"page.md:3[^$]*line 4[^$]*ZeroDivisionError"):
        read("text\n\n```python\n1 / 0\n```\n")


def test_what_needs_a_clone_is_passed_over_and_what_is_for_a_fresh_environment_runs(read, tmp_path):
    clone, fresh = "<!-- clone: a -->\n```console\n$ touch a\n```\n", "<!-- fresh: b -->\n```console\n$ touch b\n```\n"
    read(clone + "\n" + fresh)
    assert [(tmp_path / name).exists() for name in "ab"] == [False, True]


def test_a_server_answers_until_the_page_ends(read):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    serve = f"<!-- background: {address} -->\n```console\n$ {sys.executable} -m http.server {port} -b 127.0.0.1\n```\n"
    program = f"import urllib.request\nprint(urllib.request.urlopen({address!r}).status)"
    asked = f"```python\n{program}\n```\n\n```output\n200\n```\n"
    read(serve + "\n" + asked)
    assert not HOUR.answers(address)


def test_a_server_that_ends_is_told_with_what_it_printed(read):
    with pytest.raises(AssertionError, match="ended with 3"):
        read("<!-- background: http://127.0.0.1:9/ -->\n```console\n$ bash -c 'exit 3'\n```\n")


def test_the_page_s_times_are_put_in_place_of_the_old_ones():
    old = "before\n\n| step | page | time |\n|---|---|---|\n| a | b | 1 s |\n\nafter\n"
    made = HOUR.written(old, [HOUR.Step("install", "install.md", 61.2)])
    assert "| install | [install.md](install.md) | 61 s |" in made
    assert "| a | b |" not in made
    assert made.startswith("before")
    assert made.endswith("after\n")
