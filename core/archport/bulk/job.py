"""Run a job: read ahead, embed a part, write the one before it. Where it goes on is decided part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from archport.answering.precision import Precision, Ranges, calibrated
from archport.bulk.answers import Answered, Form, answered, embedded
from archport.bulk.formats import OutputFormat
from archport.bulk.identity import model_settings, provenance
from archport.bulk.ids import Ids
from archport.bulk.inputs import Inputs
from archport.bulk.manifest import RANGES, TOTAL, Manifest, Record, save_json
from archport.bulk.parts import Part, Turns, cut
from archport.bulk.stores import Store, begun, load_ranges, remove_leftovers, save_ranges, store_of, writing
from archport.contract import InputError
from archport.contract.errors import shown
from archport.device.heap import give_back_freed_memory
from archport.device.progress import nothing_shown
from archport.tasks import chosen

if TYPE_CHECKING:
    from archport.engine import Model

T = TypeVar("T")

OnError = Literal["fail", "skip", "record"]
# Rows of the input that 8-bit vectors are measured by, where nothing else was given.
CALIBRATED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to make of some inputs.

    Args:
        out: the folder for it.
        output_format: parquet, jsonl, npy, sqlite, or openai for answers of an OpenAI batch.
        output, top_k, prompt, prompt_name, dimensions, normalize, max_tokens, overflow, precision: as `Model.embed` has
            them, and so is `task`.
        calibrate: for int8 and uint8, a file of texts to measure ranges by, in any format of inputs, or the ranges of
            another job; None takes the first 10,000 rows.
        part_rows: rows of a part, which is what may be lost when the machine stops; None: those of the job that is
            there, or 16,384 on a GPU and 2,048 on a CPU.
        on_error: `fail` ends at the first bad row, `skip` leaves bad rows out, `record` writes them with their error.
        resume, overwrite: what to do with a job that is there: go on, or begin anew.
        shard: (index from 0, number) of this process among those that share the rows.
        device: the same among the processes of one shard.
    """

    out: Path
    output_format: OutputFormat = "parquet"
    output: Literal["vectors", "tokens", "sparse"] = "vectors"
    top_k: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    overflow: Literal["error", "truncate"] = "error"
    precision: Precision = "float32"
    calibrate: str | None = None
    part_rows: int | None = None
    on_error: OnError = "fail"
    resume: bool = False
    overwrite: bool = False
    shard: tuple[int, int] = (0, 1)
    device: tuple[int, int] = (0, 1)
    task: str | None = None

    def __post_init__(self) -> None:
        for name in ("shard", "device"):
            index, count = getattr(self, name)
            if not 0 <= index < count:
                raise InputError(f"{name}={(index, count)}; expected an index from 0 and a larger number")
        if self.part_rows is not None and self.part_rows < 1:
            raise InputError(f"part_rows={shown(self.part_rows)}; expected a positive number of rows")
        if self.resume and self.overwrite:
            raise InputError("resume=True and overwrite=True are both given; give one of them")
        if self.overwrite and not self.alone:
            raise InputError("overwrite=True would remove what other shards have made; remove the folder first")
        if self.output != "vectors" and self.precision != "float32":
            raise InputError(f"precision={self.precision!r} can't be chosen with output={self.output!r}; leave it out")
        if self.calibrate is not None and self.precision not in ("int8", "uint8"):
            raise InputError(f"calibrate={self.calibrate!r} is for int8 and uint8; precision={self.precision!r}")

    @property
    def options(self) -> dict[str, Any]:
        """Of `Model.embed`."""
        names = ("prompt", "prompt_name", "dimensions", "normalize", "max_tokens", "overflow", "output", "top_k")
        return {**{name: getattr(self, name) for name in names}, **({} if self.task is None else {"task": self.task})}

    @property
    def alone(self) -> bool:
        """Whether no other process shares the rows."""
        return self.shard[1] == self.device[1] == 1

    @property
    def label(self) -> str:
        """Of this process among those that write to the folder."""
        (index, count), (device, devices) = self.shard, self.device
        return "" if self.alone else f"-{index + 1}-of-{count}-device-{device + 1}-of-{devices}"


class Watch(Protocol):
    """Told how a job goes."""

    def began(self, manifest: Manifest, records: dict[int, Record]) -> None:
        """Before the first row is read, with the parts that are there."""
        ...

    def __call__(self, done: int, *, dropped: int = 0, tokens: int = 0) -> None:
        """So many more rows of a part were run."""
        ...

    def part(self, part: Part, record: Record, *, before: bool) -> None:
        """A part is there for good; `before` this run where it is an earlier one's."""
        ...

    def skipped(self, message: str) -> None:
        """A row has no vector, and why."""
        ...


class Unwatched:
    """A watch that looks away."""

    def began(self, manifest: Manifest, records: dict[int, Record]) -> None:
        """Nothing."""

    def __call__(self, done: int, *, dropped: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def part(self, part: Part, record: Record, *, before: bool) -> None:
        """Nothing."""

    def skipped(self, message: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended.

    Args:
        rows: read, of the parts that are this process's and are there.
        failed: of those, the ones without a vector.
        tokens: run for them.
        parts: of this process that are there.
        made: of those, the ones that this run made.
        stopped: whether it was asked to stop before the end.
    """

    rows: int = 0
    failed: int = 0
    tokens: int = 0
    parts: int = 0
    made: int = 0
    stopped: bool = False

    def with_part(self, record: Record, *, before: bool) -> Summary:
        """The same with a part more."""
        return replace(
            self,
            rows=self.rows + record.count,
            failed=self.failed + record.failed,
            tokens=self.tokens + record.tokens,
            parts=self.parts + 1,
            made=self.made + (not before),
        )


def run(
    model: Model, inputs: Inputs, job: Job, watch: Watch | None = None, stop: Callable[[], bool] = lambda: False
) -> Summary:
    """Embed every row of some inputs into a folder, in the memory of three parts.

    Args:
        stop: asked after every part whether to end there.

    Raises:
        InputError: for settings that contradict each other or the job that is there, inputs that can't be read or are
            others than it was begun with, and with on_error="fail" for the first bad row.
        OSError: a part can't be written; those before it are there.
    """
    watch = watch or Unwatched()
    if inputs.openai != (job.output_format == "openai"):
        what, instead = ("is", "openai") if inputs.openai else ("is not", "parquet, jsonl, npy or sqlite")
        raise InputError(
            f"output_format={job.output_format!r}, and the input {what} an OpenAI batch; expected {instead}"
        )
    if inputs.openai and (job.output != "vectors" or job.precision != "float32"):
        raise InputError("an OpenAI batch is answered with float32 vectors; leave output and precision out")
    job = replace(job, part_rows=_part_rows(model, job))
    manifest, width = _manifest(model, inputs, job)
    measure = _measure(inputs, job)
    with writing(job.out, alone=job.alone):
        return _run_all(model, inputs, job, manifest, width, measure, watch, stop)


def _run_all(
    model: Model,
    inputs: Inputs,
    job: Job,
    manifest: Manifest,
    width: int,
    measure: Inputs | Ranges | None,
    watch: Watch,
    stop: Callable[[], bool],
) -> Summary:
    """Make the parts that are not there yet."""
    manifest = begun(job.out, manifest, resume=job.resume or not job.alone, overwrite=job.overwrite)
    if job.alone:
        remove_leftovers(job.out)
    store = store_of(job.out, job.output_format, {**manifest.settings, **manifest.provenance}, job.label)
    there = store.records()
    _check_on_error(job, manifest, there)
    ranges = None if measure is None else _ranges(model, measure, job)
    watch.began(manifest, there)
    ids = Ids(numbered=inputs.numbered)
    summary, count, number = Summary(), 0, -1
    turns = Turns(job.shard, job.device)
    writes = _Writes(store, watch)
    with writes:
        ahead = "-" not in inputs.sources
        parts = cut(inputs.rows(), ids, manifest.settings["part_rows"], inputs.share, ahead=ahead)
        for part in _ahead(parts, at_all=ahead):
            if stop():
                summary = replace(summary, stopped=True)
                break
            number, count = part.number, part.first + len(part.rows)
            if not turns.mine(part):
                continue
            record = there.get(part.number)
            if record is not None:
                _check_same(part, record)
                summary = summary.with_part(record, before=True)
                watch.part(part, record, before=True)
                continue
            made = answered(
                model, part, job.options, watch, on_error=job.on_error, form=Form(width, job.precision, ranges),
                skipped=watch.skipped,
            )  # fmt: skip
            writes.start(part, made)
    for record in writes.done:
        summary = summary.with_part(record, before=False)
    if not summary.stopped:
        _check_end(there, number, count)
        save_json(job.out / TOTAL, {"parts": number + 1, "rows": count})
    return summary


class _Writes:
    """Writes parts in a thread, the one before the one that is embedded."""

    def __init__(self, store: Store, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self._pool = ThreadPoolExecutor(1, "archport-write")
        self._waiting: tuple[Part, Future[Record]] | None = None
        self.done: list[Record] = []

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._settle()
        except Exception:
            # What ended the job is what is told; a part that was not written is made again.
            if kind is None:
                raise
        finally:
            self._pool.shutdown(wait=True)

    def start(self, part: Part, made: Answered) -> None:
        """Write a part as soon as the one before it is there; raises what that one failed with."""
        self._settle()
        self._waiting = part, self._pool.submit(self._write, part, made)

    def _write(self, part: Part, made: Answered) -> Record:
        record = self._store.write(made, part.id_type)
        # Parts leave holes of many sizes: a million rows took a tenth more at the end than after a few parts.
        give_back_freed_memory()
        return record

    def _settle(self) -> None:
        if self._waiting is not None:
            (part, future), self._waiting = self._waiting, None
            record = future.result()
            self.done.append(record)
            self._watch.part(part, record, before=False)


def _ahead(parts: Iterator[Part], *, at_all: bool) -> Iterator[Part]:
    """The same parts, the next one read while the one before is in use.

    Args:
        at_all: not of standard input, which nobody could stop waiting for.
    """
    if not at_all:
        yield from parts
        return
    pool = ThreadPoolExecutor(1, "archport-read")
    try:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _part_rows(model: Model, job: Job) -> int:
    """Rows of a part, where they may be anybody's choice: those of the job that is there, or what a device takes."""
    there = Manifest.load(job.out) if job.out.is_dir() and not job.overwrite else None
    known = None if there is None else there.settings.get("part_rows")
    # A CPU plans so many texts together, and takes its time for them.
    return job.part_rows or known or (2048 if model.device.kind == "cpu" else 16_384)


def _manifest(model: Model, inputs: Inputs, job: Job) -> tuple[Manifest, int]:
    """(what parts depend on and what else is known, width of the vectors)."""
    if job.output == "tokens":
        width = int(model.embed(["a"], **job.options)[0].shape[1])
    else:
        # What is wrong with the options is wrong without texts, too.
        width = int(model.embed([], errors="collect", **job.options).results.shape[1])
    settings: dict[str, Any] = {
        **model_settings(model, job.task),
        **{name: getattr(job, name) for name in ("prompt", "prompt_name", "dimensions", "normalize", "max_tokens")},
        **{name: getattr(job, name) for name in ("overflow", "output", "precision", "calibrate")},
        # Jobs that were begun before there was such an option go on.
        **({} if job.top_k is None else {"top_k": job.top_k}),
        **{name: getattr(job, name) for name in ("output_format", "part_rows")},
        "text_field": inputs.fields.text,
        "image_field": inputs.fields.image,
        "id_field": inputs.fields.id,
    }
    prompt = chosen(model._runtime, job.task).tokeniser.prompt(job.prompt, job.prompt_name)
    about = {**provenance(model, prompt, width), "on_error": job.on_error}
    return Manifest(settings, inputs.identity(), about), width


def _check_on_error(job: Job, manifest: Manifest, there: dict[int, Record]) -> None:
    """What became of bad rows has to become of all; a job without any may go on as it likes."""
    before, failed = manifest.provenance.get("on_error"), sum(record.failed for record in there.values())
    if before == job.on_error:
        return
    if failed:
        raise InputError(
            f"on_error={job.on_error!r}, but {failed} bad rows were met before with {before!r}; go on with that, or "
            "give overwrite=True"
        )
    replace(manifest, provenance={**manifest.provenance, "on_error": job.on_error}).save(job.out)


def _check_same(part: Part, record: Record) -> None:
    if record.input != part.digest or record.count != len(part.rows):
        raise InputError(
            f"the input changed: the {len(part.rows)} rows from {part.rows[0].said} on "
            f"are not those that part {part.number} was made of. Bring the input back, or give overwrite=True"
        )


def _check_end(there: dict[int, Record], last: int, count: int) -> None:
    beyond = [number for number in there if number > last]
    if beyond:
        raise InputError(
            f"the input changed: it ends after {count} rows, and {len(beyond)} parts are there of rows beyond. Bring "
            "the input back, or give overwrite=True"
        )


def _measure(inputs: Inputs, job: Job) -> Inputs | Ranges | None:
    """What 8-bit vectors are measured by, opened before a job begins or replaces another: ranges, or rows."""
    if job.precision not in ("int8", "uint8"):
        return None
    kept = None if job.overwrite else load_ranges(job.out / RANGES)
    if kept is not None:
        return kept
    if job.calibrate is None:
        return inputs.again()
    if not job.calibrate.endswith(".json"):
        return Inputs([job.calibrate], replace(inputs.fields, id=None))
    given = load_ranges(Path(job.calibrate))
    if given is None:
        raise InputError(f"calibrate={job.calibrate!r} can't be read: there is no such file")
    return given


def _ranges(model: Model, measure: Inputs | Ranges, job: Job) -> Ranges:
    """The ranges of 8-bit vectors: found once, and kept with the job."""
    if isinstance(measure, Ranges):
        return save_ranges(job.out, measure)
    items: list[Any] = []
    for row in measure.rows():
        if row.error is None:
            items.append(row.item)
        if len(items) >= CALIBRATED:
            break
    found = embedded(model, items, job.options, nothing_shown)
    return save_ranges(job.out, calibrated(found.vectors[list(found.places.values())], job.precision))
