"""archport: per-architecture model adapters on MLX, behind one memory-safe engine.

    from archport import engine
    model = engine.load("all-MiniLM-L6-v2")
    vectors = model.embed(["a text", "a much longer text"])

Importing this package does one thing: on a Linux CPU it loads an optimised BLAS before MLX can load its slow one
(`ARCHPORT_BLAS=off` prevents it). Everything heavy waits until it is used.
"""

from archport.contract import ArchportError, hookimpl
from archport.device.blas import preload

__version__ = "0.1.0"
__all__ = ["ArchportError", "__version__", "hookimpl"]

preload()
