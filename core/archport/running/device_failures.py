"""A device that gives up work of a request: an error with the numbers of the plan that ran, and nothing left behind.

The plan is noted when it starts. Says what to change; retries nothing, because the same plan would fail again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archport.contract import DeviceFailure
from archport.contract.sizes import format_bytes
from archport.device.failures import Failure, failure_of, recover

if TYPE_CHECKING:
    from archport.memory.prefix_cache import PrefixCache
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
    import mlx.core as mx

    if _on_metal():
        mx.synchronize()


def _on_metal() -> bool:
    import mlx.core as mx

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
    import mlx.core as mx

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
