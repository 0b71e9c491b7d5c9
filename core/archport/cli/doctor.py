"""`archport doctor`: what this machine is, what archport found on it, and what is slow or wrong and how to mend it.

Every fact is asked for by itself: one that can't be told says why, and the others are printed.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import archport
from archport.contract.errors import ArchportError, BackendMissing

if TYPE_CHECKING:
    from archport.device.memory import ProcessMemory

# The versions that the whole suite last ran with; pyproject.toml allows their neighbours up to the next one that may
# break something.
TESTED = {
    "mlx": "0.32.4",
    "mlx-lm": "0.32.2",
    "pluggy": "1.7.0",
    "safetensors": "0.8.0",
    "huggingface-hub": "2.4.0",
    "tokenizers": "0.23.3",
    "jinja2": "3.1.6",
    "numpy": "2.4.6",
    "typer": "0.29.2",
    "rich": "15.0.0",
    "mkl": "2026.2.0",
    "pillow": "13.0.0",
    "av": "18.1.0",
}
# A fact in words, and faults, each with its mend.
Found = tuple[str, list[str]]


def doctor(
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run kit, probes and a benchmark; write one JSON to attach to an issue."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --report: less of everything, in under a minute.")
    ] = False,
) -> None:
    """Check Python, MLX, device, memory, BLAS, plugins and the hub cache. Exit code 1 when something is wrong."""
    if report is not None:
        _report(report, quick)
        return
    if quick:
        raise typer.BadParameter("it goes with --report", param_hint="--quick")
    facts, faults = examine()
    for name, value in facts:
        typer.echo(f"{name:<10} {value}")
    for fault in faults:
        typer.echo(f"! {fault}")
    if not faults:
        typer.echo("nothing is wrong")
    raise typer.Exit(1 if faults else 0)


def _report(path: Path, quick: bool) -> None:
    """Write a report and say what it holds; interrupted, it keeps what was done."""
    from archport.testing.device_report import QUICK_SECONDS, SECONDS, write_report

    bound = QUICK_SECONDS if quick else SECONDS
    typer.echo(f"this takes about {bound:.0f} s; Ctrl-C ends it and keeps what was done", err=True)
    try:
        written = write_report(path, quick=quick, examine=examine, told=lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        typer.echo(f"{path} holds what was done until then", err=True)
        raise
    for name, part in written["parts"].items():
        typer.echo(f"{name:<10} {part['status']}{': ' + part['error'] if 'error' in part else ''}")
    typer.echo(f"{path} is written: read it, and attach it to an issue")


def examine() -> tuple[list[tuple[str, str]], list[str]]:
    """Facts as (name, value), and faults, each with its mend."""
    facts: list[tuple[str, str]] = []
    faults: list[str] = []
    for name, ask in PROBES.items():
        value, more = _asked(name, ask)
        facts.append((name, value))
        # What several facts lack for one reason is one fault.
        faults += [fault for fault in more if fault not in faults]
    return facts, faults


def _asked(name: str, ask: Callable[[], Found]) -> Found:
    try:
        return ask()
    except BackendMissing as error:
        return "not known: MLX can't run", [str(error)]
    except ArchportError as error:
        return "not known", [str(error)]
    # Whatever is broken here is what the command is called for.
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return f"not known ({said})", [f"{name} can't be asked for: {said}"]


def _archport() -> Found:
    return archport.__version__, []


def _python() -> Found:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}", []


def _mlx() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    from importlib.metadata import version

    import mlx.core as mx

    return f"{version('mlx')}, default device {mx.default_device()}", []


def _device() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    from archport.device.facts import this_device

    device = this_device()
    return f"{device.name} ({device.kind}, {device.architecture})", []


def _memory() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    from archport.contract.sizes import format_bytes
    from archport.device.facts import this_device

    device = this_device()
    return f"{format_bytes(device.total_memory)} usable, budget {format_bytes(device.default_budget)}", []


def _used() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    from archport.device.memory import process_memory

    return _in_use(process_memory()), []


def _float32() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    from archport.device import tf32

    if not tf32.in_use():
        return "products in full precision", []
    if tf32.wanted():
        return f"products rounded to TF32 ({tf32.SWITCH} asks for it)", []
    mend = f"float32 is rounded to TF32 (10 bits) although nobody asks for it: set {tf32.SWITCH}=0 before Python starts"
    return "products rounded to TF32", [mend]


def _headers() -> Found:
    import archport.device.backend  # noqa: F401  # isort: skip
    import mlx.core as mx

    from archport.device import cuda_headers

    if not mx.cuda.is_available():
        return "none needed (no CUDA)", []
    found = cuda_headers.search()
    return f"{found.folder or 'not found'}", [found.advice] if found.advice else []


def _blas() -> Found:
    from archport.device.blas import status

    blas = status()
    return f"{blas.kind}{f' ({blas.path})' if blas.path else ''}", [blas.advice] if blas.advice else []


def _plugins() -> Found:
    from archport.contract.plugins import PREFER, discover, preferred

    plugins = discover()
    faults = [f"plugin {plugin.label} did not load: {plugin.error}" for plugin in plugins if plugin.error]
    unknown = [name for name in preferred() if name not in {plugin.name for plugin in plugins}]
    faults += [f"{PREFER} names {name!r}, which is not installed: mend or unset it" for name in unknown]
    if not plugins:
        faults.append("no plugin is found: reinstall archport, or check ARCHPORT_PLUGINS")
    return ", ".join(plugin.label for plugin in plugins if not plugin.error) or "none", faults


def _hub() -> Found:
    from archport.checkpoint import hub

    # The client can't even be imported with an address that is none.
    address = hub.endpoint() or "default endpoint"
    cache = hub.cache_folder()
    faults: list[str] = []
    if os.path.exists(cache) and not os.access(cache, os.W_OK):
        faults.append(f"the hub cache {cache} is not writable: set HF_HOME to a folder that is")
    offline = ", offline (HF_HUB_OFFLINE is set)" if hub.offline() else ""
    return f"{address}{offline}, cache {cache}", faults


def _libraries() -> Found:
    from importlib.metadata import PackageNotFoundError, version

    told: list[str] = []
    for name, tested in TESTED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        told.append(f"{name} {found}{'' if found == tested else f' (tested with {tested})'}")
    return ", ".join(told), []


PROBES: dict[str, Callable[[], Found]] = {
    "archport": _archport,
    "python": _python,
    "mlx": _mlx,
    "device": _device,
    "memory": _memory,
    "in use": _used,
    "float32": _float32,
    "headers": _headers,
    "BLAS": _blas,
    "libraries": _libraries,
    "plugins": _plugins,
    "hub": _hub,
}


def _in_use(memory: ProcessMemory) -> str:
    """What this process holds, in words: nothing of a model, because none is loaded."""
    from archport.contract.sizes import format_bytes

    parts = {"active": memory.active, "pool": memory.pool, "host": memory.host, "device": memory.device}
    told = [f"{name} {format_bytes(count)}" for name, count in parts.items() if count is not None]
    limit = "MLX's own limit" if memory.pool_limit is None else f"limit {format_bytes(memory.pool_limit)}"
    return f"{', '.join(told)}; pool of freed buffers: {limit} until a plan runs"
