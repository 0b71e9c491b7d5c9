"""Transcripts of tool calls in four formats, made at random and cut anywhere: what comes out is what was put in."""

from __future__ import annotations

import json
import random

import orjson
import pytest

from archport.serving.dialects.chat import parsed_arguments
from archport.serving.http import json_bytes
from archport.serving.parsing.choice import style_of
from archport.serving.parsing.coder import Coder
from archport.serving.parsing.events import Arguments, Call, Content, Reasoning, merged
from archport.serving.parsing.harmony import Harmony
from archport.serving.parsing.hermes import Hermes
from archport.serving.parsing.llama import Llama
from archport.serving.parsing.thinking import Thinking

WORDS = [
    "plain",
    "with space",
    'a "quote"',
    "back\\slash",
    "new\nline",
    "ünïcode 漢字",
    "<tag>",
    "{brace}",
    "",
    "</tool",
    "1.5",
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"}, "count": {"type": "integer"}, "flag": {"type": "boolean"},
                    "list": {"type": "array"}, "inner": {"type": "object"},
                },
            },
        },
    }
    for name in ("search", "get_weather", "run-code")
]  # fmt: skip


def values(chance):
    made = {
        "text": chance.choice(WORDS),
        "count": chance.randrange(-5, 10**6),
        "flag": chance.random() < 0.5,
        "list": [chance.choice(WORDS) for _ in range(chance.randrange(3))],
        "inner": {"deep": [{"key": chance.choice(WORDS)}], "n": 1.5},
    }
    return {key: made[key] for key in chance.sample(list(made), chance.randrange(0, 5))}


def transcript(form, seed):
    """(text, content, reasoning, calls) of a random answer."""
    chance = random.Random(f"{form}{seed}")
    calls = [(chance.choice(TOOLS)["function"]["name"], values(chance)) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
    content = chance.choice(["", "I will look.", "Two\n\nparagraphs < of > text", "a {brace} and 漢字"])
    if form in ("hermes", "coder"):
        if not calls and not content:
            content = "No call."
        blocks = []
        for name, arguments in calls:
            if form == "hermes":
                space = chance.choice(["\n", "", " "])
                body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=chance.random() < 0.5)
                blocks.append(f"<tool_call>{space}{body}{space}</tool_call>")
            else:
                inner = "".join(
                    f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
                    for key, value in arguments.items()
                )
                blocks.append(f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>")
        return "\n".join([*([content] if content else []), *blocks]), content, "", calls
    if form == "llama":
        if not calls:
            content = content or "No call."
            return content, content, "", []
        tag = chance.choice(["", "<|python_tag|>"])
        text = tag + "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls)
        return text, "", "", calls
    thought = chance.choice(["", "Let me think < about > it.", "漢字 and more"])
    parts = [f"<|channel|>analysis<|message|>{thought}<|end|>"] if thought else []
    for name, arguments in calls:
        head = chance.choice(
            [
                f"<|channel|>commentary to=functions.{name} <|constrain|>json",
                f" to=functions.{name}<|channel|>commentary json",
            ]
        )
        parts.append(f"{head}<|message|>{json.dumps(arguments)}<|call|>")
    if content or not parts:
        content = content or "Done."
        parts.append(f"<|channel|>final<|message|>{content}")
    return "<|start|>assistant".join(parts), content, thought, calls


PARSERS = {"hermes": Hermes, "coder": lambda: Coder(TOOLS), "llama": Llama, "harmony": Harmony}


def read(parser, pieces):
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged([*events, *parser.finish()])


def told(events):
    """(content, reasoning, calls) of events; arguments parsed."""
    content = "".join(each.text for each in events if isinstance(each, Content))
    reasoning = "".join(each.text for each in events if isinstance(each, Reasoning))
    calls, arguments = [], []
    for each in events:
        if isinstance(each, Call):
            calls.append(each.name)
            arguments.append("")
        elif isinstance(each, Arguments):
            arguments[-1] += each.text
    return content, reasoning, [(name, json.loads(text)) for name, text in zip(calls, arguments, strict=True)]


def wrong(form, seed, step=1):
    """Places where a transcript comes out otherwise than it was put in; the whole one first."""
    text, content, reasoning, calls = transcript(form, seed)
    found = []
    whole = read(PARSERS[form](), [text])
    if told(whole) != (content, reasoning, calls):
        found.append(("whole", text, told(whole)))
    if read(PARSERS[form](), list(text)) != whole:
        found.append(("characters", text))
    return found + [
        (at, text) for at in range(0, len(text), step) if read(PARSERS[form](), [text[:at], text[at:]]) != whole
    ]


@pytest.mark.parametrize("form", PARSERS)
@pytest.mark.parametrize("seed", range(50))
def test_a_transcript_comes_out_as_it_was_put_in_wherever_it_is_cut(form, seed):
    assert wrong(form, seed) == []


@pytest.mark.truth
@pytest.mark.parametrize("form", PARSERS)
def test_many_transcripts_come_out_as_they_were_put_in(form):
    assert [found for seed in range(50, 1500) for found in wrong(form, seed, step=3)] == []


@pytest.mark.parametrize("form", PARSERS)
@pytest.mark.parametrize("seed", range(12))
def test_a_transcript_that_ends_anywhere_is_read_the_same_however_it_came(form, seed):
    text = transcript(form, seed)[0]
    for end in range(0, len(text), 5):
        assert read(PARSERS[form](), list(text[:end])) == read(PARSERS[form](), [text[:end]])


@pytest.mark.parametrize("form", ["hermes", "coder", "llama"])
@pytest.mark.parametrize(
    "text", ["<tool_call>no call</tool_call>", "{not json", '{"name": 1}', "<tool_call>", "a <tool", "{}"]
)
def test_what_only_looks_like_a_call_stays_content(form, text):
    assert told(read(PARSERS[form](), list(text))) == (text, "", [])


@pytest.mark.parametrize(
    ("text", "opened", "thought", "content"),
    [
        ("<think>\nWhy?\n</think>\n\nBecause.", False, "Why?", "Because."),
        ("Why?\n</think>\n\nBecause.", True, "Why?", "Because."),
        ("No thinking.", False, "", "No thinking."),
        ("<think>cut sho", False, "cut sho", ""),
        ("<think>\n\n</think>\n\nText with <think> in it.", False, "", "Text with <think> in it."),
        ("a </thi b</think>c", True, "a </thi b", "c"),
    ],
)
def test_thinking_is_split_off_wherever_the_text_is_cut(text, opened, thought, content):
    for at in range(len(text)):
        assert told(read(Thinking(Hermes(), opened=opened), [text[:at], text[at:]])) == (content, thought, [])


@pytest.mark.parametrize(
    ("form", "written", "value"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "5", "5"),
        ({"type": ["string", "null"]}, "true", "true"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "5", 5),
        ({"$ref": "#/$defs/Place"}, "12", "12"),
        ({"enum": ["1", "two"]}, "1", "1"),
        ({}, "5", 5),
        ({}, '"5"', '"5"'),
    ],
)
def test_a_tagged_value_is_of_a_type_that_its_parameter_has(form, written, value):
    schema = {"type": "object", "properties": {"key": form}, "$defs": {"Place": {"type": "string"}}}
    text = f"<tool_call>\n<function=f>\n<parameter=key>\n{written}\n</parameter>\n</function>\n</tool_call>"
    assert told(read(Coder([{"function": {"name": "f", "parameters": schema}}]), [text]))[2] == [("f", {"key": value})]


NUMBERS = ["NaN", "-Infinity", "1e999", "-1E+400", "1" + "0" * 400, "1" * 5000, ".5", "01", "+1", "-"]
BLOCK = {
    "hermes": '<tool_call>{{"name": "f", "arguments": {}}}</tool_call>',
    "hermes, name last": '<tool_call>{{"arguments": {}, "name": "f"}}</tool_call>',
    "hermes, as a string": '<tool_call>{{"name": "f", "arguments": {}}}</tool_call>',
    "llama": '{{"name": "f", "parameters": {}}}',
    "harmony": "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
}


@pytest.mark.parametrize("form", BLOCK)
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_json_does_not_have_are_texts_in_every_format(form, number):
    arguments = f'{{"a": {number}, "b": [{number},-1.5e3], "c": "NaN, {number}", "d": true}}'
    text = BLOCK[form].format(json.dumps(arguments) if "string" in form else arguments)
    expected = {"a": number, "b": [number, -1500.0], "c": f"NaN, {number}", "d": True}
    for pieces in ([text], list(text)):
        assert strict(read(PARSERS[form.partition(",")[0]](), pieces)) == [("f", expected)]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_json_does_not_have_are_texts_between_tags(number):
    text = f"<tool_call>\n<function=search>\n<parameter=count>\n{number}\n</parameter>\n</function>\n</tool_call>"
    assert strict(read(Coder(TOOLS), list(text))) == [("search", {"count": number})]
    inside = text.replace(number, f"[1, {number}]")
    assert strict(read(Coder(TOOLS), list(inside))) == [("search", {"count": f"[1, {number}]"})]


def strict(events):
    """Calls of events, read as strictly as a client may."""

    def refuse(word):
        raise ValueError(word)

    calls = [each.name for each in events if isinstance(each, Call)]
    texts = [each.text for each in events if isinstance(each, Arguments)]
    orjson.dumps(calls + texts)
    return [(name, json.loads(text, parse_constant=refuse)) for name, text in zip(calls, texts, strict=True)]


def test_half_of_a_surrogate_pair_is_written_as_an_escape():
    half = chr(92) + "ud83d"
    for form in BLOCK:
        arguments = f'{{"a": "{half}"}}'
        text = BLOCK[form].format(json.dumps(arguments) if "string" in form else arguments)
        assert strict(read(PARSERS[form.partition(",")[0]](), [text])) == [("f", {"a": "\ud83d"})]
    text = f'<tool_call><function=f{half}><parameter=a>["{half}"]</parameter></function></tool_call>'
    assert strict(read(Coder(TOOLS), [text])) == [(f"f{half}", {"a": ["\ud83d"]})]
    named = f'<tool_call>{{"name": "f{half}", "arguments": {{}}}}</tool_call>'
    assert strict(read(Hermes(), [named])) == [("f?", {})]


@pytest.mark.parametrize(
    "text", ['{"a": 123456789012345678901234567890}', '{"a": "' + chr(92) + 'ud83d"}', "no JSON", '{"a": NaN}']
)
def test_arguments_as_values_can_be_written(text):
    assert orjson.loads(json_bytes(parsed_arguments(text))) == parsed_arguments(text)


def test_text_to_a_tool_that_takes_no_json_stays_as_it_is():
    text = "<|channel|>commentary to=python code<|message|>x = nan + 01\nprint({1: NaN})<|call|>"
    (call, arguments) = read(Harmony(), list(text))
    assert (call, arguments) == (Call("python"), Arguments("x = nan + 01\nprint({1: NaN})"))


def test_the_template_says_how_a_model_writes():
    assert style_of("... <tool_call>{{ tool_call | tojson }}</tool_call> <think>").format == "hermes"
    assert style_of("<tool_call><function=").format == "coder"
    assert style_of('{"name": "x", "parameters": y}').format == "llama"
    assert style_of("<|channel|>analysis<|message|>").format == "harmony"
    assert style_of("{{ message.content }}").format == "none"
