"""What a text has to be, as masks over the vocabulary: a JSON schema, any JSON object, or a regular expression.

llguidance compiles and follows the grammar; it is imported by the first request that asks for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from archport.contract import InputError
from archport.serving.errors import refused, unsupported
from archport.serving.models import Served

# A grammar beyond it takes seconds to compile.
LONGEST = 256 << 10
# Space between JSON's signs: one, or a new line and its indentation. Without a bound a small model writes nothing else.
LAYOUT = {"whitespace_pattern": r"(\n[ ]{0,24}|[ ])?"}


class Grammars:
    """The grammars of one model.

    Args:
        served: whose tokenizer and final tokens they are for.
        param: the field of the request that asks for them.
    """

    def __init__(self, served: Served, param: str = "response_format") -> None:
        try:
            import llguidance
        except ImportError as error:
            raise unsupported(
                "Structured output needs llguidance, which is not installed: pip install 'archport[server]'.",
                param,
            ) from error
        self._guidance, self._width = llguidance, served.model.spec.vocab_size
        tokenizer, self._ends = served.runtime.tokeniser.tokenizer, sorted(served.runtime.stops)
        if not self._ends:
            raise unsupported("This model names no final token, so no text of a given form can end.", param)
        vocabulary = max(self._width, tokenizer.get_vocab_size())
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=self._ends)
        except ValueError as error:
            # It knows the decoders of byte-level and byte-fallback vocabularies only.
            why = str(error).splitlines()[0][:300]
            raise unsupported(f"llguidance can't read this model's tokenizer: {why}.", param) from error

    def constraint(
        self, grammar: str, opened: int | None = None, param: str = "response_format"
    ) -> Callable[[], Following]:
        """Makes what follows one text.

        Args:
            grammar: of llguidance.
            opened: the token that ends the thinking that a prompt has begun; the grammar counts after it.
            param: the field of the request that asks for the grammar.

        Raises:
            Refused: the grammar can't be compiled.
        """
        code = "invalid_response_format" if param == "response_format" else "invalid_value"
        if len(grammar) > LONGEST:
            raise refused(f"The form has {len(grammar):,} characters; at most {LONGEST:,} are compiled.", code, param)
        made = self._guidance.LLMatcher(self._tokenizer, grammar)
        if made.is_error():
            why = str(made.get_error()).splitlines()[0][:300]
            raise refused(f"{param} can't be compiled: {why}.", code, param)
        return lambda: Following(made.deep_copy(), self._width, self._ends, opened, param)

    def of_schema(self, schema: Any) -> str:
        """The grammar of a JSON schema."""
        try:
            return self._guidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=LAYOUT)
        except Exception as error:
            raise refused(f"The schema can't be read: {str(error)[:300]}.", "invalid_response_format",
                          "response_format") from None  # fmt: skip

    def of_regex(self, pattern: str) -> str:
        """The grammar of a regular expression, which the whole text matches."""
        return self._guidance.LLMatcher.grammar_from_regex(pattern)


class Following:
    """One text and the grammar that it follows.

    Args:
        matcher: of llguidance.
        width: entries of the model's logits.
        ends: final tokens.
        opened, param: see `Grammars.constraint`.
    """

    def __init__(self, matcher: Any, width: int, ends: list[int], opened: int | None, param: str) -> None:
        self._matcher, self._width, self._ends, self._opened, self._param = matcher, width, ends, opened, param

    def allowed(self) -> np.ndarray:
        """See `Constraint`."""
        if self._opened is not None:
            found = np.ones(self._width, bool)
            found[self._ends] = False
            return found
        if self._matcher.is_stopped():
            found = np.zeros(self._width, bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            found = np.unpackbits(bits, bitorder="little")[: self._width].astype(bool)
            found = np.pad(found, (0, self._width - len(found)))
            self._check()
        if self._matcher.is_accepting() or not found.any():
            found[self._ends] = True
        return found

    def take(self, token: int) -> None:
        """See `Constraint`."""
        if self._opened is not None:
            self._opened = None if token == self._opened else self._opened
        elif not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = str(self._matcher.get_error()).splitlines()[0][:300]
            raise InputError(f"{self._param} can't be followed: {why}")


def grammar_of(form: object, grammars: Callable[[], Grammars]) -> str | None:
    """The grammar that a request asks for; None for any text.

    Args:
        form: OpenAI's `response_format`; `{"type": "regex", "pattern": ...}` as well.
        grammars: of the model.
    """
    if form is None:
        return None
    if not isinstance(form, Mapping):
        raise refused(f"response_format is {str(form)[:50]!r}; expected an object with a type.",
                      "invalid_response_format", "response_format")  # fmt: skip
    kind = form.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return grammars().of_schema({"type": "object"})
    if kind == "json_schema":
        own = form.get("json_schema", form)
        schema = own.get("schema") if isinstance(own, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            raise refused("response_format.json_schema.schema is missing; expected a JSON schema.",
                          "invalid_response_format", "response_format")  # fmt: skip
        return grammars().of_schema(schema)
    if kind == "regex":
        pattern = form.get("pattern", form.get("regex"))
        if not isinstance(pattern, str):
            raise refused("response_format.pattern is missing; expected a regular expression.",
                          "invalid_response_format", "response_format")  # fmt: skip
        return grammars().of_regex(pattern)
    raise refused(
        f"response_format.type is {str(kind)[:50]!r}; expected text, json_object, json_schema or regex.",
        "invalid_response_format", "response_format",
    )  # fmt: skip
