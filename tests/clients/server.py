"""A running server for the official clients' own environments: its address, and how a script says what failed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

URL = os.environ.get("ARCHPORT_TEST_URL", "http://127.0.0.1:8080")
EMBED, RANK, CHAT = "embed", "rank", "chat"
MESSAGES = [{"role": "user", "content": "hello there"}]
TEXTS = ["one", "two words", "a third text"]


def run(*checks: Callable[[], None]) -> None:
    """Run checks, print a line for each, and end with 1 where one failed."""
    failed = 0
    for check in checks:
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED {check.__name__}")
            traceback.print_exc(limit=4)
        else:
            print(f"ok     {check.__name__}")
    sys.exit(bool(failed))
