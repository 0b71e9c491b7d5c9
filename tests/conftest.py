"""Fixtures for all core tests. `hub`: a loopback server that speaks the model hub's protocol, for the real client."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

_API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<part>revision|tree)/(?P<revision>[^/]+))?$")
_FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


class HubServer:
    """The hub, as far as a client that downloads models can see: listings, files with ranges, refusals.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        requests: every (method, path) asked for.
        served: file name -> bytes of content sent, over all requests.
        sent: bytes of all bodies, listings included.
        ignores_ranges: whether files are sent from their beginning, whatever range is asked for.
        ranges: (file name, Range header) of every partial request.
        tokens: every Authorization header that came with a request.
        cut: file name -> after how many bytes to break the next transfers, one entry per transfer.
        gated: repository -> token that opens its files; without it they are refused as the hub does.
        statuses: repository -> status with which everything about it is answered.
        broken: file name -> status with which requests for it are answered.
        bad_tokens: tokens that the hub answers with "invalid credentials".
        reset: whether a cut drops the connection without closing it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Path]] = {}
        self.requests: list[tuple[str, str]] = []
        self.served: dict[str, int] = {}
        self.sent = 0
        self.ignores_ranges = False
        self.ranges: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.cut: dict[str, list[int]] = {}
        self.reset = False
        self.gated: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.broken: dict[str, int] = {}
        self.bad_tokens: set[str] = set()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, repo: str, folder: Path) -> None:
        """Publish every file of a folder as a repository."""
        self.repos[repo] = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }

    def commit(self, repo: str) -> str:
        """The version of a repository: a hash of its names and contents."""
        digest = hashlib.sha1()
        for name, path in self.repos[repo].items():
            digest.update(name.encode() + _identity(path))
        return digest.hexdigest()

    def asked_for(self) -> set[str]:
        """Names of all files that a client asked for."""
        return {match["file"] for _, path in self.requests if (match := _FILE.match(path))}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: http.server.BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append((handler.command, path))
        self.tokens.append(handler.headers.get("Authorization", ""))
        match = _API.match(path) or _FILE.match(path)
        if match is None:
            return self._refuse(handler, 404, "", "Not Found")
        repo, revision = match["repo"], match["revision"]
        if repo in self.statuses:
            return self._refuse(handler, self.statuses[repo], "", "as told by the test")
        if handler.headers.get("Authorization", "").removeprefix("Bearer ") in self.bad_tokens:
            return self._refuse(handler, 401, "", "Invalid credentials in Authorization header")
        if repo not in self.repos:
            # The hub hides whether a repository exists from those who may not read it.
            return self._refuse(handler, 401, "RepoNotFound", "Invalid username or password.")
        commit = self.commit(repo)
        if revision not in (None, "main", commit):
            return self._refuse(handler, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if match.re is _API:
            return self._listing(handler, repo, match["part"], commit)
        if repo in self.gated and handler.headers.get("Authorization") != f"Bearer {self.gated[repo]}":
            return self._refuse(handler, 401, "GatedRepo", f"Access to model {repo} is restricted.")
        if match["file"] in self.broken:
            return self._refuse(handler, self.broken[match["file"]], "", "as told by the test")
        file = self.repos[repo].get(match["file"])
        if file is None:
            return self._refuse(handler, 404, "EntryNotFound", "Entry not found")
        return self._file(handler, match["file"], file, commit, body=body)

    def _listing(self, handler: http.server.BaseHTTPRequestHandler, repo: str, part: str | None, commit: str) -> None:
        files = self.repos[repo]
        if part == "tree":
            value: object = [
                {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, path in files.items()
            ]
        else:
            value = {"id": repo, "modelId": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        self._send(handler, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(
        self, handler: http.server.BaseHTTPRequestHandler, name: str, path: Path, commit: str, *, body: bool
    ) -> None:
        size = path.stat().st_size
        headers = {
            "ETag": f'"{hashlib.sha256(_identity(path)).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status, start, end = 200, 0, size
        if asked := handler.headers.get("Range"):
            self.ranges.append((name, asked))
            if not self.ignores_ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                status, start, end = 206, int(first), min(size, int(last) + 1) if last else size
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with path.open("rb") as file:
            file.seek(start)
            rest = file.read(end - start)
        if not body:
            return self._send(handler, rest, headers, status, body=False)
        cuts = self.cut.get(name)
        sent = rest[: cuts.pop(0)] if cuts else rest
        self.served[name] = self.served.get(name, 0) + len(sent)
        self._send(handler, rest, headers, status, sent=sent)
        return None

    def _send(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        content: bytes,
        headers: dict[str, str],
        status: int = 200,
        *,
        body: bool = True,
        sent: bytes | None = None,
    ) -> None:
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if body and handler.command != "HEAD":
            part = content if sent is None else sent
            self._write(handler, part)
            if len(part) < len(content):
                handler.wfile.flush()
                if self.reset:
                    # Closing with this option drops the connection the hard way.
                    linger = struct.pack("ii", 1, 0)
                    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.close_connection = True
                handler.connection.close()

    def _write(self, handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        """Send a body in pieces, up to where the client hangs up."""
        for start in range(0, len(content), 1 << 16):
            piece = content[start : start + (1 << 16)]
            try:
                handler.wfile.write(piece)
            except (BrokenPipeError, ConnectionResetError):
                handler.close_connection = True
                return
            self.sent += len(piece)

    def _refuse(self, handler: http.server.BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        self._send(handler, b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)


def _identity(path: Path) -> bytes:
    """What tells a file from others: its content, or of a large one its size."""
    size = path.stat().st_size
    return path.read_bytes() if size < 2_000_000 else str(size).encode()


def point_hub_client_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Aim the real hub client at an address, with its cache and tokens in `home` and nothing of this machine's own."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(home))
    # Read once, when the client was imported; in a process of its own they would follow HF_HOME.
    home.mkdir(parents=True, exist_ok=True)
    registry = home / "registry.json"
    registry.write_text('{"standardEnvVars": [], "harnesses": {}}')
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(registry), raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running hub on the loopback interface; the client in this process talks to it and caches in `tmp_path`."""
    server = HubServer()
    point_hub_client_at(monkeypatch, server.endpoint, tmp_path / "hub_home")
    yield server
    server.close()


@pytest.fixture
def aim_hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Aim the client at any address: `aim_hub_client(endpoint)`."""
    return lambda endpoint: point_hub_client_at(monkeypatch, endpoint, tmp_path / "hub_home")


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client's hub is an address where nobody listens; answers that address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    point_hub_client_at(monkeypatch, endpoint, tmp_path / "hub_home")
    return endpoint
