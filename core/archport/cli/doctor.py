"""`archport doctor`: what this machine is, what archport found on it, and what is slow or wrong and how to mend it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import archport
from archport.contract.plugins import discover

if TYPE_CHECKING:
    from archport.device.memory import ProcessMemory


def doctor() -> None:
    """Check Python, MLX, device, memory, BLAS, plugins and the hub cache. Exit code 1 when something is wrong."""
    facts, faults = examine()
    for name, value in facts:
        typer.echo(f"{name:<10} {value}")
    for fault in faults:
        typer.echo(f"! {fault}")
    if not faults:
        typer.echo("nothing is wrong")
    raise typer.Exit(1 if faults else 0)


def examine() -> tuple[list[tuple[str, str]], list[str]]:
    """Facts as (name, value), and faults, each with its mend."""
    import mlx.core as mx
    from huggingface_hub import constants

    from archport.device import tf32
    from archport.device.blas import status
    from archport.device.facts import this_device
    from archport.device.memory import process_memory
    from archport.device.sizes import format_bytes

    device, blas = this_device(), status()
    faults: list[str] = []
    if blas.advice:
        faults.append(blas.advice)
    plugins = discover()
    faults += [f"plugin {plugin.label} did not load: {plugin.error}" for plugin in plugins if plugin.error]
    if not plugins:
        faults.append("no plugin is found: reinstall archport, or check ARCHPORT_PLUGINS")
    cache = Path(constants.HF_HUB_CACHE)
    if cache.exists() and not os.access(cache, os.W_OK):
        faults.append(f"the hub cache {cache} is not writable: set HF_HOME to a folder that is")
    offline = ", offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    facts = [
        ("archport", archport.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"),
        ("mlx", f"{version('mlx')}, default device {mx.default_device()}"),
        ("device", f"{device.name} ({device.kind}, {device.architecture})"),
        ("memory", f"{format_bytes(device.total_memory)} usable, budget {format_bytes(device.default_budget)}"),
        ("in use", _in_use(process_memory())),
        ("float32", _float32(tf32.in_use(), tf32.wanted())),
        ("BLAS", f"{blas.kind}{f' ({blas.path})' if blas.path else ''}"),
        ("plugins", ", ".join(plugin.label for plugin in plugins if not plugin.error) or "none"),
        ("hub", f"{os.environ.get('HF_ENDPOINT', 'default endpoint')}{offline}, cache {cache}"),
    ]
    return facts, faults


def _float32(rounded: bool, wanted: bool) -> str:
    """What products of float32 are on this device, in words."""
    if rounded:
        return "products rounded to TF32" + (" (MLX_ENABLE_TF32=1)" if wanted else "")
    return "products in full precision"


def _in_use(memory: ProcessMemory) -> str:
    """What this process holds, in words: nothing of a model, because none is loaded."""
    from archport.device.sizes import format_bytes

    parts = {"active": memory.active, "pool": memory.pool, "host": memory.host, "device": memory.device}
    told = [f"{name} {format_bytes(count)}" for name, count in parts.items() if count is not None]
    limit = "MLX's own limit" if memory.pool_limit is None else f"limit {format_bytes(memory.pool_limit)}"
    return f"{', '.join(told)}; pool of freed buffers: {limit} until a plan runs"
