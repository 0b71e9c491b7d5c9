"""Calls that a request demands: in the model's own format, of functions that may be called, with their arguments."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from archport import engine

pytest.importorskip("llguidance")

GOLDENS = Path(__file__).parents[1] / "goldens"
# What a template of each format writes; `archport.serving.parsing.choice` tells them apart by it.
WRITES = {
    "hermes": "<tool_call>",
    "coder": "<tool_call><function=",
    "llama": "<|python_tag|>",
    "harmony": "<|channel|><|message|>",
    "none": "",
}
MESSAGES = [{"role": "user", "content": "hello there"}]
PAINT = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "dark green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 6},
        "wet": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/Place"},
    },
    "required": ["color", "count", "place"],
    "$defs": {"Place": {"type": "string", "enum": ["in", "out"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "look"}},
    {"type": "function", "function": {"name": "paint-it", "parameters": PAINT}},
]
NAMED = {"type": "function", "function": {"name": "paint-it"}}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    made = {}

    def load(form, thinks=""):
        if (form, thinks) not in made:
            folder = tmp_path_factory.mktemp("calling") / "tiny"
            shutil.copytree(GOLDENS / "qwen3-windowed", folder)
            head = f"{{# {WRITES[form]} #}}{{{{ tools|length }}}}"
            template = head + "{% for m in messages %}{{ m.content }}\n{% endfor %}" + thinks
            (folder / "chat_template.jinja").write_text(template)
            made[form, thinks] = engine.load(folder, dtype="float32")
        return made[form, thinks]

    return load


@pytest.fixture
def asked(make, models):
    """Sends chats to a tiny model whose template writes a format; all at once."""

    def ask(form, *bodies, thinks=""):
        from archport.serving.models import served_model

        serving = make()
        model = models(form, thinks)
        serving.state.registry.add(served_model("tiny", model, {}, held=lambda: serving.state.device.reserved))

        async def run():
            async with serving.client() as client:
                posts = [
                    client.post(
                        "/v1/chat/completions", json={"messages": MESSAGES, "tools": TOOLS, **body}, timeout=120
                    )
                    for body in bodies
                ]
                return await asyncio.gather(*posts)

        return asyncio.run(run())

    return ask


def at_once(form):
    """Biases that keep a random model of gpt-oss' format from thinking, which it would do to the end."""
    tokens = Tokenizer.from_file(str(GOLDENS / "qwen3-windowed" / "tokenizer.json")).get_vocab()
    return {str(token): -100 for text, token in tokens.items() if text.startswith("a")} if form == "harmony" else {}


def right(call):
    """Whether a call is one of the functions with arguments that its schema lets in."""
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "look":
        return arguments == {}
    return (
        call["function"]["name"] == "paint-it"
        and {"color", "count", "place"} <= set(arguments) <= set(PAINT["properties"])
        and arguments["color"] in ("red", "dark green")
        and type(arguments["count"]) is int
        and 0 <= arguments["count"] <= 99
        and arguments["place"] in ("in", "out")
        and isinstance(arguments.get("note", ""), str)
        and len(arguments.get("note", "")) <= 6
        and arguments.get("wet") in (True, False, None)
    )


def ended(responses):
    """Messages that ended by themselves; each of them holds nothing but calls that are right."""
    found = []
    for response in responses:
        assert response.status_code == 200, response.text
        for choice in response.json()["choices"]:
            if choice["finish_reason"] != "length":
                message = choice["message"]
                assert choice["finish_reason"] == "tool_calls"
                assert message["content"] is None
                assert message["tool_calls"]
                assert [call for call in message["tool_calls"] if not right(call)] == []
                found.append(message)
    return found


@pytest.mark.parametrize("form", ["hermes", "coder", "llama", "harmony"])
def test_a_demanded_call_is_one_of_the_functions_with_its_arguments(asked, form):
    body = {"tool_choice": "required", "max_tokens": 500, "temperature": 1, "logit_bias": at_once(form)}
    assert ended(asked(form, *({**body, "seed": seed} for seed in range(3))))


@pytest.mark.truth
@pytest.mark.parametrize("form", ["hermes", "coder", "llama", "harmony"])
def test_many_demanded_calls_are_right(asked, form):
    body = {"tool_choice": "required", "max_tokens": 700, "temperature": 1, "logit_bias": at_once(form)}
    messages = ended(asked(form, *({**body, "n": 4, "seed": seed} for seed in range(100, 115))))
    assert len(messages) >= 45


@pytest.mark.parametrize("form", ["hermes", "coder", "llama", "harmony"])
def test_a_function_that_is_named_is_called_once(asked, form):
    body = {"tool_choice": NAMED, "max_tokens": 500, "temperature": 1, "logit_bias": at_once(form)}
    messages = ended(asked(form, *({**body, "seed": seed} for seed in range(2))))
    assert messages
    for message in messages:
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["paint-it"]


def test_calls_that_may_not_be_parallel_are_single(asked):
    body = {"tool_choice": "required", "max_tokens": 300, "temperature": 1, "parallel_tool_calls": False}
    for message in ended(asked("llama", *({**body, "seed": seed} for seed in range(2)))):
        assert len(message["tool_calls"]) == 1


def test_a_stream_has_the_same_call(asked):
    body = {"tool_choice": NAMED, "max_tokens": 300, "temperature": 1, "seed": 1}
    whole, stream = asked("hermes", body, {**body, "stream": True})
    (call,) = whole.json()["choices"][0]["message"]["tool_calls"]
    lines = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [part for line in lines for part in line["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas[0]["function"]["name"] == call["function"]["name"]
    assert "".join(each["function"]["arguments"] for each in deltas) == call["function"]["arguments"]
    assert lines[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_model_that_thinks_thinks_before_it_calls(asked):
    body = {"tool_choice": NAMED, "max_tokens": 60, "temperature": 1}
    responses = asked("llama", *({**body, "seed": seed} for seed in range(2)), thinks="<think>")
    for response in responses:
        message = response.json()["choices"][0]["message"]
        assert message["reasoning_content"]
        assert not message["content"]


@pytest.mark.parametrize(
    ("form", "more", "code"),
    [
        ("none", {"tool_choice": "required"}, "unsupported_operation"),
        ("none", {"tool_choice": NAMED}, "unsupported_operation"),
        ("hermes", {"tool_choice": "required", "tools": []}, "invalid_value"),
        ("hermes", {"tool_choice": "required", "tools": None}, "invalid_value"),
        ("hermes", {"tool_choice": "always"}, "invalid_value"),
        ("hermes", {"tool_choice": {"function": "look"}}, "invalid_value"),
        ("hermes", {"tool_choice": {"type": "function", "function": {"name": "other"}}}, "invalid_value"),
        ("hermes", {"tool_choice": "required", "tools": [{"function": {"name": 'a"b'}}]}, "invalid_value"),
        ("hermes", {"tool_choice": "required", "tools": [
            {"function": {"name": "a", "parameters": 5}}]}, "invalid_value"),
        ("coder", {"tool_choice": "required", "tools": [
            {"function": {"name": "a", "parameters": {"type": "object", "properties": [1]}}}]}, "invalid_value"),
        ("llama", {"tool_choice": "required", "tools": [
            {"function": {"name": "a", "parameters": {"type": "object", "required": 5}}}]}, "invalid_value"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_demand_that_can_t_be_met_is_400(asked, form, more, code, stream):
    (response,) = asked(form, {"max_tokens": 8, "stream": stream, **more})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
