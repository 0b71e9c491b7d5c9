"""The recorded tiny checkpoints as models, and their cases as inputs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import archport  # noqa: F401  (before mlx)
from archport import engine
from archport.contract import Measured

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
SYSTEM = "Represent the user's input."
PAD = re.compile(r"(<\|vision_start\|><\|(?:image|video)_pad\|><\|vision_end\|>)")


class Golden:
    """A recorded checkpoint: its folder, arrays and notes."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDENS / name
        self.arrays = np.load(self.folder / "golden.npz")
        self.notes = json.loads((self.folder / "golden.json").read_text())
        self.cases: list[str] = list(self.notes["cases"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def messages(self, case: str) -> list[dict[str, Any]]:
        """The conversation that a case recorded."""
        prompt, used = self.notes["cases"][case]
        parts, waiting = [], iter(used)
        for piece in PAD.split(prompt):
            if "image_pad" in piece:
                parts.append({"type": "image", "image": self[f"image_{next(waiting)}"]})
            elif "video_pad" in piece:
                next(waiting)
                # Every frame is taken, as the recording did.
                parts.append({"type": "video", "video": self["video"], "fps": self.notes["fps"], "sample_fps": 100.0})
            elif piece:
                parts.append({"type": "text", "text": piece})
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]


@cache
def golden_of(name: str) -> Golden:
    return Golden(name)


@cache
def model_of(name: str) -> engine.Model:
    return engine.load(GOLDENS / name, dtype="float32")


@pytest.fixture(params=["qwen3-vl", "qwen3-vl-moe"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return golden_of(request.param)


@pytest.fixture
def goldens() -> dict[str, Golden]:
    return {name: golden_of(name) for name in ("qwen3-vl", "qwen3-vl-moe")}


@pytest.fixture
def sparse() -> Golden:
    return golden_of("qwen3-vl-moe")


@pytest.fixture
def model(golden: Golden) -> engine.Model:
    return model_of(golden.folder.name)


@pytest.fixture
def dense() -> engine.Model:
    return model_of("qwen3-vl")


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> engine.Model:
    """The dense checkpoint under the name of an embedder, which is how the family tells them apart."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-VL-Embedding"
    shutil.copytree(GOLDENS / "qwen3-vl", folder, ignore=shutil.ignore_patterns("golden*"))
    return engine.load(folder, dtype="float32")


@pytest.fixture
def run() -> Callable[..., tuple[np.ndarray, Any]]:
    return hidden_of


def hidden_of(model: engine.Model, item: object, **planned: Any) -> tuple[np.ndarray, Any]:
    """Hidden states (L, D) of one input, measured or not, as planned, and what the tower saw of it."""
    from archport.device.evaluation import Stretches
    from archport.reading.texts import Tokens
    from archport.running.steps import batch_caches, run_steps

    encoder, tokeniser, stretches = model._runtime.encoder, model._runtime.tokeniser, Stretches()
    ready = isinstance(item, Measured)
    tokens = Tokens((item.ids,), measured=(item,)) if ready else tokeniser([item])
    plan = plan_of(model, tokens, **planned)
    (batch,) = plan.batches
    with encoder.sight(tokeniser.inputs.reader, stretches) as sight:
        assert sight is not None
        visual = sight.look(plan, batch, tokens.measured)
        caches = batch_caches(model.spec, plan, batch)
        steps = run_steps(encoder.trunk, plan, batch, tokens.ids, caches, stretches, visual)
        hidden = [np.array(hidden[0].astype(mx.float32)) for _, hidden in steps]
    return np.concatenate(hidden)[: len(tokens.ids[0])], visual


def plan_of(model: engine.Model, tokens: Any, **planned: Any) -> Any:
    """The plan of measured inputs, with wishes that a model does not offer."""
    from archport.testing.plans import planned as plan

    return plan(model._runtime.encoder.plan, tokens.lengths, images=tokens.images, **planned)
