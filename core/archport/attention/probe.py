"""Which kernel MLX really takes on this machine, asked once per class of calls and remembered on disk.

Asking is free: a lazy call's graph names the primitive, and a lazy call with force_fused raises where no kernel exists.
Nothing is allocated or evaluated. Knows nothing of prices. Simulated devices, and calls MLX can't be asked about, take
the tables of `routes`.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import logging
import os
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archport.attention.local import local_device, mlx_version
from archport.attention.prices import FastCall, Route, Routes, TableRoutes, lacks_threadgroup
from archport.contract.device import DeviceFacts

LOG = logging.getLogger(__name__)

FORMAT = 1
CACHE_VARIABLE = "ARCHPORT_CACHE_DIR"
# Settings of MLX that move a route.
_ENVIRONMENT = ("MLX_ENABLE_TF32", "MLX_SDPA_PAD_HEAD_DIM", "MLX_SDPA_D512_MIN_KL", "MLX_CUDA_USE_CUDNN_SDPA")
ALWAYS_FUSED = FastCall(1, 1, 1, 64, 64, 64, 64, "float16")
_KEY_EDGES = (256, 1024, 4096, 8192)
_QUERY_EDGES = (9, 1024, 2048)
MOST_CLASSES = 4096


def cache_file() -> Path:
    """Where answers are kept: ARCHPORT_CACHE_DIR, or the platform's folder for caches."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        base = Path(named)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "archport"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "archport"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archport"
    return base / "attention-routes.json"


@dataclass(slots=True)
class ProbedRoutes:
    """Routes asked of MLX, corrected by the table where asking is known to mislead.

    Args:
        table: what to fall back to, and which kernel is meant where MLX only says "fused".
        path: the cache file; None takes `cache_file()`.
    """

    table: Routes = field(default_factory=TableRoutes)
    path: Path | None = None
    _known: dict[str, tuple[bool, bool]] | None = field(default=None, init=False, repr=False)
    _unwritten: int = field(default=0, init=False, repr=False)
    # Names of classes, by what they tell of: writing one takes longer than all of a lookup.
    _names: dict[tuple[object, ...], str] = field(default_factory=dict[tuple[object, ...], str], init=False, repr=False)

    def route(self, call: FastCall, device: DeviceFacts) -> Route:
        believed = self.table.route(call, device)
        # MLX has no call with a soft cap to ask about; whether cuDNN decodes depends on evaluated caches; the blocked
        # path looks fused in a graph; and what a threadgroup can't hold is refused only when it runs.
        unknown = call.softcap or believed.kernel == "blocked" or (device.kind == "cuda" and call.q_len == 1)
        unknown = unknown or (device.kind == "metal" and lacks_threadgroup(call))
        if device.simulated or unknown:
            return believed
        answer = self._asked(call, device)
        return believed if answer is None else _agree(call, believed, *answer)

    def _asked(self, call: FastCall, device: DeviceFacts) -> tuple[bool, bool] | None:
        if self._known is None:
            self._known = read(self.path or cache_file())
        key = self._class_of(call, device)
        if key in self._known:
            return self._known[key]
        try:
            answer = ask(call, device)
        except Exception as error:
            LOG.warning("attention probe failed for %s, the table is used: %s", key, error)
            return None
        if answer is not None:
            self._known[key] = answer
            self._keep()
        return answer

    def _class_of(self, call: FastCall, device: DeviceFacts) -> str:
        settings = tuple(os.environ.get(name) for name in _ENVIRONMENT)
        key = (call.sizes, device.kind, device.architecture, settings)
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= MOST_CLASSES:
                self._names.clear()
            name = self._names[key] = class_of(call, device)
        return name

    def _keep(self) -> None:
        """Write the answers once they are an eighth more: the file is written whole, and a new machine asks often."""
        assert self._known is not None, "asked before there are answers"
        if not self._unwritten:
            atexit.register(self.flush)
        self._unwritten += 1
        if 8 * self._unwritten >= len(self._known):
            self.flush()

    def flush(self) -> None:
        """Write the answers that are not in the file yet; at the end of the process whatever is left."""
        if self._unwritten and self._known is not None:
            self._unwritten = 0
            atexit.unregister(self.flush)
            write(self.path or cache_file(), self._known)


def probed_routes() -> ProbedRoutes:
    """The routes that models of this process share: of the cache file that the environment names now."""
    return _of_file(cache_file())


@functools.lru_cache(maxsize=8)
def _of_file(path: Path) -> ProbedRoutes:
    return ProbedRoutes(path=path)


def _agree(call: FastCall, believed: Route, fused: bool, forceable: bool) -> Route:
    """The table's route where it agrees with the answer, else the answer with the likeliest kernel."""
    likely = believed.forced or ("vector_two_pass" if call.q_len <= 8 else "full")
    forced = (believed.forced or likely) if forceable else None
    if fused:
        return Route(believed.kernel if believed.kernel != "composite" else likely, forced)
    why = believed.why or "MLX does not fuse this call here, against the table"
    return Route("composite", forced, why)


@functools.cache
def _system() -> str:
    """The system and its version, which it takes a look at the disk to tell."""
    return f"{sys.platform}:{platform.mac_ver()[0] or platform.release()}"


def class_of(call: FastCall, device: DeviceFacts) -> str:
    """The name of the class of calls that take one route: everything MLX decides on, lengths by their class."""
    group = call.n_heads // call.n_kv_heads
    queries = str(call.q_len) if call.q_len <= 8 else f"class{sum(call.q_len >= edge for edge in _QUERY_EDGES)}"
    keys = f"class{sum(call.kv_len >= edge for edge in _KEY_EDGES)}"
    order = "=" if call.q_len == call.kv_len else "<" if call.q_len < call.kv_len else ">"
    return " ".join(
        (
            f"mlx={mlx_version()}",
            f"device={device.kind}:{device.architecture}",
            f"os={_system()}",
            f"dtype={call.dtype}",
            f"dims={call.head_dim},{call.v_head_dim}",
            f"heads={call.n_heads},{call.n_kv_heads}",
            f"mask={call.form}{'+' if call.form == 'array' and call.additive else ''}",
            f"sinks={int(call.sinks)}",
            f"q={queries}{order}k={keys}",
            f"rows={int(call.q_len * group <= 32)}",
            f"tall={int(call.B * call.n_heads * -(-call.q_len // 32) >= 1024)}",
            *(f"{name}={os.environ[name]}" for name in _ENVIRONMENT if name in os.environ),
        )
    )


def ask(call: FastCall, device: DeviceFacts) -> tuple[bool, bool] | None:
    """(whether a plain call is fused, whether force_fused is accepted); None where this process can't tell.

    It can't when MLX's default device is of another kind, and inside grad, where MLX fuses less and does not say so:
    there, not even a call that every GPU fuses is fused.
    """
    if local_device().kind != device.kind or (device.kind != "cpu" and not _lazy_call(ALWAYS_FUSED)):
        return None
    fused = _lazy_call(call)
    try:
        _lazy_call(call, force_fused=True)
    except (ValueError, TypeError):
        return fused, False
    return fused, True


def _lazy_call(call: FastCall, **options: Any) -> bool:
    """Whether the graph of a call that is never evaluated holds the fused primitive."""
    import mlx.core as mx

    dtype = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[call.dtype]
    q = mx.zeros((call.B, call.n_heads, call.q_len, call.head_dim), dtype)
    k = mx.zeros((call.B, call.n_kv_heads, call.kv_len, call.head_dim), dtype)
    v = mx.zeros((call.B, call.n_kv_heads, call.kv_len, call.v_head_dim), dtype)
    mask: mx.array | str | None = "causal" if call.form == "causal" else None
    if call.form == "array":
        mask = mx.zeros((1, 1, call.q_len, call.kv_len), dtype if call.additive else mx.bool_)
    sinks = mx.zeros((call.n_heads,), dtype) if call.sinks else None
    text = io.StringIO()
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask, sinks=sinks, **options)
    mx.export_to_dot(text, out)
    return "ScaledDotProductAttention" in text.getvalue()


def read(path: Path) -> dict[str, tuple[bool, bool]]:
    """The answers in a cache file; none when it is absent, damaged or of another format."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            return {}
        return {str(key): (bool(fused), bool(forced)) for key, (fused, forced) in held["routes"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        LOG.info("attention routes in %s are not usable and will be asked again: %s", path, error)
        return {}


def write(path: Path, known: dict[str, tuple[bool, bool]]) -> None:
    """Put the answers into the cache file in one step; without write access they last for this process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        routes = {**read(path), **known}
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "routes": routes}, file, indent=0, sort_keys=True)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        LOG.info("attention routes could not be kept in %s: %s", path, error)
