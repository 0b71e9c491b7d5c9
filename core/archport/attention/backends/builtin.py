"""The backends that archport brings, in order of preference. Knows no device."""

from __future__ import annotations

from archport.attention.backends.chunked import Chunked
from archport.attention.backends.documents import PerDocument
from archport.attention.backends.flash import Flash
from archport.attention.backends.host import Host
from archport.attention.backends.host_documents import HostDocuments
from archport.attention.backends.one_call import Composite, Fused
from archport.attention.backends.split import Split
from archport.attention.backends.tiled import Banded, Tiled
from archport.attention.backends.varlen import Varlen
from archport.attention.prices import Routes, TableRoutes
from archport.contract.attention import Backend


def builtin_backends(routes: Routes | None = None, extra: tuple[Backend, ...] = ()) -> tuple[Backend, ...]:
    """Every backend, those of plugins first.

    Args:
        routes: what decides between fused and composite; the tables when left out, `ProbedRoutes()` on a real device.
        extra: backends of plugins, tried before the built-in ones and also per document.
    """
    routes = routes or TableRoutes()
    plain: tuple[Backend, ...] = (
        *extra,
        Fused(routes),
        Composite(routes),
        Banded(routes),
        Tiled(routes),
        Host(),
        Flash(),
        Split(),
        Chunked(),
    )
    return (*plain, PerDocument(plain), HostDocuments(), Varlen())
