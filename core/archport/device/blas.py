"""An optimised BLAS for MLX on a Linux CPU: loads one before MLX does, so that MLX's matrix calls reach it.

The mlx-cpu wheel is linked against the reference BLAS it carries, which is some 25 times slower than MKL. The dynamic
linker resolves `cblas_sgemm` in whatever was loaded globally first, so one `dlopen(..., RTLD_GLOBAL)` before
`mlx.core` is imported is enough. The price: it has to happen when archport is imported (docs/adr/0004).

Knows nothing of models or plans, imports neither mlx nor numpy, and does nothing on macOS or with a GPU build of MLX.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

BlasKind = Literal["mkl", "openblas", "path", "reference", "off", "not-needed"]

OPENBLAS_SONAMES = (
    "libopenblasp.so.0",  # Fedora's threaded build; its libopenblas.so.0 uses one core
    "libopenblas.so.0",
)
INSTALL_ADVICE = (
    "MLX uses the slow reference BLAS of its wheel. Install an optimised one: `pip install mkl` (x86-64; part of "
    "archport[cpu]) or the system's OpenBLAS (libopenblas0)."
)
LATE_ADVICE = (
    "mlx was imported before archport, so MLX keeps the slow reference BLAS of its wheel. "
    "Import archport before mlx (or before anything that imports mlx)."
)


@dataclass(frozen=True, slots=True)
class Blas:
    """Which BLAS MLX's matrix calls reach in this process.

    Args:
        kind: "mkl" and "openblas" were found, "path" was named by ARCHPORT_BLAS or loaded globally by someone else,
            "reference" is the slow one in MLX's wheel, "off" was asked for, "not-needed" means another platform.
        path: the library's file, where one is used (or would be, when `too_late`).
        too_late: an optimised BLAS is there, but mlx was imported first and holds on to its own.
        advice: what to do about it; empty when nothing is wrong.
    """

    kind: BlasKind
    path: str | None = None
    too_late: bool = False
    advice: str = ""


class UnusableBlas(Exception):
    """A library can't stand in for MLX's BLAS; the message says why."""


# How long MKL's threads spin after a product, in ms, unless the user says otherwise. Its own 200 take a core from
# whatever runs next, on threads that are not MKL's: attention and activations took half as long again on two cores.
# Without any, each of a chain of small products waits for them to wake: the gated delta rule took ten times as long.
SPIN = ("KMP_BLOCKTIME", "1")

_status: Blas | None = None
_warned_late = False


def preload() -> Blas:
    """Load an optimised BLAS globally, if this MLX needs one and is not imported yet; the second call does nothing.

    Never raises over a library: what can't be used becomes one warning and the advice of `status()`.
    """
    global _status
    if _status is None:
        _status = _preload(os.environ)
        if _status.advice and os.environ.get("ARCHPORT_BLAS") and _status.kind == "reference":
            # Only an explicit wish that failed is worth a warning at import; the rest is for `archport doctor`.
            warnings.warn(_status.advice, RuntimeWarning, stacklevel=2)
        if _status.kind == "mkl":
            # Read at the first product, when MKL loads its OpenMP.
            os.environ.setdefault(*SPIN)
    return _status


def status() -> Blas:
    """What `preload` found and did, as of the import of archport."""
    return preload()


def warn_if_late() -> None:
    """Warn once per process that mlx was imported before archport; says nothing when that did no harm."""
    global _warned_late
    if status().too_late and not _warned_late:
        _warned_late = True
        warnings.warn(status().advice, RuntimeWarning, stacklevel=2)


def _preload(environ: Mapping[str, str]) -> Blas:
    wish = environ.get("ARCHPORT_BLAS", "")
    if not sys.platform.startswith("linux"):
        return Blas("not-needed")
    distributions = installed_distributions(sys.path, ("mlx_cpu", "mlx_cuda_12", "mlx_cuda_13", "mkl"))
    if "mlx_cpu" not in distributions or "mlx_cuda_12" in distributions or "mlx_cuda_13" in distributions:
        return Blas("not-needed")
    if wish == "off":
        return Blas("off", advice="ARCHPORT_BLAS=off: MLX uses the slow reference BLAS of its wheel.")
    present = global_provider()
    if present is not None:
        return Blas(_kind_of(present), present)
    late = "mlx.core" in sys.modules

    problems: list[str] = []
    for kind, name in _candidates(wish, distributions.get("mkl")):
        try:
            path = load_globally(name, environ, promote=not late)
        except UnusableBlas as problem:
            if kind != "openblas":  # a system without OpenBLAS is no problem
                problems.append(str(problem))
            continue
        if late:
            return Blas("reference", path, too_late=True, advice=LATE_ADVICE)
        return Blas(kind, path)
    if wish:
        return Blas("reference", advice=f"ARCHPORT_BLAS={wish}: {problems[0]}. {INSTALL_ADVICE}")
    return Blas("reference", advice=". ".join([*problems, INSTALL_ADVICE]))


def _candidates(wish: str, mkl_record: str | None) -> list[tuple[BlasKind, str]]:
    """Libraries to try, best first; a named one is the only one, so that a wish is granted or refused, never bent."""
    if wish:
        return [("path", wish)]
    found: list[tuple[BlasKind, str]] = [("mkl", path) for path in mkl_libraries(sys.prefix, mkl_record)]
    return found + [("openblas", name) for name in OPENBLAS_SONAMES]


def installed_distributions(search_path: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Folders of the named distributions' metadata, by name, the first on the path winning.

    Reads folder listings only: `importlib.metadata` would cost more than all of the rest together.
    """
    found: dict[str, str] = {}
    for folder in search_path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:  # zip archives and folders that are gone are legal on sys.path
            continue
        for entry in entries:
            name = entry.split("-", 1)[0].lower()
            if name in names and entry.endswith(".dist-info"):
                found.setdefault(name, os.path.join(folder, entry))
    return found


def mkl_libraries(prefix: str, mkl_record: str | None) -> list[str]:
    """Paths of MKL's single dynamic library: in `<prefix>/lib`, else where the mkl distribution's RECORD says.

    Args:
        prefix: the environment's root.
        mkl_record: the mkl distribution's .dist-info folder, if it is installed; its files lie outside site-packages.
    """
    found = _files_beside(os.path.join(prefix, "lib"), "libmkl_rt.so.")
    if found or mkl_record is None:
        return found
    try:
        with open(os.path.join(mkl_record, "RECORD"), encoding="utf-8") as lines:
            entries = [line.split(",", 1)[0] for line in lines if "/libmkl_rt.so." in line]
    except OSError:
        return []
    return [os.path.realpath(os.path.join(os.path.dirname(mkl_record), entry)) for entry in entries]


def load_globally(name: str, environ: Mapping[str, str], *, promote: bool = True) -> str:
    """Check that a library can stand in for MLX's BLAS, then make its symbols global; returns its path.

    Args:
        name: a path, or a name for the dynamic linker to search.
        promote: False only checks, and changes nothing in the process's global symbols.

    Raises:
        UnusableBlas: it can't be loaded, lacks `cblas_sgemm`, counts in 64-bit integers, or would end the process.
    """
    try:
        library = ctypes.CDLL(name)
    except OSError as e:
        raise UnusableBlas(f"{name} can't be loaded ({e})") from e
    try:
        path = _file_of(library.cblas_sgemm) or name
    except AttributeError as e:
        raise UnusableBlas(f"{name} has no cblas_sgemm, so it is not a BLAS that MLX can call") from e
    if os.path.basename(path).startswith("libmkl_rt"):
        reason = why_mkl_would_fail(os.path.dirname(path), environ)
        if reason:
            raise UnusableBlas(f"{path} is not used: {reason}")
    if _counts_in_64_bits(library):
        raise UnusableBlas(f"{name} is built for 64-bit integers, but MLX passes 32-bit ones")
    if promote:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return path


def why_mkl_would_fail(folder: str, environ: Mapping[str, str]) -> str:
    """Why MKL must not be used with these settings; empty if it may.

    libmkl_rt loads its layers at the first call and ends the process when one is missing, so they are checked here.
    """
    interface = environ.get("MKL_INTERFACE_LAYER", "").upper()
    if "ILP64" in interface:
        return f"MKL_INTERFACE_LAYER={interface} asks for 64-bit integers, but MLX passes 32-bit ones; unset it"
    if "GNU" in interface and not _files_beside(folder, "libmkl_gf_lp64.so"):
        return f"MKL_INTERFACE_LAYER={interface} needs libmkl_gf_lp64, which is not in {folder}; unset it"
    threading = environ.get("MKL_THREADING_LAYER", "").upper() or "INTEL"
    layer, runtime = {
        "GNU": ("libmkl_gnu_thread.so", "libgomp.so.1"),
        "TBB": ("libmkl_tbb_thread.so", "libtbb.so.12"),
        "SEQUENTIAL": ("libmkl_sequential.so", ""),
    }.get(threading, ("libmkl_intel_thread.so", "libiomp5.so"))
    if not _files_beside(folder, layer):
        return f"{layer} (MKL_THREADING_LAYER={threading}) is not in {folder}"
    # MKL finds Intel's OpenMP next to itself; GNU's and TBB's runtimes only where the dynamic linker searches.
    if runtime and not (runtime == "libiomp5.so" and _files_beside(folder, runtime)) and not _loadable(runtime):
        return f"MKL_THREADING_LAYER={threading} needs {runtime}, which can't be loaded"
    return ""


def global_provider() -> str | None:
    """The file whose `cblas_sgemm` is already global in this process (LD_PRELOAD, conda), or None."""
    try:
        return _file_of(ctypes.CDLL(None).cblas_sgemm)
    except AttributeError:
        return None


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def _file_of(function: object) -> str | None:
    """The file a loaded C function lies in, by dladdr."""
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)  # pyright: ignore[reportArgumentType]
    try:
        found = ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
    except AttributeError:  # a C library that keeps dladdr elsewhere
        return None
    return os.fsdecode(info.dli_fname) if found and info.dli_fname else None


def _counts_in_64_bits(library: ctypes.CDLL) -> bool:
    """Whether an OpenBLAS says it was built with 64-bit integers; other libraries do not say."""
    try:
        config = library.openblas_get_config
    except AttributeError:
        return False
    config.restype = ctypes.c_char_p
    return b"USE64BITINT" in (config() or b"")


def _kind_of(path: str) -> BlasKind:
    name = os.path.basename(path)
    return "mkl" if "mkl" in name else "openblas" if "openblas" in name else "path"


def _files_beside(folder: str, stem: str) -> list[str]:
    """Paths in a folder whose names begin with `stem`, highest version first; none if there is no such folder."""
    try:
        return [
            os.path.join(folder, name) for name in sorted(os.listdir(folder), reverse=True) if name.startswith(stem)
        ]
    except OSError:
        return []


def _loadable(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
