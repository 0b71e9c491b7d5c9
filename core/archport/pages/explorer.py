"""The plan explorer: what fits on which device, in which form, as one page of HTML that needs no network.

The page shows points that were planned, and moves between them alone. Its numbers are `archport plan --json`'s.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archport.contract import DeviceFacts
from archport.contract.recurrence import RecurrentPath
from archport.pages.assembly import assembled
from archport.planning import Plan
from archport.planning.frontier import BATCHES, Plans, Point, frontier, longest_context
from archport.planning.report import describe, rounded

# Components of a peak in the order in which they are stacked; others follow.
_ORDER = ("weights", "kv", "activations", "attention", "logits", "outputs", "inputs", "margin")


@dataclass(frozen=True, slots=True)
class Form:
    """One form of the weights on one device.

    Args:
        device: the machine.
        name: of the form, as "4-bit".
        plans: its planner.
        budget: bytes a plan may use.
        estimated: whether the bytes of the weights follow from the spec alone.
    """

    device: DeviceFacts
    name: str
    plans: Plans
    budget: int
    estimated: bool


def explorer_data(
    title: str,
    forms: Sequence[Form],
    contexts: Sequence[int],
    *,
    new_tokens: int = 0,
    pack: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that the page shows, as JSON-ready values.

    Args:
        title: the model's name.
        forms: devices and forms of the weights to plan for.
        contexts: tokens per row, new ones included.
        new_tokens, pack: as `frontier`.
        progress: told the name of each device and form before it is planned.
    """
    texts = _Table()
    components = _Table(_ORDER)
    made: list[dict[str, Any]] = []
    for form in forms:
        progress(f"{form.device.name}, {form.name}")
        points = frontier(form.plans, contexts, BATCHES, new_tokens=new_tokens, pack=pack)
        longest = longest_context(form.plans, contexts[-1], new_tokens=new_tokens, pack=pack)
        made.append(
            {
                "device": form.device.name,
                "form": form.name,
                "budget": form.budget,
                "estimated": form.estimated,
                "longest": longest,
                "points": [_cell(point, texts, components) for point in points],
            }
        )
    devices = {form.device.name: form.device for form in forms}
    return {
        "title": title,
        "contexts": list(contexts),
        "batches": list(BATCHES),
        "new_tokens": new_tokens,
        "devices": {name: _device(facts) for name, facts in devices.items()},
        "components": components.values,
        "texts": texts.values,
        "forms": made,
    }


def explorer_page(data: Mapping[str, Any]) -> str:
    """The page, as one file of HTML with its script, its style and uPlot in it."""
    # Without the time, so that the same plans make the same page.
    values = base64.b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)).decode()
    return assembled("explorer", title=str(data["title"]), data=values)


class _Table:
    """Texts that many points share, each told once."""

    def __init__(self, first: Sequence[str] = ()) -> None:
        self.values = list(first)
        self._index = {value: index for index, value in enumerate(self.values)}

    def index(self, value: str) -> int:
        if value not in self._index:
            self._index[value] = len(self.values)
            self.values.append(value)
        return self._index[value]


def _device(device: DeviceFacts) -> dict[str, Any]:
    return {"kind": device.kind, "memory": device.total_memory, "simulated": device.simulated}


def _cell(point: Point, texts: _Table, components: _Table) -> list[Any]:
    """[peak, {component: bytes}, prefill s, decoding s, chunk, [text of each kind of layer]]; refused: [why, bytes]."""
    if point.plan is None:
        refusal = point.refusal
        assert refusal is not None
        text = str(refusal) if point.planned else f"fewer rows do not fit already: {refusal}"
        return [texts.index(text), refusal.required_bytes if point.planned else None]
    plan = point.plan
    sizes = {components.index(name): size for name, size in plan.bytes.items() if size}
    return [
        plan.peak,
        sizes,
        rounded(plan.prefill_seconds),
        rounded(plan.decode_seconds),
        plan.chunk,
        [texts.index(text) for text in paths(plan)],
    ]


def paths(plan: Plan) -> list[str]:
    """Per kind of layer of the largest batch, in lines: the layers, their path, and why not each other one."""
    batch = plan.largest
    told: list[str] = []
    for index, kind in enumerate(batch.kinds):
        path = batch.steps[0].paths[index]
        name = path.form if isinstance(path, RecurrentPath) else path.backend.name
        against = [] if isinstance(path, RecurrentPath) else plan.against(path)
        told.append("\n".join([f"{kind.count} x {describe(kind.layer)}", name, *(f"{a}: {why}" for a, why in against)]))
    return told
