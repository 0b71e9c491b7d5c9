"""Chromium without a window, driven through its own pipe: pages, sizes, colours, keys, screenshots. Needs no driver."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run",
    "--disable-background-networking", "--force-color-profile=srgb",
]  # fmt: skip


class Page:
    """One tab.

    Attributes:
        messages: what the page wrote to its console, and errors that nobody caught.
        asked: addresses that it asked for.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._number, self._rest = read, write, 0, b""
        self._session = ""
        self.messages: list[str] = []
        self.asked: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, seconds: float = 60) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(message)
        params = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"])[:500])
        elif told.get("method") == "Log.entryAdded":
            self.messages.append(
                f"{params['entry']['level']}: {params['entry']['text']} {params['entry'].get('url', '')}"
            )
        elif told.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        return told

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        told = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"])[:800])
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> None:
        """Wait for an expression to be true; an element is."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"never true: {script}; the page says {self.messages}"
            time.sleep(0.05)

    def go(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open an address at a size, for a reader who likes it light or dark."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.messages.clear()
        self.send("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url.split('#')[0])}) && document.readyState === 'complete'")

    def press(self, key: str, text: str = "") -> None:
        """Press a key, with the focus where it is."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is shown, or of the whole page."""
        options: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a new Chromium, which has ended afterwards."""
    assert CHROMIUM is not None
    theirs, write = os.pipe()
    read, answers = os.pipe()

    def pipes() -> None:
        # First out of the way of 3 and 4, which Chromium reads and writes.
        commands, told = (fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (theirs, answers))
        os.dup2(commands, 3)
        os.dup2(told, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        running = subprocess.Popen(command, close_fds=False, preexec_fn=pipes, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(answers)
        try:
            page = Page(read, write)
            yield page
            page._session = ""
            with suppress(Exception):
                page.send("Browser.close")
        finally:
            with suppress(subprocess.TimeoutExpired):
                running.wait(5)
            running.kill()
            running.wait()
            os.close(read)
            os.close(write)


AXE = Path(__file__).parents[2] / "build" / "axe" / "package" / "axe.min.js"


def violations(page: Page) -> list[str]:
    """What axe-core has against a page, each rule with its impact and elements."""
    page.run(AXE.read_text(encoding="utf-8") + "; 0")
    return page.run(
        "axe.run().then((found) => found.violations.map((each) =>"
        " `${each.impact} ${each.id}: ${each.nodes.map((node) => node.html.slice(0, 160)).join(' | ')}`))"
    )
