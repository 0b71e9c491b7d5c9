"""The text of any JSON file of a checkpoint: encodings, depth, digits, cuts, flipped bytes, and files that are none."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import BASES, Seen, copied, load, use

FILES = True
NAMES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "chat_template.json",
]
HARMLESS = ["indent", "spaces", "escapes", "mark", "order", "twice", "unknown"]
HARMFUL = ["cut", "flip", "insert", "encoding", "nested", "digits", "half", "root", "special", "many"]


def cases() -> st.SearchStrategy[Any]:
    return st.tuples(
        st.sampled_from(sorted(BASES)),
        st.sampled_from([*NAMES, *NAMES[:3] * 4]),
        st.sampled_from([*HARMLESS * 2, *HARMFUL]),
        st.integers(0, 2**32),
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, name, change, number = case
    folder = copied(bases, base, place)
    path = folder / name
    stored = path.read_bytes() if path.exists() else b"{}"
    path.unlink(missing_ok=True)
    draw = random.Random(number)
    if change == "special":
        _special(path, draw)
    else:
        path.write_bytes(changed(stored, change, draw))
    use(load(folder, seen), seen)


def changed(stored: bytes, change: str, draw: random.Random) -> bytes:
    """The bytes after a change that is named."""
    value = json.loads(stored)
    entry: Any = None
    if change == "indent":
        return json.dumps(value, indent=draw.randrange(9)).encode()
    if change == "spaces":
        return b"\n\t " + json.dumps(value, separators=(" , ", " : ")).encode() + b"\r\n"
    if change == "escapes":
        # Behind a quote that opens a text there is a letter, behind one that closes it there is none.
        return re.sub(r'(?<=")[a-z]', lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value)).encode()
    if change == "mark":
        return b"\xef\xbb\xbf" + stored
    if change == "order":
        return json.dumps(dict(draw.sample(list(value.items()), len(value)))).encode()
    if change == "twice":
        inside = json.dumps(value)[1:-1]
        return f"{{{inside}{', ' * bool(inside)}{inside}}}".encode()
    if change == "cut":
        return stored[: draw.randrange(len(stored))]
    if change in ("flip", "insert"):
        out = bytearray(stored)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(out))
            out[at : at + (change == "flip")] = bytes([draw.randrange(256)])
        return bytes(out)
    if change == "encoding":
        return json.dumps(value).encode(draw.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"]))
    if change == "root":
        return draw.choice([b"[]", b"1", b"null", b'"x"', b"", b"true", b"NaN", b"[{}]", b"\x00", b"[[1]]"])
    if change == "nested":
        depth = draw.choice([30, 70, 200, 900, 5000, 200_000])
        entry = draw.choice(["[", '{"a":']) * depth + "1" * draw.randrange(2)
        closed = entry.count("[") == depth
        entry += ("]" if closed else "}") * draw.choice([depth, depth, 0])
    elif change == "digits":
        entry = draw.choice(["", "-"]) + "1" * draw.choice([20, 60, 65, 400, 4299, 4301, 100_000])
        entry += draw.choice(["", "", "e5", "e999", ".5"])
    elif change == "half":
        entry = draw.choice(['"\\ud800"', '"\\udc00\\ud800"', '{"\\udfff": 1}', '"\\ud83e\\udd86"', '["x\\udabc"]'])
    elif change == "many":
        entry = "[" + draw.choice(["1,", "[],", '"a",', "{},", "0.5,"]) * draw.choice([10, 10_000, 1_500_000]) + "0]"
    else:
        entry = json.dumps(draw.choice([None, True, 1, "x", [1, 2], {"a": [{}]}]))
    keys = list(value) if isinstance(value, dict) else []
    key = draw.choice(keys) if keys and change != "unknown" and draw.random() < 0.4 else "unknown_key"
    return (json.dumps(value)[:-1] + ", " * bool(value) + f"{json.dumps(key)}: {entry}}}").encode()


def _special(path: Path, draw: random.Random) -> None:
    kind = draw.choice(["pipe", "itself", "device", "random", "folder", "outside", "nothing", "unreadable", "gone"])
    targets = {"device": "/dev/zero", "random": "/dev/urandom", "outside": "/etc/hostname", "gone": "no/such/file"}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.write_text("{}")
        path.chmod(0)
    elif kind != "nothing":
        path.symlink_to(targets.get(kind, path.name))
