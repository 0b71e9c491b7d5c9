"""Every official client in an environment of its own against one running server: `make test-clients`.

Writes what passed, with versions, to results.json next to this file. `--only openai,cohere` runs some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDENS = ROOT / "tests" / "goldens"
# Script -> what its environment holds, the first one being what is tested.
CLIENTS = {
    "openai": ["openai"],
    "cohere": ["cohere"],
    "huggingface_hub": ["huggingface_hub", "numpy"],
    "langchain_openai": ["langchain-openai"],
    "llama_index": ["llama-index-llms-openai-like", "llama-index-embeddings-openai-like"],
    "litellm": ["litellm"],
    "ollama": ["ollama"],
}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def environment(name: str, packages: list[str]) -> Path:
    """The interpreter of a client's environment, made where it is missing or holds other packages."""
    folder = ROOT / "build" / "clients" / name
    python = folder / "bin" / "python"
    made, wanted = folder / "made", " ".join(packages)
    if not made.exists() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # Neither pip nor what it installs sees this environment's own packages.
        subprocess.run([python, "-m", "pip", "install", "-qq", *packages], check=True, env=outside())
        made.write_text(wanted)
    return python


def outside() -> dict[str, str]:
    """The variables of this process, without the path to its packages."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server of three tiny models, which has ended in order afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as temporary:
        chat = Path(temporary) / "chat"
        shutil.copytree(GOLDENS / "qwen3-windowed", chat)
        (chat / "chat_template.jinja").write_text(TEMPLATE)
        models = [f"embed={GOLDENS / 'bert-plain'}", f"rank={GOLDENS / 'xlm-roberta-rerank'}", f"chat={chat}"]
        command = [sys.executable, "-c", "from archport.cli import main; main()", "serve", "--quiet"]
        command += ["--port", str(port), *(part for model in models for part in ("-m", model))]
        server = subprocess.Popen(command)
        try:
            await_ready(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    if code:
        sys.exit(f"the server ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(CLIENTS))
    names = parser.parse_args().only.split(",")
    pythons = {name: environment(name, CLIENTS[name]) for name in names}
    results: dict[str, dict[str, object]] = {}
    with running_server() as url:
        for name, python in pythons.items():
            env = {**outside(), "ARCHPORT_TEST_URL": url}
            done = subprocess.run(
                [python, f"check_{name}.py"], cwd=HERE, env=env, capture_output=True, text=True, timeout=300
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAILED "))]
            passed, found = done.returncode == 0, version(python, CLIENTS[name][0])
            results[name] = {"version": found, "passed": passed, "checks": lines}
            print(f"{name} {found}: {'passed' if passed else done.stdout + done.stderr}", flush=True)
    if set(names) == set(CLIENTS):
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(not each["passed"] for each in results.values()))


def await_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server did not become ready")


def version(python: Path, package: str) -> str:
    """The version of a package in an environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
