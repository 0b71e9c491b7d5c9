"""Texts of a given form: valid whenever they end by themselves, whatever the schema, the seed and the neighbours."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"


def schema(chance, depth=0):
    """A random JSON schema whose values are bounded."""
    kinds = ["boolean", "null", "integer", "enum", "string", "const"] + (
        ["object", "array", "anyOf"] if depth < 2 else []
    )
    kind = chance.choice(kinds) if depth else "object"
    if kind == "integer":
        return {"type": "integer", "minimum": chance.randrange(-50, 0), "maximum": chance.randrange(1, 1000)}
    if kind == "enum":
        return {"enum": chance.sample(["red", "green", 3, None, True, "a b"], 3)}
    if kind == "const":
        return {"const": chance.choice(["fixed", 7, False])}
    if kind == "string":
        return chance.choice([{"type": "string", "maxLength": 8}, {"type": "string", "pattern": "^[a-c]{1,4}$"}])
    if kind == "array":
        return {"type": "array", "items": schema(chance, depth + 1), "minItems": chance.randrange(2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [schema(chance, depth + 1), {"type": "null"}]}
    if kind == "object":
        names = chance.sample(["a", "name", "deep", "x_y", "kind"], chance.randrange(1, 4))
        return {
            "type": "object", "properties": {name: schema(chance, depth + 1) for name in names},
            "required": names, "additionalProperties": False,
        }  # fmt: skip
    return {"type": kind}


def valid(value, form):
    """Whether a value is what one of these schemas says."""
    if "enum" in form:
        return any(value == each and type(value) is type(each) for each in form["enum"])
    if "const" in form:
        return value == form["const"] and type(value) is type(form["const"])
    if "anyOf" in form:
        return any(valid(value, each) for each in form["anyOf"])
    match form["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and form["minimum"] <= value <= form["maximum"]
        case "string":
            fits = isinstance(value, str) and len(value) <= form.get("maxLength", 99)
            return fits and re.search(form.get("pattern", ""), value) is not None
        case "array":
            return form["minItems"] <= len(value) <= 3 and all(valid(each, form["items"]) for each in value)
    return set(value) == set(form["properties"]) and all(
        valid(value[key], each) for key, each in form["properties"].items()
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structured") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    return engine.load(folder, dtype="float32")


def run(make, model, seeds):
    """(texts that ended by themselves, those of them that have not their form, all) of random schemas, all at once."""
    from archport.serving.models import served_model

    serving = make()
    serving.state.registry.add(served_model("tiny", model, {}, held=lambda: serving.state.device.reserved))
    forms = [schema(random.Random(seed)) for seed in seeds]

    async def ask():
        async with serving.client() as client:
            return await asyncio.gather(
                *(
                    client.post(
                        "/v1/chat/completions",
                        json={
                            "messages": [{"role": "user", "content": f"say {seed}"}], "max_tokens": 400, "seed": seed,
                            "temperature": [0, 1.0][seed % 2],
                            "response_format": {"type": "json_schema", "json_schema": {"schema": form}},
                        },
                        timeout=300,
                    )
                    for seed, form in zip(seeds, forms, strict=True)
                )
            )  # fmt: skip

    ended, wrong = 0, []
    for response, form in zip(asyncio.run(ask()), forms, strict=True):
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        if choice["finish_reason"] == "stop":
            ended += 1
            if not valid(json.loads(choice["message"]["content"]), form):
                wrong.append((form, choice["message"]["content"]))
    return ended, wrong, len(forms)


@pytest.mark.needs("llguidance")
def test_texts_have_the_schemas_that_were_asked_for(make, model):
    ended, wrong, count = run(make, model, range(8))
    assert wrong == []
    assert ended >= 0.9 * count


@pytest.mark.needs("llguidance")
@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_object"}}}),
        ("/api/chat", {"format": "json", "stream": False}),
        ("/api/generate", {"prompt": "a", "format": {"type": "object"}}),
    ],
)
def test_a_tokenizer_that_grammars_can_not_read_is_told_as_an_unsupported_operation(
    make, model, tmp_path, decoder, path, body
):
    from archport.serving.models import served_model

    shutil.copytree(model.checkpoint.folder, tmp_path / "odd")
    stated = json.loads((tmp_path / "odd" / "tokenizer.json").read_text())
    (tmp_path / "odd" / "tokenizer.json").write_text(json.dumps({**stated, "decoder": decoder}))
    (tmp_path / "odd" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    serving = make()
    odd = engine.load(tmp_path / "odd", dtype="float32")
    serving.state.registry.add(served_model("odd", odd, {}, held=lambda: serving.state.device.reserved))
    said = serving.ask(path, {"model": "odd", "messages": [{"role": "user", "content": "a"}], **body})
    assert said.status_code == 400
    assert "llguidance can't read this model's tokenizer" in said.text
    assert "decoder" in said.text


@pytest.mark.truth
def test_texts_of_forty_schemas_have_them_and_nine_of_ten_end(make, model):
    ended, wrong, count = run(make, model, range(100, 140))
    assert wrong == []
    assert ended >= 0.9 * count
