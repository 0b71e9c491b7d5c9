"""Take the pictures of the pages with Chromium: a server's page under load, with its explorer, and the explorer's file.

    PYTHONPATH=tests python docs/make_pictures.py       # or: make pictures

Each at 390 and 1440 pixels, light and dark, in docs/pictures; docs/plan-explorer.png and docs/serve.png are the ones
that texts show.
all-MiniLM-L6-v2 comes from the package that `make demo` installs. Needs Chromium; nothing is fetched.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from pages.browser import Page, browser

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PICTURES = DOCS / "pictures"
SIZES = {390: 844, 1440: 900}
ARCHPORT = [sys.executable, "-c", "from archport.cli import main; main()"]
MODEL = ROOT / "tests" / "planning" / "data" / "qwen35_27b_4bit.json"
TEXTS = [
    "A kitten naps in the sun.", "The cat sleeps on a warm stone.", "Interest rates rose again this quarter.",
    "How do I keep a plan within the memory of a laptop?", "Windows of attention see a few tokens back.",
]  # fmt: skip


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server of MiniLM and a tiny decoder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tiny = folder / "tiny-chat"
    shutil.copytree(ROOT / "tests" / "goldens" / "qwen3-windowed", tiny)
    (tiny / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    models = ["-m", "all-MiniLM-L6-v2=sentence-transformers/all-MiniLM-L6-v2", "-m", f"tiny-chat={tiny}"]
    command = [*ARCHPORT, "serve", "--quiet", "--port", str(port), "--memory-budget", "500MB", *models]
    running, url = subprocess.Popen(command), f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health/ready")
                break
            time.sleep(0.2)
        yield url
    finally:
        running.terminate()
        running.wait(60)


def ask(url: str, path: str, body: object) -> None:
    """One request, whatever comes of it."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with suppress(OSError):
        urllib.request.urlopen(request, timeout=60).read()


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Embeddings, rankings and chats of some callers, and now and then a request that is refused."""
    ended = threading.Event()

    def caller(seed: int) -> None:
        turn = seed
        while not ended.is_set():
            turn += 1
            ask(url, "/v1/embeddings", {"input": (TEXTS * 4)[: 1 + turn % 20], "model": "all-MiniLM-L6-v2"})
            message = {"role": "user", "content": TEXTS[turn % 5]}
            ask(url, "/v1/chat/completions", {"messages": [message], "max_tokens": 24, "model": "tiny-chat"})
            ask(url, "/v1/rerank", {"query": TEXTS[0], "documents": TEXTS, "model": "all-MiniLM-L6-v2"})
            if turn % 9 == 0:
                ask(url, "/v1/embeddings", {"input": "word " * 3000, "model": "all-MiniLM-L6-v2"})
            ended.wait(0.1 + 0.3 * (turn % 3))

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def save(path: Path, png: bytes) -> None:
    """A picture with as few colours as a page needs."""
    path.parent.mkdir(exist_ok=True)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


def every_size(page: Page, url: str, name: str, ready: str) -> None:
    """One page at each size, light and dark."""
    for width, height in SIZES.items():
        for dark in (False, True):
            page.go("about:blank")
            page.go(url, width, height, dark=dark)
            page.until(ready, 240)
            time.sleep(1.5)
            save(PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png", page.picture())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        plans, model = Path(folder) / "plans.html", Path(folder) / "Qwen3.5-27B-4bit"
        model.mkdir()
        shutil.copy(MODEL, model / "config.json")
        # By a name without this machine's folders, which the page shows.
        command = [*ARCHPORT, "plan", "-m", model.name, "--new", "256", "--device", "m2-max-32gb"]
        subprocess.run([*command, "--html", str(plans)], check=True, cwd=folder, stderr=subprocess.DEVNULL)
        point = f"{plans.as_uri()}#device=m2-max-32gb&form=as+published&context=8&batch=0"
        every_size(page, point, "explorer", "document.querySelector('canvas')")
        page.go(point, 1180, 1010)
        page.until("document.querySelector('canvas')")
        save(DOCS / "plan-explorer.png", page.picture())
        with server(Path(folder)) as url, traffic(url):
            page.go(f"{url}/", 1180, 1180)
            # The two minutes that the page draws, for the picture that texts show.
            time.sleep(60)
            save(DOCS / "serve.png", page.picture())
            for dark in (False, True):
                for width, height in SIZES.items():
                    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                    page.send("Emulation.setEmulatedMedia", features=[scheme])
                    page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                              mobile=width < 600)  # fmt: skip
                    time.sleep(2.5)
                    save(PICTURES / f"serve-{width}-{'dark' if dark else 'light'}.png", page.picture())
            point = f"{url}/#view=plans&model=all-MiniLM-L6-v2&context=14&batch=5"
            every_size(page, point, "plans", "document.querySelector('#chart canvas')")


if __name__ == "__main__":
    main()
