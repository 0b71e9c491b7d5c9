"""The border of a public call that uses the device: where it may run, and that a call that fails leaves nothing behind.

A device that gives up work of a request is an error with the numbers of the plan that ran, which is noted when it
starts. Says what to change; retries nothing, because the same plan would fail again. Knows nothing of what a call does.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import mlx.core as mx

from archport.attention import stop_sharing
from archport.checkpoint import is_panic
from archport.contract import ArchportError, CheckpointError, DeviceFailure, InputError
from archport.contract.arguments import checked
from archport.contract.sizes import format_bytes
from archport.device.failures import Failure, failure_of, recover
from archport.device.process import enter
from archport.device.ranks import group_call

if TYPE_CHECKING:
    from archport.memory.snapshot import PrefixCache
    from archport.planning import Plan


@dataclass(slots=True)
class Running:
    """What a public call runs.

    Args:
        plan: the latest one that it started; None before the first.
        prefixes: where that leaves what later calls begin with.
    """

    plan: Plan | None = None
    prefixes: PrefixCache | None = None


_RUNNING: ContextVar[Running | None] = ContextVar("archport_running", default=None)
_WHAT: dict[Failure, str] = {
    "device_timeout": "ended this request's work because it took too long",
    "device_out_of_memory": "ran out of memory in this request",
    "device_page_fault": "met an address that is not mapped in this request",
    "device_lost": "gave up this request's work",
}


@contextmanager
def running(what: Running, *, ends: bool = True) -> Iterator[None]:
    """Inside this block plans are noted in `what`; where the call ends with it, MLX raises what it kept to itself."""
    token = _RUNNING.set(what)
    try:
        yield
        if ends:
            parked_failures()
    finally:
        _RUNNING.reset(token)


def note(plan: Plan, prefixes: PrefixCache | None = None) -> None:
    """Note the plan that is about to run, and where it leaves what later calls begin with."""
    what = _RUNNING.get()
    if what is not None:
        # An empty one is false, and the run may be the first to fill it.
        what.plan, what.prefixes = plan, what.prefixes if prefixes is None else prefixes


def parked_failures() -> None:
    """Have MLX raise what it has not yet said of this call's work.

    Metal's errors come from another thread, and an evaluation may end well although a command buffer of it failed
    (ml-explore/mlx#3979): what was read then holds zeros. The streams are used once more, which raises it.
    """
    if _on_metal():
        mx.synchronize()


def _on_metal() -> bool:
    return mx.default_device().type != mx.DeviceType.cpu and mx.metal.is_available()


def described(error: BaseException, what: Running) -> DeviceFailure | None:
    """The error to raise for a device that gave up, with the plan's numbers; None for any other error.

    What earlier calls remembered is forgotten: the failed work may have been what wrote it.
    """
    failure = failure_of(error)
    if failure is None:
        return None
    if what.prefixes is not None:
        what.prefixes.clear()
    made = _failure(failure, " ".join(str(error).split()), what.plan)
    made.__cause__ = error
    return made


def settled(error: DeviceFailure, before: BaseException | None) -> None:
    """Have the device usable for the next request; the message says where it no longer is.

    Args:
        before: the error that was being handled when the call began; it stays as it is.
    """
    # Where MLX noticed is not where the failed work was started, and closures of those frames hold arrays.
    cause: BaseException | None = error.__cause__
    while cause is not None and cause is not before:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    if not recover():
        error.code = "device_lost"
        error.args = (f"{str(error).removesuffix('.')}. The device does not compute any more: start a new process.",)


def _failure(failure: Failure, said: str, plan: Plan | None) -> DeviceFailure:
    if plan is None:
        return DeviceFailure(
            f"the device {_WHAT[failure]}, before any plan ran (MLX: {said:.300})", code=failure, said=said
        )
    buffer, work, batch = plan.largest_buffer, plan.work, plan.largest
    message = (
        f"{plan.device.name} {_WHAT[failure]} (MLX: {said:.300}). Planned: {_planned(plan)}, in batches of up to "
        f"{batch.shape.B} x {batch.shape.L:,} tokens with chunks of {plan.chunk:,}; {_now()}. Nothing of it is "
        f"returned, and the next request runs. {_advice(failure, plan)}"
    )
    return DeviceFailure(
        message,
        code=failure,
        said=said,
        planned_bytes=plan.peak,
        budget_bytes=plan.budget,
        breakdown=plan.bytes,
        largest_buffer=(buffer.name, buffer.bytes, buffer.cap),
        longest_seconds=work.seconds,
        limit_seconds=work.limit,
        chunk=plan.chunk,
    )


def _planned(plan: Plan) -> str:
    buffer, work = plan.largest_buffer, plan.work
    cap = "" if buffer.cap is None else f" of {format_bytes(buffer.cap)} allowed"
    limit = "" if work.limit is None else f" of {work.limit:.3g} s allowed"
    return (
        f"a peak of {format_bytes(plan.peak)} of a budget of {format_bytes(plan.budget)} "
        f"({format_bytes(plan.bytes['weights'])} weights), largest buffer {format_bytes(buffer.bytes)}{cap} "
        f"({buffer.name}), longest stretch without a pause {work.seconds:.3g} s{limit} ({work.name})"
    )


def _now() -> str:
    """What MLX holds at the time, which tells a plan that was too low from a machine that others fill."""
    active, pool = mx.get_active_memory(), mx.get_cache_memory()
    return f"MLX held {format_bytes(active)} and {format_bytes(pool)} of freed buffers when it was told"


def _advice(failure: Failure, plan: Plan) -> str:
    report = "`archport doctor --report FILE.json` writes what a report of it needs"
    if failure == "device_timeout":
        seconds = 0.5 * (plan.work.limit or plan.work.seconds)
        return (
            f"Give limits=AttentionLimits(dispatch_seconds={seconds:.2g}) to `load`, which makes the pieces shorter, "
            f"or shorter and fewer rows; close what else uses the GPU or the display. {report}."
        )
    if failure == "device_out_of_memory":
        # Half of what comes and goes, where the least that any schedule takes allows it.
        less = max(plan.minimum, plan.peak - plan.moving // 2)
        return (
            f"Load with a smaller budget (memory_budget={less:_} or less), which makes chunks and batches "
            f"smaller, or give shorter and fewer rows; close what else holds memory. {report}."
        )
    return f"Where it comes again it is a fault of a kernel: {report}."


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
