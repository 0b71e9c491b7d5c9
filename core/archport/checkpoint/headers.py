"""What safetensors files hold, from their headers alone: every name, type, shape and byte range, checked.

Reads a few kilobytes per file and no tensor; a header may also come from elsewhere. Knows no MLX and no model.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archport.checkpoint.disk import MIB, files_in, inside, parse_json, read_object
from archport.checkpoint.files import INDEX, refuse_without_safetensors, shorten, weight_files
from archport.contract.errors import CheckpointError

# Of a file, which say how long the header after them is, and the most that is read of that: the format allows three
# times as much, and a hundred thousand tensors need half.
LENGTH_BYTES, _HEADER_LIMIT = 8, 32 * MIB
# Format name -> (name as MLX spells it, bits per element).
_DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "F32": ("float32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0", 8),
    "F4": ("float4", 4),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor.

    Args:
        name: as the file spells it.
        dtype: its element type as MLX spells it ("bfloat16"); 8-bit floats keep their variant ("float8_e4m3").
        shape: its dimensions.
        nbytes: bytes it takes in the file.
        file: the file that holds it, relative to the checkpoint.
        offset: byte of the file where it begins.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def _no_duplicates(where: str) -> Any:
    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{where}: its header names {shorten(twice)} twice. Fetch the file again.")
        return found

    return hook


def _entry(where: str, file: str, name: str, entry: Any, start: int, total: int) -> tuple[TensorInfo, int, int]:
    """One header entry as (tensor, begin, end), each value checked against the others and the file's size.

    Args:
        start: byte of the file where its data begins.
        total: bytes of the whole file.
    """
    data_bytes = total - start
    shape = entry.get("shape") if isinstance(entry, dict) else None
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    sizes_valid = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    ends_valid = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)
    if not sizes_valid or not ends_valid or not isinstance(shape, list) or not isinstance(offsets, list):
        raise CheckpointError(
            f"{where}: the header's entry for {name!r} is {entry!r}; expected dtype, shape and data_offsets. "
            "The file is damaged; fetch it again."
        )
    if entry.get("dtype") not in _DTYPES:
        raise CheckpointError(
            f"{where}: {name!r} has element type {entry.get('dtype')!r}; archport knows {', '.join(_DTYPES)}."
        )
    dtype, bits = _DTYPES[entry["dtype"]]
    begin, end = offsets
    expected = (math.prod(shape) * bits + 7) // 8
    if end > data_bytes:
        raise CheckpointError(
            f"{where} is truncated: {name!r} ends at byte {end:,} of the data, but the file holds {data_bytes:,} bytes "
            "of data. Fetch the file again."
        )
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: {name!r} is {dtype} {tuple(shape)}, which takes {expected:,} bytes, but its range is "
            f"{begin:,}..{end:,}. The file is damaged; fetch it again."
        )
    return TensorInfo(name, dtype, tuple(shape), expected, file, start + begin), begin, end


def read_header(path: Path, file: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    Raises:
        CheckpointError: the file is absent, not safetensors, truncated, or its ranges overlap or leave gaps.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: is no regular file; expected safetensors.")
        total = status.st_size
        with path.open("rb") as handle:
            length = header_length(str(path), handle.read(LENGTH_BYTES), total)
            text = handle.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the shard is missing. Fetch the checkpoint again.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error}).") from error
    return parse_header(str(path), file, text, total)


def header_length(where: str, start: bytes, total: int) -> int:
    """Bytes of the header of a safetensors file, which follow its first `LENGTH_BYTES`.

    Args:
        where: how messages call the file.
        start: its first bytes, `LENGTH_BYTES` of them where it has as many.
        total: bytes of the whole file.

    Raises:
        CheckpointError: not safetensors, or truncated.
    """
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if start.startswith(b"version "):
        raise CheckpointError(f"{where} is a git-lfs pointer, not the weights. Run `git lfs pull` in its repository.")
    if len(start) < LENGTH_BYTES or length > min(total - LENGTH_BYTES, _HEADER_LIMIT):
        raise CheckpointError(
            f"{where} is truncated or not safetensors: it holds {total:,} bytes and says that its header takes "
            f"{length:,}. Fetch the file again."
        )
    return length


def parse_header(where: str, file: str, text: bytes, total: int) -> dict[str, TensorInfo]:
    """The tensors that a header names, each checked against the others and the size of the file.

    Args:
        where: how messages call the file.
        file: its name, relative to the checkpoint.
        text: the header, without the bytes that say its length.
        total: bytes of the whole file.

    Raises:
        CheckpointError: no JSON object, entries that are none, ranges that overlap, leave gaps or pass the end.
    """
    try:
        # Python would guess other encodings, which no other reader of these files does.
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: its header is not JSON in UTF-8 ({error}). Fetch the file again.") from error
    header = parse_json(f"{where}: its header", decoded, _no_duplicates(where), "JSON")
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: its header is a JSON {type(header).__name__}; expected an object.")
    start = LENGTH_BYTES + len(text)
    data_bytes = total - start
    named = {name: entry for name, entry in header.items() if name != "__metadata__"}
    entries = [_entry(where, file, name, entry, start, total) for name, entry in named.items()]
    position = 0
    for info, begin, end in sorted(entries, key=lambda item: item[1:]):
        if begin != position:
            raise CheckpointError(
                f"{where}: {info.name!r} begins at byte {begin:,}, expected {position:,}: tensors overlap or leave a "
                "gap. The file is damaged; fetch it again."
            )
        position = end
    if position != data_bytes:
        raise CheckpointError(
            f"{where}: its tensors take {position:,} bytes and the file holds {data_bytes:,} bytes of data. "
            "The file is damaged; fetch it again."
        )
    return {info.name: info for info, _, _ in entries}


# The tensors of weight files that are not on this machine, by file and name.
Fetched = Mapping[str, Mapping[str, TensorInfo]]


def read_tensors(folder: Path, body: str = "", fetched: Fetched | None = None) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint's transformer, by name, from the headers of the files that its index names.

    Args:
        folder: the checkpoint.
        body: where in it the transformer is, "" for its root.
        fetched: headers of files that are not there, because they were read where the files are.

    Raises:
        CheckpointError: no safetensors, a missing or damaged shard, a tensor stored twice, or an index that promises
            a tensor which its file does not hold.
    """
    here = inside(folder, body, "modules.json")
    prefix = f"{body}/" if body else ""
    away = {file.removeprefix(prefix): tensors for file, tensors in (fetched or {}).items() if file.startswith(prefix)}
    names = {*files_in(here), *away}
    refuse_without_safetensors(names, str(here))
    index = read_object(inside(here, INDEX, "a checkpoint"))
    files = weight_files(names, index, str(here))
    missing = [file for file in files if file not in away and not inside(here, file, INDEX).is_file()]
    if missing:
        named = f", which {INDEX} names," if index is not None else ""
        raise CheckpointError(f"{here}: {shorten(missing)}{named} is missing. Fetch the checkpoint again.")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        header = away[file] if file in away else read_header(inside(here, file, INDEX), f"{prefix}{file}")
        for name, info in header.items():
            if name in tensors:
                raise CheckpointError(
                    f"{here}: {name!r} is stored twice, in {tensors[name].file} and in {info.file}; "
                    "which one is meant can't be known. Fetch the checkpoint again, or remove the file that is not its."
                )
            tensors[name] = info
    if index is not None and set(files) == set(index["weight_map"].values()):
        wrong = sorted(
            name
            for name, file in index["weight_map"].items()
            if name not in tensors or tensors[name].file != f"{prefix}{file}"
        )
        if wrong:
            raise CheckpointError(
                f"{here}: {INDEX} says that {shorten(wrong)} is in a file that does not hold it. "
                "The index and the shards belong to different versions; fetch the checkpoint again."
            )
    return tensors
