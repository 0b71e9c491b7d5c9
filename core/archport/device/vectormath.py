"""The functions of MKL that neither MLX nor numpy has fast, on numpy arrays: the normal distribution, batched products.

MLX's CPU build computes erf one element at a time, 40 times slower than MKL, and copies what its batched products read.
numpy's own exp and tanh are as fast as MKL's, so they are not here. Works on arrays the caller owns and allocates
nothing of their size. Knows nothing of models, attention or MLX, and keeps no state: accuracy is stated with every
call, never set for the process.
"""

from __future__ import annotations

import ctypes
import functools
from math import prod

import numpy as np

from archport.contract.errors import InputError
from archport.device import blas

# With every call: results within 1 unit in the last place, no error handling, no denormal numbers. The last two keep
# arguments at the edge of float32's range from costing a hundred times the others.
_HIGH_ACCURACY, _IGNORE_ERRORS, _FLUSH_DENORMALS = 0x2, 0x100, 0x280000
_MODE = _HIGH_ACCURACY | _IGNORE_ERRORS | _FLUSH_DENORMALS
# MKL's 32-bit interface counts elements in an int.
_MOST = 2**31 - 1

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112


def available() -> bool:
    """Whether an MKL with these functions is loaded in this process; without it they raise InputError."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = blas.status()
    if found.kind not in ("mkl", "path") or found.path is None:
        return None
    try:
        library = ctypes.CDLL(found.path)
        for function in (library.vmsCdfNorm, library.vmsErf):
            function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
            function.restype = None
        library.cblas_sgemm_batch.restype = None
        # The capitalised name is C's; the other takes a pointer, as Fortran does.
        library.MKL_Set_Num_Threads_Local.argtypes = (ctypes.c_int,)
    except (OSError, AttributeError):  # another BLAS, named by ARCHPORT_BLAS
        return None
    return library


def one_thread() -> None:
    """Let MKL use one thread only in what the calling thread asks of it from now on."""
    if available():
        _loaded("MKL_Set_Num_Threads_Local").MKL_Set_Num_Threads_Local(1)


def normal_cdf(x: np.ndarray, out: np.ndarray) -> None:
    """out <- P(X <= x) for a standard normal X. Contiguous float32; out may be x."""
    _apply("vmsCdfNorm", x, out)


def erf(x: np.ndarray, out: np.ndarray) -> None:
    """out <- the error function of x. Contiguous float32; out may be x."""
    _apply("vmsErf", x, out)


def _apply(name: str, x: np.ndarray, out: np.ndarray) -> None:
    library = _loaded(name)
    for array in (x, out):
        if array.dtype != np.float32 or not array.flags.c_contiguous or array.size != out.size:
            raise InputError(
                f"{name} got {array.dtype} of shape {array.shape} and strides {array.strides}; expected contiguous "
                f"float32 of {out.size} elements"
            )
    if not out.flags.writeable:
        raise InputError(f"{name} got an output that is read-only")
    function, source, target = getattr(library, name), x.ctypes.data, out.ctypes.data
    for first in range(0, x.size, _MOST):
        function(min(_MOST, x.size - first), source + 4 * first, target + 4 * first, _MODE)


def _loaded(name: str) -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise InputError(
            f"{name} needs MKL's vector functions, which are not loaded here (BLAS: {blas.status().kind}); "
            "ask available() first"
        )
    return library


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray, *, scale: float = 1.0) -> None:
    """out <- scale * (a @ b), in one call for all matrices of the leading axes.

    Nothing is copied: leading axes may have any strides, 0 included, so `np.broadcast_to` repeats a matrix for free.

    Args:
        a, b, out: float32 (..., m, k), (..., k, n), (..., m, n) with equal leading axes. One of the last two axes of a
            and of b is contiguous (a transposed view is fine), and the last of out.
    """
    library = _loaded("cblas_sgemm_batch")
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    leading = out.shape[:-2]
    if (a.shape, b.shape, out.shape) != ((*leading, m, k), (*leading, k, n), (*leading, m, n)):
        raise InputError(f"matmul got shapes {a.shape} @ {b.shape} -> {out.shape}; expected (..., m, k), (..., k, n)")
    if not (a.dtype == b.dtype == out.dtype == np.float32):
        raise InputError(f"matmul got {a.dtype} @ {b.dtype} -> {out.dtype}; expected float32")
    count = prod(leading)
    if not count or not m or not n:
        return
    (turn_a, step_a), (turn_b, step_b), (turn_out, step_out) = _order(a), _order(b), _order(out)
    if turn_out != _PLAIN or not out.flags.writeable:
        raise InputError(f"matmul got out with strides {out.strides}; expected writable rows of consecutive elements")
    one = ctypes.c_int
    library.cblas_sgemm_batch(
        one(_ROW_MAJOR),
        ctypes.byref(one(turn_a)),
        ctypes.byref(one(turn_b)),
        ctypes.byref(one(m)),
        ctypes.byref(one(n)),
        ctypes.byref(one(k)),
        ctypes.byref(ctypes.c_float(scale)),
        ctypes.c_void_p((at_a := _addresses(a)).ctypes.data),
        ctypes.byref(one(step_a)),
        ctypes.c_void_p((at_b := _addresses(b)).ctypes.data),
        ctypes.byref(one(step_b)),
        ctypes.byref(ctypes.c_float(0.0)),
        ctypes.c_void_p((at_out := _addresses(out)).ctypes.data),
        ctypes.byref(one(step_out)),
        one(1),
        ctypes.byref(one(count)),
    )
    del at_a, at_b, at_out  # held until MKL has read them


def _order(x: np.ndarray) -> tuple[int, int]:
    """How BLAS reads the last two axes: as they are or transposed, and the elements from one line to the next."""
    rows, columns = x.shape[-2:]
    down, across = x.strides[-2] // 4, x.strides[-1] // 4
    # The stride of an axis with one entry means nothing.
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return _PLAIN, max(down if rows > 1 else 0, columns)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return _TRANSPOSED, max(across if columns > 1 else 0, rows)
    raise InputError(
        f"matmul got a matrix of shape {x.shape} with strides {x.strides}; expected one contiguous axis of the last two"
    )


def _addresses(x: np.ndarray) -> np.ndarray:
    """Where each matrix of the leading axes starts, in order."""
    at = np.array([x.ctypes.data], dtype=np.int64)
    for length, stride in zip(x.shape[:-2], x.strides[:-2], strict=True):
        at = (at[:, None] + stride * np.arange(length, dtype=np.int64)).ravel()
    return at
