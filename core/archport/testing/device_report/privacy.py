"""Texts without what tells whose machine they are from: paths, addresses, names of users and hosts.

Runs over every text of a report, whoever wrote it. Knows nothing of reports.
"""

from __future__ import annotations

import getpass
import math
import os
import platform
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Hosts that everybody's machine speaks to.
_PUBLIC = frozenset({"huggingface.co", "github.com", "pypi.org"})
# An address of the net, or a path: two separators and more, whatever it begins with. Its last name is kept.
_PLACE = re.compile(
    r"""\b[a-zA-Z][a-zA-Z0-9+.-]*://(?P<host>[^\s/'"<>]*)[^\s'"<>]*"""
    r"""|(?<![\w.~:-])(?:[A-Za-z]:|~)?[/\\]?(?:[^\s'"<>()\[\]{},;:/\\]+[/\\]+)+(?P<name>[^\s'"<>()\[\]{},;:/\\]*)"""
)
# In quotation marks the names of a path may hold spaces.
_QUOTED = re.compile(r"""(?P<mark>['"])(?![^'"]*://)[^'"\n]*[/\\][^'"\n]*[/\\](?P<name>[^'"\n/\\]*)(?P=mark)""")
_ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(?!\.)|\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_MAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
# Shorter names are words of every text.
_SHORTEST = 3


class Scrubber:
    """Takes names and places out of texts.

    Args:
        names: of this machine and its user; found out when left out.
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._home = _home()
        found = sorted({*(_names() if names is None else names)}, key=len, reverse=True)
        words = [re.escape(name) for name in found if len(name) >= _SHORTEST]
        self._words = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(words)})(?![A-Za-z0-9])", re.I) if words else None

    def text(self, text: str) -> str:
        """The text without paths but their last part, foreign addresses, and the names."""
        text = _QUOTED.sub(lambda found: f"{found['mark']}<path>/{found['name']}{found['mark']}", text)
        text = text.replace(self._home, "~") if self._home else text
        text = _MAIL.sub("<address>", _PLACE.sub(_without_place, text))
        text = _ADDRESS.sub("<address>", text)
        return text if self._words is None else self._words.sub("<name>", text)

    def everything(self, value: Any, *, keep: frozenset[str] = frozenset()) -> Any:
        """The same of every text inside lists and mappings; numbers that are not finite become None.

        Args:
            keep: keys whose values are words of a fixed list, which a user may be called by, too.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                str(name): each if name in keep and isinstance(each, str) else self.everything(each, keep=keep)
                for name, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.everything(each, keep=keep) for each in value]
        # JSON has no other numbers.
        return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_place(found: re.Match[str]) -> str:
    if found["host"] is not None:
        return found[0] if found["host"].lower() in _PUBLIC else "<address>"
    separators = len(re.findall(r"[/\\]+", found[0]))
    rooted = found[0][0] == "~" or found[0][1:2] == ":"
    return f"<path>/{found['name']}" if separators > 1 or rooted else found[0]


def _home() -> str:
    home = os.path.expanduser("~").rstrip("/\\")
    return home if len(home) > 1 and home != "~" else ""


def _names() -> list[str]:
    """Names of this host and user, as far as the system says any."""
    found = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME")]
    for ask in (getpass.getuser, socket.gethostname, platform.node, lambda: Path.home().name):
        try:
            found.append(ask())
        # A user without an entry, or a system without a name.
        except (OSError, KeyError, RuntimeError, ImportError):
            continue
    return [name for each in found for name in (each, each.partition(".")[0])]
