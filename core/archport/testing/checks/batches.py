"""Tiny tier: the same numbers whatever shares the batch, came before, or fills the memory; and under mx.compile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from archport.contract import InputError
from archport.device.evaluation import Stretches, compile_traces
from archport.engine import Model
from archport.running.context import StepContext
from archport.testing.check import CheckFailed, check, fail
from archport.testing.measure import as_array, gap, held
from archport.testing.subject import Tiny
from archport.testing.weights import picture

# Rows of a large batch that differ; they repeat.
DISTINCT = 7
# A batch's budget that few short rows do not fill, whatever a device pads them to.
TOKENS = 1 << 14


def padded(rows: list[np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (B, L) of rows padded on one side, with a real token's id as padding."""
    L = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), L), 3, dtype=np.int32), np.zeros((len(rows), L), dtype=np.int32)
    for index, row in enumerate(rows):
        at = slice(L - len(row), L) if side == "left" else slice(0, len(row))
        ids[index, at], mask[index, at] = row, 1
    return ids, mask


@check("tiny")
def row_alone_equals_row_in_batch(t: Tiny) -> str:
    """A row gives the same hidden states alone and in a batch, padded left or right, through forward and embed.

    Never reduce over the batch or over padding; positions and visibility come from the context.
    """
    rows = [t.tokens(t.length(length), seed) for seed, length in enumerate((23, 31, 5, 1, 31))]
    singles = [as_array(t.model.forward(row[None]))[0] for row in rows]
    worst = 0.0
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        together = as_array(t.model.forward(ids, mask))
        for index, row in enumerate(rows):
            difference = gap(together[index, mask[index] == 1], singles[index])
            worst = max(worst, difference)
            if difference > t.limit:
                fail(
                    f"row {index} of {len(row)} tokens differs by {difference:.2g} (limit {t.limit:.0e}) in a batch of "
                    f"{len(rows)} padded on the {side}"
                )
    texts = ["abc", "a longer text than the others", "b", "abc"]
    together = t.answers(texts)
    for index, text in enumerate(texts):
        difference = gap(together[index], t.answers(text)[0])
        worst = max(worst, difference)
        if difference > t.limit:
            fail(
                f"the vector of text {index} differs by {difference:.2g} (limit {t.limit:.0e}) among {len(texts)} texts"
            )
    return f"{2 * len(rows)} rows and {len(texts)} texts, {worst:.1e}"


def _rows_alone(t: Tiny, lengths: Sequence[int], name: str) -> float:
    """The largest difference of a row in a batch, as the engine embeds it and as it generates, to itself alone."""
    worst, own = 0.0, [t.tokens(length, seed) for seed, length in enumerate(lengths[:DISTINCT])]
    known = [t.hidden(row) for row in own]
    rows, alone = ([each[index % DISTINCT] for index in range(len(lengths))] for each in (own, known))
    for mode in ("embed", "generate") if t.keeps else ("embed",):
        for index, (got, want) in enumerate(
            zip(t.together(rows, mode=mode, tokens_per_batch=TOKENS), alone, strict=True)
        ):
            difference = gap(got, want)
            worst = max(worst, difference)
            if difference > t.limit:
                fail(
                    f"row {index} of {len(want)} tokens differs by {difference:.2g} (limit {t.limit:.0e}) in {name}, "
                    f"run as for {mode}"
                )
    return worst


@check("tiny")
def row_alone_equals_row_in_large_batch(t: Tiny) -> str:
    """A row gives the same hidden states alone and in a batch of 9, and of 65 or the next number that is run.

    Never reduce over the batch, and let no number of rows be special.
    """
    worst, counts = 0.0, list[int]()
    for wanted in (9, 65):
        lengths = [2 + index % DISTINCT for index in range(wanted)]
        if len(t.plan(lengths, tokens_per_batch=TOKENS).batches) > 1:
            # Here batches have a power of two of rows.
            lengths = [2 + index % DISTINCT for index in range(1 << (wanted - 1).bit_length())]
        worst = max(worst, _rows_alone(t, lengths, f"a batch of {len(lengths)}"))
        counts.append(len(lengths))
    return f"{', '.join(map(str, counts))} rows, {worst:.1e}"


@check("tiny")
def row_alone_equals_row_in_ragged_batch(t: Tiny) -> str:
    """A row gives the same hidden states alone and beside one that is 199 tokens longer.

    A backend must honour the lengths of rows, however different they are; a module must not look at them.
    """
    lengths = [1, t.length(200), max(1, t.length(200) // 2), t.length(200)]
    worst = _rows_alone(t, lengths, f"a batch of rows of {', '.join(map(str, lengths))} tokens")
    return f"rows of {', '.join(map(str, lengths))} tokens, {worst:.1e}"


@check("tiny")
def no_length_is_special(t: Tiny) -> str:
    """A row of exactly 16, 32, 64, 128 or 256 tokens gives what it gives where it is padded, or its text goes on.

    Lengths that are round numbers take the same path as their neighbours: let no shape decide what is computed.
    """
    worst, told = 0.0, list[int]()
    for length in (16, 32, 64, 128, 256):
        if t.length(length + 3) < length + 3:
            break
        row = t.tokens(length + 3)
        goes_on = t.spec.semantics == "causal"
        want = t.hidden(row, prompt=length)[:length] if goes_on else t.together([row[:length], row])[0]
        difference = gap(t.hidden(row[:length]), want)
        worst = max(worst, difference)
        told.append(length)
        if difference > t.limit:
            fail(
                f"a row of {length} tokens differs by {difference:.2g} (limit {t.limit:.0e}) from the same tokens "
                f"{'with three more behind them' if goes_on else 'padded to a longer row'}"
            )
    return f"{', '.join(map(str, told))} tokens, {worst:.1e}"


@check("tiny")
def no_state_between_calls(t: Tiny) -> str:
    """A short input gives the same numbers before and after a long one or an image, and the module keeps none of them.

    Keep positions, masks, caches and features of pictures out of the module: they belong to the context of one call.
    Images are part of it where the spec declares a vision tower.
    """
    short, long = t.tokens(6), t.tokens(t.length(70))
    model = t.load(t.folder)
    before = _held_by(model._runtime.encoder.trunk)
    first = as_array(model.forward(short[None]))
    for name, (ids, mask) in {
        f"one of {len(long)}": (long[None], None),
        "a batch padded on the left": padded([short, long], "left"),
        "a batch padded on the right": padded([long, short, long], "right"),
    }.items():
        model.forward(ids, mask)
        difference = gap(model.forward(short[None]), first)
        if difference:
            fail(f"a row of {len(short)} tokens differs by {difference:.2g} (limit 0) after {name}")
    images = "no vision tower" if t.spec.vision is None else _image_between(t, model)
    if t.spec.vision is not None:
        difference = gap(model.forward(short[None]), first)
        if difference:
            fail(f"a row of {len(short)} tokens differs by {difference:.2g} (limit 0) after {images}")
    kept = _held_by(model._runtime.encoder.trunk) - before
    if kept:
        fail(f"after these calls the module holds new arrays: {', '.join(sorted(kept))}")
    return f"{len(short)}, {len(long)}, {len(short)}, padded, {len(short)} tokens, {images}: equal"


def _image_between(t: Tiny, model: Model) -> str:
    """Answer a text, an image, the text, the image; how many images, once every second answer equalled the first.

    Without what opens images the text alone is answered, and the figure says so.
    """
    pixels = picture(t)
    text, image = "abc", {"image": pixels}
    first = t.answers(text, model)
    try:
        seen = t.answers(image, model)
    except InputError as error:
        if isinstance(error.__cause__, ImportError):
            # An install without the extra for images says nothing about the plugin.
            return f"no image ({error})"
        raise CheckFailed(
            f"the spec declares a vision tower, but an image of {pixels.shape[1]} x {pixels.shape[0]} pixels is "
            f"refused: {error}"
        ) from error
    for name, item, wanted, after in (("text", text, first, "an image"), ("image", image, seen, "a text")):
        difference = gap(t.answers(item, model), wanted)
        if difference:
            fail(f"the vector of the same {name} differs by {difference:.2g} (limit 0) after {after}")
    return "1 image"


def _held_by(trunk: object) -> set[str]:
    """Arrays that any part of a module holds, public or private, by path and shape."""
    found: set[str] = set()
    for path, part in cast(Any, trunk).named_modules():
        for name, value in {**dict(part), **vars(part)}.items():
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, mx.array):
                    found.add(f"{path or type(part).__name__}.{name} {tuple(item.shape)}")
    return found


@check("tiny")
def deterministic(t: Tiny) -> str:
    """The same request gives the same numbers and the same plan again, and when memory is taken by others.

    Use no randomness at inference (dropout, noise) and decide nothing by what happens to be free.
    """
    rows = [t.tokens(t.length(length), seed) for seed, length in enumerate((30, 11))]
    ids, mask = padded(rows, "right")
    first, plan = as_array(t.model.forward(ids, mask)), t.model.plan([30, 11])
    for _ in range(2):
        difference = gap(t.model.forward(ids, mask), first)
        if difference:
            fail(f"the same request again differs by {difference:.2g} (limit 0)")
    megabytes = 64
    with held(megabytes << 20):
        difference = gap(t.model.forward(ids, mask), first)
        if difference:
            fail(f"with {megabytes} MiB taken by others the same request differs by {difference:.2g} (limit 0)")
        if t.model.plan([30, 11]) != plan:
            fail(f"with {megabytes} MiB taken by others the same request is planned differently")
    difference = gap(t.load(t.folder).forward(ids, mask), first)
    if difference:
        fail(f"loaded again the same request differs by {difference:.2g} (limit 0)")
    return "5 runs: equal"


def _in_one_trace(function: Callable[[mx.array], mx.array], ids: mx.array) -> mx.array:
    """What a function makes when it is traced: compiled, or exported where MLX compiles nothing."""
    if compile_traces():
        return mx.compile(function)(ids)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/pass.mlxfn"
        try:
            mx.export_function(path, function, ids)
        except ValueError as error:
            # It is traced, which is what would have failed; files have no words for some operations (Contiguous).
            if "Unable to serialize" not in str(error):
                raise
            return function(ids)
        again: Any = mx.import_function(path)
        return again(ids)[0]


@check("tiny")
def compile_safe(t: Tiny) -> str:
    """Under mx.compile the module gives the same numbers: it reads no value of an array while it runs.

    Use shapes instead of `.item()`, `.tolist()` and numpy, and call no mx.eval.
    """
    row = t.tokens(t.length(20))
    plan = t.plan([len(row)], spans=[t.spans(row)])
    (batch,) = plan.batches
    (step,) = batch.steps

    def run(ids: mx.array) -> mx.array:
        return t.trunk(ids, StepContext(plan, batch, step, (0,), None, Stretches()))

    # As wide as the plan has it: a device pads rows to few shapes.
    ids = np.zeros((1, step.tokens), np.int32)
    ids[0, : len(row)] = row
    try:
        got = _in_one_trace(run, mx.array(ids))
        mx.eval(got)
    # MLX raises ValueError or RuntimeError, by what the module does.
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise CheckFailed(f"compiling a pass of {len(row)} tokens failed: {said}") from error
    difference = gap(got[0, : len(row)], t.hidden(row))
    if difference > t.limit:
        fail(f"compiled it differs by {difference:.2g} (limit {t.limit:.0e}) for {len(row)} tokens")
    return f"{difference:.1e}"
