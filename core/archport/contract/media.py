"""The words for inputs that hold pictures: what is measured before a plan, decoded after it, and seen by a module.

Inputs have two halves. `measure` reads headers: token ids, where pictures stand, their grids and positions. `decode`
gives a picture's pixels, once the request was admitted. Between the two stands the plan. Pure data and protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from archport.contract.errors import SpecError
from archport.contract.model import Trunk

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One grid of patches inside a row: an image, a tile of one, or one moment of a video.

    Args:
        start, tokens: the row's tokens that it takes the place of.
        grid: patches (down, across).
        source: what the plugin's `decode` reads its pixels from.
        digest: bytes that are equal for equal pixels, for caches.
        decoding: bytes of host memory that `decode` takes at its peak. Pictures that share a source may each name it.
    """

    start: int
    tokens: int
    grid: tuple[int, int]
    source: object = field(repr=False)
    digest: Callable[[], bytes] = field(repr=False, compare=False, default=bytes)
    decoding: int = field(compare=False, default=0)

    def __post_init__(self) -> None:
        if self.start < 0 or self.tokens < 1 or min(self.grid) < 1:
            raise SpecError(f"picture: start={self.start}, tokens={self.tokens}, grid={self.grid}; expected >= 0, 1, 1")

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class Measured:
    """One input after its headers were read.

    Args:
        ids: token ids, (L,) int32, placeholders of pictures included.
        pictures: in the order of their tokens.
        positions: (axes, L) int32 for a model whose tokens stand on several axes; None for 0 to L - 1.
        next_position: where the token after the row stands, on every axis; None for L.
        prompt_tokens: leading tokens that belong to the prompt.
        truncated: whether the input was cut.
    """

    ids: np.ndarray
    pictures: tuple[Picture, ...] = ()
    positions: np.ndarray | None = None
    next_position: int | None = None
    prompt_tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants of one input.

    Args:
        name: how messages call it ("input 3").
        prompt: the caller's instruction or prompt; None for the model's own.
        limit: tokens it may have.
        overflow: `error`, or `truncate`, which keeps what the model's format can't do without.
        shorten: gives a text that is far over the limit as a beginning of it, which is over the limit too and whose ids
            up to it are the same; any other text comes back as it is. So nobody encodes megabytes to cut them.
    """

    name: str
    prompt: str | None
    limit: int
    overflow: Literal["error", "truncate"] = "error"
    shorten: Callable[[str], str] = field(repr=False, compare=False, default=str)


class Reader(Protocol):
    """How a plugin reads inputs that may hold pictures. `TextInputs.reader` carries one."""

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        """Headers only: what an input's tokens are and where its pictures stand.

        Args:
            item: a string, a mapping ({"text": ..., "image": ...}), or whatever else this plugin documents.
            encode: text to ids, without special tokens added; the text of a special token becomes that token.

        Raises:
            InputError: for an item it can't read, or a picture that is refused.
            ContextLengthExceeded: over the limit, with both numbers.
        """
        ...

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """(mean, standard deviation) of every channel, of values from 0 to 1. The device applies it to uint8 rows."""
        ...

    def decode(self, picture: Picture) -> np.ndarray:
        """Rows of patches (patches, channels * frames * patch * patch) uint8, channels slowest.

        A still image may give one frame where a tower reads several; it stands for all of them.

        Raises:
            InputError: when the pixels can't be decoded.
        """
        ...


@runtime_checkable
class PairReader(Reader, Protocol):
    """A reader that also renders a query and a document as the one prompt that a yes/no reranker answers."""

    def measure_pair(self, query: object, document: object, encode: Encode, asked: Asked) -> Measured:
        """Headers only, like `measure`; each side is whatever `measure` takes.

        Args:
            asked: its prompt is the instruction; None for the model's own.
        """
        ...


@runtime_checkable
class ChatReader(Reader, Protocol):
    """A reader whose conversations the checkpoint's own chat template renders; the reader places the pictures."""

    def messages(self, item: object, asked: Asked) -> Sequence[Mapping[str, Any]]:
        """What `measure` takes, but no string, as messages whose content is a text or parts.

        A part is `{"type": "text", "text": ...}`, or has the type of a picture and what it is made from.

        Raises:
            InputError: for an item it can't read.
        """
        ...

    def measure_chat(self, text: str, messages: Sequence[Mapping[str, Any]], encode: Encode, asked: Asked) -> Measured:
        """Headers only, like `measure`: a rendered conversation, with the pictures of its messages in their places.

        Args:
            text: what the template made of `messages`, a media token in the place of every picture.
            messages: as `messages` gave them.

        Raises:
            InputError: the text has not as many places as the messages have pictures.
        """
        ...


class TowerContext(Protocol):
    """All that a vision tower's block may know of the request: pictures never see each other."""

    def normalise(self, patches: mx.array) -> mx.array:
        """Patches (..., features) as their reader says they are normalised, float32."""
        ...

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """Patches (down, across) of each row's picture; a row is padded on the right."""
        ...

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Attention of block number `layer` within each picture: (B, H, L, Dh) and so on, as LayerContext has it."""
        ...

    def rows(self, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
        """`function` of inputs (B, L, ...), which works token by token, in pieces as the plan says.

        A function that merges m tokens into one gets pieces that m divides. What comes out is evaluated where the
        pieces are many.
        """
        ...


@runtime_checkable
class VisionTrunk(Trunk, Protocol):
    """A trunk with a vision tower."""

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        """Features (B, tokens, D) of pictures, 1 + taps of them: token embeddings first, then each tap.

        Args:
            patches: (B, L, features) uint8 as the reader decodes them; `ctx.normalise` makes numbers of them.
        """
        ...
