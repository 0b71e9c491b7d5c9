"""Who may ask, and from where: keys, Host and Origin. Everything is denied that no rule here lets through."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from archport.serving.errors import Fault, Refused, overloaded
from archport.serving.settings import Settings

# Anybody may ask whether the server lives, and see the page, which holds nothing and asks for a key itself.
OPEN = ("/health/live", "/health/ready", "/")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def keys_of(lines: Iterable[str]) -> frozenset[bytes]:
    """Digests of the keys in a file's lines; empty lines and those that begin with # are none."""
    stripped = (line.strip() for line in lines)
    return frozenset(digest(line) for line in stripped if line and not line.startswith("#"))


def check_host(headers: Headers, settings: Settings) -> None:
    """Refuse a Host that is not this server's: a page elsewhere may have its own name lead to this address."""
    if "*" in settings.hosts or (not settings.loopback and not settings.hosts):
        return
    host = headers.get("host", "")
    name = _name(host)
    if name not in (*_LOOPBACK, settings.host, *settings.hosts):
        raise Refused(
            Fault(
                403,
                f"The Host header names {host[:100]!r}, which is not this server; add --allowed-host to serve it.",
                "permission_error",
                "forbidden_host",
            )
        )


def check_origin(headers: Headers, settings: Settings) -> str | None:
    """The origin that may read the answer; None where no page asks. Refuses pages that were not let in."""
    origin = headers.get("origin")
    if origin is None:
        return None
    if origin in settings.origins or "*" in settings.origins:
        return origin
    try:
        same = bool(origin) and urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        same = False
    if same:
        return None
    raise Refused(
        Fault(
            403,
            f"Pages of {origin[:100]!r} may not call this server; add --cors-origin to let them.",
            "permission_error",
            "forbidden_origin",
        )
    )


class KeyRequests:
    """How many requests of each key are under way.

    Args:
        most: of one key; None for any number.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._active: dict[bytes, int] = {}

    @contextmanager
    def counted(self, key: bytes | None) -> Generator[None]:
        """One more request of a key inside this block.

        Raises:
            Refused: 429, the key has all that it may have.
        """
        if key is None or self._most is None:
            yield
            return
        active = self._active.get(key, 0)
        if active >= self._most:
            raise overloaded(1, f"This API key has {active} requests under way, and may have {self._most}")
        self._active[key] = active + 1
        try:
            yield
        finally:
            self._active[key] -= 1
            if not self._active[key]:
                del self._active[key]


def check_key(headers: Headers, path: str, settings: Settings) -> bytes | None:
    """The digest of the key that is shown, None where none is asked for. Refuses who shows none, or another one."""
    if not settings.keys or path in OPEN:
        return None
    authorization = headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key") or headers.get("api-key") or ""
    if not given:
        raise _no_key("No API key; send Authorization: Bearer KEY.")
    # Headers are Latin-1; a key is compared by the bytes that were sent.
    found = hashlib.sha256(given.encode("latin-1", "replace")).digest()
    right = False
    for key in settings.keys:
        right |= hmac.compare_digest(found, key)
    if not right:
        raise _no_key("The API key is not one of this server's.")
    return found


def _no_key(message: str) -> Refused:
    return Refused(Fault(401, message, code="invalid_api_key"))


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
