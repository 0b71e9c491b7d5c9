"""Pages of one file: HTML with its styles, its scripts and uPlot in it. Knows nothing of what they show."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files

# As they stand in the page, their hashes let exactly these in.
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
# A file of this folder, the title or the data.
_MARK = re.compile(r"(?:/\*|<!--)?\{\{(?P<name>[\w.]+)\}\}(?:\*/|-->)?")
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def text_of(name: str) -> str:
    """A file of this folder."""
    return (files("archport.pages") / name).read_text(encoding="utf-8")


def assembled(name: str, *, title: str = "", data: str = "") -> str:
    """The page whose files are called so.

    Args:
        title: its name, of any letters.
        data: what its script reads, without any mark-up.
    """
    given = {"title": escape(title), "data": data}

    def put(mark: re.Match[str]) -> str:
        part = mark["name"]
        if part in given:
            return given[part]
        # The licence of the one file that is not our own.
        notice = f"/* {text_of('uPlot.LICENSE').strip()} */\n" if part == "uPlot.iife.min.js" else ""
        return notice + text_of(part)

    # Once: what is put in has no marks of its own.
    return _MARK.sub(put, text_of(f"{name}.html"))


def content_policy(page: str) -> str:
    """The Content-Security-Policy under which a page runs its own scripts and asks its own server, and nothing else."""
    scripts, styles = (
        " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
        for texts in (_SCRIPT.findall(page), _STYLE.findall(page))
    )
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def table(facts: Mapping[str, str]) -> str:
    """Facts for a notebook, a row each: its name, and what it is."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"
