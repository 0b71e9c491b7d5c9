"""`--adapters` and `--task`: each command answers as the library does by the same adapter, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from archport import engine
from archport.bulk import read
from archport.cli.commands import app
from archport.contract import InputError

from .processes import Ended, in_this_process

GOLDENS = Path(__file__).parents[1] / "goldens"
BASE, ADAPTER = str(GOLDENS / "bert-plain"), str(GOLDENS / "adapters" / "bert-patterns")
WRITES, WRITER = str(GOLDENS / "qwen3-causal-sharded"), str(GOLDENS / "adapters" / "qwen3")
RERANKER = str(GOLDENS / "qwen3-reranker")
TEXTS = ["A cat sat on the mat.", "to hack", "The server blew past the 5K reserve buffer."]
# What each command needs besides its adapters.
COMMANDS = {
    "embed": ["a", "-m", BASE],
    "rerank": ["a", "-q", "b", "-m", BASE],
    "generate": ["a", "-m", WRITES],
    "chat": ["-m", WRITES],
    "batch": ["rows.txt", "-o", "out", "-m", BASE],
    "similar": ["out", "-c", "a"],
    "plan": ["-m", BASE],
    "info": ["-m", BASE],
    "serve": ["-m", BASE],
}


def run(*arguments: str, stdin: str = "") -> Any:
    done = CliRunner().invoke(app, arguments, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of the reranker."""
    folder = tmp_path_factory.mktemp("tasks") / "ranker"
    folder.mkdir()
    config = json.loads((Path(WRITER) / "adapter_config.json").read_text())
    plain = {key: config[key] for key in ("peft_type", "lora_alpha")}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, "r": 4, "target_modules": ["o_proj"]}))
    tensors = engine.describe(RERANKER).checkpoint.tensors
    out, inner = next(info.shape for name, info in tensors.items() if name.endswith("layers.0.self_attn.o_proj.weight"))
    path = "base_model.model.model.layers.0.self_attn.o_proj.lora"
    factors = {
        "A": mx.random.normal((4, inner), key=mx.random.key(1)),
        "B": mx.random.normal((out, 4), key=mx.random.key(2)),
    }
    mx.save_safetensors(
        str(folder / "adapter_model.safetensors"), {f"{path}_{factor}.weight": it for factor, it in factors.items()}
    )
    return str(folder)


def test_embed_runs_the_adapter_of_a_task():
    given = ("embed", *TEXTS, "-m", BASE, "--adapters", f"one={ADAPTER}", "--format", "json")
    model = engine.load(BASE, adapters={"one": ADAPTER})
    for flags, task in ((("--task", "one"), "one"), ((), None)):
        found = np.array(json.loads(run(*given, *flags).stdout))
        np.testing.assert_allclose(found, model.embed(TEXTS, task=task), atol=1e-6)


def test_rerank_runs_the_adapter_of_a_task(ranker: str):
    given = ("rerank", "-q", "a cat", *TEXTS, "-m", RERANKER, "--adapters", f"one={ranker}", "--json")
    model = engine.load(RERANKER, adapters={"one": ranker})
    scores: list[list[float]] = []
    for flags, task in ((("--task", "one"), "one"), ((), None)):
        ranked = json.loads(run(*given, *flags).stdout)
        wanted = model.rerank("a cat", TEXTS, task=task)
        assert [each["index"] for each in ranked] == [each.index for each in wanted]
        scores.append([each["score"] for each in ranked])
        np.testing.assert_allclose(scores[-1], [each.score for each in wanted], atol=1e-6)
    assert scores[0] != scores[1]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_text_is_written_by_the_adapter_of_a_task(command: str, tmp_path: Path):
    base = shutil.copytree(WRITES, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt = "The server blew past the reserve"
    asked: Any = prompt if command == "generate" else [{"role": "user", "content": prompt}]
    given = [command, "-m", str(base), "--adapters", f"one={WRITER}", "--max-tokens", "8", "--temperature", "0"]
    given += [prompt] if command == "generate" else []
    model = engine.load(base, adapters={"one": WRITER})
    texts: list[str] = []
    for flags, task in ((["--task", "one"], "one"), ([], None)):
        texts.append(run(*given, *flags, stdin=f"{prompt}\n").stdout)
        assert texts[-1] == f"{model.generate(asked, max_tokens=8, task=task).text}\n"
    assert texts[0] != texts[1]


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))

    def ran(*arguments: str) -> Ended:
        given = [str(tmp_path / "rows.txt"), "-o", str(tmp_path / "out"), "-m", BASE, "--output-format", "jsonl"]
        return in_this_process(monkeypatch, "batch", *given, *arguments)

    return ran


def test_a_job_keeps_its_task_and_similar_reads_queries_by_it(batch, tmp_path: Path):
    apart = ("--adapters", f"one={ADAPTER}", "--adapters", f"two={ADAPTER}")
    ended = batch(*apart, "--task", "one")
    assert ended.code == 0, ended.err
    model = engine.load(BASE, adapters={"one": ADAPTER})
    found = [np.asarray(vector) for stored in read(tmp_path / "out") for _, vector in stored.rows()]
    wanted = model.embed(TEXTS, task="one")
    np.testing.assert_allclose(np.stack(found), wanted, atol=1e-5)
    for flags, task in (((), "one"), (("-m", BASE, "--adapters", f"one={ADAPTER}"), "one")):
        near = json.loads(run("similar", str(tmp_path / "out"), "-c", "a cat", *flags, "--json").stdout)
        scores = model.similarity(model.encode_query("a cat", task=task), wanted)[0]
        np.testing.assert_allclose([each["score"] for each in near], np.sort(scores)[::-1], atol=1e-5)
    other = batch(*apart, "--task", "two", "--resume")
    assert other.code != 0
    assert "task was 'one' and is 'two'" in other.err
    # Of this name, with other files.
    changed = shutil.copytree(ADAPTER, tmp_path / "changed")
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 64}))
    ended = batch("--adapters", f"one={changed}", "--task", "one", "--resume")
    assert ended.code != 0
    assert "weights was" in ended.err
    assert batch("--adapters", f"one={ADAPTER}", "--task", "one", "--resume").code == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--adapters", "one"], "--adapters 'one'; expected NAME=FOLDER or NAME=ID, such as search=me/lora"),
        (["--adapters", "=place"], "--adapters '=place'; expected NAME=FOLDER or NAME=ID"),
        (["--adapters", "one="], "--adapters 'one='; expected NAME=FOLDER or NAME=ID"),
        (["--adapters", "one=a", "--adapters", "one=b"], "--adapters 'one=b': 'one' is 'a' already; give each"),
        (
            ["--adapters", "one=a", "--adapter", "b"],
            "--adapter 'b' is merged into the weights that --adapters run",
        ),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_adapters_that_are_no_pairs_are_wrong_usage(command: str, given: list[str], message: str):
    done = run(command, *COMMANDS[command], *given)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "command", ["embed", "rerank", "generate", "chat", pytest.param("batch", marks=pytest.mark.needs("pyarrow"))]
)
@pytest.mark.parametrize("apart", [True, False])
def test_a_task_that_there_is_not_is_wrong_usage(monkeypatch, tmp_path: Path, ranker: str, command: str, apart: bool):
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("a")
    own = {"rerank": ["a", "-q", "b", "-m", RERANKER]}.get(command, COMMANDS[command])
    place = {"rerank": ranker, "generate": WRITER, "chat": WRITER}.get(command, ADAPTER)
    more = ["--adapters", f"one={place}"] if apart else []
    done = in_this_process(monkeypatch, command, *own, *more, "--task", "two", stdin=b"hello\n")
    assert done.code == 2, done.err
    expected = "expected one of one" if apart else "it has none; name some with --adapters where it is loaded"
    assert f"archport: --task two of {own[own.index('-m') + 1]}; {expected}" in done.err


def test_adapters_of_a_config_alone_are_refused():
    config = str(GOLDENS.parent / "planning" / "data" / "qwen3_embedding_06b.json")
    with pytest.raises(InputError, match=r"adapters=one: .*has no weights that it could belong to"):
        run("plan", "-m", config, "--tokens", "8", "--adapters", f"one={ADAPTER}")


def test_a_server_of_several_models_takes_no_adapters():
    several = ("serve", "-m", f"a={BASE}", "-m", f"b={BASE}")
    for flag, value in (("--adapters", f"one={ADAPTER}"), ("--adapter", ADAPTER)):
        done = run(*several, flag, value)
        assert done.exit_code == 2
        assert f"{flag} belong" in done.stderr
        assert "to one --model; serve an adapter by its own name: -m ID=ADAPTER" in " ".join(done.stderr.split())
