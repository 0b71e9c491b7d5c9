"""How a Qwen3.5 vision checkpoint reads an input: a string as it is, anything else as a conversation with pictures."""

from __future__ import annotations

from archport.contract import Asked, Encode, Measured
from archport.media import Document, PictureReader, conversation, plain


class Qwen35Reader(PictureReader):
    """A Reader of strings, mappings ({"text": ..., "image": ..., "video": ...}) and lists of messages."""

    def measure(self, item: object, encode: Encode, asked: Asked) -> Measured:
        # The text checkpoints of the family are given strings without a frame around them.
        document = Document((plain(item, asked),), closing="") if isinstance(item, str) else conversation(item, asked)
        return self.read(document, encode, asked)
