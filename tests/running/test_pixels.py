"""Pictures are decoded ahead on threads, and only as many at once as a bound of bytes holds."""

import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from archport.contract import AttentionLayer, Measured, Picture, VisionTower
from archport.planning import VisionStep
from archport.running import pixels
from archport.running.pixels import DECODING, Pixels, with_host_bytes

MB = 1 << 20


@dataclass
class Slow:
    """A reader that counts the bytes of what it decodes at once."""

    normalisation = ((0.5,) * 3, (0.5,) * 3)
    taken: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def measure(self, *_: object) -> Measured:
        raise AssertionError("nothing is measured here")

    def decode(self, picture: Picture) -> np.ndarray:
        with self.lock:
            self.taken += picture.decoding
            self.most = max(self.most, self.taken)
        time.sleep(0.01)
        with self.lock:
            self.taken -= picture.decoding
        if picture.source == "damaged":
            raise ValueError("damaged")
        return np.zeros((4, 12), np.uint8)


def shown(sizes: list[int]) -> list[Picture]:
    return [Picture(0, 1, (2, 2), "whole", decoding=size) for size in sizes]


def step(count: int) -> VisionStep:
    return VisionStep(tuple(range(count)), (4,) * count, 4, (), 4)


@pytest.mark.parametrize("sizes", [[100 * MB] * 8, [200 * MB, 100 * MB] * 4, [400 * MB, 50 * MB, 300 * MB], [0] * 5])
def test_pictures_decoded_at_once_stay_within_the_bound_or_are_alone(monkeypatch: pytest.MonkeyPatch, sizes: list[int]):
    monkeypatch.setattr(pixels, "cores", lambda: 8)
    reader, pictures, whole = Slow(), shown(sizes), step(len(sizes))
    ahead = Pixels(reader)
    ahead.ahead([([whole], pictures)])
    assert ahead.of(whole, pictures).shape == (len(sizes), 4, 12)
    ahead.close()
    assert reader.most <= max(DECODING, *sizes)
    assert reader.most >= max(sizes)


def test_a_picture_that_fails_gives_its_turn_to_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels, "cores", lambda: 4)
    pictures = [replace(each, source="damaged") for each in shown([300 * MB] * 3)] + shown([300 * MB])
    ahead = Pixels(Slow())
    with pytest.raises(ValueError, match="damaged"):
        ahead.of(step(4), pictures)
    last = replace(step(1), pictures=(3,))
    assert ahead.of(last, pictures).shape == (1, 4, 12)
    ahead.close()


def test_a_plan_names_the_host_bytes_of_its_pictures():
    from archport.attention import Chooser, TableRoutes, builtin_backends
    from archport.contract import ArchSpec
    from archport.device.profiles import profile
    from archport.testing.plans import plan_of

    block = AttentionLayer("bidirectional", n_heads=2, n_kv_heads=2, head_dim=16)
    spec = ArchSpec(
        arch="toy",
        tasks=("embed",),
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        max_positions=4096,
        dtype="float32",
        layers=(AttentionLayer("causal", n_heads=2, n_kv_heads=2, head_dim=16),),
        vision=VisionTower(layers=(block,), hidden_size=32, intermediate_size=64, patch_size=8, merge_size=2, taps=0),
    )
    rows = [Measured(np.zeros(200, np.int32), tuple(shown([40 * MB] * n))) for n in (1, 3, 0)]
    plan = plan_of(
        spec,
        [200] * 3,
        device=profile("h200"),
        choose=Chooser(builtin_backends(TableRoutes(), [])),
        images=[[picture.patches for picture in row.pictures] for row in rows],
    )
    assert plan.host_bytes == 0
    assert "host memory" not in plan.explain()
    named = with_host_bytes(plan, rows, spec.vision)
    assert (named.peak, named.bytes) == (plan.peak, plan.bytes)
    assert 160 * MB < named.host_bytes < 161 * MB
    assert "host memory for pictures and video, apart from the peak: 167" in named.explain()
    assert named.to_dict()["host_bytes"] == named.host_bytes
    assert with_host_bytes(plan, (), spec.vision) is plan
