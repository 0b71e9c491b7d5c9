"""`archport plan` as a user meets it: from a config without weights, for machines nobody here owns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from archport import engine
from archport.cli.described import described
from archport.cli.info import gather
from archport.cli.plan import device_of, plan
from archport.contract import BufferTooLarge, ContextLengthExceeded, InputError

HERE = Path(__file__).parent
GOLDENS = HERE.parent / "goldens"
QWEN = str(HERE.parent / "planning" / "data" / "qwen3_embedding_06b.json")
BERT = str(GOLDENS / "bert-plain")


@pytest.fixture(scope="module")
def invoke():
    app = typer.Typer()
    app.command()(plan)
    return lambda *arguments: CliRunner().invoke(app, arguments)


ROWS = ("-m", QWEN, "--tokens", "32768", "--batch", "32", "--device", "m2-ultra-128gb")


def test_a_config_alone_is_planned_for_another_machine(invoke):
    done = invoke(*ROWS, "--verbose")
    assert done.exit_code == 0, done.output
    for word in ("m2-ultra-128gb (profile)", "weights", "█", "activations", "causal", "not composite", "budget"):
        assert word in done.output


def test_a_plan_says_in_short_why_its_batches_are_as_they_are(invoke):
    done = invoke(*ROWS)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("qwen3, embed, bfloat16, on m2-ultra-128gb (profile): ")
    for start in ("  rows: ", "  prefill chunk: ", "  evaluated ", "  28 x causal", "    path: fused"):
        assert any(line.startswith(start) for line in lines), start
    assert len(lines) <= 8 + 4 * sum(line.startswith("batch") for line in lines)


def test_json_holds_the_same_plan(invoke):
    read = json.loads(invoke(*ROWS, "--json").output)
    assert read["peak"] == sum(read["bytes"].values()) <= read["budget"]
    assert sum(batch["rows"] for batch in read["batches"]) == 32


def test_a_dense_mask_is_refused_with_both_numbers(invoke):
    done = invoke(*ROWS, "--mask", "dense")
    assert isinstance(done.exception, BufferTooLarge)
    assert "137,438,953,472" in str(done.exception)
    assert "86,586,540,032" in str(done.exception)


def test_a_refusal_in_json_keeps_its_numbers_and_its_exit_code(invoke):
    done = invoke(*ROWS, "--mask", "dense", "--json")
    assert done.exit_code == 4
    assert json.loads(done.output)["required_bytes"] == 137_438_953_472


def test_cached_new_and_budget_reach_the_plan(invoke):
    arguments = ("-m", QWEN, "--tokens", "1000", "--cached", "9000", "--new", "24", "--device", "h200")
    read = json.loads(invoke(*arguments, "--budget", "16GB", "--json").output)
    assert read["mode"] == "generate"
    assert read["budget"] == 16 * 10**9
    assert read["batches"][0]["cached"] == 9000
    assert read["batches"][0]["new_tokens"] == 24


def test_a_checkpoint_on_this_machine_is_planned_with_its_own_bytes(invoke):
    done = invoke("-m", BERT, "--tokens", "32", "--json")
    assert done.exit_code == 0, done.output
    read = json.loads(done.output)
    assert not read["device"]["simulated"]
    assert not any("estimated" in note for note in read["notes"])


def test_an_unknown_mask_is_named(invoke):
    assert isinstance(invoke(*ROWS, "--mask", "sparse").exception, InputError)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 512 positions whose pipeline takes 100 tokens of a text."""
    folder = tmp_path_factory.mktemp("plans") / "limited"
    shutil.copytree(GOLDENS / "bert-plain", folder)
    shutil.copytree(folder / "pipelines" / "mean", folder, dirs_exist_ok=True)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))
    return str(folder)


def test_a_text_beyond_the_pipeline_s_limit_is_refused_as_where_it_is_loaded(limited: str, invoke):
    assert invoke("-m", limited, "--tokens", "100").exit_code == 0
    message = "context of 101 tokens, but the limit is 100; shorten the input, or raise max_context"
    for refused in (lambda: invoke("-m", limited, "--tokens", "101").exception, lambda: _refusal(limited)):
        assert isinstance(refused(), ContextLengthExceeded)
        assert message in str(refused())


def _refusal(folder: str) -> Exception:
    with pytest.raises(ContextLengthExceeded) as caught:
        engine.load(folder).plan([101])
    return caught.value


def test_a_limit_that_was_asked_for_takes_the_place_of_the_pipeline_s(limited: str, invoke):
    assert invoke("-m", limited, "--tokens", "200", "--max-context", "200").exit_code == 0
    assert isinstance(invoke("-m", limited, "--tokens", "60", "--max-context", "50").exception, ContextLengthExceeded)
    for model in (limited, QWEN):
        beyond = invoke("-m", model, "--tokens", "1", "--max-context", "99999").exception
        assert "is above the" in str(beyond)


def test_what_fits_ends_with_the_pipeline_s_limit(limited: str, invoke, tmp_path: Path):
    told = invoke("-m", limited, "--device", "h200").output
    assert "as published 100, " in told
    assert "(the model's limit is 100)" in told
    assert "heaviest weights that fit the whole context: as published" in told
    numbers = json.loads(invoke("-m", limited, "--device", "h200", "--json").output)
    assert numbers["heaviest_that_fits"] == "as published"
    data = json.loads(invoke("-m", limited, "--device", "h200", "--points", "-").output)
    assert (data["contexts"][-1], {form["longest"] for form in data["forms"]}) == (100, {100})


@pytest.mark.parametrize("name", ["pylate", "routed", "qwen3-embed", "bert-plain"])
def test_the_context_of_a_plan_is_the_loaded_model_s(name: str):
    model = engine.load(GOLDENS / name)
    about = described(str(GOLDENS / name), device_of(None))
    assert about.max_context == model._runtime.encoder.plan.max_context
    assert gather(engine.describe(GOLDENS / name))["context"].startswith(f"{model.max_tokens} tokens by default")
