"""The published formats of the embedder and the reranker: text and places of pictures. Knows no ids.

The formats are literal: a template engine would add nothing, and the bytes are what the models were trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from archport.contract import Asked, InputError
from archport.media import (
    CLOSING,
    END,
    START,
    Document,
    Part,
    contents,
    fields_of,
    messages_of,
    rendered,
    turns,
)

INSTRUCTION = "Represent the user's input."
EMPTY = "NULL"
RERANK_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)


def embedding(item: object, asked: Asked) -> Document:
    """An input in the embedder's format: the instruction as system text; videos, then images, then texts."""
    messages = messages_of(item)
    if messages is not None:
        return rendered(messages, asked)
    fields = fields_of(item, asked)
    return Document(tuple(turns(instruction(fields, asked), contents(fields, asked, empty=EMPTY))))


def pair(query: object, document: object, asked: Asked) -> Document:
    """A query and a document in the reranker's format, whose parts touch without a separator."""
    given = RERANK_INSTRUCTION if asked.prompt is None else asked.prompt
    sides: list[list[Part]] = []
    for name, side in (("query", query), ("document", document)):
        if messages_of(side) is not None:
            raise InputError(f"{asked.name}: its {name} is a conversation; expected a str or a mapping")
        sides.append(contents(fields_of(side, asked), asked, empty=EMPTY))
    opening = f"{START}system\n{JUDGE}{END}\n{START}user\n<Instruct>: {given}<Query>:"
    parts = (Part("text", opening), *sides[0], Part("text", "\n<Document>:"), *sides[1], Part("text", CLOSING))
    return Document(parts)


def instruction(fields: Mapping[str, Any], asked: Asked) -> str:
    """The instruction as the models were trained on it: stripped, and ending in punctuation."""
    given = fields.get("instruction") or asked.prompt or INSTRUCTION
    if not isinstance(given, str):
        raise InputError(f"{asked.name}: instruction is a {type(given).__name__}; expected a str")
    given = given.strip()
    if given and not unicodedata.category(given[-1]).startswith("P"):
        given += "."
    return given
