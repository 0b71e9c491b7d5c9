"""The border of a public call that uses the device: where it may run, and that a call that fails leaves nothing behind.

Knows nothing of what a call does.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from archport.attention import stop_sharing
from archport.checkpoint import is_panic
from archport.contract import ArchportError, CheckpointError, DeviceFailure, InputError
from archport.contract.arguments import checked
from archport.device.process import enter
from archport.device.ranks import group_call
from archport.running.device_failures import Running, described, parked_failures, running, settled

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def device_call(method: Callable[P, R]) -> Callable[P, R]:
    """A public method that runs on the device.

    Raises:
        ForkedProcess: in a process that was forked after a model was loaded.
    """

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> R:
        enter()
        before, what = sys.exception(), Running()
        try:
            with running(what), group_call():
                return method(*args, **options)
        except BaseException as error:
            fault = _settled(error, before, what, args)
            if fault is not None:
                raise fault from fault.__cause__
            raise

    return call


def public(method: Callable[P, R]) -> Callable[P, R]:
    """A public method that runs on the device, once its arguments are of the types it is annotated with."""
    return checked(device_call(method))


_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


def awaited(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """A method's twin for callers of asyncio, of a subclass too that has a method of its own of that name.

    It runs in the one thread kept for such calls, because MLX compiles and caches per thread.
    """
    name = method.__name__

    @wraps(method)
    async def call(*args: P.args, **options: P.kwargs) -> R:
        # Takes longer to import than many a model to load.
        import asyncio

        if options.get("stream"):
            raise InputError(f"stream=True: a{name} streams nothing; call {name}(stream=True) in a thread of yours")
        global _executor
        with _lock:
            if _executor is None:
                _executor = ThreadPoolExecutor(1, "archport")
        run = partial(contextvars.copy_context().run, getattr(args[0], name), *args[1:], **options)
        return await asyncio.get_running_loop().run_in_executor(_executor, run)

    call.__name__, call.__qualname__ = f"a{name}", method.__qualname__.replace(name, f"a{name}")
    call.__doc__ = (
        f"`{name}` for callers of asyncio: the event loop runs on, and calls of one process take turns.\n\n"
        "A call that has begun is not interrupted when its task is cancelled. Nothing is streamed."
    )
    return call


def _tokenizer_fault(error: BaseException, args: tuple[object, ...]) -> CheckpointError | None:
    """What a failure of the tokenizers library means; None for any other error.

    It has no errors of its own. Where its code panics it raises what is no Exception, and else a bare one, which
    nothing else raises out of archport's own frames.
    """
    if not is_panic(error):
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        home = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
        if type(error) is not Exception or not home.startswith("archport"):
            return None
    name, said = getattr(args[0], "name", args[0]) if args else "the model", " ".join(str(error).split())
    fault = CheckpointError(
        f"{name}: the tokenizers library fails with this tokenizer.json ({said:.300}). Fetch the file again, or update "
        "tokenizers."
    )
    fault.__cause__ = error
    return fault


class DeviceIterator(Iterator[T]):
    """Items that the device makes one by one. Closing it, or dropping it, frees what they hold; so does an error.

    Args:
        items: a generator that needs nothing but to be dropped: no thread, no lock, no open file. The garbage
            collector may close it, in any thread.
    """

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items, self._what = items, Running()

    def __next__(self) -> T:
        enter()
        before = sys.exception()
        try:
            with running(self._what, ends=False), group_call():
                for item in self._items:
                    return item
            parked_failures()
            raise StopIteration
        except StopIteration:
            raise
        except BaseException as error:
            self._items.close()
            fault = _settled(error, before, self._what, ())
            if fault is not None:
                raise fault from fault.__cause__
            raise

    def __enter__(self) -> DeviceIterator[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Make no more items, and free what they held."""
        import mlx.core as mx

        self._items.close()
        before = sys.exception()
        try:
            # The step that was started ahead holds its arrays until it is done.
            mx.synchronize()
        except RuntimeError as error:
            fault = _settled(error, before, self._what, ())
            if fault is not None:
                raise fault from fault.__cause__
            raise


def _settled(
    error: BaseException, before: BaseException | None, what: Running, args: tuple[object, ...]
) -> ArchportError | None:
    """Leave nothing of the failed call behind; the error to raise in its error's place, None where that stands.

    A device that gave up may be noticed first by its results, which are no numbers or can't be read; MLX says why when
    it is next waited for.

    Args:
        before: the error that was being handled when the call began; its frames are the caller's.
        args: of the call.
    """
    kept = _kept_by_mlx()
    fault = described(error, what)
    if fault is None and kept is not None and isinstance(error, Exception):
        fault = described(kept, what)
    if isinstance(fault, DeviceFailure):
        _let_go(error, before)
        _let_go(fault, before)
        settled(fault, before)
        return fault
    fault = _tokenizer_fault(error, args)
    _let_go(fault or error, before)
    return fault


def _kept_by_mlx() -> RuntimeError | None:
    """Wait for what the failed call had started; the error that MLX then says, if any."""
    import mlx.core as mx

    try:
        mx.synchronize()
    except RuntimeError as error:
        return error
    return None


def _let_go(error: BaseException, before: BaseException | None) -> None:
    """Let go of what a failed call held.

    Whoever keeps the error, as a notebook does, keeps its traceback's frames and all their arrays. After an interrupt
    or a refusal nobody looks into those frames, so they are emptied; after any other error a debugger may.

    Args:
        before: the error that was being handled when the call began; its frames are the caller's.
    """
    stop_sharing()
    if isinstance(error, Exception) and not isinstance(error, ArchportError):
        return
    left, known = [error], {id(before)}
    while left:
        found = left.pop()
        known.add(id(found))
        traceback.clear_frames(found.__traceback__)
        left += [each for each in (found.__cause__, found.__context__) if each is not None and id(each) not in known]
