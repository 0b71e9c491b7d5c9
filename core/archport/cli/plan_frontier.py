"""`archport plan` without a number of tokens: what fits, as a table in a terminal, a page or the page's numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from archport.cli.described import Described, Loading, described, described_on, planner_of
from archport.contract import InputError
from archport.contract.sizes import format_bytes

if TYPE_CHECKING:
    from archport.contract import DeviceFacts
    from archport.planning import Plan, Planner, Readout, Request
    from archport.planning.frontier import Point

MOST_PAGE_BYTES = 3_000_000
PUBLISHED = "as published"
# Attention paths of one device, some 2 KB each: a model of 32,768 tokens has 6,000 to 11,000.
REMEMBERED = 16_384


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of a model's weights on one device.

    Args:
        name: "as published", or how its matrices are packed.
        estimated: whether the bytes of its weights follow from the config alone.
        readout: what `embed` needs after the last layer.
    """

    name: str
    planner: Planner
    estimated: bool
    readout: Readout | None = None

    def plans(self, request: Request) -> Plan:
        """The plan of a request, with what the model's head needs."""
        return self.planner(replace(request, readout=self.readout))


def variants(about: Described, device: DeviceFacts, *, budget: int | None) -> list[Variant]:
    """The published weights, then estimates of the same model unpacked and packed, the heaviest first."""
    from archport.loading import path_chooser
    from archport.planning.frontier import variants_of

    # Forms differ in their weights alone, so most calls of one are calls of the others.
    choose = replace(path_chooser(about.hooks, simulated=device.simulated), most=REMEMBERED)
    published = planner_of(about, device, budget=budget, choose=choose)
    made = [Variant(PUBLISHED, published, about.weight_bytes is None, about.readout)]
    for name, spec in variants_of(about.spec).items():
        if spec.quantization != about.spec.quantization:
            other = replace(about, spec=spec, weight_bytes=None)
            planner = planner_of(other, device, budget=budget, choose=choose)
            made.append(Variant(name, planner, estimated=True, readout=about.readout))
    return made


def draw(model: str, device: DeviceFacts, loading: Loading, *, new_tokens: int, as_json: bool) -> None:
    """Print the table of one device, the longest context and the heaviest packing that fit."""
    from archport.planning.frontier import contexts_of, frontier, longest_context

    about = described(model, device, loading)
    contexts, pack = contexts_of(about.max_context), about.pack
    forms = variants(about, device, budget=loading.budget)
    points = frontier(forms[0].plans, contexts, new_tokens=new_tokens, pack=pack)
    longest = {form.name: longest_context(form.plans, contexts[-1], new_tokens=new_tokens, pack=pack) for form in forms}
    if as_json:
        typer.echo(json.dumps(_as_json(about, forms[0], points, longest), indent=2))
        return
    typer.echo("\n".join(_lines(about, forms, points, longest)))


def duration(seconds: float) -> str:
    """Seconds in a unit that leaves at most three digits before the point."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= 2 * size or (unit in ("s", "ms") and seconds >= size):
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _lines(about: Described, forms: Sequence[Variant], points: Sequence[Point], longest: dict[str, int]) -> list[str]:
    from archport.planning.frontier import BATCHES

    planner = forms[0].planner
    device, limit = planner.device, about.max_context
    where = f"{device.name} ({'profile, budget estimated' if device.simulated else 'this machine'})"
    cells = [
        f"{format_bytes(point.plan.peak)} {duration(point.plan.seconds)}" if point.plan is not None else "-"
        for point in points
    ]
    width = max(len(cell) for cell in [*cells, "128 rows"]) + 2
    weights = f"{format_bytes(planner.weights.total)}{' (estimated)' if forms[0].estimated else ''}"
    lines = [
        f"{about.spec.arch} on {where}: weights {weights}, budget {format_bytes(planner.budget)}",
        "peak and estimated time of rows of so many tokens, - where they do not fit",
        "",
        f"{'tokens':>9}" + "".join(f"{f'{batch} rows' if batch > 1 else '1 row':>{width}}" for batch in BATCHES),
    ]
    for at in range(0, len(points), len(BATCHES)):
        row = "".join(f"{cell:>{width}}" for cell in cells[at : at + len(BATCHES)])
        lines.append(f"{points[at].context:>9,}{row}")
    lines.append("")
    told = [f"{name} {f'{tokens:,}' if tokens else 'none'}" for name, tokens in longest.items()]
    lines.append(f"longest context of one row: {', '.join(told)} (the model's limit is {limit:,})")
    whole = [name for name, tokens in longest.items() if tokens == limit]
    lines.append(f"heaviest weights that fit the whole context: {whole[0] if whole else 'none'}")
    return lines


def _as_json(about: Described, form: Variant, points: Sequence[Point], longest: dict[str, int]) -> dict[str, Any]:
    from archport.planning.report import rounded

    whole = [name for name, tokens in longest.items() if tokens == about.max_context]
    return {
        "arch": about.spec.arch,
        "device": form.planner.device.name,
        "budget": form.planner.budget,
        "longest_context": longest,
        "heaviest_that_fits": whole[0] if whole else None,
        "points": [
            {
                "tokens": point.context,
                "rows": point.batch,
                "peak": point.plan.peak if point.plan is not None else None,
                "seconds": rounded(point.plan.seconds) if point.plan is not None else None,
            }
            for point in points
        ],
    }


def explored(model: str, devices: Sequence[DeviceFacts], loading: Loading, *, new_tokens: int) -> dict[str, Any]:
    """What the explorer of a model on some devices shows: see `explorer_data`."""
    from archport.pages.explorer import Form, explorer_data
    from archport.planning.frontier import contexts_of

    abouts = described_on(model, devices, loading)
    forms = [
        Form(device, form.name, form.plans, form.planner.budget, form.estimated)
        for device, about in zip(devices, abouts, strict=True)
        for form in variants(about, device, budget=loading.budget)
    ]
    contexts = contexts_of(abouts[0].max_context)

    def told(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[Karchport: planning for {what}", end="", file=sys.stderr, flush=True)

    data = explorer_data(model, forms, contexts, new_tokens=new_tokens, pack=abouts[0].pack, progress=told)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return data


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """Write the explorer, one file of HTML.

    Raises:
        InputError: a page of more than 3 MB, or a file that can't be written.
    """
    from archport.pages.explorer import explorer_page

    page = explorer_page(data)
    if len(page.encode()) > MOST_PAGE_BYTES:
        raise InputError(
            f"the page of {len(data['devices'])} devices takes {format_bytes(len(page.encode()))}; at most "
            f"{format_bytes(MOST_PAGE_BYTES)}: name fewer with --device"
        )
    _write("--html", path, page, data)


def write_points(path: Path, data: Mapping[str, Any]) -> None:
    """Write the explorer's numbers as one JSON object, to standard output where the path is "-".

    Raises:
        InputError: a file that can't be written.
    """
    text = json.dumps(data, separators=(",", ":"))
    if str(path) == "-":
        typer.echo(text)
    else:
        _write("--points", path, text, data)


def _write(flag: str, path: Path, text: str, data: Mapping[str, Any]) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{flag} {str(path)!r} can't be written: {error.strerror}") from error
    devices, points = len(data["devices"]), sum(len(form["points"]) for form in data["forms"])
    typer.echo(f"{path}: {devices} device{'s' * (devices > 1)}, {points:,} points")
