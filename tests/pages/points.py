"""What the explorer's data says of points, against `archport plan --json` of the same ones."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any


def data_of(page: str) -> dict[str, Any]:
    """The data in an explorer's file."""
    packed = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def check_points(data: dict[str, Any], invoke: Callable[..., Any], arguments: Sequence[Any], *, own: str = "") -> None:
    """Twenty random points of the published weights are what `archport plan --json` says of them.

    Args:
        invoke: runs the command with arguments.
        arguments: more of them, the model first.
        own: the device that is this machine, which needs no --device.
    """
    draw = random.Random(0)
    contexts, batches, new = data["contexts"], data["batches"], data["new_tokens"]
    assert len(contexts) >= 12
    assert len(batches) >= 8
    published = [form for form in data["forms"] if form["form"] == "as published"]
    assert {form["device"] for form in published} == set(data["devices"])
    for _ in range(20):
        form, at, column = draw.choice(published), draw.randrange(len(contexts)), draw.randrange(len(batches))
        cell = form["points"][at * len(batches) + column]
        decoded = min(new, contexts[at] - 1)
        point = ["--tokens", contexts[at] - decoded, "--new", decoded, "--batch", batches[column], "--json"]
        device = [] if form["device"] == own else ["--device", form["device"]]
        told = json.loads(invoke(*arguments, *point, *device).output)
        if len(cell) == 2 and cell[1] is None:
            assert told["required_bytes"] > form["budget"]
        elif len(cell) == 2:
            assert (data["texts"][cell[0]], cell[1]) == (told["message"], told["required_bytes"])
        if len(cell) == 2:
            continue
        peak, sizes, prefill, decoding, chunk, _ = cell
        assert (peak, prefill, decoding) == (told["peak"], told["prefill_seconds"], told["decode_seconds"])
        assert {data["components"][int(index)]: size for index, size in sizes.items()} == {
            name: size for name, size in told["bytes"].items() if size
        }
        assert chunk in {batch["chunk"] for batch in told["batches"]}
        assert sum(sizes.values()) == peak <= form["budget"] == told["budget"]
