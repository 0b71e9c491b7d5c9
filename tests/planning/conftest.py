"""A small chooser, so that planning is tested without the attention room, and specs of known models."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from archport.attention import Chooser, builtin_backends
from archport.contract import ArchSpec, AttentionCall, AttentionPath, DeviceFacts, InputError, Price


@dataclass(frozen=True)
class OneCall:
    """One call: nothing above its inputs for heads up to 128, the whole score matrix beyond."""

    name = "one"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        return ["D of q and v differ"] if call.head_dim != call.v_head_dim else []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        fused = call.head_dim <= 128 and device.kind != "cpu"
        scratch = 0 if fused else call.score_bytes
        flops = 2.0 * call.B * call.n_heads * call.q_len * call.kv_len * (call.head_dim + call.v_head_dim)
        flops /= 2 if call.mask == "causal" and call.q_len == call.kv_len else 1
        seconds = flops / device.flops[call.dtype]
        return Price(
            transient=scratch,
            output=call.output_bytes,
            largest_buffer=max(scratch, call.output_bytes),
            flops=flops,
            dispatch_flops=flops,
            seconds=seconds,
            dispatch_seconds=seconds,
            route="fused" if fused else "composite",
        )


@dataclass(frozen=True)
class Tiles:
    """Query tiles that keep the call's limits, evaluated one by one."""

    name = "tiles"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        return ["one query has no tiles"] if call.q_len == 1 else []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        per_row = call.B * call.n_heads * call.kv_len * call.itemsize
        row_flops = 2.0 * call.B * call.n_heads * call.kv_len * (call.head_dim + call.v_head_dim)
        rows = min(call.q_len, max(1, call.limits.transient_on(device) // per_row))
        bound = call.limits.seconds_on(device)
        if bound is not None:
            rows = max(1, min(rows, int(bound * device.flops[call.dtype] / row_flops)))
        flops = row_flops * call.q_len
        return Price(
            transient=rows * per_row,
            output=call.output_bytes,
            largest_buffer=max(rows * per_row, call.output_bytes),
            flops=flops,
            dispatch_flops=rows * row_flops,
            q_tile=rows,
            evaluations=-(-call.q_len // rows),
            seconds=1.1 * flops / device.flops[call.dtype],
            dispatch_seconds=rows * row_flops / device.flops[call.dtype],
            route="composite",
        )


BACKENDS = (OneCall(), Tiles())


@pytest.fixture(scope="session")
def choose():
    def chooser(call: AttentionCall, device: DeviceFacts, pin: str | None = None) -> AttentionPath:
        against: dict[str, str] = {}
        found = []
        for backend in BACKENDS:
            if pin is not None and backend.name != pin:
                against[backend.name] = f"{pin} is pinned"
                continue
            reasons = backend.reasons_against(call, device)
            if reasons:
                against[backend.name] = "; ".join(reasons)
                continue
            price = backend.price(call, device)
            found.append((price.excess(call, device), backend, price))
        if not found:
            raise InputError(f"no backend accepts the call: {against}")
        fitting = [entry for entry in found if not entry[0]]
        best = min(fitting, key=lambda entry: entry[2].seconds) if fitting else min(found, key=lambda e: e[2].transient)
        for excess, backend, _ in found:
            if backend is not best[1]:
                against[backend.name] = excess or "slower"
        return AttentionPath(call=call, backend=best[1], price=best[2], against=tuple(against.items()), excess=best[0])

    return chooser


@pytest.fixture(scope="session")
def real_choose() -> Chooser:
    """The chooser that the engine hands to the planner, with the built-in backends."""
    return Chooser(tuple(builtin_backends()))


@pytest.fixture(scope="session")
def goldens() -> ModuleType:
    """The script that freezes plans."""
    return _module("goldens")


@pytest.fixture(scope="session")
def metal_pool() -> ModuleType:
    return _module("metal_pool")


@pytest.fixture(scope="session")
def drawn() -> ModuleType:
    """Random requests."""
    return _module("drawn")


@pytest.fixture(scope="session")
def models() -> dict[str, ArchSpec]:
    """The models that plans are tested with."""
    return _module("models").models()


@pytest.fixture(scope="session")
def qwen3_06b(models: dict[str, ArchSpec]) -> ArchSpec:
    return models["qwen3_06b"]


@pytest.fixture(scope="session")
def hybrid_27b(models: dict[str, ArchSpec]) -> ArchSpec:
    return models["hybrid_27b"]


@pytest.fixture(scope="session")
def windowed(models: dict[str, ArchSpec]) -> ArchSpec:
    return models["windowed"]


@pytest.fixture(scope="session")
def bert(models: dict[str, ArchSpec]) -> ArchSpec:
    return models["bert"]


def _module(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"planning_{name}", Path(__file__).parent / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # A dataclass looks its own module up.
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module
