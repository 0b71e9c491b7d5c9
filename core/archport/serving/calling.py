"""Grammars of calls that a request demands, in the format that a model's chat template writes.

Knows the formats that `archport.serving.parsing` reads back, and nothing of requests or tokens' masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archport.serving.errors import refused, unsupported
from archport.serving.parsing import coder, hermes, thinking
from archport.serving.parsing.choice import Style
from archport.serving.structured import LAYOUT

_PARAMETER_END = "</parameter>"
# What all four formats can write without quoting it.
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# Keywords of a schema whose keys `additionalProperties` does not see, or that are decided elsewhere.
_OPEN = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "unevaluatedProperties")


@dataclass(frozen=True, slots=True)
class Demand:
    """Calls that an answer has to be.

    Args:
        tools: descriptions of the functions that may be called.
        several: whether more than one call may follow the other.
    """

    tools: Sequence[Mapping[str, Any]]
    several: bool


def demand_of(choice: object, tools: Sequence[Mapping[str, Any]] | None, *, parallel: bool) -> Demand | None:
    """What OpenAI's `tool_choice` demands; None where the model decides, or may call nothing.

    Args:
        parallel: `parallel_tool_calls`; a function that is named is called once.

    Raises:
        Refused: it has another form, or names what is not in `tools`.
    """
    if choice in (None, "none", "auto"):
        return None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise refused(
                'tool_choice names no function; expected {"type": "function", "function": {"name": ...}}.',
                "invalid_value", "tool_choice",
            )  # fmt: skip
        named = [tool for tool in tools or () if coder.function_of(tool).get("name") == name]
        if not named:
            raise refused(f"tool_choice names {name[:100]!r}, which is not in tools.", "invalid_value", "tool_choice")
        return Demand(named[:1], several=False)
    if choice != "required":
        raise refused(
            f"tool_choice is {str(choice)[:50]!r}; expected none, auto, required or a function.", "invalid_value",
            "tool_choice",
        )  # fmt: skip
    if not tools:
        raise refused("tool_choice is required, and tools is empty; send the functions.", "invalid_value", "tools")
    return Demand(tools, several=parallel)


def call_grammar(style: Style, demand: Demand, special: Callable[[str], int | None], *, opened: bool) -> str:
    """The grammar, in llguidance's dialect of Lark, of an answer that is nothing but calls.

    Args:
        special: the token of a marker, None where the tokenizer spells it.
        opened: whether the prompt has opened the thinking, so that the grammar begins after it.

    Raises:
        Refused: the model's template writes no calls, or a tool is described wrongly.
    """
    if style.format == "none":
        raise unsupported("The model's chat template writes no calls of tools; tool_choice can't demand one.",
                          "tool_choice")  # fmt: skip
    grammar = _Grammar(special)
    functions = [_function(tool) for tool in demand.tools]
    calls = grammar.either([_FORMATS[style.format](grammar, name, schema) for name, schema in functions])
    between = {"hermes": r'"\n"', "coder": r'"\n"', "llama": '"; "'}.get(style.format)
    answer = f"{calls} ({between} {calls})*" if demand.several and between else calls
    if opened:
        # Where one token ends the thinking, the grammar begins after it.
        ending = (
            f"{grammar.text(thinking.CLOSE)} {json.dumps(thinking.CLOSE)}" if special(thinking.CLOSE) is None else ""
        )
        answer = rf"{ending} /\n{{0,2}}/ {answer}"
    elif style.format == "harmony":
        mark = grammar.mark
        message = f'"analysis" {mark("<|message|>")} {grammar.text("<|")} {mark("<|end|>")}'
        again = f'{mark("<|start|>")} "assistant" {mark("<|channel|>")}'
        answer = f"{mark('<|channel|>')} ({message} {again})? {answer}"
    elif style.thinks:
        thought = f"{grammar.mark(thinking.OPEN)} {grammar.text(thinking.CLOSE)} {grammar.mark(thinking.CLOSE)}"
        answer = rf"({thought} /\n{{0,2}}/)? {answer}"
    return "\n".join([f"start: {answer}", *grammar.rules])


def _function(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(name, schema of the arguments) of a described tool."""
    function = coder.function_of(tool)
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refused(
            f"tools holds a function called {str(name)[:100]!r}; expected up to 128 letters, digits, or any of _.:/-",
            "invalid_value", "tools",
        )  # fmt: skip
    if schema is None:
        schema = {}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise refused(f"The parameters of the function {name!r} are no JSON schema of an object.", "invalid_value",
                      "tools")  # fmt: skip
    # Arguments that a function does not have are no call of it.
    closed = {} if any(key in schema for key in _OPEN) else {"additionalProperties": False}
    return name, {"type": "object", **closed, **schema}


class _Grammar:
    """Rules of a grammar as they are made.

    Args:
        special: the token of a marker.
    """

    def __init__(self, special: Callable[[str], int | None]) -> None:
        self._special = special
        self.rules: list[str] = []

    def rule(self, body: str) -> str:
        """The name of a new rule."""
        name = f"rule_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def either(self, bodies: Sequence[str]) -> str:
        """A rule of alternatives."""
        return self.rule("\n | ".join(bodies))

    def mark(self, marker: str) -> str:
        """A marker: its token where it has one."""
        token = self._special(marker)
        return json.dumps(marker) if token is None else f"<[{token}]>"

    def text(self, end: str, least: int = 0, most: int | None = None) -> str:
        """Any text without what ends it, of a bounded length in characters."""
        name, marker = f"TEXT_{len(self.rules)}", re.escape(end).replace("/", r"\/")
        counted = "*" if not least and most is None else f"{{{least},{'' if most is None else most}}}"
        self.rules.append(rf"{name}: /(.|\n){counted}/ & ~/(.|\n)*{marker}(.|\n)*/")
        return name

    def json(self, schema: Any) -> str:
        """JSON of a schema."""
        laid = {"x-guidance": LAYOUT, **schema} if isinstance(schema, Mapping) else schema
        return self.rule(f"%json {json.dumps(laid)}")


def _hermes(grammar: _Grammar, name: str, schema: Mapping[str, Any]) -> str:
    head, tail = json.dumps(f'\n{{"name": "{name}", "arguments": '), json.dumps("}\n")
    return f"{grammar.mark(hermes.OPEN)} {head} {grammar.json(schema)} {tail} {grammar.mark(hermes.CLOSE)}"


def _llama(grammar: _Grammar, name: str, schema: Mapping[str, Any]) -> str:
    head = json.dumps(f'{{"name": "{name}", "parameters": ')
    return f'{head} {grammar.json(schema)} "}}"'


def _harmony(grammar: _Grammar, name: str, schema: Mapping[str, Any]) -> str:
    # <|call|> ends the text, as any final token does.
    head = json.dumps(f"commentary to=functions.{name} ")
    constrained = f'{grammar.mark("<|constrain|>")} "json" {grammar.mark("<|message|>")}'
    return f"{head} {constrained} {grammar.json(schema)}"


def _coder(grammar: _Grammar, name: str, schema: Mapping[str, Any]) -> str:
    properties, needed = schema.get("properties") or {}, schema.get("required") or ()
    if not isinstance(properties, Mapping) or not isinstance(needed, list | tuple):
        raise refused(f"The parameters of the function {name!r} are no JSON schema of an object.", "invalid_value",
                      "tools")  # fmt: skip
    values: list[str] = []
    for key, form in properties.items():
        if not _NAME.fullmatch(key):
            raise refused(f"The function {name!r} has a parameter {key[:100]!r}, which no tag can name.",
                          "invalid_value", "tools")  # fmt: skip
        head, tail = json.dumps(f"<parameter={key}>\n"), json.dumps("\n</parameter>\n")
        value = f"{head} {_tagged(grammar, form, schema)} {tail}"
        values.append(value if key in needed else f"({value})?")
    head, tail = json.dumps(f"\n<function={name}>\n"), json.dumps("</function>\n")
    return f"{grammar.mark(hermes.OPEN)} {head} {' '.join(values)} {tail} {grammar.mark(hermes.CLOSE)}"


def _tagged(grammar: _Grammar, form: Any, schema: Mapping[str, Any]) -> str:
    """A value between tags: texts stand as they are, everything else is JSON."""
    form = coder.resolved(form, schema)
    kinds = coder.types_of_value(form, schema)
    if not isinstance(form, Mapping) or not kinds:
        return grammar.text(_PARAMETER_END)
    constants = [form["const"]] if "const" in form else form.get("enum")
    if constants is not None:
        return grammar.either([json.dumps(each if isinstance(each, str) else json.dumps(each)) for each in constants])
    if "string" not in kinds:
        return grammar.json({**form, **{key: schema[key] for key in ("$defs", "definitions") if key in schema}})
    least, most = (form.get(key) for key in ("minLength", "maxLength"))
    text = grammar.text(_PARAMETER_END, least if isinstance(least, int) else 0, most if isinstance(most, int) else None)
    rest = kinds - {"string"}
    if not rest:
        return text
    branches = [
        each for each in form.get("anyOf", form.get("oneOf", ())) if coder.types_of_value(each, schema) != {"string"}
    ]
    narrower = {"anyOf": branches} if branches else {**form, "type": sorted(rest)}
    return grammar.either([grammar.json(narrower), text])


_FORMATS: Mapping[str, Callable[[_Grammar, str, Mapping[str, Any]], str]] = {
    "hermes": _hermes,
    "coder": _coder,
    "llama": _llama,
    "harmony": _harmony,
}
