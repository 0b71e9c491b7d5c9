"""What a server is told when it starts. Pure data; where each value came from is the command line's to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archport.contract import InputError

TokenIds = Literal["reject", "accept"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, and what may wait.

    Args:
        body_bytes: of a request, counted while it arrives.
        inputs: texts, pairs or documents of a request.
        characters: of all of them together.
        tokens: of all of them together.
        depth: of JSON.
        answers: n of a generation.
        new_tokens: that a generation may ask for; None: whatever its context has room for.
        default_new_tokens: of a generation that does not say.
        queue_tokens, queue_requests: what may wait or run at once.
        rows: generations that run side by side.
        pictures: of a request.
        picture_bytes: of one, as it is sent.
        seconds: until a request is answered with 504.
        header_seconds: until a request's head, and then its body, must be whole.
        stalled_seconds: that an answer waits for a client that does not read it.
    """

    body_bytes: int = 64 << 20
    inputs: int = 2048
    characters: int = 16 << 20
    tokens: int = 300_000
    depth: int = 64
    answers: int = 16
    new_tokens: int | None = None
    default_new_tokens: int = 4096
    queue_tokens: int = 1_000_000
    queue_requests: int = 2048
    rows: int = 64
    pictures: int = 64
    picture_bytes: int = 32 << 20
    seconds: float = 600.0
    header_seconds: float = 60.0
    stalled_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it.

    Args:
        keys: sha256 digests of the API keys; empty when none are asked for.
        key_requests: of one key that may be under way at once; None: as many as there are.
        insecure: whether a bind beyond the loopback interface may go without keys.
        hosts: names that a Host header may have, besides the loopback ones and the bind's own; `*` for any.
        origins: whose pages may call, as CORS has it.
        token_ids: what to do with inputs that are ids already.
        any_dimensions: whether vectors are cut for models that are not declared to allow it.
        chat_share: of the device's time while rows wait too.
        batch_tokens: tokens that one window may have.
        window_seconds, shared_seconds: about how long one window may take, alone and while texts are generated.
        on_demand: whether models are loaded by the first request that names them.
        idle_seconds: after which a model that nobody uses is let go; None for never.
        drain_seconds: for requests under way once the server is told to end.
        most_deaths: of the device's thread, after which the process ends.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: frozenset[bytes] = frozenset()
    key_requests: int | None = None
    insecure: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    token_ids: TokenIds = "reject"
    any_dimensions: bool = False
    chat_share: float = 0.7
    batch_tokens: int = 16_384
    window_seconds: float = 0.5
    shared_seconds: float = 0.03
    on_demand: bool = False
    idle_seconds: float | None = None
    drain_seconds: float = 30.0
    most_deaths: int = 3
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 0 < self.chat_share < 1:
            raise InputError(f"chat_share={self.chat_share}; expected a share above 0 and below 1")
        if not self.loopback and not self.keys and not self.insecure:
            raise InputError(
                f"host={self.host!r} can be reached from other machines, and no API key is set; give keys with "
                "--api-key-file or ARCHPORT_API_KEYS, or pass --insecure to serve anybody"
            )
        if self.key_requests is not None and (self.key_requests < 1 or not self.keys):
            raise InputError(
                f"key_requests={self.key_requests} with {len(self.keys)} API keys; expected 1 or more, and keys, whose "
                "requests it counts"
            )
        if self.token_ids not in ("reject", "accept"):
            raise InputError(f"token_ids={self.token_ids!r}; expected 'reject' or 'accept'")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in ("127.0.0.1", "::1", "localhost") or self.host.startswith("127.")
