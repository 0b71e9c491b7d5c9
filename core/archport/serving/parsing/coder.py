"""Calls as tags, as Qwen3-Coder writes them: <function=name><parameter=key>value</parameter></function>."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from archport.serving.parsing.events import Arguments, Call, Content, Event, Holding, begun
from archport.serving.parsing.values import dumps, loads

_OPENINGS = ("<tool_call>", "<function=")
_FUNCTION = re.compile(r"<function=([^>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]*)>")
_ENDS = ("</function>", "</tool_call>")


class Coder(Holding):
    """Content, and calls in tags.

    Args:
        tools: as the request described them; their schemas say which values are texts.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self._types = {name: types for tool in tools for name, types in (_types_of(tool),)}
        self._space = self._name = self._lead = ""
        self._state = "outside"
        self._count = self._calls = 0
        self._states = {
            "outside": self._outside, "opened": self._opened, "call": self._call, "closing": self._closing,
        }  # fmt: skip

    def finish(self) -> list[Event]:
        """See `Parser`."""
        found = self._settled(last=True)
        if self._state == "outside" and (self._held.strip() or not self._calls):
            found += [Content(self._space + self._held)] if self._space + self._held else []
        elif self._state == "opened":
            found.append(Content(self._space + self._lead + self._held))
        self._held = self._space = ""
        return found

    def _settled(self, *, last: bool) -> list[Event]:
        found: list[Event] = []
        while True:
            before = (self._held, self._state)
            found += self._states[self._state]()
            if (self._held, self._state) == before:
                return found

    def _outside(self) -> list[Event]:
        places = [at for marker in _OPENINGS if (at := self._held.find(marker)) >= 0]
        end = min(places) if places else len(self._held) - begun(self._held, _OPENINGS)
        text = self._space + self._held[:end]
        kept = text.rstrip()
        self._space, self._held = text[len(kept) :], self._held[end:]
        if places:
            self._lead = "<tool_call>" if self._held.startswith("<tool_call>") else ""
            self._held = self._held[len(self._lead) :]
            self._state = "opened"
        return [Content(kept)] if kept else []

    def _opened(self) -> list[Event]:
        """After <tool_call>, before the function's name."""
        match = _FUNCTION.search(self._held)
        if match is None:
            if "</tool_call>" in self._held:
                # No call: as it stood.
                block, _, self._held = self._held.partition("</tool_call>")
                text, self._space, self._state = f"{self._space}{self._lead}{block}</tool_call>", "", "outside"
                return [Content(text)]
            return []
        self._held, self._name, self._state = self._held[match.end() :], match[1].strip(), "call"
        self._count, self._space = 0, ""
        self._calls += 1
        return [Call(self._name)]

    def _call(self) -> list[Event]:
        match = _PARAMETER.match(self._held)
        if match is not None:
            end = self._value_end(match.end())
            if end is None:
                return []
            value, self._held = self._held[match.end() : end[0]], self._held[end[1] :]
            key, opening = match[1].strip(), "{" if not self._count else ", "
            self._count += 1
            return [Arguments(f"{opening}{dumps(key)}: {self._json(key, value)}")]
        stripped = self._held.lstrip()
        for marker in _ENDS:
            if stripped.startswith(marker):
                self._held = stripped[len(marker) :]
                self._state = "closing" if marker == "</function>" else "outside"
                return [Arguments("}" if self._count else "{}")]
        return []

    def _closing(self) -> list[Event]:
        """After </function>: the end of its block belongs to it."""
        stripped = self._held.lstrip()
        if stripped.startswith("</tool_call>"):
            self._held, self._state = stripped[len("</tool_call>") :], "outside"
        elif stripped and not "</tool_call>".startswith(stripped):
            self._state = "outside"
        return []

    def _value_end(self, start: int) -> tuple[int, int] | None:
        """(end of a value, start of what follows it): at its closing tag, or where the next one begins without it."""
        close = self._held.find("</parameter>", start)
        if close >= 0:
            return close, close + len("</parameter>")
        places = [at for marker in ("<parameter=", "</function>") if (at := self._held.find(marker, start)) >= 0]
        return (min(places), min(places)) if places else None

    def _json(self, key: str, value: str) -> str:
        value = value.removeprefix("\n").removesuffix("\n")
        types = self._types.get(self._name, {}).get(key, frozenset())
        try:
            # What JSON has no number for is text.
            parsed = loads(value)
        except ValueError:
            parsed = value
        # A text stands between its tags as it is, even if it looks like JSON of a type that its parameter has not.
        texts = "string" in types and not types & _types_of_json(parsed)
        plain = texts or (isinstance(parsed, str) and (not types or "string" in types))
        return dumps(value if plain else parsed)


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What describes a tool's function, in OpenAI's wrapping or without it."""
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool


def resolved(form: Any, schema: Mapping[str, Any]) -> Any:
    """A parameter's schema, or what it refers to among the schema's definitions."""
    where = form.get("$ref") if isinstance(form, Mapping) else None
    if isinstance(where, str):
        _, _, place = where.partition("#/")
        kind, _, name = place.partition("/")
        definitions = schema.get(kind)
        return definitions.get(name, form) if isinstance(definitions, Mapping) else form
    return form


def types_of_value(form: Any, schema: Mapping[str, Any]) -> frozenset[str]:
    """JSON's types that a parameter's schema lets in; none where it does not say."""
    form = resolved(form, schema)
    if not isinstance(form, Mapping):
        return frozenset()
    kind = form.get("type")
    if isinstance(kind, str):
        return frozenset((kind,))
    if isinstance(kind, list | tuple):
        return frozenset(str(one) for one in kind)
    if "const" in form:
        return _types_of_json(form["const"], narrow=True)
    if isinstance(form.get("enum"), list):
        return frozenset[str]().union(*(_types_of_json(one, narrow=True) for one in form["enum"]))
    branches = form.get("anyOf", form.get("oneOf"))
    if isinstance(branches, list):
        # References inside of references may be circles.
        kinds = [types_of_value(resolved(one, schema), {}) for one in branches]
        return frozenset[str]().union(*kinds) if all(kinds) else frozenset()
    return frozenset()


def _types_of_json(value: Any, *, narrow: bool = False) -> frozenset[str]:
    """JSON's types that a value has; of a whole number the narrower alone where that is asked for."""
    if isinstance(value, bool):
        return frozenset(("boolean",))
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset(("integer",) if narrow else ("integer", "number"))
    kinds = {float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset((kinds[type(value)],))


def _types_of(tool: Mapping[str, Any]) -> tuple[str, dict[str, frozenset[str]]]:
    """(name, types of each parameter) of a described tool."""
    function = function_of(tool)
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(properties, Mapping):
        return str(function.get("name")), {}
    return str(function.get("name")), {str(key): types_of_value(form, schema) for key, form in properties.items()}
