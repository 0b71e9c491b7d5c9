"""Conversations that chat templates are compared on, the same in every process, and small templates beside them.

Tools, thinking on and off, reasoning of earlier turns, tool calls and their results, systems, many turns, parts, final
messages to continue. Imports the standard library only, so that both environments read it.
"""

import json
import random
from pathlib import Path
from typing import Any

COUNT = 60
WORDS = (
    *("the", "hack", "größe", "東京", "🙂", "a < b & 'c'", '"quoted"', "x = {1: 2}", "\\n", "tab\there", "résumé"),
    *("<|im_end|>", "<think>", "</think>", "<end_of_turn>", "{{ braces }}", "{% raw %}", "שלום", "\u00a0", "end."),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city, in <degrees> & 'words'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "größe"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": None, "parameters": {"type": "object"}}},
]


def _text(dice: random.Random, most: int = 8) -> str:
    text = " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, most)))
    return dice.choice(("", "", "\n", "  ")) + text + dice.choice(("", "", "\n", "\n\n  "))


def _call(dice: random.Random) -> dict[str, Any]:
    arguments: Any = {"city": _text(dice, 2), "days": dice.randint(1, 9), "deep": {"b": [1, 2.5, None, True], "a": "é"}}
    if dice.random() < 0.2:
        arguments = '{"city": "as it is"}'
    function = {"name": dice.choice(("weather", "now")), "arguments": arguments}
    return function if dice.random() < 0.2 else {"type": "function", "id": "call1", "function": function}


def _assistant(dice: random.Random, tools: bool) -> list[dict[str, Any]]:
    """What an assistant says in one turn: now and then thoughts, calls of tools and their results."""
    said: list[dict[str, Any]] = []
    if tools:
        for _ in range(dice.randint(0, 2)):
            calls = [_call(dice) for _ in range(dice.randint(1, 2))]
            # Most templates fail on a message without a content.
            content: Any = None if dice.random() < 0.05 else dice.choice(("", _text(dice)))
            said.append({"role": "assistant", "content": content, "tool_calls": calls})
            said += [{"role": "tool", "content": dice.choice((_text(dice), "{}", None))} for _ in calls]
    last: dict[str, Any] = {"role": "assistant", "content": _text(dice)}
    kind = dice.random()
    if kind < 0.25:
        last["content"] = f"<think>\n{_text(dice)}\n</think>\n\n{_text(dice)}"
    elif kind < 0.5:
        last[dice.choice(("reasoning_content", "reasoning", "thinking"))] = _text(dice)
    elif kind < 0.6:
        last["tool_calls"] = None
    return [*said, last]


def conversations(model: str) -> list[dict[str, Any]]:
    """60 calls: messages, tools, and what else is told to the template."""
    dice = random.Random(f"chats of {model}")
    made: list[dict[str, Any]] = []
    for index in range(COUNT):
        tools = model == "qwen3" and dice.random() < 0.6
        messages: list[dict[str, Any]] = []
        if dice.random() < 0.5:
            messages.append({"role": "system", "content": _text(dice)})
        for turn in range(dice.randint(1, 5)):
            messages.append({"role": "user", "content": _text(dice)})
            if turn or dice.random() < 0.7:
                messages += _assistant(dice, tools)
            if model == "gemma3" and dice.random() < 0.3:
                messages[-1]["content"] = [{"type": "text", "text": _text(dice)} for _ in range(2)]
        if dice.random() < 0.7 and messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": _text(dice)})
        if model == "gemma3" and dice.random() < 0.2 and messages[0]["role"] == "system":
            messages[0]["content"] = [{"type": "text", "text": messages[0]["content"]}]
        call: dict[str, Any] = {"messages": messages, "tools": TOOLS[: 1 + index % 2] if tools else None}
        if model == "qwen3" and dice.random() < 0.5:
            call["options"] = {"enable_thinking": dice.random() < 0.5}
        if messages[-1]["role"] == "assistant" and isinstance(messages[-1]["content"], str) and dice.random() < 0.7:
            call["continue_final_message"] = True
        made.append(call)
    return made


USER = [{"role": "user", "content": "hi <b>"}]
_DATA = json.loads(Path(__file__).with_name("chat_templates.json").read_text(encoding="utf-8"))
# Renders pictures, tools and thinking as the templates of Qwen3.5 and Qwen3-VL do.
SEEING: str = _DATA["seeing"]
# (name, template, call): what a template environment may do otherwise than transformers'.
SMALL: list[tuple[str, str, dict[str, Any]]] = [
    (case["name"], case["template"], case.get("call", {})) for case in _DATA["small"]
]
# (name, files of a tokenizer beside its tokenizer.json, whether tools are given): which template and tokens count.
FILES: list[tuple[str, dict[str, Any], bool]] = [
    (case["name"], case["files"], tools) for case in _DATA["files"] for tools in (False, True)
]
