"""How the pictures of a batch pass the vision tower: which go together, by which paths, in which pieces, at what price.

Pictures are rows of their own: none sees another, whatever text they stand in. Decides nothing about text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from archport.contract import AttentionLayer, AttentionPath, BatchShape, VisionTower
from archport.contract.device import rate
from archport.contract.spec import itemsize
from archport.planning.batch import Batch, Buffer, VisionStep, Work
from archport.planning.costs import POINTWISE_BANDWIDTH, kinds_of
from archport.planning.facts import ModelFacts
from archport.planning.shapes import TOKENS_PER_BATCH, group_rows
from archport.planning.steps import path_of

# What works patch by patch is done in pieces of a multiple of this many, which every published merge divides.
PIECE_STEP = 256


@dataclass(frozen=True, slots=True)
class TowerQuote:
    """What the tower costs for the pictures of one batch.

    Args:
        steps: in order.
        resident: bytes of the features, which stay until the text was read, and of pixels that wait.
        transient: bytes above them while the tower runs.
        buffer, work: the largest allocation, and the largest stretch between two evaluations.
        seconds: estimated time.
    """

    steps: tuple[VisionStep, ...]
    resident: int
    transient: int
    buffer: Buffer
    work: Work
    seconds: float


def within(pictures: Sequence[int], tokens: int, merged: int) -> tuple[int, ...]:
    """The largest pictures (in patches) whose tokens could stand in rows of so many, largest first."""
    kept: list[int] = []
    for patches in sorted(pictures, reverse=True):
        if patches // merged <= tokens:
            kept.append(patches)
            tokens -= patches // merged
    return tuple(kept)


def feature_bytes(model: ModelFacts, pictures: Sequence[int]) -> int:
    """Bytes of what the tower makes of these pictures, at least; 0 without a tower."""
    tower = model.spec.vision
    if tower is None:
        return 0
    return (1 + tower.taps) * sum(pictures) // tower.rows_per_token * model.spec.hidden_size * itemsize(model.dtype)


def tower_quote(model: ModelFacts, batch: Batch, room: int) -> TowerQuote | None:
    """How a batch's pictures are run when they may use `room` bytes, features included; None without pictures.

    What can be run in that is: with more room it takes more, and no more than that.
    """
    tower, pictures = model.spec.vision, batch.pictures
    if tower is None or not pictures:
        return None
    steps: list[tuple[VisionStep, int]] = []
    kind, merged = model.device.kind, tower.rows_per_token
    groups = group_rows(
        pictures, kind=kind, tokens_per_batch=TOKENS_PER_BATCH[kind], padding=0.25 if kind == "cuda" else 0.0
    )
    size = itemsize(model.dtype)
    # Features of several steps are joined one kind after the other; pixels of the next pass may wait.
    padded = sum(len(group.rows) * group.padded for group in groups)
    room -= (2 + tower.taps) * padded // merged * model.spec.hidden_size * size
    room -= 0 if kind == "cpu" else max(_pixels(tower, len(group.rows) * group.padded) for group in groups)
    for group in groups:
        lengths = tuple(pictures[index] for index in group.rows)
        step, held = _step(model, batch, group.rows, lengths, group.padded, room)
        if held <= room or len(lengths) == 1:
            steps.append((step, held))
            continue
        for index in group.rows:
            steps.append(_step(model, batch, (index,), (pictures[index],), group.padded, room))
    tokens = sum(len(step.lengths) * step.padded for step, _ in steps) // merged
    one = tokens * model.spec.hidden_size * size
    # A GPU finds the pixels of a pass ready when it is done with what runs before.
    waiting = 0 if kind == "cpu" else max(_pixels(tower, len(step.lengths) * step.padded) for step, _ in steps)
    joined = one if len(steps) > 1 else 0
    widest = max(_widest(model, tower, step) for step, _ in steps)
    buffers = [Buffer("the patches of a vision block", widest, model.device.max_buffer)]
    buffers.append(Buffer("the features of all pictures", one, model.device.max_buffer))
    buffers += [
        Buffer(f"{path.backend.name} attention of the vision tower", path.price.largest_buffer, model.device.max_buffer)
        for step, _ in steps
        for path in step.paths
        if path is not None
    ]
    return TowerQuote(
        steps=tuple(step for step, _ in steps),
        resident=(1 + tower.taps) * one + waiting,
        transient=max(held for _, held in steps) + joined,
        buffer=max(buffers, key=lambda each: each.bytes),
        work=max((_work(model, tower, step) for step, _ in steps), key=lambda each: each.seconds),
        seconds=sum(_seconds(model, tower, step) for step, _ in steps),
    )


def _step(
    model: ModelFacts, text: Batch, rows: tuple[int, ...], lengths: tuple[int, ...], padded: int, room: int
) -> tuple[VisionStep, int]:
    """One pass of the tower, and the bytes it holds next to its features at the peak."""
    tower, B, patches = model.spec.vision, len(lengths), len(lengths) * padded
    assert tower is not None
    piece = _piece(model, tower, B, padded)
    around = sum(_around(model, tower, patches, B * piece, ()))
    usual, left = model.limits.transient_on(model.device), max(0, room - around)
    # Few values, so that a path is chosen for many budgets at once.
    left = 1 << left.bit_length() - 1 if left else 0
    bound = model.limits.seconds_on(model.device)
    seconds = model.limits.dispatch_seconds if bound is None else bound / 2
    scratch = (left,) if left <= usual else (usual, left)
    limits = tuple(replace(model.limits, transient_bytes=each, dispatch_seconds=seconds) for each in scratch)
    shape = BatchShape(B=B, L=padded, ragged=any(length != padded for length in lengths))
    batch = Batch(lengths=lengths, cached=(0,) * B, shape=shape, request=text.request)
    paths = tuple(
        path_of(model, batch, layer, 0, padded, limits, None)[0] if isinstance(layer, AttentionLayer) else None
        for layer in kinds_of(tower.layers)[0]
    )
    peak, ahead = _around(model, tower, patches, B * piece, paths)
    own = (1 + tower.taps) * patches // tower.rows_per_token * model.spec.hidden_size * itemsize(model.dtype)
    step = VisionStep(pictures=rows, lengths=lengths, padded=padded, paths=paths, piece=piece, room=peak + own)
    return step, peak + ahead


def _piece(model: ModelFacts, tower: VisionTower, B: int, padded: int) -> int:
    """Patches per row that the linear parts of a block take at once."""
    most = model.limits.transient_on(model.device) // (B * _inside(tower, itemsize(model.dtype)))
    bound = model.limits.seconds_on(model.device)
    if bound is not None:
        # The other half of the bound is attention's.
        most = min(most, int(bound / 2 * rate(model.device, model.dtype) / (B * 2 * _elements(tower))))
    return padded if most >= padded else max(PIECE_STEP, most // PIECE_STEP * PIECE_STEP)


def _inside(tower: VisionTower, size: int) -> int:
    """Bytes of one patch inside the heaviest of the linear parts: embedding, projection with rotation, or the MLP.

    Pixels are normalised, and queries and keys rotated, in float32.
    """
    h, inner, pixels = tower.hidden_size, tower.intermediate_size, 3 * 2 * tower.patch_size**2
    return max(2 * 4 * pixels + 8 * h * size, 4 * h * size + 10 * h * 4, (3 * h + 2 * inner) * size)


def _elements(tower: VisionTower) -> int:
    """Elements of the matrices of one block."""
    return 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size


def _around(
    model: ModelFacts, tower: VisionTower, patches: int, piece: int, paths: Sequence[AttentionPath | None]
) -> tuple[int, int]:
    """Bytes in flight at the peak of a block, its input and the pixels included, and those of the stretch ahead.

    While attention runs all patches hold the residual, q, k and v, a copy of them and the output, eight rows in all
    (8.05 measured on a CPU over 0.25 to 4 megapixels); before and after it half of that, and what a piece holds inside.
    An attention that stays lazy is evaluated with what follows it. A GPU runs from one attention to the next in one
    stretch, and has the next one under way as soon as there is room.
    """
    size, h = itemsize(model.dtype), tower.hidden_size
    row, inside = patches * h * size, piece * _inside(tower, size)
    prices = [path.price for path in paths if path is not None]
    scratch = max((price.transient for price in prices), default=0)
    lazy = max((price.transient for price in prices if not price.evaluations), default=0)
    peak = max(8 * row + scratch, 4 * row + inside + lazy) + _pixels(tower, patches)
    return (peak, 0) if model.device.kind == "cpu" else (peak + 4 * row + inside, 4 * row + 2 * inside + lazy)


def _pixels(tower: VisionTower, patches: int) -> int:
    return patches * 3 * 2 * tower.patch_size**2


def _widest(model: ModelFacts, tower: VisionTower, step: VisionStep) -> int:
    size, patches = itemsize(model.dtype), len(step.lengths) * step.padded
    inner = len(step.lengths) * min(step.piece, step.padded) * tower.intermediate_size
    return max(patches * 3 * tower.hidden_size, inner) * size


def _work(model: ModelFacts, tower: VisionTower, step: VisionStep) -> Work:
    """The largest stretch between two evaluations of one pass."""
    bound, B = model.limits.seconds_on(model.device), len(step.lengths)
    whole = step.piece >= step.padded
    flops = 2.0 * B * min(step.piece, step.padded) * _elements(tower)
    seconds = flops / rate(model.device, model.dtype)
    found = Work("one piece of a vision block" if not whole else "one vision block", flops, seconds, bound)
    for path in step.paths:
        if path is None:
            continue
        price = path.price
        if price.evaluations or not whole:
            tile = Work(
                f"one {path.backend.name} attention tile of the vision tower",
                price.dispatch_flops,
                price.dispatch_seconds,
                bound,
            )
        else:
            tile = replace(found, flops=flops + price.dispatch_flops, seconds=seconds + price.dispatch_seconds)
        found = max(found, tile, key=lambda each: each.seconds)
    return found


def _seconds(model: ModelFacts, tower: VisionTower, step: VisionStep) -> float:
    patches, speed = len(step.lengths) * step.padded, rate(model.device, model.dtype)
    bandwidth = POINTWISE_BANDWIDTH * model.device.bandwidth
    block = 2.0 * patches * _elements(tower) / speed
    block += patches * _inside(tower, itemsize(model.dtype)) / bandwidth if bandwidth else 0.0
    kinds = kinds_of(tower.layers)[1]
    attention = sum(path.price.seconds for path in (step.paths[kind] for kind in kinds) if path is not None)
    return len(tower.layers) * block + attention
