"""Which files say how a text ends and which chat template counts, and what is refused in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from archport.checkpoint import ChatFiles, read_chat, resolve
from archport.contract import CheckpointError

TOKENIZER = Path(__file__).parents[1] / "goldens" / "qwen3-vl" / "tokenizer.json"


def chat_of(folder: Path, files: dict[str, Any]) -> ChatFiles:
    """What is read of a folder with these files and a tokenizer without any special token of its own."""
    stated: dict[str, Any] = {
        "config.json": {"model_type": "qwen3", "architectures": ["Any"]},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for name, value in {**stated, **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    return read_chat(resolve(folder, models={}))


def config(**keys: Any) -> dict[str, Any]:
    return {"model_type": "qwen3_5", "architectures": ["Any"], **keys}


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({}, set()),
        ({"generation_config.json": {"eos_token_id": 7}}, {7}),
        ({"generation_config.json": {"eos_token_id": [7, 8]}}, {7, 8}),
        ({"config.json": config(eos_token_id=5)}, {5}),
        ({"config.json": config(text_config={"eos_token_id": 9})}, {9}),
        ({"config.json": config(text_config={"eos_token_id": [9, 3]}, eos_token_id=None)}, {9, 3}),
        # A whole that speaks is not asked again in its halves.
        ({"config.json": config(text_config={"eos_token_id": 9}, eos_token_id=5)}, {5}),
        ({"config.json": config(decoder={"eos_token_id": 4}, text_config={"eos_token_id": 9})}, {4}),
        ({"config.json": config(eos_token_id=5), "generation_config.json": {"eos_token_id": 7}}, {5, 7}),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": config(eos_token_id=5)}, {5}),
        # Where no file says anything, the default of the tokenizer's class: "<|endoftext|>".
        ({"config.json": config()}, {280}),
    ],
)
def test_a_text_ends_where_any_file_says(files: dict[str, Any], stops: set[int], tmp_path: Path):
    assert chat_of(tmp_path, files).stops == stops


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
        {"special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}},
        {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}},
    ],
)
def test_a_text_ends_at_the_end_token_of_the_tokenizer_s_files(files: dict[str, Any], tmp_path: Path):
    found = chat_of(tmp_path, files)
    assert found.special["eos_token"] == "<|im_end|>"
    assert found.stops == {resolve(tmp_path, models={}).token_id("<|im_end|>")}


@pytest.mark.parametrize(
    ("files", "template", "file"),
    [
        ({"chat_template.json": {"chat_template": "old"}}, "old", "chat_template.json"),
        ({"chat_template.json": {"chat_template": "old"}, "chat_template.jinja": "new"}, "new", "chat_template.jinja"),
        # A processor reads its own file before the tokenizer's.
        (
            {
                "chat_template.json": {"chat_template": "old"},
                "chat_template.jinja": "new",
                "preprocessor_config.json": {},
            },
            "old",
            "chat_template.json",
        ),
        (
            {"processor_config.json": {"chat_template": "own"}, "chat_template.jinja": "new"},
            "own",
            "processor_config.json",
        ),
        ({"preprocessor_config.json": {}, "chat_template.jinja": "new"}, "new", "chat_template.jinja"),
        (
            {"preprocessor_config.json": {}, "tokenizer_config.json": {"chat_template": "stated"}},
            "stated",
            "tokenizer_config.json",
        ),
    ],
)
def test_a_processor_s_template_counts_where_there_is_a_processor(
    files: dict[str, Any], template: str, file: str, tmp_path: Path
):
    found = chat_of(tmp_path, files)
    assert (found.templates["default"], found.files["default"]) == (template, file)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"generation_config.json": {"eos_token_id": "end"}}, r"generation_config\.json: eos_token_id='end'; expected"),
        ({"config.json": config(eos_token_id=[1, -2])}, r"config\.json: eos_token_id=\[1, -2\]; expected"),
        ({"config.json": config(eos_token_id=True)}, r"config\.json: eos_token_id=True"),
        ({"tokenizer_config.json": {"chat_template": 5}}, r"tokenizer_config\.json: chat_template holds 5; expected"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "a"}]}}, r"tokenizer_config\.json: chat_template holds"),
        ({"tokenizer_config.json": {"chat_template": ["a"]}}, r"tokenizer_config\.json: chat_template holds \['a'\]"),
        ({"chat_template.json": {"template": "a"}}, r"chat_template\.json: chat_template holds None"),
        (
            {
                "chat_template.json": {"chat_template": "a"},
                "additional_chat_templates/rag.jinja": "b",
                "preprocessor_config.json": {},
            },
            "holds chat_template.json beside additional_chat_templates",
        ),
    ],
)
def test_what_is_no_id_and_no_template_is_refused_with_its_file(files: dict[str, Any], match: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=match):
        chat_of(tmp_path, files)
