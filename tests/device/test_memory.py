"""What a process holds is told as the machine counts it."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import numpy as np
from tolerances import CPU

from archport import engine
from archport.device.memory import process_memory, resident_bytes

GOLDEN = Path(__file__).parents[1] / "goldens" / "qwen3-tied"


def test_arrays_that_are_held_are_active_and_resident():
    # What other tests left is gone.
    gc.collect()
    mx.synchronize()
    before, resident = process_memory(), resident_bytes()
    held = mx.ones((64, 1 << 20), dtype=mx.float32)
    mx.eval(held)
    after = process_memory()
    # A GPU's last buffers of a few bytes come back a little later.
    assert abs(after.active - before.active - held.nbytes) <= (0 if CPU else 4096)
    assert after.peak >= after.active
    assert resident is not None
    assert after.host is not None
    if after.device is None:
        assert after.host - resident > held.nbytes // 2


def test_a_model_tells_its_weights_its_prefix_cache_and_its_process():
    model = engine.load(GOLDEN)
    weights = model.memory().weights
    assert 0 < weights <= model.memory().process.active
    assert model.memory().prefix_cache == 0
    model.generate([np.arange(2, 40)], max_tokens=4)
    memory = model.memory()
    assert memory.weights == weights
    assert 0 < memory.prefix_cache <= memory.process.active - weights
    assert memory.process.pool_limit is not None
    assert memory.process.pool <= memory.process.pool_limit + 4 * weights
