"""Tensors from source files into one output file, a few megabytes at a time, going on where an earlier process stopped.

Where every byte of the output lies is known before the first is written. Reads and writes by offset instead of mapping
files, so that memory holds one chunk of rows whatever a tensor's size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport.checkpoint.disk import inside
from archport.checkpoint.headers import LENGTH_BYTES
from archport.contract.errors import CheckpointError
from archport.contract.spec import itemsize
from archport.conversion.targets import FLOATING, Stretch, Target

# Of the source, held at once; its float32 copy and what is made of it are as large again, each.
CHUNK = 8 << 20
# MLX quantises to 4-bit floats by a table, with temporaries of 40 times the source.
FLOAT_CHUNK = 1 << 20
# Bytes of output after which progress is noted on disk.
_NOTED = 64 << 20
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "bfloat16": "BF16",
    "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "complex64": "C64",
}  # fmt: skip
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}


def header_of(targets: Sequence[Target]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The first bytes of an output file, and (offset in the file, bytes) of each of its tensors."""
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    places: dict[str, tuple[int, int]] = {}
    position = 0
    for name, dtype, shape in (entry for target in targets for entry in target.stored()):
        nbytes = math.prod(shape) * _SIZES.get(_NAMES[dtype], 8)
        kind = _NAMES[dtype]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        places[name] = (position, nbytes)
        position += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Readers that map the file want tensors at multiples of eight.
    text += b" " * (-len(text) % 8)
    start = LENGTH_BYTES + len(text)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, {
        name: (start + offset, nbytes) for name, (offset, nbytes) in places.items()
    }


def size_of(targets: Sequence[Target]) -> int:
    """Bytes of the output file."""
    header, places = header_of(targets)
    return max((offset + nbytes for offset, nbytes in places.values()), default=len(header))


def write_file(source: Path, path: Path, targets: Sequence[Target], done: int, note: Callable[[int], None]) -> None:
    """Write the tensors of one output file.

    Args:
        source: the folder of the checkpoint that is read.
        done: how many of the targets an earlier process wrote into `path`.
        note: is told how many are on disk, after every 64 MB and at the end.

    Raises:
        CheckpointError: a source file ends early.
        OSError: the disk is full, or fails.
    """
    header, places = header_of(targets)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not done:
            os.ftruncate(descriptor, size_of(targets))
            _put(descriptor, header, 0)
        pending = 0
        for index, target in enumerate(targets[done:], done + 1):
            _write_target(source, descriptor, target, places)
            pending += sum(places[name][1] for name, _, _ in target.stored())
            if pending >= _NOTED or index == len(targets):
                # Whoever goes on believes the note, so the bytes come first.
                os.fsync(descriptor)
                note(index)
                pending = 0
    finally:
        os.close(descriptor)


def _put(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _write_target(source: Path, descriptor: int, target: Target, places: dict[str, tuple[int, int]]) -> None:
    names = [name for name, _, _ in target.stored()]
    offsets = [places[name][0] for name in names]
    columns = target.shape[-1] if target.shape else 1
    size = next((itemsize(dtype) for dtype in FLOATING if dtype == target.dtype), 1)
    # A whole row of a matrix that is quantised or added to; elements of whatever is cast; bytes of what stays.
    columns = columns if len(target.shape) > 1 else 1
    unit = size * columns if target.packed or target.adapted else size
    for data, stretch, start in _chunks(source, target, unit):
        if target.packed is None and target.to == target.dtype and stretch.added is None:
            made: list[bytes | memoryview] = [data]
        else:
            read = _array(data, target.dtype)
            if stretch.added is not None:
                row = start // unit
                more = stretch.added(row, row + len(data) // unit)
                read = read.astype(mx.float32) + more.reshape(-1)
            dense = read.astype(getattr(mx, target.to))
            made = [_bytes(array) for array in _quantised(dense, target, columns)]
        for at, piece in enumerate(made):
            _put(descriptor, piece, offsets[at])
            offsets[at] += len(piece)
    # Buffers of one tensor's chunks are of no use to the next one's.
    mx.clear_cache()


def _quantised(dense: mx.array, target: Target, columns: int) -> Sequence[mx.array]:
    packing = target.packed
    if packing is None:
        return [dense]
    return mx.quantize(dense.reshape(-1, columns), group_size=packing.group_size, bits=packing.bits, mode=packing.mode)


def _chunks(source: Path, target: Target, unit: int) -> Iterator[tuple[bytes, Stretch, int]]:
    """(a tensor's bytes, whole units at a time, the stretch that they are of, where in it they begin)."""
    floats = target.packed is not None and target.packed.mode != "affine"
    most = max((FLOAT_CHUNK if floats else CHUNK) // unit, 1) * unit
    for stretch in target.stretches:
        path = inside(stretch.folder or source, stretch.file, "the index")
        with path.open("rb", buffering=0) as file:
            file.seek(stretch.offset)
            left = stretch.nbytes
            while left:
                data = _read(file.fileno(), min(most, left))
                if len(data) < min(most, left):
                    raise CheckpointError(f"{path}: ends early, in {target.name!r}. Fetch the file again.")
                yield data, stretch, stretch.nbytes - left
                left -= len(data)


def _read(descriptor: int, count: int) -> bytes:
    """So many bytes, or those to the end of the file: the system may give fewer at a time."""
    data = os.read(descriptor, count)
    while len(data) < count and (more := os.read(descriptor, count - len(data))):
        data += more
    return data


def _array(data: bytes, dtype: str) -> mx.array:
    if dtype == "bfloat16":
        return mx.array(np.frombuffer(data, np.uint16)).view(mx.bfloat16)
    return mx.array(np.frombuffer(data, dtype))


def _bytes(array: mx.array) -> memoryview:
    whole = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    flat: Any = np.array(whole, copy=False).reshape(-1).view(np.uint8)
    return memoryview(flat)
