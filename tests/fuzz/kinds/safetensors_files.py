"""Weight files: headers, ranges, names, types and values, in one file or in shards with an index."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz.cases import BASES, Seen, copied, load, use

FILES = True
HARMLESS = ["metadata", "order", "padding", "shards", "half precision"]
HARMFUL = [
    "cut",
    "flip",
    "flip data",
    "length",
    "offsets",
    "shape",
    "name",
    "drop",
    "add",
    "type",
    "encoding",
    "index",
    "twice",
    "nan",
    "huge",
    "junk entry",
    "gap",
    "empty",
]


def cases() -> st.SearchStrategy[Any]:
    harm = st.sampled_from([*HARMLESS * 3, *HARMFUL])
    return st.tuples(st.sampled_from(sorted(BASES)), harm, st.integers(0, 2**32))


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, change, number = case
    folder = copied(bases, base, place)
    path = folder / "model.safetensors"
    header, data = split(path.read_bytes())
    damage(folder, header, data, change, random.Random(number))
    use(load(folder, seen), seen)


def split(stored: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(stored[:8], "little")
    return json.loads(stored[8 : 8 + length]), stored[8 + length :]


def joined(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def damage(folder: Path, header: dict[str, Any], data: bytes, change: str, draw: random.Random) -> None:
    path = folder / "model.safetensors"
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    entry = header[name]
    if change == "metadata":
        header["__metadata__"] = {"format": "pt", "x" * draw.randrange(50): "é" * draw.randrange(99)}
    elif change == "order":
        header = dict(draw.sample(list(header.items()), len(header)))
    elif change == "padding":
        path.write_bytes(joined(json.dumps(header).encode() + b" " * draw.randrange(64), data))
        return
    elif change == "half precision":
        header, data = _half(header, data)
    elif change in ("shards", "index"):
        _shards(folder, header, data, draw, sound=change == "shards")
        return
    elif change == "cut":
        stored = joined(header, data)
        path.write_bytes(stored[: draw.choice([0, 4, 8, draw.randrange(len(stored)), len(stored) - 1])])
        return
    elif change in ("flip", "flip data"):
        stored = bytearray(joined(header, data))
        limit = len(stored) - len(data)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(limit) if change == "flip" else draw.randrange(limit, len(stored))
            stored[at] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(stored))
        return
    elif change == "length":
        path.write_bytes(joined(header, data, length=draw.choice([0, 1, 2**31, 2**63, 2**64 - 1, 7])))
        return
    elif change == "offsets":
        entry["data_offsets"] = draw.choice([[0, 0], [5, 1], [-1, 8], [0, 2**63], [0], "x", None, [0.5, 2], [True, 4]])
    elif change == "shape":
        entry["shape"] = draw.choice(
            [[], [0], [2**31], [2**63, 2**63], [-1], ["a"], entry["shape"][::-1], [1, *entry["shape"]]]
        )
    elif change == "name":
        new = draw.choice(
            ["", "x", "a" * 5000, name + ".", "\u0000", "\ud800", "../x", f"model.{name}", "__metadata__"]
        )
        header = {new if key == name else key: value for key, value in header.items()}
    elif change == "drop":
        header, data = _without(header, data, name)
    elif change == "add":
        other = draw.choice(
            ["layers.99.weight", "lm_head.weight", "x.scales", "x.biases", name + ".scales", "position_ids"]
        )
        header[other] = {"dtype": draw.choice(["F32", "U8", "F16"]), "shape": [0], "data_offsets": [len(data)] * 2}
    elif change == "type":
        entry["dtype"] = draw.choice(
            ["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", None, 5, "I32"]
        )
    elif change == "encoding":
        path.write_bytes(joined(json.dumps(header).encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"])), data))
        return
    elif change == "twice":
        text = json.dumps(header)
        path.write_bytes(joined((text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}").encode(), data))
        return
    elif change == "nan":
        at = entry["data_offsets"][0]
        data = data[:at] + draw.choice([b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f"]) + data[at + 4 :]
    elif change == "huge":
        header["x"] = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [len(data), len(data) + 2**50]}
    elif change == "junk entry":
        header[name] = draw.choice([None, 5, [], {}, "x", {"dtype": "F32"}, {"a": {"b": {}}}])
    elif change == "gap":
        data += b"\0" * draw.randint(1, 9)
    elif change == "empty":
        header, data = {}, b""
    path.write_bytes(joined(header, data))


def _without(header: dict[str, Any], data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    """Header and data without one tensor, the others moved up."""
    begin, end = header[name]["data_offsets"]
    out: dict[str, Any] = {}
    for key, value in header.items():
        if key == name:
            continue
        if key != "__metadata__" and value["data_offsets"][0] >= end:
            value = {**value, "data_offsets": [at - (end - begin) for at in value["data_offsets"]]}
        out[key] = value
    return out, data[:begin] + data[end:]


def _half(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """The same values in float16."""
    out, parts, at = {}, [], 0
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            if name == "__metadata__":
                continue
            part = data[slice(*entry["data_offsets"])]
        else:
            part = np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).astype(np.float16).tobytes()
            entry = {**entry, "dtype": "F16"}
        out[name] = {**entry, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    return out, b"".join(parts)


def _shards(folder: Path, header: dict[str, Any], data: bytes, draw: random.Random, *, sound: bool) -> None:
    """Two files and an index, or an index that is wrong about them."""
    names = [name for name in header if name != "__metadata__"]
    weight_map: Any = {}
    for part, mine in enumerate((names[::2], names[1::2])):
        file, rest, values = f"model-{part + 1:05d}-of-00002.safetensors", dict(header), data
        rest.pop("__metadata__", None)
        for name in names:
            if name not in mine:
                rest, values = _without(rest, values, name)
        (folder / file).write_bytes(joined(rest, values))
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors").unlink()
    index: Any = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    if not sound:
        name = draw.choice(names)
        change = draw.randrange(6)
        if change == 0:
            weight_map[name] = draw.choice(
                ["../x.safetensors", "/dev/zero", "gone.safetensors", "", 5, None, "a" * 400]
            )
        elif change == 1:
            del weight_map[name]
        elif change == 2:
            index["weight_map"] = draw.choice([[], None, "x", {}, {"a": 1}])
        elif change == 3:
            weight_map[name] = next(file for file in weight_map.values() if file != weight_map[name])
        elif change == 4:
            (folder / weight_map[name]).unlink()
        else:
            weight_map[f"{name}x"] = weight_map[name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
