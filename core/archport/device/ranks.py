"""The processes that share one model through `mx.distributed`: what each gives the others, and what ends them together.

A process has one group. All of it run the same calls in the same order; what that is about is not known here.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx

from archport.contract.errors import ArchportError, InputError
from archport.contract.split import Rank
from archport.device.peers import Peers
from archport.device.process import use_device

# Bytes of a digest, as numbers that every backend sends.
_DIGEST = 8


class Ranks:
    """The group of this process: the one wrapper of its collectives.

    Args:
        group: of `mx.distributed`.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self.rank = Rank(group.rank(), group.size())
        self._seeds = random.Random(int.from_bytes(bytes(self._everyone(secrets.token_bytes(_DIGEST))[0]), "little"))
        self.peers = Peers(self.rank, self._everyone)

    def __deepcopy__(self, memo: object) -> Ranks:
        return self

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return join, ()

    def sum(self, x: mx.array) -> mx.array:
        """The sum of every rank's `x`; each rank gets the same bits."""
        return mx.distributed.all_sum(x, group=self._group)

    def gather(self, x: mx.array) -> mx.array:
        """Every rank's `x` (..., n) side by side, (..., ranks * n)."""
        every = mx.distributed.all_gather(x[None], group=self._group)
        return mx.moveaxis(every, 0, -2).reshape(*x.shape[:-1], -1)

    def most(self, value: int) -> int:
        """The largest of every rank's numbers."""
        every = self._everyone(value.to_bytes(8, "little"))
        return max(int.from_bytes(bytes(each), "little") for each in every)

    def agree(self, what: str, value: object) -> None:
        """Make sure that all ranks are about to do the same.

        Args:
            value: what has to be equal, by its repr.

        Raises:
            ArchportError: on every rank, where they differ.
        """
        digest = hashlib.blake2b(f"{what}: {value!r}".encode(), digest_size=_DIGEST).digest()
        with self.peers.calling():
            every = self._everyone(digest)
        others = [number for number, each in enumerate(every) if bytes(each) != digest]
        if others:
            raise ArchportError(
                f"tensor_parallel: {what} of rank {self.rank.number} differs from that of rank {others[0]} (here: "
                f"{value!r:.200}); make the same calls with the same inputs in the same order on every rank"
            )

    def seed(self) -> int:
        """A seed that no caller gave: another one each time, the same on every rank."""
        return self._seeds.getrandbits(64)

    def _everyone(self, mine: bytes) -> list[list[int]]:
        """What every rank handed in, evaluated."""
        every = mx.distributed.all_gather(mx.array(list(mine), dtype=mx.int32)[None], group=self._group)
        return every.tolist()  # pyright: ignore[reportReturnType]


_joined: Ranks | None = None


def join() -> Ranks:
    """The group of this process, initialised when it is first asked for.

    Raises:
        InputError: the process was started alone.
    """
    global _joined
    if _joined is None:
        use_device()
        nccl = "NCCL_HOST_IP" in os.environ and mx.distributed.is_available("nccl")
        group = mx.distributed.init(backend="nccl" if nccl else "any")
        if group.size() == 1:
            raise InputError(
                "tensor_parallel=True, and this process is alone: start the program once for each device, as "
                "`mlx.launch -n 2 --backend nccl PROGRAM` does (`--backend ring` on CPUs), or leave tensor_parallel out"
            )
        _joined = Ranks(group)
    return _joined


def joined() -> Ranks | None:
    """The group of this process, where a model was split over one."""
    return _joined


def common_seed() -> int | None:
    """A seed that all ranks have; None in a process without a group."""
    return None if _joined is None else _joined.seed()


def group_call() -> AbstractContextManager[None]:
    """Runs a call that may wait for the other processes of the group, if there is one: see `Peers.calling`."""
    return nullcontext() if _joined is None else _joined.peers.calling()
