"""The command line with images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.cli import app


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(path)
    return path


def vectors_of(*arguments: str) -> Any:
    found = CliRunner().invoke(app, ["embed", "--dtype", "float32", *arguments])
    assert found.exit_code == 0, found.output
    return np.array([json.loads(line)["embedding"] for line in found.stdout.splitlines()])


def test_every_image_is_a_vector_and_a_text_goes_with_all_of_them(embedder: engine.Model, picture: Path):
    each = vectors_of("-m", embedder.name, "--image", str(picture), "--image", str(picture))
    np.testing.assert_allclose(each, np.repeat(embedder.embed({"image": picture}), 2, axis=0), atol=1e-6)
    both = vectors_of("-m", embedder.name, "a text", "--image", str(picture))
    np.testing.assert_allclose(both, embedder.embed({"text": "a text", "image": picture}), atol=1e-6)


def test_an_image_beside_several_texts_is_wrong_usage(embedder: engine.Model, picture: Path):
    found = CliRunner().invoke(app, ["embed", "-m", embedder.name, "a", "b", "--image", str(picture)])
    assert found.exit_code == 2


def test_a_prompt_with_an_image_is_a_conversation(dense: engine.Model, picture: Path):
    arguments = ["generate", "What is it?", "-m", str(dense.name), "--image", str(picture), "--dtype", "float32"]
    found = CliRunner().invoke(app, [*arguments, "--max-tokens", "8", "--json"])
    assert found.exit_code == 0, found.output
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    made: Any = dense.generate([{"role": "user", "content": content}], max_tokens=8)
    assert json.loads(found.stdout)["text"] == made.text


def test_an_image_beside_several_prompts_is_wrong_usage(dense: engine.Model, picture: Path, tmp_path: Path):
    several = tmp_path / "prompts.jsonl"
    several.write_text('"a"\n"b"\n')
    arguments = ["generate", "-i", str(several), "-m", str(dense.name), "--image", str(picture)]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_chat_begins_with_its_images_and_remembers_them(dense: engine.Model, picture: Path):
    arguments = ["chat", "-m", str(dense.name), "--image", str(picture), "--dtype", "float32", "--temperature", "0"]
    said = CliRunner().invoke(app, [*arguments, "--max-tokens", "6"], input="What is it?\nAnd then?\n")
    assert said.exit_code == 0, said.output
    first = {"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": list(first)}]
    for question in ("And then?", ""):
        made: Any = dense.generate(messages, max_tokens=6)
        assert f"{made.text}\n" in said.stdout
        answer = made.text.rpartition("</think>")[2].lstrip("\n")
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
