"""MLX's pool of freed buffers on Metal, replayed in Python: the rule of buffer_cache.h and Metal's allocator in 0.32.4.

A freed buffer serves a request only if it is smaller than min(twice the request, the request and two pages). The
oldest go first when the pool is above its limit, which is looked at when a buffer is taken, and what is freed while the
pool is at its limit goes back to the system.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict

PAGE = 16_384
Buffer = tuple[int, int]


class MetalPool:
    """Counts bytes; holds none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = self.pooled = self.most_pooled = self.most = 0
        self.reused = self.allocated = 0
        self._by_size: list[Buffer] = []
        self._by_age: OrderedDict[Buffer, None] = OrderedDict()
        self._count = 0

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes."""
        size = -(-size // PAGE) * PAGE if size > PAGE else size
        at = bisect.bisect_left(self._by_size, (size, -1))
        if at < len(self._by_size) and self._by_size[at][0] < min(2 * size, size + 2 * PAGE):
            buffer = self._by_size.pop(at)
            del self._by_age[buffer]
            self.pooled -= buffer[0]
            self.reused += buffer[0]
        else:
            self._count += 1
            buffer = (size, self._count)
            self.allocated += size
        self.active += buffer[0]
        if self.pooled > self.limit:
            self._release(self.pooled - self.limit)
        self.most = max(self.most, self.active + self.pooled)
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Free a buffer."""
        self.active -= buffer[0]
        if self.pooled < self.limit:
            bisect.insort(self._by_size, buffer)
            self._by_age[buffer] = None
            self.pooled += buffer[0]
            self.most_pooled = max(self.most_pooled, self.pooled)

    def _release(self, wanted: int) -> None:
        if wanted >= 0.9 * self.pooled:
            self._by_size.clear()
            self._by_age.clear()
            self.pooled = 0
            return
        released = 0
        while self._by_age and released < wanted:
            buffer, _ = self._by_age.popitem(last=False)
            self._by_size.remove(buffer)
            released += buffer[0]
        self.pooled -= released
