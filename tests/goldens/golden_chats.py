"""Record what transformers makes of chat_conversations.py: by published templates, small ones, files that disagree.

The published ones are those of the real Qwen3 and Gemma 3 tokenizers, which `make tokenizers` fetches. Qwen3's is kept
with its renders: it is Apache-2.0 (Qwen/Qwen3-0.6B). Gemma's licence is its own, so of it only the renders are kept.
"""

import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from chat_conversations import FILES, SEEING, SMALL, TOOLS, USER, conversations
from recording import HERE, versions
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

PUBLISHED = {"qwen3": "qwen3", "gemma3": "gemma3_text"}
TINY = HERE / "qwen3-vl" / "tokenizer.json"
IMAGE, VIDEO = {"type": "image", "image": 0}, {"type": "video", "video": 0}
ASKED = {"type": "text", "text": "What is this?"}
# Conversations with pictures by number, and what else is told.
PICTURES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [IMAGE, ASKED]}]},
    {"messages": [{"role": "user", "content": [IMAGE, ASKED]}], "options": {"enable_thinking": False}},
    {"messages": [{"role": "user", "content": [ASKED, IMAGE, IMAGE]}], "tools": TOOLS[:1]},
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [VIDEO, ASKED, IMAGE]}]},
    {
        "messages": [
            {"role": "user", "content": [IMAGE, ASKED]},
            {"role": "assistant", "content": "a", "tool_calls": [{"name": "look", "arguments": {}}]},
            {"role": "tool", "content": [{"type": "text", "text": "see: "}, IMAGE]},
            {"role": "judge", "content": "more"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 0}}, ASKED]},
        ],
        "tools": TOOLS,
    },
    {
        "messages": [{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "It is a "}],
        "continue_final_message": True,
    },
    {"messages": [{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "a"}, *USER]},
]


class Processor(ProcessorMixin):
    """What of a processor renders."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer, self.chat_template = tokenizer, template


def rendered(renderer: Any, call: dict[str, Any], **more: Any) -> dict[str, str]:
    """What a tokenizer or processor renders of a call, or how it refuses."""
    final = call.get("continue_final_message", False)
    told = {"add_generation_prompt": not final, **call.get("options", {})}
    try:
        text = renderer.apply_chat_template(
            call.get("messages", USER),
            tools=call.get("tools"),
            tokenize=False,
            continue_final_message=final,
            **told,
            **more,
        )
    except Exception as error:
        return {"refused": f"{error}"}
    return {"text": text}


def load(place: Path, files: dict[str, Any], tokenizer: Path, model_type: str) -> Any:
    """A tokenizer from files."""
    for name, value in {"config.json": {"model_type": model_type}, **files}.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes((value if isinstance(value, str) else json.dumps(value)).encode())
    (place / "tokenizer.json").symlink_to(tokenizer)
    return AutoTokenizer.from_pretrained(place, local_files_only=True)


def record() -> None:
    """Write chats.json.gz."""
    found: dict[str, Any] = {"versions": versions(), "published": {}}
    for name, model_type in PUBLISHED.items():
        folder = HERE.parents[1] / "build" / "tokenizers" / name
        stated = json.loads((folder / "tokenizer_config.json").read_text())
        with tempfile.TemporaryDirectory() as place:
            files = {"tokenizer_config.json": stated}
            tokenizer = load(Path(place), files, folder / "tokenizer.json", model_type)
        renders = [rendered(tokenizer, call) for call in conversations(name)]
        found["published"][name] = {
            "model_type": model_type,
            "sha256": hashlib.sha256(stated["chat_template"].encode()).hexdigest(),
            "special": tokenizer.special_tokens_map,
            "renders": renders,
        }
        refused = sum("refused" in each for each in renders)
        print(f"{name}: {len(renders)} conversations, {refused} of them refused by the template")
        if name == "qwen3":
            found["published"][name] |= {"licence": "Apache-2.0, Qwen/Qwen3-0.6B", "template": stated["chat_template"]}
    tiny = PreTrainedTokenizerFast(tokenizer_file=str(TINY), bos_token="<b>", eos_token="<e>")
    found["special"] = tiny.special_tokens_map
    found["small"] = {name: rendered(tiny, call, chat_template=template) for name, template, call in SMALL}
    processor = Processor(tiny, SEEING)
    found["pictures"] = [{"call": call, **rendered(processor, call)} for call in PICTURES]
    found["files"] = []
    for _, files, tools in FILES:
        with tempfile.TemporaryDirectory() as place:
            tokenizer = load(Path(place), files, TINY, "qwen3")
            call = {"messages": USER, "tools": TOOLS if tools else None}
            found["files"].append({**rendered(tokenizer, call), "eos": tokenizer.eos_token})
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    # Without the time, so that the same content is the same file.
    (HERE / "chats.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"small: {sum('refused' in each for each in found['small'].values())} of {len(SMALL)} refused")


if __name__ == "__main__":
    record()
