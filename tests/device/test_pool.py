"""MLX's pool of freed buffers follows the plans that run, and what others set is respected."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import mlx.core as mx
import pytest

from archport.device.pool import REMEMBERED, Bound, Pool, wired
from archport.device.profiles import profile

GB = 10**9


class FakeMlx:
    """What the pool asks of MLX, with MLX's answers."""

    def __init__(self, cache: int = 100 * GB) -> None:
        self.cache, self.wired, self.calls = cache, 0, []
        self.memory, self.active = 140 * GB, GB

    def set_cache_limit(self, limit: int) -> int:
        previous, self.cache = self.cache, limit
        return previous

    def set_wired_limit(self, limit: int) -> int:
        previous, self.wired = self.wired, limit
        self.calls.append(limit)
        return previous

    def set_memory_limit(self, limit: int) -> int:
        previous, self.memory = self.memory, limit
        return previous

    def get_memory_limit(self) -> int:
        return self.memory

    def get_active_memory(self) -> int:
        return self.active


def test_the_limit_is_the_largest_need_of_recent_requests():
    mlx = FakeMlx()
    pool = Pool(mlx)
    assert [pool.hold(need, 50 * GB) for need in (GB, 3 * GB, 2 * GB)] == [GB, 3 * GB, 3 * GB]
    for _ in range(REMEMBERED):
        pool.hold(GB, 50 * GB)
    assert mlx.cache == pool.limit == GB


def test_a_request_with_a_tight_budget_leaves_the_pool_no_more_than_its_room():
    mlx = FakeMlx()
    pool = Pool(mlx)
    pool.hold(3 * GB, 50 * GB)
    assert pool.hold(GB, GB // 2) == mlx.cache == GB // 2
    assert pool.hold(GB, -5) == mlx.cache == 0
    assert pool.hold(GB, 50 * GB) == mlx.cache == 3 * GB


def test_a_lower_limit_of_the_user_is_respected_before_and_between_requests():
    mlx = FakeMlx(cache=2 * GB)
    pool = Pool(mlx)
    assert pool.hold(3 * GB, 50 * GB) == mlx.cache == 2 * GB
    assert pool.hold(GB, GB) == GB
    assert pool.hold(3 * GB, 50 * GB) == 2 * GB
    mlx.set_cache_limit(GB)
    assert pool.hold(3 * GB, 50 * GB) == mlx.cache == GB
    assert pool.hold(3 * GB, 50 * GB) == mlx.cache == GB


def test_a_limit_that_the_user_raised_again_counts():
    mlx = FakeMlx(cache=GB)
    pool = Pool(mlx)
    pool.hold(3 * GB, 50 * GB)
    mlx.set_cache_limit(80 * GB)
    assert pool.hold(3 * GB, 50 * GB) == mlx.cache == 3 * GB


def test_threads_do_not_take_each_others_limits_for_the_users():
    mlx = FakeMlx()
    pool = Pool(mlx)

    def run(seed: int) -> None:
        for step in range(500):
            pool.hold((seed * 7 + step) % 11 * 1000 + 1, 10**6)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.hold(10**6, 10**9) == 10**6


def test_mlx_keeps_no_more_freed_bytes_than_the_limit():
    before = mx.set_cache_limit(1 << 30)
    try:
        limit = Pool(mx).hold(10_000_000, 1 << 30)
        for size in range(1, 40):
            mx.eval(mx.zeros((size * 100_000,)) + 1)
        gc.collect()
        # One buffer may come on top: MLX looks at the limit before it takes one back.
        assert mx.get_cache_memory() <= limit + 4 * 4_000_000
        mx.eval(mx.zeros((10,)) + 1)
        assert mx.get_cache_memory() <= limit
    finally:
        mx.set_cache_limit(before)


def test_running_requests_bound_memory_together_and_give_the_usual_limit_back():
    mlx = FakeMlx()
    bound = Bound(mlx)
    first, second = object(), object()
    bound.start(first, 2 * GB)
    assert mlx.memory == 3 * GB
    mlx.active = 2 * GB
    bound.start(second, 5 * GB)
    assert mlx.memory == 8 * GB
    bound.end(first)
    bound.end(second)
    assert mlx.memory == 140 * GB


def test_a_memory_limit_of_the_user_is_neither_raised_nor_lost():
    mlx = FakeMlx()
    bound = Bound(mlx)
    request, other = object(), object()
    bound.start(request, GB)
    mlx.set_memory_limit(3 * GB // 2)
    bound.start(other, 10 * GB)
    assert mlx.memory == 3 * GB // 2
    bound.end(request)
    bound.end(other)
    assert mlx.memory == 3 * GB // 2


def test_a_request_that_ends_twice_ends_nothing_else():
    mlx = FakeMlx()
    bound = Bound(mlx)
    first, second = object(), object()
    bound.start(first, GB)
    bound.start(second, GB)
    bound.end(first)
    bound.end(first)
    assert mlx.memory == 3 * GB
    bound.end(second)
    assert mlx.memory == 140 * GB


M2 = profile("m2-ultra-128gb")


def test_a_running_model_is_wired_on_metal_and_the_limit_given_back():
    mlx = FakeMlx()
    mlx.wired = 5
    with wired(M2, mlx):
        assert mlx.wired == M2.working_set
        with wired(M2, mlx):
            assert mlx.wired == M2.working_set
        assert mlx.wired == M2.working_set
    assert mlx.wired == 5


def test_an_error_gives_the_wired_limit_back():
    mlx = FakeMlx()
    with pytest.raises(KeyboardInterrupt), wired(M2, mlx):
        raise KeyboardInterrupt
    assert mlx.wired == 0


@pytest.mark.parametrize("device", [profile("h200"), profile("cpu"), replace(M2, working_set=None)])
def test_nothing_is_wired_elsewhere(device):
    mlx = FakeMlx()
    with wired(device, mlx):
        pass
    assert not mlx.calls
